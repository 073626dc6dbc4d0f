// One small HTTP/1.1 exchange on a stream of its own: the server's key, or a ping that control asked for. And what can
// be said about an answer that is not what was asked for.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>

#include "base/bytes.h"
#include "base/key.h"
#include "base/result.h"
#include "base/stream.h"
#include "ts2021/messages.h"
#include "wire/http.h"

namespace porthole::control {

// The control URL in its parts. Only scheme, host and port may be present (a single trailing '/' is fine).
struct ControlUrl {
  bool tls = true;
  std::string host;       // without brackets
  std::uint16_t port = 0; // explicit or the scheme's
  std::string authority;  // host[:port] as HTTP wants it; the scheme's own port is left out

  static Result<ControlUrl> parse(std::string_view text);
  OpenStream open(StreamId id) const;
  std::string to_string() const { return (tls ? "https://" : "http://") + authority; }
};

// The first few bytes of a stream, kept to guess what speaks there when it is not HTTP.
class FirstBytes {
 public:
  void take(Bytes bytes) { append(bytes_, bytes.first(std::min(bytes.size(), kSize - bytes_.size()))); }
  bool empty() const { return bytes_.empty(); }
  // A sentence, or empty when there is nothing to guess.
  std::string_view guess() const;

 private:
  static constexpr std::size_t kSize = 8;
  ByteVector bytes_;
};

class HttpFetch {
 public:
  HttpFetch(StreamId id, std::string_view method, std::string_view target, std::string_view authority);

  StreamId id() const { return id_; }
  void opened() { opened_ = true; }
  // True: the answer is complete.
  Result<bool> consume(Bytes bytes);
  // The stream ended. True: that completed the answer.
  Result<bool> closed();
  std::size_t produce(MutBytes out);
  bool has_output() const { return opened_ && sent_ < request_.size(); }

  int status() const { return parser_.head().status(); }
  const wire::HttpHeadParser& head() const { return parser_.head(); }
  std::string_view body() const { return parser_.body(); }

 private:
  StreamId id_;
  bool opened_ = false;
  ByteVector request_;
  std::size_t sent_ = 0;
  FirstBytes first_bytes_;
  wire::HttpMessageParser parser_;
};

// The key in an answer to GET /key, or what is wrong with it in words: a captive portal, a redirect, a server that is
// no control server, one that speaks TLS where plain HTTP was spoken.
Result<MachinePublic> read_key_answer(const HttpFetch& fetch, const ControlUrl& url);

// First line of a text that a server wrote, fit for a message: printable, at most kErrorTextSizeMax bytes.
std::string printable_line(std::string_view text);
}  // namespace porthole::control
