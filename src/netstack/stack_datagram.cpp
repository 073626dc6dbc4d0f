#include <algorithm>

#include "base/assert.h"
#include "netstack/spec_constants.h"
#include "netstack/stack_impl.h"

namespace porthole::netstack {
namespace {

// Before each datagram in a socket's queue: source (mapped) and port, destination (mapped).
constexpr std::size_t kRecordHeader = 16 + 2 + 16;
constexpr std::size_t kQuoteMaxV4 = 548;   // RFC 1812 4.3.2.3

}  // namespace

// ---- UDP

Result<SocketId> Stack::Impl::udp_bind(std::optional<IpAddress> address, std::uint16_t port) {
  if (udp_sockets_ >= kUdpSocketsMax) return Error{ErrorCode::kLimit, "too many UDP sockets"};
  if (address && !is_own(*address))
    return Error{ErrorCode::kInvalid, address->to_string() + " is not an address of this node"};
  if (port == 0) {
    constexpr std::uint32_t kRange = kEphemeralLast - kEphemeralFirst + 1;
    std::uint32_t start = rng.u32() % kRange;
    for (std::uint32_t i = 0; i < kRange && port == 0; ++i) {
      std::uint16_t candidate = static_cast<std::uint16_t>(kEphemeralFirst + (start + i) % kRange);
      if (!udp_by_port_.contains(candidate)) port = candidate;
    }
    if (port == 0) return Error{ErrorCode::kLimit, "no free UDP port"};
  }
  auto held = udp_by_port_.find(port);
  if (held != udp_by_port_.end()) {
    for (UdpSocket* u : held->second)
      if (u->address == address)
        return Error{ErrorCode::kAlreadyExists, "UDP port " + std::to_string(port) + " is in use"};
  }
  Result<SocketId> id = new_slot();
  if (!id) return id;
  auto owned = std::make_unique<UdpSocket>(pool);
  owned->id = *id;
  owned->address = address;
  owned->port = port;
  udp_by_port_[port].push_back(owned.get());
  slot(*id)->what = std::move(owned);
  ++udp_sockets_;
  return *id;
}

void Stack::Impl::udp_close(SocketId id) {
  UdpSocket* u = object<UdpSocket>(id);
  if (u == nullptr) return;
  auto held = udp_by_port_.find(u->port);
  std::erase(held->second, u);
  if (held->second.empty()) udp_by_port_.erase(held);
  --udp_sockets_;
  free_slot(id);
}

Status Stack::Impl::udp_send(SocketId id, const std::optional<IpAddress>& source, const Endpoint& destination,
                             Bytes data) {
  UdpSocket* u = object<UdpSocket>(id);
  if (u == nullptr) return Error{ErrorCode::kNotFound, "this UDP socket is closed"};
  if (!destination.is_valid() || destination.address.is_multicast() || destination.address.is_unspecified() ||
      destination.address.is_loopback())
    return Error{ErrorCode::kInvalid, destination.to_string() + " is not an address to send to"};
  if (is_own(destination.address))
    return Error{ErrorCode::kInvalid, destination.to_string() + " is this node itself"};
  IpAddress from;
  if (source) {
    from = *source;
  } else if (u->address) {
    from = *u->address;
  } else {
    const IpAddress* own = own_address_for(destination.address);
    if (own != nullptr) from = *own;
  }
  if (!is_own(from) || from.is_v4() != destination.address.is_v4())
    return Error{ErrorCode::kUnavailable, "this node has no address of its own to reach " + destination.to_string() + " from"};
  std::size_t headers = (from.is_v4() ? wire::kIpv4HeaderSize : wire::kIpv6HeaderSize) + wire::kUdpHeaderSize;
  if (data.size() + headers > static_cast<std::size_t>(config.mtu))
    return Error{ErrorCode::kLimit, "the datagram is too long: at most " +
                                        std::to_string(static_cast<std::size_t>(config.mtu) - headers) + " bytes fit"};
  std::uint8_t* udp = scratch_.data() + headers - wire::kUdpHeaderSize;
  wire::write_udp(udp, {from, u->port}, destination, data);
  if (!queue_datagram(from, destination.address, wire::ip_protocol::kUdp, {udp, wire::kUdpHeaderSize + data.size()})) {
    if (!u->want_writable) {
      u->want_writable = true;
      udp_waiting_.push_back(id);
    }
    return Error{ErrorCode::kUnavailable, "the queue to the tunnel is full for the moment"};
  }
  ++counters.udp_out;
  return {};
}

std::optional<DatagramInfo> Stack::Impl::udp_receive(SocketId id, MutBytes buffer) {
  UdpSocket* u = object<UdpSocket>(id);
  if (u == nullptr || u->queue.empty()) return std::nullopt;
  std::uint8_t header[kRecordHeader];
  u->queue.read_front(0, header);
  DatagramInfo info;
  info.source = {IpAddress::v6_bytes(header), load_be<std::uint16_t>(header + 16)};
  info.destination = IpAddress::v6_bytes(header + 18);
  info.size = u->queue.front_size() - kRecordHeader;
  u->queue.read_front(kRecordHeader, buffer.first(std::min(buffer.size(), info.size)));
  u->queue.pop();
  return info;
}

std::optional<Datagram> Stack::Impl::udp_receive(SocketId id) {
  UdpSocket* u = object<UdpSocket>(id);
  if (u == nullptr || u->queue.empty()) return std::nullopt;
  Datagram out;
  out.data.resize(u->queue.front_size() - kRecordHeader);
  std::optional<DatagramInfo> info = udp_receive(id, out.data);
  out.source = info->source;
  out.destination = info->destination;
  return out;
}

Stack::Impl::UdpSocket* Stack::Impl::find_udp(const IpAddress& local, std::uint16_t port) {
  auto held = udp_by_port_.find(port);
  if (held == udp_by_port_.end()) return nullptr;
  UdpSocket* any = nullptr;
  for (UdpSocket* u : held->second) {
    if (u->address == local) return u;
    if (!u->address) any = u;
  }
  return any;
}

void Stack::Impl::handle_udp(Instant now, const wire::IpPacket& packet, Bytes payload) {
  auto udp = wire::parse_udp(payload, packet.source, packet.destination);
  if (!udp || udp->destination_port == 0) {
    drop(Drop::kUdp);
    return;
  }
  if (!udp->checksum_ok) {
    drop(Drop::kUdpChecksum);
    return;
  }
  UdpSocket* u = find_udp(packet.destination, udp->destination_port);
  if (u == nullptr) {
    drop(Drop::kUdpNoPort);
    send_icmp_error(now, packet.destination, packet.source, wire::IcmpErrorToSend::kPortUnreachable, packet.whole);
    return;
  }
  std::size_t limit = pool.pressure_percent() > kPressureNoHandshake ? std::min(kPressureUdpBuffer, config.udp_receive_buffer)
                                                                     : config.udp_receive_buffer;
  std::uint8_t header[kRecordHeader];
  std::memcpy(header, packet.source.mapped().data(), 16);
  store_be(header + 16, udp->source_port);
  std::memcpy(header + 18, packet.destination.mapped().data(), 16);
  if (!u->queue.push(header, udp->data, limit)) {
    drop(Drop::kUdpQueueFull);
    return;
  }
  ++counters.udp_in;
  raise(u->id, SocketEventKind::kReadable);
}

// ---- ICMP

void Stack::Impl::handle_icmp(Instant now, const wire::IpPacket& packet, Bytes payload) {
  auto message = wire::parse_icmp(payload, packet.source, packet.destination);
  if (!message || !message->checksum_ok) {
    drop(Drop::kIcmp);
    return;
  }
  switch (message->kind) {
    case wire::IcmpKind::kEchoRequest: {
      if (!icmp_rate_.take(now)) {
        drop(Drop::kRateLimit);
        return;
      }
      ByteVector reply(wire::kIcmpHeaderSize + message->body.size());
      wire::write_echo(reply.data(), packet.destination, packet.source, true, message->id, message->sequence,
                       message->body);
      std::uint8_t protocol = packet.source.is_v6() ? wire::ip_protocol::kIcmpV6 : wire::ip_protocol::kIcmp;
      if (queue_datagram(packet.destination, packet.source, protocol, reply)) ++counters.echo_replies;
      return;
    }
    case wire::IcmpKind::kEchoReply: {
      auto it = pings_by_id_.find(message->id);
      if (it == pings_by_id_.end() || it->second->address != packet.source || message->sequence != 1 ||
          it->second->done) {
        drop(Drop::kIcmp);
        return;
      }
      Ping& p = *it->second;
      p.done = true;
      p.rtt = now - p.sent;
      timers_.remove(p.timer);
      raise(p.id, SocketEventKind::kPong);
      return;
    }
    case wire::IcmpKind::kOther: drop(Drop::kIcmp); return;
    default: handle_icmp_error(now, packet, *message); return;
  }
}

void Stack::Impl::handle_icmp_error(Instant now, const wire::IpPacket& packet, const wire::IcmpMessage& message) {
  auto quoted = wire::parse_quoted(message.body);
  if (!quoted || quoted->source != packet.destination) {
    drop(Drop::kIcmp);
    return;
  }
  bool hard = message.kind == wire::IcmpKind::kUnreachablePort || message.kind == wire::IcmpKind::kUnreachableProtocol ||
              message.kind == wire::IcmpKind::kProhibited;
  ErrorCode code = message.kind == wire::IcmpKind::kUnreachablePort ? ErrorCode::kRefused
                   : message.kind == wire::IcmpKind::kProhibited    ? ErrorCode::kPermission
                                                                    : ErrorCode::kUnavailable;
  if (quoted->protocol == wire::ip_protocol::kTcp) {
    auto it = flows_.find(FlowKey::of(quoted->source, quoted->source_port, quoted->destination, quoted->destination_port));
    auto* held = it != flows_.end() ? std::get_if<TcpConnection*>(&it->second) : nullptr;
    if (held == nullptr) {
      drop(Drop::kIcmp);
      return;
    }
    TcpConnection& c = **held;
    touch(c);
    if (message.kind == wire::IcmpKind::kTooBig) {
      // Below the floor only a forger goes (RFC 8201 4); above ours it says nothing.
      int floor = packet.source.is_v6() ? kMinIpv6Mtu : kMinIpv4Mtu;
      int mtu = static_cast<int>(std::min<std::uint32_t>(message.mtu, 65535));
      if (mtu >= floor && mtu < config.mtu) c.handle_too_big(now, quoted->sequence, mtu);
      else drop(Drop::kIcmp);
    } else {
      c.handle_icmp(now, hard, code, quoted->sequence);
    }
    return;
  }
  if (quoted->protocol == wire::ip_protocol::kUdp) {
    UdpSocket* u = find_udp(quoted->source, quoted->source_port);
    if (u == nullptr) {
      drop(Drop::kIcmp);
      return;
    }
    slot(u->id)->soft_error = code;
    raise(u->id, SocketEventKind::kSoftError);
    return;
  }
  auto it = pings_by_id_.find(quoted->source_port);
  if (it == pings_by_id_.end() || it->second->address != quoted->destination || it->second->done) {
    drop(Drop::kIcmp);
    return;
  }
  Ping& p = *it->second;
  p.done = true;
  timers_.remove(p.timer);
  slot(p.id)->soft_error = code;
  raise(p.id, SocketEventKind::kConnectFailed);
}

// RFC 1122 3.2.2, RFC 4443 2.4: the caller answers only unicast packets that are no ICMP errors and no later fragments.
void Stack::Impl::send_icmp_error(Instant now, const IpAddress& local, const IpAddress& remote,
                                  wire::IcmpErrorToSend what, Bytes quoted) {
  Peer* peer = peer_for(remote);
  if (peer == nullptr || !peer->icmp_errors.take(now) || !icmp_rate_.take(now)) {
    drop(Drop::kRateLimit);
    return;
  }
  std::size_t most = local.is_v4() ? kQuoteMaxV4
                                   : static_cast<std::size_t>(kMinIpv6Mtu) - wire::kIpv6HeaderSize - wire::kIcmpHeaderSize;
  quoted = quoted.first(std::min(quoted.size(), most));
  ByteVector message(wire::kIcmpHeaderSize + quoted.size());
  wire::write_icmp_error(message.data(), local, remote, what, quoted);
  if (queue_datagram(local, remote, local.is_v6() ? wire::ip_protocol::kIcmpV6 : wire::ip_protocol::kIcmp, message))
    ++counters.icmp_errors_sent;
}

Result<SocketId> Stack::Impl::ping(Instant now, const IpAddress& address, std::size_t payload_size, Duration timeout) {
  if (!address.is_valid() || address.is_multicast() || address.is_unspecified() || is_own(address))
    return Error{ErrorCode::kInvalid, address.to_string() + " is not an address to ping"};
  const IpAddress* from = own_address_for(address);
  if (from == nullptr)
    return Error{ErrorCode::kUnavailable,
                 "this node has no " + std::string(address.is_v4() ? "IPv4" : "IPv6") + " address on the tailnet"};
  std::size_t ip = address.is_v4() ? wire::kIpv4HeaderSize : wire::kIpv6HeaderSize;
  if (ip + wire::kIcmpHeaderSize + payload_size > static_cast<std::size_t>(config.mtu))
    return Error{ErrorCode::kLimit, "the ping is too long for one packet"};
  if (pings_ >= kPingsMax) return Error{ErrorCode::kLimit, "too many pings are waiting for answers"};
  std::uint16_t echo_id;
  do {
    echo_id = static_cast<std::uint16_t>(rng.u32());
  } while (pings_by_id_.contains(echo_id));
  ByteVector data(payload_size);
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::uint8_t>(i);
  ByteVector message(wire::kIcmpHeaderSize + payload_size);
  wire::write_echo(message.data(), *from, address, false, echo_id, 1, data);
  if (!queue_datagram(*from, address, address.is_v6() ? wire::ip_protocol::kIcmpV6 : wire::ip_protocol::kIcmp, message))
    return Error{ErrorCode::kUnavailable, "the queue to the tunnel is full for the moment"};
  Result<SocketId> id = new_slot();
  if (!id) return id;
  auto owned = std::make_unique<Ping>();
  owned->id = *id;
  owned->address = address;
  owned->echo_id = echo_id;
  owned->sent = now;
  owned->timer.kind = TimerNode::Kind::kPing;
  owned->timer.owner = owned.get();
  pings_by_id_[echo_id] = owned.get();
  timers_.set(owned->timer, now + timeout);
  slot(*id)->what = std::move(owned);
  ++pings_;
  return *id;
}

// ---- output

bool Stack::Impl::queue_datagram(const IpAddress& source, const IpAddress& destination, std::uint8_t protocol,
                                 Bytes payload) {
  bool v6 = source.is_v6();
  std::size_t ip = v6 ? wire::kIpv6HeaderSize : wire::kIpv4HeaderSize;
  std::size_t mtu = static_cast<std::size_t>(config.mtu);
  std::uint8_t header[wire::kIpv6HeaderSize + 8];
  if (ip + payload.size() <= mtu) {
    if (v6) wire::write_ipv6_header(header, source, destination, protocol, payload.size(), 0);
    else wire::write_ipv4_header(header, source, destination, protocol, payload.size(), 0, true);
    return egress_.push({header, ip}, payload, kEgressBytesMax);
  }
  if (payload.size() + ip > kDatagramMax || egress_.size_bytes() + payload.size() * 2 > kEgressBytesMax) return false;
  std::uint32_t id = ++fragment_id_;
  std::size_t headers = v6 ? ip + 8 : ip;
  std::size_t step = (mtu - headers) / 8 * 8;
  for (std::size_t at = 0; at < payload.size(); at += step) {
    Bytes piece = payload.subspan(at, std::min(step, payload.size() - at));
    bool more = at + piece.size() < payload.size();
    if (v6) {
      wire::write_ipv6_header(header, source, destination, wire::ip_protocol::kFragment, piece.size() + 8, 0);
      wire::write_fragment_header(header + ip, protocol, static_cast<std::uint32_t>(at), more, id);
    } else {
      wire::write_ipv4_header(header, source, destination, protocol, piece.size(), static_cast<std::uint16_t>(id), false,
                              static_cast<std::uint16_t>(at), more);
    }
    if (!egress_.push({header, headers}, piece, kEgressBytesMax)) return false;
  }
  return true;
}

bool Stack::Impl::flush_egress(PacketSink& sink) {
  while (!egress_.empty()) {
    std::size_t size = egress_.front_size();
    MutBytes room = sink.begin(size);
    if (room.size() < size) return false;
    egress_.read_front(0, room.first(size));
    sink.commit(size);
    ++counters.packets_out;
    counters.bytes_out += size;
    egress_.pop();
    if (!udp_waiting_.empty() && egress_.size_bytes() < kEgressBytesMax / 2) {
      for (SocketId id : udp_waiting_) {
        if (UdpSocket* u = object<UdpSocket>(id)) {
          u->want_writable = false;
          raise(id, SocketEventKind::kWritable);
        }
      }
      udp_waiting_.clear();
    }
  }
  return true;
}

}  // namespace porthole::netstack
