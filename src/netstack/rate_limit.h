// Token bucket in virtual time.
#pragma once

#include <algorithm>

#include "base/time.h"

namespace porthole::netstack {

class RateLimit {
 public:
  RateLimit(double per_second, double burst) : rate_(per_second), burst_(burst), tokens_(burst) {}
  bool take(Instant now) {
    tokens_ = std::min(burst_, tokens_ + rate_ * std::chrono::duration<double>(now - last_).count());
    last_ = now;
    if (tokens_ < 1) return false;
    tokens_ -= 1;
    return true;
  }

 private:
  double rate_, burst_, tokens_;
  Instant last_;
};

}  // namespace porthole::netstack
