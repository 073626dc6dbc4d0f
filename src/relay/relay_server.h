// The relay server: moves packets between nodes by node key, one machine for all connections.
//
//            on_connect              ClientInfo opened, admitted
//   accept ------------> login (10 s) ---------------------------> member --> gone
//            ServerKey out              ServerInfo out
//
// Whoever accepts streams answers the HTTP upgrade (http_front.h) and hands the bytes behind it in here. Every byte that
// arrives goes to consume(). What is to be written is asked for connection by connection: poll_ready() names those that
// have gained output, produce() fills a buffer (16 KiB or more: one call, one TLS write). While the stream of a
// connection takes nothing, simply do not call produce(): after 2 s the server gives it up. poll_close() names connections
// the server has dropped already; their streams are to be closed. After every call drain poll_ready() and poll_close().
//
// A packet is copied twice: from the read buffer into the receiver's queue, from there into its write buffer. A full
// queue forgets its oldest packet; no receiver ever holds up a sender.
//
// Not a mesh member: ForwardPacket, WatchConns and ClosePeer close the connection. One thread at a time; the Admission
// must not call back in.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>

#include "base/ip.h"
#include "base/key.h"
#include "base/log.h"
#include "base/result.h"
#include "base/rng.h"
#include "base/time.h"
#include "crypto/secret.h"
#include "crypto/siphash.h"
#include "relay/limits.h"
#include "wire/derp.h"

namespace porthole::relay {

using ConnId = std::uint64_t;  // never 0, never used twice

class Admission {
 public:
  virtual ~Admission() = default;
  // May this node use the relay? Called with a key whose owner is proven: at every login and every recheck.
  virtual bool admit(const NodePublic& key, const Endpoint& source) = 0;
};

struct RelayCounters {
  std::uint64_t accepts = 0, refused_limit = 0, logins = 0, logins_failed = 0, logins_not_admitted = 0, revoked = 0;
  std::uint64_t packets_in = 0, bytes_in = 0, disco_in = 0;
  std::uint64_t packets_out = 0, bytes_out = 0;
  std::uint64_t dropped_unknown_destination = 0;  // no such key here
  std::uint64_t dropped_queue_full = 0;           // oldest packet of a full queue
  std::uint64_t dropped_gone = 0;                 // still queued when the receiver left
  std::uint64_t dropped_hints = 0;                // PeerGone or Pong beyond the control bytes
  std::uint64_t peer_gone_disconnected = 0, peer_gone_not_here = 0;
  std::uint64_t pings = 0, frames_unknown = 0, protocol_errors = 0, write_timeouts = 0, login_timeouts = 0;
  std::uint64_t home_moves = 0, duplicate_logins = 0, keepalives = 0;
};

struct RelayGauges {
  std::size_t connections = 0;   // logged in or not
  std::size_t logging_in = 0;
  std::size_t keys = 0;
  std::size_t duplicate_keys = 0;
  std::size_t home_connections = 0;
};

struct ClosedConnection {
  ConnId id = 0;
  Error why;
};

class RelayServer {
 public:
  // `key` is the relay's identity and should outlive restarts: clients seal their login to it.
  RelayServer(const crypto::NodePrivate& key, Admission& admission, Rng& rng, Log& log);
  ~RelayServer();
  RelayServer(const RelayServer&) = delete;
  RelayServer& operator=(const RelayServer&) = delete;

  const NodePublic& public_key() const { return public_key_; }

  // 0: too many connections; close the stream.
  ConnId on_connect(Instant now, const Endpoint& remote);
  // Takes everything. Unknown ids (just dropped) are ignored.
  void consume(Instant now, ConnId id, MutBytes bytes);
  std::size_t produce(Instant now, ConnId id, MutBytes out);
  bool has_output(ConnId id) const;
  // The stream ended.
  void on_close(Instant now, ConnId id);

  std::optional<ConnId> poll_ready();
  std::optional<ClosedConnection> poll_close();

  // Asks the Admission about every member again and drops those that are no longer welcome. Call it when a node was
  // removed; it happens by itself every 10 minutes.
  void recheck(Instant now);
  // Tells all members that the relay goes away and when to come back; close the streams some 100 ms later.
  void announce_restart(Instant now, Duration reconnect_in, Duration try_for);

  void handle_timeout(Instant now);
  Deadline next_timeout() const;

  const RelayCounters& counters() const { return counters_; }
  RelayGauges gauges() const;
  // Whether a node with this key is connected.
  bool is_connected(const NodePublic& key) const { return peers_.contains(key); }

 private:
  struct Connection;
  struct Peer;
  // Strangers choose their keys: keyed, so that they cannot choose their bucket.
  struct KeyHash {
    crypto::SipKey key;
    std::size_t operator()(const NodePublic& k) const { return static_cast<std::size_t>(crypto::siphash24(key, k.bytes())); }
  };

  Connection* find(ConnId id) const;
  // Empty: fine. Otherwise the reason to close.
  std::optional<Error> handle_bytes(Instant now, Connection& c, MutBytes in);
  std::optional<Error> judge_header(const Connection& c, const wire::derp::FrameHeader& header) const;
  std::optional<Error> handle_frame(Instant now, Connection& c, const wire::derp::FrameHeader& header, MutBytes payload);
  std::optional<Error> handle_login(Instant now, Connection& c, MutBytes payload);
  void handle_send(Instant now, Connection& c, MutBytes payload);
  void deliver(Instant now, Connection& to, Peer& from, MutBytes packet, bool disco);
  void drop(Instant now, Connection& c, const Error& why, bool tell_app);
  void leave(Instant now, Connection& c);
  void output_added(Instant now, Connection& c);
  void set_timer(Connection& c, Instant at);
  void check_timer(Instant now, Connection& c);

  crypto::NodePrivate key_;
  NodePublic public_key_;
  Admission& admission_;
  Rng& rng_;
  Log& log_;
  ConnId next_id_ = 1;
  std::uint64_t next_peer_serial_ = 1;
  std::uint64_t peers_left_ = 0;                 // counts up with every erased Peer: cached pointers are void then
  std::unordered_map<ConnId, std::unique_ptr<Connection>> connections_;
  std::unordered_map<NodePublic, std::unique_ptr<Peer>, KeyHash> peers_;
  std::map<std::uint64_t, Peer*> peers_by_serial_;
  std::map<IpAddress, std::size_t> per_address_;
  std::size_t logging_in_ = 0;
  std::set<std::pair<Instant, ConnId>> timers_;  // one per connection; may be early, never late
  Instant next_recheck_ = Instant::max();
  std::deque<ConnId> ready_;                     // each connection at most once
  std::deque<ClosedConnection> closed_;
  RelayCounters counters_;
};

}  // namespace porthole::relay
