// What may be sent now, and writing it straight into the sink.
//
// A turn sends one burst: lost segments first, in order, then new data. All segments of a burst are full but the last,
// carry the same timestamp, acknowledgment and window, and PSH only where the queue runs empty, so that the tunnel can
// send them in one call and the peer can merge them again.
#include <algorithm>

#include "base/assert.h"
#include "netstack/tcp_connection.h"
#include "wire/ip.h"

namespace porthole::netstack {

using namespace wire::tcp_flag;

namespace {
enum Limit : std::uint8_t { kNotLimited = 0, kByApp = 1, kByWindow = 2, kByCongestion = 3 };
}

bool TcpConnection::emit(Instant now, PacketSink& sink, std::uint64_t sequence, std::size_t size, std::uint8_t flags,
                         const OutOfOrder::Snapshot* snapshot) {
  std::size_t ip = ip_header_size();
  bool sacks = snapshot != nullptr && snapshot->sack_count > 0;
  std::size_t options_size = (ts_on_ ? 12u : 0u) + (sacks ? 4u + 8u * snapshot->sack_count : 0u);
  std::size_t header = wire::kTcpHeaderSize + options_size;
  std::size_t total = ip + header + size;
  MutBytes room = sink.begin(total);
  if (room.size() < total) return false;
  std::uint8_t* p = room.data();

  std::uint32_t acknowledgment = snapshot != nullptr ? snapshot->acknowledgment : wire_sequence(rcv_nxt_);
  wire::TcpOptions options;
  if (ts_on_) {
    options.has_timestamps = true;
    options.ts_value = ts_now(now);
    options.ts_echo = ts_recent_;
  }
  if (sacks) {
    options.sack_count = snapshot->sack_count;
    std::copy_n(snapshot->sack, snapshot->sack_count, options.sack);
  }
  std::uint16_t window = select_window(size == 0 && ooo_ != nullptr && wire_sequence(last_ack_sent_) == acknowledgment);
  if (remote_.address.is_v6()) {
    wire::write_ipv6_header(p, local_.address, remote_.address, wire::ip_protocol::kTcp, header + size, flow_label_);
  } else {
    wire::write_ipv4_header(p, local_.address, remote_.address, wire::ip_protocol::kTcp, header + size, 0, true);
  }
  std::uint8_t* tcp = p + ip;
  wire::write_tcp_header(tcp, local_.port, remote_.port, wire_sequence(sequence), acknowledgment, flags, window, options);
  wire::PartialSum sum = pseudo_sum_ + byteswap_int(static_cast<std::uint16_t>(header + size));
  if constexpr (std::endian::native == std::endian::big) sum = pseudo_sum_ + header + size;
  sum += wire::sum_bytes({tcp, header});
  if (size > 0) sum += send_queue_.copy_and_sum(tcp + header, sequence, size);
  wire::store_checksum(tcp + 16, sum);
  sink.commit(total);

  ++segments_sent_;
  ++host_.counters.tcp_segments_out;
  ++host_.counters.packets_out;
  host_.counters.bytes_out += total;
  if (snapshot == nullptr || acknowledgment == wire_sequence(rcv_nxt_)) {
    last_ack_sent_ = rcv_nxt_;
    ack_deadline_ = Instant::max();
    unacked_segments_ = 0;
  }
  return true;
}

bool TcpConnection::emit_syn(Instant now, PacketSink& sink) {
  std::size_t ip = ip_header_size();
  std::size_t total = ip + wire::kTcpHeaderSize + wire::kTcpOptionsMax;
  MutBytes room = sink.begin(total);
  if (room.size() < total) return false;
  bool answer = state_ == TcpState::kSynReceived;
  wire::TcpOptions options;
  options.mss = static_cast<std::uint16_t>(static_cast<std::size_t>(host_.config.mtu) - ip - wire::kTcpHeaderSize);
  options.sack_permitted = !answer || sack_on_;
  if (!answer || ts_on_) {
    options.has_timestamps = true;
    options.ts_value = ts_now(now);
    options.ts_echo = answer ? ts_recent_ : 0;
  }
  if (!answer || scaling_on_) options.window_shift = kWindowShift;
  std::uint8_t* tcp = room.data() + ip;
  std::size_t header = wire::write_tcp_header(
      tcp, local_.port, remote_.port, wire_sequence(iss_), answer ? wire_sequence(rcv_nxt_) : 0,
      static_cast<std::uint8_t>(answer ? kSyn | kAck : kSyn),
      static_cast<std::uint16_t>(std::min<std::uint64_t>(receive_buffer_, 65535)), options);
  if (remote_.address.is_v6()) {
    wire::write_ipv6_header(room.data(), local_.address, remote_.address, wire::ip_protocol::kTcp, header, flow_label_);
  } else {
    wire::write_ipv4_header(room.data(), local_.address, remote_.address, wire::ip_protocol::kTcp, header, 0, true);
  }
  wire::store_checksum(tcp + 16, wire::sum_bytes({tcp, header}) +
                                     wire::pseudo_header_sum(local_.address, remote_.address, wire::ip_protocol::kTcp,
                                                             header));
  sink.commit(ip + header);
  ++segments_sent_;
  ++host_.counters.tcp_segments_out;
  ++host_.counters.packets_out;
  host_.counters.bytes_out += ip + header;
  syn_sent_ = now;
  snd_nxt_ = iss_ + 1;
  return true;
}

// ---- acknowledgments

bool TcpConnection::send_acks(Instant now, PacketSink& sink, bool wait_for_data) {
  if (state_ == TcpState::kClosed || state_ == TcpState::kSynSent || state_ == TcpState::kSynReceived) {
    ack_now_ = ack_pending_ = false;
    return true;
  }
  while (stretch_acks_ > 0) {
    OutOfOrder::Snapshot snapshot;
    snapshot.acknowledgment = stretch_at_[0];
    if (static_cast<std::int32_t>(wire_sequence(rcv_nxt_) - snapshot.acknowledgment) > 0 &&
        static_cast<std::int32_t>(snapshot.acknowledgment - wire_sequence(last_ack_sent_)) > 0 &&
        !emit(now, sink, snd_nxt_, 0, kAck, &snapshot))
      return false;
    --stretch_acks_;
    std::copy_n(stretch_at_ + 1, 3, stretch_at_);
  }
  if (ooo_) {
    std::size_t sent = 0;
    for (; sent < ooo_->pending.size(); ++sent)
      if (!emit(now, sink, snd_nxt_, 0, kAck, &ooo_->pending[sent])) break;
    bool all = sent == ooo_->pending.size();
    // The last of them tells the present state; another one would only repeat it.
    bool current = sent > 0 && ooo_->pending[sent - 1].acknowledgment == wire_sequence(rcv_nxt_) && !duplicate_ &&
                   !ooo_->newer_than_pending;
    ooo_->pending.erase(ooo_->pending.begin(), ooo_->pending.begin() + static_cast<std::ptrdiff_t>(sent));
    if (!all) return false;
    ack_pending_ = false;
    if (current) ack_now_ = false;
    if (ooo_->empty()) ooo_.reset();
  }
  ack_pending_ = false;
  if (!ack_now_) return true;
  OutOfOrder::Snapshot snapshot;
  snapshot.acknowledgment = wire_sequence(rcv_nxt_);
  if (sack_on_) {
    std::size_t max = ts_on_ ? 3 : 4;
    if (ooo_) {
      snapshot.sack_count = ooo_->fill_blocks(duplicate_, max, snapshot.sack);
    } else if (duplicate_) {
      snapshot.sack_count = 1;
      snapshot.sack[0] = *duplicate_;
    }
  }
  // Data that leaves right now carries the acknowledgment with it.
  if (wait_for_data && snapshot.sack_count == 0 && !ooo_ && has_sendable(now)) return true;
  if (!emit(now, sink, snd_nxt_, 0, kAck, &snapshot)) return false;
  duplicate_.reset();
  ack_now_ = false;
  return true;
}

// ---- data

std::size_t TcpConnection::next_new_size(bool& fin, bool override_silly) const {
  fin = false;
  if (snd_nxt_ > write_end_) return 0;
  std::uint64_t available = write_end_ - snd_nxt_;
  std::uint64_t edge = window_end();
  std::uint64_t room = edge > snd_nxt_ ? edge - snd_nxt_ : 0;
  if (available == 0) {
    fin = fin_queued_ && !fin_sent_ && room > 0;
    return 0;
  }
  std::uint64_t size = std::min({available, std::uint64_t{segment_}, room});
  if (size == 0) return 0;
  if (size < segment_) {
    if (size < available) {
      if (!override_silly && size * 2 < max_snd_wnd_) return 0;
    } else if (!fin_queued_ && !options_.nodelay && small_end_ > snd_una_) {
      return 0;   // Minshall: one small segment at a time
    }
  }
  fin = size == available && fin_queued_ && room > size;
  return static_cast<std::size_t>(size);
}

bool TcpConnection::has_sendable(Instant now) const {
  if (peer_.blocked || finished() || !cc_) return false;
  if (pace_deadline_ != Instant::max() && pace_deadline_ > now) return false;
  std::uint64_t in_flight = pipe();
  bool fin;
  std::size_t size = next_new_size(fin, false);
  if (size == 0 && !fin) return false;
  return lost_pending_ == 0 && (in_flight == 0 || in_flight + size <= window()) && in_send_list;
}

void TcpConnection::pace(Instant now, std::size_t bytes) {
  std::uint64_t rate = cc_->pacing_rate();
  if (rate == 0) return;
  auto time_of = [rate](std::uint64_t n) {
    return Duration(static_cast<std::int64_t>(static_cast<double>(n) * 1e9 / static_cast<double>(rate)));
  };
  Duration credit = kPacingCredit;
  if (peer_.relayed) credit = std::min(credit, time_of(kRelayBurstSegments * segment_));
  next_send_ = std::max(next_send_, now - credit) + time_of(bytes);
}

void TcpConnection::note_sent(Instant now, SentSegment& segment) {
  if (pipe() == 0) first_sent_time_ = delivered_time_ = now;
  segment.sent = now;
  segment.ts_value = ts_now(now);
  segment.first_sent = first_sent_time_;
  segment.delivered_time = delivered_time_;
  segment.delivered = delivered_;
  segment.lost = lost_total_;
  if (app_limited_until_ > delivered_) segment.flags |= SentSegment::kAppLimited;
  else segment.flags &= static_cast<std::uint8_t>(~SentSegment::kAppLimited);
}

bool TcpConnection::send_new(Instant now, PacketSink& sink, std::size_t size, bool fin) {
  std::uint8_t flags = kAck;
  if (size > 0 && snd_nxt_ + size == write_end_) flags |= kPsh;
  if (fin) flags |= kFin;
  if (!emit(now, sink, snd_nxt_, size, flags)) return false;
  SentSegment segment;
  segment.sequence = snd_nxt_;
  segment.size = static_cast<std::uint32_t>(size + (fin ? 1 : 0));
  if (fin) {
    segment.flags |= SentSegment::kFin;
    fin_sent_ = true;
  }
  note_sent(now, segment);
  if (sent_.empty()) last_progress_ = now;   // nothing was waiting before: the time of the oldest byte starts now
  SentSegments::Id id = sent_.append(segment);
  sent_.link_newest(id);
  sent_[id].in_flight = static_cast<std::uint32_t>(std::min<std::uint64_t>(pipe(), 0xffffffffu));
  snd_nxt_ += segment.size;
  bytes_sent_ += size;
  if (size < segment_) small_end_ = snd_nxt_;
  if (phase_ == Phase::kRecovery) prr_out_ += segment.size;
  cc_->on_sent(now, segment.size, pipe());
  last_sent_ = now;
  max_flight_ = std::max(max_flight_, pipe());
  return true;
}

bool TcpConnection::resend(Instant now, PacketSink& sink, SentSegments::Id id) {
  SentSegment& segment = sent_[id];
  std::uint64_t at = segment.sequence;
  std::uint64_t data_end = segment.end() - (segment.has(SentSegment::kFin) ? 1 : 0);
  // More than one piece only after the segment size shrank.
  bool first = true;
  do {
    std::size_t size = static_cast<std::size_t>(std::min<std::uint64_t>(data_end - at, segment_));
    std::uint8_t flags = kAck;
    if (at + size == data_end) flags |= segment.has(SentSegment::kFin) ? kFin : (data_end == write_end_ ? kPsh : kAck);
    if (!emit(now, sink, at, size, flags)) {
      if (first) return false;
      break;   // the rest counts as lost again and comes back
    }
    first = false;
    at += size;
  } while (at < data_end);
  if (segment.has(SentSegment::kLost)) {
    segment.flags &= static_cast<std::uint8_t>(~SentSegment::kLost);
    --lost_pending_;
  }
  if (segment.has(SentSegment::kInNetwork)) sent_.unlink(id);
  note_sent(now, segment);
  segment.flags &= static_cast<std::uint8_t>(~SentSegment::kRestamped);
  segment.flags |= SentSegment::kResent;
  sent_.link_newest(id);
  segment.in_flight = static_cast<std::uint32_t>(std::min<std::uint64_t>(pipe(), 0xffffffffu));
  if (!first_resend_known_) {
    first_resend_known_ = true;
    first_resend_ts_ = segment.ts_value;
  }
  if (undo_armed_) ++undo_resends_;
  ++segments_resent_;
  ++host_.counters.tcp_resent;
  bytes_resent_ += segment.size;
  if (phase_ == Phase::kRecovery) prr_out_ += segment.size;
  cc_->on_sent(now, segment.size, pipe());
  last_sent_ = now;
  return true;
}

SentSegments::Id TcpConnection::next_lost() {
  if (lost_pending_ == 0) return SentSegments::kNone;
  for (SentSegments::Id id = std::max(lost_hint_, sent_.first()); id != sent_.end(); ++id) {
    if (sent_[id].has(SentSegment::kLost)) {
      lost_hint_ = id;
      return id;
    }
  }
  PORTHOLE_ASSERT(false);
  return SentSegments::kNone;
}

void TcpConnection::note_limit(Instant now, std::uint8_t limit) {
  if (limit == limit_) return;
  limit_time_[limit_] += now - limit_since_;
  limit_ = limit;
  limit_since_ = now;
}

TcpConnection::Turn TcpConnection::send(Instant now, PacketSink& sink) {
  if (finished()) return Turn::kDone;
  if (state_ == TcpState::kSynSent || state_ == TcpState::kSynReceived) {
    if (syn_due_) {
      if (!emit_syn(now, sink)) return Turn::kSinkFull;
      syn_due_ = false;
      arm_recovery_timer(now);
    }
    return Turn::kDone;
  }
  if (keepalive_due_) {
    if (!emit(now, sink, snd_nxt_ - 1, 0, kAck)) return Turn::kSinkFull;
    keepalive_due_ = false;
  }
  if (probe_due_) {
    // Out of the window, so it must be answered, and it commits no data.
    if (!emit(now, sink, snd_una_ - 1, 0, kAck)) return Turn::kSinkFull;
    probe_due_ = false;
  }
  if (peer_.blocked) return Turn::kDone;
  if (black_hole_until_ != Instant() && now >= black_hole_until_) {
    black_hole_until_ = Instant();
    update_segment_size();
  }
  // What one connection learned or forgot holds for all that go the same way.
  if (peer_.path_mtu != 0 && now >= peer_.path_mtu_until) peer_.path_mtu = 0;
  if (path_mtu_ != peer_.path_mtu) update_segment_size();
  bool sent_any = false;
  if (tail_probe_due_) {
    bool fin = false;
    std::size_t size = next_new_size(fin, true);
    if (lost_pending_ == 0 && !sent_.empty()) {
      if (size > 0 || fin) {
        if (!send_new(now, sink, size, fin)) return Turn::kSinkFull;
        tail_probe_resent_ = false;
        tail_probe_end_ = snd_nxt_;
        sent_any = true;
      } else if (SentSegments::Id last = sent_.end() - 1; sent_[last].has(SentSegment::kInNetwork)) {
        if (!resend(now, sink, last)) return Turn::kSinkFull;
        tail_probe_resent_ = true;
        tail_probe_ts_ = ts_now(now);
        tail_probe_end_ = snd_nxt_;
        sent_any = true;
      }
      if (sent_any) {
        tail_probe_time_ = now;
        ++tail_probes_;
        ++host_.counters.tcp_tail_probes;
      }
    }
    tail_probe_due_ = false;
  }

  // Long silence: what the window was says little about the path now. Once: a sink that stays full makes it no older.
  if (sent_.empty() && write_end_ > snd_nxt_ && last_sent_ != Instant() && now - last_sent_ > rto()) {
    cc_->on_idle_restart(now, now - last_sent_);
    last_sent_ = Instant();
  }

  std::size_t burst = 0;
  std::size_t burst_max = peer_.relayed ? std::min(kBurstBytesMax, kRelayBurstSegments * segment_) : kBurstBytesMax;
  std::uint8_t limit = kNotLimited;
  Turn result = Turn::kDone;
  bool pacing = cc_->pacing_rate() != 0;
  for (;;) {
    bool fin = false;
    SentSegments::Id lost = next_lost();
    std::size_t size;
    if (lost != SentSegments::kNone) {
      size = sent_[lost].size;
      if (sent_[lost].sequence >= window_end()) {
        limit = kByWindow;
        break;   // the peer took its window back; the timer probes
      }
    } else {
      size = next_new_size(fin, override_due_);
      if (size == 0 && !fin) {
        limit = snd_nxt_ >= write_end_ ? kByApp : kByWindow;
        break;
      }
    }
    std::uint64_t in_flight = pipe();
    if (in_flight > 0 && in_flight + size > window()) {
      limit = kByCongestion;
      window_blocked_ = true;
      break;
    }
    if (pacing) {
      if (pace_deadline_ != Instant::max() && pace_deadline_ > now) {
        limit = kByCongestion;
        break;
      }
      pace_deadline_ = Instant::max();
      if (next_send_ > now) {
        // Wait for a burst's worth, so that fast flows are not sent packet by packet.
        std::uint64_t rate = std::max<std::uint64_t>(cc_->pacing_rate(), 1);
        Duration one = Duration(static_cast<std::int64_t>(static_cast<double>(segment_) * 1e9 / static_cast<double>(rate)));
        pace_deadline_ = next_send_ + (one < kPacingGranularity ? kPacingGranularity - one : Duration::zero());
        limit = kByCongestion;
        break;
      }
    }
    if (burst >= burst_max) {
      result = Turn::kMore;
      break;
    }
    bool ok = lost != SentSegments::kNone ? resend(now, sink, lost) : send_new(now, sink, size, fin);
    if (!ok) {
      result = Turn::kSinkFull;
      break;
    }
    sent_any = true;
    override_due_ = false;
    burst += size;
    if (pacing) pace(now, size);
  }
  if (limit == kByApp && pipe() < window()) app_limited_until_ = std::max<std::uint64_t>(delivered_ + pipe(), 1);
  note_limit(now, limit);
  if (sent_any || recovery_timer_ == RecoveryTimer::kNone) arm_recovery_timer(now);
  if (sent_any) {
    if (ack_now_ && (!ooo_) && !duplicate_) ack_now_ = false;
    maybe_writable();
    if (options_.user_timeout > Duration::zero()) update_life_timer(now);
  }
  return result;
}

}  // namespace porthole::netstack
