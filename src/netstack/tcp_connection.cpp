#include "netstack/tcp_connection.h"

#include <algorithm>

#include "base/assert.h"
#include "wire/ip.h"

namespace porthole::netstack {

using namespace wire::tcp_flag;

TcpConnection::TcpConnection(TcpHost& host, Peer& peer, SocketId id, Instant now, const Endpoint& local,
                             const Endpoint& remote, std::uint32_t iss, std::uint32_t ts_offset,
                             std::uint32_t flow_label, const ConnectOptions& options)
    : host_(host), peer_(peer), id_(id), local_(local), remote_(remote), options_(options), flow_label_(flow_label),
      ts_offset_(ts_offset), send_queue_(host.pool), receive_queue_(host.pool) {
  iss_ = first_sequence(iss);
  init_common(now);
  state_ = TcpState::kSynSent;
  expect_round_trip();
  syn_due_ = true;
  update_life_timer(now);
  host_.want_send(*this);
}

TcpConnection::TcpConnection(TcpHost& host, Peer& peer, SocketId id, Instant now, const HandshakeResult& handshake,
                             std::uint32_t flow_label)
    : host_(host), peer_(peer), id_(id), local_{handshake.local, handshake.local_port},
      remote_{handshake.remote, handshake.remote_port}, flow_label_(flow_label), ts_offset_(handshake.ts_offset),
      send_queue_(host.pool), receive_queue_(host.pool) {
  iss_ = first_sequence(handshake.iss);
  init_common(now);
  ts_on_ = handshake.timestamps;
  sack_on_ = handshake.sack;
  scaling_on_ = handshake.peer_window_shift.has_value();
  peer_shift_ = handshake.peer_window_shift.value_or(0);
  ts_recent_ = handshake.ts_recent;
  ts_recent_time_ = now;
  syn_resent_ = handshake.resent;
  set_peer_mss(handshake.peer_mss);
  irs_ = first_sequence(handshake.irs);
  rcv_nxt_ = last_ack_sent_ = irs_ + 1;
  receive_queue_.start_at(rcv_nxt_);
  right_edge_ = rcv_nxt_ + std::min<std::uint64_t>(receive_buffer_, 65535);
  snd_una_ = snd_nxt_ = iss_ + 1;
  if (!syn_resent_) update_rtt(now, now - handshake.syn_ack_sent);
  established(now);
}

TcpConnection::~TcpConnection() = default;

void TcpConnection::init_common(Instant now) {
  opened_ = last_progress_ = last_received_ = last_read_ = tune_start_ = limit_since_ = now;
  timer.kind = TimerNode::Kind::kConnection;
  timer.owner = this;
  receive_buffer_ = std::min(host_.config.receive_buffer_start, host_.config.receive_buffer_max);
  if (host_.pool.pressure_percent() > kPressureNoGrowth)
    receive_buffer_ = std::min<std::uint64_t>(receive_buffer_, kPressureReceiveBuffer);
  snd_una_ = snd_nxt_ = iss_;
  write_end_ = iss_ + 1;
  small_end_ = iss_;
  pseudo_sum_ = wire::pseudo_header_sum(local_.address, remote_.address, wire::ip_protocol::kTcp, 0);
  send_queue_.start_at(write_end_);
}

void TcpConnection::set_peer_mss(std::uint16_t mss) {
  peer_mss_ = mss != 0 ? static_cast<std::uint16_t>(std::max<std::size_t>(mss, kMinMss))
                       : static_cast<std::uint16_t>(remote_.address.is_v6() ? kDefaultMssV6 : kDefaultMssV4);
  update_segment_size();
}

void TcpConnection::update_segment_size() {
  std::size_t mtu = static_cast<std::size_t>(host_.config.mtu);
  path_mtu_ = peer_.path_mtu;
  if (peer_.path_mtu != 0) mtu = std::min(mtu, static_cast<std::size_t>(peer_.path_mtu));
  std::size_t mss = std::min<std::size_t>(peer_mss_, mtu - ip_header_size() - wire::kTcpHeaderSize);
  std::size_t size = mss - (ts_on_ ? 12u : 0u);
  if (black_hole_until_ != Instant()) size = std::min(size, kBlackHoleSegment);
  if (cc_ && size != segment_) cc_->on_segment_size(size);
  segment_ = static_cast<std::uint32_t>(size);
  receive_mss_ = std::max(receive_mss_, segment_);
}

void TcpConnection::established(Instant now) {
  enter(TcpState::kEstablished);
  update_segment_size();
  cc_ = make_congestion_controller(host_.config.congestion, segment_);
  // Without a valid sample of the handshake the first data timeout is careful (RFC 6298 5.7).
  if (srtt_ == Duration::zero() && syn_resent_) base_rto_ = kInitialRtoAfterSynResend;
  rtt_round_end_ = snd_nxt_;
  first_sent_time_ = delivered_time_ = last_progress_ = now;
  recovery_timer_ = RecoveryTimer::kNone;
  recovery_deadline_ = Instant::max();
  update_life_timer(now);
}

// ---- the app

std::size_t TcpConnection::unsent_limit() const {
  if (options_.notsent_low_water != 0) return options_.notsent_low_water;
  std::uint64_t rate = cc_ ? cc_->pacing_rate() : 0;
  std::uint64_t bytes = rate / static_cast<std::uint64_t>(Duration(1s) / kNotSentTime);
  return std::max(kNotSentLowWaterMin,
                  static_cast<std::size_t>(std::min<std::uint64_t>(bytes, host_.config.send_buffer_max)));
}

std::size_t TcpConnection::writable() const {
  if ((state_ != TcpState::kEstablished && state_ != TcpState::kCloseWait) || fin_queued_ || app_gone_) return 0;
  std::size_t unsent = static_cast<std::size_t>(write_end_ - std::min(write_end_, snd_nxt_));
  std::size_t queued = static_cast<std::size_t>(write_end_ - send_queue_.begin());
  std::size_t low = unsent_limit();
  if (unsent >= low || queued >= host_.config.send_buffer_max) return 0;
  return std::min(low - unsent, host_.config.send_buffer_max - queued);
}

std::size_t TcpConnection::write(Instant now, Bytes data) {
  std::size_t room = std::min(data.size(), writable());
  // One peer may not hold everything, and nobody may above the last mark.
  if (share_spent() || host_.pool.pressure_percent() > kPressureEvict) room = 0;
  std::size_t taken = send_queue_.write(write_end_, data.first(room));
  write_end_ += taken;
  if (taken < data.size() && !fin_queued_ && !app_gone_) {
    want_writable_ = true;
    // Nothing of ours that could be acknowledged, so memory must be asked for again by the clock.
    if (taken == 0 && write_end_ == snd_una_) update_life_timer(now);
  }
  if (taken > 0) host_.want_send(*this);
  return taken;
}

void TcpConnection::maybe_writable() {
  if (!want_writable_) return;
  std::size_t room = writable();
  if (room == 0 || room < std::min(unsent_limit(), host_.config.send_buffer_max) / 2) return;
  want_writable_ = false;
  host_.raise(*this, SocketEventKind::kWritable);
}

std::size_t TcpConnection::readable() const {
  std::uint64_t end = rcv_nxt_ - (fin_received_ ? 1 : 0);
  return end > receive_queue_.begin() ? static_cast<std::size_t>(end - receive_queue_.begin()) : 0;
}

std::size_t TcpConnection::peek(std::span<Bytes> out) const {
  return receive_queue_.spans(receive_queue_.begin() + readable(), out);
}

void TcpConnection::consume(Instant now, std::size_t size) {
  size = std::min(size, readable());
  if (size == 0) return;
  std::uint64_t end = rcv_nxt_ - (fin_received_ ? 1 : 0);
  if (ooo_) end = std::max(end, ooo_->last_end());
  receive_queue_.release_to(receive_queue_.begin() + size, end);
  last_read_ = now;
  tune_consumed_ += size;
  if (fin_received_ || finished()) return;
  tune_receive_buffer(now);
  // Tell the sender when the window opens by enough to matter, or from nothing (silly window, RFC 9293 3.8.6.2.2).
  std::uint64_t edge = receive_queue_.begin() + receive_buffer_;
  std::uint64_t step = std::max<std::uint64_t>(2 * receive_mss_, std::min<std::uint64_t>(64u << 10, receive_buffer_ / 4));
  bool was_closed = right_edge_ < rcv_nxt_ + receive_mss_;
  std::uint64_t opening = edge > right_edge_ ? edge - right_edge_ : 0;
  // While most of the window is still open there is nobody waiting for news.
  bool narrow = right_edge_ - std::min(right_edge_, rcv_nxt_) < receive_buffer_ / 2;
  if ((opening >= step && narrow) || (was_closed && opening >= std::min<std::uint64_t>(receive_buffer_ / 2, receive_mss_))) {
    ack_now_ = true;
    host_.want_ack(*this);
  }
}

void TcpConnection::shutdown_write(Instant now) {
  if (fin_queued_) return;
  switch (state_) {
    case TcpState::kEstablished: enter(TcpState::kFinWait1); break;
    case TcpState::kCloseWait: enter(TcpState::kLastAck); break;
    case TcpState::kSynSent:
    case TcpState::kSynReceived: break;   // after the handshake
    default: return;
  }
  fin_queued_ = true;
  half_closed_ = now;
  want_writable_ = false;
  update_life_timer(now);
  host_.want_send(*this);
}

void TcpConnection::close(Instant now) {
  if (app_gone_) return;
  app_gone_ = true;
  want_writable_ = false;
  if (finished()) {
    receive_queue_.clear();
    return;
  }
  if (state_ == TcpState::kSynSent) {
    finish(TcpState::kClosed);
    return;
  }
  // Data that the app will never read is lost: say so (RFC 9293 3.6.1).
  if (readable() > 0 || ooo_) {
    send_reset(snd_nxt_, true);
    finish(TcpState::kClosed);
    return;
  }
  last_progress_ = now;
  fin_wait2_since_ = now;
  shutdown_write(now);
  update_life_timer(now);
}

void TcpConnection::abort(Instant now) {
  (void)now;
  app_gone_ = true;
  if (!finished() && state_ != TcpState::kSynSent) send_reset(snd_nxt_, true);
  finish(TcpState::kClosed);
}

void TcpConnection::set_options(Instant now, const ConnectOptions& options) {
  options_ = options;
  update_life_timer(now);
  if (!finished()) host_.want_send(*this);
}

// ---- the end

void TcpConnection::finish(TcpState state) {
  state_ = state;
  send_queue_.clear();
  sent_.clear();
  if (app_gone_) receive_queue_.clear();
  else receive_queue_.drop_from(rcv_nxt_);
  ooo_.reset();
  recovery_timer_ = RecoveryTimer::kNone;
  recovery_deadline_ = ack_deadline_ = life_deadline_ = pace_deadline_ = Instant::max();
  want_writable_ = false;
  syn_due_ = probe_due_ = tail_probe_due_ = keepalive_due_ = override_due_ = false;
  ack_now_ = ack_pending_ = false;   // TIME-WAIT speaks for itself
  stretch_acks_ = 0;
}

void TcpConnection::start_time_wait(Instant) {
  finish(TcpState::kTimeWait);
  if (!app_gone_) host_.raise(*this, SocketEventKind::kClosed);
}

void TcpConnection::fail(ErrorCode error) {
  if (finished()) return;
  bool connecting = state_ == TcpState::kSynSent || state_ == TcpState::kSynReceived;
  error_ = error;
  std::uint64_t unread_from = receive_queue_.begin();
  finish(TcpState::kClosed);
  receive_queue_.clear();
  rcv_nxt_ = unread_from;
  fin_received_ = false;
  if (!app_gone_) host_.raise(*this, connecting ? SocketEventKind::kConnectFailed : SocketEventKind::kReset);
}

void TcpConnection::send_reset(std::uint64_t sequence, bool with_ack) {
  ControlSegment reset;
  reset.local = local_.address;
  reset.remote = remote_.address;
  reset.local_port = local_.port;
  reset.remote_port = remote_.port;
  reset.sequence = wire_sequence(sequence);
  reset.flags = kRst;
  if (with_ack) {
    reset.flags |= kAck;
    reset.acknowledgment = wire_sequence(rcv_nxt_);
    if (ts_on_) {
      reset.options.has_timestamps = true;
      reset.options.ts_value = ts_now(last_received_);
      reset.options.ts_echo = ts_recent_;
    }
  }
  ++host_.counters.tcp_resets_sent;
  host_.send_control(reset);
}

// ---- timers

Instant TcpConnection::next_timer() const {
  return std::min({recovery_deadline_, ack_deadline_, life_deadline_, pace_deadline_});
}

void TcpConnection::handle_timer(Instant now) {
  if (finished()) return;
  if (pace_deadline_ <= now) {
    pace_deadline_ = Instant::max();
    host_.want_send(*this);
  }
  if (ack_deadline_ <= now) {
    ack_deadline_ = Instant::max();
    ack_now_ = true;
    host_.want_ack(*this);
  }
  if (recovery_deadline_ <= now) handle_recovery_timer(now);
  if (!finished() && life_deadline_ <= now) handle_life_timer(now);
}

void TcpConnection::update_life_timer(Instant now) {
  Instant due = Instant::max();
  auto consider = [&](Instant t) { due = std::min(due, t); };
  switch (state_) {
    case TcpState::kClosed:
    case TcpState::kListen:
    case TcpState::kTimeWait: break;
    case TcpState::kSynSent:
    case TcpState::kSynReceived: consider(opened_ + options_.timeout); break;
    default:
      if (app_gone_) {
        consider((state_ == TcpState::kFinWait2 ? fin_wait2_since_ : std::max(last_progress_, fin_wait2_since_)) +
                 kOrphanLinger);
      }
      if (options_.user_timeout > Duration::zero() && snd_una_ < snd_nxt_)
        consider(std::max(last_progress_, opened_) + options_.user_timeout);
      if (options_.keepalive && snd_una_ == snd_nxt_) {
        consider(last_received_ + options_.keepalive_idle + options_.keepalive_interval * keepalive_sent_);
        consider(quiet_probe_due());
      }
      consider(half_closed_end(now));
      if (want_writable_ && write_end_ == snd_una_) consider(now + 100ms);
  }
  life_deadline_ = due;
}

void TcpConnection::handle_life_timer(Instant now) {
  life_deadline_ = Instant::max();
  if (state_ == TcpState::kSynSent || state_ == TcpState::kSynReceived) {
    if (now >= opened_ + options_.timeout) {
      if (state_ == TcpState::kSynReceived) send_reset(snd_nxt_, true);
      fail(ErrorCode::kTimeout);
      return;
    }
    update_life_timer(now);
    return;
  }
  if (app_gone_) {
    Instant since = state_ == TcpState::kFinWait2 ? fin_wait2_since_ : std::max(last_progress_, fin_wait2_since_);
    if (now >= since + kOrphanLinger) {
      if (state_ != TcpState::kFinWait2) send_reset(snd_nxt_, true);
      finish(TcpState::kClosed);
      return;
    }
  }
  if (options_.user_timeout > Duration::zero() && snd_una_ < snd_nxt_ &&
      now >= std::max(last_progress_, opened_) + options_.user_timeout) {
    send_reset(snd_nxt_, true);
    fail(ErrorCode::kTimeout);
    return;
  }
  if (options_.keepalive && snd_una_ == snd_nxt_ &&
      now >= last_received_ + options_.keepalive_idle + options_.keepalive_interval * keepalive_sent_) {
    if (keepalive_sent_ >= options_.keepalive_probes) {
      send_reset(snd_nxt_, true);
      fail(ErrorCode::kTimeout);
      return;
    }
    ++keepalive_sent_;
    send_keepalive();
  }
  if (options_.keepalive && snd_una_ == snd_nxt_ && now >= quiet_probe_due()) {
    ++quiet_probes_;
    send_keepalive();
    if (quiet_probes_ > 1) host_.unanswered_by(peer_);   // the tunnel's session may be the one that the peer has lost
  }
  if (now >= half_closed_end(now)) {
    send_reset(snd_nxt_, true);
    fail(ErrorCode::kTimeout);
    return;
  }
  maybe_writable();
  update_life_timer(now);
}

Instant TcpConnection::quiet_probe_due() const {
  return data_came_ && quiet_probes_ < kQuietProbes ? last_received_ + kQuietProbe * (quiet_probes_ + 1) : Instant::max();
}

void TcpConnection::send_keepalive() {
  keepalive_due_ = true;
  host_.want_send(*this);
}

Instant TcpConnection::half_closed_end(Instant now) const {
  bool half = state_ == TcpState::kFinWait1 || state_ == TcpState::kFinWait2 || state_ == TcpState::kCloseWait;
  if (!half || app_gone_ || options_.half_closed_timeout == Duration::zero()) return Instant::max();
  // What waits for its reader, here or there, is not idle.
  bool waiting = readable() > 0 || snd_una_ < std::max(write_end_, snd_nxt_);
  Instant since = waiting ? now : std::max({half_closed_, last_read_, last_progress_});
  return since + options_.half_closed_timeout;
}

// RFC 6298's second is for a round trip that nobody knows.
void TcpConnection::expect_round_trip() {
  if (state_ == TcpState::kSynSent && srtt_ == Duration::zero() && peer_.round_trip > Duration::zero())
    base_rto_ = std::clamp(3 * peer_.round_trip, kSynRtoMin, kInitialRto);
}

// ---- from the path layer

void TcpConnection::path_changed(Instant now, PathChange kind) {
  if (finished()) return;
  switch (kind) {
    case PathChange::kDirect:
    case PathChange::kRelayed:
      // Packets of the old path arrive late or early: no loss marks for one round trip of either, and time itself
      // must be learned again.
      loss_freeze_until_ = now + std::min(std::max(srtt_, Duration(min_rtt_)), kLossFreezeMax);
      reordering_seen_ = true;
      min_rtt_time_ = Instant();
      break;
    case PathChange::kUnreachable: break;
    case PathChange::kReachable:
      // The next resend should not wait for a timer that backed off during the outage. Without a resend so far there
      // was none, as far as this connection could see: the timer comes soon enough.
      if ((snd_una_ < snd_nxt_ && backoff_ > 0) || recovery_timer_ == RecoveryTimer::kPersist || state_ == TcpState::kSynSent) {
        backoff_ = std::min(backoff_, 1);
        persist_backoff_ = 0;
        resends_ = persist_unanswered_ = 0;
        if (black_hole_until_ != Instant()) black_hole_until_ = now;   // it was the outage
        recovery_deadline_ = std::min(recovery_deadline_, now);
      }
      // Perhaps with a peer that knows nothing of this connection any more. Only those ask that data came to since they
      // last had an answer: idle ones would all send at once.
      if (data_came_ && snd_una_ == snd_nxt_) {
        quiet_probes_ = std::max(quiet_probes_, 1);
        send_keepalive();
      }
      break;
  }
  if (cc_) cc_->on_path_change(now, kind);
}

void TcpConnection::tunnel_unblocked(Instant now) {
  if (finished()) return;
  expect_round_trip();
  if (state_ == TcpState::kSynSent || state_ == TcpState::kSynReceived || snd_una_ < snd_nxt_)
    recovery_deadline_ = now + rto();
  next_send_ = std::max(next_send_, now);
  host_.want_send(*this);
}

void TcpConnection::handle_refusal(Instant now) {
  if (state_ != TcpState::kSynSent) return;
  if (!refused_since_) refused_since_ = now;
  else if (now - *refused_since_ >= kRefusalPatience) fail(ErrorCode::kUnauthorized);
}

void TcpConnection::handle_icmp(Instant, bool hard, ErrorCode code, std::uint32_t sequence) {
  if (finished()) return;
  std::uint64_t quoted = unwrap_sequence(snd_una_, sequence);
  if (quoted < snd_una_ || quoted >= snd_nxt_) return;   // RFC 5927 4.1
  if (state_ == TcpState::kSynSent && hard) fail(code);
  // Synchronized: a soft error; data decides (RFC 9293 3.9.2.2).
}

void TcpConnection::handle_too_big(Instant now, std::uint32_t sequence, int mtu) {
  if (finished()) return;
  std::uint64_t quoted = unwrap_sequence(snd_una_, sequence);
  if (quoted < snd_una_ || quoted >= snd_nxt_) return;
  // Only ever less (RFC 8201 4): more is found out by forgetting.
  if (peer_.path_mtu != 0 && now < peer_.path_mtu_until && mtu > peer_.path_mtu) return;
  peer_.path_mtu = mtu;
  peer_.path_mtu_until = now + kPathMtuLifetime;
  update_segment_size();
  if (!cc_) return;
  // What is out there in larger pieces will not arrive.
  for (SentSegments::Id i = sent_.first(); i != sent_.end(); ++i)
    if (sent_[i].size > segment_ + 1 && !sent_[i].has(SentSegment::kSacked | SentSegment::kLost)) mark_lost(i);
  host_.want_send(*this);
}

// ---- memory pressure

void TcpConnection::drop_out_of_order() {
  if (!ooo_) return;
  ooo_.reset();
  receive_queue_.drop_from(rcv_nxt_);
  fin_at_ = kNoSequence;
}

bool TcpConnection::stalled_reader(Instant now) const {
  return readable() > 0 && right_edge_ < rcv_nxt_ + receive_mss_ && now - last_read_ > kZeroWindowReset;
}

// ---- figures

TcpInfo TcpConnection::info(Instant now) const {
  TcpInfo out;
  out.state = state_;
  out.local = local_;
  out.remote = remote_;
  out.srtt = srtt_;
  out.rttvar = rttvar_;
  out.min_rtt = min_rtt_;
  out.rto = rto();
  if (cc_) {
    out.cwnd = window();
    out.ssthresh = cc_->ssthresh();
    out.pacing_rate = cc_->pacing_rate();
  }
  out.delivery_rate = delivery_rate_;
  out.in_flight = pipe();
  if (!finished()) {
    out.unsent = write_end_ - std::min(write_end_, snd_nxt_);
    out.unacked = snd_nxt_ - snd_una_;
    out.send_window = snd_wnd_;
    out.receive_window = right_edge_ - std::min(right_edge_, rcv_nxt_);
  }
  out.unread = readable();
  out.receive_buffer = receive_buffer_;
  out.bytes_sent = bytes_sent_;
  out.bytes_resent = bytes_resent_;
  out.bytes_acked = std::min(snd_una_, write_end_) - std::min(snd_una_, iss_ + 1);   // data: the FIN is no byte
  out.bytes_received = bytes_received_;
  out.segments_sent = segments_sent_;
  out.segments_resent = segments_resent_;
  out.segments_received = segments_received_;
  out.recoveries = recoveries_;
  out.timeouts = timeouts_;
  out.tail_probes = tail_probes_;
  out.undone = undone_;
  out.dsacks = dsacks_;
  out.max_segment = segment_;
  out.timestamps = ts_on_;
  out.sack = sack_on_;
  out.window_scaling = scaling_on_;
  Duration times[4] = {limit_time_[0], limit_time_[1], limit_time_[2], limit_time_[3]};
  times[limit_] += now - limit_since_;
  out.limited_by_app = times[1];
  out.limited_by_window = times[2];
  out.limited_by_cwnd = times[3];
  return out;
}

void TcpConnection::check_invariants() const {
  PORTHOLE_ASSERT(sent_.recount_pipe() == sent_.pipe());
  PORTHOLE_ASSERT(snd_una_ <= snd_nxt_);
  if (finished() || state_ == TcpState::kSynSent || state_ == TcpState::kSynReceived) return;
  PORTHOLE_ASSERT(snd_nxt_ <= write_end_ + 1);
  std::uint64_t lost = 0, at = snd_una_;
  for (SentSegments::Id i = sent_.first(); i != sent_.end(); ++i) {
    const SentSegment& s = sent_[i];
    PORTHOLE_ASSERT(s.sequence == at && s.size > 0);
    at = s.end();
    int states = (s.has(SentSegment::kSacked) ? 1 : 0) + (s.has(SentSegment::kLost) ? 1 : 0) +
                 (s.has(SentSegment::kInNetwork) ? 1 : 0);
    PORTHOLE_ASSERT(states == 1);
    if (s.has(SentSegment::kLost)) ++lost;
  }
  PORTHOLE_ASSERT(at == snd_nxt_);
  PORTHOLE_ASSERT(lost == lost_pending_);
  // Something will happen: unacknowledged data has a timer or a turn coming.
  if (snd_una_ < snd_nxt_) PORTHOLE_ASSERT(recovery_deadline_ != Instant::max() || in_send_list);
  PORTHOLE_ASSERT(receive_queue_.begin() <= rcv_nxt_);
}

}  // namespace porthole::netstack
