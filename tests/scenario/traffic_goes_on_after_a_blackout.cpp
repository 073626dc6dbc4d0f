#include "scenario.h"

namespace porthole::scenario {

TEST(Scenario, TrafficGoesOnAfterABlackout) {
  for (Duration blackout : {Duration(3s), Duration(20s), Duration(60s)}) {
    SCOPED_TRACE(blackout.count() / 1'000'000'000);
    Tailnet t(kSeed);
    LinkConfig link = link_of(10ms);
    link.rate = 200'000;
    Site& home = t.add_home("one", easy_nat(), link);
    NodeHost& a = t.add_node({.name = "a"}, home);
    NodeHost& b = t.add_node({.name = "b"}, t.add_home("two", easy_nat(), link));
    ASSERT_IN(t, t.run_until_running(5s));
    t.run_for(2s);
    auto transfer = a.transfer(b, 3'000'000, 0);
    t.run_for(5s);
    ASSERT_FALSE(transfer->is_over());
    home.set_up(false);
    t.run_for(blackout);
    home.set_up(true);
    std::uint64_t before = transfer->up_received;
    // WireGuard tries a handshake every 5 s; its answer lets TCP resend at once, not when a timer that backed off says so.
    EXPECT_IN(t, t.run_until([&] { return transfer->up_received > before; }, 10s));
    ASSERT_IN(t, t.run_until_over({transfer}, 60s));
    EXPECT_IN(t, transfer->is_done());
    EXPECT_IN(t, t.run_until_direct(a, b, 60s));
    ASSERT_IN(t, t.run_until_running(60s));
    auto fresh = b.transfer(a, 1, 1);
    ASSERT_IN(t, t.run_until_over({fresh}, 10s));
    EXPECT_IN(t, fresh->is_done());
  }
}

}  // namespace porthole::scenario
