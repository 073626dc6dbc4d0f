// The relay client: one machine for the connections to all DERP regions of a tailnet.
//
// A node keeps one connection to its home region, by which peers that have no direct path reach it, and opens others on
// demand to reach peers at theirs. Packets are addressed by node key; the relay sees keys and sizes, never contents.
//
//                                +--------- backoff ----------+
//                                v                            |
//   (no region object) --> waiting --> dialling --> HTTP --> ServerKey --> live
//          ^                             |  ^        |          |           |
//          |                             +--+--------+----------+           |
//          |                       next node, within 10 s                   |
//          +------------- idle for 60 s and not home, map or key changed ---+
//
// Streams: poll_action() says what to open or close (base/stream.h); ids count up from Config::first_stream_id and are
// never used twice, which is also how late calls about a replaced connection are told apart: they are ignored. All
// failures are handled inside (next node, backoff, Disconnected event); consume() always takes everything.
//
// Packets are never held back: send() queues up to kSendQueuePacketsMax per region and drops the oldest beyond.
// One thread at a time. The host's callback runs inside consume(); from it only send() and send_to_peer() may be called.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <variant>

#include "base/key.h"
#include "base/log.h"
#include "base/record_queue.h"
#include "base/result.h"
#include "base/rng.h"
#include "base/stream.h"
#include "base/time.h"
#include "crypto/dh.h"
#include "crypto/secret.h"
#include "derp/limits.h"
#include "derp/spec_constants.h"
#include "ts2021/messages.h"
#include "wire/derp.h"
#include "wire/http.h"

namespace porthole::derp {

struct DerpClientConfig {
  StreamId first_stream_id = 1;
  // Every relay without TLS, default port 3340; a map may also say so for single nodes (RelayNode::plain_http). Never for a relay that strangers can listen to.
  bool plain_http = false;
};

class DerpHost {
 public:
  virtual ~DerpHost() = default;
  // A packet that `source` (by the relay's word: a hint, not a proof) sent us. Valid and writable until the consume() call
  // that delivers it returns, so that a batch can be collected and decrypted in place.
  virtual void relay_packet(Instant now, int region, const NodePublic& source, MutBytes data) = 0;
  // The relay is alive: any frame came, told at most every 5 s. For the choice of the home region.
  virtual void relay_heard(Instant, int /*region*/) {}
};

// The relay took our login and proved its key.
struct Connected {
  int region = 0;
};
// A connection is gone, or an attempt over all nodes of the region failed. Another attempt follows by itself unless
// `final` (region removed, key changed, idle).
struct Disconnected {
  int region = 0;
  Error error;
  bool final = false;
};
// The relay says the peer is not (any more) there. A hint: the learned route is already dropped, nothing else follows.
struct PeerGone {
  int region = 0;
  NodePublic peer;
};
// Text for a person about this relay; empty: healthy again.
struct Health {
  int region = 0;
  std::string text;
};
struct Restarting {
  int region = 0;
  Duration reconnect_in{};
};
using DerpEvent = std::variant<Connected, Disconnected, PeerGone, Health, Restarting>;

enum class RegionState { kClosed, kWaiting, kConnecting, kConnected };

struct RegionStatus {
  RegionState state = RegionState::kClosed;
  bool home = false;
  std::string node;                        // name of the node in use or tried
  Endpoint remote;
  bool fast_start = false;                 // the login needed no round trip of its own
  std::optional<Instant> connected_since;
  std::optional<Instant> last_frame;       // of this or an earlier connection (input of the home choice)
  std::optional<Error> last_error;         // of the last failed attempt; cleared by success
  std::string health;
  std::uint64_t packets_sent = 0, bytes_sent = 0, packets_received = 0, bytes_received = 0;
};

enum class SendResult {
  kQueued,
  kDroppedOldest,   // queued, and an older packet fell out
  kNoRoute,         // home unknown and not heard on an open connection
  kUnknownRegion,   // not in the map, or too many regions open
  kRateLimited,     // over the budget that the relay gave us
  kTooBig,
  kNoKey,
};

struct DerpCounters {
  std::uint64_t dropped_oldest = 0;
  std::uint64_t dropped_rate_limited = 0;
  std::uint64_t dropped_no_route = 0;     // no route, no region, no key, too big
  std::uint64_t frames_skipped = 0;       // unknown, too short or not for clients
  std::uint64_t connections_failed = 0;
  std::uint64_t pongs_dropped = 0;
  std::uint64_t hints_dropped = 0;        // events and routes beyond their bounds
};

class DerpClient {
 public:
  DerpClient(DerpClientConfig config, DerpHost& host, Rng& rng, Log& log);
  ~DerpClient();
  DerpClient(const DerpClient&) = delete;
  DerpClient& operator=(const DerpClient&) = delete;

  // ---- commands ----
  // A different key closes all connections; home is reopened under the new one. Zero: none, everything closes.
  void set_key(Instant now, const crypto::NodePrivate& key);
  // Regions that changed in any field are closed, and reopened if home.
  void set_map(Instant now, const ts2021::RelayMap& map);
  // 0: none. The former home closes when idle.
  void set_home(Instant now, int region);
  int home() const { return home_; }
  // Through this region, opening it if need be.
  SendResult send(Instant now, int region, const NodePublic& destination, Bytes packet);
  // Chooses the region: the peer's home if open, else an open connection on which the peer was last heard, else the
  // peer's home after opening it. `peer_home` 0: unknown.
  SendResult send_to_peer(Instant now, const NodePublic& peer, int peer_home, Bytes packet);
  // The network changed. Connections whose local address is not among `local_addresses` are replaced at once; the others
  // must answer a ping within 3 s. Waiting regions try again without backoff. Empty list: network down, all close.
  void network_changed(Instant now, std::span<const IpAddress> local_addresses);

  // ---- streams ----
  std::optional<StreamAction> poll_action();
  void stream_opened(Instant now, StreamId id, const StreamInfo& info);
  void stream_failed(Instant now, StreamId id, const Error& error);
  void stream_closed(Instant now, StreamId id, const Error* error);
  // Frames are parsed in place and packets handed to the host without a copy, but for those that a read cut in two.
  Result<std::size_t> consume(Instant now, StreamId id, MutBytes bytes);
  // Fills `out` with as many frames as there are and fit. Give it 16 KiB or more: one call, one TLS write.
  std::size_t produce(Instant now, StreamId id, MutBytes out);
  bool has_output(StreamId id) const;

  // ---- time ----
  void handle_timeout(Instant now);
  Deadline next_timeout() const;

  // ---- what is known ----
  std::optional<DerpEvent> poll_event();
  RegionStatus status(int region) const;
  // A connection to this region is logged in and takes packets.
  bool is_open(int region) const;
  // A connection that is being drained has about as much queued as it should: a sender that can wait (TCP) does, instead
  // of losing packets. False for one that has stood still for kStallIgnored: others must not wait for it.
  bool congested(Instant now) const;
  const DerpCounters& counters() const { return counters_; }

 private:
  struct Connection;
  struct Region;
  struct Route {
    int region = 0;
    StreamId stream = 0;
  };

  bool can_connect() const { return network_up_ && !key_.is_zero(); }
  void ensure_home(Instant now);
  // nullptr: not in the map, or too many open.
  Region* open_region(Instant now, int id);
  void close_region(int id, const Error& why);
  void start_attempt(Instant now, Region& region);
  void dial(Instant now, Region& region);
  // One node failed; goes on with the next, or gives up for now.
  void attempt_failed(Instant now, Region& region, const Error& error, bool same_node_again = false);
  // A working connection broke.
  void lost(Instant now, Region& region, const Error& error);
  void fail(Instant now, Region& region, const Error& error);  // whichever of the two applies
  void drop_connection(Region& region, bool close_stream);
  void report_failure(Region& region, const Error& error, bool final);
  void wait_to_retry(Instant now, Region& region);
  Region* region_of(StreamId id) const;

  void start_http(Instant now, Region& region, const StreamInfo& info);
  // False: failed, the connection is dropped.
  bool start_login(Instant now, Region& region, const NodePublic& relay_key);
  bool handle_http(Instant now, Region& region, MutBytes& in);
  bool handle_header(Instant now, Region& region, const wire::derp::FrameHeader& header);
  bool handle_frames(Instant now, Region& region, MutBytes in);
  bool handle_frame(Instant now, Region& region, const wire::derp::FrameHeader& header, MutBytes payload);
  void confirm(Instant now, Region& region);
  void learn_route(Region& region, const NodePublic& source);
  void note_preferred(Instant now, Region& region);
  SendResult enqueue(Instant now, Region& region, const NodePublic& destination, Bytes packet);
  void push_hint(DerpEvent event);
  Deadline deadline_of(const Region& region) const;
  void check_deadlines(Instant now, Region& region);

  DerpClientConfig config_;
  DerpHost& host_;
  Rng& rng_;
  Log& log_;
  crypto::NodePrivate key_;
  NodePublic public_key_;
  ts2021::RelayMap map_;
  int home_ = 0;
  StreamId next_stream_id_;
  std::map<int, std::unique_ptr<Region>> regions_;  // those open or wanted
  std::map<int, Instant> last_frame_;        // per region of the map, outlives connections
  bool network_up_ = true;
  ByteVector retired_;                       // keeps packets of a dropped connection valid until consume() returns
  std::map<NodePublic, Route> routes_;
  std::deque<StreamAction> actions_;         // at most two per attempt; drained after every call
  std::deque<DerpEvent> events_;
  DerpCounters counters_;
};

}  // namespace porthole::derp
