// Bytes that wait to be written: appended at the end, taken from the front. What was taken is given back once it is more
// than half, so a byte is moved once on average, and the block stays in proportion to what waits: a reader that is always
// a little behind would otherwise keep all that it was ever sent.
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
    } else if (taken_ > bytes_.size() / 2) {
      bytes_.erase(bytes_.begin(), bytes_.begin() + static_cast<std::ptrdiff_t>(taken_));
      taken_ = 0;
    }
    return n;
  }

 private:
  ByteVector bytes_;
  std::size_t taken_ = 0;
};

}  // namespace porthole
