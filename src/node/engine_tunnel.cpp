#include <algorithm>
#include <utility>

#include "node/engine.h"
#include "node/limits.h"
#include "wg/spec_constants.h"
#include "wire/ip.h"
#include "wire/tcp.h"
#include "wire/tsmp.h"

namespace porthole::node {
namespace {

constexpr std::uint8_t kProtocolTsmp = wire::tsmp::kIpProtocol;

std::uint8_t ip_protocol(Bytes packet) {
  if (packet.size() >= 20 && packet[0] >> 4 == 4) return packet[9];
  if (packet.size() >= 40 && packet[0] >> 4 == 6) return packet[6];
  return 0;
}

}  // namespace

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
    const control::Verdict verdict = filter_.check(p, peer->jailed);
    if (verdict) accepted_.push_back(p);
    else if (verdict.reason == control::FilterDrop::kNoRule) refused(*peer, p);
  }
  if (!accepted_.empty()) stack_->handle_packets(clock_.now, accepted_);
}

// Of a peer of the last whole map, or one that has been here for a while, this is what the tailnet's policy wants.
void Engine::refused(const Peer& peer, Bytes packet) {
  if (rules_due_) return;
  if (peer.joined && clock_.now - *peer.joined <= kJoinedLately) {
    rules_due_ = std::max(clock_.now, *peer.joined + kRulesLate);
    return;
  }
  // Who tries to connect hears why, instead of waiting for nothing. One small packet for a SYN, which is larger.
  auto parsed = wire::parse_ip(packet);
  const auto* ip = std::get_if<wire::IpPacket>(&parsed);
  wire::TcpSegment tcp;
  if (!ip || ip->fragmented || ip->protocol != wire::ip_protocol::kTcp || !wire::parse_tcp(ip->payload, tcp)) return;
  if ((tcp.flags & (wire::tcp_flag::kSyn | wire::tcp_flag::kAck)) != wire::tcp_flag::kSyn) return;
  const wire::tsmp::Reject reject{ip->protocol, wire::tsmp::RejectReason::kAcl, {ip->source, tcp.source_port},
                                  {ip->destination, tcp.destination_port}, false};
  tunnel_->send(clock_, peer.tunnel, wire::tsmp::encode({ip->destination, ip->source, 0, reject}));
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
  } else if (const auto* reject = std::get_if<wire::tsmp::Reject>(&message->message)) {
    if (reject->ip_protocol == wire::ip_protocol::kTcp && !reject->maybe_broken)
      stack_->connect_refused(clock_.now, reject->flow_source, reject->flow_destination);
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

}  // namespace porthole::node
