// Secrets: bytes that cannot be printed, compared in variable time or copied by accident, and are wiped when dropped.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string_view>

#include "base/bytes.h"
#include "base/key.h"
#include "base/rng.h"

namespace porthole::crypto {

// Overwrites memory in a way the compiler cannot remove.
void wipe(MutBytes bytes);
// Constant-time in the contents (not the lengths).
bool equal_secret(Bytes a, Bytes b);

// Fixed-size secret. Move-only: moving wipes the source. No operator== and no stream operator on purpose.
template <std::size_t N>
class SecretBytes {
 public:
  SecretBytes() = default;
  explicit SecretBytes(Bytes b) {
    if (b.size() == N) std::memcpy(b_.data(), b.data(), N);
  }
  SecretBytes(const SecretBytes&) = delete;
  SecretBytes& operator=(const SecretBytes&) = delete;
  SecretBytes(SecretBytes&& o) noexcept : b_(o.b_) { wipe(o.b_); }
  SecretBytes& operator=(SecretBytes&& o) noexcept {
    if (this != &o) {
      b_ = o.b_;
      wipe(o.b_);
    }
    return *this;
  }
  ~SecretBytes() { wipe(b_); }

  // A deliberate second copy, e.g. to hand the node key to two machines.
  SecretBytes duplicate() const { return SecretBytes(Bytes(b_)); }
  Bytes reveal() const { return b_; }
  MutBytes writable() { return b_; }
  bool is_zero() const;

 private:
  std::array<std::uint8_t, N> b_{};
};
template <std::size_t N>
bool SecretBytes<N>::is_zero() const {
  static constexpr std::array<std::uint8_t, N> kZero{};
  return equal_secret(b_, kZero);
}

// Secret text of any length (passwords, pre-auth keys, tokens). Same rules.
class SecretText {
 public:
  SecretText() = default;
  explicit SecretText(std::string_view text) : b_(text.begin(), text.end()) {}
  SecretText(const SecretText&) = delete;
  SecretText& operator=(const SecretText&) = delete;
  SecretText(SecretText&& o) noexcept : b_(std::move(o.b_)) {}
  SecretText& operator=(SecretText&& o) noexcept {
    wipe(MutBytes(b_));
    b_ = std::move(o.b_);
    return *this;
  }
  ~SecretText() { wipe(MutBytes(b_)); }

  SecretText duplicate() const { return SecretText(reveal()); }
  std::string_view reveal() const { return as_text(b_); }
  bool empty() const { return b_.empty(); }

 private:
  ByteVector b_;
};

// X25519 private key with a role; clamped at generation and on load.
template <typename Role>
class PrivateKey {
 public:
  PrivateKey() = default;  // zero: "none"
  static PrivateKey generate(Rng& rng) {
    PrivateKey k;
    rng.fill(k.s_.writable());
    k.clamp();
    return k;
  }
  // Exactly 32 bytes; clamps.
  static PrivateKey from_bytes(Bytes b) {
    PrivateKey k;
    k.s_ = SecretBytes<32>(b);
    k.clamp();
    return k;
  }
  // "privkey:<64 hex>" (the text form shared by machine and node keys).
  static std::optional<PrivateKey> parse(std::string_view text);

  PrivateKey duplicate() const {
    PrivateKey k;
    k.s_ = s_.duplicate();
    return k;
  }
  PublicKey<Role> public_key() const;
  bool is_zero() const { return s_.is_zero(); }
  Bytes reveal() const { return s_.reveal(); }
  // "privkey:<64 hex>"
  SecretText to_text() const;

 private:
  void clamp() {
    MutBytes b = s_.writable();
    b[0] &= 248;
    b[31] = static_cast<std::uint8_t>((b[31] & 127) | 64);
  }
  SecretBytes<32> s_;
};

using NodePrivate = PrivateKey<NodeRole>;
using MachinePrivate = PrivateKey<MachineRole>;
using DiscoPrivate = PrivateKey<DiscoRole>;

// X25519 base-point multiplication, used by PrivateKey::public_key.
std::array<std::uint8_t, 32> x25519_public(Bytes private_key);

template <typename Role>
PublicKey<Role> PrivateKey<Role>::public_key() const {
  if (is_zero()) return {};
  return PublicKey<Role>(x25519_public(reveal()));
}
template <typename Role>
std::optional<PrivateKey<Role>> PrivateKey<Role>::parse(std::string_view text) {
  constexpr std::string_view kPrefix = "privkey:";
  SecretBytes<32> raw;
  if (!text.starts_with(kPrefix) || !from_hex_exact(text.substr(kPrefix.size()), raw.writable())) return std::nullopt;
  return from_bytes(raw.reveal());
}
template <typename Role>
SecretText PrivateKey<Role>::to_text() const {
  char text[8 + 64] = {'p', 'r', 'i', 'v', 'k', 'e', 'y', ':'};
  static constexpr char kDigits[] = "0123456789abcdef";
  Bytes b = reveal();
  for (std::size_t i = 0; i < 32; ++i) {
    text[8 + 2 * i] = kDigits[b[i] >> 4];
    text[9 + 2 * i] = kDigits[b[i] & 15];
  }
  SecretText out(std::string_view(text, sizeof text));
  wipe(MutBytes(reinterpret_cast<std::uint8_t*>(text), sizeof text));
  return out;
}

}  // namespace porthole::crypto
