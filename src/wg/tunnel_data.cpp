// The data path: transport messages in, packets out, and packets in, sealed runs out. Nothing here allocates per packet
// except staging, which waits for a handshake anyway.
#include <algorithm>

#include "base/assert.h"
#include "wg/tunnel_impl.h"

namespace porthole::wg {

std::size_t padded_size(std::size_t size, std::size_t mtu) {
  const std::size_t last = mtu != 0 && size > mtu ? size % mtu : size;
  std::size_t padded = (last + kPaddingMultiple - 1) / kPaddingMultiple * kPaddingMultiple;
  if (mtu != 0) padded = std::min(padded, mtu);
  return size - last + padded;
}

std::size_t ip_packet_size(Bytes payload) {
  if (payload.empty()) return 0;
  std::size_t size = 0;
  switch (payload[0] >> 4) {
    case 4:
      if (payload.size() < 20) return 0;
      size = load_be<std::uint16_t>(payload.data() + 2);
      if (size < 20) return 0;
      break;
    case 6:
      if (payload.size() < 40) return 0;
      size = std::size_t{40} + load_be<std::uint16_t>(payload.data() + 4);
      break;
    default:
      return 0;
  }
  return size <= payload.size() ? size : 0;
}

namespace {

// Of a packet that ip_packet_size() accepted.
IpAddress source_of(Bytes packet) {
  return packet[0] >> 4 == 4 ? IpAddress::v4_bytes(packet.data() + 12) : IpAddress::v6_bytes(packet.data() + 8);
}
IpAddress destination_of(Bytes packet) {
  return packet[0] >> 4 == 4 ? IpAddress::v4_bytes(packet.data() + 16) : IpAddress::v6_bytes(packet.data() + 24);
}

}  // namespace

// ---- receiving

void Tunnel::Impl::handle(Clock clock, std::span<const RecvDatagram> datagrams) {
  for (const RecvDatagram& d : datagrams) handle_one(clock, d.source, d.data);
  end_batch(clock);
}

void Tunnel::Impl::handle_relayed(Clock clock, const RelaySource& source, MutBytes datagram) {
  handle_one(clock, source, datagram);
  end_batch(clock);
}

void Tunnel::Impl::end_batch(Clock clock) {
  open_group(clock);
  reported_size_ = 0;
}

void Tunnel::Impl::handle_one(Clock clock, const Source& source, MutBytes datagram) {
  if (self_.key.is_zero()) return count_drop(Drop::kNoPrivateKey);
  if (datagram.size() < 4) return count_drop(Drop::kMalformed);
  // One comparison for the type and the three reserved bytes, which must be zero.
  const std::uint32_t type = load_le<std::uint32_t>(datagram.data());
  if (type == kTypeTransport) return handle_transport(clock, source, datagram);
  open_group(clock);  // order of arrival
  std::size_t expected = 0;
  switch (type) {
    case kTypeInitiation: expected = kInitiationSize; break;
    case kTypeResponse: expected = kResponseSize; break;
    case kTypeCookieReply: expected = kCookieReplySize; break;
    default: return count_drop(Drop::kUnknownType);
  }
  if (datagram.size() != expected) return count_drop(Drop::kMalformed);
  if (type == kTypeInitiation) handle_initiation(clock, source, datagram);
  else if (type == kTypeResponse) handle_response(clock, source, datagram);
  else handle_cookie_reply(clock, datagram);
}

void Tunnel::Impl::handle_transport(Clock clock, const Source& source, MutBytes datagram) {
  if (datagram.size() < kTransportOverhead) return count_drop(Drop::kMalformed);
  const std::uint32_t index = load_le<std::uint32_t>(datagram.data() + 4);
  if (group_pair_ == nullptr || group_pair_->local_index != index || group_size_ == kOpenBatchMax) {
    open_group(clock);
    const auto entry = indices_.find(index);
    if (entry == indices_.end() || entry->second.pair == nullptr) {
      host_.stray(source);
      return count_drop(Drop::kUnknownIndex);
    }
    group_pair_ = entry->second.pair;
    group_peer_ = peer(entry->second.peer);
  }
  if (clock.now - group_pair_->created > kRejectAfterTime) return count_drop(Drop::kExpiredKey, group_peer_);
  const std::uint64_t counter = load_le<std::uint64_t>(datagram.data() + 8);
  if (!group_pair_->replay.fresh(counter)) return count_drop(Drop::kReplayed, group_peer_);
  jobs_[group_size_] = {datagram.subspan(kTransportHeaderSize), counter, false};
  sources_[group_size_] = source;
  ++group_size_;
}

void Tunnel::Impl::open_group(Clock clock) {
  KeyPair* const pair = std::exchange(group_pair_, nullptr);
  const std::size_t size = std::exchange(group_size_, 0);
  if (size == 0) return;
  Peer& p = *group_peer_;
  pair->open.process(std::span(jobs_).first(size));

  std::array<MutBytes, kOpenBatchMax> packets;
  std::size_t packet_count = 0;
  bool authentic = false, data = false;
  for (std::size_t i = 0; i < size; ++i) {
    if (!jobs_[i].ok) {
      count_drop(Drop::kBadTag, &p);
      continue;
    }
    if (!pair->replay.accept(jobs_[i].counter)) {
      count_drop(Drop::kReplayed, &p);
      continue;
    }
    authentic = true;
    p.rx_bytes += kTransportHeaderSize + jobs_[i].data.size();
    report_source(p, sources_[i]);
    const MutBytes payload = jobs_[i].data.first(jobs_[i].data.size() - crypto::kAeadTagSize);
    if (payload.empty()) continue;
    data = true;  // whatever it contains, the peer is alive and sent something
    const std::size_t packet_size = ip_packet_size(payload);
    if (packet_size == 0) {
      count_drop(Drop::kBadPacket, &p);
    } else if (!source_allowed(p, payload)) {
      count_drop(Drop::kDisallowedSource, &p);
    } else {
      packets[packet_count++] = payload.first(packet_size);
    }
  }
  if (!authentic) return;

  traversal(clock.now, p);
  any_received(clock.now, p);
  if (data) data_received(clock.now, p);
  if (pair == p.next.get()) {
    promote(clock, p);
  } else if (p.staged_sent && pair == p.current.get()) {
    // The peer uses the session that carried them.
    staged_total_ -= p.staged->size();
    p.staged.reset();
    p.staged_sent = false;
  }
  if (!p.last_minute_sent && p.current && p.current->initiator && clock.now - p.current->created > kRekeyOnReceiveAge) {
    p.last_minute_sent = true;
    send_initiation(clock, p, Attempt::kFresh);
  }
  if (packet_count != 0) {
    p.rx_packets += packet_count;
    host_.deliver(p.id, std::span<const MutBytes>(packets).first(packet_count));
  }
}

bool Tunnel::Impl::source_allowed(Peer& p, Bytes packet) {
  const IpAddress source = source_of(packet);
  if (source == p.last_allowed) return true;
  bool ok = false;
  if (p.allowed_table) {
    ok = p.allowed_table->lookup(source, kNoPeer) != kNoPeer;
  } else {
    ok = std::any_of(p.allowed.begin(), p.allowed.end(), [&](const Prefix& a) { return a.contains(source); });
  }
  if (ok) p.last_allowed = source;
  return ok;
}

void Tunnel::Impl::report_source(Peer& p, const Source& source) {
  for (std::size_t i = 0; i < reported_size_; ++i) {
    if (reported_[i].first == p.id && reported_[i].second == source) return;
  }
  if (reported_size_ < reported_.size()) reported_[reported_size_++] = {p.id, source};
  host_.authenticated(p.id, source);
}

// ---- sending

MutBytes Tunnel::Impl::begin(std::size_t size_max) {
  if (size_max > kPacketSizeMax) {
    count_drop(Drop::kOversize);
    return {};
  }
  if (!arena_) arena_ = std::make_unique<std::uint8_t[]>(kArenaBytes);
  begun_ = size_max;
  return {arena_.get() + arena_used_ + kTransportHeaderSize, size_max};
}

void Tunnel::Impl::commit(Clock clock, std::size_t size) {
  PORTHOLE_ASSERT(size <= begun_);
  begun_ = 0;
  if (size == 0) return;
  const Bytes packet(arena_.get() + arena_used_ + kTransportHeaderSize, size);
  if (ip_packet_size(packet) == 0) return count_drop(Drop::kBadPacket);
  const IpAddress destination = destination_of(packet);
  if (destination != route_cached_for_) {
    route_cached_ = route(destination);
    route_cached_for_ = destination;
  }
  Peer* p = peer(route_cached_);
  if (p == nullptr) return count_drop(Drop::kNoRoute);
  if (!p->usable(clock.now)) {
    stage(*p, packet);
    return start_handshake(clock, *p);
  }
  finish_slot(clock, p->id, size);
}

void Tunnel::Impl::send(Clock clock, Peer& p, Bytes packet) {
  if (packet.size() > kPacketSizeMax) return count_drop(Drop::kOversize, &p);
  if (packet.empty()) return;
  if (!p.usable(clock.now)) {
    stage(p, packet);
    return start_handshake(clock, p);
  }
  append_slot(clock, p, packet);
}

void Tunnel::Impl::append_slot(Clock clock, Peer& p, Bytes packet) {
  const MutBytes room = begin(packet.size());
  begun_ = 0;
  if (!packet.empty()) std::memcpy(room.data(), packet.data(), packet.size());
  finish_slot(clock, p.id, packet.size());
}

// The packet lies at its place in the arena: pads it and reserves the datagram around it.
void Tunnel::Impl::finish_slot(Clock clock, PeerId id, std::size_t size) {
  const std::size_t padded = padded_size(size, kPacketSizeMax);
  std::memset(arena_.get() + arena_used_ + kTransportHeaderSize + size, 0, padded - size);
  slots_.push_back({id, static_cast<std::uint32_t>(arena_used_), static_cast<std::uint32_t>(padded + kTransportOverhead),
                    static_cast<std::uint32_t>(size)});
  arena_used_ += padded + kTransportOverhead;
  if (slots_.size() == kRunSegmentsMax || kArenaBytes - arena_used_ < kDatagramSizeMax) flush(clock);
}

void Tunnel::Impl::flush(Clock clock) {
  std::array<PeerId, kRunSegmentsMax> unready;
  std::size_t unready_count = 0;
  for (std::size_t from = 0; from < slots_.size();) {
    const PeerId id = slots_[from].peer;
    std::size_t to = from + 1;
    while (to < slots_.size() && slots_[to].peer == id) ++to;
    Peer* p = peer(id);
    if (p != nullptr) {
      if (p->usable(clock.now) && kRejectAfterMessages - p->current->send_counter >= to - from) {
        seal_slots(clock, *p, from, to);
      } else {
        // The session ended between commit and flush.
        for (std::size_t i = from; i < to; ++i) {
          const Slot& s = slots_[i];
          if (s.packet_size != 0) stage(*p, {arena_.get() + s.offset + kTransportHeaderSize, s.packet_size});
        }
        unready[unready_count++] = id;
      }
    }
    from = to;
  }
  slots_.clear();
  arena_used_ = 0;
  for (std::size_t i = 0; i < unready_count; ++i) {
    if (Peer* p = peer(unready[i])) send_initiation(clock, *p, Attempt::kFresh);
  }
}

void Tunnel::Impl::seal_slots(Clock clock, Peer& p, std::size_t from, std::size_t to) {
  KeyPair& pair = *p.current;
  std::array<crypto::AeadJob, kRunSegmentsMax> jobs;
  bool data = false;
  for (std::size_t i = from; i < to; ++i) {
    const Slot& s = slots_[i];
    std::uint8_t* const at = arena_.get() + s.offset;
    const std::uint64_t counter = pair.send_counter++;
    store_le(at, std::uint32_t{kTypeTransport});
    store_le(at + 4, pair.remote_index);
    store_le(at + 8, counter);
    jobs[i - from] = {MutBytes(at + kTransportHeaderSize, s.wire_size - kTransportHeaderSize), counter, false};
    p.tx_bytes += s.wire_size;
    if (s.packet_size != 0) {
      data = true;
      ++p.tx_packets;
    }
  }
  pair.seal.process(std::span(jobs).first(to - from));

  traversal(clock.now, p);
  any_sent(p);
  // Equal sizes leave as one run; a shorter datagram may end it.
  for (std::size_t i = from; i < to;) {
    const std::uint32_t segment = slots_[i].wire_size;
    std::size_t bytes = segment, end = i + 1;
    while (end < to && slots_[end].wire_size <= segment) {
      const std::uint32_t more = slots_[end++].wire_size;
      bytes += more;
      if (more < segment) break;
    }
    host_.transmit(p.id, Bytes(arena_.get() + slots_[i].offset, bytes), segment);
    i = end;
  }
  if (data) data_sent(clock.now, p);
  if (pair.send_counter > kRekeyAfterMessages || (pair.initiator && clock.now - pair.created > kRekeyAfterTime)) {
    send_initiation(clock, p, Attempt::kFresh);
  }
}

void Tunnel::Impl::keepalive(Clock clock, Peer& p) {
  if (!p.usable(clock.now)) return;
  append_slot(clock, p, {});
  flush(clock);
}

// ---- packets that wait for a session

void Tunnel::Impl::stage(Peer& p, Bytes packet) {
  if (p.staged_sent) {
    staged_total_ -= p.staged->size();
    p.staged.reset();
    p.staged_sent = false;
  }
  if (!p.staged) p.staged = std::make_unique<std::deque<ByteVector>>();
  if (p.staged->size() >= kStagedPerPeerMax || staged_total_ >= kStagedTotalMax) {
    count_drop(Drop::kStagingFull, &p);
    if (p.staged->empty()) return;
    p.staged->pop_front();  // the oldest is the least worth
    --staged_total_;
  }
  p.staged->push_back(to_vector(packet));
  ++staged_total_;
}

void Tunnel::Impl::flush_staged(Clock clock, Peer& p) {
  if (!p.staged) return flush(clock);
  auto packets = std::move(p.staged);
  p.staged_sent = false;
  for (const ByteVector& packet : *packets) append_slot(clock, p, packet);
  flush(clock);
  // A newer initiation of ours may be answered already, which voids these keys at the peer: keep the packets until it
  // shows which keys it uses. A duplicate is harmless to what runs above IP.
  if (p.current && p.current->initiator && !p.pending.empty() && !p.staged) {
    p.staged = std::move(packets);
    p.staged_sent = true;
  } else {
    staged_total_ -= packets->size();
  }
}

void Tunnel::Impl::drop_staged(Peer& p, Drop reason) {
  if (!p.staged) return;
  if (!p.staged_sent) {
    for (std::size_t i = 0; i < p.staged->size(); ++i) count_drop(reason, &p);
  }
  staged_total_ -= p.staged->size();
  p.staged.reset();
  p.staged_sent = false;
}

}  // namespace porthole::wg
