#include "remote/server.h"

#include <netinet/in.h>
#include <sys/socket.h>

#include "remote/connection.h"
#include "remote/limits.h"
#include "support/support.h"

namespace porthole::remote {

namespace asio = boost::asio;
using boost::system::error_code;
using asio::ip::tcp;
using asio::ip::udp;

namespace {

asio::ip::address to_asio(const IpAddress& address) {
  if (address.is_v4()) return asio::ip::address_v4(address.v4_value());
  asio::ip::address_v6::bytes_type bytes;
  auto raw = address.mapped();
  std::copy(raw.begin(), raw.end(), bytes.begin());
  return asio::ip::address_v6(bytes);
}

IpAddress from_asio(const asio::ip::address& address) {
  if (address.is_v4()) return IpAddress::v4(address.to_v4().to_uint());
  auto bytes = address.to_v6().to_bytes();
  return IpAddress::v6_bytes(bytes.data());
}

std::string reason(const error_code& e, std::string_view option) {
  if (e == asio::error::address_in_use) return "the port is in use; stop the other program or choose another " + std::string(option);
  if (e == asio::error::access_denied) return "not permitted; ports below 1024 need a privilege (CAP_NET_BIND_SERVICE)";
  return e.message();
}

udp::socket bind_stun(asio::io_context& io, const IpAddress& address, std::uint16_t port, error_code& e) {
  udp::socket socket(io);
  udp::endpoint at(to_asio(address), port);
  socket.open(at.protocol(), e);
  if (e) return socket;
  int on = 1;
  if (address.is_v6()) {
    error_code ignored;
    socket.set_option(asio::ip::v6_only(true), ignored);
    ::setsockopt(socket.native_handle(), IPPROTO_IPV6, IPV6_RECVPKTINFO, &on, sizeof on);
  } else {
    ::setsockopt(socket.native_handle(), IPPROTO_IP, IP_PKTINFO, &on, sizeof on);
  }
  socket.bind(at, e);
  error_code ignored;
  socket.non_blocking(true, ignored);
  return socket;
}

std::optional<Endpoint> from_sockaddr(const sockaddr_storage& from) {
  if (from.ss_family == AF_INET) {
    const auto& a = reinterpret_cast<const sockaddr_in&>(from);
    return Endpoint{IpAddress::v4(ntohl(a.sin_addr.s_addr)), ntohs(a.sin_port)};
  }
  if (from.ss_family == AF_INET6) {
    const auto& a = reinterpret_cast<const sockaddr_in6&>(from);
    return Endpoint{IpAddress::v6_bytes(a.sin6_addr.s6_addr), ntohs(a.sin6_port)};
  }
  return std::nullopt;
}

}  // namespace

Server::Server(asio::io_context& io, ServerOptions options)
    : io_(io), options_(options), acceptor_(io), timer_(io), sweep_timer_(io), accept_timer_(io), read_buffer_(4 * kReadSize) {
  tcp::endpoint at(to_asio(options_.listen.address), options_.listen.port);
  error_code e;
  acceptor_.open(at.protocol(), e);
  if (!e) acceptor_.set_option(tcp::acceptor::reuse_address(true), e);
  if (!e && options_.listen.address.is_v6()) acceptor_.set_option(asio::ip::v6_only(false), e);
  if (!e) acceptor_.bind(at, e);
  if (!e) acceptor_.listen(asio::socket_base::max_listen_connections, e);
  if (e) throw app::CommandError("cannot listen on " + options_.listen.to_string() + ": " + reason(e, "--listen"));
  listen_ = {options_.listen.address, acceptor_.local_endpoint().port()};

  if (!options_.stun_port) return;
  std::uint16_t wanted = *options_.stun_port;
  // STUN answers on the listener's address; on both families when that is "everything".
  bool everything = options_.listen.address.is_unspecified();
  IpAddress first = everything ? IpAddress::v4(0) : options_.listen.address;
  constexpr int kTries = 16;  // an ephemeral port that is free for IPv4 may be taken for IPv6
  for (int i = 0; i < kTries; ++i) {
    stun_sockets_.clear();
    e.clear();
    auto socket = bind_stun(io_, first, wanted, e);
    if (e)
      throw app::CommandError("cannot answer STUN on UDP port " + std::to_string(wanted) + ": " +
                              reason(e, "--stun-port"));
    stun_port_ = socket.local_endpoint().port();
    stun_sockets_.push_back(std::move(socket));
    if (!everything) return;
    static constexpr std::uint8_t kAny[16] = {};
    auto second = bind_stun(io_, IpAddress::v6_bytes(kAny), stun_port_, e);
    if (!e) stun_sockets_.push_back(std::move(second));
    if (e != asio::error::address_in_use) return;  // a machine without IPv6 answers on IPv4 alone
    if (wanted != 0) break;
  }
  throw app::CommandError("cannot answer STUN on UDP port " + std::to_string(stun_port_) + " (IPv6): " +
                          reason(e, "--stun-port"));
}

Server::~Server() = default;

void Server::start(std::optional<Coordination> coordination, ApiDoor api) {
  api_ = std::move(api);
  if (coordination) {
    coordinator_ = &coordination->coordinator;
    directory_ = &coordination->directory;
    relay_ = std::make_unique<relay::RelayServer>(coordination->relay_key, static_cast<relay::Admission&>(*this), rng_, Log::none());
  }
  accept();
  for (auto& socket : stun_sockets_) receive_stun(socket);
  sweep();
  settle();
}

void Server::stop(std::function<void()> done) {
  stopping_ = true;
  error_code ignored;
  acceptor_.close(ignored);
  for (auto& socket : stun_sockets_) socket.close(ignored);
  sweep_timer_.cancel();
  accept_timer_.cancel();
  if (relay_) relay_->announce_restart(read_clock().now, 1s, 30s);
  settle();
  timer_.cancel();
  timer_.expires_after(kStopGrace);
  timer_.async_wait([this, done = std::move(done)](error_code) {
    auto open = connections_;
    for (auto& [raw, connection] : open) connection->close();
    done();
  });
}

bool Server::admit(const NodePublic& key, const Endpoint&) { return coordinator_->admits(read_clock().wall, key); }

void Server::accept() {
  acceptor_.async_accept([this](error_code e, tcp::socket socket) {
    if (stopping_) return;
    if (e) {
      // Out of descriptors, most likely: the sweep or a leaving client frees some.
      accept_timer_.expires_after(100ms);
      accept_timer_.async_wait([this](error_code cancelled) {
        if (!cancelled) accept();
      });
      return;
    }
    error_code gone;
    tcp::endpoint from = socket.remote_endpoint(gone);
    Endpoint remote{from_asio(from.address()), from.port()};
    std::size_t& same = per_address_[remote.address];
    bool full = connections_.size() >= kConnectionsMax || (!remote.address.is_loopback() && same >= kConnectionsPerAddressMax);
    if (gone || full) {
      if (same == 0) per_address_.erase(remote.address);
    } else {
      ++same;
      auto connection = std::make_shared<Connection>(*this, std::move(socket), remote);
      connections_[connection.get()] = connection;
      connection->start();
    }
    accept();
  });
}

void Server::receive_stun(udp::socket& socket) {
  socket.async_wait(udp::socket::wait_read, [this, &socket](error_code e) {
    if (e || stopping_) return;
    for (int i = 0; i < kStunBatch; ++i) {
      std::uint8_t data[1500];
      alignas(cmsghdr) char control[128];
      sockaddr_storage from{};
      iovec part{data, sizeof data};
      msghdr message{};
      message.msg_name = &from;
      message.msg_namelen = sizeof from;
      message.msg_iov = &part;
      message.msg_iovlen = 1;
      message.msg_control = control;
      message.msg_controllen = sizeof control;
      ssize_t n = ::recvmsg(socket.native_handle(), &message, MSG_DONTWAIT);
      if (n < 0) break;
      auto source = from_sockaddr(from);
      if (!source) continue;
      Bytes answer = stun_.answer(*source, Bytes(data, static_cast<std::size_t>(n)));
      if (answer.empty()) continue;
      // The answer leaves from the address that was asked: the received pktinfo, with the interface left to routing.
      for (cmsghdr* c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
        if (c->cmsg_level != IPPROTO_IP || c->cmsg_type != IP_PKTINFO) continue;
        auto* info = reinterpret_cast<in_pktinfo*>(CMSG_DATA(c));
        info->ipi_spec_dst = info->ipi_addr;
        info->ipi_ifindex = 0;
      }
      part = {const_cast<std::uint8_t*>(answer.data()), answer.size()};
      (void)::sendmsg(socket.native_handle(), &message, MSG_DONTWAIT);
    }
    receive_stun(socket);
  });
}

void Server::sweep() {
  Instant now = read_clock().now;
  std::vector<std::shared_ptr<Connection>> late;
  for (auto& [raw, connection] : connections_)
    if (connection->timed_out(now)) late.push_back(connection);
  for (auto& connection : late) connection->close();
  sweep_timer_.expires_after(kSweepPeriod);
  sweep_timer_.async_wait([this](error_code e) {
    if (!e && !stopping_) sweep();
  });
}

void Server::settle() {
  if (!coordinator_) return;
  settle_again_ = true;
  if (settling_) return;
  settling_ = true;
  while (settle_again_) {
    settle_again_ = false;
    Clock clock = read_clock();
    // A change goes out in the turn that made it.
    if (coordinator_->next_timeout().earliest <= clock.now) coordinator_->handle_timeout(clock);
    if (relay_->next_timeout().earliest <= clock.now) relay_->handle_timeout(clock.now);
    bool retired = false;
    while (coordinator_->poll_event()) retired = true;
    if (retired) relay_->recheck(clock.now);
    while (auto id = coordinator_->next_ready())
      if (auto it = by_session_.find(*id); it != by_session_.end()) it->second->pump();
    while (auto id = relay_->poll_ready())
      if (auto it = by_relay_.find(*id); it != by_relay_.end()) it->second->pump();
    while (auto closed = relay_->poll_close())
      if (auto it = by_relay_.find(closed->id); it != by_relay_.end()) it->second->close();
  }
  settling_ = false;
  if (!stopping_) arm();
}

void Server::arm() {
  Instant at = sooner(coordinator_->next_timeout(), relay_->next_timeout()).latest;
  if (at == armed_) return;
  armed_ = at;
  if (at == Instant::max()) {
    timer_.cancel();
    return;
  }
  timer_.expires_after(std::max<Duration>(at - read_clock().now, 0ns));
  timer_.async_wait([this](error_code e) {
    if (e || stopping_) return;
    armed_ = Instant::max();
    settle();
  });
}

}  // namespace porthole::remote
