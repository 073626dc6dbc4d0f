#include "wg/tai64n.h"

namespace porthole::wg {
namespace {
constexpr std::uint64_t kLabelBase = 0x400000000000000a;
constexpr std::uint32_t kQuantum = 1u << 24;
constexpr std::uint32_t kSecond = 1'000'000'000;
}  // namespace

Tai64n Tai64n::make(std::uint64_t label, std::uint32_t nanoseconds) {
  Tai64n out;
  store_be(out.b_.data(), label);
  store_be(out.b_.data() + 8, nanoseconds);
  return out;
}

Tai64n Tai64n::from_wall(WallTime wall) {
  const std::int64_t ns = wall.unix_ns() < 0 ? 0 : wall.unix_ns();
  return make(kLabelBase + static_cast<std::uint64_t>(ns / kSecond),
              static_cast<std::uint32_t>(ns % kSecond) & ~(kQuantum - 1));
}

Tai64n Tai64n::from_bytes(Bytes b12) {
  Tai64n out;
  if (b12.size() == out.b_.size()) std::memcpy(out.b_.data(), b12.data(), out.b_.size());
  return out;
}

Tai64n Tai64n::next() const {
  const std::uint64_t label = load_be<std::uint64_t>(b_.data());
  const std::uint32_t nanoseconds = load_be<std::uint32_t>(b_.data() + 8);
  if (nanoseconds >= kSecond - kQuantum) return make(label + 1, 0);
  return make(label, nanoseconds + kQuantum);
}

Tai64n Tai64n::plus_seconds(std::uint64_t whole_seconds) const {
  return make(load_be<std::uint64_t>(b_.data()) + whole_seconds, load_be<std::uint32_t>(b_.data() + 8));
}

}  // namespace porthole::wg
