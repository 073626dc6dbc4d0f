// Bytes that wait to be written. They are appended at the end and taken from the front, which moves none of the others.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "base/bytes.h"

namespace porthole {

class OutBytes {
 public:
  // For whatever appends to a vector. Nothing but appending is allowed.
  ByteVector& end() { return bytes_; }
  bool empty() const { return bytes_.empty(); }
  std::size_t size() const { return bytes_.size() - taken_; }

  // As many as there are and fit; how many.
  std::size_t take(MutBytes out) {
    const std::size_t n = std::min(size(), out.size());
    if (n > 0) std::memcpy(out.data(), bytes_.data() + taken_, n);
    taken_ += n;
    if (taken_ == bytes_.size()) {
      bytes_.clear();
      taken_ = 0;
    }
    return n;
  }

 private:
  ByteVector bytes_;
  std::size_t taken_ = 0;
};

}  // namespace porthole
