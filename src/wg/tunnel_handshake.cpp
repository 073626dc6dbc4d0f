// Handshake messages, key slots and timers. The timer machine in words (paper 6):
//
// An initiation that gets no response is sent again every 5 s and a little, 20 times in all. Whoever initiated a session
// makes a new one when it sends on keys older than 120 s, or receives on keys older than 165 s (once). Keys are dead after
// 180 s. Who got data and had nothing to say for 10 s sends a keepalive. Who sent data and heard nothing for 15 s makes a
// new session. After 540 s without a new session everything is wiped.
#include <algorithm>

#include "base/assert.h"
#include "crypto/dh.h"
#include "wg/tunnel_impl.h"

namespace porthole::wg {

// ---- starting

void Tunnel::Impl::start_handshake(Clock clock, Peer& peer) {
  if (peer.usable(clock.now) || peer.timer(Timer::kRetransmit) != kNever) return;
  send_initiation(clock, peer, Attempt::kFresh);
}

void Tunnel::Impl::retry_handshake(Clock clock, Peer& peer) {
  if (!peer.usable(clock.now)) renew_session(clock, peer);
}

void Tunnel::Impl::renew_session(Clock clock, Peer& peer) {
  if (peer.timer(Timer::kRetransmit) == kNever) peer.attempts = 0;
  send_initiation(clock, peer, Attempt::kForced);
}

void Tunnel::Impl::send_initiation(Clock clock, Peer& peer, Attempt attempt) {
  if (self_.key.is_zero() || !peer.keys.usable) return;
  if (attempt == Attempt::kFresh) peer.attempts = 0;
  if (attempt != Attempt::kForced && peer.handshake_sent && clock.now - *peer.handshake_sent < kRekeyTimeout) {
    // Too soon, perhaps because we answered a moment ago. Nobody else would remind us, so the timer does.
    if (peer.timer(Timer::kRetransmit) == kNever) arm(peer, Timer::kRetransmit, *peer.handshake_sent + kRekeyTimeout);
    return;
  }
  Tai64n stamp = Tai64n::from_wall(clock.wall);
  if (stamp <= peer.sent_stamp || (stamps_until_ && stamp > *stamps_until_)) stamp = peer.sent_stamp.next();

  std::uint8_t message[kInitiationSize];
  crypto::NodePrivate ephemeral = crypto::NodePrivate::generate(rng_);
  auto built = build_initiation(self_, peer.keys, std::move(ephemeral), new_index(), stamp, message);
  if (!built) return;
  peer.sent_stamp = stamp;
  last_stamp_ = std::max(last_stamp_, stamp);
  if (peer.pending.size() >= kPendingInitiationsMax) {
    indices_.erase(peer.pending.front()->index);
    peer.pending.erase(peer.pending.begin());
  }
  indices_[built->index] = {peer.id, nullptr};
  peer.pending.push_back(std::make_unique<PendingInitiation>(std::move(*built)));

  ++counters_.initiations_sent;
  transmit_handshake(clock, peer, message);
  peer.jitter = jitter();
  arm(peer, Timer::kRetransmit, clock.now + kRekeyTimeout + peer.jitter);
  update_state(clock.now, peer);
}

void Tunnel::Impl::transmit_handshake(Clock clock, Peer& peer, MutBytes message) {
  peer.cookies.sign(clock.now, peer.keys, message);
  peer.handshake_sent = clock.now;
  traversal(clock.now, peer);
  any_sent(peer);
  peer.tx_bytes += message.size();
  host_.transmit(peer.id, message, message.size());
}

// ---- receiving

bool Tunnel::Impl::admit_under_load(Clock clock, const Source& source, Bytes message) {
  if (!check_mac1(self_.mac1_key, message)) {
    count_drop(Drop::kBadMac1);
    return false;
  }
  if (!load_.count(clock.now)) return true;
  if (!cookie_maker_.check(clock.now, source, message)) {
    count_drop(Drop::kUnderLoad);
    ++counters_.cookie_replies_sent;
    host_.reply(source, cookie_maker_.make_reply(clock.now, rng_, self_.cookie_key, source, message));
    return false;
  }
  if (!limiter_.allow(clock.now, source)) {
    count_drop(Drop::kRateLimited);
    return false;
  }
  return true;
}

void Tunnel::Impl::handle_initiation(Clock clock, const Source& source, Bytes message) {
  if (!admit_under_load(clock, source, message)) return;
  auto claimed = open_initiation(self_, message);
  if (!claimed) return count_drop(Drop::kBadHandshake);
  if (claimed->static_key == self_.shown) return count_drop(Drop::kUnknownPeer);

  // A stranger proves its key before the node is asked about it: anyone can claim one.
  Peer* peer = find(claimed->static_key);
  std::optional<Tai64n> stamp;
  if (peer != nullptr) {
    if (peer->keys.usable) stamp = open_stamp(*claimed, peer->keys.static_static.reveal(), message);
  } else {
    crypto::SecretBytes<32> shared;
    if (crypto::x25519(self_.key.reveal(), claimed->static_key.bytes(), shared)) {
      stamp = open_stamp(*claimed, shared.reveal(), message);
    }
  }
  if (!stamp) return count_drop(Drop::kBadHandshake, peer);
  if (peer == nullptr) {
    const auto remembered = remembered_.find(claimed->static_key);
    if (remembered != remembered_.end() && *stamp <= remembered->second) return count_drop(Drop::kReplayedStamp);
    if (!host_.admit(claimed->static_key)) return count_drop(Drop::kUnknownPeer);
    peer = find(claimed->static_key);
    if (peer == nullptr) return count_drop(Drop::kUnknownPeer);
  }
  if (*stamp <= peer->newest_stamp) return count_drop(Drop::kReplayedStamp, peer);
  if (peer->initiation_accepted && clock.now - *peer->initiation_accepted <= kHandshakeInitiationRate) {
    return count_drop(Drop::kRateLimited, peer);
  }

  // Authentic and new: only now anything changes.
  peer->newest_stamp = *stamp;
  peer->initiation_accepted = clock.now;
  peer->rx_bytes += message.size();
  ++counters_.initiations_accepted;
  report_source(*peer, source);
  traversal(clock.now, *peer);
  any_received(clock.now, *peer);
  send_response(clock, *peer, *claimed);
}

void Tunnel::Impl::send_response(Clock clock, Peer& peer, const ClaimedInitiation& claimed) {
  std::uint8_t message[kResponseSize];
  const crypto::NodePrivate ephemeral = crypto::NodePrivate::generate(rng_);
  const std::uint32_t index = new_index();
  const auto keys = build_response(claimed, peer.keys, ephemeral, index, message);
  if (!keys) return count_drop(Drop::kBadHandshake, &peer);
  install_as_responder(clock, peer, std::make_unique<KeyPair>(*keys, index, claimed.sender_index, false, clock.now));
  transmit_handshake(clock, peer, message);
}

void Tunnel::Impl::handle_response(Clock clock, const Source& source, Bytes message) {
  if (!admit_under_load(clock, source, message)) return;
  const std::uint32_t remote = load_le<std::uint32_t>(message.data() + 4);
  const std::uint32_t local = load_le<std::uint32_t>(message.data() + 8);
  const auto entry = indices_.find(local);
  if (entry == indices_.end() || entry->second.pair != nullptr) return count_drop(Drop::kUnknownIndex);
  Peer& p = known(entry->second.peer);
  const auto answered = std::find_if(p.pending.begin(), p.pending.end(), [local](const auto& i) { return i->index == local; });
  PORTHOLE_ASSERT(answered != p.pending.end());
  const auto keys = consume_response(self_, p.keys, **answered, message);
  if (!keys) return count_drop(Drop::kBadHandshake, &p);

  // Older initiations are void. Newer ones stay: the peer may have answered them too, and then uses those keys.
  for (auto it = p.pending.begin(); it != answered; ++it) indices_.erase((*it)->index);
  p.pending.erase(p.pending.begin(), answered + 1);

  p.rx_bytes += message.size();
  report_source(p, source);
  traversal(clock.now, p);
  any_received(clock.now, p);
  install_as_initiator(clock, p, std::make_unique<KeyPair>(*keys, local, remote, true, clock.now));
  handshake_complete(clock, p);
  session_ready(clock, p);
  // The responder may send only after it heard from us on the new keys.
  if (p.usable(clock.now) && p.current->send_counter == 0) keepalive(clock, p);
}

void Tunnel::Impl::handle_cookie_reply(Clock clock, Bytes message) {
  const auto entry = indices_.find(load_le<std::uint32_t>(message.data() + 4));
  if (entry == indices_.end()) return count_drop(Drop::kUnknownIndex);
  Peer& p = known(entry->second.peer);
  if (!p.cookies.accept(clock.now, p.keys, message)) return count_drop(Drop::kBadCookie, &p);
  ++counters_.cookies_received;  // the next retransmission carries it
}

// ---- key slots (paper 6.3)

void Tunnel::Impl::drop_pair(std::unique_ptr<KeyPair>& slot) {
  if (!slot) return;
  indices_.erase(slot->local_index);
  slot.reset();
}

void Tunnel::Impl::retire(Instant now, Peer& p, std::unique_ptr<KeyPair>& slot) {
  if (!slot || now - slot->created > kRetiredAgeMax) return drop_pair(slot);
  if (p.retired.size() >= kRetiredPairsMax) {
    drop_pair(p.retired.front());
    p.retired.erase(p.retired.begin());
  }
  p.retired.push_back(std::move(slot));
}

void Tunnel::Impl::install_as_initiator(Clock clock, Peer& p, std::unique_ptr<KeyPair> pair) {
  indices_[pair->local_index] = {p.id, pair.get()};
  retire(clock.now, p, p.previous);
  if (p.next) {
    retire(clock.now, p, p.current);
    p.previous = std::move(p.next);
  } else {
    p.previous = std::move(p.current);
  }
  p.current = std::move(pair);
  arm(p, Timer::kZero, clock.now + kIdleWipeTime);
  arm_expiry(p);
}

void Tunnel::Impl::install_as_responder(Clock clock, Peer& p, std::unique_ptr<KeyPair> pair) {
  indices_[pair->local_index] = {p.id, pair.get()};
  retire(clock.now, p, p.previous);
  // An initiator that repeats itself quickly uses the answer that arrives first, which may be that to its earlier
  // initiation. What it sends until it has the second one can be read all the same.
  p.previous = std::move(p.next);
  p.next = std::move(pair);
  arm(p, Timer::kZero, clock.now + kIdleWipeTime);
  arm_expiry(p);
}

// The initiator confirmed `next` by using it.
void Tunnel::Impl::promote(Clock clock, Peer& p) {
  retire(clock.now, p, p.previous);
  p.previous = std::move(p.current);
  p.current = std::move(p.next);
  handshake_complete(clock, p);
  session_ready(clock, p);
}

void Tunnel::Impl::handshake_complete(Clock clock, Peer& p) {
  cancel(p, Timer::kRetransmit);
  p.attempts = 0;
  p.last_minute_sent = false;
  p.last_handshake = clock.now;
  p.last_handshake_wall = clock.wall;
  p.had_session = true;
  ++counters_.handshakes_completed;
  if (!p.pending.empty()) arm(p, Timer::kForget, clock.now + kRekeyTimeout);
}

void Tunnel::Impl::session_ready(Clock clock, Peer& p) {
  update_state(clock.now, p, true);
  flush_staged(clock, p);
}

void Tunnel::Impl::drop_pending(Peer& p) {
  for (const auto& i : p.pending) indices_.erase(i->index);
  p.pending.clear();
}

void Tunnel::Impl::wipe_sessions(Peer& p) {
  drop_pair(p.previous);
  drop_pair(p.current);
  drop_pair(p.next);
  for (auto& pair : p.retired) drop_pair(pair);
  p.retired.clear();
  drop_pending(p);
  p.attempts = 0;
  p.want_more = p.last_minute_sent = false;
  for (const Timer t : {Timer::kRetransmit, Timer::kKeepalive, Timer::kNew, Timer::kExpire, Timer::kForget}) cancel(p, t);
}

void Tunnel::Impl::reset_session(Clock clock, Peer& p) {
  wipe_sessions(p);
  p.handshake_sent.reset();
  p.had_session = false;
  p.staged_sent = false;
  arm(p, Timer::kZero, clock.now + kIdleWipeTime);
  update_state(clock.now, p);
  if (p.staged) start_handshake(clock, p);
}

void Tunnel::Impl::update_state(Instant now, Peer& p, bool announce_again) {
  SessionState s = SessionState::kNone;
  if (p.usable(now)) s = SessionState::kEstablished;
  else if (!p.pending.empty() && p.timer(Timer::kRetransmit) != kNever) s = SessionState::kHandshaking;
  else if (p.had_session) s = SessionState::kExpired;
  if (s == p.state && !announce_again) return;
  p.state = s;
  host_.session(p.id, s);
}

// ---- timers

void Tunnel::Impl::arm(Peer& p, Timer t, Instant when) {
  p.timer(t) = when;
  timers_.lower(p, when);
}

void Tunnel::Impl::traversal(Instant now, Peer& p) {
  if (p.persistent_keepalive > Duration(0)) arm(p, Timer::kPersistent, now + p.persistent_keepalive);
}

void Tunnel::Impl::data_sent(Instant now, Peer& p) {
  if (p.timer(Timer::kNew) == kNever) arm(p, Timer::kNew, now + kKeepaliveTimeout + kRekeyTimeout + p.jitter);
}

void Tunnel::Impl::data_received(Instant now, Peer& p) {
  if (p.timer(Timer::kKeepalive) != kNever) p.want_more = true;
  else arm(p, Timer::kKeepalive, now + kKeepaliveTimeout);
}

void Tunnel::Impl::arm_expiry(Peer& p) {
  Instant oldest = kNever;
  for (const auto* slot : {&p.previous, &p.current, &p.next}) {
    if (*slot) oldest = std::min(oldest, (*slot)->created);
  }
  for (const auto& pair : p.retired) oldest = std::min(oldest, pair->created);
  if (oldest == kNever) cancel(p, Timer::kExpire);
  else arm(p, Timer::kExpire, oldest + kRejectAfterTime);
}

void Tunnel::Impl::drop_expired_pairs(Instant now, Peer& p) {
  for (auto* slot : {&p.previous, &p.current, &p.next}) {
    if (*slot && now - (*slot)->created >= kRejectAfterTime) drop_pair(*slot);
  }
  std::erase_if(p.retired, [&](std::unique_ptr<KeyPair>& pair) {
    if (now - pair->created < kRejectAfterTime) return false;
    drop_pair(pair);
    return true;
  });
}

void Tunnel::Impl::handle_timeout(Clock clock) {
  for (;;) {
    Peer* p = timers_.top();
    if (p == nullptr || p->heap_key > clock.now) return;
    for (std::size_t i = 0; i < kTimerCount; ++i) {
      if (p->timers[i] > clock.now) continue;
      p->timers[i] = kNever;
      fire(clock, *p, static_cast<Timer>(i));
    }
    timers_.refresh(*p);
  }
}

void Tunnel::Impl::fire(Clock clock, Peer& p, Timer t) {
  switch (t) {
    case Timer::kRetransmit:
      if (p.attempts > kMaxTimerHandshakes) {
        cancel(p, Timer::kKeepalive);
        drop_staged(p, Drop::kHandshakeFailed);
        drop_pending(p);
        if (p.timer(Timer::kZero) == kNever) arm(p, Timer::kZero, clock.now + kIdleWipeTime);
        update_state(clock.now, p);
        return;
      }
      ++p.attempts;
      send_initiation(clock, p, Attempt::kRetry);
      return;
    case Timer::kKeepalive:
      keepalive(clock, p);
      if (p.want_more) {
        p.want_more = false;
        arm(p, Timer::kKeepalive, clock.now + kKeepaliveTimeout);
      }
      return;
    case Timer::kNew:
      send_initiation(clock, p, Attempt::kFresh);
      return;
    case Timer::kZero:
      wipe_sessions(p);
      p.handshake_sent.reset();
      drop_staged(p, Drop::kHandshakeFailed);
      p.cookies.clear();
      p.had_session = false;
      update_state(clock.now, p, true);
      return;
    case Timer::kPersistent:
      if (p.persistent_keepalive <= Duration(0)) return;
      arm(p, Timer::kPersistent, clock.now + p.persistent_keepalive);
      if (p.usable(clock.now)) keepalive(clock, p);
      else start_handshake(clock, p);
      return;
    case Timer::kExpire:
      drop_expired_pairs(clock.now, p);
      arm_expiry(p);
      update_state(clock.now, p);
      return;
    case Timer::kForget:
      if (p.timer(Timer::kRetransmit) != kNever) return;  // the next handshake has begun: these are its initiations
      if (p.pending.empty()) return;
      drop_pending(p);
      // The peer may have moved on to an answer of its own that was lost. Unanswered data says so.
      if (p.timer(Timer::kNew) != kNever) send_initiation(clock, p, Attempt::kFresh);
      return;
    case Timer::kCount:
      break;
  }
}

}  // namespace porthole::wg
