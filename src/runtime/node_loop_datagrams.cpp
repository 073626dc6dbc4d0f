// The app's UDP: dialling, listening, exposing local services.
#include "runtime/datagrams.h"
#include "runtime/node_loop.h"

namespace porthole::runtime {

Result<UniqueFd> NodeRuntime::Loop::join_app(SocketId socket, std::optional<Endpoint> remote) {
  auto pair = datagram_pair();
  if (!pair) {
    engine_->stack().udp_close(socket);
    return pair.error();
  }
  datagram_users_[socket] = std::make_shared<AppDatagrams>(loop_, engine_->stack(), socket, std::move(pair->first), remote,
                                                           MutBytes(scratch_.get(), kScratchBytes), clock_.now,
                                                           datagram_counters_, [this, socket] {
                                                             auto user = datagram_users_.extract(socket);
                                                             defer_delete(std::move(user.mapped()));
                                                           });
  return std::move(pair->second);
}

void NodeRuntime::Loop::dial_udp(const DialTarget& target, Duration timeout, std::shared_ptr<Pending<UniqueFd>> p) {
  when_running(timeout, [this, target, p](Status running) {
    if (!running) return p->set(running.error());
    auto address = device_address(target);
    if (!address) return p->set(address.error());
    auto socket = engine_->stack().udp_bind(std::nullopt, 0);
    if (!socket) return p->set(socket.error());
    p->set(join_app(*socket, Endpoint{*address, target.port}));
  });
}

Result<UniqueFd> NodeRuntime::Loop::listen_packet(std::uint16_t port) {
  auto socket = engine_->stack().udp_bind(std::nullopt, port);
  if (!socket) return socket.error();
  return join_app(*socket, std::nullopt);
}

Status NodeRuntime::Loop::expose_udp(std::uint16_t port, const std::string& local_address, int max_sources) {
  auto local = Endpoint::parse(local_address);
  if (!local || !local->is_valid())
    return Error{ErrorCode::kInvalid, "'" + local_address + "' is not an ADDRESS:PORT of this host"};
  if (port == 0 || max_sources < 0) return Error{ErrorCode::kInvalid, "the exposed port must be 1 to 65535"};
  auto socket = engine_->stack().udp_bind(std::nullopt, port);
  if (!socket) return socket.error();
  auto forwarder = std::make_shared<UdpForwarder>(loop_, engine_->stack(), *socket, *local,
                                                  max_sources == 0 ? kUdpSourcesDefault : max_sources,
                                                  MutBytes(scratch_.get(), kScratchBytes), clock_.now, datagram_counters_);
  forwarders_.push_back(forwarder);
  datagram_users_[*socket] = std::move(forwarder);
  return {};
}

Result<std::string> NodeRuntime::Loop::exposed_udp_peer(std::uint16_t local_port) {
  for (const auto& f : forwarders_)
    if (auto source = f->source_of(local_port)) return peer_json(*source);
  return Error{ErrorCode::kNotFound, "no tailnet datagrams come from local port " + std::to_string(local_port)};
}

Instant NodeRuntime::Loop::next_datagram_timeout() const {
  Instant t = Instant::max();
  for (const auto& [id, user] : datagram_users_) t = std::min(t, user->next_timeout());
  return t;
}

void NodeRuntime::Loop::expire_datagrams() {
  std::vector<std::shared_ptr<UdpUser>> due;
  for (const auto& [id, user] : datagram_users_)
    if (user->next_timeout() <= clock_.now) due.push_back(user);
  for (auto& user : due) user->handle_timeout();
}

}  // namespace porthole::runtime
