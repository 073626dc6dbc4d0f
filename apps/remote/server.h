// The service's event loop: listener (plain or TLS), HTTP/1.1 front, control sessions, relay, STUN.
//
// One thread, one io_context. All protocol decisions are the machines'; here bytes are moved, timers armed, and what
// belongs to one address or one connection is bounded.
#pragma once

#include <boost/asio.hpp>
#include <boost/asio/ssl.hpp>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>

#include "coordinator/coordinator.h"
#include "relay/relay_server.h"
#include "relay/stun_server.h"
#include "remote/clock.h"
#include "remote/enrolment_api.h"

namespace porthole::remote {

struct ServerOptions {
  Endpoint listen;                      // port 0: any
  std::optional<std::uint16_t> stun_port = 3478;  // 0: any; absent: no STUN
  boost::asio::ssl::context* tls = nullptr;  // null: plain HTTP
};

// What is served besides the enrolment API where this service coordinates itself. All must outlive the server.
struct Coordination {
  coordinator::Coordinator& coordinator;
  coordinator::Directory& directory;
  const crypto::NodePrivate& relay_key;
};

// Where requests to the enrolment API go. The request's texts are good during the call only; `done` is called once, at once
// or later, on the server's thread.
using ApiDoor = std::function<void(const ApiRequest& request, std::function<void(ApiAnswer)> done)>;

class Connection;

class Server final : private relay::Admission {
 public:
  // Binds the sockets; CommandError when a port is in use or an address is not this machine's.
  Server(boost::asio::io_context& io, ServerOptions options);
  ~Server();

  Endpoint listen_endpoint() const { return listen_; }
  // 0: no STUN.
  std::uint16_t stun_port() const { return stun_port_; }

  // Begins to serve. Without coordination: the enrolment API and nothing else.
  void start(std::optional<Coordination> coordination, ApiDoor api);
  // Stops accepting and closes what is open; `done` runs within kStopGrace or so.
  void stop(std::function<void()> done);
  // To be called after every call into coordinator or directory: moves output, handles events, arms the timer.
  void settle();

 private:
  friend class Connection;

  bool admit(const NodePublic& key, const Endpoint& source) override;

  void accept();
  void receive_stun(boost::asio::ip::udp::socket& socket);
  void sweep();
  void arm();

  boost::asio::io_context& io_;
  ServerOptions options_;
  Endpoint listen_;
  std::uint16_t stun_port_ = 0;
  boost::asio::ip::tcp::acceptor acceptor_;
  std::vector<boost::asio::ip::udp::socket> stun_sockets_;
  boost::asio::steady_timer timer_;
  boost::asio::steady_timer sweep_timer_;
  boost::asio::steady_timer accept_timer_;
  Instant armed_ = Instant::max();
  bool settling_ = false;
  bool settle_again_ = false;
  bool stopping_ = false;

  coordinator::Coordinator* coordinator_ = nullptr;
  coordinator::Directory* directory_ = nullptr;
  ApiDoor api_;
  SystemRng rng_;
  std::unique_ptr<relay::RelayServer> relay_;
  relay::StunServer stun_;
  ByteVector read_buffer_;  // for the connections that wait without one

  std::unordered_map<Connection*, std::shared_ptr<Connection>> connections_;
  std::map<IpAddress, std::size_t> per_address_;
  std::unordered_map<coordinator::SessionId, Connection*> by_session_;
  std::unordered_map<relay::ConnId, Connection*> by_relay_;
};

}  // namespace porthole::remote
