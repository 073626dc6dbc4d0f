// Endpoints and the home relay: what a node finds out about itself, in virtual time.
#include <gtest/gtest.h>

#include "paths/limits.h"
#include "paths/spec_constants.h"
#include "paths/world_for_test.h"

namespace porthole::paths {
namespace {

using namespace world;

TEST(Paths, AnnouncesStunAndLocalEndpoints) {
  TwoHomes t;
  EXPECT_EQ(t.a.home, 1);
  const auto list = t.a.paths->endpoints();
  ASSERT_EQ(list.size(), 2u);
  EXPECT_EQ(list[0], (TypedEndpoint{ep("198.51.100.1:20000"), EndpointType::kStun}));
  EXPECT_EQ(list[1], (TypedEndpoint{ep("192.168.1.2:41641"), EndpointType::kLocal}));
  EXPECT_EQ(t.a.paths->net_info().working_udp, true);
  EXPECT_EQ(t.a.paths->net_info().preferred_region, 1);
  EXPECT_EQ(t.a.paths->net_info().relay_latency.at("1-v4"), 0.02);
}

TEST(Paths, HomeIsChosenAtOnceWithOneRegion) {
  World w;
  w.add_region(7, "192.0.2.10:3478", false);
  Host& a = w.add_host("a", {"198.51.100.5:41641"});
  w.start(a);
  EXPECT_EQ(a.home, 7);
  // Local endpoints are out before any answer, too.
  EXPECT_EQ(a.announced, std::vector{ep("198.51.100.5:41641")});
}

TEST(Paths, HomeWithSeveralRegionsIsTheNearestAnswering) {
  World w;
  w.add_region(3, "192.0.2.30:3478", false);
  w.add_region(5, "192.0.2.50:3478");
  Host& a = w.add_host("a", {"198.51.100.5:41641"});
  w.start(a);
  EXPECT_EQ(a.home, 0);
  w.run(4s);
  EXPECT_EQ(a.home, 5);
  EXPECT_EQ(a.events_of<NetcheckDone>().size(), 0u);
}

TEST(Paths, HomeWithoutAnyAnswerIsStillOneAndStable) {
  World w;
  w.add_region(3, "192.0.2.30:3478", false);
  w.add_region(5, "192.0.2.50:3478", false);
  Host& a = w.add_host("a", {"198.51.100.5:41641"});
  w.start(a);
  w.run(4s);
  const int home = a.home;
  EXPECT_TRUE(home == 3 || home == 5);
  EXPECT_EQ(a.paths->net_info().working_udp, false);
  a.paths->start_netcheck(w.now, true);
  w.run(4s);
  EXPECT_EQ(a.home, home);
  ASSERT_EQ(a.events_of<NetcheckDone>().size(), 1u);
  EXPECT_FALSE(a.events_of<NetcheckDone>()[0].report.udp);
}

TEST(Paths, WithoutUdpTheNearestRelayByHttpIsHome) {
  World w;
  w.add_region(3, "192.0.2.30:3478", false);
  w.add_region(5, "192.0.2.50:3478", false);
  w.add_region(7, "192.0.2.70:3478", false);
  w.add_region(9, "192.0.2.90:3478", false);
  w.map.regions[2].avoid = true;
  w.map.regions[3].nodes[0].stun_only = true;
  w.http_latencies = {{3, 80ms}, {5, 30ms}, {7, 1ms}, {9, 1ms}};
  Host& a = w.add_host("a", {"198.51.100.5:41641"});
  a.paths->start_netcheck(w.now, true);
  w.start(a);
  w.run(4s);
  ASSERT_EQ(a.events_of<MeasureRelays>().size(), 1u);   // only once STUN has had its time
  EXPECT_EQ(a.events_of<MeasureRelays>()[0].regions, (std::vector<int>{3, 5}));
  EXPECT_EQ(a.home, 5);
  const auto done = a.events_of<NetcheckDone>();
  ASSERT_EQ(done.size(), 1u);
  EXPECT_FALSE(done[0].report.udp);
  EXPECT_TRUE(done[0].report.ipv4);
  EXPECT_FALSE(done[0].report.ipv6);
  ASSERT_EQ(done[0].report.regions.size(), 2u);
  EXPECT_EQ(done[0].report.regions[1].best(), 30ms);
  EXPECT_EQ(done[0].report.home_region, 5);
  EXPECT_LT(done[0].report.took, 3200ms);
  EXPECT_EQ(a.paths->net_info().working_udp, false);
  EXPECT_EQ(a.paths->net_info().relay_latency.at("5-v4"), 0.03);
}

TEST(Paths, MeasuringByHttpEndsInTimeAndBelievesNobodyElse) {
  World w;
  w.add_region(3, "192.0.2.30:3478", false);
  w.add_region(5, "192.0.2.50:3478", false);
  w.http_latencies = {{3, 40ms}, {5, 10s}};   // the second would answer much too late
  Host& a = w.add_host("a", {"198.51.100.5:41641"});
  a.paths->relay_measured(w.now, 5, 1ms, false);
  w.start(a);
  w.run(1s);
  a.paths->relay_measured(w.now, 5, 1ms, false);   // nobody asked yet
  w.run(3s);
  EXPECT_EQ(a.home, 0);
  w.run(1100ms);
  EXPECT_EQ(a.home, 3);
  w.run(20s);
  EXPECT_EQ(a.home, 3);
  EXPECT_EQ(a.paths->counters().netchecks, 1u);
}

TEST(Paths, HomeThatStaysAwayIsLeftForOneThatAnswers) {
  for (const bool blocked : {false, true}) {
    World w;
    w.add_region(3, "192.0.2.30:3478", !blocked);
    w.add_region(5, "192.0.2.50:3478", !blocked);
    w.http_latencies = {{3, 10ms}, {5, 50ms}};
    if (!blocked) w.stun_servers[ep("192.0.2.50:3478")] = false;
    Host& a = w.add_host("a", {"198.51.100.5:41641"});
    w.start(a);
    w.run(5s);
    ASSERT_EQ(a.home, 3);
    a.paths->note_relay_heard(w.now, 3);
    w.stun_servers[ep("192.0.2.50:3478")] = !blocked;
    w.stun_servers[ep("192.0.2.30:3478")] = false;
    w.http_latencies.erase(3);
    const Instant died = w.now;
    // No traffic at all: only the attempts to reach it again, and their failures.
    while (a.home == 3 && w.now - died < 60s) {
      a.paths->note_relay_connected(w.now, 3, false);
      a.poll();
      w.run(3s);
    }
    EXPECT_EQ(a.home, 5);
    EXPECT_GT(w.now - died, 8s);    // it may only have restarted
    EXPECT_LT(w.now - died, 20s);
    // Back again and clearly nearer: it is home once more.
    w.http_latencies[3] = 10ms;
    w.stun_servers[ep("192.0.2.30:3478")] = !blocked;
    if (blocked) {
      a.paths->start_netcheck(w.now, true);
      w.run(5s);
      EXPECT_EQ(a.home, 3);
    }
  }
}

TEST(Paths, TheOnlyRelayAwayStartsNothing) {
  TwoPublic t;
  t.a.paths->note_relay_connected(t.w.now, 1, false);
  t.w.run(5s);
  const auto before = t.a.paths->counters().netchecks;
  for (int i = 0; i < 5; ++i) {
    t.a.paths->note_relay_connected(t.w.now, 1, false);
    t.w.run(5s);
  }
  EXPECT_EQ(t.a.paths->counters().netchecks, before);
}

TEST(Paths, HardNatIsRecognised) {
  HardHome t;
  t.w.start(t.a);
  t.w.run(4s);
  EXPECT_EQ(t.a.paths->net_info().mapping_varies_by_dest_ip, true);
  // One mapping per server: the second was seen once only and is useless to others.
  EXPECT_EQ(t.a.announced.size(), 2u);
  t.a.paths->set_mode(t.w.now, {false, true, true});   // fixed port: a manual forward is likely
  t.w.run(4s);
  EXPECT_NE(std::find(t.a.announced.begin(), t.a.announced.end(), ep("198.51.100.1:41641")), t.a.announced.end());
}

TEST(Paths, StunServerByNameWaitsForTheName) {
  World w;
  w.names["relay1.example"] = {ip("192.0.2.10")};
  w.add_region(1, "192.0.2.10:3478");
  w.map.regions[0].nodes[0].ipv4.clear();
  Host& a = w.add_host("a", {"198.51.100.5:41641"});
  w.start(a);
  ASSERT_EQ(a.events_of<ResolveRequest>().size(), 1u);
  w.run(1s);
  EXPECT_EQ(a.paths->net_info().relay_latency.at("1-v4"), 0.02);   // measured from the send, not from the question
  EXPECT_EQ(a.events_of<ResolveRequest>().size(), 1u);
}

TEST(Paths, NothingToMeasureEndsAtOnce) {
  World w;
  Host& a = w.add_host("a", {"192.168.1.2:41641"});
  w.start(a);
  EXPECT_EQ(a.announced, std::vector{ep("192.168.1.2:41641")});
  a.paths->start_netcheck(w.now, true);
  a.poll();
  EXPECT_EQ(a.events_of<NetcheckDone>().size(), 1u);
  EXPECT_EQ(a.paths->home_region(), 0);
  EXPECT_TRUE(a.paths->next_timeout().is_never());
}

TEST(Paths, StunAnswerFromNobodyAndRequestsAreDropped) {
  TwoPublic t;
  std::uint8_t answer[wire::stun::kResponseSizeMax];
  const std::size_t n = wire::stun::encode_response({9, 9}, ep("9.9.9.9:9"), answer);
  t.a.deliver_udp(ep("192.0.2.10:3478"), ByteVector(answer, answer + n));
  EXPECT_EQ(drops(t.a, Drop::kStunUnknownTransaction), 1u);
  const auto request = wire::stun::encode_request({1});
  const std::size_t before = t.a.sent.size();
  t.a.deliver_udp(ep("192.0.2.10:3478"), ByteVector(request.begin(), request.end()));
  EXPECT_EQ(drops(t.a, Drop::kStunMalformed), 1u);
  EXPECT_EQ(t.a.sent.size(), before);   // never answered
}

TEST(Paths, PeriodicStunOnlyWithTraffic) {
  TwoPublic t;
  const auto idle = t.a.paths->counters().netchecks;
  t.w.run(10min);
  EXPECT_EQ(t.a.paths->counters().netchecks, idle);
  t.w.traffic(t.a, t.b, 60s);
  const auto busy = t.a.paths->counters().netchecks - idle;
  EXPECT_GE(busy, 2u);
  EXPECT_LE(busy, 4u);
  t.w.run(2min);
  EXPECT_LE(t.a.paths->counters().netchecks - idle, busy + 3);
  EXPECT_TRUE(t.a.paths->next_timeout().is_never());   // no timer in idle state at all
}

TEST(Paths, CachedStunEndpointSurvivesAFlapThenGoes) {
  TwoHomes t;
  t.w.stun_servers[ep("192.0.2.10:3478")] = false;
  t.a.paths->start_netcheck(t.w.now, true);
  t.w.run(4s);
  EXPECT_EQ(t.a.paths->endpoints().size(), 2u);
  t.w.run(6min);
  t.a.paths->start_netcheck(t.w.now, true);
  t.w.run(4s);
  EXPECT_EQ(t.a.paths->endpoints().size(), 1u);
}

TEST(Paths, RequestsDuringARunMakeExactlyOneMore) {
  TwoPublic t;
  const auto before = t.a.paths->counters().netchecks;
  for (int i = 0; i < 5; ++i) t.a.paths->start_netcheck(t.w.now, false);
  t.w.run(5s);
  EXPECT_EQ(t.a.paths->counters().netchecks, before + 2);
}

TEST(Paths, HomeIsKeptWhileControlIsAway) {
  World w;
  w.add_region(1, "192.0.2.10:3478");
  w.add_region(2, "192.0.2.20:3478");
  Host& a = w.add_host("a", {"198.51.100.5:41641"});
  w.stun_servers[ep("192.0.2.20:3478")] = false;
  w.start(a);
  w.run(4s);
  EXPECT_EQ(a.home, 1);
  a.paths->note_control_connected(w.now, false);
  w.stun_servers[ep("192.0.2.10:3478")] = false;
  w.stun_servers[ep("192.0.2.20:3478")] = true;
  w.run(6min);
  a.paths->start_netcheck(w.now, true);
  w.run(4s);
  EXPECT_EQ(a.paths->home_region(), 1);
  a.paths->note_control_connected(w.now, true);
  EXPECT_EQ(a.paths->home_region(), 2);
}

}  // namespace
}  // namespace porthole::paths
