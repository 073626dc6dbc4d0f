#include "scenario.h"

namespace porthole::scenario {

TEST(Scenario, ARelayRestartIsAShortPause) {
  Tailnet t(kSeed);
  LinkConfig link = link_of(10ms);
  link.rate = 100'000;
  Site& office = t.add_home("office", easy_nat(), link);
  office.set_udp_blocked(true);
  NodeHost& a = t.add_node({.name = "a"}, office);
  NodeHost& b = t.add_node({.name = "b"}, t.add_home("home", easy_nat(), link));
  ASSERT_IN(t, t.run_until_running(10s));
  t.run_for(5s);
  auto transfer = a.transfer(b, 2'000'000, 0);
  t.run_for(3s);
  ASSERT_FALSE(transfer->is_over());
  transfer->longest_pause = {};
  t.restart_relay(1s);
  t.run_for(8s);
  ASSERT_IN(t, !transfer->is_over());
  EXPECT_LT(transfer->longest_pause, 6s) << t.report();
  // And one that is announced.
  t.server().announce_relay_restart();
  t.world.after(600ms, [&] { t.server().start_relay(); });
  ASSERT_IN(t, t.run_until_over({transfer}, 60s));
  EXPECT_IN(t, transfer->is_done());
}

TEST(Scenario, DirectTrafficDoesNotNoticeThatTheRelayIsGone) {
  Tailnet t(kSeed);
  NodeHost& a = t.add_node({.name = "a"}, t.add_home("one"));
  NodeHost& b = t.add_node({.name = "b"}, t.add_home("two"));
  ASSERT_IN(t, t.run_until_running(5s));
  t.run_for(2s);
  auto first = a.transfer(b, 1000, 1000);
  ASSERT_IN(t, t.run_until_direct(a, b, 10s));
  t.server().stop_relay();
  t.run_for(1s);
  auto transfer = a.transfer(b, 1'000'000, 1'000'000);
  ASSERT_IN(t, t.run_until_over({first, transfer}, 30s));
  EXPECT_IN(t, transfer->is_done());
  EXPECT_LT(transfer->longest_pause, 500ms) << t.report();
}

}  // namespace porthole::scenario
