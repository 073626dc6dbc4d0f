// One wake-up time per peer slot, the earliest on top: a binary heap that knows where each slot stands, so that changing
// or removing a time needs no search and, once a slot has been seen, no allocation.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "base/time.h"

namespace porthole::paths {

class TimerHeap {
 public:
  bool empty() const { return heap_.empty(); }
  Instant top_time() const { return heap_.empty() ? Instant::max() : heap_[0].at; }
  std::uint32_t top_slot() const { return heap_[0].slot; }

  // Instant::max() removes.
  void set(std::uint32_t slot, Instant at) {
    if (slot >= position_.size()) {
      if (at == Instant::max()) return;
      position_.resize(slot + 1, kNone);
      heap_.reserve(position_.capacity());
    }
    const std::uint32_t i = position_[slot];
    if (i == kNone) {
      if (at == Instant::max()) return;
      heap_.push_back({at, slot});
      position_[slot] = static_cast<std::uint32_t>(heap_.size() - 1);
      up(heap_.size() - 1);
    } else if (at == Instant::max()) {
      position_[slot] = kNone;
      const Entry last = heap_.back();
      heap_.pop_back();
      if (i < heap_.size()) {
        put(i, last);
        up(i);
        down(position_[last.slot]);
      }
    } else if (heap_[i].at != at) {
      heap_[i].at = at;
      up(i);
      down(position_[slot]);
    }
  }

 private:
  static constexpr std::uint32_t kNone = UINT32_MAX;
  struct Entry {
    Instant at;
    std::uint32_t slot;
    // Equal times: the lower slot first, so that the order does not depend on history.
    bool before(const Entry& o) const { return at != o.at ? at < o.at : slot < o.slot; }
  };

  void put(std::size_t i, const Entry& e) {
    heap_[i] = e;
    position_[e.slot] = static_cast<std::uint32_t>(i);
  }
  void up(std::size_t i) {
    const Entry e = heap_[i];
    while (i > 0 && e.before(heap_[(i - 1) / 2])) {
      put(i, heap_[(i - 1) / 2]);
      i = (i - 1) / 2;
    }
    put(i, e);
  }
  void down(std::size_t i) {
    const Entry e = heap_[i];
    for (;;) {
      std::size_t child = 2 * i + 1;
      if (child >= heap_.size()) break;
      if (child + 1 < heap_.size() && heap_[child + 1].before(heap_[child])) ++child;
      if (!heap_[child].before(e)) break;
      put(i, heap_[child]);
      i = child;
    }
    put(i, e);
  }

  std::vector<Entry> heap_;
  std::vector<std::uint32_t> position_;   // slot -> index in heap_
};

}  // namespace porthole::paths
