#include "scenario.h"

namespace porthole::scenario {

TEST(Scenario, AnEphemeralNodeVanishes) {
  Tailnet t(kSeed);
  NodeHost& server = t.add_node({.name = "server"}, t.add_home("home"));
  NodeHost& guest = t.add_node({.name = "guest", .ephemeral = true}, t.add_public_site("away"));
  NodeHost& crasher = t.add_node({.name = "crasher", .ephemeral = true}, t.add_public_site("elsewhere"));
  ASSERT_IN(t, t.run_until_running(5s));
  t.run_for(2s);
  auto transfer = guest.transfer(server, 1000, 1000);
  ASSERT_IN(t, t.run_until_over({transfer}, 10s));
  EXPECT_IN(t, transfer->is_done());

  // One says goodbye.
  guest.logout();
  EXPECT_IN(t, t.run_until([&] { return !server.sees(guest); }, 5s));
  // One loses power: the coordinator gives it the time of a reboot.
  crasher.power_off();
  t.run_for(30s);
  EXPECT_TRUE(server.sees(crasher));
  EXPECT_IN(t, t.run_until([&] { return !server.sees(crasher); }, 300s));
  auto left = t.server().directory().devices_list(t.server().clock(), "family");
  ASSERT_TRUE(left.ok());
  std::size_t nodes = 0;
  for (const auto& d : *left) nodes += d.node_id != 0 ? 1 : 0;
  EXPECT_EQ(nodes, 1u);
}

}  // namespace porthole::scenario
