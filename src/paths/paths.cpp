#include "paths/paths.h"

#include <algorithm>

#include "base/assert.h"
#include "paths/impl.h"

namespace porthole::paths {

std::string_view to_string(Drop reason) {
  switch (reason) {
    case Drop::kStunMalformed: return "stun_malformed";
    case Drop::kStunUnknownTransaction: return "stun_unknown_transaction";
    case Drop::kGeneve: return "geneve";
    case Drop::kDiscoMalformed: return "disco_malformed";
    case Drop::kDiscoUnknownSender: return "disco_unknown_sender";
    case Drop::kDiscoOwnKey: return "disco_own_key";
    case Drop::kDiscoOpenFailed: return "disco_open_failed";
    case Drop::kDiscoUnknownType: return "disco_unknown_type";
    case Drop::kDiscoWrongTransport: return "disco_wrong_transport";
    case Drop::kDiscoWrongNode: return "disco_wrong_node";
    case Drop::kDiscoDuplicatePing: return "disco_duplicate_ping";
    case Drop::kDiscoUnknownPong: return "disco_unknown_pong";
    case Drop::kDiscoCandidateGone: return "disco_candidate_gone";
    case Drop::kRelayUnknownSource: return "relay_unknown_source";
    case Drop::kNotReady: return "not_ready";
    case Drop::kCount: break;
  }
  return "unknown";
}

Paths::Paths(DatagramSink& sink, Rng& rng, Log& log) : impl_(std::make_unique<Impl>(sink, rng, log)) {}
Paths::~Paths() = default;

// ---- keys and peer table ----

void Paths::set_keys(Instant now, const crypto::DiscoPrivate& disco, const NodePublic& own_node) {
  Impl& i = *impl_;
  const DiscoPublic next = disco.public_key();
  if (next == i.disco_public && own_node == i.own_node) return;
  i.disco_private = disco.duplicate();
  i.disco_public = next;
  i.own_node = own_node;
  for (auto& [key, entry] : i.by_disco) {
    entry.box.reset();
    entry.box_tried = false;
  }
  if (i.may_gather()) {
    i.update_endpoints(now);
    i.request_gather(now, false);
  }
}

DiscoPublic Paths::own_disco() const { return impl_->disco_public; }

Peer* Paths::Impl::peer_of(const NodePublic& key) {
  auto it = by_key.find(key);
  return it == by_key.end() ? nullptr : slots[it->second].get();
}

Peer* Paths::Impl::peer_of(PathId id) {
  if (id.slot >= slots.size() || generations[id.slot] != id.generation) return nullptr;
  return slots[id.slot].get();
}

PathId Paths::find(const NodePublic& key) const {
  const Peer* p = impl_->peer_of(key);
  return p == nullptr ? PathId{} : PathId{p->slot, p->generation};
}

void Paths::Impl::set_disco(Peer& p, const DiscoPublic& disco) {
  if (p.disco == disco) return;
  if (auto old = by_disco.find(p.disco); old != by_disco.end()) {
    std::erase(old->second.slots, p.slot);
    if (old->second.slots.empty()) by_disco.erase(old);
  }
  p.disco = disco;
  if (!disco.is_zero()) by_disco[disco].slots.push_back(p.slot);
}

// True when the map names an address we did not know.
bool Paths::Impl::set_map_endpoints(Instant now, Peer& p, const std::vector<Endpoint>& endpoints) {
  std::vector<Endpoint> listed;
  for (const Endpoint& e : endpoints)
    if (listed.size() < kEndpointsTakenMax && is_usable_candidate(e)) listed.push_back(e);
  auto is_listed = [&](const Endpoint& e) { return std::find(listed.begin(), listed.end(), e) != listed.end(); };
  for (Candidate& c : p.candidates) c.from_map = is_listed(c.endpoint);
  bool news = false;
  for (const Endpoint& e : listed) {
    news |= p.find_candidate(e) == nullptr;
    if (Candidate* c = add_candidate(now, p, e)) c->from_map = true;
  }
  drop_dead_candidates(now, p);
  return news;
}

Peer* Paths::Impl::upsert(Instant now, const PeerConfig& config) {
  if (config.key.is_zero()) return nullptr;
  bool restarted = false;
  Peer* p = peer_of(config.key);
  if (p == nullptr) {
    if (by_key.size() >= kPeersMax) {
      log.write(LogLevel::kWarning, "paths", "the network map has more peers than this node supports; some are left out");
      return nullptr;
    }
    std::uint32_t slot;
    if (free_slots.empty()) {
      slot = static_cast<std::uint32_t>(slots.size());
      slots.emplace_back();
      generations.push_back(0);
    } else {
      slot = free_slots.back();
      free_slots.pop_back();
    }
    slots[slot] = std::make_unique<Peer>();
    p = slots[slot].get();
    p->slot = slot;
    p->generation = generations[slot];
    p->key = config.key;
    by_key[config.key] = slot;
    p->map_disco = config.disco;
    set_disco(*p, config.disco);
  } else if (config.disco != p->map_disco) {
    // Only the map's own change counts: it may lag behind a key that the peer told us itself.
    restarted = !p->map_disco.is_zero() && !config.disco.is_zero() && config.disco != p->disco;
    p->map_disco = config.disco;
    if (config.disco != p->disco) {
      set_disco(*p, config.disco);
      for (Candidate& c : p->candidates) c.last_ping.reset();   // earlier pings went to a key that is gone
      p->next_round = {};
    }
    if (restarted) {
      distrust(*p);   // it often comes back on another port
      events.push_back(PeerRestarted{p->key});
    }
  }
  p->listed = peer_list;
  p->home_region = config.home_region;
  p->expired = config.expired;
  const bool news = set_map_endpoints(now, *p, config.endpoints);
  update_relay(*p);
  if (news || restarted) try_again(now, *p);
  send_waiting_pings(now);
  reschedule(*p);
  return p;
}

void Paths::Impl::remove(Instant, Peer& p) {
  const std::uint32_t slot = p.slot;
  timers.set(slot, Instant::max());
  set_disco(p, DiscoPublic());
  for (const Endpoint& e : p.sources)
    if (auto it = by_source.find(e); it != by_source.end() && it->second == slot) by_source.erase(it);
  by_key.erase(p.key);
  slots[slot].reset();
  ++generations[slot];
  free_slots.push_back(slot);
}

void Paths::set_peers(Instant now, std::span<const PeerConfig> peers) {
  Impl& i = *impl_;
  const bool had_peers = !i.by_key.empty();
  ++i.peer_list;
  for (const PeerConfig& c : peers) i.upsert(now, c);
  for (auto& p : i.slots)
    if (p && p->listed != i.peer_list) i.remove(now, *p);
  if (!had_peers && !i.by_key.empty() && i.gathered_at && now - *i.gathered_at > kEndpointsFreshEnoughDuration)
    i.request_gather(now, false);
}

void Paths::upsert_peer(Instant now, const PeerConfig& peer) {
  Impl& i = *impl_;
  const bool had_peers = !i.by_key.empty();
  i.upsert(now, peer);
  if (!had_peers && i.gathered_at && now - *i.gathered_at > kEndpointsFreshEnoughDuration) i.request_gather(now, false);
}

void Paths::remove_peer(Instant now, const NodePublic& key) {
  if (Peer* p = impl_->peer_of(key)) impl_->remove(now, *p);
}

void Paths::disco_key_learned(Instant now, const NodePublic& key, const DiscoPublic& disco) {
  Impl& i = *impl_;
  Peer* p = i.peer_of(key);
  if (p == nullptr || disco.is_zero() || disco == p->disco || disco == i.disco_public) return;
  i.set_disco(*p, disco);
  for (Candidate& c : p->candidates) c.last_ping.reset();
  i.try_again(now, *p);
  i.send_waiting_pings(now);
}

// ---- sending ----

Route Paths::route(Instant now, PathId id) {
  Peer* p = impl_->peer_of(id);
  return p == nullptr ? Route{} : impl_->route(now, *p);
}

Route Paths::route(Instant now, const NodePublic& key) {
  Peer* p = impl_->peer_of(key);
  return p == nullptr ? Route{} : impl_->route(now, *p);
}

// ---- trouble ----

void Paths::handle_rebind(Instant now) {
  Impl& i = *impl_;
  ++i.counters.rebinds;
  i.gathered_at.reset();
  i.netcheck.names().clear();
  for (auto& p : i.slots)
    if (p) i.forget_paths(*p);
  i.restart_gather(now, false);
  for (auto& p : i.slots)
    if (p) i.try_again(now, *p);
}

void Paths::handle_send_error(Instant now, const Endpoint& destination, SendErrorKind kind) {
  Impl& i = *impl_;
  ++i.counters.send_errors;
  if (kind == SendErrorKind::kHostUnreachable) {
    for (auto& p : i.slots) {
      if (!p || !p->best || p->best->endpoint != destination) continue;
      i.clear_best(*p);
      // last_ping stays: it keeps the next round from pinging into the same error at once.
      if (Candidate* c = p->find_candidate(destination)) c->last_pong.reset();
    }
  }
  if (kind != SendErrorKind::kSocketBroken && kind != SendErrorKind::kNotPermitted) return;
  if (i.last_rebind_wish && now - *i.last_rebind_wish < kRebindOnErrorInterval) return;
  i.last_rebind_wish = now;
  i.events.push_back(RebindWanted{kind == SendErrorKind::kSocketBroken ? "the UDP socket no longer works"
                                                                       : "the system refuses to send on the UDP socket"});
}

// ---- time ----

void Paths::handle_timeout(Instant now) {
  Impl& i = *impl_;
  while (i.timers.top_time() <= now) i.peer_timeout(now, *i.slots[i.timers.top_slot()]);
  i.expire_cli_pings(now);
  if (i.netcheck.next_timeout() <= now) i.pump_netcheck(now);
  if (i.periodic_at && *i.periodic_at <= now) {
    i.periodic_at.reset();
    if (i.last_traffic && now - *i.last_traffic <= kSessionActiveTimeout) i.request_gather(now, false);
  }
}

Deadline Paths::next_timeout() const {
  const Impl& i = *impl_;
  Instant at = std::min(i.timers.top_time(), i.netcheck.next_timeout());
  if (!i.cli_pings.empty()) at = std::min(at, i.cli_pings.front().deadline);
  if (i.periodic_at) at = std::min(at, *i.periodic_at);
  return at == Instant::max() ? Deadline::never() : Deadline::at(at);
}

std::optional<Event> Paths::poll_event() {
  if (impl_->events.empty()) return std::nullopt;
  Event e = std::move(impl_->events.front());
  impl_->events.pop_front();
  return e;
}

// ---- queries ----

int Paths::home_region() const { return impl_->home; }
std::vector<TypedEndpoint> Paths::endpoints() const { return impl_->announced; }
NetInfo Paths::net_info() const { return impl_->info; }
const Counters& Paths::counters() const { return impl_->counters; }

std::optional<PeerPath> Paths::status(Instant now, const NodePublic& key) const {
  const Impl& i = *impl_;
  const Peer* p = impl_->peer_of(key);
  if (p == nullptr) return std::nullopt;
  PeerPath out;
  out.key = key;
  out.trusted = p->trusted(now);
  if (p->best) {
    out.direct = p->best->endpoint;
    out.latency = p->best->latency;
  }
  out.relay_region = p->relay;
  out.active = p->active(now);
  for (const Candidate& c : p->candidates) {
    CandidateStatus s{c.endpoint, c.from_map, c.call_me_maybe.has_value(), c.got_ping.has_value(), std::nullopt};
    if (c.last_pong) s.latency = c.latency;
    out.candidates.push_back(s);
  }
  using Reason = NotDirect::Reason;
  NotDirect& why = out.not_direct;
  why.addresses = p->candidates.size();
  if (p->searching_since) why.silent = now - *p->searching_since;
  if (out.trusted) why = {};
  else if (p->expired) why.reason = Reason::kKeyExpired;
  else if (!i.mode.udp_enabled) why.reason = Reason::kUdpOff;
  else if (i.mode.relay_only) why.reason = Reason::kRelayOnly;
  else if (p->disco.is_zero()) why.reason = Reason::kNoDisco;
  else if (p->candidates.empty()) why.reason = Reason::kNoEndpoints;
  else if (!p->last_send) why.reason = Reason::kNotTried;
  else if (!out.active) why.reason = Reason::kIdle;
  else if (p->best) why.reason = Reason::kStopped;
  else if (i.info.working_udp == false) why.reason = Reason::kUdpBlocked;
  else why.reason = Reason::kNoAnswer;
  why.hard_nat = why.reason == Reason::kNoAnswer && i.info.mapping_varies_by_dest_ip == true;
  return out;
}

std::string to_text(const NotDirect& why) {
  using Reason = NotDirect::Reason;
  auto unanswered = [&] {
    std::string out = "no answer to pings at " + std::to_string(why.addresses) + (why.addresses == 1 ? " address" : " addresses");
    if (why.silent >= 1s) out += " since " + std::to_string(why.silent / 1s) + " s";
    return out;
  };
  switch (why.reason) {
    case Reason::kNone: return {};
    case Reason::kKeyExpired: return "the peer's key has expired";
    case Reason::kUdpOff: return "UDP is switched off on this node";
    case Reason::kRelayOnly: return "this node is set to use relays only";
    case Reason::kNoDisco: return "the peer does not take part in path discovery";
    case Reason::kNoEndpoints: return "the peer has announced no endpoints";
    case Reason::kNotTried: return "not tried yet: no traffic";
    case Reason::kIdle: return "idle: the path is checked again with the next packet";
    case Reason::kStopped: return "the direct path stopped answering; looking for another";
    case Reason::kUdpBlocked: return "UDP is blocked here: no STUN server answers, and " + unanswered();
    case Reason::kNoAnswer:
      return unanswered() + (why.hard_nat ? "; the NAT here changes ports by destination, which makes a direct path unlikely" : "");
  }
  return {};
}

}  // namespace porthole::paths
