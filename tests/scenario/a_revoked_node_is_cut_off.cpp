#include "scenario.h"

namespace porthole::scenario {

TEST(Scenario, ARevokedNodeIsCutOff) {
  for (bool relayed : {false, true}) {
    SCOPED_TRACE(relayed);
    Tailnet t(kSeed);
    LinkConfig link = link_of(10ms);
    link.rate = 100'000;
    Site& theirs = t.add_home("theirs", easy_nat(), link);
    theirs.set_udp_blocked(relayed);
    NodeHost& good = t.add_node({.name = "good"}, t.add_home("ours", easy_nat(), link));
    NodeHost& other = t.add_node({.name = "other"}, t.add_home("aunt", easy_nat(), link));
    NodeHost& bad = t.add_node({.name = "bad"}, theirs);
    ASSERT_IN(t, t.run_until_running(10s));
    t.run_for(2s);
    auto to_bad = good.transfer(bad, 5'000'000, 0);
    auto from_bad = bad.transfer(good, 5'000'000, 0);
    auto unaffected = good.transfer(other, 500'000, 500'000);
    t.run_for(3s);
    ASSERT_IN(t, to_bad->up_received > 0 && from_bad->up_received > 0);

    NodePublic bad_key = bad.key();
    ASSERT_TRUE(t.revoke("family", "bad").ok());
    ASSERT_IN(t, t.run_until([&] { return !good.sees(bad) && !other.sees(bad); }, 5s));
    // Streams end at once and with an error, at both ends.
    EXPECT_IN(t, t.run_until_over({to_bad, from_bad}, 5s));
    EXPECT_EQ(to_bad->state, Transfer::State::kFailed);
    EXPECT_EQ(from_bad->state, Transfer::State::kFailed);
    EXPECT_FALSE(t.server().relay()->is_connected(bad_key));

    // Nothing of it arrives any more, whatever it sends to whatever it remembers.
    std::uint64_t received = from_bad->up_received;
    t.run_for(30s);
    EXPECT_EQ(from_bad->up_received, received);
    EXPECT_NE(bad.state(), node::NodeState::kRunning) << t.report();

    // Its key is spent and its state is worth nothing.
    bad.restart();
    t.run_for(20s);
    EXPECT_FALSE(bad.is_running()) << t.report();
    EXPECT_FALSE(good.sees(bad));
    ASSERT_IN(t, t.run_until_over({unaffected}, 60s));
    EXPECT_IN(t, unaffected->is_done());

    // A new key lets the machine back in.
    bad.kill();
    bad.wipe();
    bad.set_auth_key(t.new_key("family", "bad"));
    bad.start();
    ASSERT_IN(t, t.run_until_running(10s));
    t.run_for(2s);
    auto again = bad.transfer(good, 1000, 1000);
    ASSERT_IN(t, t.run_until_over({again}, 10s));
    EXPECT_IN(t, again->is_done());
  }
}

}  // namespace porthole::scenario
