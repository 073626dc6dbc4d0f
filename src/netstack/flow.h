// A TCP flow's two ends as a table key, and the hash of that table. The hash is keyed per boot: a peer chooses its own
// ports and must not be able to choose collisions.
#pragma once

#include <array>
#include <cstdint>

#include "base/ip.h"

namespace porthole::netstack {

struct FlowKey {
  std::array<std::uint64_t, 4> addresses{};  // local, remote; IPv4 mapped
  std::uint32_t ports = 0;                   // local << 16 | remote

  static FlowKey of(const IpAddress& local, std::uint16_t local_port, const IpAddress& remote,
                    std::uint16_t remote_port) {
    FlowKey key;
    auto l = local.mapped(), r = remote.mapped();
    std::memcpy(key.addresses.data(), l.data(), 16);
    std::memcpy(key.addresses.data() + 2, r.data(), 16);
    key.ports = static_cast<std::uint32_t>(local_port) << 16 | remote_port;
    return key;
  }
  friend bool operator==(const FlowKey&, const FlowKey&) = default;
};

struct FlowHash {
  std::uint64_t k0 = 0, k1 = 0;
  // Multiply-and-fold over secret-keyed words.
  std::size_t operator()(const FlowKey& key) const {
    std::uint64_t h = fold(key.addresses[1] ^ k0, key.addresses[3] ^ k1);
    h ^= fold(key.addresses[0] ^ k1 ^ h, key.addresses[2] ^ k0);
    return static_cast<std::size_t>(fold(h ^ k0, key.ports ^ k1));
  }

 private:
  static std::uint64_t fold(std::uint64_t a, std::uint64_t b) {
    __extension__ using Wide = unsigned __int128;
    Wide product = static_cast<Wide>(a | 1) * (b | 0x9e3779b97f4a7c15u);
    return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
  }
};

// Signed distance and unwrapping of 32-bit sequence numbers: inside the stack they are 64 bits wide, with the low 32
// as on the wire, so that no comparison ever meets the wrap.
inline std::uint64_t unwrap_sequence(std::uint64_t reference, std::uint32_t wire) {
  return reference + static_cast<std::uint64_t>(
                         static_cast<std::int64_t>(static_cast<std::int32_t>(wire - static_cast<std::uint32_t>(reference))));
}
inline std::uint32_t wire_sequence(std::uint64_t sequence) { return static_cast<std::uint32_t>(sequence); }
// Far enough from zero that nothing a peer sends can underflow.
inline std::uint64_t first_sequence(std::uint32_t wire) { return (std::uint64_t{1} << 40) | wire; }

}  // namespace porthole::netstack
