// BLAKE2s (RFC 7693) in plain C++, HMAC and HKDF over it as Noise and WireGuard want them, and SHA-256.
#pragma once

#include <array>

#include "base/bytes.h"
#include "crypto/secret.h"

namespace porthole::crypto {

using Hash32 = std::array<std::uint8_t, 32>;

class Blake2s {
 public:
  // out_size 1..32; key empty (plain hash) or 1..32 bytes (keyed mode, the "Mac" of WireGuard).
  explicit Blake2s(std::size_t out_size = 32, Bytes key = {});
  ~Blake2s();
  void update(Bytes b);
  // out.size() must equal out_size. The object is spent afterwards.
  void finish(MutBytes out);

 private:
  void compress(const std::uint8_t* block, bool last);
  std::uint32_t h_[8];
  std::uint64_t count_ = 0;
  std::uint8_t buffer_[64];
  std::size_t fill_ = 0;
  std::size_t out_size_;
};

Hash32 blake2s(Bytes a, Bytes b = {});                          // Hash(a || b)
std::array<std::uint8_t, 16> blake2s_mac16(Bytes key, Bytes message);  // keyed BLAKE2s, 16-byte output

// HMAC-BLAKE2s-256 (RFC 2104, block 64) and the Noise HKDF with 1..3 outputs. `out` spans are 32 bytes each.
void hmac_blake2s(Bytes key, Bytes message, MutBytes out32);
void hkdf_blake2s(Bytes chaining_key, Bytes input, MutBytes out1, MutBytes out2 = {}, MutBytes out3 = {});

Hash32 sha256(Bytes message);
// Incremental SHA-256 (files, streams).
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  void update(Bytes b);
  Hash32 finish();

 private:
  void* ctx_;
};

}  // namespace porthole::crypto
