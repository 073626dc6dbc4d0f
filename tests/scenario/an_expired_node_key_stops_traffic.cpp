#include "scenario.h"

namespace porthole::scenario {

TEST(Scenario, AnExpiredNodeKeyStopsTraffic) {
  Tailnet t(kSeed);
  LinkConfig link = link_of(10ms);
  link.rate = 50'000;
  NodeHost& a = t.add_node({.name = "a"}, t.add_home("one", easy_nat(), link));
  NodeHost& b = t.add_node({.name = "b"}, t.add_home("two", easy_nat(), link));
  ASSERT_IN(t, t.run_until_running(5s));
  t.run_for(2s);

  // An operator gives b's key half a minute, in the coordinator's store.
  t.server().stop_coordinator();
  auto records = t.server().store().load();
  ASSERT_TRUE(records.ok());
  coordinator::StoreChange change;
  for (coordinator::NodeRecord node : records->nodes) {
    if (node.label != "b") continue;
    node.key_expiry = t.world.wall() + 30s;
    change.nodes.push_back(node);
  }
  ASSERT_EQ(change.nodes.size(), 1u);
  ASSERT_TRUE(t.server().store().commit(change).ok());
  t.server().start_coordinator(t.relay_map());

  auto transfer = a.transfer(b, 5'000'000, 0);
  t.run_for(25s);
  ASSERT_IN(t, !transfer->is_over() && transfer->up_received > 0);
  NodePublic old_key = b.key();
  EXPECT_IN(t, t.run_until_over({transfer}, 10s));
  EXPECT_EQ(transfer->state, Transfer::State::kFailed);
  EXPECT_IN(t, t.run_until([&] { return !b.is_running(); }, 5s));
  std::uint64_t received = transfer->up_received;
  t.run_for(20s);
  EXPECT_EQ(transfer->up_received, received);
  EXPECT_FALSE(t.server().relay()->is_connected(old_key));

  // With a new pre-auth key it is the same node again, under another node key.
  b.kill();
  b.set_auth_key(t.new_key("family", "b"));
  b.start();
  ASSERT_IN(t, t.run_until_running(20s));
  t.run_for(2s);
  auto again = a.transfer(b, 1000, 1000);
  ASSERT_IN(t, t.run_until_over({again}, 10s));
  EXPECT_IN(t, again->is_done());
  EXPECT_NE(b.key(), old_key);
}

}  // namespace porthole::scenario
