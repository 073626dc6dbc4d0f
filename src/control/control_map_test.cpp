// The map stream and what goes beside it: deltas, watchdogs, returning, updates of our own.
#include <gtest/gtest.h>

#include "control/control_world_for_test.h"

namespace porthole::control {
namespace {

using namespace world;
using ControlClientTest = World;

TEST_F(ControlClientTest, DeltasReachTheNetmap) {
  start(config());
  take<NetmapChanged>();
  MapResponse delta;
  delta.peers_removed = {3};
  delta.peers_changed = {node(4)};
  send_map(delta);
  send_raw(R"({"KeepAlive":true})");
  send_raw(R"({"ControlTime":"2026-11-24T08:00:00Z"})");
  send_raw(R"({"PeersChangedPatch":[{"NodeID":2,"Online":true}]})");
  run();
  auto changes = take<NetmapChanged>();
  ASSERT_EQ(changes.size(), 2u);
  EXPECT_EQ(changes[0].change.peers_removed, std::vector<ts2021::NodeId>{3});
  EXPECT_EQ(changes[0].change.peers_upserted, std::vector<ts2021::NodeId>{4});
  EXPECT_EQ(changes[1].change.peers_upserted, std::vector<ts2021::NodeId>{2});
}

TEST_F(ControlClientTest, SilenceEndsInTheWatchdog) {
  start(config());
  for (int i = 0; i < 10; ++i) {
    advance(std::chrono::seconds(55));
    send_raw(R"({"KeepAlive":true})");
    run();
  }
  EXPECT_EQ(sessions, 1);
  advance(std::chrono::seconds(119));
  EXPECT_EQ(sessions, 1);
  advance(std::chrono::seconds(3));
  EXPECT_EQ(sessions, 2);
  EXPECT_EQ(client->state(), ControlState::kRunning);
  EXPECT_EQ(registers.size(), 1u);  // reconnecting needs no registration
  EXPECT_NE(notices().find("two minutes"), std::string::npos);
  // The start of each stream, and with nothing but keep-alives each of them is followed by a question.
  EXPECT_EQ(lites.size(), 2u + 10u);
}

TEST_F(ControlClientTest, ADeadPathIsNoticedByPing) {
  start(config());
  blackhole = true;
  advance(kPingInterval + kPingTimeout + std::chrono::seconds(1));
  EXPECT_EQ(client->state(), ControlState::kReconnecting);
  EXPECT_TRUE(client->netmap().has_map());
  advance(std::chrono::minutes(3));
  blackhole = false;
  advance(std::chrono::minutes(1));
  EXPECT_EQ(client->state(), ControlState::kRunning);
}

TEST_F(ControlClientTest, BrokenConnectionsComeBackAndUnchangedPeersStay) {
  start(config());
  take<NetmapChanged>();
  conns.begin()->second.ended = true;
  run();
  EXPECT_EQ(client->state(), ControlState::kReconnecting);
  peers = {node(2)};
  advance(std::chrono::seconds(1));
  EXPECT_EQ(client->state(), ControlState::kRunning);
  EXPECT_EQ(key_fetches, 1);
  auto changes = take<NetmapChanged>();
  ASSERT_EQ(changes.size(), 1u);
  EXPECT_TRUE(changes[0].change.peers_upserted.empty());
  EXPECT_EQ(changes[0].change.peers_removed, std::vector<ts2021::NodeId>{3});
}

TEST_F(ControlClientTest, UnreachableServerIsTriedWithBackoffForEver) {
  refuse_dial = [](const OpenStream&) { return Error{ErrorCode::kRefused, "connection refused"}; };
  start(config());
  advance(std::chrono::minutes(10));
  EXPECT_LT(dials, 200);
  EXPECT_EQ(client->state(), ControlState::kConnecting);
  EXPECT_NE(notices().find("control server control.example: connection refused"), std::string::npos);
  refuse_dial = [](const OpenStream&) { return std::nullopt; };
  advance(std::chrono::minutes(1));
  EXPECT_EQ(client->state(), ControlState::kRunning);
}

TEST_F(ControlClientTest, NetworkChangeReconnectsAtOnce) {
  start(config());
  client->network_changed(clock);
  run();
  EXPECT_EQ(sessions, 2);
  EXPECT_EQ(client->state(), ControlState::kRunning);
}

TEST_F(ControlClientTest, StreamsEndedByTheServerReturnWithoutRegistering) {
  start(config());
  for (int i = 0; i < 5; ++i) {
    conns.at(maps.back().conn).h2->end(maps.back().stream);
    run();
    advance(std::chrono::seconds(1));
    EXPECT_EQ(client->state(), ControlState::kRunning);
  }
  EXPECT_EQ(registers.size(), 1u);
  EXPECT_EQ(sessions, 1);
}

TEST_F(ControlClientTest, GoAwayMovesToANewConnection) {
  start(config());
  conns.begin()->second.h2->go_away();
  run();
  advance(std::chrono::seconds(1));
  EXPECT_EQ(sessions, 2);
  EXPECT_EQ(client->state(), ControlState::kRunning);
}

// A proxy with a short time-out ends the connection again and again.
TEST_F(ControlClientTest, ConnectionsThatAreCutReturnAtOnceUnlessTheyWereCutAtOnce) {
  auto cut_every = [&](Duration lifetime, int times) {
    int cuts = 0;
    for (int i = 0; i < times; ++i) {
      advance(lifetime);
      for (auto& [id, conn] : conns) {
        if (!conn.h2) continue;
        conn.ended = true;
        ++cuts;
      }
      run();
    }
    return cuts;
  };
  start(config());
  EXPECT_GE(cut_every(std::chrono::seconds(5), 40), 39) << "one that lived is replaced within milliseconds, however often";
  const int before = sessions;
  cut_every(std::chrono::milliseconds(500), 1200);
  EXPECT_LT(sessions - before, 100) << "ten minutes of connections that die at birth";
  EXPECT_EQ(registers.size(), 1u);
  advance(std::chrono::minutes(1));
  EXPECT_EQ(client->state(), ControlState::kRunning);
}

TEST_F(ControlClientTest, UpdatesAreCoalesced) {
  start(config());
  ASSERT_EQ(lites.size(), 1u);
  ts2021::NetInfo info;
  for (int i = 0; i < 20; ++i) {
    info.preferred_derp = i + 1;
    client->set_net_info(clock, info);
    client->set_endpoints(clock, {{*Endpoint::parse("192.0.2.1:41641"), ts2021::EndpointType::kStun}});
    run();
    advance(std::chrono::milliseconds(100));
  }
  ASSERT_GE(lites.size(), 2u);
  EXPECT_LE(lites.size(), 4u + kLiteQuickCount);
  advance(std::chrono::seconds(2));
  ASSERT_GT(lites.size(), std::size_t{kLiteQuickCount} + 1);
  EXPECT_LT(lites[kLiteQuickCount].first - lites[0].first, kLiteSpacing);   // each as soon as there is something to say
  for (std::size_t i = kLiteQuickCount + 1; i < lites.size(); ++i) EXPECT_GE(lites[i].first - lites[i - 1].first, kLiteSpacing);
  const MapRequest& last = lites.back().second;
  EXPECT_EQ(last.hostinfo->net_info->preferred_derp, 20);
  EXPECT_EQ(last.endpoints->size(), 1u);
  EXPECT_EQ(last.endpoint_types, std::vector<int>{2});
  // Latencies alone are not news, nor is the same again.
  const std::size_t count = lites.size();
  info.derp_latency["1-v4"] = 0.25;
  client->set_net_info(clock, info);
  client->set_endpoints(clock, {{*Endpoint::parse("192.0.2.1:41641"), ts2021::EndpointType::kStun}});
  advance(std::chrono::seconds(5));
  EXPECT_EQ(lites.size(), count);
  client->set_endpoints(clock, {});
  advance(Duration::zero());
  ASSERT_EQ(lites.size(), count + 1);
  EXPECT_TRUE(lites.back().second.endpoints->empty());
}

// Whatever the refusal is, unless it says that the node is unknown: the map stream goes on.
TEST_F(ControlClientTest, RefusedUpdatesAreTriedAgain) {
  for (int status : {503, 400}) {
    SCOPED_TRACE(status);
    lite_status = status;
    lites.clear();
    start(config());
    const std::size_t streams = maps.size();
    advance(std::chrono::seconds(10));
    EXPECT_GT(lites.size(), 3u);
    EXPECT_LT(lites.size(), 15u);
    EXPECT_EQ(maps.size(), streams);
    EXPECT_EQ(client->state(), ControlState::kRunning);
    lite_status = 200;
    advance(std::chrono::seconds(40));
    const std::size_t count = lites.size();
    advance(std::chrono::seconds(40));
    EXPECT_EQ(lites.size(), count);
    conns.clear();
    maps.clear();
  }
}

// The data plane's doubt brings a whole map over the same connection; the old one holds until then.
TEST_F(ControlClientTest, AnotherMapComesWholeWhenAskedFor) {
  start(config());
  take<NetmapChanged>();
  states.clear();
  const H2StreamId first = maps.back().stream;
  send_first_map = false;
  client->refresh_map(clock);
  client->refresh_map(clock);
  advance({});
  ASSERT_EQ(maps.size(), 1u);
  EXPECT_NE(maps.back().stream, first);
  EXPECT_TRUE(client->netmap().has_map());
  EXPECT_EQ(client->netmap().peers().size(), 2u);
  client->refresh_map(clock);   // one is on its way
  const H2StreamId second = maps.back().stream;
  peers = {node(2), node(4)};
  send_map(first_map(maps.back().request));
  advance({});
  EXPECT_EQ(maps.back().stream, second);
  auto changes = take<NetmapChanged>();
  ASSERT_EQ(changes.size(), 1u);
  EXPECT_TRUE(changes[0].change.full);
  EXPECT_EQ(changes[0].change.peers_removed, std::vector<ts2021::NodeId>{3});
  EXPECT_EQ(changes[0].change.peers_upserted, std::vector<ts2021::NodeId>{4});
  EXPECT_TRUE(states.empty()) << "running all the time";
  EXPECT_EQ(sessions, 1);
  EXPECT_EQ(registers.size(), 1u);

  client->refresh_map(clock);   // not again so soon
  advance(kMapRefreshSpacing / 2);
  EXPECT_EQ(maps.back().stream, second);
  advance(kMapRefreshSpacing / 2);
  EXPECT_NE(maps.back().stream, second);
}

TEST_F(ControlClientTest, SleepSecondsPausesReading) {
  start(config());
  take<NetmapChanged>();
  send_raw(R"({"Debug":{"SleepSeconds":60,"Exit":1}})");
  send_raw(R"({"Domain":"later.example"})");
  run();
  EXPECT_EQ(client->netmap().domain(), "tail.example");
  advance(std::chrono::seconds(59));
  EXPECT_EQ(client->netmap().domain(), "tail.example");
  advance(std::chrono::seconds(2));
  EXPECT_EQ(client->netmap().domain(), "later.example");
}

TEST_F(ControlClientTest, AnswersC2nOverNoise) {
  start(config());
  MapResponse m;
  m.ping_request = ts2021::PingRequest{"https://unused/c2n/77", true, false, "c2n", std::nullopt,
                                       to_vector(as_bytes("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nping=hello"))};
  m.keep_alive = true;  // pings ride on anything
  send_map(m);
  send_map(m);  // a repetition is ignored
  m.ping_request->url = "https://unused/c2n/78";
  m.ping_request->payload = to_vector(as_bytes("GET /debug HTTP/1.1\r\nHost: x\r\n\r\n"));
  send_map(m);
  run();
  ASSERT_EQ(callbacks.size(), 2u);
  EXPECT_EQ(callbacks[0], "POST /c2n/77 HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nping=hello");
  EXPECT_TRUE(callbacks[1].starts_with("POST /c2n/78 HTTP/1.1 400 ")) << callbacks[1];
  EXPECT_NE(callbacks[1].find("unknown c2n path"), std::string::npos);
}

TEST_F(ControlClientTest, HeadPingsGoToTheControlServerOnly) {
  start(config());
  MapResponse m;
  m.ping_request = ts2021::PingRequest{"https://control.example/machine/ping-response?id=5", false, false, "", std::nullopt, {}};
  send_map(m);
  m.ping_request->url = "https://elsewhere.example/x";
  send_map(m);
  m.ping_request->url = "https://unused/noise";
  m.ping_request->url_is_noise = true;
  send_map(m);
  run();
  EXPECT_EQ(pings, std::vector<std::string>{"/machine/ping-response?id=5"});
  EXPECT_EQ(callbacks, std::vector<std::string>{"HEAD /noise "});
  EXPECT_EQ(client->state(), ControlState::kRunning);
}

TEST_F(ControlClientTest, ClockSkewIsToldOnceAndUrlsOpenOnce) {
  start(config());
  notices();
  send_raw(R"({"ControlTime":"2026-11-24T10:00:00Z","PopBrowserURL":"https://x/y"})");
  send_raw(R"({"ControlTime":"2026-11-24T10:00:01Z","PopBrowserURL":"https://x/y"})");
  run();
  EXPECT_NE(notices().find("differs from the control server's by 120 minutes"), std::string::npos);
  EXPECT_EQ(take<OpenUrl>().size(), 1u);
}

TEST_F(ControlClientTest, HealthAndTailnetLockAreReported) {
  start(config());
  send_raw(R"({"Health":["router unhealthy"],"TKAInfo":{"Head":"abc"}})");
  run();
  auto health = take<HealthChanged>();
  ASSERT_EQ(health.size(), 1u);
  EXPECT_EQ(health[0].messages, std::vector<std::string>{"router unhealthy"});
  EXPECT_NE(notices().find("tailnet lock"), std::string::npos);
}

}  // namespace
}  // namespace porthole::control
