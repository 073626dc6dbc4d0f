#include "netstack/out_of_order.h"

#include <algorithm>

#include "base/assert.h"

namespace porthole::netstack {

bool OutOfOrder::add(std::uint64_t start, std::uint64_t end) {
  // First interval that ends at or behind `start`: the only candidates for a merge begin there.
  auto first = std::lower_bound(intervals_.begin(), intervals_.end(), start,
                                [](const Interval& i, std::uint64_t s) { return i.end < s; });
  if (first != intervals_.end() && first->start <= start && first->end >= end) {
    first->changed = ++clock_;
    return false;
  }
  auto last = first;
  Interval merged{start, end, ++clock_};
  while (last != intervals_.end() && last->start <= end) {
    merged.start = std::min(merged.start, last->start);
    merged.end = std::max(merged.end, last->end);
    bytes_ -= last->end - last->start;
    ++last;
  }
  bytes_ += merged.end - merged.start;
  if (first == last) {
    intervals_.insert(first, merged);
  } else {
    *first = merged;
    intervals_.erase(first + 1, last);
  }
  return true;
}

std::optional<std::uint64_t> OutOfOrder::take_contiguous(std::uint64_t at) {
  std::optional<std::uint64_t> reached;
  std::size_t n = 0;
  while (n < intervals_.size() && intervals_[n].start <= at) {
    bytes_ -= intervals_[n].end - intervals_[n].start;
    if (intervals_[n].end > at) {
      at = intervals_[n].end;
      reached = at;
    }
    ++n;
  }
  intervals_.erase(intervals_.begin(), intervals_.begin() + static_cast<std::ptrdiff_t>(n));
  return reached;
}

OutOfOrder::Interval OutOfOrder::drop_last() {
  PORTHOLE_ASSERT(!intervals_.empty());
  Interval last = intervals_.back();
  intervals_.pop_back();
  bytes_ -= last.end - last.start;
  return last;
}

std::uint8_t OutOfOrder::fill_blocks(std::optional<wire::SackBlock> duplicate, std::size_t max,
                                     wire::SackBlock (&out)[wire::kSackBlocksMax]) const {
  std::size_t count = 0;
  if (duplicate && count < max) out[count++] = *duplicate;
  std::uint64_t below = ~std::uint64_t{0};
  while (count < max) {
    const Interval* best = nullptr;
    for (const Interval& i : intervals_)
      if (i.changed < below && (best == nullptr || i.changed > best->changed)) best = &i;
    if (best == nullptr) break;
    below = best->changed;
    out[count++] = {static_cast<std::uint32_t>(best->start), static_cast<std::uint32_t>(best->end)};
  }
  return static_cast<std::uint8_t>(count);
}

}  // namespace porthole::netstack
