// The per-peer machine. In short:
//
//            first send              pong                    6.5 s without pong
//   idle -----------------> discover ----> trusted ----------------------------> stale
//    ^   relay, pings, CallMeMaybe           UDP only  <---- any pong ----         UDP and relay, full rounds
//    +---- 45 s without a send, from any state; the best address is remembered, untrusted
//
// and a trusted path whose last two pings stay unanswered is doubted: the relay carries a copy before trust runs out.
#include <algorithm>

#include "paths/impl.h"

namespace porthole::paths {

// ---- sending ----

Route Paths::Impl::route(Instant now, Peer& p) {
  if (p.expired || !has_keys()) return {};
  Route r;
  if (!udp_to_peers()) {
    p.last_send = last_traffic = now;
    r.relay_region = p.relay;
    return r;
  }
  note_use(now, p);
  const bool trusted = p.trusted(now);
  if (p.best) r.udp = p.best->endpoint;
  if (!trusted || p.doubted) r.relay_region = p.relay;
  return r;
}

// Traffic goes to the peer: keeps the session active and looks for a path when there is no good one.
void Paths::Impl::note_use(Instant now, Peer& p) {
  p.last_send = last_traffic = now;
  if (!periodic_at) arm_periodic(now);
  const bool begins = !p.heartbeat_at;
  if (begins) p.heartbeat_at = now + kHeartbeatInterval;
  if (!p.trusted(now)) {
    full_round(now, p, true);
    if (begins) start_burst(now, p);
  }
  if (begins) reschedule(p);
}

// Pings every candidate that was not pinged within the last 5 s, and asks the peer to do the same.
void Paths::Impl::full_round(Instant now, Peer& p, bool call_me_maybe) {
  p.last_full_round = now;
  if (now < p.next_round || !udp_to_peers() || p.disco.is_zero() || p.expired) return;
  drop_dead_candidates(now, p);
  bool pinged = false;
  Instant next = now + kDiscoPingInterval;
  for (Candidate& c : p.candidates) {
    if (!family_bound(c.endpoint)) continue;
    if (!c.last_ping || now - *c.last_ping >= kDiscoPingInterval) pinged |= send_ping(now, p, c.endpoint, PingPurpose::kDiscovery);
    if (c.last_ping) next = std::min(next, *c.last_ping + kDiscoPingInterval);
  }
  p.next_round = next;
  if (pinged && !p.searching_since && !p.trusted(now)) p.searching_since = now;
  if (pinged && call_me_maybe) queue_call_me_maybe(now, p);
  if (pinged) reschedule(p);
}

void Paths::Impl::try_again(Instant now, Peer& p) {
  p.next_round = now;
  if (!p.active(now) || p.trusted(now) || !udp_to_peers()) return;
  full_round(now, p, true);
  start_burst(now, p);
}

void Paths::Impl::start_burst(Instant now, Peer& p) {
  p.burst_step = 0;
  p.burst_start = now;
  p.burst_at = now + kBurstSteps[0];
  reschedule(p);
}

// A fresh ping to everyone who has not answered since the burst began.
void Paths::Impl::burst(Instant now, Peer& p) {
  p.burst_at.reset();
  if (p.trusted(now) || !udp_to_peers() || p.expired) return;
  std::size_t budget = kBurstCandidatesMax;
  for (Candidate& c : p.candidates) {
    if (budget == 0) break;
    if (c.last_pong && *c.last_pong >= p.burst_start) continue;
    if (send_ping(now, p, c.endpoint, PingPurpose::kDiscovery)) --budget;
  }
  if (++p.burst_step < std::size(kBurstSteps)) p.burst_at = p.burst_start + kBurstSteps[p.burst_step];
}

bool Paths::Impl::wants_full_round(Instant now, const Peer& p) const {
  if (!p.trusted(now) || !p.last_full_round) return true;
  if (p.best->latency <= kGoodEnoughLatency) return false;
  return now - *p.last_full_round >= kUpgradeUdpDirectInterval;
}

void Paths::Impl::heartbeat(Instant now, Peer& p) {
  p.heartbeat_at.reset();
  if (!p.active(now) || !udp_to_peers() || p.expired) {   // best stays known, but nothing renews its trust
    p.searching_since.reset();
    return;
  }
  if (p.best) {
    send_ping(now, p, p.best->endpoint, PingPurpose::kHeartbeat);
    if (p.trusted(now) && !p.doubt_at && !p.doubted) {
      p.unanswered = 1;
      p.doubt_at = now + std::max(4 * p.best->latency, kDoubtAfterMin);
    }
  }
  if (wants_full_round(now, p)) full_round(now, p, true);
  p.heartbeat_at = now + kHeartbeatInterval;
}

// The peer's packets come another way than ours go. That may be its choice, or it moved and `best` leads nowhere: a ping tells
// before the next heartbeat does.
void Paths::Impl::came_otherwise(Instant now, Peer& p) {
  if (!p.trusted(now) || p.doubt_at || p.doubted || now < p.next_question || !udp_to_peers()) return;
  p.next_question = now + kHeartbeatInterval;
  send_ping(now, p, p.best->endpoint, PingPurpose::kHeartbeat);
  p.unanswered = 1;
  p.doubt_at = now + std::max(4 * p.best->latency, kDoubtAfterMin);
  reschedule(p);
}

// The last ping of the best address is overdue: once, ping again; twice, let the relay carry a copy and look around.
void Paths::Impl::check_doubt(Instant now, Peer& p) {
  p.doubt_at.reset();
  if (!p.best || p.doubted) return;
  if (p.unanswered < 2) {
    ++p.unanswered;
    send_ping(now, p, p.best->endpoint, PingPurpose::kHeartbeat);
    p.doubt_at = now + std::max(4 * p.best->latency, kDoubtAfterMin);
    return;
  }
  p.doubted = true;
  full_round(now, p, true);
}

void Paths::Impl::expire_pings(Instant now, Peer& p) {
  std::size_t gone = 0;
  bool best_silent = false;
  while (gone < p.sent.size() && now - p.sent[gone].at >= kPingTimeoutDuration) {
    if (p.best && p.sent[gone].to == p.best->endpoint && !p.trusted(now)) best_silent = true;
    ++gone;
  }
  p.sent.erase(p.sent.begin(), p.sent.begin() + static_cast<std::ptrdiff_t>(gone));
  if (best_silent) clear_best(p);
}

void Paths::Impl::peer_timeout(Instant now, Peer& p) {
  expire_pings(now, p);
  if (p.doubt_at && *p.doubt_at <= now) check_doubt(now, p);
  if (p.burst_at && *p.burst_at <= now) burst(now, p);
  if (p.heartbeat_at && *p.heartbeat_at <= now) heartbeat(now, p);
  reschedule(p);
}

void Paths::Impl::reschedule(Peer& p) {
  Instant at = Instant::max();
  for (const auto& t : {p.heartbeat_at, p.burst_at, p.doubt_at})
    if (t) at = std::min(at, *t);
  if (!p.sent.empty()) at = std::min(at, p.sent.front().at + kPingTimeoutDuration);
  timers.set(p.slot, at);
}

// ---- state changes ----

void Paths::Impl::clear_best(Peer& p) {
  if (!p.best) return;
  p.best.reset();
  distrust(p);
  report_path(p);
}

// What was good may be dead: the relay carries a copy until a pong says otherwise.
void Paths::Impl::distrust(Peer& p) {
  p.trust_until = {};
  p.unanswered = 0;
  p.doubt_at.reset();
  p.doubted = false;
}

// Everything learned about ways to the peer, except where they might be.
void Paths::Impl::forget_paths(Peer& p) {
  clear_best(p);
  for (Candidate& c : p.candidates) c.forget_history();
  p.next_round = {};
  p.last_full_round.reset();
}

void Paths::Impl::drop_dead_candidates(Instant now, Peer& p) {
  bool lost_best = false;
  std::erase_if(p.candidates, [&](const Candidate& c) {
    if (c.alive(now)) return false;
    lost_best |= p.best && p.best->endpoint == c.endpoint;
    return true;
  });
  if (lost_best) clear_best(p);
}

// Finds or makes the candidate; null when the peer has too many that cannot be dropped.
Candidate* Paths::Impl::add_candidate(Instant now, Peer& p, const Endpoint& e) {
  if (Candidate* c = p.find_candidate(e)) return c;
  if (p.candidates.size() >= kCandidatesPruneAbove) drop_dead_candidates(now, p);
  if (p.candidates.size() >= kCandidatesMax) {
    auto oldest = p.candidates.end();
    for (auto it = p.candidates.begin(); it != p.candidates.end(); ++it) {
      if (it->from_map || it->call_me_maybe || (p.best && p.best->endpoint == it->endpoint)) continue;
      if (oldest == p.candidates.end() || it->got_ping < oldest->got_ping) oldest = it;
    }
    if (oldest == p.candidates.end()) return nullptr;
    p.candidates.erase(oldest);
  }
  p.candidates.push_back({});
  p.candidates.back().endpoint = e;
  p.next_round = {};
  return &p.candidates.back();
}

// An open connection to the peer's home; else one on which it was heard; else its home, which must then be dialled.
void Paths::Impl::update_relay(Peer& p) {
  const bool home_known = p.home_region != 0 && region_known(p.home_region);
  const bool learned_known = p.learned_region != 0 && region_known(p.learned_region);
  std::optional<int> relay;
  if (home_known && connected_regions.contains(p.home_region)) relay = p.home_region;
  else if (learned_known && connected_regions.contains(p.learned_region)) relay = p.learned_region;
  else if (home_known) relay = p.home_region;
  else if (learned_known) relay = p.learned_region;
  if (relay == p.relay) return;
  p.relay = relay;
  report_path(p);
}

void Paths::Impl::update_relays() {
  for (auto& p : slots)
    if (p) update_relay(*p);
}

void Paths::Impl::report_path(Peer& p) {
  std::optional<Endpoint> direct;
  if (p.best) direct = p.best->endpoint;
  const bool same = direct == p.reported_direct && p.relay == p.reported_relay;
  // Relays of peers nobody talks to change silently.
  const bool matters = direct != p.reported_direct || p.last_send;
  p.reported_direct = direct;
  p.reported_relay = p.relay;
  if (!same && matters) events.push_back(PeerPathChanged{p.key, direct, p.relay, p.best ? p.best->latency : Duration(0)});
}

// ---- received messages ----

void Paths::Impl::on_ping_udp(Instant now, const wire::disco::Ping& ping, const DiscoPublic& sender, DiscoEntry& entry,
                              const Endpoint& source) {
  // Which node: the one the ping names if the map agrees, else the only one with this disco key.
  Peer* node = nullptr;
  for (std::uint32_t s : entry.slots)
    if (slots[s]->key == ping.node_key) node = slots[s].get();
  if (node == nullptr && entry.slots.size() == 1) node = slots[entry.slots[0]].get();

  for (std::uint32_t s : entry.slots) {
    Candidate* c = slots[s]->find_candidate(source);
    if (c != nullptr && c->got_ping && c->got_tx_id == ping.tx_id) return drop(Drop::kDiscoDuplicatePing);
  }
  const crypto::BoxKey* box = box_for(sender, entry);
  if (box == nullptr) return;
  const Bytes pong = seal(*box, wire::disco::encode_pong(ping.tx_id, source));
  ++counters.pongs_sent;
  sink.send_udp(source, pong, pong.size());

  const bool keep = !(source.address.is_v6() && source.address.is_link_local());
  for (std::uint32_t s : entry.slots) {
    Candidate* c = keep ? add_candidate(now, *slots[s], source) : nullptr;
    if (c == nullptr) continue;
    c->got_ping = now;
    c->got_tx_id = ping.tx_id;
    if (slots[s].get() == node) ping_back(now, *node, *c);
  }
  if (node != nullptr) index_source(*node, source);
  send_waiting_pings(now);
}

// An address that reaches us is probably one we can reach: ask at once instead of waiting for the next round. Of a peer
// that we do not send to, each address needs to be asked only once: a later send looks again anyway.
void Paths::Impl::ping_back(Instant now, Peer& p, Candidate& c) {
  if (p.expired || (c.last_pong && now - *c.last_pong <= kDiscoPingInterval)) return;
  if (c.last_ping && now - *c.last_ping < kPingBackSpacing) return;
  if (c.last_pong && !p.active(now)) return;
  if (now - p.ping_back_window >= 1s) {
    p.ping_back_window = now;
    p.ping_backs = 0;
  }
  if (p.ping_backs >= kPingBacksPerSecondMax) return;
  ++p.ping_backs;
  send_ping(now, p, c.endpoint, PingPurpose::kDiscovery);
  reschedule(p);
}

void Paths::Impl::on_ping_relay(Instant, const wire::disco::Ping& ping, const DiscoPublic& sender, DiscoEntry& entry,
                                int region, Peer& p) {
  const crypto::BoxKey* box = box_for(sender, entry);
  if (box == nullptr) return;
  ++counters.pongs_sent;
  sink.send_relay(region, p.key, seal(*box, wire::disco::encode_pong(ping.tx_id, wire::disco::relay_pseudo_endpoint(region))));
}

void Paths::Impl::on_pong(Instant now, const wire::disco::Pong& pong, DiscoEntry& entry, const Endpoint* source, int region) {
  Peer* p = nullptr;
  SentPing sent;
  for (std::uint32_t s : entry.slots) {
    auto& list = slots[s]->sent;
    auto it = std::find_if(list.begin(), list.end(), [&](const SentPing& x) { return x.tx_id == pong.tx_id; });
    if (it == list.end()) continue;
    p = slots[s].get();
    sent = *it;
    list.erase(it);
    break;
  }
  if (p == nullptr) return drop(Drop::kDiscoUnknownPong);
  const Duration latency = now - sent.at;
  reschedule(*p);
  // Over a relay a pong proves nothing about UDP; it only answers a person's ping.
  if (source == nullptr) {
    if (!sent.to.is_valid()) {
      sent.region = region;
      finish_cli_ping(sent, *p, latency);
    }
    return;
  }
  if (!sent.to.is_valid()) return drop(Drop::kDiscoUnknownPong);
  Candidate* c = p->find_candidate(sent.to);
  if (c == nullptr) return drop(Drop::kDiscoCandidateGone);
  index_source(*p, *source);
  c->last_pong = now;
  c->latency = latency;
  finish_cli_ping(sent, *p, latency);
  if (!udp_to_peers()) return;

  // What was pinged is what works: the pong itself may have come another way.
  const PathAddress confirmed{sent.to, std::nullopt, latency, sent.wire_mtu};
  if (!p->best || now > p->trust_until || better(confirmed, *p->best)) {
    if (!p->best || !p->best->same_way(confirmed)) {
      p->unanswered = 0;
      p->doubt_at.reset();
      p->doubted = false;
    }
    p->best = confirmed;
  }
  if (p->best->same_way(confirmed)) {
    p->best->latency = latency;
    p->trust_until = now + kTrustUdpAddrDuration;
    p->unanswered = 0;
    p->doubt_at.reset();
    p->doubted = false;
    p->burst_at.reset();
    reschedule(*p);
  }
  report_path(*p);
}

void Paths::Impl::on_call_me_maybe(Instant now, const wire::disco::CallMeMaybe& m, Peer& p) {
  // Endpoints of earlier lists that this one omits are withdrawn, even if the map has them too.
  std::vector<Endpoint> listed;
  for (const Endpoint& e : m.endpoints) {
    if (listed.size() >= kEndpointsTakenMax) break;
    if (is_usable_candidate(e)) listed.push_back(e);
  }
  auto is_listed = [&](const Endpoint& e) { return std::find(listed.begin(), listed.end(), e) != listed.end(); };
  bool lost_best = false;
  std::erase_if(p.candidates, [&](const Candidate& c) {
    if (!c.call_me_maybe || is_listed(c.endpoint)) return false;
    lost_best |= p.best && p.best->endpoint == c.endpoint;
    return true;
  });
  if (lost_best) clear_best(p);
  for (const Endpoint& e : listed)
    if (Candidate* c = add_candidate(now, p, e)) c->call_me_maybe = now;
  // Earlier pings met a closed filter; the peer has just opened it.
  for (Candidate& c : p.candidates) c.last_ping.reset();
  p.next_round = {};
  send_waiting_pings(now);
  full_round(now, p, false);   // never answered with a CallMeMaybe: two nodes would call each other for ever
  if (!p.trusted(now) && now - p.burst_start >= kBurstAgain) start_burst(now, p);
}

}  // namespace porthole::paths
