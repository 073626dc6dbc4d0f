// TSMP: small messages between nodes inside the tunnel, as IP protocol 99 (Tailscale). They never reach the host's IP
// stack and are not subject to the packet filter. The whole IP packet is coded here, since the messages have no
// header of their own and no checksum; IPv4 without options and fragments, IPv6 without extension headers.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <variant>

#include "base/bytes.h"
#include "base/ip.h"
#include "base/key.h"

namespace porthole::wire::tsmp {

constexpr std::uint8_t kIpProtocol = 99;
constexpr std::size_t kPayloadSizeMin = 7;

using PingData = std::array<std::uint8_t, 8>;

struct Ping { PingData data{}; };
struct Pong {
  PingData data{};
  std::uint16_t peer_api_port = 0;   // 0: none
};
enum class RejectReason : std::uint8_t {
  kAcl = 'A', kShieldsUp = 'S', kIpForwarding = 'F', kHostFirewall = 'W', kUnknownTransitIp = 'T',
};
// Some flow was refused. The ports are those of the refused packet; its addresses are this packet's, reversed.
struct Reject {
  std::uint8_t ip_protocol = 0;      // of the refused flow: 6 TCP, 17 UDP
  RejectReason reason{};             // values outside the enumeration are kept as they came
  Endpoint flow_source;              // = packet destination : source port
  Endpoint flow_destination;         // = packet source : destination port
  bool maybe_broken = false;         // not final: only remember it
};
struct DiscoKey { DiscoPublic key; };   // never zero after parse
using Message = std::variant<Ping, Pong, Reject, DiscoKey>;

struct Packet {
  IpAddress source, destination;
  std::uint16_t ip_id = 0;           // IPv4 identification; 0 for IPv6
  Message message;
};

// True when the IP packet carries TSMP at all (valid or not): such packets are consumed, never passed on.
bool is_tsmp(Bytes ip_packet);
// nullopt: not TSMP, malformed, fragmented, or an unknown type.
std::optional<Packet> parse(Bytes ip_packet);

// The complete IP packet (hop limit 64). Families of source and destination must agree. For a pong use the bitwise NOT
// of the ping's ip_id; 0 otherwise. For Reject the flow's addresses are ignored, its ports used.
ByteVector encode(const Packet& packet);

}  // namespace porthole::wire::tsmp
