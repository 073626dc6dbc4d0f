#include "wire/icmp.h"

#include "wire/checksum.h"
#include "wire/ip.h"

namespace porthole::wire {
namespace {

IcmpKind kind_v4(std::uint8_t type, std::uint8_t code) {
  switch (type) {
    case 0: return IcmpKind::kEchoReply;
    case 8: return IcmpKind::kEchoRequest;
    case 3:
      switch (code) {
        case 2: return IcmpKind::kUnreachableProtocol;
        case 3: return IcmpKind::kUnreachablePort;
        case 4: return IcmpKind::kTooBig;
        case 9: case 10: case 13: return IcmpKind::kProhibited;
        default: return IcmpKind::kUnreachableHost;
      }
    case 11: return IcmpKind::kTimeExceeded;
    case 12: return IcmpKind::kParameterProblem;
    default: return IcmpKind::kOther;
  }
}

IcmpKind kind_v6(std::uint8_t type, std::uint8_t code) {
  switch (type) {
    case 1:
      switch (code) {
        case 1: case 5: case 6: return IcmpKind::kProhibited;
        case 4: return IcmpKind::kUnreachablePort;
        default: return IcmpKind::kUnreachableHost;
      }
    case 2: return IcmpKind::kTooBig;
    case 3: return IcmpKind::kTimeExceeded;
    case 4: return IcmpKind::kParameterProblem;
    case 128: return IcmpKind::kEchoRequest;
    case 129: return IcmpKind::kEchoReply;
    default: return IcmpKind::kOther;
  }
}

void finish_icmp(std::uint8_t* out, const IpAddress& source, const IpAddress& destination, std::size_t size) {
  out[2] = out[3] = 0;
  PartialSum sum = sum_bytes({out, size});
  if (source.is_v6()) sum += pseudo_header_sum(source, destination, ip_protocol::kIcmpV6, size);
  store_checksum(out + 2, sum);
}

}  // namespace

std::optional<IcmpMessage> parse_icmp(Bytes payload, const IpAddress& source, const IpAddress& destination) {
  if (payload.size() < kIcmpHeaderSize) return std::nullopt;
  IcmpMessage out;
  PartialSum sum = sum_bytes(payload);
  if (source.is_v6()) {
    sum += pseudo_header_sum(source, destination, ip_protocol::kIcmpV6, payload.size());
    out.kind = kind_v6(payload[0], payload[1]);
    if (out.kind == IcmpKind::kTooBig) out.mtu = load_be<std::uint32_t>(&payload[4]);
  } else {
    out.kind = kind_v4(payload[0], payload[1]);
    if (out.kind == IcmpKind::kTooBig) out.mtu = load_be<std::uint16_t>(&payload[6]);
  }
  out.checksum_ok = finish(sum) == 0;
  out.id = load_be<std::uint16_t>(&payload[4]);
  out.sequence = load_be<std::uint16_t>(&payload[6]);
  out.body = payload.subspan(kIcmpHeaderSize);
  return out;
}

void write_echo(std::uint8_t* out, const IpAddress& source, const IpAddress& destination, bool reply, std::uint16_t id,
                std::uint16_t sequence, Bytes data) {
  out[0] = source.is_v6() ? (reply ? 129 : 128) : (reply ? 0 : 8);
  out[1] = 0;
  store_be(out + 4, id);
  store_be(out + 6, sequence);
  if (!data.empty()) std::memcpy(out + kIcmpHeaderSize, data.data(), data.size());
  finish_icmp(out, source, destination, kIcmpHeaderSize + data.size());
}

void write_icmp_error(std::uint8_t* out, const IpAddress& source, const IpAddress& destination, IcmpErrorToSend what,
                      Bytes quoted) {
  bool v6 = source.is_v6();
  if (what == IcmpErrorToSend::kPortUnreachable) {
    out[0] = v6 ? 1 : 3;
    out[1] = v6 ? 4 : 3;
  } else {
    out[0] = v6 ? 3 : 11;
    out[1] = 1;
  }
  store_be(out + 4, std::uint32_t{0});
  if (!quoted.empty()) std::memcpy(out + kIcmpHeaderSize, quoted.data(), quoted.size());
  finish_icmp(out, source, destination, kIcmpHeaderSize + quoted.size());
}

std::optional<QuotedPacket> parse_quoted(Bytes quoted) {
  QuotedPacket out;
  std::size_t header = 0;
  if (quoted.size() >= kIpv4HeaderSize && quoted[0] >> 4 == 4) {
    header = static_cast<std::size_t>(quoted[0] & 0x0f) * 4;
    if (header < kIpv4HeaderSize) return std::nullopt;
    if ((load_be<std::uint16_t>(&quoted[6]) & 0x1fff) != 0) return std::nullopt;
    out.protocol = quoted[9];
    out.source = IpAddress::v4_bytes(&quoted[12]);
    out.destination = IpAddress::v4_bytes(&quoted[16]);
  } else if (quoted.size() >= kIpv6HeaderSize && quoted[0] >> 4 == 6) {
    header = kIpv6HeaderSize;  // we send no extension headers
    out.protocol = quoted[6];
    out.source = IpAddress::v6_bytes(&quoted[8]);
    out.destination = IpAddress::v6_bytes(&quoted[24]);
  } else {
    return std::nullopt;
  }
  if (quoted.size() < header + 8) return std::nullopt;
  const std::uint8_t* p = quoted.data() + header;
  switch (out.protocol) {
    case ip_protocol::kTcp:
      out.sequence = load_be<std::uint32_t>(p + 4);
      [[fallthrough]];
    case ip_protocol::kUdp:
      out.source_port = load_be<std::uint16_t>(p);
      out.destination_port = load_be<std::uint16_t>(p + 2);
      return out;
    case ip_protocol::kIcmp:
    case ip_protocol::kIcmpV6:
      out.source_port = load_be<std::uint16_t>(p + 4);
      return out;
    default: return std::nullopt;
  }
}

}  // namespace porthole::wire
