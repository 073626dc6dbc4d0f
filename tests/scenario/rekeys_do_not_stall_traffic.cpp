#include "scenario.h"

namespace porthole::scenario {

TEST(Scenario, RekeysDoNotStallTraffic) {
  Tailnet t(kSeed);
  LinkConfig link = link_of(15ms);
  link.rate = 50'000;
  link.loss = 0.002;
  NodeHost& a = t.add_node({.name = "a"}, t.add_home("one", easy_nat(), link));
  NodeHost& b = t.add_node({.name = "b"}, t.add_home("two", easy_nat(), link));
  ASSERT_IN(t, t.run_until_running(5s));
  t.run_for(2s);
  // A quarter of an hour without a pause, and the coordinator has nothing to do with it.
  auto transfer = a.transfer(b, 35'000'000, 0);
  ASSERT_IN(t, t.run_until_direct(a, b, 10s));
  transfer->longest_pause = {};
  t.server().stop_coordinator();
  ASSERT_IN(t, t.run_until_over({transfer}, 1800s));
  EXPECT_IN(t, transfer->is_done());
  EXPECT_GT(*transfer->ended - transfer->started, 10min);
  EXPECT_LT(transfer->longest_pause, 3s) << t.report();
  std::uint64_t handshakes = a.engine().tunnel_counters().handshakes_completed;
  EXPECT_GE(handshakes, 5u);
  EXPECT_LE(handshakes, 20u);
}

}  // namespace porthole::scenario
