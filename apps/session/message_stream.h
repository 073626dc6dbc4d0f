// The connection of a media session: TLS 1.3, in it a WebSocket of binary messages (RFC 6455; proto/session.proto).
//
//   server: secure(), read_upgrade(), accept();  client: secure(), connect();  then read() and write() until one fails.
//
// One reader and one writer at a time, all on the socket's executor. Errors are results; abort() ends whatever is under way
// with one. A silent connection is pinged, and ends after kIdleTimeout.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <string_view>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/ssl/stream_base.hpp>

namespace porthole::session {

class MessageStream {
 public:
  using Error = boost::system::error_code;
  template <class T>
  using Task = boost::asio::awaitable<T>;

  // `tls` must outlive the stream. A received message beyond `message_max` bytes ends the connection.
  MessageStream(boost::asio::ip::tcp::socket socket, boost::asio::ssl::context& tls, std::size_t message_max);
  ~MessageStream();
  MessageStream(const MessageStream&) = delete;
  MessageStream& operator=(const MessageStream&) = delete;

  // The TLS handshake. `limit` holds for it and for read_upgrade() together: beast::error::timeout.
  Task<Error> secure(boost::asio::ssl::stream_base::handshake_type side, std::chrono::seconds limit);
  // For the other side's certificate.
  const SSL* tls() const;

  // Whoever asks for anything but an upgrade at kSessionPath is told so and gets upgrade_declined here.
  Task<Error> read_upgrade();
  Task<Error> accept();
  // upgrade_declined: `status` is the server's HTTP status.
  Task<Error> connect(unsigned& status);

  struct Received {
    Error error;
    bool text = false;        // not binary: nothing that a session knows
    std::string_view bytes;   // until the next read()
  };
  Task<Received> read();
  // The message must live until the write is done.
  Task<Error> write(std::string_view message);
  // In order: the other side answers, and read() ends.
  Task<Error> close();
  void abort();
  // Likewise, and the other side sees a reset, not an end after which it could still speak.
  void reset();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace porthole::session
