// Relay servers and the project's relay clients together, over streams that cut, stall and slice.
#include <gtest/gtest.h>

#include "support/relay_world.h"

namespace porthole::relay {
namespace {

using test::RelayWorld;

template <typename E>
int count(const std::vector<derp::DerpEvent>& events) {
  int n = 0;
  for (const auto& e : events) n += std::holds_alternative<E>(e);
  return n;
}

struct TwoNodes {
  RelayWorld w;
  RelayWorld::Server& server = w.add_server("relay1", 1);
  RelayWorld::Node& a = w.add_node(10);
  RelayWorld::Node& b = w.add_node(11);
  TwoNodes() {
    for (auto* n : {&a, &b}) {
      n->client.set_map(w.now, RelayWorld::map_of({{1, {"relay1"}}, {2, {"relay2"}}}));
      n->client.set_home(w.now, 1);
    }
    w.pump();
  }
};

TEST(DerpWorld, DeliveryBothWaysInAnySlice) {
  for (std::size_t slice : {1u, 7u, 65536u}) {
    TwoNodes t;
    t.w.slice = slice;
    EXPECT_EQ(count<derp::Connected>(t.a.take_events()), 1);
    SeededRng rng(4);
    std::vector<ByteVector> sent;
    for (int i = 0; i < 100; ++i) {
      ByteVector p(rng.below(i % 10 == 0 ? 65537 : 1500));
      rng.fill(p);
      EXPECT_EQ(t.a.client.send_to_peer(t.w.now, t.b.pub(), 1, p), derp::SendResult::kQueued);
      sent.push_back(p);
      t.w.pump();
    }
    ASSERT_EQ(t.b.received.size(), sent.size());
    for (std::size_t i = 0; i < sent.size(); ++i) {
      EXPECT_EQ(t.b.received[i].data, sent[i]);
      EXPECT_EQ(t.b.received[i].source, t.a.pub());
    }
    t.b.client.send_to_peer(t.w.now, t.a.pub(), 1, as_bytes("answer"));
    t.w.pump();
    ASSERT_EQ(t.a.received.size(), 1u);
    EXPECT_EQ(as_text(t.a.received[0].data), "answer");
    EXPECT_EQ(t.server.machine.gauges().home_connections, 2u);
  }
}

TEST(DerpWorld, ABurstOfPacketsPassesWhole) {
  TwoNodes t;
  for (int i = 0; i < 98; ++i) t.a.client.send(t.w.now, 1, t.b.pub(), ByteVector(1312));
  t.w.pump();
  EXPECT_EQ(t.b.received.size(), 98u);
  EXPECT_EQ(t.server.machine.counters().dropped_queue_full, 0u);
}

TEST(DerpWorld, AnswersGoWhereThePeerWasHeard) {
  TwoNodes t;
  t.w.add_server("relay2", 2);
  // b's home moves to 2 without a knowing; b dials region 1 to reach a.
  t.b.client.set_home(t.w.now, 2);
  t.w.pump();
  EXPECT_TRUE(t.b.client.is_open(2));
  t.w.run(100s);
  EXPECT_FALSE(t.b.client.is_open(1));  // idle and not home
  t.b.client.send_to_peer(t.w.now, t.a.pub(), 1, as_bytes("hello"));
  t.w.pump();
  ASSERT_EQ(t.a.received.size(), 1u);
  // Home unknown: the route of the open connection. Home known but not open: the route as well.
  EXPECT_EQ(t.a.client.send_to_peer(t.w.now, t.b.pub(), 0, as_bytes("1")), derp::SendResult::kQueued);
  EXPECT_EQ(t.a.client.send_to_peer(t.w.now, t.b.pub(), 2, as_bytes("2")), derp::SendResult::kQueued);
  t.w.pump();
  ASSERT_EQ(t.b.received.size(), 2u);
  EXPECT_EQ(t.b.received[1].region, 1);
  EXPECT_FALSE(t.a.client.is_open(2));
  // b's connection to 1 falls idle: PeerGone takes the route away.
  t.a.take_events();
  t.w.run(100s);
  EXPECT_EQ(count<derp::PeerGone>(t.a.take_events()), 1);
  EXPECT_EQ(t.a.client.send_to_peer(t.w.now, t.b.pub(), 0, as_bytes("3")), derp::SendResult::kNoRoute);
  EXPECT_EQ(t.a.client.send_to_peer(t.w.now, t.b.pub(), 2, as_bytes("4")), derp::SendResult::kQueued);
  t.w.pump();
  EXPECT_TRUE(t.a.client.is_open(2));
  ASSERT_EQ(t.b.received.size(), 3u);
  EXPECT_EQ(t.b.received[2].region, 2);
}

TEST(DerpWorld, HomeStaysOthersCloseWhenIdle) {
  TwoNodes t;
  t.w.add_server("relay2", 2);
  t.a.client.send(t.w.now, 2, t.b.pub(), as_bytes("x"));
  t.w.pump();
  EXPECT_TRUE(t.a.client.is_open(2));
  for (int i = 0; i < 5; ++i) {
    t.w.run(50s);
    t.a.client.send(t.w.now, 2, t.b.pub(), as_bytes("x"));  // a write keeps it
  }
  EXPECT_TRUE(t.a.client.is_open(2));
  t.w.run(80s);
  EXPECT_FALSE(t.a.client.is_open(2));
  EXPECT_EQ(t.a.client.status(2).state, derp::RegionState::kClosed);
  t.w.run(3h);
  EXPECT_TRUE(t.a.client.is_open(1));
  EXPECT_EQ(t.a.client.counters().connections_failed, 0u);
}

TEST(DerpWorld, ReconnectAfterACutWithBackoff) {
  TwoNodes t;
  t.a.take_events();
  t.w.cut(t.w.link_of(t.a, "relay1"));
  t.a.client.send(t.w.now, 1, t.b.pub(), as_bytes("kept"));
  EXPECT_FALSE(t.a.client.is_open(1));
  t.w.run(100ms);
  auto events = t.a.take_events();
  EXPECT_EQ(count<derp::Disconnected>(events), 1);
  EXPECT_EQ(count<derp::Connected>(events), 1);
  ASSERT_EQ(t.b.received.size(), 1u);
  EXPECT_EQ(as_text(t.b.received[0].data), "kept");
}

TEST(DerpWorld, UnreachableRelayIsTriedEverLessOften) {
  RelayWorld w;
  auto& a = w.add_node(10);
  a.client.set_map(w.now, RelayWorld::map_of({{1, {"down1", "down2"}}}));
  a.client.set_home(w.now, 1);
  w.run(1s);
  std::size_t first = w.opened.size();
  EXPECT_GT(first, 10u);
  w.run(60s);
  std::size_t before = w.opened.size();
  w.run(60s);
  EXPECT_LE(w.opened.size() - before, 2u * 25);
  EXPECT_GE(w.opened.size() - before, 2u * 7);
  // Its last error is the first node's, and says where.
  EXPECT_NE(a.client.status(1).last_error->message.find("node 1a: connection refused"), std::string::npos);
  EXPECT_NE(a.client.status(1).last_error->message.find("relay r1"), std::string::npos);
}

TEST(DerpWorld, FailoverToTheNextNode) {
  for (const char* bad : {"down", "hang", "mute", "http"}) {
    RelayWorld w;
    auto& server = w.add_server("relay1", 1);
    auto& a = w.add_node(10);
    ts2021::RelayMap map = RelayWorld::map_of({{1, {bad, "relay1"}}});
    a.client.set_map(w.now, map);
    a.client.set_home(w.now, 1);
    w.run(7s);
    EXPECT_TRUE(a.client.is_open(1)) << bad;
    EXPECT_EQ(a.client.status(1).node, "1b");
    EXPECT_EQ(server.machine.gauges().keys, 1u);
    EXPECT_NE(w.link_of(a, "relay1")->request.find("Ideal-Node: 1a\r\n"), std::string::npos);
  }
}

TEST(DerpWorld, RefusedNodeKeepsTryingSlowly) {
  TwoNodes t;
  t.server.admission.refused = {t.a.pub()};
  t.server.machine.recheck(t.w.now);
  t.w.run(60s);
  EXPECT_FALSE(t.a.client.is_open(1));
  EXPECT_TRUE(t.b.client.is_open(1));
  EXPECT_NE(t.a.client.status(1).last_error->message.find("may not admit"), std::string::npos);
  std::size_t before = t.w.opened.size();
  t.w.run(60s);
  EXPECT_LE(t.w.opened.size() - before, 25u);
  t.server.admission.refused.clear();
  t.w.run(10s);
  EXPECT_TRUE(t.a.client.is_open(1));
}

TEST(DerpWorld, SlowReaderLosesOldPacketsNotTheSender) {
  TwoNodes t;
  t.w.link_of(t.b, "relay1")->client_reads = false;
  for (int i = 0; i < 400; ++i) {
    ByteVector p(1000);
    store_be(p.data(), static_cast<std::uint32_t>(i));
    t.a.client.send(t.w.now, 1, t.b.pub(), p);
    t.w.pump();
  }
  t.w.link_of(t.b, "relay1")->client_reads = true;
  t.w.pump();
  ASSERT_EQ(t.b.received.size(), kDataQueuePacketsMax);
  EXPECT_EQ(load_be<std::uint32_t>(t.b.received[0].data.data()), 400 - kDataQueuePacketsMax);
  EXPECT_TRUE(t.a.client.is_open(1));
  // Stuck for good: the server gives it up, and the client comes back.
  t.w.link_of(t.b, "relay1")->client_reads = false;
  t.a.client.send(t.w.now, 1, t.b.pub(), as_bytes("x"));
  t.w.run(3s);
  EXPECT_EQ(t.server.machine.counters().write_timeouts, 1u);
  EXPECT_TRUE(t.b.client.is_open(1));
}

TEST(DerpWorld, StuckRelayIsGivenUpByTheClient) {
  TwoNodes t;
  t.a.take_events();
  t.w.link_of(t.a, "relay1")->server_reads = false;
  t.a.client.send(t.w.now, 1, t.b.pub(), as_bytes("x"));
  t.w.run(9s);
  EXPECT_EQ(count<derp::Disconnected>(t.a.take_events()), 0);
  t.w.run(2s);
  EXPECT_EQ(count<derp::Disconnected>(t.a.take_events()), 1);
  EXPECT_TRUE(t.a.client.is_open(1));
}

TEST(DerpWorld, SilentRelayIsGivenUpAfterTwoKeepalives) {
  TwoNodes t;
  t.a.take_events();
  t.w.link_of(t.a, "relay1")->client_reads = false;
  // The server would drop a reader that takes nothing; make it lose the connection silently.
  t.server.machine.on_close(t.w.now, t.w.link_of(t.a, "relay1")->conn);
  t.w.run(119s);
  EXPECT_EQ(count<derp::Disconnected>(t.a.take_events()), 0);
  t.w.run(2s);
  auto events = t.a.take_events();
  EXPECT_EQ(count<derp::Disconnected>(events), 1);
  EXPECT_EQ(count<derp::Connected>(events), 1);
}

TEST(DerpWorld, MapChanges) {
  TwoNodes t;
  t.w.add_server("relay2", 2);
  t.a.client.send(t.w.now, 2, t.b.pub(), as_bytes("x"));
  t.w.pump();
  std::size_t opened = t.w.opened.size();
  auto map = RelayWorld::map_of({{1, {"relay1"}}, {2, {"relay2"}}});
  t.a.client.set_map(t.w.now, map);  // the same: nothing happens
  t.w.pump();
  EXPECT_EQ(t.w.opened.size(), opened);
  map.regions[1].region_name = "Lab";
  t.a.client.set_map(t.w.now, map);  // home redefined: closed and reopened
  t.w.pump();
  EXPECT_EQ(t.w.opened.size(), opened + 1);
  EXPECT_TRUE(t.a.client.is_open(1));
  EXPECT_TRUE(t.a.client.is_open(2));
  t.a.client.set_map(t.w.now, RelayWorld::map_of({{2, {"relay2"}}}));  // home gone
  t.w.pump();
  EXPECT_FALSE(t.a.client.is_open(1));
  t.a.client.set_map(t.w.now, map);
  t.w.pump();
  EXPECT_TRUE(t.a.client.is_open(1));
  t.a.client.set_map(t.w.now, {});
  t.w.pump();
  EXPECT_FALSE(t.a.client.is_open(1));
  EXPECT_FALSE(t.a.client.is_open(2));
  EXPECT_TRUE(t.a.client.next_timeout().is_never());
}

TEST(DerpWorld, HomeMoveIsNotedOnBothRelays) {
  TwoNodes t;
  auto& second = t.w.add_server("relay2", 2);
  t.w.run(10s);
  t.a.client.set_home(t.w.now, 2);
  t.w.pump();
  EXPECT_EQ(t.server.machine.gauges().home_connections, 1u);
  EXPECT_EQ(second.machine.gauges().home_connections, 1u);
  EXPECT_EQ(t.server.machine.counters().home_moves, 1u);
}

TEST(DerpWorld, NewKeyReconnectsUnderIt) {
  TwoNodes t;
  NodePublic old = t.a.pub();
  t.a.key = crypto::NodePrivate::generate(t.a.rng);
  t.a.client.set_key(t.w.now, t.a.key);
  t.w.pump();
  EXPECT_FALSE(t.server.machine.is_connected(old));
  EXPECT_TRUE(t.server.machine.is_connected(t.a.pub()));
  t.a.client.set_key(t.w.now, {});
  t.w.pump();
  EXPECT_FALSE(t.server.machine.is_connected(t.a.pub()));
  EXPECT_EQ(t.a.client.send(t.w.now, 1, t.b.pub(), {}), derp::SendResult::kNoKey);
}

TEST(DerpWorld, NetworkChangesReplaceOrProveConnections) {
  TwoNodes t;
  t.a.take_events();
  std::size_t opened = t.w.opened.size();
  IpAddress ours[] = {IpAddress::v4(10, 0, 0, 1)};
  t.a.client.network_changed(t.w.now, ours);
  t.w.run(5s);
  EXPECT_EQ(t.w.opened.size(), opened);  // answered its ping
  EXPECT_EQ(t.server.machine.counters().pings, 1u);
  IpAddress other[] = {IpAddress::v4(10, 9, 9, 9)};
  t.a.client.network_changed(t.w.now, other);
  t.w.pump();
  EXPECT_EQ(t.w.opened.size(), opened + 1);
  EXPECT_TRUE(t.a.client.is_open(1));
  // The address is the same, but nothing gets through any more.
  t.w.link_of(t.a, "relay1")->client_reads = false;
  t.server.machine.on_close(t.w.now, t.w.link_of(t.a, "relay1")->conn);
  t.a.client.network_changed(t.w.now, ours);
  t.w.run(4s);
  EXPECT_EQ(t.w.opened.size(), opened + 2);
  EXPECT_TRUE(t.a.client.is_open(1));
  t.a.client.network_changed(t.w.now, {});
  t.w.run(60s);
  EXPECT_FALSE(t.a.client.is_open(1));
  EXPECT_EQ(t.w.opened.size(), opened + 2);
  t.a.client.network_changed(t.w.now, ours);
  t.w.pump();
  EXPECT_TRUE(t.a.client.is_open(1));
}

TEST(DerpWorld, AnnouncedRestartIsWaitedForOnce) {
  TwoNodes t;
  t.server.machine.announce_restart(t.w.now, 2s, 30s);
  t.w.pump();
  EXPECT_EQ(count<derp::Restarting>(t.a.take_events()), 1);
  std::size_t opened = t.w.opened.size();
  t.w.cut(t.w.link_of(t.a, "relay1"));
  t.w.run(1900ms);
  EXPECT_EQ(t.w.opened.size(), opened);
  t.w.run(200ms);
  EXPECT_TRUE(t.a.client.is_open(1));
}

TEST(DerpWorld, LateCallsAboutReplacedStreamsAreIgnored) {
  TwoNodes t;
  StreamId old = t.w.link_of(t.a, "relay1")->stream;
  t.w.cut(t.w.link_of(t.a, "relay1"));
  t.w.run(1s);
  EXPECT_TRUE(t.a.client.is_open(1));
  t.a.client.stream_closed(t.w.now, old, nullptr);
  t.a.client.stream_failed(t.w.now, old, {});
  t.a.client.stream_opened(t.w.now, old, {});
  ByteVector junk(100, 0xff);
  EXPECT_TRUE(t.a.client.consume(t.w.now, old, junk).ok());
  EXPECT_EQ(t.a.client.produce(t.w.now, old, junk), 0u);
  EXPECT_TRUE(t.a.client.is_open(1));
}

TEST(DerpWorld, ManyOperationsNeverLeaveAConnectionBehind) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    RelayWorld w;
    SeededRng rng(seed);
    std::vector<RelayWorld::Server*> servers = {&w.add_server("relay1", 1), &w.add_server("relay2", 2)};
    for (std::uint64_t i = 0; i < 4; ++i) w.add_node(10 + i);
    auto map = RelayWorld::map_of({{1, {"down", "relay1"}}, {2, {"relay2"}}});
    for (auto& n : w.nodes) {
      n->client.set_map(w.now, map);
      n->client.set_home(w.now, 1 + static_cast<int>(rng.below(2)));
    }
    for (int step = 0; step < 300; ++step) {
      auto& n = *w.nodes[rng.below(w.nodes.size())];
      auto& m = *w.nodes[rng.below(w.nodes.size())];
      switch (rng.below(8)) {
        case 0: n.client.set_home(w.now, 1 + static_cast<int>(rng.below(2))); break;
        case 1: if (!w.links.empty()) w.cut(w.links[rng.below(w.links.size())].get()); break;
        case 2: w.run(Duration(static_cast<std::int64_t>(rng.below(90'000'000'000)))); break;
        case 3: if (!w.links.empty()) w.links[rng.below(w.links.size())]->client_reads = rng.below(2) == 0; break;
        case 4: servers[rng.below(2)]->machine.recheck(w.now); break;
        default: n.client.send_to_peer(w.now, m.pub(), m.client.home(), ByteVector(rng.below(2000), 1)); break;
      }
      w.pump();
    }
    for (auto& l : w.links) l->client_reads = l->server_reads = true;
    w.run(200s);
    std::size_t homes = 0;
    for (auto& n : w.nodes) {
      EXPECT_TRUE(n->client.is_open(n->client.home()));
      ++homes;
    }
    std::size_t connections = servers[0]->machine.gauges().connections + servers[1]->machine.gauges().connections;
    EXPECT_EQ(connections, homes);
    EXPECT_EQ(w.links.size(), homes);
    // And everybody reaches everybody.
    for (auto& n : w.nodes) n->received.clear();
    for (auto& n : w.nodes)
      for (auto& m : w.nodes) n->client.send_to_peer(w.now, m->pub(), m->client.home(), as_bytes("hi"));
    w.run(1s);
    for (auto& n : w.nodes) EXPECT_EQ(n->received.size(), w.nodes.size());
  }
}

}  // namespace
}  // namespace porthole::relay
