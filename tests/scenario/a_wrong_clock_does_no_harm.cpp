#include "scenario.h"

namespace porthole::scenario {

TEST(Scenario, AWrongClockDoesNoHarm) {
  for (Duration offset : {Duration(-24h), Duration(24h)}) {
    SCOPED_TRACE(offset.count() / 3'600'000'000'000);
    Tailnet t(kSeed);
    NodeHost& right = t.add_node({.name = "right"}, t.add_home("one"));
    NodeHost& wrong = t.add_node({.name = "wrong", .clock_offset = offset}, t.add_home("two"));
    ASSERT_IN(t, t.run_until_running(5s));
    t.run_for(2s);
    auto there = right.transfer(wrong, 50'000, 50'000);
    auto back = wrong.transfer(right, 50'000, 50'000);
    ASSERT_IN(t, t.run_until_over({there, back}, 10s));
    EXPECT_IN(t, there->is_done());
    EXPECT_IN(t, back->is_done());

    // The clock is set right while the node runs, then the node restarts: its WireGuard stamps must not go back.
    wrong.config().clock_offset = {};
    t.run_for(200s);
    auto later = wrong.transfer(right, 50'000, 50'000);
    ASSERT_IN(t, t.run_until_over({later}, 20s));
    EXPECT_IN(t, later->is_done());
    EXPECT_LT(later->until_first_byte(), 1s) << t.report();
    wrong.stop();
    wrong.start();
    ASSERT_IN(t, t.run_until_running(5s));
    auto restarted = wrong.transfer(right, 1, 1);
    ASSERT_IN(t, t.run_until_over({restarted}, 20s));
    EXPECT_IN(t, restarted->is_done());
    EXPECT_LT(restarted->until_first_byte(), 1s) << t.report();
  }
}

// Killed in the middle of its work, and back with a clock that is an hour behind: what was stored must be ahead of every stamp
// that any peer has seen.
TEST(Scenario, ACrashWithAClockThatGoesBackDoesNoHarm) {
  Tailnet t(kSeed);
  NodeHost& right = t.add_node({.name = "right"}, t.add_home("one"));
  NodeHost& crashes = t.add_node({.name = "crashes"}, t.add_home("two"));
  ASSERT_IN(t, t.run_until_running(5s));
  // Sessions that follow one another, and one after hours of silence.
  for (Duration pause : {Duration(2s), Duration(130s), Duration(8min), Duration(5h)}) {
    t.run_for(pause);
    auto call = crashes.transfer(right, 1000, 1000);
    ASSERT_IN(t, t.run_until_over({call}, 20s));
    EXPECT_IN(t, call->is_done());
    crashes.kill();
    crashes.config().clock_offset -= 1h;
    crashes.start();
    ASSERT_IN(t, t.run_until_running(5s));
    auto again = crashes.transfer(right, 1000, 1000);
    ASSERT_IN(t, t.run_until_over({again}, 20s));
    EXPECT_IN(t, again->is_done());
    EXPECT_LT(again->until_first_byte(), 1s) << t.report();
  }
}

}  // namespace porthole::scenario
