// IPv4 (RFC 791) and IPv6 (RFC 8200) headers: parsing of hostile input, writing of ours.
#pragma once

#include <cstdint>
#include <variant>

#include "base/bytes.h"
#include "base/ip.h"

namespace porthole::wire {

namespace ip_protocol {
inline constexpr std::uint8_t kHopByHop = 0;
inline constexpr std::uint8_t kIcmp = 1;
inline constexpr std::uint8_t kTcp = 6;
inline constexpr std::uint8_t kUdp = 17;
inline constexpr std::uint8_t kRouting = 43;
inline constexpr std::uint8_t kFragment = 44;
inline constexpr std::uint8_t kIcmpV6 = 58;
inline constexpr std::uint8_t kNoNext = 59;
inline constexpr std::uint8_t kDestination = 60;
inline constexpr std::uint8_t kSctp = 132;
inline constexpr std::uint8_t kTsmp = 99;
}  // namespace ip_protocol

inline constexpr std::size_t kIpv4HeaderSize = 20;
inline constexpr std::size_t kIpv6HeaderSize = 40;
inline constexpr std::uint8_t kDefaultTtl = 64;

// Where and how a piece of a fragmented datagram belongs.
struct FragmentInfo {
  std::uint32_t id = 0;
  std::uint32_t offset = 0;  // bytes
  bool more = false;
  bool atomic() const { return offset == 0 && !more; }
};

struct IpPacket {
  IpAddress source;
  IpAddress destination;
  std::uint8_t protocol = 0;     // of the payload, behind all extension headers
  std::uint8_t traffic_class = 0;
  std::uint8_t ttl = 0;
  bool fragmented = false;       // a Fragment header or IPv4 fragment fields; `fragment` is meaningful
  FragmentInfo fragment;
  Bytes whole;                   // from the IP header on, cut to the declared length
  Bytes payload;                 // transport header and data (of this fragment)
  std::size_t header_size = 0;   // all IP headers
};

enum class IpError : std::uint8_t {
  kHeader,     // too short, wrong version, header length out of range
  kChecksum,   // IPv4 header checksum
  kLength,     // declared length beyond the buffer or below the header
  kOptions,    // source route, or an extension header chain that is too long, broken or of routing type 0
};

// IPv4 options are skipped, except source routes, which are refused. IPv6 extension headers walked: Hop-by-Hop,
// Destination, Routing (not type 0), Fragment; at most 8 of them in 256 bytes. Behind a non-first fragment header the
// walk stops. An unknown next header is left in `protocol` for the caller to refuse.
std::variant<IpPacket, IpError> parse_ip(Bytes packet);

// Writes 20 bytes: no options, checksum filled in.
void write_ipv4_header(std::uint8_t* out, const IpAddress& source, const IpAddress& destination, std::uint8_t protocol,
                       std::size_t payload_size, std::uint16_t id, bool dont_fragment,
                       std::uint16_t fragment_offset_bytes = 0, bool more_fragments = false,
                       std::uint8_t ttl = kDefaultTtl);
// Writes 40 bytes.
void write_ipv6_header(std::uint8_t* out, const IpAddress& source, const IpAddress& destination,
                       std::uint8_t next_header, std::size_t payload_size, std::uint32_t flow_label,
                       std::uint8_t hop_limit = kDefaultTtl);
// Writes 8 bytes behind the IPv6 header.
void write_fragment_header(std::uint8_t* out, std::uint8_t next_header, std::uint32_t offset_bytes, bool more,
                           std::uint32_t id);

}  // namespace porthole::wire
