// TAI64N stamps as WireGuard sends them: whitened to 2^24 ns so that the wire does not leak a fine clock
// (paper 5.4.2; the label is 2^62 + 10 + Unix seconds, as all deployed implementations have it).
#pragma once

#include <array>
#include <compare>
#include <cstdint>

#include "base/bytes.h"
#include "base/time.h"

namespace porthole::wg {

// 12 bytes, big endian; compares like the bytes. The default (all zero) is older than every real stamp. Received stamps
// are compared, never converted: a peer's clock may be arbitrarily wrong.
class Tai64n {
 public:
  constexpr Tai64n() = default;
  static Tai64n from_wall(WallTime wall);
  // Exactly 12 bytes.
  static Tai64n from_bytes(Bytes b12);
  // The next stamp that is strictly greater: one quantum later, carried into the seconds.
  Tai64n next() const;
  // `whole_seconds` later, for a persisted lease.
  Tai64n plus_seconds(std::uint64_t whole_seconds) const;

  const std::array<std::uint8_t, 12>& bytes() const { return b_; }
  friend constexpr auto operator<=>(const Tai64n&, const Tai64n&) = default;

 private:
  static Tai64n make(std::uint64_t label, std::uint32_t nanoseconds);
  std::array<std::uint8_t, 12> b_{};
};

// What a store knows of the stamps of a key, so that a restart sends none twice whatever the clock says by then.
struct StampLease {
  Tai64n used;    // none up to here may be sent any more
  Tai64n until;   // those up to here may be, without writing anything first
};

}  // namespace porthole::wg
