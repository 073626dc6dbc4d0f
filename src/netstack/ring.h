// A queue over one growing power-of-two array: no allocation in steady state, positions stay valid as counters.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include "base/assert.h"

namespace porthole::netstack {

template <typename T>
class Ring {
 public:
  bool empty() const { return size_ == 0; }
  std::size_t size() const { return size_; }
  T& front() { return items_[head_]; }
  const T& front() const { return items_[head_]; }
  T& operator[](std::size_t i) { return items_[(head_ + i) & (items_.size() - 1)]; }
  const T& operator[](std::size_t i) const { return items_[(head_ + i) & (items_.size() - 1)]; }

  T& push_back(T value) {
    if (size_ == items_.size()) grow();
    T& slot = items_[(head_ + size_) & (items_.size() - 1)];
    slot = std::move(value);
    ++size_;
    return slot;
  }
  T pop_front() {
    PORTHOLE_ASSERT(size_ > 0);
    T value = std::move(items_[head_]);
    head_ = (head_ + 1) & (items_.size() - 1);
    if (--size_ == 0) head_ = 0;
    return value;
  }
  // Gives the memory back when there is nothing in it.
  void release_if_empty() {
    if (size_ == 0) {
      std::vector<T>().swap(items_);
      head_ = 0;
    }
  }
  std::size_t capacity() const { return items_.size(); }

 private:
  void grow() {
    std::vector<T> bigger(items_.empty() ? 8 : items_.size() * 2);
    for (std::size_t i = 0; i < size_; ++i) bigger[i] = std::move((*this)[i]);
    items_.swap(bigger);
    head_ = 0;
  }
  std::vector<T> items_;
  std::size_t head_ = 0;
  std::size_t size_ = 0;
};

}  // namespace porthole::netstack
