#include "paths/timer_heap.h"

#include <gtest/gtest.h>

#include <map>

#include "base/rng.h"

namespace porthole::paths {
namespace {

TEST(TimerHeap, AgreesWithAPlainMap) {
  TimerHeap heap;
  std::map<std::uint32_t, Instant> plain;
  SeededRng rng(1);
  for (int i = 0; i < 50000; ++i) {
    const auto slot = static_cast<std::uint32_t>(rng.below(60));
    const bool remove = rng.below(3) == 0;
    const Instant at = remove ? Instant::max() : Instant::from_ns(static_cast<std::int64_t>(rng.below(100)));
    heap.set(slot, at);
    if (remove) plain.erase(slot);
    else plain[slot] = at;
    ASSERT_EQ(heap.empty(), plain.empty());
    if (plain.empty()) continue;
    auto first = plain.begin();
    for (auto it = plain.begin(); it != plain.end(); ++it)
      if (it->second < first->second) first = it;
    ASSERT_EQ(heap.top_time(), first->second);
    ASSERT_EQ(heap.top_slot(), first->first);
  }
}

}  // namespace
}  // namespace porthole::paths
