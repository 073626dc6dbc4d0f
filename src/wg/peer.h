// What the engine keeps about one peer. An idle peer is this struct and its prefix list; key pairs, pending handshakes and
// staged packets exist only while needed and are wiped when dropped.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "crypto/aead.h"
#include "wg/cookie.h"
#include "wg/noise.h"
#include "wg/prefix_table.h"
#include "wg/replay.h"
#include "wg/tunnel.h"

namespace porthole::wg {

// Keys of one session. `local_index` is the one we handed out: the peer puts it into what it sends.
struct KeyPair {
  KeyPair(const TransportKeys& keys, std::uint32_t local, std::uint32_t remote, bool as_initiator, Instant now)
      : seal(crypto::AeadKey::Direction::kSeal, keys.send.reveal()),
        open(crypto::AeadKey::Direction::kOpen, keys.receive.reveal()),
        local_index(local),
        remote_index(remote),
        initiator(as_initiator),
        created(now) {}

  crypto::AeadKey seal;
  crypto::AeadKey open;
  std::uint32_t local_index;
  std::uint32_t remote_index;
  bool initiator;  // we were; only the initiator rekeys on time
  Instant created;
  std::uint64_t send_counter = 0;  // next to use
  ReplayWindow replay;

  bool may_send(Instant now) const {
    return now - created < kRejectAfterTime && send_counter < kRejectAfterMessages;
  }
};

// One-shot timers of a peer.
// Those that are due at once, as after a sleep, fire in this order: keys too old are wiped first, not together with the
// handshake that another timer has just begun.
enum class Timer : std::uint8_t {
  kZero,        // no new session for a long time: wipe
  kRetransmit,  // no response yet: send another initiation
  kKeepalive,   // data came in and nothing went out: tell the peer that we are alive
  kNew,         // data went out and nothing came in: the session may be dead, make a new one
  kPersistent,
  kExpire,      // the oldest key pair reaches kRejectAfterTime
  kForget,      // newer initiations than the one answered are no longer waited for
  kCount
};
constexpr std::size_t kTimerCount = static_cast<std::size_t>(Timer::kCount);
constexpr Instant kNever = Instant::max();

struct Peer {
  PeerId id = kNoPeer;
  PeerKeys keys;

  // Sessions (paper 6.1 to 6.3). `next` is a session that we answered and the initiator has not confirmed yet.
  std::unique_ptr<KeyPair> previous, current, next;
  // Young pairs that the slots had no room for, oldest first; for receiving only. When both sides begin at once and repeat
  // themselves quickly over lossy or uneven paths, each may go on with a handshake that the other has moved past.
  std::vector<std::unique_ptr<KeyPair>> retired;
  // Initiations of ours that may still be answered, oldest first. Apart from the responder's side on purpose: when both
  // sides initiate at once, answering the peer must not cost us our own attempt.
  std::vector<std::unique_ptr<PendingInitiation>> pending;
  int attempts = 0;                       // retransmissions since the last fresh initiation
  std::optional<Instant> handshake_sent;  // last handshake message of either kind
  std::optional<Instant> initiation_accepted;
  Tai64n newest_stamp;  // highest accepted
  Tai64n sent_stamp;    // last sent; at least the node's newest when the peer was made
  CookieJar cookies;

  std::array<Instant, kTimerCount> timers;
  Instant heap_key = kNever;       // not later than any timer
  std::size_t heap_position = 0;
  Duration jitter{};               // drawn per handshake, for the 5 s and 15 s timers
  bool want_more = false;          // data came while the keepalive timer ran
  bool last_minute_sent = false;   // rekey-on-receive happened for this session
  Duration persistent_keepalive{};

  SessionState state = SessionState::kNone;
  bool had_session = false;

  // Packets that wait for a session.
  std::unique_ptr<std::deque<ByteVector>> staged;
  // They were also sent already, on a session that a newer response of the peer may replace any moment.
  bool staged_sent = false;

  std::vector<Prefix> allowed;
  std::unique_ptr<PrefixTable> allowed_table;  // instead of walking a long list
  IpAddress last_allowed;                      // newest inner source that passed

  std::uint64_t rx_bytes = 0, tx_bytes = 0, rx_packets = 0, tx_packets = 0;
  std::optional<Instant> last_handshake, last_received;
  WallTime last_handshake_wall;
  std::array<std::uint32_t, kDropCount> drops{};

  Peer() { timers.fill(kNever); }

  Instant& timer(Timer t) { return timers[static_cast<std::size_t>(t)]; }
  Instant timer(Timer t) const { return timers[static_cast<std::size_t>(t)]; }
  bool usable(Instant now) const { return current && current->may_send(now); }
};

// Peers by their next deadline: a binary heap of keys that may be too early (a timer that moves back leaves its key alone,
// which costs one look later instead of a reordering per packet) and are never too late.
class TimerHeap {
 public:
  void add(Peer& peer);
  void remove(Peer& peer);
  // `when` is a new timer of the peer.
  void lower(Peer& peer, Instant when);
  // The peer's key becomes the earliest of its timers.
  void refresh(Peer& peer);
  Peer* top() const { return heap_.empty() ? nullptr : heap_[0]; }

 private:
  void up(std::size_t i);
  void down(std::size_t i);
  void place(std::size_t i, Peer* p) {
    heap_[i] = p;
    p->heap_position = i;
  }
  std::vector<Peer*> heap_;
};

}  // namespace porthole::wg
