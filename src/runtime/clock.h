// The process's clocks and entropy, read here and nowhere below.
#pragma once

#include "base/rng.h"
#include "base/time.h"

namespace porthole::runtime {

// CLOCK_BOOTTIME (counts suspend) and CLOCK_REALTIME.
Clock clock_now();

// Bytes from the kernel's CSPRNG, fetched in blocks. Used by one thread at a time.
class SystemRng final : public Rng {
 public:
  ~SystemRng() override;
  void fill(MutBytes out) override;

 private:
  std::uint8_t block_[256];
  std::size_t left_ = 0;
};

}  // namespace porthole::runtime
