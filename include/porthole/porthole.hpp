// libporthole for C++20: RAII over porthole.h, header-only. See porthole.h for threading, blocking and error rules.
//
//   porthole::Node node({.state_dir = "state", .control_url = "https://tailnet.example", .auth_key = key});
//   node.wait_running();
//   porthole::Connection c = node.dial("home:8443");
//
// Failures throw porthole::Exception, which carries the code and the sentence.
#pragma once

#include <porthole/porthole.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace porthole {

class Exception : public std::runtime_error {
 public:
  explicit Exception(const porthole_error& e) : std::runtime_error(e.message), code_(e.code) {}
  int code() const { return code_; }

 private:
  int code_;
};

namespace detail {
inline void check(int code, const porthole_error& e) {
  if (code != PORTHOLE_OK) throw Exception(e);
}
inline int to_ms(std::optional<std::chrono::milliseconds> t) { return t ? static_cast<int>(t->count()) : -1; }
inline std::string take(char* text) {
  std::string out = text ? text : "";
  porthole_free(text);
  return out;
}
}  // namespace detail

// A connected socket (stream or datagrams, as dialled); closes it when dropped.
class Connection {
 public:
  explicit Connection(int fd = -1, std::string peer = {}) : fd_(fd), peer_(std::move(peer)) {}
  Connection(Connection&& o) noexcept : fd_(std::exchange(o.fd_, -1)), peer_(std::move(o.peer_)) {}
  Connection& operator=(Connection&& o) noexcept {
    if (this != &o) {
      close();
      fd_ = std::exchange(o.fd_, -1);
      peer_ = std::move(o.peer_);
    }
    return *this;
  }
  ~Connection() { close(); }
  int fd() const { return fd_; }
  // Gives the descriptor away.
  int release() { return std::exchange(fd_, -1); }
  // "100.64.0.2:53211" for accepted connections.
  const std::string& peer() const { return peer_; }
  void close() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }

 private:
  int fd_;
  std::string peer_;
};

class Listener {
 public:
  explicit Listener(porthole_listener* l) : l_(l) {}
  Listener(Listener&& o) noexcept : l_(std::exchange(o.l_, nullptr)) {}
  Listener& operator=(Listener&& o) noexcept {
    std::swap(l_, o.l_);
    return *this;
  }
  ~Listener() { porthole_listener_close(l_); }
  // For poll(): readable while accept() answers at once.
  int fd() const { return porthole_listener_fd(l_); }
  Connection accept(std::optional<std::chrono::milliseconds> timeout = {}) {
    porthole_error e{};
    int fd = -1;
    char peer[64] = "";
    detail::check(porthole_accept(l_, detail::to_ms(timeout), &fd, peer, sizeof peer, &e), e);
    return Connection(fd, peer);
  }

 private:
  porthole_listener* l_;
};

struct Packet {
  std::string peer;  // "100.64.0.2:53211"
  std::string data;
};

// Datagrams with any peer; closes its descriptor when dropped.
class PacketSocket {
 public:
  explicit PacketSocket(int fd = -1) : fd_(fd) {}
  PacketSocket(PacketSocket&& o) noexcept : fd_(std::exchange(o.fd_, -1)) {}
  PacketSocket& operator=(PacketSocket&& o) noexcept {
    std::swap(fd_, o.fd_);
    return *this;
  }
  ~PacketSocket() {
    if (fd_ >= 0) ::close(fd_);
  }
  // For poll().
  int fd() const { return fd_; }
  // nullopt after the time-out.
  std::optional<Packet> receive(std::optional<std::chrono::milliseconds> timeout = {}) {
    porthole_error e{};
    char peer[64] = "";
    std::size_t size = 0;
    Packet out;
    out.data.resize(PORTHOLE_DATAGRAM_MAX);
    int code = porthole_receive_from(fd_, detail::to_ms(timeout), out.data.data(), out.data.size(), &size, peer, sizeof peer, &e);
    if (code == PORTHOLE_ERROR_TIMEOUT) return std::nullopt;
    detail::check(code, e);
    out.data.resize(size);
    out.peer = peer;
    return out;
  }
  // Never blocks; throws PORTHOLE_ERROR_UNAVAILABLE while the way out is full.
  void send(const std::string& peer, std::string_view data) {
    porthole_error e{};
    detail::check(porthole_send_to(fd_, peer.c_str(), data.data(), data.size(), &e), e);
  }

 private:
  int fd_;
};

struct NodeOptions {
  std::string state_dir;
  std::string control_url;
  std::string auth_key;
  std::string hostname;
  std::string ca_file;
  std::uint16_t udp_port = 0;
  bool ephemeral = false;
  bool relay_only = false;
};

struct Loopback {
  std::string address, username, password;
};

class Node {
 public:
  explicit Node(const NodeOptions& o) {
    porthole_options c;
    porthole_options_init(&c);
    auto text = [](const std::string& s) { return s.empty() ? nullptr : s.c_str(); };
    c.state_dir = text(o.state_dir);
    c.control_url = text(o.control_url);
    c.auth_key = text(o.auth_key);
    c.hostname = text(o.hostname);
    c.ca_file = text(o.ca_file);
    c.udp_port = o.udp_port;
    c.ephemeral = o.ephemeral;
    c.relay_only = o.relay_only;
    porthole_error e{};
    node_ = porthole_start(&c, &e);
    if (!node_) throw Exception(e);
  }
  Node(Node&& o) noexcept : node_(std::exchange(o.node_, nullptr)) {}
  Node& operator=(Node&& o) noexcept {
    std::swap(node_, o.node_);
    return *this;
  }
  ~Node() { porthole_close(node_); }

  void wait_running(std::optional<std::chrono::milliseconds> timeout = {}) {
    porthole_error e{};
    detail::check(porthole_wait_running(node_, detail::to_ms(timeout), &e), e);
  }
  void wait_peer(const std::string& peer, std::optional<std::chrono::milliseconds> timeout = {}) {
    porthole_error e{};
    detail::check(porthole_wait_peer(node_, peer.c_str(), detail::to_ms(timeout), &e), e);
  }
  void logout(std::optional<std::chrono::milliseconds> timeout = {}) {
    porthole_error e{};
    detail::check(porthole_logout(node_, detail::to_ms(timeout), &e), e);
  }
  // One JSON object, or nullopt after the time-out.
  std::optional<std::string> next_event(std::optional<std::chrono::milliseconds> timeout = {}) {
    porthole_error e{};
    char* json = nullptr;
    detail::check(porthole_next_event(node_, detail::to_ms(timeout), &json, &e), e);
    if (!json) return std::nullopt;
    return detail::take(json);
  }
  int event_fd() const { return porthole_event_fd(node_); }
  std::string status_json() {
    porthole_error e{};
    char* json = nullptr;
    detail::check(porthole_status_json(node_, &json, &e), e);
    return detail::take(json);
  }
  Loopback loopback(const std::string& address = {}) {
    porthole_error e{};
    porthole_proxy p{};
    detail::check(address.empty() ? porthole_loopback(node_, &p, &e) : porthole_loopback_on(node_, address.c_str(), &p, &e), e);
    return {p.address, p.username, p.password};
  }
  Connection dial(const std::string& address, std::optional<std::chrono::milliseconds> timeout = {}) {
    porthole_error e{};
    int fd = -1;
    detail::check(porthole_dial(node_, "tcp", address.c_str(), detail::to_ms(timeout), &fd, &e), e);
    return Connection(fd, address);
  }
  // One send is one datagram.
  Connection dial_udp(const std::string& address, std::optional<std::chrono::milliseconds> timeout = {}) {
    porthole_error e{};
    int fd = -1;
    detail::check(porthole_dial(node_, "udp", address.c_str(), detail::to_ms(timeout), &fd, &e), e);
    return Connection(fd, address);
  }
  // For event loops: poll the result's fd(), then end_dial() it.
  Connection begin_dial(const std::string& address, std::optional<std::chrono::milliseconds> timeout = {}, const std::string& network = "tcp") {
    porthole_error e{};
    int fd = -1;
    detail::check(porthole_dial_begin(node_, network.c_str(), address.c_str(), detail::to_ms(timeout), &fd, &e), e);
    return Connection(fd, address);
  }
  static Connection end_dial(Connection dialling) {
    porthole_error e{};
    int fd = -1;
    detail::check(porthole_dial_end(dialling.fd(), &fd, &e), e);
    return Connection(fd, dialling.peer());
  }
  PacketSocket listen_packet(std::uint16_t port) {
    porthole_error e{};
    int fd = -1;
    detail::check(porthole_listen_packet(node_, port, &fd, &e), e);
    return PacketSocket(fd);
  }
  Listener listen(std::uint16_t port) {
    porthole_error e{};
    porthole_listener* l = porthole_listen(node_, port, &e);
    if (!l) throw Exception(e);
    return Listener(l);
  }
  void expose(std::uint16_t port, const std::string& local_address, int max_connections = 0) {
    porthole_error e{};
    detail::check(porthole_expose(node_, port, local_address.c_str(), max_connections, &e), e);
  }
  std::string exposed_peer(std::uint16_t local_port) {
    porthole_error e{};
    char* json = nullptr;
    detail::check(porthole_exposed_peer(node_, local_port, &json, &e), e);
    return detail::take(json);
  }
  void expose_udp(std::uint16_t port, const std::string& local_address, int max_sources = 0) {
    porthole_error e{};
    detail::check(porthole_expose_udp(node_, port, local_address.c_str(), max_sources, &e), e);
  }
  std::string exposed_udp_peer(std::uint16_t local_port) {
    porthole_error e{};
    char* json = nullptr;
    detail::check(porthole_exposed_udp_peer(node_, local_port, &json, &e), e);
    return detail::take(json);
  }
  std::string ping(const std::string& peer, std::chrono::milliseconds timeout) {
    porthole_error e{};
    char* json = nullptr;
    detail::check(porthole_ping(node_, peer.c_str(), detail::to_ms(timeout), &json, &e), e);
    return detail::take(json);
  }
  std::string netcheck(std::chrono::milliseconds timeout) {
    porthole_error e{};
    char* json = nullptr;
    detail::check(porthole_netcheck(node_, detail::to_ms(timeout), &json, &e), e);
    return detail::take(json);
  }
  void set_log_fd(int fd) {
    porthole_error e{};
    detail::check(porthole_set_log_fd(node_, fd, &e), e);
  }
  porthole_node* handle() const { return node_; }

 private:
  porthole_node* node_ = nullptr;
};

}  // namespace porthole
