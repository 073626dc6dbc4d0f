#include "scenario.h"

namespace porthole::scenario {

TEST(Scenario, ADirectPathReplacesTheRelay) {
  Tailnet t(kSeed);
  LinkConfig link = link_of(10ms);
  link.rate = 500'000;
  NodeHost& a = t.add_node({.name = "a"}, t.add_home("one", easy_nat(), link));
  NodeHost& b = t.add_node({.name = "b"}, t.add_home("two", easy_nat(), link));
  ASSERT_IN(t, t.run_until_running(3s));
  t.run_for(2s);  // each knows the other's home relay
  ASSERT_FALSE(a.is_direct(b));

  // Longer than the change of paths takes: it happens under the transfer's feet.
  auto transfer = a.transfer(b, 2'000'000, 100'000);
  ASSERT_IN(t, t.run_until([&] { return transfer->first_byte.has_value(); }, 1s));
  EXPECT_IN(t, t.run_until_direct(a, b, 2s));
  EXPECT_FALSE(transfer->is_over());
  ASSERT_IN(t, t.run_until_over({transfer}, 20s));
  EXPECT_IN(t, transfer->is_done());
  EXPECT_LT(transfer->longest_pause, 1s) << t.report();

  // From now on the relay has nothing to do.
  std::uint64_t relayed = t.server().relay()->counters().packets_in;
  auto more = b.transfer(a, 100'000, 0);
  ASSERT_IN(t, t.run_until_over({more}, 10s));
  EXPECT_IN(t, more->is_done());
  EXPECT_LE(t.server().relay()->counters().packets_in - relayed, 4u);
}

}  // namespace porthole::scenario
