#include "netstack/reassembly.h"

#include <algorithm>

#include "netstack/spec_constants.h"

namespace porthole::netstack {
namespace {

constexpr std::size_t kQuoteMax = 548;

// The first piece must hold the transport header, or filters that read it are blind (RFC 7112, RFC 1858).
bool holds_transport_header(std::uint8_t protocol, Bytes payload) {
  if (protocol == wire::ip_protocol::kTcp)
    return payload.size() >= 20 && payload.size() >= static_cast<std::size_t>(payload[12] >> 4) * 4;
  return payload.size() >= 8;
}

}  // namespace

void Reassembly::charge(const IpAddress& peer, std::ptrdiff_t bytes) {
  bytes_ = static_cast<std::size_t>(static_cast<std::ptrdiff_t>(bytes_) + bytes);
  PeerUse& use = peers_[peer];
  use.bytes = static_cast<std::size_t>(static_cast<std::ptrdiff_t>(use.bytes) + bytes);
}

void Reassembly::kill(const Key& key, Entry& entry) {
  charge(std::get<0>(key), -static_cast<std::ptrdiff_t>(entry.data.size()));
  entry.dead = true;
  ByteVector().swap(entry.data);
  ByteVector().swap(entry.quote);
  entry.pieces.clear();
}

void Reassembly::erase(std::map<Key, Entry>::iterator it) {
  const IpAddress peer = std::get<0>(it->first);
  charge(peer, -static_cast<std::ptrdiff_t>(it->second.data.size()));
  auto use = peers_.find(peer);
  if (--use->second.datagrams == 0) peers_.erase(use);
  entries_.erase(it);
}

Reassembly::Outcome Reassembly::add(Instant now, const wire::IpPacket& packet) {
  Outcome out;
  const wire::FragmentInfo& piece = packet.fragment;
  std::size_t start = piece.offset, end = start + packet.payload.size();
  if (packet.payload.empty() || end > kDatagramMax || (piece.more && packet.payload.size() % 8 != 0)) {
    out.drop = Drop::kFragment;
    return out;
  }
  if (start == 0 && !holds_transport_header(packet.protocol, packet.payload)) {
    out.drop = Drop::kFragment;
    return out;
  }
  // IPv6 keys have no protocol: the next header of later pieces means nothing.
  Key key{packet.source, packet.destination,
          packet.source.is_v4() ? packet.protocol : std::uint8_t{0}, piece.id};
  auto it = entries_.find(key);
  if (it == entries_.end()) {
    auto use = peers_.find(packet.source);
    if (entries_.size() >= kFragmentDatagramsMax ||
        (use != peers_.end() && use->second.datagrams >= kFragmentDatagramsPerPeerMax)) {
      out.drop = Drop::kFragmentLimit;
      return out;
    }
    it = entries_.emplace(key, Entry{}).first;
    it->second.expires = now + (packet.source.is_v4() ? kReassemblyTimeoutV4 : kReassemblyTimeoutV6);
    ++peers_[packet.source].datagrams;
  }
  Entry& entry = it->second;
  if (entry.dead) {
    out.drop = Drop::kFragmentOverlap;
    return out;
  }
  auto at = std::lower_bound(entry.pieces.begin(), entry.pieces.end(), start,
                             [](const Piece& p, std::size_t s) { return p.end <= s; });
  if (at != entry.pieces.end() && at->start < end) {
    if (at->start == start && at->end == end) return out;   // the same piece again
    kill(key, entry);
    out.drop = Drop::kFragmentOverlap;
    return out;
  }
  bool beyond = entry.total && (end > *entry.total || (!piece.more && end != *entry.total));
  bool short_total = !piece.more && !entry.pieces.empty() && entry.pieces.back().end > end;
  if (beyond || short_total) {
    kill(key, entry);
    out.drop = Drop::kFragmentOverlap;
    return out;
  }
  std::size_t growth = end > entry.data.size() ? end - entry.data.size() : 0;
  if (entry.pieces.size() >= kFragmentPiecesMax || bytes_ + growth > kFragmentBytesMax ||
      peers_[packet.source].bytes + growth > kFragmentBytesPerPeerMax) {
    erase(it);
    out.drop = Drop::kFragmentLimit;
    return out;
  }
  if (growth > 0) {
    entry.data.resize(end);
    charge(packet.source, static_cast<std::ptrdiff_t>(growth));
  }
  std::memcpy(entry.data.data() + start, packet.payload.data(), packet.payload.size());
  entry.pieces.insert(at, Piece{start, end});
  if (!piece.more) entry.total = end;
  if (start == 0) {
    entry.protocol = packet.protocol;
    entry.quote = to_vector(packet.whole.first(std::min(packet.whole.size(), kQuoteMax)));
  }
  if (!entry.total || entry.pieces.front().start != 0 || entry.pieces.back().end != *entry.total) return out;
  std::size_t covered = 0;
  for (const Piece& p : entry.pieces) covered += p.end - p.start;
  if (covered != *entry.total) return out;
  out.complete = true;
  out.protocol = entry.protocol;
  charge(packet.source, -static_cast<std::ptrdiff_t>(entry.data.size()));
  out.payload = std::move(entry.data);
  out.quote = std::move(entry.quote);
  entry.data.clear();
  erase(it);
  return out;
}

Instant Reassembly::next_timeout() const {
  Instant next = Instant::max();
  for (const auto& [key, entry] : entries_) next = std::min(next, entry.expires);
  return next;
}

void Reassembly::expire(Instant now, const std::function<void(const IpAddress&, const IpAddress&, Bytes)>& on_timeout) {
  for (auto it = entries_.begin(); it != entries_.end();) {
    auto current = it++;
    if (current->second.expires > now) continue;
    if (!current->second.quote.empty())
      on_timeout(std::get<0>(current->first), std::get<1>(current->first), current->second.quote);
    erase(current);
  }
}

}  // namespace porthole::netstack
