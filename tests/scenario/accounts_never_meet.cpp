#include "scenario.h"

namespace porthole::scenario {

TEST(Scenario, AccountsNeverMeet) {
  Tailnet t(kSeed);
  Site& house = t.add_home("house");
  NodeHost& a1 = t.add_node({.name = "a1", .account = "alpha"}, house);
  NodeHost& a2 = t.add_node({.name = "a2", .account = "alpha"}, t.add_public_site("one"));
  NodeHost& b1 = t.add_node({.name = "b1", .account = "beta"}, house);
  NodeHost& b2 = t.add_node({.name = "b2", .account = "beta"}, t.add_public_site("two"));
  ASSERT_IN(t, t.run_until_running(5s));
  t.run_for(3s);
  auto within_alpha = a1.transfer(a2, 100'000, 100'000);
  auto within_beta = b1.transfer(b2, 100'000, 100'000);
  // They know each other's addresses, share a home network and a relay, and it does not help.
  std::vector<TransferRef> across;
  for (const IpAddress& address : b1.addresses()) across.push_back(a1.transfer_to(address, 1, 1, 10s));
  across.push_back(a1.transfer(b2, 1, 1, 10s));
  across.push_back(b2.transfer(a2, 1, 1, 10s));
  ASSERT_IN(t, t.run_until_over({within_alpha, within_beta}, 20s));
  EXPECT_IN(t, within_alpha->is_done());
  EXPECT_IN(t, within_beta->is_done());
  ASSERT_IN(t, t.run_until_over(across, 30s));
  for (const auto& transfer : across) EXPECT_EQ(transfer->state, Transfer::State::kFailed);
  EXPECT_EQ(t.ledger.done(), 2u);
  for (NodeHost* a : {&a1, &a2})
    for (NodeHost* b : {&b1, &b2}) EXPECT_FALSE(a->sees(*b) || b->sees(*a));
  for (NodeHost* n : {&a1, &a2, &b1, &b2}) EXPECT_EQ(n->engine().netmap().peers().size(), 1u);
}

}  // namespace porthole::scenario
