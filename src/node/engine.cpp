#include "node/engine.h"

#include <algorithm>
#include <utility>

#include "node/limits.h"
#include "wg/spec_constants.h"
#include "wire/tsmp.h"

namespace porthole::node {
namespace {

constexpr std::uint8_t kProtocolTsmp = wire::tsmp::kIpProtocol;

std::uint8_t ip_protocol(Bytes packet) {
  if (packet.size() >= 20 && packet[0] >> 4 == 4) return packet[9];
  if (packet.size() >= 40 && packet[0] >> 4 == 6) return packet[6];
  return 0;
}

std::string first_label(std::string_view fqdn) { return std::string(fqdn.substr(0, fqdn.find('.'))); }

}  // namespace

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
               const wg::Tai64n& last_stamp, DatagramSink& out, Rng& rng, Log& log, Clock clock)
    : config_(std::move(config)), out_(out), rng_(rng), clock_(clock) {
  config_.control.first_stream_id = 1;
  plain_control_ = config_.control.url.starts_with("http://");
  registered_ = config_.control.expect_registered;
  control_key_ = config_.control.cached_control_key;
  paths_sink_ = std::make_unique<PathsSink>(*this);
  control_ = std::make_unique<control::ControlClient>(std::move(config_.control), std::move(machine_key), std::move(node_key),
                                                      rng, log);
  tunnel_ = std::make_unique<wg::Tunnel>(static_cast<wg::Host&>(*this), rng);
  tunnel_->set_last_stamp(last_stamp);
  paths_ = std::make_unique<paths::Paths>(*paths_sink_, rng, log);
  derp_ = std::make_unique<derp::DerpClient>(derp::DerpClientConfig{kRelayStreamFirst, false}, static_cast<derp::DerpHost&>(*this), rng, log);
  stack_ = std::make_unique<netstack::Stack>(config_.stack, rng);
  paths_->set_mode(clock.now, {config_.relay_only, config_.udp_enabled, config_.fixed_port});
}

Engine::~Engine() = default;

// ---- commands ----

void Engine::start(Clock clock) {
  clock_ = clock;
  paths_->set_keys(clock.now, config_.disco_key, control_->node_key().public_key());
  control_->set_disco_key(clock, config_.disco_key.public_key());
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

void Engine::handle_send_error(Clock clock, const Endpoint& destination, paths::SendErrorKind kind) {
  clock_ = clock;
  paths_->handle_send_error(clock.now, destination, kind);
}

std::optional<StreamAction> Engine::poll_action() {
  if (auto a = control_->poll_action()) return a;
  return derp_->poll_action();
}

void Engine::stream_opened(Clock clock, StreamId id, const StreamInfo& info) {
  clock_ = clock;
  if (id < kRelayStreamFirst)
    control_->stream_opened(clock, id, info);
  else
    derp_->stream_opened(clock.now, id, info);
}
void Engine::stream_failed(Clock clock, StreamId id, const Error& error) {
  clock_ = clock;
  if (id < kRelayStreamFirst)
    control_->stream_failed(clock, id, error);
  else
    derp_->stream_failed(clock.now, id, error);
}
void Engine::stream_closed(Clock clock, StreamId id, const std::optional<Error>& error) {
  clock_ = clock;
  if (id < kRelayStreamFirst)
    control_->stream_closed(clock, id, error);
  else
    derp_->stream_closed(clock.now, id, error ? &*error : nullptr);
}
Result<std::size_t> Engine::consume(Clock clock, StreamId id, MutBytes bytes) {
  clock_ = clock;
  if (id < kRelayStreamFirst) return control_->consume(clock, id, bytes);
  return derp_->consume(clock.now, id, bytes);
}
std::size_t Engine::produce(Clock clock, StreamId id, MutBytes out) {
  clock_ = clock;
  if (id < kRelayStreamFirst) return control_->produce(clock, id, out);
  return derp_->produce(clock.now, id, out);
}
bool Engine::has_output(StreamId id) const {
  return id < kRelayStreamFirst ? control_->has_output(id) : derp_->has_output(id);
}

// ---- wg::Host ----

Engine::Peer* Engine::by_tunnel(wg::PeerId id) { return id < by_tunnel_.size() ? by_tunnel_[id] : nullptr; }

const Engine::Peer* Engine::by_key(const NodePublic& key) const {
  auto it = by_key_.find(key);
  if (it == by_key_.end()) return nullptr;
  auto peer = peers_.find(it->second);
  return peer == peers_.end() ? nullptr : &peer->second;
}

// Every peer of the map is in the tunnel already; whoever is not is a stranger.
bool Engine::admit(const NodePublic&) { return false; }

void Engine::transmit(wg::PeerId id, Bytes run, std::size_t segment_size) {
  Peer* peer = by_tunnel(id);
  if (!peer) return;
  // An initiation to a peer of which nothing came for so long is WireGuard's own word that the path is dead.
  if (run[0] == wg::kTypeInitiation && !peer->silent && peer->heard != Instant() && clock_.now - peer->heard > kSilence) {
    peer->silent = true;
    gone_silent_.push_back(id);
  }
  paths::Route route = paths_->route(clock_.now, peer->path);
  if (route.udp) out_.send_udp(*route.udp, run, segment_size);
  if (route.relay_region) send_relayed(*route.relay_region, peer->key, run, segment_size);
}

void Engine::send_relayed(int region, const NodePublic& key, Bytes run, std::size_t segment_size) {
  while (!run.empty()) {
    std::size_t n = std::min(segment_size, run.size());
    derp_->send(clock_.now, region, key, run.first(n));
    run = run.subspan(n);
  }
}

void Engine::reply(const wg::Source& to, Bytes datagram) {
  if (const Endpoint* e = std::get_if<Endpoint>(&to)) {
    out_.send_udp(*e, datagram, datagram.size());
  } else {
    const auto& relay = std::get<wg::RelaySource>(to);
    derp_->send(clock_.now, relay.region, relay.key, datagram);
  }
}

void Engine::deliver(wg::PeerId id, std::span<const MutBytes> packets) {
  Peer* peer = by_tunnel(id);
  if (!peer) return;
  accepted_.clear();
  for (MutBytes p : packets) {
    if (ip_protocol(p) == kProtocolTsmp) {
      handle_tsmp(*peer, p);
      continue;
    }
    if (filter_.check(p, peer->jailed)) accepted_.push_back(p);
  }
  if (!accepted_.empty()) stack_->handle_packets(clock_.now, accepted_);
}

void Engine::authenticated(wg::PeerId id, const wg::Source& source) {
  Peer* peer = by_tunnel(id);
  if (!peer) return;
  // Resends that backed off during an outage go out now, not when their timer says so. Changes nothing for others.
  bool back = peer->silent || clock_.now - peer->heard > kPause;
  peer->silent = false;
  peer->heard = clock_.now;
  if (back) path_changed(*peer, netstack::PathChange::kReachable);
  if (const Endpoint* e = std::get_if<Endpoint>(&source))
    paths_->note_authenticated(clock_.now, peer->key, *e);
  else
    paths_->note_authenticated_relay(clock_.now, peer->key, std::get<wg::RelaySource>(source).region);
}

void Engine::session(wg::PeerId id, wg::SessionState state) {
  Peer* peer = by_tunnel(id);
  if (!peer) return;
  switch (state) {
    case wg::SessionState::kHandshaking:
      peer->asked = clock_.now;
      hurry_.try_emplace(id, Hurry{clock_.now + kHurryInterval, clock_.now + kHurryFor, kHurryInterval});
      // From now on data waits for the session instead of burning TCP's resends. The packet that started this is staged.
      set_blocked(*peer, true);
      break;
    case wg::SessionState::kEstablished:
      hurry_.erase(id);
      send_own_disco_key(*peer);
      {
        // Unknown when the peer asked for the session; most are within a third of what TCP then waits.
        const Instant asked = std::exchange(peer->asked, {});
        const Duration round_trip = asked != Instant() ? clock_.now - asked : kAssumedRoundTrip;
        for (const IpAddress& a : peer->addresses) stack_->set_round_trip(a, round_trip);
      }
      // A session that our own doubt renewed starts no new time of doubt.
      if (clock_.now - peer->renewed > kFreshFor) peer->established = clock_.now;
      set_blocked(*peer, false);
      // Segments that went to its last life or to a forgotten session are resent now, not when TCP's timer says so.
      path_changed(*peer, netstack::PathChange::kReachable);
      if (probes_.erase(peer->key) > 0) emit(PeerReadyEvent{peer->key});
      break;
    case wg::SessionState::kNone:
    case wg::SessionState::kExpired:
      hurry_.erase(id);
      // The next packet must reach the tunnel to start a handshake.
      set_blocked(*peer, false);
      break;
  }
}

std::string Engine::saved_map() const {
  return registered_ && installed_key_ == control_->node_key().public_key() ? control_->saved_map() : std::string();
}

void Engine::path_changed(const Peer& peer, netstack::PathChange kind) {
  for (const IpAddress& a : peer.addresses) stack_->path_changed(clock_.now, a, kind);
}

void Engine::unanswered(const IpAddress& address) {
  wg::PeerId id = tunnel_->route(address);
  Peer* peer = id == wg::kNoPeer ? nullptr : by_tunnel(id);
  if (!peer || tunnel_->state(id) != wg::SessionState::kEstablished) return;
  const bool fresh = clock_.now - peer->established < kFreshFor;
  if (clock_.now - peer->heard < (fresh ? kUnansweredFresh : kUnanswered)) return;
  if (clock_.now - peer->renewed < (fresh ? kRenewFresh : kRenew)) return;
  peer->renewed = clock_.now;
  tunnel_->renew_session(clock_, id);
}

void Engine::stray(const wg::Source& source) {
  if (!stray_) stray_ = source;
}

// A peer that goes on with the session of our last run would do so for 15 s: with a handshake it has a new one at once.
void Engine::answer_stray() {
  if (!stray_ || clock_.now - stray_seen_ < kStrayEvery) return;
  const wg::Source source = *std::exchange(stray_, {});
  stray_seen_ = clock_.now;
  std::optional<NodePublic> key;
  if (const auto* relay = std::get_if<wg::RelaySource>(&source)) key = relay->key;
  else key = paths_->peer_at(std::get<Endpoint>(source));
  if (const Peer* peer = key ? by_key(*key) : nullptr) tunnel_->start_handshake(clock_, peer->tunnel);
}

void Engine::set_blocked(Peer& peer, bool blocked) {
  if (peer.blocked == blocked) return;
  peer.blocked = blocked;
  for (const IpAddress& a : peer.addresses) stack_->tunnel_blocked(clock_.now, a, blocked);
}

// ---- TSMP (inside the tunnel) ----

void Engine::handle_tsmp(const Peer& peer, Bytes packet) {
  auto message = wire::tsmp::parse(packet);
  if (!message) return;
  auto own = own_addresses();
  if (std::find(own.begin(), own.end(), message->destination) == own.end()) return;
  if (const auto* ping = std::get_if<wire::tsmp::Ping>(&message->message)) {
    wire::tsmp::Packet pong{message->destination, message->source, static_cast<std::uint16_t>(~message->ip_id),
                            wire::tsmp::Pong{ping->data, 0}};
    tunnel_->send(clock_, peer.tunnel, wire::tsmp::encode(pong));
  } else if (const auto* pong = std::get_if<wire::tsmp::Pong>(&message->message)) {
    auto asked = std::find_if(tsmp_pings_.begin(), tsmp_pings_.end(),
                              [&](const TsmpPing& p) { return p.key == peer.key && p.data == pong->data; });
    if (asked == tsmp_pings_.end()) return;
    emit(PingEvent{{asked->token, asked->key, true, true, {}, {}, clock_.now - asked->sent}});
    tsmp_pings_.erase(asked);
  } else if (const auto* key = std::get_if<wire::tsmp::DiscoKey>(&message->message)) {
    paths_->disco_key_learned(clock_.now, peer.key, key->key);
  }
}

// Lets the peer find direct paths to us at once after our restart, before the coordinator has told it our new disco key.
void Engine::send_own_disco_key(const Peer& peer) {
  DiscoPublic key = paths_->own_disco();
  if (key.is_zero()) return;
  for (const IpAddress& own : own_addresses()) {
    for (const IpAddress& theirs : peer.addresses) {
      if (own.is_v4() != theirs.is_v4()) continue;
      tunnel_->send(clock_, peer.tunnel, wire::tsmp::encode({own, theirs, 0, wire::tsmp::DiscoKey{key}}));
      return;
    }
  }
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
  stack_->handle_timeout(clock.now);
  expire_tsmp_pings();
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
  for (const auto& [id, hurry] : hurry_) d = sooner(d, Deadline::at(std::min(hurry.next, hurry.until)));
  if (!tsmp_pings_.empty()) d = sooner(d, Deadline::at(tsmp_pings_.front().sent + kTsmpPingTimeout));
  // Past it only an event of the control client or the relay can let this node run.
  if (map_at_ && !running_told_ && clock_.now < *map_at_ + kRelayPatience) d = sooner(d, Deadline::at(*map_at_ + kRelayPatience));
  return d;
}

void Engine::settle(Clock clock) {
  clock_ = clock;
  answer_stray();
  drain_control();
  drain_derp();
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
  if (events_.size() < kEventsMax) events_.push_back(std::move(event));
}

// ---- control ----

void Engine::drain_control() {
  while (auto event = control_->poll_event()) {
    if (auto* e = std::get_if<control::StateChanged>(&*event)) {
      using S = control::ControlState;
      paths_->note_control_connected(clock_.now, e->state == S::kRunning);
      switch (e->state) {
        case S::kIdle:
        case S::kConnecting:
          if (!running_told_) set_state(NodeState::kStarting, e->error);
          break;
        case S::kReconnecting:
          // The netmap stays usable: the node keeps running on what it knows.
          if (e->error) emit(NoticeEvent{*e->error});
          break;
        case S::kRunning: check_running(); break;
        case S::kNeedsLogin:
          stop_data_plane();
          set_state(NodeState::kNeedsLogin, e->error);
          break;
        case S::kNeedsApproval: set_state(NodeState::kNeedsApproval, e->error); break;
        case S::kExpired:
          stop_data_plane();
          set_state(NodeState::kExpired, e->error);
          break;
        case S::kLoggedOut:
          stop_data_plane();
          registered_ = false;
          emit(PersistEvent{});
          set_state(NodeState::kLoggedOut, e->error);
          break;
        case S::kFailed:
          stop_data_plane();
          set_state(NodeState::kFailed, e->error);
          break;
      }
    } else if (auto* url = std::get_if<control::LoginUrl>(&*event)) {
      emit(LoginUrlEvent{url->url});
    } else if (auto* open = std::get_if<control::OpenUrl>(&*event)) {
      emit(LoginUrlEvent{open->url});
    } else if (std::holds_alternative<control::NodeKeyChanged>(*event)) {
      registered_ = false;
      emit(PersistEvent{});
    } else if (auto* key = std::get_if<control::ControlKeyLearned>(&*event)) {
      control_key_ = key->key;
      emit(PersistEvent{});
    } else if (auto* done = std::get_if<control::Registered>(&*event)) {
      registered_ = true;
      login_name_ = done->login.login_name;
      emit(PersistEvent{});
    } else if (auto* changed = std::get_if<control::NetmapChanged>(&*event)) {
      apply_netmap(changed->change);
    } else if (auto* notice = std::get_if<control::ControlNotice>(&*event)) {
      emit(NoticeEvent{notice->error});
    } else if (std::holds_alternative<control::LoggedOut>(*event)) {
      emit(LoggedOutEvent{});
    }
  }
}

void Engine::apply_netmap(const control::NetmapChange& change) {
  const control::Netmap& map = control_->netmap();
  if (NodePublic key = control_->node_key().public_key(); key != installed_key_) {
    installed_key_ = key;
    tunnel_->set_private_key(clock_, control_->node_key());
    derp_->set_key(clock_.now, control_->node_key());
    paths_->set_keys(clock_.now, config_.disco_key, key);
  }
  if (change.self && map.self()) {
    std::vector<IpAddress> own = own_addresses();
    std::vector<Prefix> local;
    for (const IpAddress& a : own) local.push_back(Prefix::host(a));
    stack_->set_addresses(own);
    filter_.set_local(std::move(local));
    if (own != stored_addresses_) {
      stored_addresses_ = own;
      emit(PersistEvent{});
    }
  }
  if (change.filter || change.full || !change.peers_upserted.empty()) filter_.set_rules(control::CompiledFilter::compile(map));
  if (change.relay_map) update_relay_map();

  std::vector<std::string> added, removed;
  for (ts2021::NodeId id : change.peers_removed) remove_peer(id, &removed);
  for (ts2021::NodeId id : change.peers_upserted)
    if (const ts2021::Node* node = map.peer(id)) upsert_peer(*node, added);
  // After a time without a data plane (expiry, logout) the map names only what differs from before.
  if (change.full)
    for (const auto& [id, node] : map.peers())
      if (!peers_.contains(id)) upsert_peer(node, added);
  if (change.self || change.full || !change.peers_removed.empty() || !change.peers_upserted.empty()) rebuild_names();
  if (!added.empty() || !removed.empty()) emit(PeersEvent{std::move(added), std::move(removed)});
  if (!map_at_) map_at_ = clock_.now;
  ++map_version_;
  check_running();
}

void Engine::upsert_peer(const ts2021::Node& node, std::vector<std::string>& added) {
  if (auto old = peers_.find(node.id); old != peers_.end() && (old->second.key != node.key || node.expired)) {
    remove_peer(node.id, nullptr);
  } else if (old == peers_.end() && !node.expired) {
    added.push_back(first_label(node.name));
  }
  if (node.expired || node.key.is_zero()) return;

  Peer& peer = peers_[node.id];
  peer.id = node.id;
  peer.key = node.key;
  peer.name = first_label(node.name);
  peer.jailed = node.is_jailed;
  peer.home_region = node.home_region();
  peer.addresses.clear();
  for (const Prefix& p : node.addresses) peer.addresses.push_back(p.address);
  by_key_[node.key] = node.id;

  // A default route is an exit node's offer, which this node never takes: with it, one peer would own every address.
  std::vector<Prefix> routes = node.routes();
  std::erase_if(routes, [](const Prefix& p) { return p.bits == 0; });
  wg::PeerId id = tunnel_->add_peer(clock_, node.key, routes);
  if (id == wg::kNoPeer) {  // our own key, or more peers than the tunnel holds
    by_key_.erase(node.key);
    peers_.erase(node.id);
    return;
  }
  peer.tunnel = id;
  if (by_tunnel_.size() <= id) by_tunnel_.resize(id + 1);
  by_tunnel_[id] = &peer;

  paths::PeerConfig config;
  config.key = node.key;
  config.disco = node.disco_key;
  config.endpoints = node.endpoints;
  config.home_region = peer.home_region;
  paths_->upsert_peer(clock_.now, config);
  peer.path = paths_->find(node.key);
}

void Engine::remove_peer(ts2021::NodeId id, std::vector<std::string>* removed) {
  auto it = peers_.find(id);
  if (it == peers_.end()) return;
  Peer& peer = it->second;
  if (removed) removed->push_back(peer.name);
  set_blocked(peer, false);
  by_tunnel_[peer.tunnel] = nullptr;
  hurry_.erase(peer.tunnel);
  probes_.erase(peer.key);
  tunnel_->remove_peer(clock_, peer.tunnel);
  paths_->remove_peer(clock_.now, peer.key);
  // Its connections end now and say so, instead of timing out: nothing of this peer may be delivered any more.
  for (const IpAddress& a : peer.addresses) stack_->peer_removed(clock_.now, a);
  by_key_.erase(peer.key);
  peers_.erase(it);
}

void Engine::stop_data_plane() {
  ++map_version_;
  restored_ = false;
  while (!peers_.empty()) remove_peer(peers_.begin()->first, nullptr);
  tunnel_->set_private_key(clock_, {});
  derp_->set_key(clock_.now, {});
  installed_key_ = {};
  stack_->set_addresses({});
  filter_.set_rules({});
  running_told_ = false;
  map_at_.reset();
}

void Engine::rebuild_names() {
  const control::Netmap& map = control_->netmap();
  std::vector<proxy::NamedHost> hosts;
  auto add = [&](const ts2021::Node& node) {
    proxy::NamedHost h;
    h.fqdn = node.name;
    for (const Prefix& p : node.addresses) h.addresses.push_back(p.address);
    hosts.push_back(std::move(h));
  };
  if (map.self()) add(*map.self());
  for (const auto& [id, node] : map.peers()) add(node);
  names_ = proxy::NameTable(hosts, map.magic_dns_suffix());
}

void Engine::update_relay_map() {
  ts2021::RelayMap map = control_->netmap().relay_map();
  // A relay without TLS lets anyone on the way replay our login there: only under a coordinator that has none either.
  if (!plain_control_)
    for (auto& [id, region] : map.regions)
      for (ts2021::RelayNode& n : region.nodes) n.plain_http = false;
  derp_->set_map(clock_.now, map);
  paths::RelayMap out;
  for (const auto& [id, region] : map.regions) {
    paths::RelayRegion r;
    r.id = id;
    r.code = region.region_code;
    r.avoid = region.avoid;
    r.no_measure_no_home = region.no_measure_no_home;
    if (auto s = map.region_score.find(id); s != map.region_score.end()) r.score = s->second;
    for (const ts2021::RelayNode& n : region.nodes)
      r.nodes.push_back({n.name, n.host_name, n.ipv4, n.ipv6, n.stun_port, n.stun_only, n.stun_test_ip});
    out.regions.push_back(std::move(r));
  }
  paths_->set_relay_map(clock_.now, out);
}

// ---- paths and relays ----

void Engine::drain_paths() {
  while (auto event = paths_->poll_event()) {
    if (auto* e = std::get_if<paths::EndpointsChanged>(&*event)) {
      std::vector<control::AnnouncedEndpoint> list;
      for (const paths::TypedEndpoint& t : e->endpoints)
        list.push_back({t.endpoint, static_cast<ts2021::EndpointType>(static_cast<int>(t.type))});
      control_->set_endpoints(clock_, std::move(list));
    } else if (auto* home = std::get_if<paths::HomeRegionChanged>(&*event)) {
      relay_connected_ = false;
      derp_->set_home(clock_.now, home->region);
      relay_connected_ = home->region != 0 && derp_->is_open(home->region);
      check_running();
    } else if (std::holds_alternative<paths::NetInfoChanged>(*event)) {
      paths::NetInfo in = paths_->net_info();
      ts2021::NetInfo out;
      out.mapping_varies_by_dest_ip = in.mapping_varies_by_dest_ip;
      out.working_ipv6 = in.working_ipv6;
      out.os_has_ipv6 = in.os_has_ipv6;
      out.working_udp = in.working_udp;
      out.preferred_derp = in.preferred_region;
      out.derp_latency = in.relay_latency;
      control_->set_net_info(clock_, std::move(out));
    } else if (auto* path = std::get_if<paths::PeerPathChanged>(&*event)) {
      auto it = by_key_.find(path->key);
      if (it == by_key_.end()) continue;
      Peer& peer = peers_.at(it->second);
      bool direct = path->direct.has_value();
      if (direct || path->relay_region) {
        if (peer.direct != direct) {
          peer.direct = direct;
          path_changed(peer, direct ? netstack::PathChange::kDirect : netstack::PathChange::kRelayed);
          // Confirmed by a pong: what an outage held up goes out now, not when a timer that backed off says so.
          if (direct) path_changed(peer, netstack::PathChange::kReachable);
        }
        // What was sent while there was no way, or an opening one, is lost: do not wait for the timer.
        if (tunnel_->state(peer.tunnel) == wg::SessionState::kHandshaking) tunnel_->retry_handshake(clock_, peer.tunnel);
      }
      emit(PathEvent{peer_name(path->key), path->key, path->direct, path->relay_region, path->latency});
    } else if (auto* restarted = std::get_if<paths::PeerRestarted>(&*event)) {
      auto it = by_key_.find(restarted->key);
      if (it == by_key_.end()) continue;
      Peer& peer = peers_.at(it->second);
      bool in_use = tunnel_->state(peer.tunnel) != wg::SessionState::kNone;
      tunnel_->reset_session(clock_, peer.tunnel);
      if (in_use) tunnel_->start_handshake(clock_, peer.tunnel);
    } else if (auto* ping = std::get_if<paths::PingResult>(&*event)) {
      emit(PingEvent{*ping});
    } else if (auto* resolve = std::get_if<paths::ResolveRequest>(&*event)) {
      emit(ResolveEvent{resolve->host});
    } else if (auto* done = std::get_if<paths::NetcheckDone>(&*event)) {
      emit(NetcheckEvent{done->report});
    } else if (auto* rebind = std::get_if<paths::RebindWanted>(&*event)) {
      emit(RebindEvent{rebind->reason});
    }
  }
}

void Engine::drain_derp() {
  while (auto event = derp_->poll_event()) {
    if (auto* up = std::get_if<derp::Connected>(&*event)) {
      paths_->note_relay_connected(clock_.now, up->region, true);
      if (up->region == paths_->home_region()) relay_connected_ = true;
      for (auto& [id, peer] : peers_) {
        if (!peer.direct.value_or(false)) path_changed(peer, netstack::PathChange::kReachable);
      }
      check_running();
    } else if (auto* down = std::get_if<derp::Disconnected>(&*event)) {
      paths_->note_relay_connected(clock_.now, down->region, false);
      if (down->region == paths_->home_region()) relay_connected_ = false;
      if (!down->final) emit(NoticeEvent{down->error});
    } else if (auto* gone = std::get_if<derp::PeerGone>(&*event)) {
      paths_->note_peer_gone(clock_.now, gone->region, gone->peer);
    }
  }
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
  p.last_stamp = tunnel_->last_stamp();
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
