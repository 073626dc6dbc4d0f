#include "node/engine.h"

#include <algorithm>
#include <utility>

#include "node/limits.h"
#include "wire/tsmp.h"

namespace porthole::node {
std::string first_label(std::string_view fqdn) { return std::string(fqdn.substr(0, fqdn.find('.'))); }

std::string_view to_string(NodeState state) {
  switch (state) {
    case NodeState::kStopped: return "stopped";
    case NodeState::kStarting: return "starting";
    case NodeState::kNeedsLogin: return "needs-login";
    case NodeState::kNeedsApproval: return "needs-approval";
    case NodeState::kRunning: return "running";
    case NodeState::kExpired: return "expired";
    case NodeState::kLoggedOut: return "logged-out";
    case NodeState::kFailed: return "failed";
  }
  return "unknown";
}

// The netstack's way into the tunnel. Remembers outbound UDP flows for the filter and stops when a relay cannot take more.
class Engine::TunnelSink final : public PacketSink {
 public:
  TunnelSink(Engine& engine) : engine_(engine) {}
  MutBytes begin(std::size_t size_max) override {
    if (engine_.relay_full()) return {};
    slot_ = engine_.tunnel_->begin(size_max);
    return slot_;
  }
  void commit(std::size_t size) override {
    engine_.filter_.note_outbound(slot_.first(size));
    engine_.tunnel_->commit(engine_.clock_, size);
  }

 private:
  Engine& engine_;
  MutBytes slot_;
};

// Where the path layer sends its own messages.
class Engine::PathsSink final : public DatagramSink {
 public:
  explicit PathsSink(Engine& engine) : engine_(engine) {}
  void send_udp(const Endpoint& destination, Bytes data, std::size_t segment_size) override {
    engine_.out_.send_udp(destination, data, segment_size);
  }
  void send_relay(int region, const NodePublic& destination, Bytes data) override {
    engine_.derp_->send(engine_.clock_.now, region, destination, data);
  }

 private:
  Engine& engine_;
};

Engine::Engine(EngineConfig config, crypto::MachinePrivate machine_key, crypto::NodePrivate node_key,
               const wg::StampLease& stamps, DatagramSink& out, Rng& rng, Log& log, Clock clock)
    : config_(std::move(config)), stamps_(stamps), out_(out), rng_(rng), clock_(clock) {
  config_.control.first_stream_id = 1;
  plain_control_ = config_.control.url.starts_with("http://");
  registered_ = config_.control.expect_registered;
  control_key_ = config_.control.cached_control_key;
  paths_sink_ = std::make_unique<PathsSink>(*this);
  control_ = std::make_unique<control::ControlClient>(std::move(config_.control), std::move(machine_key), std::move(node_key),
                                                      rng, log);
  tunnel_ = std::make_unique<wg::Tunnel>(static_cast<wg::Host&>(*this), rng);
  tunnel_->set_stamps(stamps_);
  paths_ = std::make_unique<paths::Paths>(*paths_sink_, rng, log);
  derp_ = std::make_unique<derp::DerpClient>(derp::DerpClientConfig{kRelayStreamFirst, config_.plain_relays}, static_cast<derp::DerpHost&>(*this), rng, log);
  latencies_ = std::make_unique<derp::LatencyProbe>(kLatencyStreamFirst, config_.plain_relays);
  stack_ = std::make_unique<netstack::Stack>(config_.stack, rng);
  paths_->set_mode(clock.now, {config_.relay_only, config_.udp_enabled, config_.fixed_port});
}

Engine::~Engine() = default;

// ---- commands ----

void Engine::start(Clock clock) {
  clock_ = clock;
  // With the same key on the same port peers go on as if nothing had happened. On another port it would hold them to the
  // old one for as long as they trust it.
  if (config_.last_disco_key.is_zero() || config_.last_udp_port != udp_port_) {
    disco_ = crypto::DiscoPrivate::generate(rng_);
    emit(PersistEvent{});
  } else {
    disco_ = std::move(config_.last_disco_key);
  }
  paths_->set_keys(clock.now, disco_, control_->node_key().public_key());
  control_->set_disco_key(clock, disco_.public_key());
  set_state(NodeState::kStarting);
  restored_ = control_->restore_map(clock, as_bytes(config_.saved_map));
  std::string().swap(config_.saved_map);  // assigning nothing would keep its memory
  if (restored_) {
    drain_control();
    paths_->restore_home(control_->netmap().self()->home_region());
  }
  control_->start(clock);
}

void Engine::login(Clock clock, crypto::SecretText auth_key) {
  clock_ = clock;
  control_->login(clock, std::move(auth_key));
}

void Engine::logout(Clock clock) {
  clock_ = clock;
  control_->logout(clock);
}

void Engine::set_local_addresses(Clock clock, std::span<const paths::InterfaceAddress> addresses, std::uint16_t port_v4,
                                 std::uint16_t port_v6) {
  clock_ = clock;
  local_addresses_.clear();
  for (const paths::InterfaceAddress& a : addresses)
    if (a.up) local_addresses_.push_back(a.address);
  udp_port_ = port_v4;
  paths_->set_local_addresses(clock.now, addresses, port_v4, port_v6);
}

void Engine::handle_rebind(Clock clock) {
  clock_ = clock;
  paths_->handle_rebind(clock.now);
}

void Engine::network_changed(Clock clock) {
  clock_ = clock;
  paths_->handle_rebind(clock.now);
  derp_->network_changed(clock.now, local_addresses_);
  control_->network_changed(clock);
}

bool Engine::probe_peer(Clock clock, const NodePublic& key) {
  clock_ = clock;
  const Peer* peer = by_key(key);
  if (!peer || peer->tunnel == wg::kNoPeer) return false;
  if (tunnel_->state(peer->tunnel) == wg::SessionState::kEstablished) {
    emit(PeerReadyEvent{key});
    return true;
  }
  probes_.insert(key);
  tunnel_->start_handshake(clock, peer->tunnel);
  return true;
}

bool Engine::peer_ready(const NodePublic& key) const {
  const Peer* peer = by_key(key);
  return peer && peer->tunnel != wg::kNoPeer && tunnel_->state(peer->tunnel) == wg::SessionState::kEstablished;
}

void Engine::ping(Clock clock, std::uint64_t token, const NodePublic& key) {
  clock_ = clock;
  paths_->ping(clock.now, token, key);
}

void Engine::tsmp_ping(Clock clock, std::uint64_t token, const NodePublic& key, const IpAddress& address) {
  clock_ = clock;
  const Peer* peer = by_key(key);
  std::optional<IpAddress> source;
  for (const IpAddress& own : own_addresses())
    if (own.is_v4() == address.is_v4()) source = own;
  if (!peer || !source || tsmp_pings_.size() >= kTsmpPingsMax) return emit(PingEvent{{token, key, false, false, {}, {}, {}}});
  TsmpPing ping{token, key, {}, clock.now};
  rng_.fill(ping.data);
  tsmp_pings_.push_back(ping);
  // Without a session it waits in the tunnel and starts the handshake.
  tunnel_->send(clock, peer->tunnel, wire::tsmp::encode({*source, address, 0, wire::tsmp::Ping{ping.data}}));
}

void Engine::expire_tsmp_pings() {
  while (!tsmp_pings_.empty() && tsmp_pings_.front().sent + kTsmpPingTimeout <= clock_.now) {
    emit(PingEvent{{tsmp_pings_.front().token, tsmp_pings_.front().key, false, true, {}, {}, {}}});
    tsmp_pings_.erase(tsmp_pings_.begin());
  }
}

void Engine::netcheck(Clock clock) {
  clock_ = clock;
  paths_->start_netcheck(clock.now, true);
}

void Engine::resolved(Clock clock, const std::string& host, std::span<const IpAddress> addresses) {
  clock_ = clock;
  paths_->resolved(clock.now, host, addresses);
}

// ---- network ----

void Engine::handle_datagrams(Clock clock, std::span<const RecvDatagram> batch) {
  clock_ = clock;
  // Runs of WireGuard datagrams go to the tunnel together; STUN and disco are rare and split them.
  std::size_t start = 0;
  for (std::size_t i = 0; i < batch.size(); ++i) {
    if (!paths_->handle_udp(clock.now, batch[i])) continue;
    if (i > start) tunnel_->handle_datagrams(clock, batch.subspan(start, i - start));
    start = i + 1;
  }
  if (start < batch.size()) tunnel_->handle_datagrams(clock, batch.subspan(start));
}

void Engine::relay_packet(Instant, int region, const NodePublic& source, MutBytes data) {
  if (paths_->handle_relayed(clock_.now, region, source, data)) return;
  tunnel_->handle_relayed(clock_, region, source, data);
}

void Engine::relay_heard(Instant, int region) { paths_->note_relay_heard(clock_.now, region); }

void Engine::handle_send_error(Clock clock, const Endpoint& destination, paths::SendErrorKind kind) {
  clock_ = clock;
  paths_->handle_send_error(clock.now, destination, kind);
}

std::optional<StreamAction> Engine::poll_action() {
  if (auto a = control_->poll_action()) return a;
  if (auto a = derp_->poll_action()) return a;
  return latencies_->poll_action();
}

void Engine::stream_opened(Clock clock, StreamId id, const StreamInfo& info) {
  clock_ = clock;
  if (id < kRelayStreamFirst)
    control_->stream_opened(clock, id, info);
  else if (id < kLatencyStreamFirst)
    derp_->stream_opened(clock.now, id, info);
  else
    latencies_->stream_opened(clock.now, id, info);
}
void Engine::stream_failed(Clock clock, StreamId id, const Error& error) {
  clock_ = clock;
  if (id < kRelayStreamFirst)
    control_->stream_failed(clock, id, error);
  else if (id < kLatencyStreamFirst)
    derp_->stream_failed(clock.now, id, error);
  else
    latencies_->stream_failed(clock.now, id);
}
void Engine::stream_closed(Clock clock, StreamId id, const std::optional<Error>& error) {
  clock_ = clock;
  if (id < kRelayStreamFirst)
    control_->stream_closed(clock, id, error);
  else if (id < kLatencyStreamFirst)
    derp_->stream_closed(clock.now, id, error ? &*error : nullptr);
  else
    latencies_->stream_closed(clock.now, id);
}
Result<std::size_t> Engine::consume(Clock clock, StreamId id, MutBytes bytes) {
  clock_ = clock;
  if (id < kRelayStreamFirst) return control_->consume(clock, id, bytes);
  if (id < kLatencyStreamFirst) return derp_->consume(clock.now, id, bytes);
  return latencies_->consume(clock.now, id, bytes);
}
std::size_t Engine::produce(Clock clock, StreamId id, MutBytes out) {
  clock_ = clock;
  if (id < kRelayStreamFirst) return control_->produce(clock, id, out);
  if (id < kLatencyStreamFirst) return derp_->produce(clock.now, id, out);
  return latencies_->produce(clock.now, id, out);
}
bool Engine::has_output(StreamId id) const {
  if (id < kRelayStreamFirst) return control_->has_output(id);
  return id < kLatencyStreamFirst ? derp_->has_output(id) : latencies_->has_output(id);
}

// ---- time and output ----

void Engine::handle_timeout(Clock clock) {
  // Nobody ran this node when its time had come: the machine slept, and the world may have forgotten our connections.
  Deadline due = next_timeout();
  const bool slept = !due.is_never() && clock.now - due.latest > kSlept;
  clock_ = clock;
  control_->handle_timeout(clock);
  tunnel_->handle_timeout(clock);
  paths_->handle_timeout(clock.now);
  derp_->handle_timeout(clock.now);
  latencies_->handle_timeout(clock.now);
  stack_->handle_timeout(clock.now);
  expire_tsmp_pings();
  if (rules_due_ && clock.now >= *rules_due_) {
    rules_due_.reset();
    for (auto& [id, peer] : peers_) peer.joined.reset();   // once: what the answer does not allow is not allowed
    control_->refresh_map(clock);
  }
  if (slept) network_changed(clock);
  for (auto it = hurry_.begin(); it != hurry_.end();) {
    auto [id, hurry] = *it;
    if (clock.now >= hurry.until) {
      it = hurry_.erase(it);
      continue;
    }
    ++it;
    if (clock.now < hurry.next) continue;
    // May end in session(), which changes the map; `it` stays valid because only this entry can go.
    if (auto now_at = hurry_.find(id); now_at != hurry_.end()) {
      now_at->second.interval = std::min(2 * now_at->second.interval, kHurryIntervalMax);
      now_at->second.next = clock.now + now_at->second.interval;
    }
    tunnel_->retry_handshake(clock, id);
  }
  check_running();
}

Deadline Engine::next_timeout() const {
  Deadline d = sooner(sooner(control_->next_timeout(), tunnel_->next_timeout()),
                      sooner(sooner(paths_->next_timeout(), derp_->next_timeout()), stack_->next_timeout()));
  d = sooner(d, latencies_->next_timeout());
  for (const auto& [id, hurry] : hurry_) d = sooner(d, Deadline::at(std::min(hurry.next, hurry.until)));
  if (!tsmp_pings_.empty()) d = sooner(d, Deadline::at(tsmp_pings_.front().sent + kTsmpPingTimeout));
  if (rules_due_) d = sooner(d, Deadline::at(*rules_due_));
  // Past it only an event of the control client or the relay can let this node run.
  if (map_at_ && !running_told_ && clock_.now < *map_at_ + kRelayPatience) d = sooner(d, Deadline::at(*map_at_ + kRelayPatience));
  return d;
}

void Engine::settle(Clock clock) {
  clock_ = clock;
  answer_stray();
  drain_control();
  drain_derp();
  drain_latencies();
  drain_paths();
  for (wg::PeerId id : std::exchange(gone_silent_, {}))
    if (Peer* peer = by_tunnel(id); peer && peer->silent) {
      path_changed(*peer, netstack::PathChange::kUnreachable);
      control_->check_membership(clock);
    }
  TunnelSink sink(*this);
  output_waits_ = stack_->produce(clock.now, sink);
  tunnel_->flush(clock);
  for (const IpAddress& a : stack_->take_unanswered()) unanswered(a);
  // Sending may have started discovery or changed sessions.
  drain_paths();
  drain_derp();
  renew_stamps();
}

wg::StampLease lease_stamps(const wg::Tai64n& used, WallTime now) {
  return {used, std::max(used, wg::Tai64n::from_wall(now)).plus_seconds(kStampLeaseSeconds)};
}

// A node that makes no handshakes writes nothing.
void Engine::renew_stamps() {
  if (tunnel_->last_stamp() == stamps_.used) return;
  stamps_.used = tunnel_->last_stamp();
  const wg::StampLease next = lease_stamps(stamps_.used, clock_.wall);
  if (next.until < stamps_.until.plus_seconds(kStampLeaseSeconds / 2)) return;
  stamps_ = next;
  tunnel_->set_stamps(stamps_);
  emit(PersistEvent{});
}

bool Engine::relay_full() const { return derp_->congested(clock_.now); }

std::optional<Event> Engine::poll_event() {
  if (events_at_ == events_.size()) {
    events_.clear();
    events_at_ = 0;
    return std::nullopt;
  }
  return std::move(events_[events_at_++]);
}

void Engine::emit(Event event) {
  if (events_.size() + 1 < kEventsMax) events_.push_back(std::move(event));
  else if (events_.size() < kEventsMax)
    events_.push_back(NoticeEvent{{ErrorCode::kLimit, "too much happened to this node at once; some of it was not told"}});
}

// ---- state ----

void Engine::set_state(NodeState state, std::optional<Error> error) {
  bool same = state_ == state && !error;
  state_ = state;
  state_error_ = error;
  if (!same) emit(StateEvent{state, std::move(error)});
}

void Engine::check_running() {
  if (running_told_ || !map_at_ || !control_->netmap().self()) return;
  using S = control::ControlState;
  const S state = control_->state();
  if (state != S::kRunning && !(restored_ && (state == S::kConnecting || state == S::kReconnecting))) return;
  bool relays = !control_->netmap().relay_map().regions.empty();
  if (relays && !relay_connected_ && clock_.now < *map_at_ + kRelayPatience) return;
  running_told_ = true;
  set_state(NodeState::kRunning);
  emit(RunningEvent{own_addresses()});
}

Persistent Engine::persistent() const {
  Persistent p;
  p.node_key = control_->node_key().public_key();
  p.control_key = control_key_;
  p.registered = registered_;
  p.login_name = login_name_;
  p.addresses = own_addresses();
  p.stamps = {tunnel_->last_stamp(), stamps_.until};
  return p;
}

std::vector<IpAddress> Engine::own_addresses() const {
  std::vector<IpAddress> out;
  if (const auto& self = control_->netmap().self())
    for (const Prefix& p : self->addresses) out.push_back(p.address);
  return out;
}

Result<std::vector<IpAddress>> Engine::resolve_name(std::string_view name) const { return names_.resolve(name); }

std::optional<NodePublic> Engine::peer_of(const IpAddress& address) const {
  wg::PeerId id = tunnel_->route(address);
  if (id == wg::kNoPeer) return std::nullopt;
  return tunnel_->key_of(id);
}

std::string Engine::peer_name(const NodePublic& key) const {
  const ts2021::Node* node = control_->netmap().peer_by_key(key);
  if (node) return first_label(node->name);
  return key.short_string();
}

std::optional<PeerStatus> Engine::peer_status(Instant now, const NodePublic& key) const {
  const control::Netmap& map = control_->netmap();
  const ts2021::Node* node = map.peer_by_key(key);
  if (!node) return std::nullopt;
  PeerStatus s;
  s.name = first_label(node->name);
  s.fqdn = node->name;
  if (!s.fqdn.empty() && s.fqdn.back() == '.') s.fqdn.pop_back();
  if (auto u = map.users().find(node->user); u != map.users().end()) s.user = u->second.login_name;
  s.stable_id = node->stable_id;
  s.key = key;
  for (const Prefix& p : node->addresses) s.addresses.push_back(p.address);
  s.tags = node->tags;
  if (node->hostinfo) s.os = node->hostinfo->os;
  s.online = node->online;
  s.last_seen = node->last_seen;
  s.expired = node->expired;
  if (const Peer* peer = by_key(key)) s.tunnel = tunnel_->stats(peer->tunnel);
  s.path = paths_->status(now, key);
  return s;
}

std::vector<PeerStatus> Engine::peers(Instant now) const {
  std::vector<PeerStatus> out;
  for (const auto& [id, node] : control_->netmap().peers())
    if (auto s = peer_status(now, node.key)) out.push_back(std::move(*s));
  return out;
}

}  // namespace porthole::node
