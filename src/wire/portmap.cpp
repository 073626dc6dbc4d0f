#include "wire/portmap.h"

#include <algorithm>

#include "base/assert.h"

namespace porthole::wire::portmap {
namespace {

constexpr std::uint8_t kAnswer = 0x80;   // set in the opcode of every answer of both protocols
constexpr std::uint8_t kNatPmpExternal = 0;
constexpr std::uint8_t kNatPmpMapUdp = 1;
constexpr std::uint8_t kProtocolUdp = 17;

// Offsets in a PCP map message.
constexpr std::size_t kLifetime = 4;
constexpr std::size_t kClient = 8;
constexpr std::size_t kNonce = 24;
constexpr std::size_t kProtocol = 36;
constexpr std::size_t kInternalPort = 40;
constexpr std::size_t kExternalPort = 42;
constexpr std::size_t kExternalAddress = 44;

// No stranger can reach these, whatever the gateway believes.
bool reachable(const IpAddress& a) { return a.is_valid() && !a.is_unspecified() && !a.is_loopback(); }

// What answers begin with; `size` is that of a success.
bool begin_nat_pmp(ByteReader& r, std::uint8_t opcode, std::size_t size, NatPmpResult& result, std::uint32_t& epoch) {
  const std::size_t have = r.remaining();
  const std::uint8_t version = r.u8();
  const std::uint8_t op = r.u8();
  result = static_cast<NatPmpResult>(r.be16());
  epoch = r.be32();
  if (!r.ok() || version != kNatPmpVersion || op != (kAnswer | opcode)) return false;
  return result != NatPmpResult::kSuccess || have >= size;
}

void store_pcp_head(MutBytes out, PcpOpcode opcode, std::uint32_t lifetime_s, const IpAddress& client) {
  PORTHOLE_ASSERT(client.is_valid());
  out[0] = kPcpVersion;
  out[1] = static_cast<std::uint8_t>(opcode);
  store_be(out.data() + kLifetime, lifetime_s);
  const auto mapped = client.mapped();
  std::copy(mapped.begin(), mapped.end(), out.begin() + kClient);
}

}  // namespace

std::array<std::uint8_t, kNatPmpExternalRequestSize> encode_nat_pmp_external_request() {
  return {kNatPmpVersion, kNatPmpExternal};
}

std::array<std::uint8_t, kNatPmpMapRequestSize> encode_nat_pmp_map_request(const NatPmpMapRequest& request) {
  PORTHOLE_ASSERT(request.internal_port != 0);
  std::array<std::uint8_t, kNatPmpMapRequestSize> out{kNatPmpVersion, kNatPmpMapUdp};
  store_be(out.data() + 4, request.internal_port);
  store_be(out.data() + 6, request.external_port);
  store_be(out.data() + 8, request.lifetime_s);
  return out;
}

std::optional<NatPmpExternalResponse> parse_nat_pmp_external_response(Bytes datagram) {
  ByteReader r(datagram);
  NatPmpExternalResponse out;
  if (!begin_nat_pmp(r, kNatPmpExternal, kNatPmpExternalResponseSize, out.result, out.epoch_s)) return std::nullopt;
  if (out.result != NatPmpResult::kSuccess) return out;
  out.external = IpAddress::v4(r.be32());
  if (!reachable(out.external)) return std::nullopt;
  return out;
}

std::optional<NatPmpMapResponse> parse_nat_pmp_map_response(Bytes datagram) {
  ByteReader r(datagram);
  NatPmpMapResponse out;
  if (!begin_nat_pmp(r, kNatPmpMapUdp, kNatPmpMapResponseSize, out.result, out.epoch_s)) return std::nullopt;
  if (out.result != NatPmpResult::kSuccess) return out;
  out.internal_port = r.be16();
  out.external_port = r.be16();
  out.lifetime_s = r.be32();
  if (out.lifetime_s != 0 && out.external_port == 0) return std::nullopt;
  return out;
}

std::array<std::uint8_t, kPcpHeaderSize> encode_pcp_announce_request(const IpAddress& client) {
  std::array<std::uint8_t, kPcpHeaderSize> out{};
  store_pcp_head(out, PcpOpcode::kAnnounce, 0, client);
  return out;
}

std::array<std::uint8_t, kPcpMapSize> encode_pcp_map_request(const PcpMapRequest& request) {
  PORTHOLE_ASSERT(request.internal_port != 0);
  std::array<std::uint8_t, kPcpMapSize> out{};
  store_pcp_head(out, PcpOpcode::kMap, request.lifetime_s, request.client);
  std::copy(request.nonce.begin(), request.nonce.end(), out.begin() + kNonce);
  out[kProtocol] = kProtocolUdp;
  store_be(out.data() + kInternalPort, request.internal_port);
  store_be(out.data() + kExternalPort, request.external_port);
  // The unspecified address of a family asks for any of that family (RFC 6887 section 11.1).
  const auto wanted = (request.external.is_valid() ? request.external : IpAddress::v4(0)).mapped();
  std::copy(wanted.begin(), wanted.end(), out.begin() + kExternalAddress);
  return out;
}

std::optional<PcpResponse> parse_pcp_response(Bytes p) {
  if (p.size() < kPcpHeaderSize || p.size() > kPcpSizeMax || p.size() % 4 != 0) return std::nullopt;
  const auto opcode = static_cast<PcpOpcode>(p[1] & ~kAnswer);
  if (p[0] != kPcpVersion || (p[1] & kAnswer) == 0) return std::nullopt;
  if (opcode != PcpOpcode::kAnnounce && opcode != PcpOpcode::kMap) return std::nullopt;

  PcpResponse out;
  out.opcode = opcode;
  out.result = static_cast<PcpResult>(p[3]);
  out.lifetime_s = load_be<std::uint32_t>(p.data() + kLifetime);
  out.epoch_s = load_be<std::uint32_t>(p.data() + kClient);
  if (opcode == PcpOpcode::kAnnounce) return out;

  const bool success = out.result == PcpResult::kSuccess;
  if (p.size() < kPcpMapSize || p[kProtocol] != kProtocolUdp) {
    if (success) return std::nullopt;
    return out;
  }
  PcpMapping m;
  std::copy_n(p.begin() + kNonce, m.nonce.size(), m.nonce.begin());
  m.internal_port = load_be<std::uint16_t>(p.data() + kInternalPort);
  m.external.port = load_be<std::uint16_t>(p.data() + kExternalPort);
  m.external.address = IpAddress::v6_bytes(p.data() + kExternalAddress);
  if (success && out.lifetime_s != 0 && (m.external.port == 0 || !reachable(m.external.address))) return std::nullopt;
  out.mapping = m;
  return out;
}

}  // namespace porthole::wire::portmap
