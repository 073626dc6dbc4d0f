#include "scenario.h"

namespace porthole::scenario {

TEST(Scenario, SimultaneousHandshakesAgree) {
  // Both sides start at the same instant, over lines of the same length: each answers an initiation while its own is on
  // the way. Again after every session has become too old.
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    Tailnet t(seed);
    LinkConfig link = link_of(25ms);
    if (seed % 2 == 0) link.loss = 0.03;
    NodeHost& a = t.add_node({.name = "a"}, t.add_public_site("one", link));
    NodeHost& b = t.add_node({.name = "b"}, t.add_public_site("two", link));
    ASSERT_IN(t, t.run_until_running(30s));
    t.run_for(3s);
    for (int round = 0; round < 3; ++round) {
      auto there = a.transfer(b, 20'000, 20'000);
      auto back = b.transfer(a, 20'000, 20'000);
      ASSERT_IN(t, t.run_until_over({there, back}, 30s));
      EXPECT_IN(t, there->is_done());
      EXPECT_IN(t, back->is_done());
      if (link.loss == 0) {
        EXPECT_LT(there->until_first_byte(), 1s) << t.report();
        EXPECT_LT(back->until_first_byte(), 1s) << t.report();
      }
      t.run_for(200s);
    }
  }
}

}  // namespace porthole::scenario
