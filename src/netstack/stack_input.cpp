#include <algorithm>

#include "base/assert.h"
#include "netstack/stack_impl.h"

namespace porthole::netstack {

using namespace wire::tcp_flag;

void Stack::Impl::handle_packets(Instant now, std::span<const MutBytes> packets) {
  now_seen = now;
  last_connection_ = nullptr;
  for (const MutBytes& packet : packets) handle_packet(now, packet);
  // Acknowledgments and wake-ups once per connection, now that the whole batch is known.
  while (!touched_.empty()) {
    TcpConnection* c = touched_.back();
    touched_.pop_back();
    c->end_batch(now);
    settle(*c);
  }
  last_connection_ = nullptr;
  relieve_pressure(now);
  if (trim_at_ == Instant::max() && pool.bytes_pooled() > 0) {
    trim_at_ = now + kPoolTrimInterval;
    schedule_housekeeping();
  }
}

void Stack::Impl::handle_packet(Instant now, Bytes bytes) {
  ++counters.packets_in;
  counters.bytes_in += bytes.size();
  auto parsed = wire::parse_ip(bytes);
  if (auto* error = std::get_if<wire::IpError>(&parsed)) {
    switch (*error) {
      case wire::IpError::kHeader: drop(Drop::kIpHeader); break;
      case wire::IpError::kChecksum: drop(Drop::kIpChecksum); break;
      case wire::IpError::kLength: drop(Drop::kIpLength); break;
      case wire::IpError::kOptions: drop(Drop::kIpOptions); break;
    }
    return;
  }
  const wire::IpPacket& packet = std::get<wire::IpPacket>(parsed);
  if (packet.source.is_multicast() || packet.source.is_loopback() || packet.source.is_unspecified() ||
      is_own(packet.source)) {
    drop(Drop::kIpSource);
    return;
  }
  if (!is_own(packet.destination)) {
    drop(Drop::kIpDestination);
    return;
  }
  if (packet.fragmented && !packet.fragment.atomic()) {
    Reassembly::Outcome outcome = reassembly_.add(now, packet);
    if (outcome.drop) drop(*outcome.drop);
    if (outcome.complete) {
      // Errors quote the beginning of the datagram, which is seldom in the piece that came last.
      wire::IpPacket whole = packet;
      whole.whole = outcome.quote;
      dispatch(now, whole, outcome.protocol, outcome.payload);
    }
    schedule_housekeeping();
    return;
  }
  dispatch(now, packet, packet.protocol, packet.payload);
}

void Stack::Impl::dispatch(Instant now, const wire::IpPacket& packet, std::uint8_t protocol, Bytes payload) {
  bool v4 = packet.source.is_v4();
  if (protocol == wire::ip_protocol::kTcp) return handle_tcp(now, packet, payload);
  if (protocol == wire::ip_protocol::kUdp) return handle_udp(now, packet, payload);
  if (protocol == (v4 ? wire::ip_protocol::kIcmp : wire::ip_protocol::kIcmpV6))
    return handle_icmp(now, packet, payload);
  drop(Drop::kIpProtocol);
}

void Stack::Impl::touch(TcpConnection& c) {
  if (c.in_batch) return;
  c.in_batch = true;
  touched_.push_back(&c);
}

void Stack::Impl::handle_tcp(Instant now, const wire::IpPacket& packet, Bytes payload) {
  wire::TcpSegment segment;
  if (!wire::parse_tcp(payload, segment)) {
    drop(Drop::kTcpHeader);
    return;
  }
  if (!wire::tcp_checksum_ok(payload, packet.source, packet.destination)) {
    drop(Drop::kTcpChecksum);
    return;
  }
  ++counters.tcp_segments_in;
  FlowKey flow = FlowKey::of(packet.destination, segment.destination_port, packet.source, segment.source_port);
  if (last_connection_ != nullptr && flow == last_flow_) {
    last_connection_->handle_segment(now, segment);
    account(*last_connection_, last_connection_->buffer_bytes());
    return;
  }
  auto it = flows_.find(flow);
  if (it == flows_.end()) {
    handle_unknown_flow(now, packet, flow, segment);
    return;
  }
  if (auto* held = std::get_if<TcpConnection*>(&it->second)) {
    TcpConnection& c = **held;
    touch(c);
    last_flow_ = flow;
    last_connection_ = &c;
    c.handle_segment(now, segment);
    account(c, c.buffer_bytes());   // at once: a batch may bring each of 64 connections a chunk
  } else if (std::holds_alternative<std::unique_ptr<HalfOpen>>(it->second)) {
    handle_half_open(now, it, segment);
  } else {
    std::uint32_t above = std::get<std::unique_ptr<TimeWait>>(it->second)->snd_nxt;
    if (!handle_time_wait(now, it, segment)) return;
    // A new incarnation starts above everything the old one sent (RFC 6191).
    handle_syn(now, packet, flow, segment, above);
  }
}

void Stack::Impl::handle_unknown_flow(Instant now, const wire::IpPacket& packet, const FlowKey& flow,
                                      const wire::TcpSegment& segment) {
  if (segment.has(kRst)) {
    drop(Drop::kTcpNoConnection);
    return;
  }
  if (segment.has(kSyn) && !segment.has(kAck) && find_listener(packet.destination, segment.destination_port) != nullptr) {
    if (segment.has(kFin)) {
      drop(Drop::kTcpSyn);
      return;
    }
    handle_syn(now, packet, flow, segment, std::nullopt);
    return;
  }
  drop(Drop::kTcpNoConnection);
  refuse(now, packet.destination, packet.source, segment);
}

// RFC 9293 3.10.7.1: what a closed port answers.
void Stack::Impl::refuse(Instant now, const IpAddress& local, const IpAddress& remote, const wire::TcpSegment& segment) {
  Peer* peer = peer_for(remote);
  if (peer == nullptr || !peer->resets.take(now)) {
    drop(Drop::kRateLimit);
    return;
  }
  ControlSegment reset;
  reset.local = local;
  reset.remote = remote;
  reset.local_port = segment.destination_port;
  reset.remote_port = segment.source_port;
  if (segment.has(kAck)) {
    reset.flags = kRst;
    reset.sequence = segment.acknowledgment;
  } else {
    reset.flags = kRst | kAck;
    reset.acknowledgment = segment.sequence + segment.length();
  }
  ++counters.tcp_resets_sent;
  send_control(reset);
}

Stack::Impl::Listener* Stack::Impl::find_listener(const IpAddress& local, std::uint16_t port) {
  auto held = listeners_by_port_.find(port);
  if (held == listeners_by_port_.end()) return nullptr;
  Listener* any = nullptr;
  for (Listener* l : held->second) {
    if (l->address == local) return l;
    if (!l->address) any = l;
  }
  return any;
}

// ---- handshakes of listeners

void Stack::Impl::handle_syn(Instant now, const wire::IpPacket& packet, const FlowKey& flow,
                             const wire::TcpSegment& segment, std::optional<std::uint32_t> iss_above) {
  Listener* listener = find_listener(packet.destination, segment.destination_port);
  if (listener == nullptr) {
    drop(Drop::kTcpNoConnection);
    refuse(now, packet.destination, packet.source, segment);
    return;
  }
  if (listener->ready_count >= listener->backlog) {
    drop(Drop::kAcceptQueueFull);
    return;
  }
  Peer* peer = peer_for(packet.source);
  if (peer == nullptr || pool.pressure_percent() > kPressureNoHandshake || connections_ >= kConnectionsMax ||
      peer->connections >= kConnectionsPerPeerMax) {
    drop(Drop::kSynLimit);
    return;
  }
  // Full: the oldest attempt of the same peer makes room; nobody else's does.
  if (peer->half_open.size() >= kHalfOpenPerPeerMax || half_open_ >= kHalfOpenMax ||
      listener->half_open >= kHalfOpenPerListenerMax) {
    drop(Drop::kSynLimit);
    if (peer->half_open.empty()) return;
    remove_half_open(peer->half_open.front());
    listener = find_listener(packet.destination, segment.destination_port);
  }
  auto owned = std::make_unique<HalfOpen>();
  HalfOpen& half = *owned;
  half.flow = flow;
  half.listener = listener->id;
  half.peer = peer;
  HandshakeResult& h = half.handshake;
  h.local = packet.destination;
  h.remote = packet.source;
  h.local_port = segment.destination_port;
  h.remote_port = segment.source_port;
  h.irs = segment.sequence;
  h.iss = initial_sequence(now, flow);
  if (iss_above && static_cast<std::int32_t>(h.iss - *iss_above) <= 0) h.iss = *iss_above + 1;
  h.peer_mss = segment.options.mss.value_or(0);
  h.peer_window_shift = segment.options.window_shift;
  h.sack = segment.options.sack_permitted;
  h.timestamps = segment.options.has_timestamps;
  h.ts_offset = timestamp_offset(h.local, h.remote);
  h.ts_recent = segment.options.ts_value;
  half.timer.kind = TimerNode::Kind::kHalfOpen;
  half.timer.owner = &half;
  peer->half_open.push_back(flow);
  ++listener->half_open;
  ++half_open_;
  flows_[flow] = std::move(owned);
  send_syn_ack(now, half);
  timers_.set(half.timer, now + kInitialRto);
}

void Stack::Impl::send_syn_ack(Instant now, HalfOpen& half) {
  if (!half.peer->syn_acks.take(now) || !syn_ack_rate_.take(now)) {
    drop(Drop::kRateLimit);
    return;
  }
  const HandshakeResult& h = half.handshake;
  ControlSegment answer;
  answer.local = h.local;
  answer.remote = h.remote;
  answer.local_port = h.local_port;
  answer.remote_port = h.remote_port;
  answer.sequence = h.iss;
  answer.acknowledgment = h.irs + 1;
  answer.flags = kSyn | kAck;
  answer.window = static_cast<std::uint16_t>(std::min<std::size_t>(config.receive_buffer_start, 65535));
  if (pool.pressure_percent() > kPressureNoGrowth)
    answer.window = static_cast<std::uint16_t>(std::min<std::size_t>(answer.window, kPressureReceiveBuffer - 1));
  std::size_t ip = h.local.is_v6() ? wire::kIpv6HeaderSize : wire::kIpv4HeaderSize;
  answer.options.mss = static_cast<std::uint16_t>(static_cast<std::size_t>(config.mtu) - ip - wire::kTcpHeaderSize);
  answer.options.sack_permitted = h.sack;
  if (h.timestamps) {
    answer.options.has_timestamps = true;
    answer.options.ts_value = static_cast<std::uint32_t>(now.ns() / 1'000'000) + h.ts_offset;
    answer.options.ts_echo = h.ts_recent;
  }
  if (h.peer_window_shift) answer.options.window_shift = kWindowShift;
  half.handshake.syn_ack_sent = now;
  send_control(answer);
}

void Stack::Impl::remove_half_open(FlowKey flow) {
  auto it = flows_.find(flow);
  if (it == flows_.end()) return;
  auto* held = std::get_if<std::unique_ptr<HalfOpen>>(&it->second);
  if (held == nullptr) return;
  HalfOpen& half = **held;
  timers_.remove(half.timer);
  std::erase(half.peer->half_open, flow);
  if (Listener* l = object<Listener>(half.listener)) --l->half_open;
  --half_open_;
  flows_.erase(it);
}

void Stack::Impl::half_open_timer(Instant now, HalfOpen& half) {
  if (half.peer->blocked) {
    timers_.set(half.timer, now + kInitialRto);
    return;
  }
  if (half.resends >= kSynAckResendsMax) {
    remove_half_open(half.flow);
    return;
  }
  ++half.resends;
  half.handshake.resent = true;
  send_syn_ack(now, half);
  timers_.set(half.timer, now + kInitialRto * (1 << half.resends));
}

void Stack::Impl::handle_half_open(Instant now, Flows::iterator it, const wire::TcpSegment& segment) {
  HalfOpen& half = *std::get<std::unique_ptr<HalfOpen>>(it->second);
  const HandshakeResult& h = half.handshake;
  std::uint32_t next = h.irs + 1;
  if (segment.has(kRst)) {
    if (segment.sequence == next) remove_half_open(half.flow);
    else drop(Drop::kTcpReset);
    return;
  }
  if (segment.has(kSyn)) {
    if (!segment.has(kAck) && segment.sequence == h.irs) {
      half.handshake.resent = true;
      send_syn_ack(now, half);
    } else {
      drop(Drop::kTcpSyn);
    }
    return;
  }
  if (!segment.has(kAck)) {
    drop(Drop::kTcpAck);
    return;
  }
  if (segment.acknowledgment != h.iss + 1) {
    drop(Drop::kTcpAck);
    refuse(now, h.local, h.remote, segment);
    return;
  }
  if (segment.sequence - next > 65535 ||
      (h.timestamps && (!segment.options.has_timestamps ||
                        static_cast<std::int32_t>(segment.options.ts_value - h.ts_recent) < 0))) {
    drop(Drop::kTcpSequence);
    return;
  }
  Listener* listener = object<Listener>(half.listener);
  PORTHOLE_ASSERT(listener != nullptr);
  // Early, not wrong: the peer repeats itself, and there may be room by then.
  if (listener->ready_count >= listener->backlog || connections_ >= kConnectionsMax) {
    drop(Drop::kAcceptQueueFull);
    return;
  }
  Result<SocketId> id = new_slot();
  if (!id) {
    drop(Drop::kSynLimit);
    return;
  }
  HandshakeResult handshake = h;
  FlowKey flow = half.flow;
  Peer& peer = *half.peer;
  SocketId listener_id = listener->id;
  remove_half_open(flow);
  auto owned = std::make_unique<TcpConnection>(*this, peer, *id, now, handshake, flow_label(flow));
  TcpConnection& c = *owned;
  c.accepted = false;
  c.listener = listener_id;
  slot(*id)->what = std::move(owned);
  flows_[flow] = &c;
  ++connections_;
  ++peer.connections;
  ++peer.held;
  listener->ready.push_back(*id);
  ++listener->ready_count;
  raise(listener_id, SocketEventKind::kAcceptable);
  touch(c);
  c.handle_segment(now, segment);
}

// ---- TIME-WAIT

void Stack::Impl::send_time_wait_ack(Instant now, TimeWait& wait) {
  wait.last_ack = now;
  ControlSegment ack;
  ack.local = wait.local;
  ack.remote = wait.remote;
  ack.local_port = wait.local_port;
  ack.remote_port = wait.remote_port;
  ack.sequence = wait.snd_nxt;
  ack.acknowledgment = wait.rcv_nxt;
  ack.flags = kAck;
  ack.window = 0;
  if (wait.timestamps) {
    ack.options.has_timestamps = true;
    ack.options.ts_value = static_cast<std::uint32_t>(now.ns() / 1'000'000) + wait.ts_offset;
    ack.options.ts_echo = wait.ts_recent;
  }
  send_control(ack);
}

bool Stack::Impl::handle_time_wait(Instant now, Flows::iterator it, const wire::TcpSegment& segment) {
  TimeWait& wait = *std::get<std::unique_ptr<TimeWait>>(it->second);
  if (segment.has(kRst)) {
    drop(Drop::kTcpReset);   // RFC 1337
    return false;
  }
  if (segment.has(kSyn) && !segment.has(kAck)) {
    bool newer = wait.timestamps && segment.options.has_timestamps
                     ? static_cast<std::int32_t>(segment.options.ts_value - wait.ts_recent) > 0
                     : static_cast<std::int32_t>(segment.sequence - wait.rcv_nxt) > 0;
    if (newer) {
      remove_time_wait(it);
      return true;
    }
  }
  drop(Drop::kTcpSequence);
  if (segment.length() == 0) return false;
  // The peer did not hear our last word.
  if (segment.has(kFin)) {
    wait.since = now;
    wait_order_.splice(wait_order_.end(), wait_order_, wait.place);
  }
  if (now - wait.last_ack >= kChallengeAckInterval || segment.has(kFin)) send_time_wait_ack(now, wait);
  return false;
}

}  // namespace porthole::netstack
