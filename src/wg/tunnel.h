// The WireGuard engine: handshakes, keys, timers, crypto routing and the sealed data path for all peers of one node.
// No sockets, no clock, no entropy: datagrams and time come in, datagrams, packets and events go out through Host.
//
// Sources: "WireGuard: Next Generation Kernel Network Tunnel" (the paper), sections in comments; the profile that
// Tailscale clients use (no pre-shared key, no roaming inside WireGuard, peers created on demand). Addresses belong to
// the path layer: the engine says "send this to peer P" and reports where authentic messages came from.
//
// Threading: one thread at a time. Times must not go backwards. Callbacks run synchronously inside the call that caused
// them; what they may call back is said at each; const members are always allowed. Everything else is off limits inside a callback.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <variant>

#include "base/datagram.h"
#include "base/ip.h"
#include "base/key.h"
#include "base/rng.h"
#include "base/time.h"
#include "crypto/secret.h"
#include "wg/tai64n.h"

namespace porthole::wg {

// Dense handle of a peer; a number is used again only after its peer was removed.
using PeerId = std::uint32_t;
constexpr PeerId kNoPeer = 0xffffffff;

// Where a message came from.
struct RelaySource {
  int region = 0;
  NodePublic key;  // as asserted by the relay
  friend auto operator<=>(const RelaySource&, const RelaySource&) = default;
};
using Source = std::variant<Endpoint, RelaySource>;

enum class SessionState : std::uint8_t {
  kNone,         // no keys, nothing under way
  kHandshaking,  // no usable keys, an initiation of ours is pending
  kEstablished,  // packets can be sent
  kExpired,      // the last keys are older than kRejectAfterTime and nothing is under way
};

// Why something was discarded. Counted for the node, and for the peer where one is known.
enum class Drop : std::uint8_t {
  kMalformed,         // length or reserved bytes
  kUnknownType,
  kNoPrivateKey,      // logged out
  kBadMac1,
  kUnderLoad,         // refused with a cookie reply
  kRateLimited,       // too many handshakes from one source, or from one peer
  kUnknownIndex,
  kBadHandshake,      // did not authenticate, or a low-order point
  kUnknownPeer,       // initiation from a key that is no peer
  kReplayedStamp,     // TAI64N not newer than the last accepted one
  kBadCookie,
  kExpiredKey,
  kBadTag,            // transport message that does not open
  kReplayed,          // counter seen before or too old; routine while two paths carry the same datagram
  kBadPacket,         // decrypted to something that is no IP packet
  kDisallowedSource,  // inner source address outside the peer's allowed IPs
  kNoRoute,           // outbound, no peer owns the destination
  kStagingFull,       // outbound, waited for a session and was displaced
  kHandshakeFailed,   // outbound, waited for a session that never came
  kOversize,          // outbound, above the tunnel's packet size
  kCount
};
constexpr std::size_t kDropCount = static_cast<std::size_t>(Drop::kCount);

struct PeerStats {
  SessionState state = SessionState::kNone;
  std::uint64_t rx_bytes = 0;  // authentic WireGuard bytes, headers included
  std::uint64_t tx_bytes = 0;
  std::uint64_t rx_packets = 0;  // inner packets delivered
  std::uint64_t tx_packets = 0;  // inner packets sealed
  std::optional<Instant> last_handshake;  // completion of the newest one
  WallTime last_handshake_wall;           // same moment; epoch when never
  std::optional<Instant> last_received;   // newest authentic message
  std::size_t staged = 0;
  std::array<std::uint32_t, kDropCount> drops{};
};

struct Counters {
  std::array<std::uint64_t, kDropCount> drops{};
  std::uint64_t initiations_sent = 0;
  std::uint64_t initiations_accepted = 0;
  std::uint64_t handshakes_completed = 0;  // either role: usable for sending
  std::uint64_t cookie_replies_sent = 0;
  std::uint64_t cookies_received = 0;
};

// Implemented by the node.
class Host {
 public:
  virtual ~Host() = default;
  // An authentic static key asks for a session and is no peer yet. May call add_peer(key, ...); true if it did.
  virtual bool admit(const NodePublic& key) = 0;
  // Sealed datagrams for one peer: contiguous, `segment_size` bytes each, the last may be shorter; at most kRunSegmentsMax
  // segments and kRunBytesMax bytes, so that they can leave in one system call, with 8 bytes of encapsulation each.
  // Byte 0 tells handshake messages (1, 2) from transport (4). Valid during the call only. Must not call back.
  virtual void transmit(PeerId peer, Bytes run, std::size_t segment_size) = 0;
  // A cookie reply (64 bytes, in answer to 92 or 148): to exactly where the message came from. Must not call back.
  virtual void reply(const Source& to, Bytes datagram) = 0;
  // Decrypted inner IP packets in arrival order, trimmed to the IP length, inner source checked. The bytes lie in the
  // buffer handed to handle_datagrams / handle_relayed. May call begin, commit, flush and send.
  virtual void deliver(PeerId peer, std::span<const MutBytes> packets) = 0;
  // An authentic message of this peer arrived from `source`; at most once per batch and source, before its packets are
  // delivered and before a response is transmitted. Says nothing about the path being better. Must not call back.
  virtual void authenticated(PeerId peer, const Source& source) = 0;
  // A transport message came for a session that does not exist here: its sender may hold one that we had before a restart.
  // Nothing of it is authentic; kUnknownIndex counts it. Must not call back.
  virtual void stray(const Source& source) = 0;
  // State changes; kEstablished also for every new key pair, before staged packets leave, so that what is sent from
  // inside this call goes first. kNone comes when all keys were wiped (kIdleWipeTime without a new session, reset, key
  // change), also for a peer that never had a session: the moment to remove on-demand peers (afterwards, not inside).
  // May call begin, commit, flush and send.
  virtual void session(PeerId peer, SessionState state) = 0;
};

class Tunnel {
 public:
  // Both must outlive the tunnel. `rng` must be a CSPRNG outside tests.
  Tunnel(Host& host, Rng& rng);
  ~Tunnel();
  Tunnel(const Tunnel&) = delete;
  Tunnel& operator=(const Tunnel&) = delete;

  // ---- identity and peers

  // A zero key means logged out: everything that arrives is dropped. Another key ends all sessions and removes a peer
  // that has become ourselves.
  void set_private_key(Clock clock, const crypto::NodePrivate& key);
  const NodePublic& public_key() const;

  // Adds a peer, or updates it when the key is one already. kNoPeer for our own key, a zero key, or kPeersMax peers.
  PeerId add_peer(Clock clock, const NodePublic& key, std::span<const Prefix> allowed_ips,
                  const crypto::SecretBytes<32>* psk = nullptr);
  // Replaces the peer's list. A prefix that another peer holds moves to this one for outbound routing (the last writer
  // wins); inbound, each peer is held to its own list only.
  void set_allowed_ips(PeerId peer, std::span<const Prefix> allowed_ips);
  // Off by default; zero switches it off again.
  void set_persistent_keepalive(Clock clock, PeerId peer, Duration interval);
  // Packets stop at once, keys are wiped; the highest TAI64N stamp accepted from it stays known.
  void remove_peer(Clock clock, PeerId peer);
  // Forgets keys and pending handshakes (the peer restarted); staged packets stay and start a new handshake.
  void reset_session(Clock clock, PeerId peer);

  std::size_t peer_count() const;
  bool contains(PeerId peer) const;
  std::optional<PeerId> find(const NodePublic& key) const;
  const NodePublic& key_of(PeerId peer) const;
  // Longest prefix over all peers; kNoPeer when none.
  PeerId route(const IpAddress& destination) const;

  // ---- receiving. The bytes are decrypted in place.

  void handle_datagrams(Clock clock, std::span<const RecvDatagram> datagrams);
  void handle_relayed(Clock clock, int region, const NodePublic& source, MutBytes datagram);

  // ---- sending: a burst is written packet by packet into one arena, sealed in place, and leaves as runs.

  // Room for one inner packet of up to `size_max` bytes; empty when that is above kPacketSizeMax. Nothing else may be
  // called before commit(). A begin() that is not committed is forgotten by the next one.
  MutBytes begin(std::size_t size_max);
  // The packet's first `size` bytes are complete. It is routed by its destination address. Without a usable session it
  // is staged (copied) and a handshake starts. A full arena is flushed.
  void commit(Clock clock, std::size_t size);
  // As begin + commit for a packet that lies elsewhere, to a peer that the caller names.
  void send(Clock clock, PeerId peer, Bytes packet);
  // Seals and transmits what was committed. Call it at the end of every burst.
  void flush(Clock clock);
  // Packets wait for a session.
  bool has_staged(PeerId peer) const;

  // ---- sessions

  SessionState state(PeerId peer) const;
  // A handshake although the session is usable: the peer may have forgotten its keys, which only its silence tells. How often is
  // the caller's business.
  void renew_session(Clock clock, PeerId peer);
  // Starts a handshake unless a session is usable or an initiation is pending.
  void start_handshake(Clock clock, PeerId peer);
  // Sends a fresh initiation now although one is pending or kRekeyTimeout has not passed; nothing when a session is
  // usable. For the moment a path appears, and for the first seconds of a connection (about every 250 ms); the caller
  // limits the rate. The last kPendingInitiationsMax initiations stay answerable, so none of them is wasted.
  void retry_handshake(Clock clock, PeerId peer);

  // ---- time and numbers

  void handle_timeout(Clock clock);
  // O(1). May be earlier than anything that happens (timers are moved lazily), never later.
  Deadline next_timeout() const;

  PeerStats stats(PeerId peer) const;
  const Counters& counters() const;

  // The newest TAI64N stamp sent to anybody. Set it after a restart: peers reject stamps that are not newer. So that it need
  // not be written for every handshake, a store holds the end of a lease: while the clock is beyond it, stamps are the one
  // before and a quantum, which stays below it for hundreds of handshakes. Handshakes never wait for the store.
  Tai64n last_stamp() const;
  void set_stamps(const StampLease& lease);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace porthole::wg
