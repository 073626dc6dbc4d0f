#include "scenario.h"

namespace porthole::scenario {

// Who only receives has nothing to resend, so nothing of its own would ever meet the peer's new life.
TEST(Scenario, AReceiverHearsOfARestartedSender) {
  for (Duration away : {Duration(0s), Duration(1s), Duration(30s)}) {
    for (bool coordinator : {true, false}) {
      SCOPED_TRACE(away.count() / 1'000'000'000);
      SCOPED_TRACE(coordinator);
      Tailnet t(kSeed);
      LinkConfig link = link_of(10ms);
      link.rate = 1'000'000;
      NodeHost& a = t.add_node({.name = "a"}, t.add_home("one", easy_nat(), link));
      NodeHost& b = t.add_node({.name = "b"}, t.add_home("two", easy_nat(), link));
      ASSERT_IN(t, t.run_until_running(5s));
      t.run_for(2s);
      auto download = a.transfer(b, 0, 1'000'000'000);
      ASSERT_IN(t, t.run_until([&] { return download->down_received > 1'000'000; }, 20s));
      if (!coordinator) t.server().stop_coordinator();   // nobody tells of the restart
      b.kill();
      t.run_for(away);
      b.start();
      ASSERT_IN(t, t.run_until([&] { return b.is_running(); }, 10s));
      ASSERT_FALSE(download->is_over());
      EXPECT_IN(t, t.run_until_over({download}, 5s));
    }
  }
}

}  // namespace porthole::scenario
