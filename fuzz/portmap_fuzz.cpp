// links: base wire
#include <cstdint>
#include <cstdlib>

#include "wire/portmap.h"

// Answers of a gateway. Each datagram fits one parser at most, and what a caller would advertise can be reached.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace porthole;
  namespace pm = wire::portmap;
  const Bytes input(data, size);
  const auto external = pm::parse_nat_pmp_external_response(input);
  const auto map = pm::parse_nat_pmp_map_response(input);
  const auto pcp = pm::parse_pcp_response(input);
  if (int{external.has_value()} + int{map.has_value()} + int{pcp.has_value()} > 1) std::abort();
  if (external && external->external.is_valid() != (external->result == pm::NatPmpResult::kSuccess)) std::abort();
  if (map && map->lifetime_s != 0 && map->external_port == 0) std::abort();
  if (!pcp || pcp->opcode != pm::PcpOpcode::kMap || pcp->result != pm::PcpResult::kSuccess) return 0;
  if (!pcp->mapping || (pcp->lifetime_s != 0 && !pcp->mapping->external.is_valid())) std::abort();
  if (pcp->mapping->internal_port == 0) return 0;
  // From the nonce on, a request for what was granted is the answer.
  const pm::PcpMapping& m = *pcp->mapping;
  const auto again = pm::encode_pcp_map_request({IpAddress::v4(192, 168, 1, 10), m.nonce, m.internal_port, m.external.port,
                                                 m.external.address, pcp->lifetime_s});
  if (!equal(Bytes(again).subspan(40), input.subspan(40, 20)) || !equal(Bytes(again).subspan(24, 13), input.subspan(24, 13)))
    std::abort();
  return 0;
}
