// What a datagram on the shared UDP socket (or a packet from a relay) is: STUN, disco or WireGuard, possibly inside an
// 8-byte Geneve header (RFC 8926, peer relays). GRO blocks must be split before.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "base/bytes.h"

namespace porthole::wire {

enum class DatagramKind { kStun, kDisco, kWireGuard };

struct Classified {
  DatagramKind kind = DatagramKind::kWireGuard;
  bool geneve = false;   // the message starts behind kGeneveHeaderSize bytes
};
Classified classify(Bytes datagram);

constexpr std::size_t kGeneveHeaderSize = 8;
constexpr std::uint16_t kGeneveDisco = 0x7a11;
constexpr std::uint16_t kGeneveWireGuard = 0x7a12;

struct GeneveHeader {
  std::uint16_t protocol = kGeneveDisco;
  std::uint32_t vni = 0;   // 24 bits
  bool control = false;
  friend constexpr bool operator==(const GeneveHeader&, const GeneveHeader&) = default;
};
// Version 0, reserved bits and byte zero; nullopt otherwise. Any protocol. Options are not looked at: nobody sends them.
std::optional<GeneveHeader> parse_geneve(Bytes datagram);
std::array<std::uint8_t, kGeneveHeaderSize> encode_geneve(const GeneveHeader& header);

}  // namespace porthole::wire
