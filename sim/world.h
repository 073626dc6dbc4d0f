// Time in a simulated world. Nothing happens but events; they happen in the order of their time, and of their making
// where times are equal. One number, the seed, decides everything random, each purpose with a stream of its own, so that
// one more draw here changes nothing there.
//
//   World world(seed);
//   world.after(3s, [&] { network.cut(...); });
//   EXPECT_TRUE(world.run_until([&] { return node.is_running(); }, 10s)) << world.report();
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/rng.h"
#include "base/time.h"
#include "sim/trace.h"

namespace porthole::sim {

class World {
 public:
  explicit World(std::uint64_t seed);
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  std::uint64_t seed() const { return seed_; }
  Instant now() const { return now_; }
  // A right clock. Hosts have offsets of their own.
  WallTime wall() const { return kWallStart + (now_ - kStart); }
  Duration elapsed() const { return now_ - kStart; }
  SeededRng rng(std::string_view purpose) const;

  // Runs `action` at `when`, at once if that is past.
  void at(Instant when, std::function<void()> action);
  void after(Duration delay, std::function<void()> action) { at(now_ + delay, std::move(action)); }

  // One event. False: none is left, or an invariant is broken.
  bool step();
  // Until `done` (asked after each event) or until `limit` has passed; the answer is done's.
  bool run_until(const std::function<bool()>& done, Duration limit);
  // False: an invariant broke on the way.
  bool run_for(Duration time);

  // An invariant of the world is broken: the world stops; the first one counts.
  void fail(std::string what);
  bool failed() const { return !failure_.empty(); }
  const std::string& failure() const { return failure_; }

  Trace& trace() { return trace_; }
  void note(std::string_view who, std::string_view what) { trace_.note(now_, who, what); }
  std::uint64_t events() const { return next_sequence_; }
  // Seed, failure and trace.
  std::string report() const;

 private:
  static constexpr Instant kStart = Instant::from_ns(3'600'000'000'000);  // an hour after some boot
  static constexpr WallTime kWallStart = WallTime::from_unix_s(1'798'761'600);  // 2027-01-01
  // Events at one instant; more means that a machine asks to be woken again and again without time passing.
  static constexpr std::uint64_t kEventsPerInstantMax = 200'000;

  struct Event {
    Instant at;
    std::uint64_t sequence;
    std::function<void()> action;
  };
  struct Later {
    bool operator()(const Event& a, const Event& b) const {
      return a.at != b.at ? a.at > b.at : a.sequence > b.sequence;
    }
  };

  std::uint64_t seed_;
  Instant now_ = kStart;
  std::vector<Event> heap_;
  std::uint64_t next_sequence_ = 0;
  std::uint64_t at_this_instant_ = 0;
  std::string failure_;
  Trace trace_;
};

// A timer that can be moved. Moving it later is free: it may then fire early, which no machine minds.
class Alarm {
 public:
  Alarm(World& world, std::function<void()> action);
  ~Alarm() { *generation_ = 0; }
  Alarm(const Alarm&) = delete;
  Alarm& operator=(const Alarm&) = delete;

  void set(Instant at);
  void set_now() { set(world_.now()); }
  void cancel();

 private:
  World& world_;
  std::function<void()> action_;
  std::shared_ptr<std::uint64_t> generation_;  // 0: the alarm is gone
  std::uint64_t last_ = 1;
  Instant armed_ = Instant::max();
};

}  // namespace porthole::sim
