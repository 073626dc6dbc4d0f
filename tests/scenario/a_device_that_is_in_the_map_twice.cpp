#include "scenario.h"
#include "sim/foreign_coordinator.h"

namespace porthole::scenario {

// A coordinator that registers one machine for two of its users may name both with the same node key. Who was told last has
// the session; taking either away, in any order, leaves a node that works.
TEST(Scenario, ADeviceThatIsInTheMapTwice) {
  for (bool twin_first : {true, false}) {
    SCOPED_TRACE(twin_first);
    Tailnet t(kSeed);
    Site& site = t.add_public_site("abroad");
    Host& host = t.network.add_host("foreign.test", site, t.next_addresses(site));
    ForeignCoordinator foreign(t.network, t.streams, host, "foreign.test", t.relay_map());
    NodeHost& left = t.add_node({.name = "left", .control_url = foreign.url()}, t.add_home("one"), false);
    NodeHost& right = t.add_node({.name = "right", .control_url = foreign.url()}, t.add_home("two"), false);
    t.server().stop_coordinator();
    for (NodeHost* n : {&left, &right}) n->start();
    ASSERT_IN(t, t.run_until([&] { return left.is_running() && right.is_running() && left.sees(right) && right.sees(left); }, 5s));
    auto reaches = [&](const char* what) {
      auto call = left.transfer(right, 1000, 1000, 5s);
      t.run_until_over({call}, 6s);
      EXPECT_IN(t, call->is_done()) << what;
    };
    reaches("before");

    ts2021::Node twin = foreign.node(right.key());
    twin.id += 1000;
    twin.stable_id += "-twin";
    twin.name = "twin." + twin.name;
    auto tell = [&](auto change) {
      ts2021::MapResponse news;
      change(news);
      foreign.tell(left.key(), news);
      t.run_for(1s);
    };
    tell([&](auto& news) { news.peers_changed = {twin}; });
    reaches("with a twin");
    const ts2021::NodeId first = twin_first ? twin.id : foreign.node(right.key()).id;
    const ts2021::NodeId second = twin_first ? foreign.node(right.key()).id : twin.id;
    tell([&](auto& news) { news.peers_removed = {first}; });
    tell([&](auto& news) { news.peers_removed = {second}; });
    tell([&](auto& news) { news.peers_changed = {foreign.node(right.key())}; });
    EXPECT_IN(t, left.is_running());
    reaches("after all of it");
  }
}

}  // namespace porthole::scenario
