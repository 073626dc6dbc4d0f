// A media session as the client sees it (C1): over a connected TCP stream, whoever connected it and through whatever.
// Coroutines of one io_context; everything must be called on its thread.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "client/session_machine.h"

namespace porthole::client {

// Bytes of one item in order. Dropping it tells the server to stop.
class ReadStream : public OpenedRange {
 public:
  virtual ~ReadStream() = default;
  // The next bytes; empty: the range is complete. ClientError when it broke off.
  virtual boost::asio::awaitable<std::string> read() = 0;
};

class Session {
 public:
  // TLS and WebSocket on `socket`. `pin`: fingerprint the server must show; empty: first use, see fingerprint().
  // Nothing is sent inside TLS before the pin was compared. `where` names the server in sentences.
  static boost::asio::awaitable<std::shared_ptr<Session>> open(boost::asio::ip::tcp::socket socket, std::string where,
                                                               std::string pin);
  virtual ~Session() = default;

  virtual const std::string& fingerprint() const = 0;
  // Failure kWrongPassword or kRefused with the server's sentence.
  virtual boost::asio::awaitable<LoginAnswer> login(LoginDetails details) = 0;
  virtual boost::asio::awaitable<std::vector<Item>> list() = 0;
  virtual boost::asio::awaitable<PosterImage> poster(std::string item_id) = 0;
  // Bytes [offset, offset + length); length 0: to the end.
  virtual boost::asio::awaitable<std::unique_ptr<ReadStream>> read(std::string item_id, std::uint64_t offset,
                                                                   std::uint64_t length) = 0;
  virtual boost::asio::awaitable<void> ping() = 0;
  // No longer usable; why, as a sentence.
  virtual bool ended() const = 0;
  virtual std::string end_reason() const = 0;
  // Completes when the session has ended.
  virtual boost::asio::awaitable<void> wait_end() = 0;
  virtual void close() = 0;
};

}  // namespace porthole::client
