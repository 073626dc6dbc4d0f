// How one `porthole serve` process is asked by another command of the same user: a Unix socket (0600) in the state
// directory, one JSON object there, one back. It also keeps two servers off one state directory.
#pragma once

#include <boost/json/object.hpp>
#include <functional>
#include <memory>
#include <string>

namespace porthole::serve {

class ControlSocket {
 public:
  using Handler = std::function<boost::json::object(const boost::json::object&)>;

  // CommandError when another process serves this state directory. `handler` runs on a thread of the socket's own.
  ControlSocket(const std::string& state_dir, Handler handler);
  ~ControlSocket();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// Asks the server of this state directory; CommandError when none is running or it answers with an error.
boost::json::object ask_server(const std::string& state_dir, const boost::json::object& request);

}  // namespace porthole::serve
