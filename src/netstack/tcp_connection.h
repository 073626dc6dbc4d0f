// One TCP connection (RFC 9293) from SYN-SENT, or from the completed handshake of a listener, to its end.
//
//   tcp_connection.cpp  life: opening, the app's calls, closing, timers that are not about loss
//   tcp_input.cpp       arriving segments: acceptance, reassembly, when to acknowledge
//   tcp_output.cpp      what may be sent now, and building it
//   tcp_recovery.cpp    acknowledgments: scoreboard, RTT, RACK-TLP, RTO, undo, congestion control
//
// The connection never sends by itself: it asks its host for a turn (want_ack, want_send) and writes when it is given
// a sink. Sequence numbers are 64 bits wide inside (flow.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "base/datagram.h"
#include "netstack/byte_queue.h"
#include "netstack/congestion.h"
#include "netstack/flow.h"
#include "netstack/limits.h"
#include "netstack/out_of_order.h"
#include "netstack/rate_limit.h"
#include "netstack/sent_segments.h"
#include "netstack/spec_constants.h"
#include "netstack/stack.h"
#include "netstack/timers.h"
#include "wire/checksum.h"
#include "wire/tcp.h"

namespace porthole::netstack {

class TcpConnection;

// What the stack knows about one remote address.
struct Peer {
  IpAddress address;
  std::size_t connections = 0, time_wait = 0;
  std::size_t held = 0;                  // connections that refer to this, ended ones that the app has not let go among them
  std::vector<FlowKey> half_open;        // oldest first; at most kHalfOpenPerPeerMax
  std::size_t buffer_bytes = 0;          // of its connections
  bool blocked = false;                  // the tunnel has no session
  bool relayed = false;
  bool unreachable = false;
  Duration round_trip{};                 // of the tunnel's last handshake; zero: unknown
  int path_mtu = 0;                      // 0: nothing learned
  Instant path_mtu_until;
  RateLimit resets{kResetPeerRate, kResetPeerBurst};
  RateLimit syn_acks{kSynAckPeerRate, kSynAckPeerBurst};
  RateLimit icmp_errors{kIcmpErrorPeerRate, kIcmpErrorPeerBurst};
};

// A segment without data that is not part of a connection's own output: resets, handshake and TIME-WAIT replies.
struct ControlSegment {
  IpAddress local, remote;
  std::uint16_t local_port = 0, remote_port = 0;
  std::uint32_t sequence = 0, acknowledgment = 0;
  std::uint8_t flags = 0;
  std::uint16_t window = 0;
  wire::TcpOptions options;
};

// The stack, as its connections see it.
class TcpHost {
 public:
  TcpHost(const StackConfig& c, Rng& r) : config(c), rng(r), pool(c.memory_max) {}
  TcpHost(const TcpHost&) = delete;
  TcpHost& operator=(const TcpHost&) = delete;

  StackConfig config;
  Rng& rng;
  ChunkPool pool;
  Counters counters;
  std::vector<IpAddress> unanswered;    // see Stack::take_unanswered()
  std::size_t buffering_peers = 0;      // peers whose connections hold chunks

  virtual void raise(TcpConnection& connection, SocketEventKind kind) = 0;
  virtual void want_ack(TcpConnection& connection) = 0;
  virtual void want_send(TcpConnection& connection) = 0;
  virtual void send_control(const ControlSegment& segment) = 0;
  void unanswered_by(const Peer& peer) {
    if (unanswered.size() < kUnansweredMax && std::find(unanswered.begin(), unanswered.end(), peer.address) == unanswered.end())
      unanswered.push_back(peer.address);
  }
  void drop(Drop reason) { ++counters.drops[static_cast<std::size_t>(reason)]; }

 protected:
  ~TcpHost() = default;
};

// What a completed handshake has agreed on.
struct HandshakeResult {
  IpAddress local, remote;
  std::uint16_t local_port = 0, remote_port = 0;
  std::uint32_t iss = 0, irs = 0;
  std::uint16_t peer_mss = 0;           // 0: no option
  std::optional<std::uint8_t> peer_window_shift;   // set: window scaling in both directions
  bool sack = false;
  bool timestamps = false;
  std::uint32_t ts_offset = 0;
  std::uint32_t ts_recent = 0;
  bool resent = false;                  // the SYN or SYN-ACK was sent more than once
  Instant syn_ack_sent;                 // latest transmission
};

class TcpConnection {
 public:
  // Active: SYN-SENT; the SYN leaves at the first turn.
  TcpConnection(TcpHost& host, Peer& peer, SocketId id, Instant now, const Endpoint& local, const Endpoint& remote,
                std::uint32_t iss, std::uint32_t ts_offset, std::uint32_t flow_label, const ConnectOptions& options);
  // Passive: ESTABLISHED, ready for the segment that completed the handshake.
  TcpConnection(TcpHost& host, Peer& peer, SocketId id, Instant now, const HandshakeResult& handshake,
                std::uint32_t flow_label);
  ~TcpConnection();
  TcpConnection(const TcpConnection&) = delete;
  TcpConnection& operator=(const TcpConnection&) = delete;

  // Network.
  void handle_segment(Instant now, const wire::TcpSegment& segment);
  // After the last segment of a batch: decides about acknowledging, wakes the app.
  void end_batch(Instant now);
  void handle_refusal(Instant now);
  void handle_icmp(Instant now, bool hard, ErrorCode code, std::uint32_t sequence);
  void handle_too_big(Instant now, std::uint32_t sequence, int mtu);
  void path_changed(Instant now, PathChange kind);
  void tunnel_unblocked(Instant now);

  // Turns.
  // False: the sink was full. `wait_for_data`: an acknowledgment may ride on data that is about to leave.
  bool send_acks(Instant now, PacketSink& sink, bool wait_for_data);
  bool wants_ack() const { return ack_now_ || ack_pending_ || stretch_acks_ > 0; }
  enum class Turn : std::uint8_t { kDone, kMore, kSinkFull };
  Turn send(Instant now, PacketSink& sink);
  void handle_timer(Instant now);
  Instant next_timer() const;

  // The app.
  std::size_t write(Instant now, Bytes data);
  std::size_t writable() const;
  std::size_t peek(std::span<Bytes> out) const;
  std::size_t readable() const;
  void consume(Instant now, std::size_t size);
  bool read_eof() const { return fin_received_ && readable() == 0; }
  void shutdown_write(Instant now);
  // The app lets go; the connection finishes by itself.
  void close(Instant now);
  void abort(Instant now);
  // Ends without a word to the peer.
  void fail(ErrorCode error);
  void set_options(Instant now, const ConnectOptions& options);
  TcpInfo info(Instant now) const;

  SocketId id() const { return id_; }
  TcpState state() const { return state_; }
  // Nothing left to do on the network: the stack drops the flow (and the object, when the app has let go).
  bool finished() const { return state_ == TcpState::kClosed || state_ == TcpState::kTimeWait; }
  bool app_gone() const { return app_gone_; }
  ErrorCode error() const { return error_; }
  Peer& peer() { return peer_; }
  const Endpoint& local() const { return local_; }
  const Endpoint& remote() const { return remote_; }
  FlowKey flow() const { return FlowKey::of(local_.address, local_.port, remote_.address, remote_.port); }

  // Memory pressure.
  std::size_t buffer_bytes() const { return (send_queue_.chunk_count() + receive_queue_.chunk_count()) * kChunkSize; }
  std::size_t out_of_order_bytes() const { return ooo_ ? static_cast<std::size_t>(ooo_->bytes()) : 0; }
  void drop_out_of_order();
  bool stalled_reader(Instant now) const;
  // The peer's connections hold all that one peer may: what would need more memory for it has to wait.
  bool share_spent() const {
    const std::size_t held = peer_.buffer_bytes - accounted_bytes + buffer_bytes();
    return held >= host_.pool.limit() / 100 * (host_.buffering_peers > 1 ? kPeerSharePercent : kLonePeerSharePercent);
  }
  // For the TIME-WAIT record.
  std::uint64_t send_next() const { return snd_nxt_; }
  std::uint64_t receive_next() const { return rcv_nxt_; }
  bool timestamps() const { return ts_on_; }
  std::uint32_t ts_recent() const { return ts_recent_; }
  std::uint32_t ts_offset() const { return ts_offset_; }

  void check_invariants() const;

  // Owned by the stack's lists.
  TimerNode timer;
  bool in_ack_list = false;
  bool in_send_list = false;
  bool in_batch = false;
  bool in_flow_table = true;
  bool accepted = true;              // false: still in a listener's queue
  SocketId listener = 0;
  std::size_t accounted_bytes = 0;   // what peer().buffer_bytes contains of this connection

 private:
  friend class TcpConnectionTest;
  enum class Phase : std::uint8_t { kOpen, kRecovery, kLoss };
  enum class RecoveryTimer : std::uint8_t { kNone, kRto, kTailProbe, kReorder, kPersist };
  static constexpr std::uint64_t kNoSequence = ~std::uint64_t{0};

  // Everything one acknowledgment told us.
  struct AckRound {
    Instant now;
    std::uint64_t prior_una = 0;
    std::uint64_t prior_pipe = 0;
    std::uint64_t delivered_before = 0;
    std::uint64_t lost_before = 0;
    bool una_advanced = false;
    bool newly_sacked = false;
    bool original_delivered = false;      // something never resent, sent before the last timeout
    bool duplicate_reported = false;      // DSACK
    wire::SackBlock duplicate;
    bool resent_delivered = false;
    std::optional<std::uint32_t> ts_echo; // while what is delivered was acknowledged in sequence: when that was sent
    Duration rtt_oldest{};                // of never-resent segments
    Duration rtt_newest{};
    // Rate sample of the segment sent last among those delivered.
    bool have_rate = false;
    std::uint64_t rate_delivered = 0;
    Instant rate_time;
    Duration rate_send_elapsed{};
    bool rate_app_limited = false;
    std::uint64_t rate_in_flight = 0, rate_lost = 0;
    Instant rate_sent;
  };

  // tcp_connection.cpp
  void expect_round_trip();
  void init_common(Instant now);
  void established(Instant now);
  void enter(TcpState state) { state_ = state; }
  void finish(TcpState state);
  void start_time_wait(Instant now);
  void send_reset(std::uint64_t sequence, bool with_ack);
  void update_life_timer(Instant now);
  void handle_life_timer(Instant now);
  Instant quiet_probe_due() const;
  void send_keepalive();
  // When the half-closed connection is to end unless something moves.
  Instant half_closed_end(Instant now) const;
  std::uint32_t ts_now(Instant now) const {
    return static_cast<std::uint32_t>(now.ns() / 1'000'000) + ts_offset_;
  }
  std::size_t ip_header_size() const { return remote_.address.is_v6() ? 40u : 20u; }
  void set_peer_mss(std::uint16_t mss);
  void update_segment_size();
  std::size_t unsent_limit() const;
  void maybe_writable();
  std::uint64_t send_end() const { return write_end_; }

  // tcp_input.cpp
  void handle_syn_sent(Instant now, const wire::TcpSegment& segment);
  // SYN-RECEIVED is over: our SYN was acknowledged, the peer's window is `window` bytes.
  void synchronized(Instant now, std::uint64_t sequence, std::uint64_t window);
  void receive_data(Instant now, std::uint64_t sequence, Bytes data, bool fin);
  void receive_out_of_order(std::uint64_t start, Bytes data);
  void fin_reached(Instant now);
  void challenge_ack(Instant now);
  void ack_throttled(Instant now);
  void note_duplicate(std::uint64_t start, std::uint64_t end);
  void push_duplicate_ack();
  void schedule_ack();
  void reset_by_peer();
  void tune_receive_buffer(Instant now);
  std::uint16_t select_window(bool duplicate_ack);
  void measure_receive_rtt(Instant now, const wire::TcpSegment& segment);

  // tcp_output.cpp
  bool emit(Instant now, PacketSink& sink, std::uint64_t sequence, std::size_t size, std::uint8_t flags,
            const OutOfOrder::Snapshot* snapshot = nullptr);
  bool emit_ack(Instant now, PacketSink& sink, const OutOfOrder::Snapshot* snapshot);
  bool emit_syn(Instant now, PacketSink& sink);
  bool send_new(Instant now, PacketSink& sink, std::size_t size, bool fin);
  bool resend(Instant now, PacketSink& sink, SentSegments::Id id);
  bool has_sendable(Instant now) const;
  // Bytes of new data that may leave now by window and silly-window rules; `fin`: with FIN.
  std::size_t next_new_size(bool& fin, bool override_silly) const;
  bool paced_out(Instant now) const { return next_send_ > now; }
  void pace(Instant now, std::size_t bytes);
  void note_sent(Instant now, SentSegment& segment);
  void note_limit(Instant now, std::uint8_t limit);
  SentSegments::Id next_lost();

  // tcp_recovery.cpp
  bool handle_ack(Instant now, const wire::TcpSegment& segment, std::uint64_t sequence);
  void deliver(AckRound& round, SentSegment& segment);
  void apply_sack(AckRound& round, const wire::TcpSegment& segment, std::uint64_t ack);
  void mark_sacked(AckRound& round, std::uint64_t from, std::uint64_t to, std::uint64_t start, std::uint64_t end);
  void mark_lost(SentSegments::Id id);
  void detect_losses(AckRound& round);
  void without_sack(AckRound& round, const wire::TcpSegment& segment, bool window_changed);
  void handle_tail_probe_ack(AckRound& round, std::uint64_t ack, const wire::TcpSegment& segment);
  bool try_undo(AckRound& round, const wire::TcpSegment& segment);
  void undo(Instant now);
  void enter_recovery(Instant now, std::uint64_t prior_pipe);
  void leave_recovery(Instant now);
  void rate_reduction(const AckRound& round);
  void update_rtt(Instant now, Duration sample);
  void congestion_feedback(AckRound& round);
  Duration rto() const;
  void arm_recovery_timer(Instant now);
  void handle_recovery_timer(Instant now);
  void handle_rto(Instant now);
  std::uint64_t pipe() const { return sent_.pipe() - std::min(sent_.pipe(), without_sack_bytes_); }
  std::uint64_t window() const;       // congestion window in force
  std::uint64_t window_end() const { return snd_una_ + snd_wnd_; }
  Duration reorder_window() const;

  TcpHost& host_;
  Peer& peer_;
  SocketId id_;
  Endpoint local_, remote_;
  TcpState state_ = TcpState::kClosed;
  ErrorCode error_ = ErrorCode::kReset;
  bool app_gone_ = false;
  ConnectOptions options_;
  std::uint32_t flow_label_ = 0;
  wire::PartialSum pseudo_sum_ = 0;   // addresses and protocol

  // Negotiated.
  bool ts_on_ = false, sack_on_ = false, scaling_on_ = false;
  std::uint8_t peer_shift_ = 0;
  std::uint16_t peer_mss_ = 0;
  std::uint32_t segment_ = 536;       // SMSS: data bytes in a full segment
  int path_mtu_ = 0;                  // peer_.path_mtu as `segment_` has it
  std::uint32_t ts_offset_ = 0, ts_recent_ = 0;
  Instant ts_recent_time_;
  Instant opened_;

  // Send side.
  ByteQueue send_queue_;
  SentSegments sent_;
  std::uint64_t iss_ = 0, snd_una_ = 0, snd_nxt_ = 0;
  std::uint64_t write_end_ = 0;       // behind the last byte of the app
  std::uint64_t snd_wnd_ = 0, max_snd_wnd_ = 0, snd_wl1_ = 0, snd_wl2_ = 0;
  std::uint64_t small_end_ = 0;       // end of the last segment that was not full (Minshall)
  bool fin_queued_ = false, fin_sent_ = false;
  bool want_writable_ = false;
  bool syn_due_ = false, probe_due_ = false, tail_probe_due_ = false, override_due_ = false;
  bool keepalive_due_ = false;
  std::uint8_t syn_resends_ = 0;
  bool syn_resent_ = false;
  Instant syn_sent_;
  Instant next_send_;                 // pacing
  Instant pace_deadline_ = Instant::max();
  Instant last_sent_;                 // data; zero: not since the window was made up for a silence

  // Recovery.
  std::unique_ptr<CongestionController> cc_;
  Phase phase_ = Phase::kOpen;
  RecoveryTimer recovery_timer_ = RecoveryTimer::kNone;
  Instant recovery_deadline_ = Instant::max();
  Instant reorder_deadline_ = Instant::max();
  Duration srtt_{}, rttvar_{}, min_rtt_{}, base_rto_ = kInitialRto;
  Instant min_rtt_time_;
  std::uint64_t rtt_round_end_ = 0;   // one RTTVAR step per round trip
  int backoff_ = 0, resends_ = 0, persist_backoff_ = 0, persist_unanswered_ = 0;
  int full_timeouts_ = 0;             // consecutive timeouts of a full segment
  Instant black_hole_until_;
  Instant last_progress_;
  std::uint64_t recovery_end_ = 0;    // leaves recovery when acknowledged
  std::uint64_t highest_delivered_ = 0;
  std::uint64_t lost_pending_ = 0;    // records marked lost
  SentSegments::Id lost_hint_ = 1;
  std::uint64_t lost_total_ = 0;
  wire::SackBlock sack_cache_[wire::kSackBlocksMax];
  std::uint8_t sack_cached_ = 0;
  std::uint64_t without_sack_bytes_ = 0;  // peers without SACK: duplicate ACKs stand for this much delivered
  int duplicate_acks_ = 0;
  // RACK
  Instant rack_sent_;
  std::uint64_t rack_end_ = 0;
  Duration rack_rtt_{};
  bool reordering_seen_ = false;
  int reo_mult_ = 1, reo_persist_ = 0;
  std::uint64_t dsack_round_end_ = 0;
  int sacked_count_ = 0;
  Instant loss_freeze_until_;
  // Tail loss probe
  std::uint64_t tail_probe_end_ = 0;  // 0: none outstanding
  bool tail_probe_resent_ = false;
  std::uint32_t tail_probe_ts_ = 0;
  Instant tail_probe_time_;
  // Proportional rate reduction
  std::uint64_t prr_delivered_ = 0, prr_out_ = 0, prr_flight_ = 0, prr_window_ = 0;
  // Undo
  bool undo_armed_ = false;
  std::uint32_t first_resend_ts_ = 0;
  bool first_resend_known_ = false;
  std::int64_t undo_resends_ = 0;
  Instant timeout_time_;              // of the latest RTO
  // Delivery rate
  std::uint64_t delivered_ = 0, round_delivered_end_ = 0;
  Instant delivered_time_, first_sent_time_;
  std::uint64_t delivery_rate_ = 0;
  std::uint64_t app_limited_until_ = 0;
  std::uint64_t max_flight_ = 0;
  bool window_blocked_ = false;       // the congestion window held data back in this round

  // Receive side.
  ByteQueue receive_queue_;
  std::unique_ptr<OutOfOrder> ooo_;
  std::uint64_t irs_ = 0, rcv_nxt_ = 0, right_edge_ = 0, last_ack_sent_ = 0;
  std::uint64_t fin_at_ = kNoSequence;
  bool fin_received_ = false;
  std::uint64_t receive_buffer_ = 0;
  std::uint32_t receive_mss_ = 536;
  std::uint32_t unacked_segments_ = 0;
  std::uint32_t stretch_acks_ = 0;    // further ACKs that this batch deserves
  std::uint32_t stretch_at_[4] = {};
  int quick_acks_ = kQuickAcks;
  bool ack_now_ = false, ack_pending_ = false, data_arrived_ = false, new_in_batch_ = false;
  std::optional<wire::SackBlock> duplicate_;
  Instant ack_deadline_ = Instant::max();
  Instant last_challenge_, last_throttled_;
  bool challenged_ = false, throttled_ = false;
  Instant last_received_, last_read_;
  // Buffer tuning
  Duration receive_rtt_{};
  Instant receive_rtt_time_, tune_start_;
  std::uint64_t tune_consumed_ = 0;
  std::uint64_t tune_target_ = 0;
  std::uint64_t window_rtt_end_ = 0;
  Instant window_rtt_start_;

  // Life.
  Instant life_deadline_ = Instant::max();
  int keepalive_sent_ = 0;
  std::optional<Instant> refused_since_;  // by the peer's rules, while connecting
  bool data_came_ = false;            // since the peer last answered a probe (with keepalive on)
  int quiet_probes_ = 0;              // sent and not answered, see kQuietProbe
  Instant fin_wait2_since_;
  Instant half_closed_;               // the latest FIN, ours or the peer's

  // Figures for info().
  std::uint64_t bytes_sent_ = 0, bytes_resent_ = 0, bytes_received_ = 0;
  std::uint64_t segments_sent_ = 0, segments_resent_ = 0, segments_received_ = 0;
  std::uint32_t recoveries_ = 0, timeouts_ = 0, tail_probes_ = 0, undone_ = 0, dsacks_ = 0;
  std::uint8_t limit_ = 0;
  Instant limit_since_;
  Duration limit_time_[4] = {};
};

}  // namespace porthole::netstack
