#include "runtime/clock.h"

#include <sys/random.h>
#include <time.h>

#include <cerrno>

#include "base/assert.h"
#include "crypto/secret.h"

namespace porthole::runtime {

Clock clock_now() {
  timespec boot{}, real{};
  ::clock_gettime(CLOCK_BOOTTIME, &boot);
  ::clock_gettime(CLOCK_REALTIME, &real);
  return {Instant::from_ns(boot.tv_sec * 1'000'000'000ll + boot.tv_nsec),
          WallTime::from_unix_ns(real.tv_sec * 1'000'000'000ll + real.tv_nsec)};
}

SystemRng::~SystemRng() { crypto::wipe(block_); }

void SystemRng::fill(MutBytes out) {
  while (!out.empty()) {
    if (left_ == 0) {
      std::size_t got = 0;
      while (got < sizeof block_) {
        ssize_t n = ::getrandom(block_ + got, sizeof block_ - got, 0);
        PORTHOLE_ASSERT(n > 0 || errno == EINTR);
        if (n > 0) got += static_cast<std::size_t>(n);
      }
      left_ = sizeof block_;
    }
    std::size_t n = out.size() < left_ ? out.size() : left_;
    std::uint8_t* from = block_ + (sizeof block_ - left_);
    std::memcpy(out.data(), from, n);
    crypto::wipe({from, n});  // what was handed out is not kept
    left_ -= n;
    out = out.subspan(n);
  }
}

}  // namespace porthole::runtime
