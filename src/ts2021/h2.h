// HTTP/2 inside the Noise connection (section 4): thin sans-I/O sessions over libnghttp2, prior knowledge, no TLS.
//
// Both classes: consume() takes bytes in any pieces, produce() gives bytes to seal and send, poll_event() tells what
// happened; drain poll_event() after each consume(). An error from consume() is final: drop the connection. Header
// names are lower case. Windows are raised at the start and refilled as bytes arrive, on stream and connection.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"

namespace porthole::ts2021 {

struct Header {
  std::string name;  // lower case, no pseudo headers
  std::string value;
};
using Headers = std::vector<Header>;
// First value of `name` (lower case), or empty.
std::string_view find_header(const Headers& headers, std::string_view name);

using H2StreamId = std::int32_t;

// RFC 9113 section 7 error codes that matter here.
constexpr std::uint32_t kH2NoError = 0x0;
constexpr std::uint32_t kH2InternalError = 0x2;
constexpr std::uint32_t kH2RefusedStream = 0x7;
constexpr std::uint32_t kH2Cancel = 0x8;
constexpr std::uint32_t kH2EnhanceYourCalm = 0xb;

// ---- client --------------------------------------------------------------------------------------------------------

struct H2Response {  // the final status line and headers (1xx are skipped)
  H2StreamId stream = 0;
  int status = 0;
  Headers headers;
};
struct H2Data {
  H2StreamId stream = 0;
  ByteVector bytes;
};
// The stream is over and forgotten. error_code kH2NoError: the answer is complete; else it was reset or refused.
struct H2Closed {
  H2StreamId stream = 0;
  std::uint32_t error_code = 0;
};
struct H2Pong {};
// The server takes no new streams; open ones with ids up to `last_stream` may finish.
struct H2GoAway {
  H2StreamId last_stream = 0;
  std::uint32_t error_code = 0;
};
using H2ClientEvent = std::variant<H2Response, H2Data, H2Closed, H2Pong, H2GoAway>;

class H2Client {
 public:
  // `authority` as the control URL has it: host[:port]. Preface and SETTINGS are ready to produce() at once.
  explicit H2Client(std::string authority);
  ~H2Client();
  H2Client(H2Client&&) noexcept;
  H2Client& operator=(H2Client&&) noexcept;

  // The body is copied, and wiped when it has been sent or the stream ends. Error: GOAWAY received or ids spent.
  Result<H2StreamId> submit(std::string_view method, std::string_view path, const Headers& headers, Bytes body);
  // RST_STREAM(CANCEL); no more events of this stream follow.
  void cancel(H2StreamId stream);
  // One PING; its answer is an H2Pong event.
  void ping();
  // Announces the end (GOAWAY); open streams may finish.
  void go_away();

  Status consume(Bytes bytes);
  std::size_t produce(MutBytes out);
  bool has_output() const;
  // Nothing more will be sent or understood (GOAWAY, a fatal error of either side): drop the connection.
  bool finished() const;
  std::optional<H2ClientEvent> poll_event();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// ---- server --------------------------------------------------------------------------------------------------------

struct H2Request {  // complete, body included (at most kRequestBodySizeMax; larger ones are answered 413)
  H2StreamId stream = 0;
  std::string method;
  std::string path;
  Headers headers;
  ByteVector body;
};
// The peer reset the stream or it finished both ways; its id is dead.
struct H2StreamEnded {
  H2StreamId stream = 0;
  std::uint32_t error_code = 0;
};
using H2ServerEvent = std::variant<H2Request, H2StreamEnded>;

class H2Server {
 public:
  // SETTINGS are ready to produce() at once.
  H2Server();
  ~H2Server();
  H2Server(H2Server&&) noexcept;
  H2Server& operator=(H2Server&&) noexcept;

  // A complete answer. False: the stream is gone.
  bool respond(H2StreamId stream, int status, const Headers& headers, Bytes body);
  // An answer whose body follows with send_data() and end().
  bool respond_streaming(H2StreamId stream, int status, const Headers& headers);
  // Queues bytes of a streaming answer. False: the stream is gone, or the queue (kServerStreamQueueSizeMax) would
  // overflow; nothing was taken then.
  bool send_data(H2StreamId stream, Bytes bytes);
  // Bytes queued and not yet framed; how far this client lags behind. Without a stream: of all.
  std::size_t queued(H2StreamId stream) const;
  std::size_t queued() const;
  void end(H2StreamId stream);
  void reset(H2StreamId stream, std::uint32_t error_code);
  // GOAWAY: no new streams; open ones may finish.
  void go_away();

  Status consume(Bytes bytes);
  std::size_t produce(MutBytes out);
  bool has_output() const;
  // Nothing more will be sent or understood: drop the connection.
  bool finished() const;
  std::optional<H2ServerEvent> poll_event();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace porthole::ts2021
