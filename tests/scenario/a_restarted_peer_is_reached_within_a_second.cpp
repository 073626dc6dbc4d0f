#include "scenario.h"

namespace porthole::scenario {

TEST(Scenario, ARestartedPeerIsReachedWithinASecond) {
  Tailnet t(kSeed);
  NodeHost& a = t.add_node({.name = "a"}, t.add_home("one"));
  NodeHost& b = t.add_node({.name = "b"}, t.add_home("two"));
  ASSERT_IN(t, t.run_until_running(3s));
  t.run_for(2s);
  auto before = a.transfer(b, 50'000, 50'000);
  ASSERT_IN(t, t.run_until_over({before}, 10s));
  ASSERT_IN(t, t.run_until_direct(a, b, 10s));

  for (bool same_port : {true, false}) {
    SCOPED_TRACE(same_port);
    NodePublic key = b.key();
    b.restart();
    if (!same_port) b.change_udp_port();
    // What runs into the restart is not lost either: the peer comes back while the app still waits.
    auto during = a.transfer(b, 1, 1);
    ASSERT_IN(t, t.run_until([&] { return b.is_running(); }, 3s));
    EXPECT_EQ(b.key(), key);
    auto there = a.transfer(b, 1, 1);
    auto back = b.transfer(a, 1, 1);
    ASSERT_IN(t, t.run_until_over({during, there, back}, 10s));
    for (const auto& transfer : {during, there, back}) EXPECT_IN(t, transfer->is_done());
    EXPECT_LT(there->until_first_byte(), 1s) << t.report();
    EXPECT_LT(back->until_first_byte(), 1s) << t.report();
    // Begun while the peer was away: the restart itself counts.
    EXPECT_LT(during->until_first_byte(), 2s) << t.report();
    EXPECT_IN(t, t.run_until_direct(a, b, 10s));
    t.run_for(5s);
  }
}

TEST(Scenario, ANodeOpensConnectionsToARestartedPeerWithoutTheCoordinator) {
  // The coordinator is gone, so nobody announces the new disco key; the map of the survivors stays valid.
  Tailnet t(kSeed);
  NodeHost& a = t.add_node({.name = "a"}, t.add_public_site("one"));
  NodeHost& b = t.add_node({.name = "b"}, t.add_public_site("two"));
  ASSERT_IN(t, t.run_until_running(3s));
  t.run_for(2s);
  auto before = a.transfer(b, 1000, 1000);
  ASSERT_IN(t, t.run_until_over({before}, 10s));
  t.server().stop_coordinator();
  t.run_for(200s);  // long enough for the WireGuard session to be too old
  auto after = a.transfer(b, 50'000, 50'000);
  ASSERT_IN(t, t.run_until_over({after}, 10s));
  EXPECT_IN(t, after->is_done());
  EXPECT_LT(after->until_first_byte(), 1s) << t.report();
}

TEST(Scenario, TheDiscoKeyStaysWithTheUdpPort) {
  Tailnet t(kSeed);
  NodeHost& a = t.add_node({.name = "a"}, t.add_home("one"));
  ASSERT_IN(t, t.run_until_running(3s));
  const DiscoPublic first = a.engine().disco_key().public_key();
  const std::uint16_t port = a.udp_port();
  a.restart();
  ASSERT_IN(t, t.run_until_running(3s));
  EXPECT_EQ(a.udp_port(), port);
  EXPECT_EQ(a.engine().disco_key().public_key(), first);
  a.stop();
  a.host().bind(port, [](const Endpoint&, const Endpoint&, MutBytes) {});   // somebody else has it now
  a.start();
  ASSERT_IN(t, t.run_until_running(3s));
  EXPECT_NE(a.udp_port(), port);
  const DiscoPublic second = a.engine().disco_key().public_key();
  EXPECT_NE(second, first);
  a.kill();   // nothing is saved at the end
  a.start();
  EXPECT_EQ(a.engine().disco_key().public_key(), second);
}

TEST(Scenario, APeerThatGoesOnWithTheSessionOfOurLastRunHasANewOneAtOnce) {
  // Nobody tells it of the restart, and nothing changed but the keys that are lost: WireGuard alone would take 15 s.
  Tailnet t(kSeed);
  NodeHost& a = t.add_node({.name = "a"}, t.add_public_site("one"));
  NodeHost& b = t.add_node({.name = "b"}, t.add_public_site("two"));
  ASSERT_IN(t, t.run_until_running(3s));
  t.run_for(2s);
  t.server().stop_coordinator();
  for (bool direct : {true, false}) {
    SCOPED_TRACE(direct);
    auto before = a.transfer(b, 1000, 1000);
    ASSERT_IN(t, t.run_until_over({before}, 10s));
    t.run_for(direct ? 1s : 60s);   // then the way is forgotten, the session is not
    const std::uint64_t handshakes = a.engine().tunnel_counters().initiations_accepted;
    b.restart();
    auto after = a.transfer(b, 1000, 1000);
    ASSERT_IN(t, t.run_until_over({after}, 10s));
    EXPECT_IN(t, after->is_done());
    EXPECT_LT(after->until_first_byte(), 400ms) << t.report();
    EXPECT_GT(a.engine().tunnel_counters().initiations_accepted, handshakes);
  }
}

TEST(Scenario, ANodeThatWasHereBeforeStartsWithoutTheCoordinator) {
  Tailnet t(kSeed);
  NodeHost& a = t.add_node({.name = "a"}, t.add_home("one"));
  NodeHost& b = t.add_node({.name = "b"}, t.add_home("two"));
  ASSERT_IN(t, t.run_until_running(3s));
  t.run_for(2s);
  a.stop();
  b.kill();
  t.restart_coordinator(60s);
  t.run_for(5s);
  a.start();
  b.start();
  auto transfer = a.transfer(b, 50'000, 50'000);
  ASSERT_IN(t, t.run_until_over({transfer}, 10s));
  EXPECT_IN(t, transfer->is_done());
  EXPECT_LT(transfer->until_first_byte(), 1s) << t.report();
  // And hears of changes as soon as there is a coordinator again.
  t.run_for(60s);
  NodeHost& c = t.add_node({.name = "c"}, t.add_home("three"));
  ASSERT_IN(t, t.run_until([&] { return a.sees(c) && b.sees(c); }, 40s));
}

}  // namespace porthole::scenario
