#include "scenario.h"

namespace porthole::scenario {

TEST(Scenario, TwoNodesJoinAndExchangeBytes) {
  Tailnet t(kSeed);
  NodeHost& a = t.add_node({.name = "a"}, t.add_public_site("one"));
  NodeHost& b = t.add_node({.name = "b"}, t.add_public_site("two"));
  ASSERT_IN(t, t.run_until_running(3s));
  EXPECT_EQ(a.fqdn(), "a.family.porthole.internal");
  EXPECT_EQ(a.addresses().size(), 2u);
  auto transfer = a.transfer(b, 1, 1);
  ASSERT_IN(t, t.run_until_over({transfer}, 5s));
  EXPECT_IN(t, transfer->is_done());
  // Both joined at the same moment: the home relay of each follows with its second update, a second after the first.
  EXPECT_LT(transfer->until_first_byte(), 1500ms) << t.report();
}

TEST(Scenario, TheSameSeedGivesTheSameWorld) {
  auto digest = [](std::uint64_t seed) {
    Tailnet t(seed);
    LinkConfig link;
    link.loss = 0.05;
    link.jitter = 3ms;
    NodeHost& a = t.add_node({.name = "a"}, t.add_home("one", easy_nat(), link));
    NodeHost& b = t.add_node({.name = "b"}, t.add_home("two", hard_nat(), link));
    NodeHost& c = t.add_node({.name = "c"}, t.add_public_site("three", link));
    EXPECT_IN(t, t.run_until_running(10s));
    auto one = a.transfer(b, 100'000, 100'000);
    auto two = c.transfer(a, 0, 100'000);
    EXPECT_IN(t, t.run_until_over({one, two}, 30s));
    t.run_for(30s);
    return t.world.trace().digest();
  };
  std::uint64_t first = digest(11);
  EXPECT_EQ(first, digest(11));
  EXPECT_NE(first, digest(12));
}

}  // namespace porthole::scenario
