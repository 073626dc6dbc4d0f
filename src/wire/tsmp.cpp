#include "wire/tsmp.h"

#include "base/assert.h"

namespace porthole::wire::tsmp {
namespace {

constexpr std::size_t kV4HeaderSize = 20;
constexpr std::size_t kV6HeaderSize = 40;
constexpr std::uint8_t kHopLimit = 64;

constexpr std::uint8_t kTypePing = 'p';
constexpr std::uint8_t kTypePong = 'o';
constexpr std::uint8_t kTypeReject = '!';
constexpr std::uint8_t kTypeDiscoKey = 'a';
constexpr std::uint8_t kFlagMaybeBroken = 0x01;

// RFC 1071, over a header whose checksum field is zero.
std::uint16_t header_checksum(Bytes header) {
  std::uint32_t sum = 0;
  for (std::size_t i = 0; i + 1 < header.size(); i += 2) sum += load_be<std::uint16_t>(header.data() + i);
  while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<std::uint16_t>(~sum);
}

// Addresses, id and the payload of an IP packet of protocol 99.
struct Frame {
  Packet head;
  Bytes payload;
};

std::optional<Frame> unwrap(Bytes p) {
  if (!is_tsmp(p)) return std::nullopt;
  Frame f;
  if ((p[0] >> 4) == 4) {
    const std::size_t header = static_cast<std::size_t>(p[0] & 0x0f) * 4;
    const std::size_t total = load_be<std::uint16_t>(p.data() + 2);
    const bool fragment = (load_be<std::uint16_t>(p.data() + 6) & 0x3fff) != 0;
    if (header < kV4HeaderSize || total < header || total > p.size() || fragment) return std::nullopt;
    f.head.ip_id = load_be<std::uint16_t>(p.data() + 4);
    f.head.source = IpAddress::v4_bytes(p.data() + 12);
    f.head.destination = IpAddress::v4_bytes(p.data() + 16);
    f.payload = p.subspan(header, total - header);
    return f;
  }
  const std::size_t size = load_be<std::uint16_t>(p.data() + 4);
  if (size > p.size() - kV6HeaderSize) return std::nullopt;
  f.head.source = IpAddress::v6_bytes(p.data() + 8);
  f.head.destination = IpAddress::v6_bytes(p.data() + 24);
  f.payload = p.subspan(kV6HeaderSize, size);
  return f;
}

struct PayloadEncoder {
  ByteWriter& w;

  void operator()(const Ping& m) const {
    w.u8(kTypePing);
    w.bytes(m.data);
  }
  void operator()(const Pong& m) const {
    w.u8(kTypePong);
    w.bytes(m.data);
    w.be16(m.peer_api_port);
  }
  void operator()(const Reject& m) const {
    w.u8(kTypeReject);
    w.u8(m.ip_protocol);
    w.u8(static_cast<std::uint8_t>(m.reason));
    w.be16(m.flow_source.port);
    w.be16(m.flow_destination.port);
    if (m.maybe_broken) w.u8(kFlagMaybeBroken);
  }
  void operator()(const DiscoKey& m) const {
    w.u8(kTypeDiscoKey);
    w.bytes(m.key.bytes());
  }
};

}  // namespace

bool is_tsmp(Bytes p) {
  if (p.size() >= kV4HeaderSize && (p[0] >> 4) == 4) return p[9] == kIpProtocol;
  return p.size() >= kV6HeaderSize && (p[0] >> 4) == 6 && p[6] == kIpProtocol;
}

std::optional<Packet> parse(Bytes ip_packet) {
  auto frame = unwrap(ip_packet);
  if (!frame || frame->payload.size() < kPayloadSizeMin) return std::nullopt;
  ByteReader r(frame->payload);
  switch (r.u8()) {
    case kTypePing: frame->head.message = Ping{r.array<8>()}; break;
    case kTypePong: {
      Pong m;
      m.data = r.array<8>();
      if (r.ok() && r.remaining() >= 2) m.peer_api_port = r.be16();
      frame->head.message = m;
      break;
    }
    case kTypeReject: {
      Reject m;
      m.ip_protocol = r.u8();
      m.reason = static_cast<RejectReason>(r.u8());
      m.flow_source = {frame->head.destination, r.be16()};
      m.flow_destination = {frame->head.source, r.be16()};
      if (r.remaining() > 0) m.maybe_broken = (r.u8() & kFlagMaybeBroken) != 0;
      frame->head.message = m;
      break;
    }
    case kTypeDiscoKey: {
      DiscoKey m{DiscoPublic(r.array<32>())};
      if (m.key.is_zero()) return std::nullopt;
      frame->head.message = m;
      break;
    }
    default: return std::nullopt;
  }
  if (!r.ok()) return std::nullopt;
  return std::move(frame->head);
}

ByteVector encode(const Packet& packet) {
  PORTHOLE_ASSERT(packet.source.is_valid() && packet.source.is_v4() == packet.destination.is_v4());
  const bool v4 = packet.source.is_v4();
  ByteVector out;
  ByteWriter w(out);
  w.zeros(v4 ? kV4HeaderSize : kV6HeaderSize);
  std::visit(PayloadEncoder{w}, packet.message);
  if (v4) {
    out[0] = 0x45;
    store_be(out.data() + 2, static_cast<std::uint16_t>(out.size()));
    store_be(out.data() + 4, packet.ip_id);
    out[8] = kHopLimit;
    out[9] = kIpProtocol;
    std::memcpy(out.data() + 12, packet.source.bytes().data(), 4);
    std::memcpy(out.data() + 16, packet.destination.bytes().data(), 4);
    store_be(out.data() + 10, header_checksum(Bytes(out).first(kV4HeaderSize)));
  } else {
    out[0] = 0x60;
    store_be(out.data() + 4, static_cast<std::uint16_t>(out.size() - kV6HeaderSize));
    out[6] = kIpProtocol;
    out[7] = kHopLimit;
    std::memcpy(out.data() + 8, packet.source.bytes().data(), 16);
    std::memcpy(out.data() + 24, packet.destination.bytes().data(), 16);
  }
  return out;
}

}  // namespace porthole::wire::tsmp
