// Public keys: 32 raw Curve25519 bytes with a role. One type per role, so that a disco key cannot be passed where a
// node key is meant. Private keys live in crypto/secret.h.
#pragma once

#include <array>
#include <compare>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "base/bytes.h"

namespace porthole {

struct NodeRole { static constexpr std::string_view kPrefix = "nodekey:"; };
struct MachineRole { static constexpr std::string_view kPrefix = "mkey:"; };
struct DiscoRole { static constexpr std::string_view kPrefix = "discokey:"; };
struct ChallengeRole { static constexpr std::string_view kPrefix = "chalpub:"; };

template <typename Role>
class PublicKey {
 public:
  static constexpr std::size_t kSize = 32;

  // All zero: "none" in every protocol here.
  constexpr PublicKey() = default;
  explicit PublicKey(const std::array<std::uint8_t, 32>& raw) : raw_(raw) {}
  // Exactly 32 bytes.
  static PublicKey from_bytes(Bytes b) {
    PublicKey k;
    if (b.size() == 32) std::memcpy(k.raw_.data(), b.data(), 32);
    return k;
  }
  // "nodekey:<64 hex>" and friends; the zero key parses.
  static std::optional<PublicKey> parse(std::string_view text) {
    if (!text.starts_with(Role::kPrefix)) return std::nullopt;
    PublicKey k;
    if (!from_hex_exact(text.substr(Role::kPrefix.size()), k.raw_)) return std::nullopt;
    return k;
  }

  bool is_zero() const { return *this == PublicKey(); }
  Bytes bytes() const { return raw_; }
  const std::array<std::uint8_t, 32>& raw() const { return raw_; }
  std::string to_string() const { return std::string(Role::kPrefix) + to_hex(raw_); }
  // First 5 base64-free hex digits in brackets, for logs: "[ab12f]".
  std::string short_string() const { return "[" + to_hex(raw_).substr(0, 5) + "]"; }
  friend constexpr auto operator<=>(const PublicKey&, const PublicKey&) = default;

 private:
  std::array<std::uint8_t, 32> raw_{};
};

using NodePublic = PublicKey<NodeRole>;
using MachinePublic = PublicKey<MachineRole>;
using DiscoPublic = PublicKey<DiscoRole>;
using ChallengePublic = PublicKey<ChallengeRole>;

}  // namespace porthole

template <typename Role>
struct std::hash<porthole::PublicKey<Role>> {
  std::size_t operator()(const porthole::PublicKey<Role>& k) const {
    // Keys are curve points: any 8 bytes are as good as a hash.
    return porthole::load_le<std::size_t>(k.raw().data());
  }
};
