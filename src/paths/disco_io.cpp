// Disco messages in and out, and the index of addresses that peers were seen at.
#include <algorithm>

#include "paths/impl.h"
#include "wire/classify.h"

namespace porthole::paths {
namespace {

constexpr std::size_t kV4Overhead = 20 + 8;   // IP and UDP headers
constexpr std::size_t kV6Overhead = 40 + 8;

}  // namespace

const crypto::BoxKey* Paths::Impl::box_for(const DiscoPublic& key, DiscoEntry& entry) {
  if (!entry.box_tried) {
    entry.box_tried = true;
    entry.box = crypto::BoxKey::make(disco_private.reveal(), key.bytes());
  }
  return entry.box ? &*entry.box : nullptr;
}

// The sealed message, valid until the next call.
Bytes Paths::Impl::seal(const crypto::BoxKey& box, Bytes plain) {
  sealed.resize(wire::disco::kOverhead + plain.size());
  std::uint8_t nonce[wire::disco::kNonceSize];
  rng.fill(nonce);
  wire::disco::write_envelope(sealed, disco_public, nonce);
  box.seal(nonce, plain, MutBytes(sealed).subspan(wire::disco::kBoxOffset));
  return sealed;
}

// Random, so that it never repeats; never zero, which means "none" elsewhere.
wire::disco::TxId Paths::Impl::new_tx_id() {
  wire::disco::TxId id{};
  do rng.fill(id);
  while (id == wire::disco::TxId{});
  return id;
}

Bytes Paths::Impl::make_ping(Peer& p, const wire::disco::TxId& id, std::size_t padding) {
  auto entry = by_disco.find(p.disco);
  const crypto::BoxKey* box = entry == by_disco.end() ? nullptr : box_for(p.disco, entry->second);
  if (box == nullptr) return {};
  ++counters.pings_sent;
  if (padding > 0) return seal(*box, wire::disco::encode(wire::disco::Ping{id, own_node, padding}));
  return seal(*box, wire::disco::encode_ping(id, own_node));
}

void Paths::Impl::remember_ping(Peer& p, const SentPing& ping) {
  if (p.sent.size() >= kSentPingsMax) p.sent.erase(p.sent.begin());
  p.sent.push_back(ping);
  if (p.sent.size() == 1) reschedule(p);
}

bool Paths::Impl::send_ping(Instant now, Peer& p, const Endpoint& to, PingPurpose purpose, std::size_t wire_size,
                            std::uint64_t token) {
  if (!udp_to_peers() || !family_bound(to) || !has_keys()) return false;
  std::size_t padding = 0;
  const std::size_t bare = wire::disco::kPingSize + (to.address.is_v4() ? kV4Overhead : kV6Overhead);
  if (wire_size > bare) padding = std::min(wire_size, kPingWireSizeMax) - bare;
  SentPing sent{new_tx_id(), to, 0, now, purpose, padding > 0 ? static_cast<int>(bare + padding) : kSafeWireMtu, token};
  const Bytes ping = make_ping(p, sent.tx_id, padding);
  if (ping.empty()) return false;
  remember_ping(p, sent);
  if (purpose != PingPurpose::kCli)
    if (Candidate* c = p.find_candidate(to)) c->last_ping = now;
  sink.send_udp(to, ping, ping.size());
  return true;
}

bool Paths::Impl::send_relay_ping(Instant now, Peer& p, std::uint64_t token) {
  if (!p.relay || !has_keys()) return false;
  SentPing sent{new_tx_id(), {}, *p.relay, now, PingPurpose::kCli, kSafeWireMtu, token};
  const Bytes ping = make_ping(p, sent.tx_id, 0);
  if (ping.empty()) return false;
  remember_ping(p, sent);
  sink.send_relay(*p.relay, p.key, ping);
  return true;
}

// ---- CallMeMaybe ----

// At once when our own endpoints are fresh, else when they are: a peer that pings stale addresses opens nothing.
void Paths::Impl::queue_call_me_maybe(Instant now, Peer& p) {
  if (!p.relay || p.waits_for_endpoints) return;
  if (gathered_at && now - *gathered_at <= kEndpointsFreshEnoughDuration) return send_call_me_maybe(p);
  p.waits_for_endpoints = true;
  waiting_for_endpoints.push_back({p.slot, p.generation});
  if (!netcheck.running()) request_gather(now, false);
}

void Paths::Impl::send_call_me_maybe(Peer& p) {
  auto entry = by_disco.find(p.disco);
  const crypto::BoxKey* box = entry == by_disco.end() ? nullptr : box_for(p.disco, entry->second);
  if (box == nullptr || !p.relay || !udp_to_peers()) return;
  wire::disco::CallMeMaybe m;   // always the whole list: what it omits is deleted at the peer
  m.endpoints.reserve(announced.size());
  for (const TypedEndpoint& e : announced) m.endpoints.push_back(e.endpoint);
  ++counters.call_me_maybe_sent;
  sink.send_relay(*p.relay, p.key, seal(*box, wire::disco::encode(m)));
}

void Paths::Impl::release_call_me_maybes(Instant now) {
  std::vector<PathId> waiting;
  waiting.swap(waiting_for_endpoints);
  for (PathId id : waiting) {
    Peer* p = peer_of(id);
    if (p == nullptr || !p->waits_for_endpoints) continue;
    p->waits_for_endpoints = false;
    if (!p->trusted(now)) send_call_me_maybe(*p);
  }
}

// ---- receiving ----

// `source` for UDP, `relay_peer` and `region` for relays. Every failure is a silent drop: unknown keys and boxes that do
// not open are normal after restarts.
void Paths::Impl::handle_disco(Instant now, Bytes packet, const Endpoint* source, int region, Peer* relay_peer) {
  const auto envelope = wire::disco::parse_envelope(packet);
  if (!envelope) return drop(Drop::kDiscoMalformed);
  if (!has_keys()) return drop(Drop::kNotReady);
  if (envelope->sender == disco_public) return drop(Drop::kDiscoOwnKey);   // our own, looped back through the tunnel
  auto found = by_disco.find(envelope->sender);
  if (found == by_disco.end()) return drop(Drop::kDiscoUnknownSender);
  DiscoEntry& entry = found->second;
  const DiscoPublic sender = envelope->sender;
  const crypto::BoxKey* box = box_for(sender, entry);
  if (box == nullptr) return drop(Drop::kDiscoOpenFailed);
  opened.resize(envelope->box.size() - wire::disco::kTagSize);
  if (!box->open(envelope->nonce, envelope->box, opened)) return drop(Drop::kDiscoOpenFailed);
  const auto message = wire::disco::parse(opened);
  if (!message) return drop(Drop::kDiscoMalformed);

  if (const auto* ping = std::get_if<wire::disco::Ping>(&*message)) {
    ++counters.pings_received;
    if (relay_peer != nullptr) return on_ping_relay(now, *ping, sender, entry, region, *relay_peer);
    return on_ping_udp(now, *ping, sender, entry, *source);
  }
  if (const auto* pong = std::get_if<wire::disco::Pong>(&*message)) {
    ++counters.pongs_received;
    return on_pong(now, *pong, entry, source, region);
  }
  if (const auto* m = std::get_if<wire::disco::CallMeMaybe>(&*message)) {
    if (relay_peer == nullptr) return drop(Drop::kDiscoWrongTransport);
    if (relay_peer->disco != sender) return drop(Drop::kDiscoWrongNode);
    ++counters.call_me_maybe_received;
    if (!udp_to_peers()) return;
    return on_call_me_maybe(now, *m, *relay_peer);
  }
  drop(Drop::kDiscoUnknownType);   // peer relays are not used by this node
}

bool Paths::handle_udp(Instant now, const RecvDatagram& datagram) {
  Impl& i = *impl_;
  const wire::Classified kind = wire::classify(datagram.data);
  if (kind.geneve) {
    i.drop(Drop::kGeneve);
    return true;
  }
  if (kind.kind == wire::DatagramKind::kWireGuard) return false;
  if (kind.kind == wire::DatagramKind::kStun) {
    const auto response = wire::stun::parse_response(datagram.data);
    if (!response) {
      i.drop(Drop::kStunMalformed);
    } else if (!i.netcheck.handle_response(now, *response)) {
      i.drop(Drop::kStunUnknownTransaction);
    } else {
      ++i.counters.stun_received;
      i.early_results(now);
      i.pump_netcheck(now);
    }
    return true;
  }
  // In relay-only mode an answered ping would make the peer send where we do not want it.
  if (!i.udp_to_peers()) {
    i.drop(Drop::kDiscoWrongTransport);
    return true;
  }
  i.handle_disco(now, datagram.data, &datagram.source, 0, nullptr);
  return true;
}

bool Paths::handle_relayed(Instant now, int region, const NodePublic& source, MutBytes packet) {
  Impl& i = *impl_;
  note_relay_heard(now, region);
  Peer* p = i.peer_of(source);
  if (p == nullptr) {
    i.drop(Drop::kRelayUnknownSource);
    return true;
  }
  note_authenticated_relay(now, source, region);   // the relay vouches for its clients' keys
  const wire::Classified kind = wire::classify(packet);
  if (kind.geneve) {
    i.drop(Drop::kGeneve);
    return true;
  }
  if (kind.kind == wire::DatagramKind::kWireGuard) return false;
  if (kind.kind == wire::DatagramKind::kDisco) i.handle_disco(now, packet, nullptr, region, p);
  else i.drop(Drop::kStunUnknownTransaction);
  return true;
}

// ---- receive index ----

void Paths::Impl::index_source(Peer& p, const Endpoint& source) {
  auto [it, added] = by_source.try_emplace(source, p.slot);
  if (!added) {
    if (it->second == p.slot) return;
    it->second = p.slot;   // the address moved to another peer; the old one's list entry is ignored from now on
  }
  std::erase(p.sources, source);
  if (p.sources.size() >= kReceiveIndexPerPeerMax) {
    auto old = by_source.find(p.sources.front());
    if (old != by_source.end() && old->second == p.slot) by_source.erase(old);
    p.sources.erase(p.sources.begin());
  }
  p.sources.push_back(source);
}

void Paths::note_authenticated(Instant now, const NodePublic& key, const Endpoint& source) {
  Impl& i = *impl_;
  auto known = i.by_source.find(source);
  const bool indexed = known != i.by_source.end() && i.slots[known->second]->key == key;
  Peer* p = indexed ? i.slots[known->second].get() : i.peer_of(key);
  if (p == nullptr) return;
  if (!indexed) i.index_source(*p, source);
  if (p->best && p->best->endpoint != source) i.came_otherwise(now, *p);
}

void Paths::note_authenticated_relay(Instant now, const NodePublic& key, int region) {
  Impl& i = *impl_;
  Peer* p = i.peer_of(key);
  if (p == nullptr) return;
  if (p->best) i.came_otherwise(now, *p);
  if (p->learned_region == region) return;
  p->learned_region = region;
  i.update_relay(*p);
  if (!i.cli_pings.empty()) i.send_waiting_pings(now);
}

std::optional<NodePublic> Paths::peer_at(const Endpoint& source) const {
  if (auto it = impl_->by_source.find(source); it != impl_->by_source.end()) return impl_->slots[it->second]->key;
  std::optional<NodePublic> found;
  for (const auto& p : impl_->slots) {
    if (!p || !p->find_candidate(source)) continue;
    if (found) return std::nullopt;   // two of them may be there
    found = p->key;
  }
  return found;
}

// ---- pings for a person ----

void Paths::ping(Instant now, std::uint64_t token, const NodePublic& key, std::size_t size) {
  Impl& i = *impl_;
  if (i.peer_of(key) == nullptr || i.cli_pings.size() >= kCliPingsMax) {
    i.events.push_back(PingResult{token, key, false, false, std::nullopt, std::nullopt, {}});
    return;
  }
  Impl::CliPing ping{token, key, now + kPingTimeoutDuration, size, false};
  ping.sent = i.send_cli_ping(now, ping);
  i.cli_pings.push_back(ping);
}

// By every plausible way. False: there is none yet.
bool Paths::Impl::send_cli_ping(Instant now, const CliPing& ping) {
  Peer* p = peer_of(ping.key);
  if (p == nullptr || p->expired || !has_keys()) return false;
  (void)route(now, *p);   // counts as traffic: discovery goes on while somebody is asking
  bool sent = false;
  // While a direct path carries the traffic, the relay's answer would only hide it when it comes first. A relay that is
  // only being dialled may lose the ping: then it goes again once the connection is up.
  if (!p->trusted(now) || p->doubted) sent = send_relay_ping(now, *p, ping.token) && connected_regions.contains(*p->relay);
  if (p->trusted(now)) {
    sent |= send_ping(now, *p, p->best->endpoint, PingPurpose::kCli, ping.size, ping.token);
  } else {
    for (const Candidate& c : p->candidates) sent |= send_ping(now, *p, c.endpoint, PingPurpose::kCli, ping.size, ping.token);
  }
  return sent;
}

void Paths::Impl::send_waiting_pings(Instant now) {
  for (CliPing& ping : cli_pings)
    if (!ping.sent) ping.sent = send_cli_ping(now, ping);
}

void Paths::Impl::finish_cli_ping(const SentPing& ping, const Peer& p, Duration latency) {
  if (ping.purpose != PingPurpose::kCli) return;
  auto it = std::find_if(cli_pings.begin(), cli_pings.end(),
                         [&](const CliPing& c) { return c.token == ping.token && c.key == p.key; });
  if (it == cli_pings.end()) return;
  cli_pings.erase(it);
  PingResult r{ping.token, p.key, true, true, std::nullopt, std::nullopt, latency};
  if (ping.to.is_valid()) r.endpoint = ping.to;
  else r.relay_region = ping.region;
  events.push_back(r);
}

void Paths::Impl::expire_cli_pings(Instant now) {
  while (!cli_pings.empty() && cli_pings.front().deadline <= now) {
    const CliPing& late = cli_pings.front();
    events.push_back(PingResult{late.token, late.key, false, late.sent, std::nullopt, std::nullopt, {}});
    cli_pings.erase(cli_pings.begin());
  }
}

}  // namespace porthole::paths
