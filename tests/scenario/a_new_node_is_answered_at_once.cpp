#include <set>

#include "scenario.h"

namespace porthole::scenario {

// The coordinator tells peers of a new node when it has reported its home relay. That must not be later than the first question
// that the node sends through that relay, or it waits until it is repeated.
TEST(Scenario, ANewNodeIsAnsweredAtOnce) {
  for (std::uint64_t seed = 1; seed <= 5; ++seed) {
    SCOPED_TRACE(seed);
    Tailnet t(seed);
    NodeHost& server = t.add_node({.name = "server", .relay_only = true}, t.add_public_site("one", link_of(100us)));
    ASSERT_IN(t, t.run_until_running(3s));
    t.run_for(2s);
    std::vector<NodeHost*> fresh;
    for (int i = 0; i < 12; ++i) {
      std::string name = "fresh" + std::to_string(i);
      fresh.push_back(&t.add_node({.name = name, .relay_only = true}, t.add_public_site(name, link_of(100us))));
      t.run_for(Duration(std::chrono::milliseconds(1 + i % 3)));
    }
    std::vector<TransferRef> transfers;
    std::set<NodeHost*> dialled;
    ASSERT_IN(t, t.run_until([&] {
      for (NodeHost* f : fresh)
        if (f->is_running() && dialled.insert(f).second) transfers.push_back(f->transfer(server, 1000, 1000));
      return dialled.size() == fresh.size();
    }, 5s));
    ASSERT_IN(t, t.run_until_over(transfers, 5s));
    for (const auto& transfer : transfers) {
      EXPECT_IN(t, transfer->is_done());
      EXPECT_LT(transfer->until_first_byte(), 50ms);   // a handshake is repeated after 80 ms
    }
  }
}

}  // namespace porthole::scenario
