#include "base/rng.h"

namespace porthole {
namespace {
std::uint64_t split_mix(std::uint64_t& x) {
  std::uint64_t z = (x += 0x9e3779b97f4a7c15ull);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}
}  // namespace

SeededRng::SeededRng(std::uint64_t seed) {
  for (auto& s : s_) s = split_mix(seed);
}

std::uint64_t SeededRng::next() {
  std::uint64_t result = std::rotl(s_[1] * 5, 7) * 9;
  std::uint64_t t = s_[1] << 17;
  s_[2] ^= s_[0];
  s_[3] ^= s_[1];
  s_[1] ^= s_[2];
  s_[0] ^= s_[3];
  s_[2] ^= t;
  s_[3] = std::rotl(s_[3], 45);
  return result;
}

void SeededRng::fill(MutBytes out) {
  while (!out.empty()) {
    std::uint8_t b[8];
    store_le(b, next());
    std::size_t n = out.size() < 8 ? out.size() : 8;
    std::memcpy(out.data(), b, n);
    out = out.subspan(n);
  }
}

}  // namespace porthole
