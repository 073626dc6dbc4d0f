#include "scenario.h"

namespace porthole::scenario {

// Three relays, the first the nearest by far; nobody has UDP, so that only HTTP can tell.
struct ThreeRelays {
  Tailnet t{kSeed, 3};
  NodeHost* a = nullptr;
  NodeHost* b = nullptr;

  ThreeRelays() {
    LinkConfig link = link_of(10ms);
    link.rate = 100'000;
    for (const char* name : {"one", "two"}) {
      Site& site = t.add_home(name, easy_nat(), link);
      site.set_udp_blocked(true);
      (a ? b : a) = &t.add_node({.name = name}, site);
    }
  }
  bool run_until_home(int region, Duration limit) {
    return t.run_until([&] { return a->engine().home_region() == region && b->engine().home_region() == region; }, limit);
  }
};

TEST(Scenario, WithoutUdpHomeIsTheRelayNearestByHttp) {
  ThreeRelays w;
  ASSERT_IN(w.t, w.t.run_until_running(10s));
  EXPECT_IN(w.t, w.run_until_home(1, 1s));
  for (NodeHost* node : {w.a, w.b}) {
    const auto latency = node->engine().net_info().relay_latency;
    ASSERT_TRUE(latency.contains("1-v4") && latency.contains("2-v4") && latency.contains("3-v4")) << w.t.report();
    EXPECT_LT(latency.at("1-v4"), latency.at("2-v4"));
    EXPECT_LT(latency.at("2-v4"), latency.at("3-v4"));
    EXPECT_EQ(node->engine().net_info().working_udp, false);
  }
}

TEST(Scenario, AHomeRelayThatIsGoneIsLeftAndTakenAgain) {
  ThreeRelays w;
  ASSERT_IN(w.t, w.t.run_until_running(10s));
  ASSERT_IN(w.t, w.run_until_home(1, 5s));
  auto transfer = w.a->transfer(*w.b, 8'000'000, 0);
  w.t.run_for(5s);
  ASSERT_FALSE(transfer->is_over());
  transfer->longest_pause = {};
  w.t.server().stop_relay();
  ASSERT_IN(w.t, w.run_until_home(2, 30s));
  w.t.run_for(10s);
  ASSERT_IN(w.t, !transfer->is_over());
  EXPECT_LT(transfer->longest_pause, 25s) << w.t.report();
  transfer->longest_pause = {};
  w.t.server().start_relay();
  ASSERT_IN(w.t, w.run_until_home(1, 60s));
  ASSERT_IN(w.t, w.t.run_until_over({transfer}, 120s));
  EXPECT_IN(w.t, transfer->is_done());
  EXPECT_LT(transfer->longest_pause, 2s) << w.t.report();
}

}  // namespace porthole::scenario
