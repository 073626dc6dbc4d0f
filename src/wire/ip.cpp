#include "wire/ip.h"

#include "wire/checksum.h"

namespace porthole::wire {
namespace {

constexpr std::size_t kExtensionHeadersMax = 8;
constexpr std::size_t kExtensionBytesMax = 256;

bool has_source_route(Bytes options) {
  for (std::size_t i = 0; i < options.size();) {
    std::uint8_t kind = options[i];
    if (kind == 0) return false;
    if (kind == 1) {
      ++i;
      continue;
    }
    if (kind == 131 || kind == 137) return true;
    if (i + 1 >= options.size() || options[i + 1] < 2) return false;
    i += options[i + 1];
  }
  return false;
}

std::variant<IpPacket, IpError> parse_v4(Bytes packet) {
  if (packet.size() < kIpv4HeaderSize) return IpError::kHeader;
  std::size_t header = static_cast<std::size_t>(packet[0] & 0x0f) * 4;
  if (header < kIpv4HeaderSize || header > packet.size()) return IpError::kHeader;
  if (finish(sum_bytes(packet.first(header))) != 0) return IpError::kChecksum;
  std::size_t total = load_be<std::uint16_t>(&packet[2]);
  if (total < header || total > packet.size()) return IpError::kLength;
  if (header > kIpv4HeaderSize && has_source_route(packet.subspan(kIpv4HeaderSize, header - kIpv4HeaderSize)))
    return IpError::kOptions;
  IpPacket out;
  out.whole = packet.first(total);
  out.payload = out.whole.subspan(header);
  out.header_size = header;
  out.traffic_class = packet[1];
  out.ttl = packet[8];
  out.protocol = packet[9];
  out.source = IpAddress::v4_bytes(&packet[12]);
  out.destination = IpAddress::v4_bytes(&packet[16]);
  std::uint16_t fragment = load_be<std::uint16_t>(&packet[6]);
  if ((fragment & 0x3fff) != 0) {
    out.fragmented = true;
    out.fragment = {load_be<std::uint16_t>(&packet[4]), static_cast<std::uint32_t>(fragment & 0x1fff) * 8,
                    (fragment & 0x2000) != 0};
  }
  return out;
}

std::variant<IpPacket, IpError> parse_v6(Bytes packet) {
  if (packet.size() < kIpv6HeaderSize) return IpError::kHeader;
  std::size_t payload = load_be<std::uint16_t>(&packet[4]);
  if (payload > packet.size() - kIpv6HeaderSize) return IpError::kLength;
  IpPacket out;
  out.whole = packet.first(kIpv6HeaderSize + payload);
  out.traffic_class = static_cast<std::uint8_t>(packet[0] << 4 | packet[1] >> 4);
  out.ttl = packet[7];
  // An IPv4-mapped source or destination on the wire is nobody's address (RFC 4291 2.5.5.2 is an API form).
  static constexpr std::uint8_t kMapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  if (std::memcmp(&packet[8], kMapped, 12) == 0 || std::memcmp(&packet[24], kMapped, 12) == 0) return IpError::kHeader;
  out.source = IpAddress::v6_bytes(&packet[8]);
  out.destination = IpAddress::v6_bytes(&packet[24]);
  std::uint8_t next = packet[6];
  std::size_t at = kIpv6HeaderSize;
  for (std::size_t count = 0;; ++count) {
    bool extension = next == ip_protocol::kHopByHop || next == ip_protocol::kDestination ||
                     next == ip_protocol::kRouting || next == ip_protocol::kFragment;
    if (!extension) break;
    if (count == kExtensionHeadersMax || out.whole.size() - at < 8) return IpError::kOptions;
    // Hop-by-Hop is legal only right behind the fixed header (RFC 8200 4.1).
    if (next == ip_protocol::kHopByHop && at != kIpv6HeaderSize) return IpError::kOptions;
    if (next == ip_protocol::kFragment) {
      if (out.fragmented) return IpError::kOptions;
      std::uint16_t field = load_be<std::uint16_t>(&out.whole[at + 2]);
      out.fragmented = true;
      out.fragment = {load_be<std::uint32_t>(&out.whole[at + 4]), static_cast<std::uint32_t>(field & 0xfff8),
                      (field & 1) != 0};
      next = out.whole[at];
      at += 8;
      if (!out.fragment.atomic()) break;  // what follows is understood only after reassembly
      continue;
    }
    if (next == ip_protocol::kRouting && out.whole[at + 2] == 0) return IpError::kOptions;
    std::size_t length = (static_cast<std::size_t>(out.whole[at + 1]) + 1) * 8;
    if (length > out.whole.size() - at || at + length - kIpv6HeaderSize > kExtensionBytesMax) return IpError::kOptions;
    next = out.whole[at];
    at += length;
  }
  out.protocol = next;
  out.header_size = at;
  out.payload = out.whole.subspan(at);
  return out;
}

}  // namespace

std::variant<IpPacket, IpError> parse_ip(Bytes packet) {
  if (packet.empty()) return IpError::kHeader;
  switch (packet[0] >> 4) {
    case 4: return parse_v4(packet);
    case 6: return parse_v6(packet);
    default: return IpError::kHeader;
  }
}

void write_ipv4_header(std::uint8_t* out, const IpAddress& source, const IpAddress& destination, std::uint8_t protocol,
                       std::size_t payload_size, std::uint16_t id, bool dont_fragment,
                       std::uint16_t fragment_offset_bytes, bool more_fragments, std::uint8_t ttl) {
  out[0] = 0x45;
  out[1] = 0;
  store_be(out + 2, static_cast<std::uint16_t>(kIpv4HeaderSize + payload_size));
  store_be(out + 4, id);
  store_be(out + 6, static_cast<std::uint16_t>((dont_fragment ? 0x4000 : 0) | (more_fragments ? 0x2000 : 0) |
                                               fragment_offset_bytes / 8));
  out[8] = ttl;
  out[9] = protocol;
  out[10] = out[11] = 0;
  std::memcpy(out + 12, source.bytes().data(), 4);
  std::memcpy(out + 16, destination.bytes().data(), 4);
  store_checksum(out + 10, sum_bytes({out, kIpv4HeaderSize}));
}

void write_ipv6_header(std::uint8_t* out, const IpAddress& source, const IpAddress& destination,
                       std::uint8_t next_header, std::size_t payload_size, std::uint32_t flow_label,
                       std::uint8_t hop_limit) {
  store_be(out, 0x60000000u | (flow_label & 0xfffffu));
  store_be(out + 4, static_cast<std::uint16_t>(payload_size));
  out[6] = next_header;
  out[7] = hop_limit;
  std::memcpy(out + 8, source.bytes().data(), 16);
  std::memcpy(out + 24, destination.bytes().data(), 16);
}

void write_fragment_header(std::uint8_t* out, std::uint8_t next_header, std::uint32_t offset_bytes, bool more,
                           std::uint32_t id) {
  out[0] = next_header;
  out[1] = 0;
  store_be(out + 2, static_cast<std::uint16_t>(offset_bytes | (more ? 1u : 0u)));
  store_be(out + 4, id);
}

}  // namespace porthole::wire
