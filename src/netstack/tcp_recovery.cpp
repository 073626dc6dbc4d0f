// Acknowledgments: what arrived, what is lost, how long it took (RFC 6298, 2018, 8985), what was a false alarm (RFC
// 3522, 5682, 2883) and what congestion control makes of it (RFC 9937 in fast recovery).
#include <algorithm>

#include "base/assert.h"
#include "netstack/tcp_connection.h"

namespace porthole::netstack {

using namespace wire::tcp_flag;

// False: the segment is to be dropped.
bool TcpConnection::handle_ack(Instant now, const wire::TcpSegment& segment, std::uint64_t sequence) {
  std::uint64_t ack = unwrap_sequence(snd_una_, segment.acknowledgment);
  if (ack > snd_nxt_ || ack + max_snd_wnd_ < snd_una_) {
    host_.drop(Drop::kTcpAck);
    challenge_ack(now);   // RFC 5961 5
    return false;
  }
  if (ts_on_ && segment.options.has_timestamps && sequence <= last_ack_sent_ &&
      static_cast<std::int32_t>(segment.options.ts_value - ts_recent_) >= 0) {
    ts_recent_ = segment.options.ts_value;
    ts_recent_time_ = now;
  }
  std::uint64_t prior_window = snd_wnd_;
  bool window_changed = false;
  if (ack >= snd_una_ && (snd_wl1_ < sequence || (snd_wl1_ == sequence && snd_wl2_ <= ack))) {
    snd_wnd_ = static_cast<std::uint64_t>(segment.window) << (scaling_on_ ? peer_shift_ : 0);
    snd_wl1_ = sequence;
    snd_wl2_ = ack;
    max_snd_wnd_ = std::max(max_snd_wnd_, snd_wnd_);
    window_changed = snd_wnd_ != prior_window;
  }
  if (recovery_timer_ == RecoveryTimer::kPersist) {
    persist_unanswered_ = 0;   // any answer will do (RFC 9293 3.8.6.1)
    last_progress_ = now;
    if (snd_wnd_ > 0) {
      persist_backoff_ = 0;
      recovery_timer_ = RecoveryTimer::kNone;
      recovery_deadline_ = Instant::max();
    }
  }
  if (sent_.empty()) {
    if (ack == tail_probe_end_) tail_probe_end_ = 0;   // once more: both transmissions of the probe arrived
    if (window_changed || recovery_timer_ == RecoveryTimer::kNone) {
      if (write_end_ > snd_nxt_ || (fin_queued_ && !fin_sent_)) host_.want_send(*this);
    }
    return true;
  }

  AckRound round;
  round.now = now;
  round.prior_una = snd_una_;
  round.prior_pipe = pipe();
  round.delivered_before = delivered_;
  round.lost_before = lost_total_;
  bool sacks = sack_on_ && segment.options.sack_count > 0;
  if (ack <= snd_una_ && !sacks && (sack_on_ || ack < snd_una_)) {
    if (window_changed) host_.want_send(*this);
    return true;   // nothing new
  }

  if (sacks) apply_sack(round, segment, ack);
  if (ack > snd_una_) {
    round.una_advanced = true;
    if (ts_on_ && segment.options.ts_echo != 0) round.ts_echo = segment.options.ts_echo;
    while (!sent_.empty() && sent_[sent_.first()].end() <= ack) {
      SentSegment& head = sent_[sent_.first()];
      if (head.has(SentSegment::kSacked)) {
        --sacked_count_;
      } else {
        if (head.has(SentSegment::kLost)) --lost_pending_;
        deliver(round, head);
      }
      sent_.pop_front();
    }
    if (!sent_.empty() && sent_[sent_.first()].sequence < ack) {
      std::uint32_t part = static_cast<std::uint32_t>(ack - sent_[sent_.first()].sequence);
      delivered_ += part;
      sent_.trim_front(sent_.first(), part);
    }
    snd_una_ = ack;
    last_progress_ = now;
    resends_ = 0;
    backoff_ = 0;
    full_timeouts_ = 0;
    duplicate_acks_ = 0;
    without_sack_bytes_ -= std::min(without_sack_bytes_, snd_una_ - round.prior_una);
    if (sent_.empty()) without_sack_bytes_ = 0;
    if (lost_hint_ < sent_.first() || sent_.empty()) lost_hint_ = sent_.first();
    std::uint64_t data_end = std::min(snd_una_, write_end_);
    if (data_end > send_queue_.begin()) send_queue_.release_to(data_end, write_end_);
    highest_delivered_ = std::max(highest_delivered_, snd_una_);
  }

  // Round trip times: the oldest for the timer, which must cover delayed answers; the newest for everything else. An answer
  // to a resend also covers what arrived long before, its own answers lost: no times from those (RFC 6298 3).
  if (round.resent_delivered) round.rtt_oldest = round.rtt_newest = Duration::zero();
  if (round.rtt_oldest > Duration::zero()) {
    update_rtt(now, round.rtt_oldest);
  } else if (round.una_advanced && ts_on_ && segment.options.ts_echo != 0) {
    std::int32_t ms = static_cast<std::int32_t>(ts_now(now) - segment.options.ts_echo);
    if (ms >= 0) update_rtt(now, std::chrono::milliseconds(std::max(ms, 1)));
  }

  if (round.duplicate_reported) {
    ++dsacks_;
    if (undo_armed_ && undo_resends_ > 0) --undo_resends_;
    if (snd_una_ >= dsack_round_end_) {
      reo_mult_ = std::min(reo_mult_ + 1, 255);
      dsack_round_end_ = snd_nxt_;
    }
    reo_persist_ = kRackReoWndPersist;
  }
  handle_tail_probe_ack(round, ack, segment);
  bool undone = try_undo(round, segment);
  if (sack_on_) detect_losses(round);
  else if (!undone) without_sack(round, segment, window_changed);

  // Phases.
  if (phase_ != Phase::kOpen && snd_una_ >= recovery_end_) leave_recovery(now);
  if (lost_pending_ > 0 && phase_ == Phase::kOpen) enter_recovery(now, round.prior_pipe);

  congestion_feedback(round);

  if (fin_sent_ && snd_una_ == write_end_ + 1) {
    switch (state_) {
      case TcpState::kFinWait1:
        enter(TcpState::kFinWait2);
        fin_wait2_since_ = now;
        update_life_timer(now);
        break;
      case TcpState::kClosing: start_time_wait(now); return true;
      case TcpState::kLastAck:
        finish(TcpState::kClosed);
        if (!app_gone_) host_.raise(*this, SocketEventKind::kClosed);
        return true;
      default: break;
    }
  } else if (app_gone_ || options_.user_timeout > Duration::zero() || options_.keepalive) {
    update_life_timer(now);
  }
  arm_recovery_timer(now);
  maybe_writable();
  if (lost_pending_ > 0 || write_end_ > snd_nxt_ || (fin_queued_ && !fin_sent_)) host_.want_send(*this);
  return true;
}

// A segment has arrived, by either kind of acknowledgment.
void TcpConnection::deliver(AckRound& round, SentSegment& segment) {
  delivered_ += segment.size;
  delivered_time_ = round.now;
  if (segment.has(SentSegment::kRestamped)) {
    if (segment.end() < highest_delivered_) reordering_seen_ = true;
    highest_delivered_ = std::max(highest_delivered_, segment.end());
    return;
  }
  Duration rtt = round.now - segment.sent;
  bool resent = segment.has(SentSegment::kResent);
  if (!resent) {
    if (round.rtt_oldest == Duration::zero()) round.rtt_oldest = std::max(rtt, Duration(1));
    round.rtt_newest = std::max(rtt, Duration(1));
    if (segment.end() < highest_delivered_) reordering_seen_ = true;
    if (segment.sent <= timeout_time_) round.original_delivered = true;
  } else {
    round.resent_delivered = true;
  }
  highest_delivered_ = std::max(highest_delivered_, segment.end());
  // RACK (RFC 8985 6.2 step 2): a resend that came back faster than light was the original arriving, and so was one whose
  // acknowledgment echoes an earlier time. A selective acknowledgment echoes the time of what came in sequence instead
  // (RFC 7323 4.3), so it tells nothing here.
  bool ambiguous = resent && (rtt < min_rtt_ || (round.ts_echo && static_cast<std::int32_t>(*round.ts_echo - segment.ts_value) < 0));
  if (!ambiguous && (segment.sent > rack_sent_ || (segment.sent == rack_sent_ && segment.end() > rack_end_))) {
    rack_sent_ = segment.sent;
    rack_end_ = segment.end();
    rack_rtt_ = rtt;
  }
  if (!round.have_rate || segment.sent > round.rate_sent ||
      (segment.sent == round.rate_sent && segment.delivered >= round.rate_delivered)) {
    round.have_rate = true;
    round.rate_sent = segment.sent;
    round.rate_delivered = segment.delivered;
    round.rate_time = segment.delivered_time;
    round.rate_send_elapsed = segment.sent - segment.first_sent;
    round.rate_app_limited = segment.has(SentSegment::kAppLimited);
    round.rate_in_flight = segment.in_flight;
    round.rate_lost = segment.lost;
    first_sent_time_ = segment.sent;
  }
}

// ---- SACK (RFC 2018, 2883, 6675)

void TcpConnection::apply_sack(AckRound& round, const wire::TcpSegment& segment, std::uint64_t ack) {
  std::uint8_t count = segment.options.sack_count;
  std::uint64_t floor = std::max(snd_una_, ack);
  for (std::uint8_t i = 0; i < count; ++i) {
    const wire::SackBlock& block = segment.options.sack[i];
    std::uint64_t start = unwrap_sequence(snd_una_, block.start);
    std::uint64_t end = start + (block.end - block.start);
    if (start >= end || end > snd_nxt_ || end - start > snd_nxt_ - std::min(snd_nxt_, iss_)) {
      ++host_.counters.tcp_bad_sack;
      continue;
    }
    if (i == 0) {
      bool duplicate = end <= ack;
      if (!duplicate && count > 1) {
        std::uint64_t second = unwrap_sequence(snd_una_, segment.options.sack[1].start);
        std::uint64_t second_end = unwrap_sequence(snd_una_, segment.options.sack[1].end);
        duplicate = start >= second && end <= second_end;
      }
      if (duplicate) {
        if (start + max_snd_wnd_ >= snd_una_) {
          round.duplicate_reported = true;
          round.duplicate = block;
        } else {
          ++host_.counters.tcp_bad_sack;
        }
        continue;
      }
    }
    if (start < floor) {
      if (end > floor) start = floor;   // partly acknowledged meanwhile: an old segment
      else continue;
    }
    // Senders repeat blocks in every ACK: only what the last one did not say is new.
    std::uint64_t at = start;
    while (at < end) {
      std::uint64_t upto = end;
      bool known = false;
      for (std::uint8_t c = 0; c < sack_cached_; ++c) {
        std::uint64_t cached = unwrap_sequence(snd_una_, sack_cache_[c].start);
        std::uint64_t cached_end = cached + (sack_cache_[c].end - sack_cache_[c].start);
        if (cached <= at && at < cached_end) {
          at = std::min(end, cached_end);
          known = true;
          break;
        }
        if (cached > at && cached < upto) upto = cached;
      }
      if (known) continue;
      mark_sacked(round, at, upto, start, end);
      at = upto;
    }
  }
  // Remember what was said, for the next one.
  sack_cached_ = 0;
  for (std::uint8_t i = 0; i < count; ++i) {
    const wire::SackBlock& block = segment.options.sack[i];
    std::uint64_t start = unwrap_sequence(snd_una_, block.start);
    std::uint64_t end = start + (block.end - block.start);
    if (start < end && end <= snd_nxt_ && start >= floor && !(i == 0 && round.duplicate_reported))
      sack_cache_[sack_cached_++] = block;
  }
}

// Records that touch [from, to) and lie wholly in the block [start, end).
void TcpConnection::mark_sacked(AckRound& round, std::uint64_t from, std::uint64_t to, std::uint64_t start,
                                std::uint64_t end) {
  for (SentSegments::Id id = sent_.find(from); id != sent_.end() && sent_[id].sequence < to; ++id) {
    SentSegment& s = sent_[id];
    if (s.sequence < start || s.end() > end || s.has(SentSegment::kSacked)) continue;
    if (s.has(SentSegment::kLost)) {
      s.flags &= static_cast<std::uint8_t>(~SentSegment::kLost);
      --lost_pending_;
    }
    if (s.has(SentSegment::kInNetwork)) sent_.unlink(id);
    s.flags |= SentSegment::kSacked;
    ++sacked_count_;
    round.newly_sacked = true;
    deliver(round, s);
  }
}

void TcpConnection::mark_lost(SentSegments::Id id) {
  SentSegment& s = sent_[id];
  PORTHOLE_ASSERT(s.has(SentSegment::kInNetwork));
  sent_.unlink(id);
  s.flags |= SentSegment::kLost;
  ++lost_pending_;
  lost_total_ += s.size;
  if (lost_pending_ == 1 || id < lost_hint_) lost_hint_ = id;
}

// ---- RACK (RFC 8985 6.2)

Duration TcpConnection::reorder_window() const {
  if (!reordering_seen_ && (phase_ != Phase::kOpen || sacked_count_ >= kRackReorderingThreshold)) return Duration::zero();
  return std::min(min_rtt_ * reo_mult_ / 4, srtt_);
}

void TcpConnection::detect_losses(AckRound& round) {
  reorder_deadline_ = Instant::max();
  if (rack_sent_ == Instant()) return;
  Duration window = reorder_window();
  for (SentSegments::Id id = sent_.oldest(); id != SentSegments::kNone;) {
    SentSegment& s = sent_[id];
    if (s.sent > rack_sent_ || (s.sent == rack_sent_ && s.end() > rack_end_)) break;
    SentSegments::Id next = s.newer;
    Instant due = std::max(s.sent + rack_rtt_ + window, loss_freeze_until_);
    if (due <= round.now) {
      mark_lost(id);
    } else {
      // Ordered by time of sending: whatever follows waits at least as long. One timer for the last of them.
      reorder_deadline_ = std::max(due, std::max(rack_sent_ + rack_rtt_ + window, loss_freeze_until_));
      break;
    }
    id = next;
  }
}

// Peers without SACK: three duplicates mean the head is lost, a partial acknowledgment means the next one is
// (RFC 6582). Each duplicate stands for one segment that arrived.
void TcpConnection::without_sack(AckRound& round, const wire::TcpSegment& segment, bool window_changed) {
  bool duplicate = !round.una_advanced && segment.data.empty() && !segment.has(kFin) && !window_changed && !sent_.empty();
  if (duplicate) {
    ++duplicate_acks_;
    std::uint64_t one = std::min<std::uint64_t>(segment_, sent_.pipe() - std::min(sent_.pipe(), without_sack_bytes_));
    without_sack_bytes_ += one;
    delivered_ += one;
    delivered_time_ = round.now;
    SentSegments::Id head = sent_.first();
    if (duplicate_acks_ == 3 && phase_ == Phase::kOpen && sent_[head].has(SentSegment::kInNetwork)) mark_lost(head);
    return;
  }
  if (round.una_advanced && phase_ == Phase::kRecovery && snd_una_ < recovery_end_ && !sent_.empty()) {
    SentSegments::Id head = sent_.first();
    if (sent_[head].has(SentSegment::kInNetwork) && !sent_[head].has(SentSegment::kResent)) mark_lost(head);
  }
}

// ---- tail loss probe (RFC 8985 7.4)

void TcpConnection::handle_tail_probe_ack(AckRound& round, std::uint64_t ack, const wire::TcpSegment& segment) {
  if (tail_probe_end_ == 0 || ack < tail_probe_end_) return;
  // Without timestamps this may answer either transmission: the DSACK for the second, or the first acknowledgment of
  // something newer without one, will tell.
  if (tail_probe_resent_ && !ts_on_ && !round.duplicate_reported && ack == tail_probe_end_) return;
  bool original = !tail_probe_resent_ || round.duplicate_reported ||
                  (ts_on_ && segment.options.has_timestamps &&
                   static_cast<std::int32_t>(segment.options.ts_echo - tail_probe_ts_) < 0);
  if (!original) {
    // The probe repaired a loss nobody would otherwise hear of: slow down once.
    if (phase_ == Phase::kOpen) {
      cc_->on_enter_recovery(round.now, std::max(round.prior_pipe, max_flight_));
      cc_->on_exit_recovery(round.now);
      ++recoveries_;
      ++host_.counters.tcp_recoveries;
    }
  }
  tail_probe_end_ = 0;
}

// ---- false alarms

bool TcpConnection::try_undo(AckRound& round, const wire::TcpSegment& segment) {
  if (!undo_armed_ || phase_ == Phase::kOpen) {
    // Recovery may be over before the receiver tells that every resend was superfluous.
    if (undo_armed_ && round.duplicate_reported && undo_resends_ == 0 && first_resend_known_) {
      undo(round.now);
      return true;
    }
    return false;
  }
  // Everything that was thought lost has arrived before any of it was sent again.
  bool spurious = !first_resend_known_ && lost_pending_ == 0;
  // Eifel (RFC 3522): the answer echoes a time before the first resend.
  if (ts_on_ && round.una_advanced && first_resend_known_ && segment.options.ts_echo != 0 &&
      static_cast<std::int32_t>(segment.options.ts_echo - first_resend_ts_) < 0)
    spurious = true;
  // F-RTO (RFC 5682): after a timeout something arrives that was sent before it and never again.
  if (phase_ == Phase::kLoss && round.original_delivered && sack_on_ &&
      (!ts_on_ || static_cast<std::int32_t>(segment.options.ts_echo - first_resend_ts_) < 0 || !first_resend_known_))
    spurious = true;
  // DSACK: every resend was a duplicate.
  if (round.duplicate_reported && undo_resends_ == 0 && first_resend_known_) spurious = true;
  if (!spurious) return false;
  undo(round.now);
  return true;
}

void TcpConnection::undo(Instant now) {
  // What was marked lost and not sent again is in the network after all.
  for (SentSegments::Id id = sent_.first(); lost_pending_ > 0 && id != sent_.end(); ++id) {
    SentSegment& s = sent_[id];
    if (!s.has(SentSegment::kLost)) continue;
    s.flags &= static_cast<std::uint8_t>(~SentSegment::kLost);
    --lost_pending_;
    lost_total_ -= std::min<std::uint64_t>(lost_total_, s.size);
    // Its place in time is now: judged again a round trip later.
    s.sent = now;
    s.flags |= SentSegment::kRestamped;
    sent_.link_newest(id);
  }
  bool timeout = phase_ == Phase::kLoss;
  phase_ = Phase::kOpen;
  undo_armed_ = false;
  if (!timeout) reordering_seen_ = true;
  cc_->on_spurious(now);
  if (timeout) base_rto_ = std::max(base_rto_, srtt_ + 4 * rttvar_);
  ++undone_;
  ++host_.counters.tcp_undone;
}

// ---- phases

void TcpConnection::enter_recovery(Instant now, std::uint64_t prior_pipe) {
  phase_ = Phase::kRecovery;
  recovery_end_ = snd_nxt_;
  tail_probe_end_ = 0;
  tail_probe_due_ = false;
  undo_armed_ = true;
  undo_resends_ = 0;
  first_resend_known_ = false;
  prr_delivered_ = prr_out_ = 0;
  prr_flight_ = std::max<std::uint64_t>(prior_pipe, segment_);
  prr_window_ = pipe() + segment_;
  // What is reduced is what the path carried in this round trip: at the end of an answer, when the loss is noticed, little
  // is in flight, and that says nothing about the path (RFC 7661 4.4.1).
  cc_->on_enter_recovery(now, std::max(prior_pipe, max_flight_));
  ++recoveries_;
  ++host_.counters.tcp_recoveries;
}

void TcpConnection::leave_recovery(Instant now) {
  bool fast = phase_ == Phase::kRecovery;
  phase_ = Phase::kOpen;
  if (fast) cc_->on_exit_recovery(now);
  without_sack_bytes_ = 0;
  if (reo_persist_ > 0 && --reo_persist_ == 0) reo_mult_ = 1;
  if (reo_persist_ == 0) reo_mult_ = 1;
}

std::uint64_t TcpConnection::window() const {
  return phase_ == Phase::kRecovery && cc_->uses_rate_reduction() ? prr_window_ : cc_->cwnd();
}

// RFC 9937 section 5.
void TcpConnection::rate_reduction(const AckRound& round) {
  std::uint64_t delivered = delivered_ - round.delivered_before;
  prr_delivered_ += delivered;
  if (delivered == 0 && lost_total_ == round.lost_before) return;
  std::uint64_t target = cc_->ssthresh();
  std::uint64_t in_flight = pipe();
  std::uint64_t may_send;
  if (in_flight > target) {
    std::uint64_t due = static_cast<std::uint64_t>(static_cast<double>(prr_delivered_) * static_cast<double>(target) /
                                                   static_cast<double>(prr_flight_)) + 1;
    may_send = due > prr_out_ ? due - prr_out_ : 0;
  } else {
    may_send = std::max(prr_delivered_ > prr_out_ ? prr_delivered_ - prr_out_ : 0, delivered);
    if (round.una_advanced && lost_total_ == round.lost_before) may_send += segment_;
    may_send = std::min(may_send, target - in_flight);
  }
  // A partial acknowledgment is one segment that left: the next hole may take its place, whatever the rounding.
  if (round.una_advanced && lost_pending_ > 0) may_send = std::max<std::uint64_t>(may_send, segment_);
  if (prr_out_ == 0) may_send = std::max<std::uint64_t>(may_send, segment_);   // the first resend always leaves
  prr_window_ = in_flight + may_send;
}

void TcpConnection::congestion_feedback(AckRound& round) {
  if (phase_ == Phase::kRecovery) rate_reduction(round);
  AckSample sample;
  sample.now = round.now;
  sample.delivered = delivered_ - round.delivered_before;
  sample.lost = lost_total_ - std::min(lost_total_, round.lost_before);
  if (sample.delivered == 0 && sample.lost == 0) return;
  sample.prior_in_flight = round.prior_pipe;
  sample.in_flight = pipe();
  sample.segment = segment_;
  sample.rtt = round.rtt_newest;
  sample.srtt = srtt_;
  sample.min_rtt = min_rtt_;
  sample.in_recovery = phase_ == Phase::kRecovery;
  if (round.have_rate) {
    Duration interval = std::max(round.rate_send_elapsed, round.now - round.rate_time);
    if (interval > Duration::zero() && interval >= min_rtt_) {
      delivery_rate_ = static_cast<std::uint64_t>(static_cast<double>(delivered_ - round.rate_delivered) * 1e9 /
                                                  static_cast<double>(interval.count()));
      sample.delivery_rate = delivery_rate_;
      sample.rate_app_limited = round.rate_app_limited;
    }
    sample.in_flight_at_send = round.rate_in_flight;
    sample.lost_since_send = lost_total_ - std::min(lost_total_, round.rate_lost);
    if (round.rate_delivered >= round_delivered_end_) {
      round_delivered_end_ = delivered_;
      sample.round_start = true;
    }
  }
  if (app_limited_until_ != 0 && delivered_ > app_limited_until_) app_limited_until_ = 0;
  std::uint64_t cwnd = cc_->cwnd();
  sample.cwnd_limited = cwnd < cc_->ssthresh() ? 2 * std::max(max_flight_, round.prior_pipe) >= cwnd
                                               : window_blocked_ || round.prior_pipe + segment_ > cwnd;
  cc_->on_ack(sample);
  if (sample.round_start) {
    max_flight_ = pipe();
    window_blocked_ = false;
  }
}

// ---- RTT and timers (RFC 6298, 8985 7.2)

void TcpConnection::update_rtt(Instant now, Duration sample) {
  if (sample < Duration::zero()) return;
  sample = std::max(sample, Duration(1));
  if (min_rtt_ == Duration::zero() || sample <= min_rtt_ || min_rtt_time_ == Instant() || now - min_rtt_time_ > 30s) {
    min_rtt_ = sample;
    min_rtt_time_ = now;
  }
  if (srtt_ == Duration::zero()) {
    srtt_ = sample;
    rttvar_ = sample / 2;
  } else {
    // One full step of the variance per round trip; further samples only ever raise it (RFC 7323 appendix G's concern).
    Duration deviation = srtt_ > sample ? srtt_ - sample : sample - srtt_;
    if (snd_una_ >= rtt_round_end_) {
      rttvar_ += (deviation - rttvar_) / 4;
      rtt_round_end_ = snd_nxt_;
    } else if (deviation > rttvar_) {
      rttvar_ += (deviation - rttvar_) / 4;
    }
    srtt_ += (sample - srtt_) / 8;
  }
  base_rto_ = std::min(srtt_ + std::max(kMinRtoVariance, 4 * rttvar_), kMaxRto);
}

Duration TcpConnection::rto() const {
  Duration out = base_rto_;
  for (int i = 0; i < backoff_ && out < kMaxRto; ++i) out *= 2;
  out = std::min(out, kMaxRto);
  if (peer_.unreachable) out = std::min(out, std::max(kUnreachableRtoMax, base_rto_));
  return out;
}

void TcpConnection::arm_recovery_timer(Instant now) {
  if (finished()) return;
  if (state_ == TcpState::kSynSent || state_ == TcpState::kSynReceived) {
    // A tenth of jitter, so that many connections to one sleeping peer do not come in step.
    Duration wait = rto();
    wait += Duration(static_cast<std::int64_t>((host_.rng.unit() - 0.5) * 0.2 * static_cast<double>(wait.count())));
    recovery_timer_ = RecoveryTimer::kRto;
    recovery_deadline_ = now + wait;
    return;
  }
  if (sent_.empty()) {
    bool waiting = write_end_ > snd_nxt_ || (fin_queued_ && !fin_sent_);
    bool fin = false;
    if (waiting && next_new_size(fin, false) == 0 && !fin) {
      bool closed = window_end() <= snd_nxt_;
      if (!closed && !options_.nodelay && small_end_ > snd_una_) waiting = false;
      if (recovery_timer_ != RecoveryTimer::kPersist || recovery_deadline_ == Instant::max()) {
        recovery_timer_ = RecoveryTimer::kPersist;
        persist_backoff_ = 0;
        recovery_deadline_ = now + (closed ? rto() : kSendOverride);
      }
      return;
    }
    recovery_timer_ = RecoveryTimer::kNone;
    recovery_deadline_ = Instant::max();
    return;
  }
  if (reorder_deadline_ != Instant::max() && lost_pending_ == 0) {
    recovery_timer_ = RecoveryTimer::kReorder;
    recovery_deadline_ = std::max(reorder_deadline_, now);
    return;
  }
  const SentSegment& head = sent_[sent_.first()];
  // A head that waits to be sent again (pacing, window) has its old time; its timer starts when it leaves.
  // After a tail probe the timeout has its full length again (RFC 8985 7.3).
  Instant base = head.has(SentSegment::kLost) ? now : head.sent;
  if (tail_probe_end_ != 0) base = std::max(base, tail_probe_time_);
  Instant rto_at = std::max(base + rto(), now + 1ms);
  recovery_timer_ = RecoveryTimer::kRto;
  recovery_deadline_ = rto_at;
  bool probe_possible = sack_on_ && phase_ == Phase::kOpen && sacked_count_ == 0 && lost_pending_ == 0 &&
                        tail_probe_end_ == 0 && !tail_probe_due_ && backoff_ == 0 && snd_wnd_ > 0;
  if (probe_possible) {
    Duration pto = srtt_ == Duration::zero() ? Duration(1s) : 2 * srtt_;
    // A lone segment may meet a delayed acknowledgment, a FIN only a short one.
    if (sent_.size() == 1 && head.has(SentSegment::kFin)) pto = std::max(pto, srtt_ + kFinAckDelay);
    else if (sent_.size() == 1) pto += kTlpMaxAckDelay;
    pto = std::max(pto, Duration(2ms));
    recovery_timer_ = RecoveryTimer::kTailProbe;
    recovery_deadline_ = std::min(now + pto, rto_at);
  }
}

void TcpConnection::handle_recovery_timer(Instant now) {
  recovery_deadline_ = Instant::max();
  RecoveryTimer kind = recovery_timer_;
  recovery_timer_ = RecoveryTimer::kNone;
  if (peer_.blocked) {
    // Nothing left the node, so silence says nothing about the path.
    recovery_timer_ = kind == RecoveryTimer::kPersist ? kind : RecoveryTimer::kRto;
    recovery_deadline_ = now + rto();
    return;
  }
  if (state_ == TcpState::kSynSent || state_ == TcpState::kSynReceived) {
    if (syn_resends_ >= kSynResendsMax) {
      fail(ErrorCode::kTimeout);
      return;
    }
    host_.unanswered_by(peer_);
    if (base_rto_ < kInitialRto) {
      base_rto_ = std::min(2 * base_rto_, kInitialRto);   // the quick ones come on top of the usual ones
    } else {
      ++syn_resends_;
      ++backoff_;
    }
    syn_resent_ = true;
    syn_due_ = true;
    recovery_timer_ = RecoveryTimer::kRto;
    recovery_deadline_ = now + rto();
    host_.want_send(*this);
    return;
  }
  switch (kind) {
    case RecoveryTimer::kNone: break;
    case RecoveryTimer::kTailProbe:
      tail_probe_due_ = true;
      host_.want_send(*this);
      arm_recovery_timer(now);
      break;
    case RecoveryTimer::kReorder: {
      AckRound round;
      round.now = now;
      round.prior_una = snd_una_;
      round.prior_pipe = pipe();
      round.delivered_before = delivered_;
      round.lost_before = lost_total_;
      detect_losses(round);
      if (lost_pending_ > 0) {
        if (phase_ == Phase::kOpen) enter_recovery(now, round.prior_pipe);
        congestion_feedback(round);
        host_.want_send(*this);
      }
      arm_recovery_timer(now);
      break;
    }
    case RecoveryTimer::kPersist:
      if (window_end() > snd_nxt_) {
        override_due_ = true;   // a small window for long enough: fill it
        host_.want_send(*this);
        break;
      }
      ++persist_unanswered_;
      if (persist_unanswered_ > kDataResendsMax && !peer_.unreachable) {
        fail(ErrorCode::kTimeout);
        return;
      }
      probe_due_ = true;
      persist_backoff_ = std::min(persist_backoff_ + 1, 10);
      recovery_timer_ = RecoveryTimer::kPersist;
      recovery_deadline_ = now + std::min(base_rto_ * (1 << persist_backoff_), kMaxRto);
      host_.want_send(*this);
      break;
    case RecoveryTimer::kRto: handle_rto(now); break;
  }
}

void TcpConnection::handle_rto(Instant now) {
  if (sent_.empty()) return;
  // The peer took its window back behind the head: probe it, that is no congestion.
  if (sent_[sent_.first()].sequence >= window_end()) {
    ++persist_unanswered_;
    if (persist_unanswered_ > kDataResendsMax && !peer_.unreachable) {
      fail(ErrorCode::kTimeout);
      return;
    }
    probe_due_ = true;
    ++backoff_;
    recovery_timer_ = RecoveryTimer::kPersist;
    recovery_deadline_ = now + rto();
    host_.want_send(*this);
    return;
  }
  ++resends_;
  if (resends_ > kDataResendsMax && now - last_progress_ > (peer_.unreachable ? kUnreachableGiveUp : kMinGiveUp)) {
    fail(ErrorCode::kTimeout);
    return;
  }
  ++timeouts_;
  ++host_.counters.tcp_timeouts;
  host_.unanswered_by(peer_);
  tail_probe_due_ = false;
  tail_probe_end_ = 0;
  std::uint64_t prior_pipe = pipe();
  // A selectively acknowledged head means the receiver threw data away: its reports are void (RFC 2018 8).
  SentSegments::Id head = sent_.first();
  bool forget = sent_[head].has(SentSegment::kSacked);
  if (forget) sack_cached_ = 0;
  for (SentSegments::Id id = head; id != sent_.end(); ++id) {
    SentSegment& s = sent_[id];
    if (forget && s.has(SentSegment::kSacked)) {
      s.flags &= static_cast<std::uint8_t>(~SentSegment::kSacked);
      --sacked_count_;
      s.sent = Instant();
      sent_.link_newest(id);
    }
    if (!s.has(SentSegment::kInNetwork)) continue;
    // RFC 8985 6.3: the head, and others by age. Without SACK nothing better is known than that all are lost.
    bool old = s.sent + rack_rtt_ + reorder_window() <= now;
    if (id == head || forget || !sack_on_ || old) mark_lost(id);
  }
  without_sack_bytes_ = 0;
  duplicate_acks_ = 0;
  bool full = sent_[head].size >= segment_ && segment_ > kBlackHoleSegment + 156;
  if (full && ++full_timeouts_ >= 2) {
    black_hole_until_ = now + kPathMtuLifetime;
    update_segment_size();
  }
  bool first = phase_ != Phase::kLoss || snd_una_ > recovery_end_ || resends_ == 1;
  if (phase_ != Phase::kLoss || resends_ == 1) {
    undo_armed_ = true;
    undo_resends_ = 0;
    first_resend_known_ = false;
    timeout_time_ = now;
  }
  phase_ = Phase::kLoss;
  recovery_end_ = snd_nxt_;
  cc_->on_timeout(now, prior_pipe, first && resends_ == 1);
  ++backoff_;
  next_send_ = now;
  pace_deadline_ = Instant::max();
  recovery_timer_ = RecoveryTimer::kRto;
  recovery_deadline_ = now + rto();
  host_.want_send(*this);
}

}  // namespace porthole::netstack
