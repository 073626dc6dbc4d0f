// A web server on 127.0.0.1 that players take the film from: http://127.0.0.1:PORT/TOKEN/ITEM/NAME, with HEAD and byte
// ranges, fed by the media session. The token keeps other users and web pages of this machine out. When the session is
// lost in the middle of an answer, it asks for a new one and goes on at the same byte; when there is none, the answer
// ends before its Content-Length, so that no player takes a part for the whole.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "client/session.h"

namespace porthole::client {

class Playback {
 public:
  // A session that has not ended; connects anew when needed. ClientError when that does not work.
  using SessionSource = std::function<boost::asio::awaitable<std::shared_ptr<Session>>()>;

  // CommandError when `listen` is not ADDR:PORT with a loopback address.
  static void check_listen(const std::string& listen);
  // Serves on `listen` ("127.0.0.1:0"; see check_listen) from here on, on the thread of `io`. ClientError when that is not
  // possible. `problem` gets a sentence for each answer that broke off.
  Playback(boost::asio::io_context& io, const std::string& listen, SessionSource source,
           std::function<void(const std::string&)> problem);
  // Ends what is being served. The io_context must be run until it is done with that, or not be run any more.
  ~Playback();

  std::string url(const Item& item) const;
  std::uint64_t bytes_served() const;

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace porthole::client
