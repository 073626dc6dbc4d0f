// Bounded first-in first-out queue of byte records (frames, packets) in one growing block of memory: no allocation per
// record. The newest record always gets in; when a bound is reached, the oldest ones go.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/assert.h"
#include "base/bytes.h"

namespace porthole {

class RecordQueue {
 public:
  // bytes_max must be at least the largest record ever pushed. Up to 2 * bytes_max bytes are allocated.
  RecordQueue(std::size_t records_max, std::size_t bytes_max) : sizes_(records_max), bytes_max_(bytes_max) {}

  bool empty() const { return count_ == 0; }
  std::size_t count() const { return count_; }
  std::size_t bytes() const { return tail_ - head_; }

  // Room for one record of `size` bytes at the end, to be filled at once. Returns via `dropped` how many old records
  // had to go for it.
  MutBytes push(std::size_t size, std::size_t& dropped) {
    PORTHOLE_ASSERT(size <= bytes_max_);
    dropped = 0;
    while (count_ == sizes_.size() || bytes() + size > bytes_max_) {
      pop();
      ++dropped;
    }
    reserve(size);
    sizes_[(first_ + count_) % sizes_.size()] = static_cast<std::uint32_t>(size);
    ++count_;
    MutBytes room(block_.get() + tail_, size);
    tail_ += size;
    return room;
  }

  // The oldest record; valid until the next push, pop or clear.
  MutBytes front() { return {block_.get() + head_, sizes_[first_]}; }
  void pop() {
    PORTHOLE_ASSERT(count_ > 0);
    head_ += sizes_[first_];
    first_ = (first_ + 1) % sizes_.size();
    if (--count_ == 0) head_ = tail_ = 0;
  }
  void clear() { head_ = tail_ = first_ = count_ = 0; }
  // Gives the memory back if the queue is empty; for a moment when nothing has been going on.
  void release() {
    if (!empty()) return;
    block_.reset();
    capacity_ = 0;
  }

 private:
  // Moves the records to the front when that frees at least as much as it moves, so the cost per byte stays constant.
  void reserve(std::size_t size) {
    if (tail_ + size <= capacity_) return;
    std::size_t live = bytes();
    std::size_t wanted = capacity_;
    if (live + size > capacity_ / 2) {
      wanted = capacity_ == 0 ? 4096 : capacity_;
      while (wanted < 2 * (live + size)) wanted *= 2;
      if (wanted > 2 * bytes_max_) wanted = 2 * bytes_max_;
    }
    if (wanted > capacity_) {
      auto bigger = std::make_unique_for_overwrite<std::uint8_t[]>(wanted);
      if (live > 0) std::memcpy(bigger.get(), block_.get() + head_, live);
      block_ = std::move(bigger);
      capacity_ = wanted;
    } else if (live > 0) {
      std::memmove(block_.get(), block_.get() + head_, live);
    }
    head_ = 0;
    tail_ = live;
  }

  std::vector<std::uint32_t> sizes_;  // ring
  std::size_t bytes_max_;
  std::unique_ptr<std::uint8_t[]> block_;
  std::size_t capacity_ = 0;
  std::size_t head_ = 0, tail_ = 0;   // live bytes of block_
  std::size_t first_ = 0, count_ = 0; // live entries of sizes_
};

}  // namespace porthole
