// Token buckets for callers that are told apart by a text (an address, a token's hash).
#pragma once

#include <algorithm>
#include <list>
#include <map>
#include <optional>
#include <string>

#include "base/time.h"

namespace porthole::remote {

class RateLimit {
 public:
  // `burst` at once, refilled at `per_second`; at most `callers_max` are remembered, the one longest unseen goes first.
  RateLimit(double burst, double per_second, std::size_t callers_max)
      : burst_(burst), per_second_(per_second), callers_max_(callers_max) {}

  // Takes one. nullopt: go on. Otherwise: how long to wait for the next one.
  std::optional<Duration> take(Instant now, const std::string& caller) {
    Bucket& b = bucket(now, caller);
    if (b.level >= 1) {
      b.level -= 1;
      return std::nullopt;
    }
    return wait(b);
  }
  // As take(), without taking: for things that only count when they fail.
  std::optional<Duration> check(Instant now, const std::string& caller) {
    Bucket& b = bucket(now, caller);
    if (b.level >= 1) return std::nullopt;
    return wait(b);
  }

 private:
  struct Bucket {
    double level;
    Instant filled;
    std::list<std::string>::iterator order;
  };
  Duration wait(const Bucket& b) const {
    return Duration(static_cast<std::int64_t>((1 - b.level) / per_second_ * 1e9) + 1);
  }
  Bucket& bucket(Instant now, const std::string& caller) {
    auto it = buckets_.find(caller);
    if (it == buckets_.end()) {
      if (buckets_.size() >= callers_max_) {
        buckets_.erase(order_.back());
        order_.pop_back();
      }
      order_.push_front(caller);
      return buckets_.emplace(caller, Bucket{burst_, now, order_.begin()}).first->second;
    }
    Bucket& b = it->second;
    order_.splice(order_.begin(), order_, b.order);
    double seconds = static_cast<double>((now - b.filled).count()) * 1e-9;
    b.level = std::min(burst_, b.level + seconds * per_second_);
    b.filled = now;
    return b;
  }

  double burst_;
  double per_second_;
  std::size_t callers_max_;
  std::map<std::string, Bucket> buckets_;
  std::list<std::string> order_;
};

}  // namespace porthole::remote
