// X25519 and the NaCl boxes built on it (disco messages, DERP login). libsodium underneath.
#pragma once

#include <array>

#include "base/bytes.h"
#include "base/key.h"
#include "base/result.h"
#include "crypto/secret.h"

namespace porthole::crypto {

// RFC 7748. False when the result is all zero (low-order point): the caller must abort what it was doing.
[[nodiscard]] bool x25519(Bytes private_key, Bytes public_key, SecretBytes<32>& shared);

// Precomputed crypto_box key: HSalsa20(X25519(a, B), 0). Symmetric: both sides compute the same.
class BoxKey {
 public:
  static constexpr std::size_t kNonceSize = 24;
  static constexpr std::size_t kTagSize = 16;

  // nullopt for a low-order or zero public key.
  static std::optional<BoxKey> make(Bytes private_key, Bytes public_key);

  // out = tag(16) || ciphertext; out.size() must be plain.size() + 16.
  void seal(Bytes nonce24, Bytes plain, MutBytes out) const;
  // boxed = tag || ciphertext; out.size() must be boxed.size() - 16. False on any forgery or short input.
  [[nodiscard]] bool open(Bytes nonce24, Bytes boxed, MutBytes out) const;

 private:
  SecretBytes<32> k_;
};

}  // namespace porthole::crypto
