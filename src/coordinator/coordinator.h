// The server side of the control connection (Tailscale control protocol, section 9) as one sans-I/O machine: Noise
// handshake, HTTP/2, registration, map streams and their distribution.
//
// The host accepts connections, reads the HTTP upgrade head, writes the 101 answer and calls on_upgrade() with the
// decoded X-Tailscale-Handshake header; from then on bytes go through consume() and produce(). After every call that may
// have done something:
//   next_ready() until empty   sessions with bytes to send: produce() until it gives nothing more
//   poll_event() until empty
//   arm a timer for next_timeout(), call handle_timeout() then (early or late calls do no harm)
// A session that is_over() and has no output left wants its connection closed. close() says the connection is gone.
//
// A change reaches the peers of its account, and costs nothing for any other account: at once, or together with others
// of the same account within kFlushSpacing. Deltas are encoded once for all viewers that get the same bytes. A viewer
// that does not read loses its stream when more than a bound has piled up, and starts with a full map next time.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <variant>
#include <vector>

#include "base/ip.h"
#include "base/log.h"
#include "base/rng.h"
#include "base/time.h"
#include "coordinator/directory.h"
#include "coordinator/map_text.h"
#include "crypto/secret.h"
#include "ts2021/messages.h"

namespace porthole::coordinator {

using SessionId = std::uint64_t;

// A node key that was admitted is so no longer: relays cut its connections.
struct NodeKeyRetired {
  NodePublic key;
};
using CoordinatorEvent = std::variant<NodeKeyRetired>;

// For relays: may the holder of this node key use it?
class Admission {
 public:
  virtual ~Admission() = default;
  virtual bool admits(WallTime wall, const NodePublic& key) = 0;
};

struct CoordinatorCounters {
  std::uint64_t sessions = 0;           // handshakes that succeeded
  std::uint64_t handshakes_failed = 0;
  std::uint64_t sessions_refused = 0;   // kSessionsMax
  std::uint64_t protocol_errors = 0;    // sessions dropped for broken records or HTTP/2
  std::uint64_t requests = 0;
  std::uint64_t requests_refused = 0;   // malformed, unknown path, wrong machine
  std::uint64_t full_maps = 0;
  std::uint64_t deltas = 0;             // sent, one per viewer
  std::uint64_t keep_alives = 0;
  std::uint64_t slow_readers = 0;       // streams reset because their viewer did not read
};

class Coordinator final : public Admission, private DirectoryListener {
 public:
  // The directory must outlive the coordinator and have no other listener.
  Coordinator(crypto::MachinePrivate noise_key, ts2021::RelayMap relays, Directory& directory, Rng& rng, Log& log);
  ~Coordinator() override;
  Coordinator(const Coordinator&) = delete;
  Coordinator& operator=(const Coordinator&) = delete;

  // Starts the timers of stored nodes. Call once, before everything else.
  void start(Clock clock);

  // For GET /key.
  MachinePublic noise_public() const { return noise_public_; }
  void set_relays(Clock clock, ts2021::RelayMap relays);

  // ---- sessions ----
  // Always a session: a faulty initiation gives one that is over, perhaps with an error frame to send.
  SessionId on_upgrade(Clock clock, const Endpoint& remote, Bytes initiation);
  // Takes everything.
  void consume(Clock clock, SessionId id, Bytes bytes);
  std::size_t produce(Clock clock, SessionId id, MutBytes out);
  bool has_output(SessionId id) const;
  bool is_over(SessionId id) const;
  void close(Clock clock, SessionId id);
  // Each session at most once per time that output appeared.
  std::optional<SessionId> next_ready();

  // ---- time ----
  void handle_timeout(Clock clock);
  Deadline next_timeout() const;
  // Writes soft state now (shutdown).
  Status save() { return directory_.save(); }

  std::optional<CoordinatorEvent> poll_event();
  bool admits(WallTime wall, const NodePublic& key) override;
  const CoordinatorCounters& counters() const { return counters_; }
  std::size_t session_count() const { return sessions_.size(); }
  std::size_t stream_count() const { return streams_.size(); }

 private:
  struct Session;
  // The open map stream of a node.
  struct Stream {
    SessionId session = 0;
    std::int32_t h2_stream = 0;
    bool zstd = false;
    std::size_t backlog_max = 0;
    Instant last_message;
    Duration keep_alive_after{};
  };
  // Followup request that waits for a decision, at most one of a session.
  struct Waiter {
    std::int32_t h2_stream = 0;
    ts2021::RegisterRequest request;  // needed_later() of it
  };
  struct Pending {  // changes of an account that its viewers have not been told
    std::map<NodeId, NodeChanges> changes;
    std::vector<NodeId> removed;
    Instant last_flush;
    bool scheduled = false;
  };
  enum class TimerKind { kFlush, kKeepAlive, kOffline, kEphemeral, kExpiry, kReveal, kSession, kSave, kPendingLogins };
  struct Timer {
    Instant at;
    TimerKind kind;
    std::int64_t id;
    friend auto operator<=>(const Timer&, const Timer&) = default;
  };
  struct Message;  // one message in the framings that were asked for so far

  // DirectoryListener
  void node_added(Clock clock, Member& member) override;
  void node_changed(Clock clock, Member& member, NodeChanges changes) override;
  void node_removed(Clock clock, const NodeRecord& record) override;
  void node_key_retired(const NodePublic& key) override;
  void pending_decided(Clock clock, const std::string& pending_id) override;

  void set_timer(TimerKind kind, std::int64_t id, Instant at);
  void cancel_timer(TimerKind kind, std::int64_t id);
  void fire(Clock clock, const Timer& timer);

  Session* find(SessionId id) const;
  void mark_ready(SessionId id);
  void fail_session(Clock clock, SessionId id);
  void handle_request(Clock clock, SessionId id, std::int32_t stream, std::string_view method, std::string_view path,
                      Bytes body);
  void handle_register(Clock clock, SessionId id, std::int32_t stream, Bytes body);
  void wait_for_login(SessionId id, const std::string& pending_id, Waiter waiter);
  void stop_waiting(SessionId id);
  void handle_map(Clock clock, SessionId id, std::int32_t stream, Bytes body);
  void answer(SessionId id, std::int32_t stream, int status, std::string_view content_type, std::string_view body);
  void answer_unknown(Clock clock, SessionId id, std::int32_t stream, const ts2021::MapRequest& request);
  void answer_register(SessionId id, std::int32_t stream, const RegisterOutcome& outcome);
  void open_stream(Clock clock, SessionId id, std::int32_t h2_stream, Member& member, bool zstd);
  // `ended_by_client`: the HTTP/2 stream is gone already.
  void drop_stream(Clock clock, NodeId node, bool ended_by_client);
  bool send(Clock clock, NodeId node, Stream& stream, Message& message);

  void note_change(Clock clock, AccountId account);
  void flush(Clock clock, AccountId account);
  void arm_expiry(Clock clock, const Member& member);
  void arm_save(Clock clock);
  void arm_pending_logins(Clock clock);

  crypto::MachinePrivate noise_key_;
  MachinePublic noise_public_;
  ts2021::RelayMap relays_;
  Directory& directory_;
  Rng& rng_;
  Log& log_;
  MapText text_;
  CoordinatorCounters counters_;

  SessionId next_session_ = 1;
  std::unordered_map<SessionId, std::unique_ptr<Session>> sessions_;
  std::unordered_map<NodeId, Stream> streams_;
  std::map<AccountId, Pending> pending_;
  std::map<std::pair<std::string, SessionId>, Waiter> waiters_;  // by pending id
  std::set<Timer> timers_;
  std::map<std::pair<TimerKind, std::int64_t>, Instant> armed_;
  std::vector<SessionId> ready_;
  std::size_t ready_at_ = 0;
  std::deque<CoordinatorEvent> events_;
  ByteVector scratch_;
};

}  // namespace porthole::coordinator
