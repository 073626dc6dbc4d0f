#include "scenario.h"

namespace porthole::scenario {

TEST(Scenario, BlockedUdpStaysOnTheRelay) {
  Tailnet t(kSeed);
  Site& office = t.add_home("office", easy_nat());
  office.set_udp_blocked(true);
  NodeHost& a = t.add_node({.name = "a"}, office);
  NodeHost& b = t.add_node({.name = "b"}, t.add_public_site("home"));
  ASSERT_IN(t, t.run_until_running(10s));
  t.run_for(10s);
  auto up = a.transfer(b, 300'000, 0);
  auto down = a.transfer(b, 0, 300'000);
  auto back = b.transfer(a, 100'000, 100'000);
  ASSERT_IN(t, t.run_until_over({up, down, back}, 30s));
  for (const auto& transfer : {up, down, back}) EXPECT_IN(t, transfer->is_done());
  EXPECT_FALSE(a.is_direct(b));
  auto status = a.engine().peer_status(t.world.now(), b.key());
  ASSERT_TRUE(status && status->path);
  EXPECT_EQ(status->path->relay_region, 1);
  EXPECT_FALSE(to_text(status->path->not_direct).empty());

  // The firewall is opened: no restart is needed.
  office.set_udp_blocked(false);
  auto later = a.transfer(b, 2'000'000, 0);
  EXPECT_IN(t, t.run_until_direct(a, b, 120s));
  ASSERT_IN(t, t.run_until_over({later}, 60s));
  EXPECT_IN(t, later->is_done());
}

TEST(Scenario, RelayOnlyMeansRelayOnly) {
  Tailnet t(kSeed);
  NodeHost& a = t.add_node({.name = "a", .relay_only = true}, t.add_public_site("one"));
  NodeHost& b = t.add_node({.name = "b"}, t.add_public_site("two"));
  ASSERT_IN(t, t.run_until_running(5s));
  t.run_for(3s);
  auto one = a.transfer(b, 100'000, 100'000);
  auto two = b.transfer(a, 100'000, 100'000);
  ASSERT_IN(t, t.run_until_over({one, two}, 20s));
  EXPECT_IN(t, one->is_done());
  EXPECT_IN(t, two->is_done());
  t.run_for(30s);
  EXPECT_FALSE(a.is_direct(b));
  EXPECT_FALSE(b.is_direct(a));
}

}  // namespace porthole::scenario
