// The service's clocks and its CSPRNG, as the machines below want them.
#pragma once

#include <ctime>

#include "base/rng.h"
#include "base/time.h"
#include "support/support.h"

namespace porthole::remote {

inline std::int64_t read_clock_ns(clockid_t id) {
  timespec t{};
  ::clock_gettime(id, &t);
  return static_cast<std::int64_t>(t.tv_sec) * 1'000'000'000 + t.tv_nsec;
}
// Boot time counts suspend.
inline Clock read_clock() {
  return {Instant::from_ns(read_clock_ns(CLOCK_BOOTTIME)), WallTime::from_unix_ns(read_clock_ns(CLOCK_REALTIME))};
}

class SystemRng final : public Rng {
 public:
  void fill(MutBytes out) override { app::random_bytes(out.data(), out.size()); }
};

}  // namespace porthole::remote
