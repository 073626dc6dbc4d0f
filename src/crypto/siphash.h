// SipHash-2-4 (Aumasson, Bernstein: "SipHash: a fast short-input PRF"): 64-bit keyed hash for tables that strangers can
// fill and for sequence numbers and cookies that strangers must not guess.
#pragma once

#include <array>
#include <cstdint>

#include "base/bytes.h"
#include "base/rng.h"

namespace porthole::crypto {

struct SipKey {
  std::uint64_t k0 = 0;
  std::uint64_t k1 = 0;

  static SipKey generate(Rng& rng) {
    SipKey key;
    key.k0 = rng.u64();
    key.k1 = rng.u64();
    return key;
  }
  // Exactly 16 bytes, two little-endian words as in the paper.
  static SipKey from_bytes(Bytes b16) { return {load_le<std::uint64_t>(b16.data()), load_le<std::uint64_t>(b16.data() + 8)}; }
};

std::uint64_t siphash24(const SipKey& key, Bytes message);

}  // namespace porthole::crypto
