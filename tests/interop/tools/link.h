// One direction of a bad link: loss, doubles, flipped bits, delay, disorder. Reproducible by its seed.
#pragma once

#include <map>
#include <vector>

#include "base/bytes.h"
#include "base/rng.h"
#include "base/time.h"

namespace porthole::interop {

struct LinkConfig {
  double loss = 0, duplicate = 0, corrupt = 0;  // chance of each packet
  Duration delay{}, jitter{};                   // jitter is uniform and reorders
};

class BadLink {
 public:
  explicit BadLink(std::uint64_t seed) : rng_(seed) {}
  LinkConfig config;
  std::uint64_t passed = 0, lost = 0, queue_full = 0;

  bool perfect() const {
    return config.loss <= 0 && config.duplicate <= 0 && config.corrupt <= 0 && config.delay + config.jitter == Duration(0) &&
           queue_.empty();
  }
  void push(Instant now, Bytes packet) {
    if (config.loss > 0 && rng_.unit() < config.loss) {
      ++lost;
      return;
    }
    int copies = config.duplicate > 0 && rng_.unit() < config.duplicate ? 2 : 1;
    for (; copies > 0; --copies) {
      if (queue_.size() >= kQueueMax) {
        ++queue_full;
        return;
      }
      Duration wait = config.delay;
      if (config.jitter > Duration(0)) wait += rng_.between(Duration(0), config.jitter);
      ByteVector copy(packet.begin(), packet.end());
      if (config.corrupt > 0 && rng_.unit() < config.corrupt)
        copy[rng_.below(copy.size())] ^= static_cast<std::uint8_t>(1u << rng_.below(8));
      queue_.emplace(now + wait, std::move(copy));
      ++passed;
    }
  }
  Instant next() const { return queue_.empty() ? Instant::max() : queue_.begin()->first; }
  // What arrives by now, in order.
  std::vector<ByteVector> take(Instant now) {
    std::vector<ByteVector> out;
    while (!queue_.empty() && queue_.begin()->first <= now) out.push_back(std::move(queue_.extract(queue_.begin()).mapped()));
    return out;
  }

 private:
  static constexpr std::size_t kQueueMax = 8192;
  SeededRng rng_;
  std::multimap<Instant, ByteVector> queue_;
};

}  // namespace porthole::interop
