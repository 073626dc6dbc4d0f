// ICMP (RFC 792) and ICMPv6 (RFC 4443): echo and the errors a host sends and receives.
#pragma once

#include <cstdint>
#include <optional>

#include "base/bytes.h"
#include "base/ip.h"

namespace porthole::wire {

inline constexpr std::size_t kIcmpHeaderSize = 8;

enum class IcmpKind : std::uint8_t {
  kEchoRequest,
  kEchoReply,
  kUnreachableHost,      // net, host, and everything that may pass
  kUnreachablePort,      // port
  kUnreachableProtocol,
  kProhibited,           // administratively
  kTooBig,               // fragmentation needed / packet too big; `mtu`
  kTimeExceeded,
  kParameterProblem,
  kOther,                // known to be ignored: redirects, neighbour discovery, ...
};

struct IcmpMessage {
  IcmpKind kind = IcmpKind::kOther;
  std::uint16_t id = 0;         // echo
  std::uint16_t sequence = 0;   // echo
  std::uint32_t mtu = 0;        // kTooBig; 0 from a router that predates RFC 1191
  Bytes body;                   // echo: data; errors: the packet in error as far as quoted
  bool checksum_ok = false;
  bool is_error() const { return kind != IcmpKind::kEchoRequest && kind != IcmpKind::kEchoReply && kind != IcmpKind::kOther; }
};

// By family of the addresses. nullopt: shorter than the header.
std::optional<IcmpMessage> parse_icmp(Bytes payload, const IpAddress& source, const IpAddress& destination);

// Writes `kIcmpHeaderSize + data.size()` bytes.
void write_echo(std::uint8_t* out, const IpAddress& source, const IpAddress& destination, bool reply, std::uint16_t id,
                std::uint16_t sequence, Bytes data);

enum class IcmpErrorToSend : std::uint8_t { kPortUnreachable, kReassemblyTimeout };
// Writes `kIcmpHeaderSize + quoted.size()` bytes.
void write_icmp_error(std::uint8_t* out, const IpAddress& source, const IpAddress& destination, IcmpErrorToSend what,
                      Bytes quoted);

// What an error quotes: the beginning of a packet that we are said to have sent. The quote may be cut anywhere behind
// the first 8 transport bytes; lengths and checksums inside are not believed.
struct QuotedPacket {
  IpAddress source, destination;
  std::uint8_t protocol = 0;
  std::uint16_t source_port = 0, destination_port = 0;  // TCP, UDP; ICMP echo: id in source_port
  std::uint32_t sequence = 0;                           // TCP
};
std::optional<QuotedPacket> parse_quoted(Bytes quoted);

}  // namespace porthole::wire
