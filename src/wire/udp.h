// UDP (RFC 768, RFC 8200 section 8.1).
#pragma once

#include <cstdint>
#include <optional>

#include "base/bytes.h"
#include "base/ip.h"

namespace porthole::wire {

inline constexpr std::size_t kUdpHeaderSize = 8;

struct UdpHeader {
  std::uint16_t source_port = 0;
  std::uint16_t destination_port = 0;
  Bytes data;            // cut to the UDP length
  bool checksum_ok = false;
};

// nullopt: shorter than its header or its length field. A zero checksum is accepted for IPv4 only.
std::optional<UdpHeader> parse_udp(Bytes payload, const IpAddress& source, const IpAddress& destination);

// Writes header and data, `kUdpHeaderSize + data.size()` bytes; the checksum is always computed, and a computed zero
// is sent as 0xffff.
void write_udp(std::uint8_t* out, const Endpoint& source, const Endpoint& destination, Bytes data);

}  // namespace porthole::wire
