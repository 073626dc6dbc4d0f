#include "scenario.h"

namespace porthole::scenario {

TEST(Scenario, TrafficDoesNotNoticeACoordinatorRestart) {
  Tailnet t(kSeed);
  LinkConfig link = link_of(10ms);
  link.rate = 100'000;
  NodeHost& a = t.add_node({.name = "a"}, t.add_home("one", easy_nat(), link));
  NodeHost& b = t.add_node({.name = "b"}, t.add_home("two", easy_nat(), link));
  ASSERT_IN(t, t.run_until_running(3s));
  t.run_for(2s);
  auto transfer = a.transfer(b, 3'000'000, 0);
  ASSERT_IN(t, t.run_until_direct(a, b, 10s));
  transfer->longest_pause = {};
  t.restart_coordinator(5s);
  ASSERT_IN(t, t.run_until_over({transfer}, 60s));
  EXPECT_IN(t, transfer->is_done());
  EXPECT_LT(transfer->longest_pause, 500ms) << t.report();
  EXPECT_TRUE(a.is_running() && b.is_running());

  // The new process knows them, and a newcomer meets both.
  NodeHost& c = t.add_node({.name = "c"}, t.add_home("three"));
  ASSERT_IN(t, t.run_until_running(20s));
  auto first = c.transfer(a, 1000, 1000);
  auto second = b.transfer(c, 1000, 1000);
  ASSERT_IN(t, t.run_until_over({first, second}, 10s));
  EXPECT_IN(t, first->is_done());
  EXPECT_IN(t, second->is_done());
}

TEST(Scenario, ManyNodesComeBackAfterACoordinatorRestart) {
  Tailnet t(kSeed);
  for (int i = 0; i < 12; ++i) t.add_node({.name = "n" + std::to_string(i)}, t.add_public_site("s" + std::to_string(i)));
  ASSERT_IN(t, t.run_until_running(10s));
  t.restart_coordinator(20s);
  t.run_for(20s);
  EXPECT_IN(t, t.run_until([&] { return t.server().coordinator()->stream_count() == 12; }, 60s));
  for (std::size_t i = 0; i < 12; ++i) EXPECT_IN(t, t.node(i).is_running());
}

}  // namespace porthole::scenario
