// The service's local control socket: one JSON object per line in, one out (service_json.h). Only the owner of the
// state directory may connect (0600).
#pragma once

#include <boost/asio.hpp>
#include <boost/json.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>

namespace porthole::remote {

class ControlSocket {
 public:
  // `done` is called once, at once or later, on the thread of the io_context.
  using Handler = std::function<void(const boost::json::object& command, std::function<void(boost::json::object)> done)>;
  // Replaces a socket file that a crash left behind. CommandError when it cannot be made.
  ControlSocket(boost::asio::io_context& io, const std::string& path, Handler handler);
  ~ControlSocket();
  void close();

 private:
  class Client;
  void accept();

  std::string path_;
  Handler handler_;
  boost::asio::local::stream_protocol::acceptor acceptor_;
  std::set<std::shared_ptr<Client>> clients_;
};

// The other end: sends one command and waits for its answer, at most 30 s. nullopt: nobody listens. CommandError when an
// answer that was begun breaks off.
std::optional<boost::json::object> ask_control_socket(const std::string& path, const boost::json::object& command);

}  // namespace porthole::remote
