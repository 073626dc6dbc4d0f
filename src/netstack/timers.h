// Deadlines of many owners in one heap. Moving a deadline later costs nothing: the entry fires early, finds that it
// is not due, and is put back. A connection in full flow therefore touches the heap a few times per second.
#pragma once

#include <cstdint>
#include <vector>

#include "base/time.h"

namespace porthole::netstack {

struct TimerNode {
  enum class Kind : std::uint8_t { kConnection, kHalfOpen, kPing, kHousekeeping };
  Kind kind = Kind::kConnection;
  void* owner = nullptr;
  Instant wanted = Instant::max();   // max: no deadline
  Instant queued = Instant::max();   // key in the heap, at or before `wanted`
  std::size_t position = kNotQueued;
  static constexpr std::size_t kNotQueued = static_cast<std::size_t>(-1);
};

class TimerHeap {
 public:
  void set(TimerNode& node, Instant when);
  void remove(TimerNode& node);
  // The next due node, with its deadline cleared; nullptr when none is due.
  TimerNode* pop_due(Instant now);
  // When pop_due() may have work; Instant::max() when never.
  Instant next() const { return heap_.empty() ? Instant::max() : heap_.front()->queued; }

 private:
  void sift_up(std::size_t i);
  void sift_down(std::size_t i);
  void place(std::size_t i, TimerNode* node) {
    heap_[i] = node;
    node->position = i;
  }
  std::vector<TimerNode*> heap_;
};

}  // namespace porthole::netstack
