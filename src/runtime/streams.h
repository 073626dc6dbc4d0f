// Dials and runs the byte streams that sans-I/O machines ask for (base/stream.h): name look-up, parallel connects,
// TLS, reading and writing without ever blocking.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "base/stream.h"
#include "base/time.h"
#include "runtime/event_loop.h"
#include "runtime/resolver.h"

struct ssl_ctx_st;

namespace porthole::runtime {

// The machine side, called on the loop's thread.
class StreamMachine {
 public:
  virtual ~StreamMachine() = default;
  virtual void stream_opened(StreamId, const StreamInfo&) = 0;
  virtual void stream_failed(StreamId, const Error&) = 0;
  virtual void stream_closed(StreamId, const Error* error) = 0;  // error null: clean end
  // Bytes taken. Less than all: the rest is offered again after the next turn. An error closes the stream.
  virtual Result<std::size_t> stream_consume(StreamId, MutBytes) = 0;
  virtual std::size_t stream_produce(StreamId, MutBytes out) = 0;
  virtual bool stream_has_output(StreamId) = 0;
};

class Streams {
 public:
  // ca_file: PEM bundle trusted besides the system's; empty: SSL_CERT_FILE or the system's alone.
  static Result<std::unique_ptr<Streams>> make(EventLoop&, StreamMachine&, const std::string& ca_file);
  ~Streams();

  void open(Instant now, OpenStream request);
  void close(StreamId id);
  // Writes what machines have for the network. Call once per loop turn.
  void pump(Instant now);

  void handle_timeout(Instant now);
  Instant next_timeout() const;

 private:
  class Conn;
  friend class Conn;
  Streams(EventLoop&, StreamMachine&);
  void erase(StreamId id);
  void load_system_roots();

  EventLoop& loop_;
  StreamMachine& machine_;
  Resolver resolver_;
  ssl_ctx_st* tls_ = nullptr;
  bool system_roots_ = false;
  std::map<StreamId, std::shared_ptr<Conn>> conns_;
  std::unique_ptr<std::uint8_t[]> scratch_;
};

}  // namespace porthole::runtime
