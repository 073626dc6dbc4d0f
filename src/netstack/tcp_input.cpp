// Segment arrival (RFC 9293 3.10.7), in the order of the checks there; RFC 5961 against blind attacks, RFC 7323 for
// timestamps.
#include <algorithm>

#include "base/assert.h"
#include "netstack/tcp_connection.h"

namespace porthole::netstack {

using namespace wire::tcp_flag;

void TcpConnection::handle_segment(Instant now, const wire::TcpSegment& segment) {
  ++segments_received_;
  if (state_ == TcpState::kSynSent) return handle_syn_sent(now, segment);
  if (finished()) return;

  std::uint64_t sequence = unwrap_sequence(rcv_nxt_, segment.sequence);
  std::uint32_t length = segment.length();
  const wire::TcpOptions& options = segment.options;
  bool reset = segment.has(kRst);

  if (ts_on_ && !reset) {
    if (!options.has_timestamps) {
      host_.drop(Drop::kTcpPaws);   // RFC 7323 3.2
      return;
    }
    if (static_cast<std::int32_t>(options.ts_value - ts_recent_) < 0 && now - ts_recent_time_ < kPawsIdle) {
      host_.drop(Drop::kTcpPaws);
      // A bare ACK is just late (a path flip reorders); answering it could start a dialogue of two stacks.
      if (length > 0) ack_throttled(now);
      return;
    }
  }

  // Two SYNs that crossed: the peer's SYN again, now with an acknowledgment of ours, stands before the window but is the
  // ACK that is waited for (RFC 9293 3.10.7.4). Its window is not scaled (RFC 7323 2.2), and what it measured is not known:
  // it may have left before our second SYN.
  if (state_ == TcpState::kSynReceived && segment.has(kSyn) && segment.has(kAck) && !reset && sequence == irs_ &&
      unwrap_sequence(snd_una_, segment.acknowledgment) == iss_ + 1) {
    last_received_ = now;
    synchronized(now, sequence, segment.window);
    return;
  }

  // The window that was advertised counts, not the one we would give now. A segment at either edge is let through to
  // ACK processing: a sender probing a closed window must get an answer and may carry news.
  if (sequence + length < rcv_nxt_ || sequence > right_edge_ || (length > 0 && sequence + length <= rcv_nxt_)) {
    host_.drop(Drop::kTcpSequence);
    if (reset) return;
    if (segment.has(kSyn)) {
      challenge_ack(now);
      return;
    }
    if (!segment.data.empty()) {
      if (sequence < rcv_nxt_) note_duplicate(sequence, std::min(sequence + segment.data.size(), rcv_nxt_));
      ack_now_ = true;
      schedule_ack();
    } else {
      ack_throttled(now);
    }
    return;
  }

  if (reset) {
    if (sequence == rcv_nxt_) {
      reset_by_peer();
    } else {
      host_.drop(Drop::kTcpReset);
      if (sequence > rcv_nxt_ && sequence < right_edge_) challenge_ack(now);
    }
    return;
  }
  if (segment.has(kSyn)) {
    host_.drop(Drop::kTcpSyn);
    challenge_ack(now);
    return;
  }
  if (!segment.has(kAck)) {
    host_.drop(Drop::kTcpAck);
    return;
  }
  last_received_ = now;
  if (keepalive_sent_ != 0) {
    keepalive_sent_ = 0;
    update_life_timer(now);
  }
  if (quiet_probes_ != 0) {
    quiet_probes_ = 0;
    data_came_ = false;
  }

  if (state_ == TcpState::kSynReceived) {
    std::uint64_t ack = unwrap_sequence(snd_una_, segment.acknowledgment);
    if (ack != iss_ + 1) {
      ControlSegment refuse;
      refuse.local = local_.address;
      refuse.remote = remote_.address;
      refuse.local_port = local_.port;
      refuse.remote_port = remote_.port;
      refuse.sequence = segment.acknowledgment;
      refuse.flags = kRst;
      host_.send_control(refuse);
      return;
    }
    if (!syn_resent_) update_rtt(now, now - syn_sent_);
    synchronized(now, sequence, static_cast<std::uint64_t>(segment.window) << peer_shift_);
  }

  if (!handle_ack(now, segment, sequence)) return;
  if (finished()) return;

  if (length == 0) return;
  if (state_ == TcpState::kEstablished || state_ == TcpState::kFinWait1 || state_ == TcpState::kFinWait2) {
    if (app_gone_ && !segment.data.empty() && sequence + segment.data.size() > rcv_nxt_) {
      send_reset(snd_nxt_, true);
      finish(TcpState::kClosed);
      return;
    }
    if (options_.keepalive && !data_came_ && !segment.data.empty()) {
      data_came_ = true;
      update_life_timer(now);
    }
    measure_receive_rtt(now, segment);
    receive_data(now, sequence, segment.data, segment.has(kFin));
  }
}

void TcpConnection::synchronized(Instant now, std::uint64_t sequence, std::uint64_t window) {
  snd_una_ = iss_ + 1;
  established(now);
  host_.raise(*this, SocketEventKind::kConnected);
  if (fin_queued_) enter(TcpState::kFinWait1);
  snd_wl1_ = sequence;
  snd_wl2_ = snd_una_;
  snd_wnd_ = max_snd_wnd_ = window;
  host_.want_send(*this);
}

void TcpConnection::handle_syn_sent(Instant now, const wire::TcpSegment& segment) {
  if (segment.has(kAck)) {
    std::uint64_t ack = unwrap_sequence(snd_una_, segment.acknowledgment);
    if (ack != iss_ + 1 || snd_nxt_ == iss_) {
      host_.drop(Drop::kTcpAck);
      if (!segment.has(kRst)) send_reset(unwrap_sequence(snd_una_, segment.acknowledgment), false);
      return;
    }
  }
  if (segment.has(kRst)) {
    if (segment.has(kAck)) fail(ErrorCode::kRefused);
    else host_.drop(Drop::kTcpReset);
    return;
  }
  if (!segment.has(kSyn)) {
    host_.drop(Drop::kTcpSyn);
    return;
  }
  irs_ = first_sequence(segment.sequence);
  rcv_nxt_ = last_ack_sent_ = irs_ + 1;
  receive_queue_.start_at(rcv_nxt_);
  right_edge_ = rcv_nxt_ + std::min<std::uint64_t>(receive_buffer_, 65535);
  ts_on_ = segment.options.has_timestamps;
  sack_on_ = segment.options.sack_permitted;
  scaling_on_ = segment.options.window_shift.has_value();
  peer_shift_ = segment.options.window_shift.value_or(0);
  ts_recent_ = segment.options.ts_value;
  ts_recent_time_ = now;
  last_received_ = now;
  set_peer_mss(segment.options.mss.value_or(0));
  snd_wnd_ = max_snd_wnd_ = segment.window;   // never scaled on a SYN (RFC 7323 2.2)
  snd_wl1_ = irs_;
  if (segment.has(kAck)) {
    snd_una_ = snd_wl2_ = iss_ + 1;
    if (ts_on_ && segment.options.ts_echo != 0) {
      Duration sample = std::chrono::milliseconds(static_cast<std::int32_t>(ts_now(now) - segment.options.ts_echo));
      if (!syn_resent_) sample = now - syn_sent_;
      update_rtt(now, std::max(sample, Duration(1us)));
    } else if (!syn_resent_) {
      update_rtt(now, now - syn_sent_);
    }
    established(now);
    if (fin_queued_) enter(TcpState::kFinWait1);
    ack_now_ = true;
    schedule_ack();
    host_.raise(*this, SocketEventKind::kConnected);
    host_.want_send(*this);
    if (!segment.data.empty() || segment.has(kFin)) receive_data(now, irs_ + 1, segment.data, segment.has(kFin));
    return;
  }
  // Simultaneous open: our SYN again, now with an ACK.
  enter(TcpState::kSynReceived);
  syn_due_ = true;
  host_.want_send(*this);
}

void TcpConnection::receive_data(Instant now, std::uint64_t start, Bytes data, bool fin) {
  std::uint64_t end = start + data.size();
  if (fin_at_ != kNoSequence) {
    // Nothing can follow the FIN.
    if (start >= fin_at_ && !(fin && end == fin_at_)) return;
    if (end > fin_at_) {
      data = data.first(static_cast<std::size_t>(fin_at_ - start));
      end = fin_at_;
    }
  }
  if (start < rcv_nxt_) {
    note_duplicate(start, std::min(end, rcv_nxt_));
    ack_now_ = true;
    std::uint64_t old = std::min<std::uint64_t>(rcv_nxt_ - start, data.size());
    data = data.subspan(static_cast<std::size_t>(old));
    start += old;
  }
  if (end > right_edge_) {
    data = data.first(static_cast<std::size_t>(right_edge_ - std::min(right_edge_, start)));
    end = start + data.size();
    fin = false;
    ack_now_ = true;
  }
  if (start > rcv_nxt_) {
    if (fin) fin_at_ = end;
    if (!data.empty()) {
      receive_out_of_order(start, data);
    } else {
      ack_now_ = true;
      schedule_ack();
    }
    return;
  }
  if (!data.empty()) {
    // What came early is given up for what is due, or it could hold the share for ever.
    if (share_spent()) drop_out_of_order();
    // An almost empty connection may go into the reserve: it is what keeps everybody alive under pressure.
    bool reserve = receive_queue_.chunk_count() == 0;
    std::size_t taken = share_spent() ? 0 : receive_queue_.write(rcv_nxt_, data, reserve);
    if (taken < data.size()) {
      host_.drop(Drop::kTcpMemory);
      fin = false;
      end = start + taken;
    }
    if (taken > 0) {
      rcv_nxt_ += taken;
      bytes_received_ += taken;
      data_arrived_ = true;
      ++unacked_segments_;
      if (data.size() > receive_mss_) receive_mss_ = static_cast<std::uint32_t>(data.size());
      if (ooo_) {
        if (auto reached = ooo_->take_contiguous(rcv_nxt_)) {
          bytes_received_ += *reached - rcv_nxt_;
          rcv_nxt_ = *reached;
        }
        if (ooo_->empty() && ooo_->pending.empty()) ooo_.reset();
        ack_now_ = true;   // a gap, or part of one, is filled (RFC 5681 4.2)
      } else if (unacked_segments_ % kSegmentsPerAckMax == 0 && stretch_acks_ < 4) {
        stretch_at_[stretch_acks_++] = wire_sequence(rcv_nxt_);
      }
    }
  }
  if (fin) fin_at_ = end;
  if (fin_at_ == rcv_nxt_ && !fin_received_) fin_reached(now);
  schedule_ack();
}

void TcpConnection::receive_out_of_order(std::uint64_t start, Bytes data) {
  if (!ooo_) ooo_ = std::make_unique<OutOfOrder>();
  std::uint64_t end = start + data.size();
  std::uint64_t limit = receive_buffer_ * kOutOfOrderPercent / 100;
  // What fills the first gap must find room; what is furthest away goes first.
  while (!ooo_->empty() && (ooo_->bytes() + data.size() > limit || ooo_->intervals().size() >= kOutOfOrderIntervalsMax)) {
    if (ooo_->intervals().back().start <= start) break;
    ooo_->drop_last();
    fin_at_ = kNoSequence;
    receive_queue_.drop_from(std::max(ooo_->last_end(), rcv_nxt_));
  }
  bool room = ooo_->bytes() + data.size() <= limit && ooo_->intervals().size() < kOutOfOrderIntervalsMax &&
              host_.pool.pressure_percent() <= kPressureRenege && !share_spent();
  if (room) {
    std::size_t taken = receive_queue_.write(start, data);
    if (taken < data.size()) {
      room = false;
      host_.drop(Drop::kTcpMemory);
      // What a half-written segment left behind is not recorded, so it is not there.
    } else if (!ooo_->add(start, end)) {
      note_duplicate(start, end);
    }
  } else {
    host_.drop(Drop::kTcpMemory);
  }
  push_duplicate_ack();
  if (ooo_->empty() && ooo_->pending.empty()) ooo_.reset();
}

// Three bare duplicates start recovery in senders without SACK, so the first ones of an episode leave one per segment.
void TcpConnection::push_duplicate_ack() {
  if (ooo_ && ooo_->acks_in_episode < kDuplicateAcksPerEpisode) {
    ++ooo_->acks_in_episode;
    OutOfOrder::Snapshot snapshot;
    snapshot.acknowledgment = wire_sequence(rcv_nxt_);
    if (sack_on_) {
      snapshot.sack_count = ooo_->fill_blocks(duplicate_, ts_on_ ? 3u : 4u, snapshot.sack);
      duplicate_.reset();
    }
    ooo_->pending.push_back(snapshot);
    ooo_->newer_than_pending = false;
    ack_pending_ = true;
    schedule_ack();
    return;
  }
  if (ooo_) ooo_->newer_than_pending = true;
  ack_now_ = true;
  schedule_ack();
}

void TcpConnection::fin_reached(Instant now) {
  ++rcv_nxt_;
  fin_received_ = true;
  half_closed_ = now;
  ooo_.reset();
  receive_queue_.drop_from(rcv_nxt_ - 1);
  ack_now_ = true;
  schedule_ack();
  switch (state_) {
    case TcpState::kEstablished: enter(TcpState::kCloseWait); break;
    case TcpState::kFinWait1: enter(TcpState::kClosing); break;   // our FIN is not acknowledged, or it were FIN-WAIT-2
    case TcpState::kFinWait2: start_time_wait(now); break;
    default: break;
  }
  if (!app_gone_) host_.raise(*this, SocketEventKind::kPeerClosed);
  update_life_timer(now);
}

void TcpConnection::reset_by_peer() {
  bool refused = state_ == TcpState::kSynReceived;
  fail(refused ? ErrorCode::kRefused : ErrorCode::kReset);
}

void TcpConnection::note_duplicate(std::uint64_t start, std::uint64_t end) {
  if (sack_on_ && start < end) duplicate_ = wire::SackBlock{wire_sequence(start), wire_sequence(end)};
}

void TcpConnection::challenge_ack(Instant now) {
  if (challenged_ && now - last_challenge_ < kChallengeAckInterval) return;
  challenged_ = true;
  last_challenge_ = now;
  ++host_.counters.tcp_challenge_acks;
  ack_now_ = true;
  schedule_ack();
}

void TcpConnection::ack_throttled(Instant now) {
  if (throttled_ && now - last_throttled_ < kChallengeAckInterval) return;
  throttled_ = true;
  last_throttled_ = now;
  ack_now_ = true;
  schedule_ack();
}

// The decision itself falls in end_batch(), when the whole batch is known (RFC 9293 3.10.7.4).
void TcpConnection::schedule_ack() { new_in_batch_ = true; }

void TcpConnection::end_batch(Instant now) {
  in_batch = false;
  if (data_arrived_) {
    data_arrived_ = false;
    if (!app_gone_) host_.raise(*this, SocketEventKind::kReadable);
  }
  if (!new_in_batch_) return;
  new_in_batch_ = false;
  if (finished()) return;
  std::uint64_t unacked = rcv_nxt_ - last_ack_sent_;
  if (unacked > 0 && quick_acks_ > 0) {
    --quick_acks_;
    ack_now_ = true;
  }
  if (ack_now_ || ack_pending_ || stretch_acks_ > 0 || unacked >= 2 * std::uint64_t{receive_mss_}) {
    ack_now_ = true;
    host_.want_ack(*this);
  } else if (unacked > 0 && ack_deadline_ == Instant::max()) {
    ack_deadline_ = now + kDelayedAck;
  }
}

// ---- the receive window

void TcpConnection::measure_receive_rtt(Instant now, const wire::TcpSegment& segment) {
  Duration sample;
  if (ts_on_) {
    if (segment.options.ts_echo == 0 || segment.data.size() < receive_mss_ / 2) return;
    std::int32_t ms = static_cast<std::int32_t>(ts_now(now) - segment.options.ts_echo);
    if (ms < 0) return;
    sample = std::chrono::milliseconds(std::max(ms, 1));
  } else {
    // The time in which one window arrives is at least one round trip.
    if (rcv_nxt_ < window_rtt_end_) return;
    bool first = window_rtt_end_ == 0;
    sample = now - window_rtt_start_;
    window_rtt_end_ = right_edge_;
    window_rtt_start_ = now;
    if (first || sample <= Duration::zero()) return;
  }
  if (receive_rtt_ == Duration::zero() || sample <= receive_rtt_ || now - receive_rtt_time_ > 10s) {
    receive_rtt_ = sample;
    receive_rtt_time_ = now;
  }
}

// Twice what the app consumed in one round trip is what the sender may need to have in flight and a half-filled
// recovery besides (dynamic right-sizing).
void TcpConnection::tune_receive_buffer(Instant now) {
  if (receive_rtt_ == Duration::zero() || now - tune_start_ < receive_rtt_) return;
  std::uint64_t target = 2 * tune_consumed_ + 16 * std::uint64_t{receive_mss_};
  // Measured over longer than a round trip when the app reads rarely.
  double rounds = static_cast<double>((now - tune_start_).count()) / static_cast<double>(receive_rtt_.count());
  if (rounds > 2) target = static_cast<std::uint64_t>(static_cast<double>(target) / (rounds / 2));
  if (target > tune_target_) {
    if (tune_target_ > 0) {
      double growth = static_cast<double>(target) / static_cast<double>(tune_target_) - 1.0;
      target += static_cast<std::uint64_t>(2.0 * std::min(growth, 1.0) * static_cast<double>(target));
    }
    tune_target_ = 2 * tune_consumed_ + 16 * std::uint64_t{receive_mss_};
  }
  std::uint64_t max = std::min<std::uint64_t>(host_.config.receive_buffer_max, kReceiveBufferLimit - 65536);
  if (target > receive_buffer_ && host_.pool.pressure_percent() <= kPressureNoGrowth &&
      peer_.buffer_bytes <= host_.pool.limit() / 2)
    receive_buffer_ = std::max(receive_buffer_, std::min(target, max));
  tune_start_ = now;
  tune_consumed_ = 0;
}

std::uint16_t TcpConnection::select_window(bool duplicate_ack) {
  std::uint64_t hard_edge = receive_queue_.begin() + receive_buffer_;
  std::uint64_t edge = right_edge_;
  // A duplicate ACK counts for most senders only with an unchanged window.
  bool frozen = duplicate_ack && right_edge_ >= rcv_nxt_ + 2 * std::uint64_t{receive_mss_};
  if (!frozen && hard_edge > right_edge_ &&
      hard_edge - right_edge_ >= std::min<std::uint64_t>(receive_buffer_ / 2, receive_mss_))
    edge = hard_edge;
  std::uint64_t window = edge > rcv_nxt_ ? edge - rcv_nxt_ : 0;
  if (!scaling_on_) {
    window = std::min<std::uint64_t>(window, 65535);
    right_edge_ = std::max(right_edge_, rcv_nxt_ + window);
    return static_cast<std::uint16_t>(window);
  }
  std::uint64_t field = window >> kWindowShift;
  // Rounding down must not take back what was promised; one step of rounding up is reserved behind the buffer.
  if (rcv_nxt_ + (field << kWindowShift) < right_edge_ &&
      rcv_nxt_ + ((field + 1) << kWindowShift) <= hard_edge + (1u << kWindowShift))
    ++field;
  field = std::min<std::uint64_t>(field, 65535);
  right_edge_ = std::max(right_edge_, rcv_nxt_ + (field << kWindowShift));
  return static_cast<std::uint16_t>(field);
}

}  // namespace porthole::netstack
