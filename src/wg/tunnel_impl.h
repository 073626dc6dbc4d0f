// The inside of Tunnel. Split by what it does: tunnel.cpp peers and tables, tunnel_handshake.cpp sessions and timers,
// tunnel_data.cpp packets.
#pragma once

#include <deque>
#include <map>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/assert.h"
#include "wg/peer.h"

namespace porthole::wg {

// Zero-padded plaintext size (paper 5.4.6): a multiple of kPaddingMultiple, never above the tunnel MTU (0: no limit).
std::size_t padded_size(std::size_t size, std::size_t mtu);

// The size of the IP packet at the front of a decrypted payload; 0 if there is none.
std::size_t ip_packet_size(Bytes payload);

class Tunnel::Impl {
 public:
  Impl(Host& host, Rng& rng) : host_(host), rng_(rng) { slots_.reserve(kRunSegmentsMax); }

  // ---- peers (tunnel.cpp)
  void set_private_key(Clock clock, const crypto::NodePrivate& key);
  PeerId add_peer(Clock clock, const NodePublic& key, std::span<const Prefix> allowed, const crypto::SecretBytes<32>* psk);
  void set_allowed_ips(Peer& peer, std::span<const Prefix> allowed);
  void set_persistent_keepalive(Clock clock, Peer& peer, Duration interval);
  void remove_peer(Peer& peer);
  Peer* peer(PeerId id) const { return id < peers_.size() ? peers_[id].get() : nullptr; }
  Peer& known(PeerId id) const {
    Peer* p = peer(id);
    PORTHOLE_ASSERT(p != nullptr);
    return *p;
  }
  Peer* find(const NodePublic& key) const {
    const auto it = by_key_.find(key);
    return it == by_key_.end() ? nullptr : peer(it->second);
  }
  PeerId route(const IpAddress& destination) const { return routes_.lookup(destination, kNoPeer); }
  std::size_t peer_count() const { return by_key_.size(); }

  // ---- sessions and timers (tunnel_handshake.cpp)
  enum class Attempt { kFresh, kRetry, kForced };
  void start_handshake(Clock clock, Peer& peer);
  void retry_handshake(Clock clock, Peer& peer);
  void renew_session(Clock clock, Peer& peer);
  void reset_session(Clock clock, Peer& peer);
  void handle_timeout(Clock clock);
  Instant next_timeout() const {
    const Peer* top = timers_.top();
    return top == nullptr ? kNever : top->heap_key;
  }

  // ---- packets (tunnel_data.cpp)
  void handle(Clock clock, std::span<const RecvDatagram> datagrams);
  void handle_relayed(Clock clock, const RelaySource& source, MutBytes datagram);
  MutBytes begin(std::size_t size_max);
  void commit(Clock clock, std::size_t size);
  void send(Clock clock, Peer& peer, Bytes packet);
  void flush(Clock clock);

  Identity self_;
  Counters counters_;
  Tai64n last_stamp_;
  std::optional<Tai64n> stamps_until_;

  void set_stamps(const StampLease& lease);

 private:
  // Handshake messages.
  void handle_initiation(Clock clock, const Source& source, Bytes message);
  void handle_response(Clock clock, const Source& source, Bytes message);
  void handle_cookie_reply(Clock clock, Bytes message);
  bool admit_under_load(Clock clock, const Source& source, Bytes message);
  void send_initiation(Clock clock, Peer& peer, Attempt attempt);
  void send_response(Clock clock, Peer& peer, const ClaimedInitiation& claimed);
  void transmit_handshake(Clock clock, Peer& peer, MutBytes message);
  void install_as_initiator(Clock clock, Peer& peer, std::unique_ptr<KeyPair> pair);
  void install_as_responder(Clock clock, Peer& peer, std::unique_ptr<KeyPair> pair);
  void promote(Clock clock, Peer& peer);
  void handshake_complete(Clock clock, Peer& peer);
  void session_ready(Clock clock, Peer& peer);
  void drop_pair(std::unique_ptr<KeyPair>& slot);
  // Empties the slot: a young pair stays readable among the retired ones.
  void retire(Instant now, Peer& p, std::unique_ptr<KeyPair>& slot);
  void drop_pending(Peer& peer);
  void wipe_sessions(Peer& peer);
  void update_state(Instant now, Peer& peer, bool announce_again = false);

  // Timers and the hooks that move them.
  void arm(Peer& peer, Timer t, Instant when);
  void cancel(Peer& peer, Timer t) { peer.timer(t) = kNever; }
  void fire(Clock clock, Peer& peer, Timer t);
  void arm_expiry(Peer& peer);
  void drop_expired_pairs(Instant now, Peer& peer);
  Duration jitter() { return rng_.between(Duration(0), kRekeyTimeoutJitterMax); }
  void traversal(Instant now, Peer& peer);
  void any_sent(Peer& peer) { cancel(peer, Timer::kKeepalive); }
  void any_received(Instant now, Peer& peer) {
    cancel(peer, Timer::kNew);
    peer.last_received = now;
  }
  void data_sent(Instant now, Peer& peer);
  void data_received(Instant now, Peer& peer);

  // Data path.
  void handle_one(Clock clock, const Source& source, MutBytes datagram);
  void handle_transport(Clock clock, const Source& source, MutBytes datagram);
  void open_group(Clock clock);
  bool source_allowed(Peer& peer, Bytes packet);
  void report_source(Peer& peer, const Source& source);
  void end_batch(Clock clock);
  void append_slot(Clock clock, Peer& peer, Bytes packet);
  void finish_slot(Clock clock, PeerId peer, std::size_t size);
  void seal_slots(Clock clock, Peer& peer, std::size_t from, std::size_t to);
  void keepalive(Clock clock, Peer& peer);
  void stage(Peer& peer, Bytes packet);
  void flush_staged(Clock clock, Peer& peer);
  void drop_staged(Peer& peer, Drop reason);

  void count_drop(Drop reason, Peer* peer = nullptr) {
    ++counters_.drops[static_cast<std::size_t>(reason)];
    if (peer != nullptr) ++peer->drops[static_cast<std::size_t>(reason)];
  }
  std::uint32_t new_index();

  Host& host_;
  Rng& rng_;

  std::vector<std::unique_ptr<Peer>> peers_;
  std::vector<PeerId> free_ids_;
  std::unordered_map<NodePublic, PeerId> by_key_;
  PrefixTable routes_;
  TimerHeap timers_;

  // Every index of ours that is alive. `pair` is null while it stands for a pending initiation.
  struct IndexEntry {
    PeerId peer = kNoPeer;
    KeyPair* pair = nullptr;
  };
  std::unordered_map<std::uint32_t, IndexEntry> indices_;

  // Highest stamps of removed peers, so that an old recorded initiation does not bring them back.
  std::map<NodePublic, Tai64n> remembered_;
  std::deque<NodePublic> remembered_order_;

  CookieMaker cookie_maker_;
  LoadMeter load_;
  SourceLimiter limiter_;

  // Receive scratch: consecutive transport messages of one key pair are opened together.
  KeyPair* group_pair_ = nullptr;
  Peer* group_peer_ = nullptr;
  std::size_t group_size_ = 0;
  std::array<crypto::AeadJob, kOpenBatchMax> jobs_;
  std::array<Source, kOpenBatchMax> sources_;
  std::array<std::pair<PeerId, Source>, kReportedSourcesMax> reported_;
  std::size_t reported_size_ = 0;

  // Send arena: datagrams back to back, header and padding written when sealed.
  struct Slot {
    PeerId peer;
    std::uint32_t offset;
    std::uint32_t wire_size;
    std::uint32_t packet_size;
  };
  std::unique_ptr<std::uint8_t[]> arena_;
  std::size_t arena_used_ = 0;
  std::vector<Slot> slots_;
  std::size_t begun_ = 0;  // room promised by begin()
  std::size_t staged_total_ = 0;
  IpAddress route_cached_for_;
  PeerId route_cached_ = kNoPeer;
};

}  // namespace porthole::wg
