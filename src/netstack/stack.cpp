#include "netstack/stack.h"

#include <algorithm>

#include "base/assert.h"
#include "netstack/stack_impl.h"

namespace porthole::netstack {

using namespace wire::tcp_flag;

namespace {
constexpr SocketId kSlotBits = 20;
constexpr SocketId kSlotMask = (SocketId{1} << kSlotBits) - 1;

Error error_for(SocketEventKind kind, ErrorCode code, const Endpoint& remote) {
  std::string where = remote.is_valid() ? remote.to_string() : remote.address.to_string();
  std::string text;
  switch (code) {
    case ErrorCode::kRefused: text = where + " refused the connection"; break;
    case ErrorCode::kTimeout:
      text = kind == SocketEventKind::kConnectFailed ? where + " did not answer" : where + " stopped answering";
      break;
    case ErrorCode::kReset: text = where + " reset the connection"; break;
    case ErrorCode::kUnavailable: text = where + " cannot be reached"; break;
    case ErrorCode::kPermission: text = "a filter on the way to " + where + " does not allow this"; break;
    case ErrorCode::kUnauthorized: text = "the tailnet's rules do not let this node connect to " + where; break;
    case ErrorCode::kNotFound: text = "the peer " + where + " is no longer part of this tailnet"; break;
    case ErrorCode::kCancelled: text = "this node no longer has the address that the connection to " + where + " used"; break;
    case ErrorCode::kLimit: text = "the connection to " + where + " was closed because memory ran out"; break;
    default: text = "the connection to " + where + " ended"; break;
  }
  return {code, std::move(text)};
}
}  // namespace

// ---- construction and tables

Stack::Impl::Impl(const StackConfig& c, Rng& r)
    : TcpHost(c, r), sequence_key_(crypto::SipKey::generate(r)), timestamp_key_(crypto::SipKey::generate(r)),
      label_key_(crypto::SipKey::generate(r)),
      flows_(16, FlowHash{r.u64(), r.u64()}) {
  config.mtu = std::clamp(config.mtu, kMinIpv6Mtu, 9000);
  config.receive_buffer_max = std::min(config.receive_buffer_max, kReceiveBufferLimit - 65536);
  housekeeping_.kind = TimerNode::Kind::kHousekeeping;
  fragment_id_ = r.u32();
  scratch_.resize(static_cast<std::size_t>(config.mtu));
}

Stack::Impl::~Impl() = default;

Result<SocketId> Stack::Impl::new_slot() {
  std::uint32_t index;
  if (!free_slots_.empty()) {
    index = free_slots_.back();
    free_slots_.pop_back();
  } else {
    if (slots_.size() > kSlotMask) return Error{ErrorCode::kLimit, "no more sockets: too many are open"};
    index = static_cast<std::uint32_t>(slots_.size());
    slots_.emplace_back();
  }
  Slot& s = slots_[index];
  s = Slot{};
  s.id = (next_serial_++ << kSlotBits) | index;
  return s.id;
}

Stack::Impl::Slot* Stack::Impl::slot(SocketId id) {
  std::size_t index = static_cast<std::size_t>(id & kSlotMask);
  return index < slots_.size() && slots_[index].id == id && id != 0 ? &slots_[index] : nullptr;
}
const Stack::Impl::Slot* Stack::Impl::slot(SocketId id) const { return const_cast<Impl*>(this)->slot(id); }

void Stack::Impl::free_slot(SocketId id) {
  Slot* s = slot(id);
  if (s == nullptr) return;
  *s = Slot{};
  free_slots_.push_back(static_cast<std::uint32_t>(id & kSlotMask));
}

TcpConnection* Stack::Impl::connection(SocketId id) const {
  TcpConnection* c = object<TcpConnection>(id);
  return c != nullptr && !c->app_gone() && c->accepted ? c : nullptr;
}

bool Stack::Impl::is_own(const IpAddress& address) const {
  return std::find(addresses_.begin(), addresses_.end(), address) != addresses_.end();
}

const IpAddress* Stack::Impl::own_address_for(const IpAddress& remote) const {
  for (const IpAddress& a : addresses_)
    if (a.is_v4() == remote.is_v4()) return &a;
  return nullptr;
}

Peer* Stack::Impl::peer_for(const IpAddress& address) {
  auto it = peers_.find(address);
  if (it != peers_.end()) return &it->second;
  if (peers_.size() >= kPeersMax) release_peers();
  if (peers_.size() >= kPeersMax) return nullptr;
  Peer& peer = peers_[address];
  peer.address = address;
  return &peer;
}

void Stack::Impl::release_peers() {
  std::erase_if(peers_, [](const auto& entry) {
    const Peer& p = entry.second;
    return p.held == 0 && p.half_open.empty() && p.time_wait == 0 && !p.blocked && !p.relayed && !p.unreachable;
  });
}

std::uint32_t Stack::Impl::initial_sequence(Instant now, const FlowKey& flow) const {
  // RFC 6528: a 4 microsecond clock plus a keyed hash of the flow.
  std::uint8_t bytes[36];
  std::memcpy(bytes, flow.addresses.data(), 32);
  store_le(bytes + 32, flow.ports);
  return static_cast<std::uint32_t>(crypto::siphash24(sequence_key_, bytes)) +
         static_cast<std::uint32_t>(now.ns() / 4000);
}

std::uint32_t Stack::Impl::timestamp_offset(const IpAddress& l, const IpAddress& r) const {
  std::uint8_t bytes[32];
  std::memcpy(bytes, l.mapped().data(), 16);
  std::memcpy(bytes + 16, r.mapped().data(), 16);
  return static_cast<std::uint32_t>(crypto::siphash24(timestamp_key_, bytes));
}

std::uint32_t Stack::Impl::flow_label(const FlowKey& flow) const {
  std::uint8_t bytes[36];
  std::memcpy(bytes, flow.addresses.data(), 32);
  store_le(bytes + 32, flow.ports);
  return static_cast<std::uint32_t>(crypto::siphash24(label_key_, bytes)) & 0xfffffu;
}

void Stack::Impl::set_addresses(std::span<const IpAddress> addresses) {
  addresses_.assign(addresses.begin(), addresses.end());
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    if (auto* c = std::get_if<std::unique_ptr<TcpConnection>>(&slots_[i].what)) {
      // Nothing may leave from an address that is not ours any more, not even a reset.
      if (!(*c)->finished() && !is_own((*c)->local().address)) {
        (*c)->fail(ErrorCode::kCancelled);
        settle(**c);
      }
    }
  }
  for (auto it = flows_.begin(); it != flows_.end();) {
    auto current = it++;
    if (auto* half = std::get_if<std::unique_ptr<HalfOpen>>(&current->second)) {
      if (!is_own((*half)->handshake.local)) remove_half_open(current->first);
    } else if (auto* wait = std::get_if<std::unique_ptr<TimeWait>>(&current->second)) {
      if (!is_own((*wait)->local)) remove_time_wait(current);
    }
  }
  Ring<ControlSegment> keep;
  while (!control_.empty()) {
    ControlSegment segment = control_.pop_front();
    if (is_own(segment.local)) keep.push_back(segment);
  }
  control_ = std::move(keep);
  egress_.clear();
}

// ---- the life of a connection in the tables

void Stack::Impl::account(TcpConnection& c, std::size_t bytes) {
  Peer& peer = c.peer();
  if (peer.buffer_bytes > 0) --buffering_peers;
  peer.buffer_bytes += bytes;
  peer.buffer_bytes -= c.accounted_bytes;
  c.accounted_bytes = bytes;
  if (peer.buffer_bytes > 0) ++buffering_peers;
}

void Stack::Impl::settle(TcpConnection& c) {
  account(c, c.buffer_bytes());
  if (!c.finished()) {
    timers_.set(c.timer, c.next_timer());
    return;
  }
  timers_.remove(c.timer);
  if (c.in_flow_table) {
    c.in_flow_table = false;
    flows_.erase(c.flow());
    if (c.state() == TcpState::kTimeWait) enter_time_wait(c);
    --c.peer().connections;
    --connections_;
  }
  if (!c.accepted) {
    if (Listener* l = object<Listener>(c.listener)) --l->ready_count;
    c.accepted = true;
    remove_connection(c);
    return;
  }
  if (c.app_gone()) remove_connection(c);
}

void Stack::Impl::remove_connection(TcpConnection& c) {
  if (last_connection_ == &c) last_connection_ = nullptr;
  account(c, 0);
  --c.peer().held;
  timers_.remove(c.timer);
  std::erase(touched_, &c);
  free_slot(c.id());
}

void Stack::Impl::enter_time_wait(TcpConnection& c) {
  auto make = [&] {
    auto wait = std::make_unique<TimeWait>();
    wait->local = c.local().address;
    wait->remote = c.remote().address;
    wait->local_port = c.local().port;
    wait->remote_port = c.remote().port;
    wait->snd_nxt = wire_sequence(c.send_next());
    wait->rcv_nxt = wire_sequence(c.receive_next());
    wait->timestamps = c.timestamps();
    wait->ts_recent = c.ts_recent();
    wait->ts_offset = c.ts_offset();
    wait->since = now_seen;
    wait->peer = &c.peer();
    return wait;
  };
  // At the bound the oldest goes (of all; a single peer's share is bounded by not entering beyond it).
  if (c.peer().time_wait >= kTimeWaitPerPeerMax || pool.pressure_percent() > kPressureEvict) {
    auto wait = make();
    send_time_wait_ack(now_seen, *wait);
    return;
  }
  if (time_wait_ >= kTimeWaitMax) remove_time_wait(flows_.find(wait_order_.front()));
  auto wait = make();
  TimeWait& record = *wait;
  record.place = wait_order_.insert(wait_order_.end(), c.flow());
  flows_[c.flow()] = std::move(wait);
  ++c.peer().time_wait;
  ++time_wait_;
  send_time_wait_ack(now_seen, record);
  schedule_housekeeping();
}

void Stack::Impl::remove_time_wait(Flows::iterator it) {
  TimeWait& wait = *std::get<std::unique_ptr<TimeWait>>(it->second);
  --wait.peer->time_wait;
  --time_wait_;
  wait_order_.erase(wait.place);
  flows_.erase(it);
}

// ---- TcpHost

void Stack::Impl::raise(TcpConnection& c, SocketEventKind kind) {
  if (c.accepted) raise(c.id(), kind);
}

void Stack::Impl::raise(SocketId id, SocketEventKind kind) {
  Slot* s = slot(id);
  if (s == nullptr) return;
  s->pending = static_cast<std::uint16_t>(s->pending | 1u << static_cast<unsigned>(kind));
  if (!s->queued) {
    s->queued = true;
    events_.push_back(id);
  }
}

void Stack::Impl::want_ack(TcpConnection& c) {
  if (c.in_ack_list) return;
  c.in_ack_list = true;
  ack_list_.push_back(c.id());
}

void Stack::Impl::want_send(TcpConnection& c) {
  if (c.in_send_list) return;
  c.in_send_list = true;
  send_list_.push_back(c.id());
}

void Stack::Impl::send_control(const ControlSegment& segment) {
  if (control_.size() >= kControlQueueMax) {
    drop(Drop::kRateLimit);
    return;
  }
  control_.push_back(segment);
}

// ---- the app

Result<SocketId> Stack::Impl::connect(Instant now, const Endpoint& to, const ConnectOptions& options) {
  if (!to.is_valid() || to.address.is_multicast() || to.address.is_unspecified() || to.address.is_loopback())
    return Error{ErrorCode::kInvalid, to.to_string() + " is not an address to connect to"};
  if (is_own(to.address))
    return Error{ErrorCode::kInvalid, to.to_string() + " is this node itself; connect to it on the local host"};
  const IpAddress* from = own_address_for(to.address);
  if (from == nullptr)
    return Error{ErrorCode::kUnavailable,
                 "this node has no " + std::string(to.address.is_v4() ? "IPv4" : "IPv6") + " address on the tailnet"};
  Peer* peer = peer_for(to.address);
  if (peer == nullptr || connections_ >= kConnectionsMax || peer->connections >= kConnectionsPerPeerMax)
    return Error{ErrorCode::kLimit, "too many connections are open"};

  std::uint16_t port = options.local_port;
  FlowKey flow;
  if (port != 0) {
    flow = FlowKey::of(*from, port, to.address, to.port);
    if (flows_.contains(flow))
      return Error{ErrorCode::kAlreadyExists, "port " + std::to_string(port) + " is in use for " + to.to_string()};
  } else {
    // Upwards and not slower than the clock, so that no peer sees a port again, not from the next run of this node either,
    // while it keeps TIME-WAIT: gVisor's TCP, as Tailscale has it, then ignores the SYN for a minute. RFC 6056 hides ports
    // from attackers off the path, of whom a tunnel has none.
    constexpr std::uint32_t kRange = kEphemeralLast - kEphemeralFirst + 1;
    port_counter_ = std::max(port_counter_, static_cast<std::uint64_t>(now.ns() / kEphemeralEvery.count()));
    for (int i = 0; i < kEphemeralTries && port == 0; ++i) {
      std::uint16_t candidate = static_cast<std::uint16_t>(kEphemeralFirst + port_counter_++ % kRange);
      flow = FlowKey::of(*from, candidate, to.address, to.port);
      if (!flows_.contains(flow) && !listeners_by_port_.contains(candidate)) port = candidate;
    }
    if (port == 0) return Error{ErrorCode::kLimit, "no free port for a connection to " + to.to_string()};
  }
  Result<SocketId> id = new_slot();
  if (!id) return id;
  auto owned = std::make_unique<TcpConnection>(*this, *peer, *id, now, Endpoint{*from, port}, to,
                                               initial_sequence(now, flow), timestamp_offset(*from, to.address),
                                               flow_label(flow), options);
  TcpConnection& c = *owned;
  slot(*id)->what = std::move(owned);
  flows_[flow] = &c;
  ++connections_;
  ++peer->connections;
  ++peer->held;
  ++counters.tcp_connects;
  settle(c);
  return *id;
}

Result<SocketId> Stack::Impl::listen(Instant, std::optional<IpAddress> address, std::uint16_t port, int backlog) {
  if (listeners_ >= kListenersMax) return Error{ErrorCode::kLimit, "too many listeners"};
  if (address && !is_own(*address))
    return Error{ErrorCode::kInvalid, address->to_string() + " is not an address of this node"};
  if (port == 0) {
    constexpr std::uint32_t kRange = kEphemeralLast - kEphemeralFirst + 1;
    std::uint32_t start = rng.u32() % kRange;
    for (std::uint32_t i = 0; i < kRange && port == 0; ++i) {
      std::uint16_t candidate = static_cast<std::uint16_t>(kEphemeralFirst + (start + i) % kRange);
      if (!listeners_by_port_.contains(candidate)) port = candidate;
    }
    if (port == 0) return Error{ErrorCode::kLimit, "no free port to listen on"};
  }
  auto held = listeners_by_port_.find(port);
  if (held != listeners_by_port_.end()) {
    for (Listener* l : held->second)
      if (l->address == address)
        return Error{ErrorCode::kAlreadyExists, "port " + std::to_string(port) + " is already being listened on"};
  }
  Result<SocketId> id = new_slot();
  if (!id) return id;
  auto owned = std::make_unique<Listener>();
  owned->id = *id;
  owned->address = address;
  owned->port = port;
  owned->backlog = static_cast<std::size_t>(std::clamp(backlog, 1, kBacklogMax));
  listeners_by_port_[port].push_back(owned.get());
  slot(*id)->what = std::move(owned);
  ++listeners_;
  return *id;
}

std::optional<SocketId> Stack::Impl::accept(SocketId listener) {
  Listener* l = object<Listener>(listener);
  if (l == nullptr) return std::nullopt;
  while (!l->ready.empty()) {
    SocketId id = l->ready.pop_front();
    TcpConnection* c = object<TcpConnection>(id);
    if (c == nullptr || c->accepted) continue;   // died waiting
    c->accepted = true;
    --l->ready_count;
    ++counters.tcp_accepts;
    if (c->readable() > 0) raise(id, SocketEventKind::kReadable);
    if (c->state() == TcpState::kCloseWait) raise(id, SocketEventKind::kPeerClosed);
    return id;
  }
  l->ready.release_if_empty();
  return std::nullopt;
}

void Stack::Impl::close_listener(Instant now, Listener& l) {
  auto held = listeners_by_port_.find(l.port);
  std::erase(held->second, &l);
  if (held->second.empty()) listeners_by_port_.erase(held);
  std::vector<FlowKey> half;
  for (const auto& [flow, what] : flows_) {
    auto* h = std::get_if<std::unique_ptr<HalfOpen>>(&what);
    if (h != nullptr && (*h)->listener == l.id) half.push_back(flow);
  }
  for (const FlowKey& flow : half) remove_half_open(flow);
  while (!l.ready.empty()) {
    SocketId id = l.ready.pop_front();
    TcpConnection* c = object<TcpConnection>(id);
    if (c == nullptr || c->accepted) continue;
    c->abort(now);
    settle(*c);
  }
  --listeners_;
  free_slot(l.id);
}

void Stack::Impl::close(Instant now, SocketId id, bool abort) {
  if (Listener* l = object<Listener>(id)) {
    close_listener(now, *l);
    return;
  }
  TcpConnection* c = connection(id);
  if (c == nullptr) return;
  slot(id)->pending = 0;
  if (abort) c->abort(now);
  else c->close(now);
  settle(*c);
}

Endpoint Stack::Impl::local(SocketId id) const {
  if (TcpConnection* c = object<TcpConnection>(id)) return c->local();
  if (Listener* l = object<Listener>(id)) return {l->address.value_or(IpAddress()), l->port};
  if (UdpSocket* u = object<UdpSocket>(id)) return {u->address.value_or(IpAddress()), u->port};
  return {};
}

Endpoint Stack::Impl::remote(SocketId id) const {
  TcpConnection* c = object<TcpConnection>(id);
  return c != nullptr ? c->remote() : Endpoint{};
}

std::optional<SocketEvent> Stack::Impl::poll_event() {
  while (!events_.empty()) {
    SocketId id = events_.front();
    Slot* s = slot(id);
    if (s == nullptr || s->pending == 0) {
      if (s != nullptr) s->queued = false;
      events_.pop_front();
      continue;
    }
    // Kinds are declared in the order in which they may follow each other.
    unsigned bit = static_cast<unsigned>(std::countr_zero(s->pending));
    s->pending = static_cast<std::uint16_t>(s->pending & ~(1u << bit));
    if (s->pending == 0) {
      s->queued = false;
      events_.pop_front();
    }
    SocketEvent event;
    event.id = id;
    event.kind = static_cast<SocketEventKind>(bit);
    if (TcpConnection* c = object<TcpConnection>(id)) {
      if (event.kind == SocketEventKind::kConnectFailed || event.kind == SocketEventKind::kReset)
        event.error = error_for(event.kind, c->error(), c->remote());
    } else if (Ping* p = object<Ping>(id)) {
      if (event.kind == SocketEventKind::kPong) event.rtt = p->rtt.value_or(Duration::zero());
      else event.error = error_for(event.kind, s->soft_error.value_or(ErrorCode::kTimeout), {p->address, 0});
      pings_by_id_.erase(p->echo_id);
      timers_.remove(p->timer);
      --pings_;
      free_slot(id);
    } else if (object<UdpSocket>(id) != nullptr && event.kind == SocketEventKind::kSoftError) {
      event.error = {s->soft_error.value_or(ErrorCode::kUnavailable),
                     "a datagram could not be delivered: nobody listens on that port or the host cannot be reached"};
    }
    return event;
  }
  return std::nullopt;
}

// ---- turns

bool Stack::Impl::write_control(Instant, PacketSink& sink, const ControlSegment& segment) {
  std::size_t ip = segment.local.is_v6() ? wire::kIpv6HeaderSize : wire::kIpv4HeaderSize;
  std::size_t most = ip + wire::kTcpHeaderSize + wire::kTcpOptionsMax;
  MutBytes room = sink.begin(most);
  if (room.size() < most) return false;
  std::uint8_t* tcp = room.data() + ip;
  std::size_t size = wire::write_tcp_header(tcp, segment.local_port, segment.remote_port, segment.sequence,
                                            segment.acknowledgment, segment.flags, segment.window, segment.options);
  if (segment.local.is_v6()) {
    std::uint32_t label = flow_label(FlowKey::of(segment.local, segment.local_port, segment.remote, segment.remote_port));
    wire::write_ipv6_header(room.data(), segment.local, segment.remote, wire::ip_protocol::kTcp, size, label);
  } else {
    wire::write_ipv4_header(room.data(), segment.local, segment.remote, wire::ip_protocol::kTcp, size, 0, true);
  }
  wire::store_checksum(tcp + 16, wire::sum_bytes({tcp, size}) + wire::pseudo_header_sum(segment.local, segment.remote,
                                                                                     wire::ip_protocol::kTcp, size));
  sink.commit(ip + size);
  ++counters.tcp_segments_out;
  ++counters.packets_out;
  counters.bytes_out += ip + size;
  return true;
}

bool Stack::Impl::flush_acks(Instant now, PacketSink& sink, bool wait_for_data) {
  for (std::size_t n = ack_list_.size(); n > 0; --n) {
    SocketId id = ack_list_.front();
    TcpConnection* c = object<TcpConnection>(id);
    if (c != nullptr) {
      if (!c->send_acks(now, sink, wait_for_data)) return false;
      if (!c->finished()) timers_.set(c->timer, c->next_timer());
      if (c->wants_ack()) {
        ack_list_.push_back(id);   // waits for data of its own in this very turn
      } else {
        c->in_ack_list = false;
      }
    }
    ack_list_.pop_front();
  }
  return true;
}

bool Stack::Impl::produce(Instant now, PacketSink& sink) {
  now_seen = now;
  while (!control_.empty()) {
    if (!write_control(now, sink, control_.front())) return true;
    control_.pop_front();
  }
  if (!flush_acks(now, sink, true)) return true;
  if (!flush_egress(sink)) return true;
  while (!send_list_.empty()) {
    SocketId id = send_list_.front();
    TcpConnection* c = object<TcpConnection>(id);
    if (c == nullptr) {
      send_list_.pop_front();
      continue;
    }
    TcpConnection::Turn turn = c->send(now, sink);
    if (turn == TcpConnection::Turn::kSinkFull) {
      settle(*c);
      return true;
    }
    send_list_.pop_front();
    if (turn == TcpConnection::Turn::kMore) {
      send_list_.push_back(id);
    } else {
      c->in_send_list = false;
    }
    settle(*c);
  }
  return !flush_acks(now, sink, false);
}

void Stack::Impl::handle_timeout(Instant now) {
  now_seen = now;
  while (TimerNode* node = timers_.pop_due(now)) {
    switch (node->kind) {
      case TimerNode::Kind::kConnection: {
        TcpConnection& c = *static_cast<TcpConnection*>(node->owner);
        c.handle_timer(now);
        settle(c);
        break;
      }
      case TimerNode::Kind::kHalfOpen: half_open_timer(now, *static_cast<HalfOpen*>(node->owner)); break;
      case TimerNode::Kind::kPing: {
        Ping& p = *static_cast<Ping*>(node->owner);
        if (!p.done) {
          p.done = true;
          raise(p.id, SocketEventKind::kConnectFailed);
        }
        break;
      }
      case TimerNode::Kind::kHousekeeping: housekeeping(now); break;
    }
  }
}

Deadline Stack::Impl::next_timeout() const {
  Instant next = timers_.next();
  if (next == Instant::max()) return Deadline::never();
  return Deadline::between(next, next + kPacingGranularity);
}

// ---- housekeeping

void Stack::Impl::schedule_housekeeping() {
  Instant due = std::min(trim_at_, reassembly_.next_timeout());
  if (!wait_order_.empty()) {
    const auto& oldest = std::get<std::unique_ptr<TimeWait>>(flows_.at(wait_order_.front()));
    due = std::min(due, oldest->since + kTimeWaitTime);
  }
  timers_.set(housekeeping_, due);
}

void Stack::Impl::housekeeping(Instant now) {
  while (!wait_order_.empty()) {
    auto it = flows_.find(wait_order_.front());
    if (std::get<std::unique_ptr<TimeWait>>(it->second)->since + kTimeWaitTime > now) break;
    remove_time_wait(it);
  }
  std::size_t unfinished = reassembly_.size();
  reassembly_.expire(now, [&](const IpAddress& source, const IpAddress& destination, Bytes quote) {
    send_icmp_error(now, destination, source, wire::IcmpErrorToSend::kReassemblyTimeout, quote);
  });
  counters.drops[static_cast<std::size_t>(Drop::kFragmentTimeout)] += unfinished - reassembly_.size();
  if (trim_at_ <= now) trim_at_ = pool.trim() ? now + kPoolTrimInterval : Instant::max();
  schedule_housekeeping();
}

// Section "pressure levels": what is given up, in order, as buffers fill.
void Stack::Impl::relieve_pressure(Instant now) {
  if (pool.pressure_percent() <= kPressureRenege) return;
  // Out-of-order data of the largest holders: the senders still have it.
  while (pool.pressure_percent() > kPressureRenege) {
    TcpConnection* largest = nullptr;
    for (Slot& s : slots_) {
      auto* c = std::get_if<std::unique_ptr<TcpConnection>>(&s.what);
      if (c != nullptr && (*c)->out_of_order_bytes() > (largest != nullptr ? largest->out_of_order_bytes() : 0))
        largest = c->get();
    }
    if (largest == nullptr) break;
    largest->drop_out_of_order();
    settle(*largest);
  }
  for (std::size_t i = 0; i < slots_.size() && pool.pressure_percent() > kPressureRenege; ++i) {
    auto* c = std::get_if<std::unique_ptr<TcpConnection>>(&slots_[i].what);
    if (c == nullptr || !(*c)->stalled_reader(now)) continue;
    ++counters.tcp_pressure_resets;
    (*c)->fail(ErrorCode::kLimit);
    settle(**c);
  }
  for (std::size_t i = 0; i < slots_.size() && pool.pressure_percent() > kPressureEvict; ++i) {
    auto* c = std::get_if<std::unique_ptr<TcpConnection>>(&slots_[i].what);
    if (c == nullptr || !(*c)->app_gone()) continue;
    ++counters.tcp_pressure_resets;
    (*c)->abort(now);
    settle(**c);
  }
}

MemoryUse Stack::Impl::memory() const {
  MemoryUse out;
  out.buffers = pool.bytes_in_use() + reassembly_.bytes();
  out.pooled = pool.bytes_pooled();
  out.limit = pool.limit();
  out.connections = connections_;
  out.half_open = half_open_;
  out.time_wait = time_wait_;
  out.listeners = listeners_;
  out.udp_sockets = udp_sockets_;
  return out;
}

// ---- from the path layer

void Stack::Impl::path_changed(Instant now, const IpAddress& address, PathChange kind) {
  now_seen = now;
  Peer* peer = peer_for(address);
  if (peer == nullptr) return;
  switch (kind) {
    case PathChange::kDirect: peer->relayed = false; peer->unreachable = false; break;
    case PathChange::kRelayed: peer->relayed = true; peer->unreachable = false; break;
    case PathChange::kUnreachable: peer->unreachable = true; break;
    case PathChange::kReachable: peer->unreachable = false; break;
  }
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    auto* c = std::get_if<std::unique_ptr<TcpConnection>>(&slots_[i].what);
    if (c == nullptr || &(*c)->peer() != peer) continue;
    (*c)->path_changed(now, kind);
    settle(**c);
  }
}

void Stack::Impl::set_round_trip(const IpAddress& address, Duration rtt) {
  if (Peer* peer = peer_for(address)) peer->round_trip = rtt;
}

void Stack::Impl::tunnel_blocked(Instant now, const IpAddress& address, bool blocked) {
  now_seen = now;
  Peer* peer = peer_for(address);
  if (peer == nullptr || peer->blocked == blocked) return;
  peer->blocked = blocked;
  if (blocked) return;
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    auto* c = std::get_if<std::unique_ptr<TcpConnection>>(&slots_[i].what);
    if (c == nullptr || &(*c)->peer() != peer) continue;
    (*c)->tunnel_unblocked(now);
    settle(**c);
  }
}

void Stack::Impl::peer_removed(Instant now, const IpAddress& address) {
  now_seen = now;
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    auto* c = std::get_if<std::unique_ptr<TcpConnection>>(&slots_[i].what);
    if (c == nullptr || (*c)->finished() || (*c)->remote().address != address) continue;
    (*c)->fail(ErrorCode::kNotFound);
    settle(**c);
  }
  for (auto it = flows_.begin(); it != flows_.end();) {
    auto current = it++;
    if (auto* half = std::get_if<std::unique_ptr<HalfOpen>>(&current->second)) {
      if ((*half)->handshake.remote == address) remove_half_open(current->first);
    }
  }
}

void Stack::Impl::connect_refused(Instant now, const Endpoint& local, const Endpoint& remote) {
  now_seen = now;
  auto it = flows_.find(FlowKey::of(local.address, local.port, remote.address, remote.port));
  auto* held = it != flows_.end() ? std::get_if<TcpConnection*>(&it->second) : nullptr;
  if (held == nullptr) return;
  TcpConnection& c = **held;
  c.handle_refusal(now);
  settle(c);
}

void Stack::Impl::check_invariants() const {
  std::size_t chunks = 0;
  std::size_t live = 0;
  for (const Slot& s : slots_) {
    if (auto* c = std::get_if<std::unique_ptr<TcpConnection>>(&s.what)) {
      (*c)->check_invariants();
      chunks += (*c)->buffer_bytes();
      if ((*c)->in_flow_table) ++live;
    }
  }
  PORTHOLE_ASSERT(live == connections_);
  PORTHOLE_ASSERT(chunks <= pool.bytes_in_use());
  std::size_t half = 0, wait = 0;
  for (const auto& [flow, what] : flows_) {
    if (std::holds_alternative<std::unique_ptr<HalfOpen>>(what)) ++half;
    if (std::holds_alternative<std::unique_ptr<TimeWait>>(what)) ++wait;
  }
  PORTHOLE_ASSERT(half == half_open_ && wait == time_wait_ && wait == wait_order_.size());
  std::size_t peer_connections = 0, buffering = 0;
  for (const auto& [address, peer] : peers_) {
    peer_connections += peer.connections;
    if (peer.buffer_bytes > 0) ++buffering;
  }
  PORTHOLE_ASSERT(peer_connections == connections_ && buffering == buffering_peers);
}

// ---- the public face

Stack::Stack(const StackConfig& config, Rng& rng) : impl_(std::make_unique<Impl>(config, rng)) {}
Stack::~Stack() = default;
void Stack::set_addresses(std::span<const IpAddress> addresses) { impl_->set_addresses(addresses); }
void Stack::handle_packets(Instant now, std::span<const MutBytes> packets) { impl_->handle_packets(now, packets); }
bool Stack::produce(Instant now, PacketSink& sink) { return impl_->produce(now, sink); }
void Stack::handle_timeout(Instant now) { impl_->handle_timeout(now); }
Deadline Stack::next_timeout() const { return impl_->next_timeout(); }
Result<SocketId> Stack::connect(Instant now, const Endpoint& to, const ConnectOptions& options) {
  return impl_->connect(now, to, options);
}
Result<SocketId> Stack::listen(Instant now, std::optional<IpAddress> address, std::uint16_t port, int backlog) {
  return impl_->listen(now, address, port, backlog);
}
std::optional<SocketId> Stack::accept(SocketId listener) { return impl_->accept(listener); }
std::size_t Stack::write(Instant now, SocketId id, Bytes data) {
  TcpConnection* c = impl_->connection(id);
  if (c == nullptr || data.empty()) return 0;
  std::size_t taken = c->write(now, data);
  impl_->settle(*c);
  return taken;
}
std::size_t Stack::writable(SocketId id) const {
  TcpConnection* c = impl_->connection(id);
  return c != nullptr ? c->writable() : 0;
}
std::size_t Stack::peek(SocketId id, std::span<Bytes> out) const {
  TcpConnection* c = impl_->connection(id);
  return c != nullptr ? c->peek(out) : 0;
}
std::size_t Stack::readable(SocketId id) const {
  TcpConnection* c = impl_->connection(id);
  return c != nullptr ? c->readable() : 0;
}
void Stack::consume(Instant now, SocketId id, std::size_t size) {
  TcpConnection* c = impl_->connection(id);
  if (c == nullptr) return;
  c->consume(now, size);
  impl_->settle(*c);
}
bool Stack::read_eof(SocketId id) const {
  TcpConnection* c = impl_->connection(id);
  return c != nullptr && c->read_eof();
}
void Stack::shutdown_write(Instant now, SocketId id) {
  TcpConnection* c = impl_->connection(id);
  if (c == nullptr) return;
  c->shutdown_write(now);
  impl_->settle(*c);
}
void Stack::close(Instant now, SocketId id) {
  impl_->now_seen = now;
  impl_->close(now, id, false);
}
void Stack::abort(Instant now, SocketId id) {
  impl_->now_seen = now;
  impl_->close(now, id, true);
}
void Stack::set_options(Instant now, SocketId id, const ConnectOptions& options) {
  TcpConnection* c = impl_->connection(id);
  if (c == nullptr) return;
  c->set_options(now, options);
  impl_->settle(*c);
}
Endpoint Stack::local(SocketId id) const { return impl_->local(id); }
Endpoint Stack::remote(SocketId id) const { return impl_->remote(id); }
Result<SocketId> Stack::udp_bind(std::optional<IpAddress> address, std::uint16_t port) {
  return impl_->udp_bind(address, port);
}
Status Stack::udp_send(Instant, SocketId id, const Endpoint& destination, Bytes data) {
  return impl_->udp_send(id, std::nullopt, destination, data);
}
Status Stack::udp_send_from(Instant, SocketId id, const IpAddress& source, const Endpoint& destination, Bytes data) {
  return impl_->udp_send(id, source, destination, data);
}
std::optional<Datagram> Stack::udp_receive(SocketId id) { return impl_->udp_receive(id); }
std::optional<DatagramInfo> Stack::udp_receive(SocketId id, MutBytes buffer) { return impl_->udp_receive(id, buffer); }
void Stack::udp_close(SocketId id) { impl_->udp_close(id); }
Result<SocketId> Stack::ping(Instant now, const IpAddress& address, std::size_t payload_size, Duration timeout) {
  return impl_->ping(now, address, payload_size, timeout);
}
std::optional<SocketEvent> Stack::poll_event() { return impl_->poll_event(); }
TcpInfo Stack::info(SocketId id) const {
  TcpConnection* c = impl_->connection(id);
  return c != nullptr ? c->info(impl_->now_seen) : TcpInfo{};
}
const Counters& Stack::counters() const { return impl_->counters; }
MemoryUse Stack::memory() const { return impl_->memory(); }
void Stack::path_changed(Instant now, const IpAddress& peer, PathChange kind) { impl_->path_changed(now, peer, kind); }
void Stack::peer_removed(Instant now, const IpAddress& peer) { impl_->peer_removed(now, peer); }
void Stack::connect_refused(Instant now, const Endpoint& local, const Endpoint& remote) {
  impl_->connect_refused(now, local, remote);
}
void Stack::set_round_trip(const IpAddress& peer, Duration rtt) { impl_->set_round_trip(peer, rtt); }
std::vector<IpAddress> Stack::take_unanswered() { return std::exchange(impl_->unanswered, {}); }
void Stack::tunnel_blocked(Instant now, const IpAddress& peer, bool blocked) {
  impl_->tunnel_blocked(now, peer, blocked);
}
void Stack::release_memory() { impl_->pool.release_all(); }
void Stack::check_invariants() const { impl_->check_invariants(); }

}  // namespace porthole::netstack
