// Time as the core sees it: always an argument, never read.
#pragma once

#include <chrono>
#include <compare>
#include <cstdint>
#include <limits>

namespace porthole {

using Duration = std::chrono::nanoseconds;
using std::chrono_literals::operator""ns;
using std::chrono_literals::operator""us;
using std::chrono_literals::operator""ms;
using std::chrono_literals::operator""s;
using std::chrono_literals::operator""min;
using std::chrono_literals::operator""h;

// Monotonic nanoseconds since an arbitrary origin that is the same for the whole process (runtime: boot time, so
// that it counts suspend). A default-constructed Instant is the origin and sorts before every real one.
class Instant {
 public:
  constexpr Instant() = default;
  static constexpr Instant from_ns(std::int64_t ns) { return Instant(ns); }
  static constexpr Instant max() { return Instant(std::numeric_limits<std::int64_t>::max()); }
  constexpr std::int64_t ns() const { return ns_; }
  friend constexpr auto operator<=>(Instant, Instant) = default;
  friend constexpr Duration operator-(Instant a, Instant b) { return Duration(a.ns_ - b.ns_); }
  friend constexpr Instant operator+(Instant a, Duration d) {
    if (a.ns_ == max().ns_) return a;
    return Instant(a.ns_ + d.count());
  }
  friend constexpr Instant operator-(Instant a, Duration d) { return Instant(a.ns_ - d.count()); }

 private:
  constexpr explicit Instant(std::int64_t ns) : ns_(ns) {}
  std::int64_t ns_ = 0;
};

// Wall clock: nanoseconds since the Unix epoch. Only for TAI64N stamps, key expiry and display.
class WallTime {
 public:
  constexpr WallTime() = default;
  static constexpr WallTime from_unix_ns(std::int64_t ns) { WallTime t; t.ns_ = ns; return t; }
  static constexpr WallTime from_unix_s(std::int64_t s) { return from_unix_ns(s * 1'000'000'000); }
  constexpr std::int64_t unix_ns() const { return ns_; }
  constexpr std::int64_t unix_s() const { return ns_ / 1'000'000'000; }
  friend constexpr auto operator<=>(WallTime, WallTime) = default;
  friend constexpr WallTime operator+(WallTime a, Duration d) { return from_unix_ns(a.ns_ + d.count()); }
  friend constexpr Duration operator-(WallTime a, WallTime b) { return Duration(a.ns_ - b.ns_); }

 private:
  std::int64_t ns_ = 0;
};

// Both clocks at one moment. Machines that need wall time (WireGuard stamps, key expiry) take this.
struct Clock {
  Instant now;
  WallTime wall;
};

// When a machine wants handle_timeout() next: not before `earliest`, by `latest` at the latest. The span between
// them lets the runtime merge wake-ups. Default: never.
struct Deadline {
  Instant earliest = Instant::max();
  Instant latest = Instant::max();

  static constexpr Deadline never() { return {}; }
  static constexpr Deadline at(Instant t) { return {t, t}; }
  static constexpr Deadline between(Instant a, Instant b) { return {a, b}; }
  constexpr bool is_never() const { return latest == Instant::max(); }
  // The stricter of two wishes.
  friend constexpr Deadline sooner(Deadline a, Deadline b) { return a.latest <= b.latest ? a : b; }
};

}  // namespace porthole
