// Randomness is handed in. The runtime gives a CSPRNG; tests and the simulator give SeededRng.
#pragma once

#include <cstdint>

#include "base/bytes.h"
#include "base/time.h"

namespace porthole {

class Rng {
 public:
  virtual ~Rng() = default;
  virtual void fill(MutBytes out) = 0;

  std::uint32_t u32() { std::uint8_t b[4]; fill(b); return load_le<std::uint32_t>(b); }
  std::uint64_t u64() { std::uint8_t b[8]; fill(b); return load_le<std::uint64_t>(b); }
  // Uniform in [0, bound), bound > 0; the modulo bias is below bound / 2^64.
  std::uint64_t below(std::uint64_t bound) { return u64() % bound; }
  // Uniform in [0, 1).
  double unit() { return static_cast<double>(u64() >> 11) * 0x1.0p-53; }
  // Uniform in [low, high].
  Duration between(Duration low, Duration high) {
    return low + Duration(below(static_cast<std::uint64_t>((high - low).count()) + 1));
  }
};

// xoshiro256**: reproducible, not secret. Never use outside tests and simulation.
class SeededRng final : public Rng {
 public:
  explicit SeededRng(std::uint64_t seed);
  void fill(MutBytes out) override;

 private:
  std::uint64_t next();
  std::uint64_t s_[4];
};

// The field's control-plane backoff: n-th consecutive failure waits min(n*n*10 ms, cap) times a random 0.5..1.5.
class Backoff {
 public:
  explicit Backoff(Duration cap) : cap_(cap) {}
  Duration next(Rng& rng) {
    if (failures_ < 100000) ++failures_;
    Duration base = std::chrono::milliseconds(10) * (static_cast<std::int64_t>(failures_) * failures_);
    if (base > cap_) base = cap_;
    return Duration(static_cast<std::int64_t>(static_cast<double>(base.count()) * (0.5 + rng.unit())));
  }
  void reset() { failures_ = 0; }
  int failures() const { return failures_; }

 private:
  Duration cap_;
  int failures_ = 0;
};

}  // namespace porthole
