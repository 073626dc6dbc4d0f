#include "wg/tunnel.h"

#include <algorithm>

#include "base/assert.h"
#include "crypto/dh.h"
#include "wg/tunnel_impl.h"

namespace porthole::wg {

// ---- peers and tables

void Tunnel::Impl::set_private_key(Clock clock, const crypto::NodePrivate& key) {
  if (crypto::equal_secret(self_.key.reveal(), key.reveal())) return;
  self_ = Identity::of(key);
  if (Peer* ourselves = find(self_.shown)) remove_peer(*ourselves);
  for (const auto& slot : peers_) {
    if (!slot) continue;
    Peer& p = *slot;
    const crypto::SecretBytes<32> psk = p.keys.psk.duplicate();
    p.keys = PeerKeys::of(self_, p.keys.shown, psk.reveal());
    p.cookies.clear();
    wipe_sessions(p);
    drop_staged(p, Drop::kHandshakeFailed);
    p.handshake_sent.reset();
    p.had_session = false;
    arm(p, Timer::kZero, clock.now + kIdleWipeTime);
    update_state(clock.now, p);
  }
}

PeerId Tunnel::Impl::add_peer(Clock clock, const NodePublic& key, std::span<const Prefix> allowed,
                              const crypto::SecretBytes<32>* psk) {
  if (key.is_zero() || key == self_.shown) return kNoPeer;
  Peer* p = find(key);
  if (p == nullptr) {
    if (by_key_.size() >= kPeersMax) return kNoPeer;
    PeerId id;
    if (free_ids_.empty()) {
      id = static_cast<PeerId>(peers_.size());
      peers_.emplace_back();
    } else {
      id = free_ids_.back();
      free_ids_.pop_back();
    }
    peers_[id] = std::make_unique<Peer>();
    p = peers_[id].get();
    p->id = id;
    p->keys = PeerKeys::of(self_, key, psk != nullptr ? psk->reveal() : Bytes());
    p->sent_stamp = last_stamp_;
    p->jitter = jitter();
    if (const auto it = remembered_.find(key); it != remembered_.end()) p->newest_stamp = it->second;
    by_key_.emplace(key, id);
    timers_.add(*p);
    arm(*p, Timer::kZero, clock.now + kIdleWipeTime);
  } else if (psk != nullptr) {
    p->keys.psk = psk->duplicate();
  }
  set_allowed_ips(*p, allowed);
  return p->id;
}

void Tunnel::Impl::set_allowed_ips(Peer& peer, std::span<const Prefix> allowed) {
  constexpr std::size_t kWalkMax = 8;  // lists up to this long are walked
  for (const Prefix& p : peer.allowed) routes_.erase(p, peer.id);
  peer.allowed.assign(allowed.begin(), allowed.end());
  for (const Prefix& p : peer.allowed) routes_.set(p, peer.id);
  peer.allowed_table.reset();
  if (allowed.size() > kWalkMax) {
    peer.allowed_table = std::make_unique<PrefixTable>();
    for (const Prefix& p : allowed) peer.allowed_table->set(p, peer.id);
  }
  peer.last_allowed = {};
  route_cached_for_ = {};
}

void Tunnel::Impl::set_persistent_keepalive(Clock clock, Peer& peer, Duration interval) {
  peer.persistent_keepalive = interval;
  if (interval > Duration(0)) arm(peer, Timer::kPersistent, clock.now + interval);
  else cancel(peer, Timer::kPersistent);
}

void Tunnel::Impl::remove_peer(Peer& peer) {
  wipe_sessions(peer);
  drop_staged(peer, Drop::kHandshakeFailed);
  for (Slot& s : slots_) {
    if (s.peer == peer.id) s.peer = kNoPeer;
  }
  for (const Prefix& p : peer.allowed) routes_.erase(p, peer.id);
  route_cached_for_ = {};
  if (peer.newest_stamp != Tai64n()) {
    if (remembered_.insert_or_assign(peer.keys.shown, peer.newest_stamp).second) {
      remembered_order_.push_back(peer.keys.shown);
      if (remembered_order_.size() > kRememberedStampsMax) {
        remembered_.erase(remembered_order_.front());
        remembered_order_.pop_front();
      }
    }
  }
  timers_.remove(peer);
  by_key_.erase(peer.keys.shown);
  const PeerId id = peer.id;
  free_ids_.push_back(id);
  peers_[id].reset();
}

void Tunnel::Impl::set_stamps(const StampLease& lease) {
  stamps_until_ = lease.until;
  last_stamp_ = std::max(last_stamp_, lease.used);
  for (const auto& p : peers_) {
    if (p) p->sent_stamp = std::max(p->sent_stamp, last_stamp_);
  }
}

std::uint32_t Tunnel::Impl::new_index() {
  for (;;) {
    const std::uint32_t index = rng_.u32();
    if (!indices_.contains(index)) return index;
  }
}

// ---- the public face

Tunnel::Tunnel(Host& host, Rng& rng) : impl_(std::make_unique<Impl>(host, rng)) {}
Tunnel::~Tunnel() = default;

void Tunnel::set_private_key(Clock clock, const crypto::NodePrivate& key) { impl_->set_private_key(clock, key); }
const NodePublic& Tunnel::public_key() const { return impl_->self_.shown; }
PeerId Tunnel::add_peer(Clock clock, const NodePublic& key, std::span<const Prefix> allowed_ips,
                        const crypto::SecretBytes<32>* psk) {
  return impl_->add_peer(clock, key, allowed_ips, psk);
}
void Tunnel::set_allowed_ips(PeerId peer, std::span<const Prefix> allowed_ips) {
  impl_->set_allowed_ips(impl_->known(peer), allowed_ips);
}
void Tunnel::set_persistent_keepalive(Clock clock, PeerId peer, Duration interval) {
  impl_->set_persistent_keepalive(clock, impl_->known(peer), interval);
}
void Tunnel::remove_peer(Clock, PeerId peer) { impl_->remove_peer(impl_->known(peer)); }
void Tunnel::reset_session(Clock clock, PeerId peer) { impl_->reset_session(clock, impl_->known(peer)); }

std::size_t Tunnel::peer_count() const { return impl_->peer_count(); }
bool Tunnel::contains(PeerId peer) const { return impl_->peer(peer) != nullptr; }
std::optional<PeerId> Tunnel::find(const NodePublic& key) const {
  const Peer* p = impl_->find(key);
  if (p == nullptr) return std::nullopt;
  return p->id;
}
const NodePublic& Tunnel::key_of(PeerId peer) const { return impl_->known(peer).keys.shown; }
PeerId Tunnel::route(const IpAddress& destination) const { return impl_->route(destination); }

void Tunnel::handle_datagrams(Clock clock, std::span<const RecvDatagram> datagrams) { impl_->handle(clock, datagrams); }
void Tunnel::handle_relayed(Clock clock, int region, const NodePublic& source, MutBytes datagram) {
  impl_->handle_relayed(clock, RelaySource{region, source}, datagram);
}

MutBytes Tunnel::begin(std::size_t size_max) { return impl_->begin(size_max); }
void Tunnel::commit(Clock clock, std::size_t size) { impl_->commit(clock, size); }
void Tunnel::send(Clock clock, PeerId peer, Bytes packet) { impl_->send(clock, impl_->known(peer), packet); }
void Tunnel::flush(Clock clock) { impl_->flush(clock); }
bool Tunnel::has_staged(PeerId peer) const {
  const Peer& p = impl_->known(peer);
  return p.staged && !p.staged->empty() && !p.staged_sent;
}

SessionState Tunnel::state(PeerId peer) const { return impl_->known(peer).state; }
void Tunnel::start_handshake(Clock clock, PeerId peer) { impl_->start_handshake(clock, impl_->known(peer)); }
void Tunnel::renew_session(Clock clock, PeerId peer) { impl_->renew_session(clock, impl_->known(peer)); }
void Tunnel::retry_handshake(Clock clock, PeerId peer) { impl_->retry_handshake(clock, impl_->known(peer)); }

void Tunnel::handle_timeout(Clock clock) { impl_->handle_timeout(clock); }
Deadline Tunnel::next_timeout() const { return Deadline::at(impl_->next_timeout()); }

PeerStats Tunnel::stats(PeerId peer) const {
  const Peer& p = impl_->known(peer);
  PeerStats s;
  s.state = p.state;
  s.rx_bytes = p.rx_bytes;
  s.tx_bytes = p.tx_bytes;
  s.rx_packets = p.rx_packets;
  s.tx_packets = p.tx_packets;
  s.last_handshake = p.last_handshake;
  s.last_handshake_wall = p.last_handshake_wall;
  s.last_received = p.last_received;
  s.staged = p.staged && !p.staged_sent ? p.staged->size() : 0;
  s.drops = p.drops;
  return s;
}
const Counters& Tunnel::counters() const { return impl_->counters_; }
Tai64n Tunnel::last_stamp() const { return impl_->last_stamp_; }
void Tunnel::set_stamps(const StampLease& lease) { impl_->set_stamps(lease); }

}  // namespace porthole::wg
