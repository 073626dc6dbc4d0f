// The machine with others of its kind, in virtual time.
#include "paths/paths.h"

#include <gtest/gtest.h>

#include "crypto/dh.h"
#include "paths/limits.h"
#include "paths/spec_constants.h"
#include "paths/world_for_test.h"
#include "wire/disco.h"

namespace porthole::paths {
namespace {

using namespace world;
using wire::DatagramKind;

constexpr auto kDisco = DatagramKind::kDisco;

std::size_t drops(const Host& h, Drop d) { return h.paths->counters().drops[static_cast<std::size_t>(d)]; }

bool direct(Host& a, const Host& b) {
  auto s = a.paths->status(a.world.now, b.node);
  return s && s->trusted;
}

// Two homes behind NATs of the usual kind (endpoint-independent mapping, address-and-port-dependent filter), one relay
// region with STUN, maps shared once everyone knows their addresses.
struct TwoHomes {
  World w;
  Nat& nat_a = w.add_nat("198.51.100.1");
  Nat& nat_b = w.add_nat("203.0.113.1");
  Host& a = w.add_host("a", {"192.168.1.2:41641"}, &nat_a);
  Host& b = w.add_host("b", {"192.168.2.2:41641"}, &nat_b);
  TwoHomes() {
    w.add_region(1, "192.0.2.10:3478");
    w.start_all();
    w.run(1s);
    w.share_map();
  }
};

// Two public hosts without NAT; `relay` gives them a region.
struct TwoPublic {
  World w;
  Host& a = w.add_host("a", {"198.51.100.5:41641"});
  Host& b = w.add_host("b", {"203.0.113.5:41641"});
  explicit TwoPublic(bool relay = true) {
    if (relay) w.add_region(1, "192.0.2.10:3478");
    w.start_all();
    w.run(1s);
    w.share_map();
  }
};

// ---- gathering ----

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
  World w;
  Nat& nat = w.add_nat("198.51.100.1");
  nat.endpoint_dependent_mapping = true;
  w.add_region(1, "192.0.2.10:3478");
  w.add_region(2, "192.0.2.20:3478");
  Host& a = w.add_host("a", {"192.168.1.2:41641"}, &nat);
  w.start(a);
  w.run(4s);
  EXPECT_EQ(a.paths->net_info().mapping_varies_by_dest_ip, true);
  // One mapping per server: the second was seen once only and is useless to others.
  EXPECT_EQ(a.announced.size(), 2u);
  a.paths->set_mode(w.now, {false, true, true});   // fixed port: a manual forward is likely
  w.run(4s);
  EXPECT_NE(std::find(a.announced.begin(), a.announced.end(), ep("198.51.100.1:41641")), a.announced.end());
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

// ---- direct paths ----

TEST(Paths, BothBehindOrdinaryNatsBecomeDirect) {
  TwoHomes t;
  const Route first = t.a.send_data(t.b);
  EXPECT_FALSE(first.udp);   // never to an address that has not answered
  EXPECT_EQ(first.relay_region, 1);
  t.w.traffic(t.a, t.b, 1s);
  EXPECT_TRUE(direct(t.a, t.b));
  EXPECT_TRUE(direct(t.b, t.a));
  const Route later = t.a.send_data(t.b);
  EXPECT_EQ(later.udp, ep("203.0.113.1:20000"));
  EXPECT_FALSE(later.relay_region);
  const auto changes = t.a.events_of<PeerPathChanged>();
  ASSERT_FALSE(changes.empty());
  EXPECT_EQ(changes.back().direct, ep("203.0.113.1:20000"));
  EXPECT_EQ(t.b.paths->peer_at(ep("198.51.100.1:20000")), t.a.node);
}

TEST(Paths, DirectWithinAFewHundredMillisecondsOfTheFirstSend) {
  TwoHomes t;
  t.w.run(2min);   // endpoints stale: the CallMeMaybe waits for STUN
  t.a.send_data(t.b);
  t.w.run(250ms);
  EXPECT_TRUE(direct(t.a, t.b));
}

TEST(Paths, SameLanWithoutRelayOrStun) {
  World w;
  Host& a = w.add_host("a", {"192.168.1.2:41641"}, nullptr, "home");
  Host& b = w.add_host("b", {"192.168.1.3:41641"}, nullptr, "home");
  w.start_all();
  w.share_map();
  const Route first = a.send_data(b);
  EXPECT_FALSE(first.known());
  w.run(5ms);
  // The event tells the tunnel to send what waited.
  ASSERT_EQ(a.events_of<PeerPathChanged>().size(), 1u);
  EXPECT_EQ(a.events_of<PeerPathChanged>()[0].direct, ep("192.168.1.3:41641"));
  EXPECT_EQ(a.send_data(b).udp, ep("192.168.1.3:41641"));
  // And b, whose ping-back answered at the same time, is ready as well.
  w.run(5ms);
  EXPECT_TRUE(direct(b, a));
}

TEST(Paths, FirstContactSurvivesLossOfTheFirstPings) {
  World w;
  Host& a = w.add_host("a", {"192.168.1.2:41641"}, nullptr, "home");
  Host& b = w.add_host("b", {"192.168.1.3:41641"}, nullptr, "home");
  w.start_all();
  w.share_map();
  int n = 0;
  w.lose = [&](const Endpoint&, const Endpoint&) { return n++ < 2; };
  a.send_data(b);
  w.run(310ms);
  EXPECT_TRUE(direct(a, b));
  // Fresh transaction ids every time (trap: receivers drop repeats).
  std::set<ByteVector> seen;
  for (const Sent& s : a.sent)
    if (s.kind == kDisco) {
      EXPECT_TRUE(seen.insert(s.data).second);
    }
}

TEST(Paths, OneSideWithoutUdpStaysOnTheRelay) {
  TwoHomes t;
  t.b.udp_blocked = true;
  t.w.traffic(t.a, t.b, 20s);
  EXPECT_FALSE(direct(t.a, t.b));
  const Route r = t.a.send_data(t.b);
  EXPECT_FALSE(r.udp);
  EXPECT_EQ(r.relay_region, 1);
  EXPECT_GT(t.b.data_relay, 100u);
  EXPECT_EQ(to_text(t.a.paths->status(t.w.now, t.b.node)->not_direct), "no answer to pings at 2 addresses since 20 s");
  // Our round every 5 s, the answer to each CallMeMaybe of the peer's rounds, two quick repeats: no flood.
  EXPECT_LE(t.a.count_sent(kDisco, ep("203.0.113.1:20000")), 12u);
}

TEST(Paths, HardNatAgainstOpenPeerIsDirectThroughTheLearnedAddress) {
  World w;
  Nat& nat = w.add_nat("198.51.100.1");
  nat.endpoint_dependent_mapping = true;
  w.add_region(1, "192.0.2.10:3478");
  w.add_region(2, "192.0.2.20:3478");
  Host& a = w.add_host("a", {"192.168.1.2:41641"}, &nat);
  Host& b = w.add_host("b", {"203.0.113.5:41641"});
  w.start_all();
  w.run(4s);
  w.share_map();
  w.traffic(a, b, 1s);
  EXPECT_TRUE(direct(a, b));
  EXPECT_TRUE(direct(b, a));   // by ping-back, without waiting for a round
  const auto s = b.paths->status(w.now, a.node);
  bool learned = false;
  for (const auto& c : s->candidates) learned |= c.learned && !c.from_map && c.latency.has_value();
  EXPECT_TRUE(learned);
}

TEST(Paths, BothBehindHardNatsUseTheRelay) {
  TwoHomes t;
  t.nat_a.endpoint_dependent_mapping = t.nat_b.endpoint_dependent_mapping = true;
  t.nat_a.out.clear();
  t.nat_b.out.clear();
  t.w.traffic(t.a, t.b, 15s);
  EXPECT_FALSE(direct(t.a, t.b));
  EXPECT_GT(t.a.data_relay, 100u);
}

TEST(Paths, Ipv6MakesItDirectWhereIpv4CannotBe) {
  World w;
  Nat& na = w.add_nat("198.51.100.1");
  Nat& nb = w.add_nat("203.0.113.1");
  na.endpoint_dependent_mapping = nb.endpoint_dependent_mapping = true;
  w.add_region(1, "192.0.2.10:3478");
  Host& a = w.add_host("a", {"192.168.1.2:41641", "[2001:db8:a::2]:41642"}, &na);
  Host& b = w.add_host("b", {"192.168.2.2:41641", "[2001:db8:b::2]:41642"}, &nb);
  w.start_all();
  w.run(4s);
  w.share_map();
  w.traffic(a, b, 1s);
  EXPECT_EQ(a.send_data(b).udp, ep("[2001:db8:b::2]:41642"));   // the port of the IPv6 socket, not of the other one
}

TEST(Paths, PathDiesThenRelayWithinTheDocumentedTimeline) {
  TwoPublic t;
  t.w.traffic(t.a, t.b, 4s);
  ASSERT_TRUE(direct(t.a, t.b));
  t.w.lose = [](const Endpoint&, const Endpoint&) { return true; };
  const Instant died = t.w.now;
  std::optional<Duration> duplicated, cleared;
  while (!cleared && t.w.now - died < 20s) {
    const Route r = t.a.send_data(t.b);
    if (r.relay_region && !duplicated) {
      duplicated = t.w.now - died;
      EXPECT_TRUE(r.udp);
    }
    if (!r.udp) cleared = t.w.now - died;
    t.w.run(50ms);
  }
  ASSERT_TRUE(duplicated && cleared);
  // A heartbeat goes out at most 3 s later, its silence shows after 0.3 s, the extra ping's after another 0.3 s.
  EXPECT_LE(*duplicated, 3700ms);
  // The first unanswered heartbeat times out 5 s after it was sent: at most 8 s.
  EXPECT_LE(*cleared, 8100ms);
  EXPECT_GE(*cleared, 5000ms);
  // Traffic arrived all the time from then on.
  const std::size_t before = t.b.data_relay;
  t.w.traffic(t.a, t.b, 1s);
  EXPECT_GE(t.b.data_relay - before, 9u);
  t.w.lose = nullptr;
  t.w.traffic(t.a, t.b, 6s);
  EXPECT_TRUE(direct(t.a, t.b));   // upgrade
}

TEST(Paths, OneLostHeartbeatChangesNothing) {
  TwoPublic t;
  t.w.traffic(t.a, t.b, 4s);
  ASSERT_TRUE(direct(t.a, t.b));
  bool lost = false;
  t.w.lose = [&](const Endpoint& source, const Endpoint&) {
    if (lost || source != ep("198.51.100.5:41641")) return false;
    return lost = t.a.sent.back().kind == kDisco;
  };
  for (int i = 0; i < 60; ++i) {
    EXPECT_FALSE(t.a.send_data(t.b).relay_region);
    t.w.run(100ms);
  }
  EXPECT_TRUE(lost);
}

TEST(Paths, DataNeverKeepsTrust) {
  TwoPublic t;
  t.w.traffic(t.a, t.b, 2s);
  ASSERT_TRUE(direct(t.a, t.b));
  // Pings and pongs vanish, data passes: one-way trust must end (trap T1).
  t.w.lose = [&](const Endpoint& source, const Endpoint&) {
    Host& h = source == ep("198.51.100.5:41641") ? t.a : t.b;
    return h.sent.back().kind == kDisco;
  };
  t.w.traffic(t.a, t.b, 7s);
  EXPECT_FALSE(direct(t.a, t.b));
  const Route r = t.a.send_data(t.b);
  EXPECT_TRUE(r.relay_region);
}

TEST(Paths, TrustLastsExactlySixAndAHalfSeconds) {
  TwoPublic t;
  t.a.send_data(t.b);
  t.w.run(25ms);
  ASSERT_TRUE(direct(t.a, t.b));
  Instant pong{};
  // The first pong came back 20 ms after the ping.
  pong = t.w.now - 5ms;
  t.w.lose = [](const Endpoint&, const Endpoint&) { return true; };
  t.w.run(pong + kTrustUdpAddrDuration - t.w.now);
  EXPECT_TRUE(direct(t.a, t.b));
  t.w.run(1ns);
  EXPECT_FALSE(direct(t.a, t.b));
}

TEST(Paths, NothingIsSentForAnIdlePeer) {
  TwoPublic t;
  const std::size_t before = t.a.sent.size();
  t.w.run(5min);
  EXPECT_EQ(t.a.sent.size(), before);
  t.a.send_data(t.b);
  t.w.run(46s);   // heartbeats stop 45 s after the last send
  const std::size_t active = t.a.sent.size();
  EXPECT_LE(t.a.paths->counters().pings_sent, 18u);
  // b, which does not send, has confirmed the path once and leaves it at that.
  EXPECT_LE(t.b.paths->counters().pings_sent, 2u);
  t.w.run(5min);
  EXPECT_EQ(t.a.sent.size(), active);
  // The best address is remembered: the next send uses it, with the relay until a pong confirms it.
  const Route r = t.a.send_data(t.b);
  EXPECT_TRUE(r.udp);
  EXPECT_TRUE(r.relay_region);
  t.w.run(30ms);
  EXPECT_FALSE(t.a.send_data(t.b).relay_region);
}

TEST(Paths, IdlePeersCostNoTimers) {
  World w;
  Host& a = w.add_host("a", {"198.51.100.5:41641"});
  w.start(a);
  std::vector<PeerConfig> peers;
  SeededRng rng(5);
  for (int i = 0; i < 1000; ++i) {
    PeerConfig c;
    c.key = crypto::NodePrivate::generate(rng).public_key();
    c.disco = crypto::DiscoPrivate::generate(rng).public_key();
    c.endpoints = {Endpoint{IpAddress::v4(10, 1, static_cast<std::uint8_t>(i / 250), static_cast<std::uint8_t>(i % 250)), 1}};
    peers.push_back(c);
  }
  a.paths->set_peers(w.now, peers);
  EXPECT_TRUE(a.paths->next_timeout().is_never());
  EXPECT_EQ(a.paths->counters().pings_sent, 0u);
}

TEST(Paths, BetterPathWinsOnAnUpgradeRound) {
  TwoPublic t;
  t.w.traffic(t.a, t.b, 2s);
  ASSERT_EQ(t.a.send_data(t.b).udp, ep("203.0.113.5:41641"));
  // The peer gets a LAN address that is 10 times faster; the map tells; the round at 60 s finds it.
  t.a.lan = t.b.lan = "office";
  t.a.addresses.insert(t.a.addresses.begin(), ep("10.0.0.1:41641"));
  t.b.addresses.insert(t.b.addresses.begin(), ep("10.0.0.2:41641"));
  World::set_addresses(t.b);
  PeerConfig c = t.b.config();
  t.a.paths->upsert_peer(t.w.now, c);
  t.w.traffic(t.a, t.b, 65s);
  EXPECT_EQ(t.a.send_data(t.b).udp, ep("10.0.0.2:41641"));
  // At 2 ms there is nothing left to gain: no more upgrade rounds.
  const std::size_t pings = t.a.count_sent(kDisco, ep("203.0.113.5:41641"));
  t.w.traffic(t.a, t.b, 130s);
  EXPECT_EQ(t.a.count_sent(kDisco, ep("203.0.113.5:41641")), pings);
}

// ---- messages ----

// Seals as `from` would, for hand-made messages.
ByteVector seal(Host& from, const Host& to, const wire::disco::Message& m) {
  const ByteVector plain = wire::disco::encode(m);
  ByteVector out(wire::disco::kOverhead + plain.size());
  std::uint8_t nonce[24];
  from.rng.fill(nonce);
  wire::disco::write_envelope(out, from.disco.public_key(), nonce);
  const auto key = crypto::BoxKey::make(from.disco.reveal(), to.disco.public_key().bytes());
  key->seal(nonce, plain, MutBytes(out).subspan(wire::disco::kBoxOffset));
  return out;
}

std::optional<wire::disco::Message> open(const Host& to, Bytes packet) {
  auto e = wire::disco::parse_envelope(packet);
  if (!e) return std::nullopt;
  auto key = crypto::BoxKey::make(to.disco.reveal(), e->sender.bytes());
  ByteVector plain(e->box.size() - wire::disco::kTagSize);
  if (!key || !key->open(e->nonce, e->box, plain)) return std::nullopt;
  return wire::disco::parse(plain);
}

struct OpenedMessage {
  Sent sent;
  wire::disco::Message message;
};
std::vector<OpenedMessage> opened_since(const Host& from, const Host& to, std::size_t first) {
  std::vector<OpenedMessage> out;
  for (std::size_t i = first; i < from.sent.size(); ++i)
    if (from.sent[i].kind == kDisco)
      if (auto m = open(to, from.sent[i].data)) out.push_back({from.sent[i], *m});
  return out;
}

TEST(Paths, PingIsAnsweredOnceToItsSourceAndPingedBack) {
  TwoPublic t;
  const std::size_t before = t.a.sent.size();
  const wire::disco::Ping ping{{7}, t.b.node, 300};   // padded: a normal pong comes back (MTU probing)
  t.a.deliver_udp(ep("203.0.113.77:1234"), seal(t.b, t.a, ping));
  const auto out = opened_since(t.a, t.b, before);
  ASSERT_EQ(out.size(), 2u);
  const auto* pong = std::get_if<wire::disco::Pong>(&out[0].message);
  ASSERT_TRUE(pong);
  EXPECT_EQ(out[0].sent.udp, ep("203.0.113.77:1234"));
  EXPECT_EQ(out[0].sent.data.size(), wire::disco::kPongSize);
  EXPECT_EQ(pong->tx_id, ping.tx_id);
  EXPECT_EQ(pong->source, ep("203.0.113.77:1234"));
  const auto* back = std::get_if<wire::disco::Ping>(&out[1].message);
  ASSERT_TRUE(back);
  EXPECT_EQ(out[1].sent.udp, ep("203.0.113.77:1234"));
  EXPECT_EQ(out[1].sent.data.size(), wire::disco::kPingSize);
  EXPECT_EQ(back->node_key, t.a.node);
  EXPECT_NE(back->tx_id, ping.tx_id);
  EXPECT_EQ(t.a.paths->peer_at(ep("203.0.113.77:1234")), t.b.node);
  // The same ping again is a duplicate; another one is answered, but not pinged back within a second.
  t.a.deliver_udp(ep("203.0.113.77:1234"), seal(t.b, t.a, ping));
  EXPECT_EQ(drops(t.a, Drop::kDiscoDuplicatePing), 1u);
  t.a.deliver_udp(ep("203.0.113.77:1234"), seal(t.b, t.a, wire::disco::Ping{{8}, t.b.node, 0}));
  EXPECT_EQ(opened_since(t.a, t.b, before).size(), 3u);
  // A ping starts nothing else: no heartbeats for a peer we do not send to.
  t.w.run(1min);
  EXPECT_EQ(opened_since(t.a, t.b, before).size(), 3u);
}

TEST(Paths, LearnedCandidateLivesFortyFiveSeconds) {
  TwoPublic t;
  t.a.deliver_udp(ep("203.0.113.77:1234"), seal(t.b, t.a, wire::disco::Ping{{7}, t.b.node, 0}));
  EXPECT_EQ(t.a.paths->status(t.w.now, t.b.node)->candidates.size(), 2u);
  t.w.run(46s);
  t.a.send_data(t.b);
  EXPECT_EQ(t.a.paths->status(t.w.now, t.b.node)->candidates.size(), 1u);
}

TEST(Paths, ReplayedPingsFromForgedSourcesAreNotAmplified) {
  TwoPublic t;
  const ByteVector ping = seal(t.b, t.a, wire::disco::Ping{{7}, t.b.node, 0});
  const auto before = t.a.paths->counters().pings_sent;
  for (int i = 0; i < 1000; ++i)
    t.a.deliver_udp({IpAddress::v4(9, 9, static_cast<std::uint8_t>(i / 250), static_cast<std::uint8_t>(i % 250)), 5}, ping);
  EXPECT_LE(t.a.paths->counters().pings_sent - before, static_cast<std::uint64_t>(kPingBacksPerSecondMax));
  EXPECT_LE(t.a.paths->status(t.w.now, t.b.node)->candidates.size(), kCandidatesMax);
}

TEST(Paths, PingOverTheRelayIsAnsweredThere) {
  TwoPublic t;
  const std::size_t before = t.a.sent.size();
  t.a.deliver_relay(1, t.b.node, seal(t.b, t.a, wire::disco::Ping{{7}, t.b.node, 0}));
  const auto out = opened_since(t.a, t.b, before);
  ASSERT_EQ(out.size(), 1u);
  EXPECT_EQ(out[0].sent.region, 1);
  EXPECT_EQ(std::get<wire::disco::Pong>(out[0].message).source, ep("127.3.3.40:1"));
}

TEST(Paths, PongOverTheRelayProvesNothing) {
  TwoPublic t;
  t.w.lose = [](const Endpoint&, const Endpoint&) { return true; };
  const std::size_t before = t.a.sent.size();
  t.a.send_data(t.b);
  const auto out = opened_since(t.a, t.b, before);
  ASSERT_FALSE(out.empty());
  const auto tx = std::get<wire::disco::Ping>(out[0].message).tx_id;
  t.a.deliver_relay(1, t.b.node, seal(t.b, t.a, wire::disco::Pong{tx, ep("198.51.100.5:41641")}));
  EXPECT_FALSE(direct(t.a, t.b));
}

TEST(Paths, TheAddressPingedBecomesBestNotThePongsSource) {
  TwoPublic t;
  t.w.lose = [](const Endpoint&, const Endpoint&) { return true; };
  const std::size_t before = t.a.sent.size();
  t.a.send_data(t.b);
  const auto tx = std::get<wire::disco::Ping>(opened_since(t.a, t.b, before)[0].message).tx_id;
  const ByteVector pong = seal(t.b, t.a, wire::disco::Pong{tx, ep("198.51.100.5:41641")});
  t.a.deliver_udp(ep("203.0.113.99:999"), pong);
  EXPECT_EQ(t.a.send_data(t.b).udp, ep("203.0.113.5:41641"));
  EXPECT_EQ(t.a.paths->peer_at(ep("203.0.113.99:999")), t.b.node);   // only indexed for receiving
  t.a.deliver_udp(ep("203.0.113.99:999"), pong);                     // every id counts once
  EXPECT_EQ(drops(t.a, Drop::kDiscoUnknownPong), 1u);
}

TEST(Paths, LatePongIsForgotten) {
  TwoPublic t;
  t.w.lose = [](const Endpoint&, const Endpoint&) { return true; };
  const std::size_t before = t.a.sent.size();
  t.a.send_data(t.b);
  const auto tx = std::get<wire::disco::Ping>(opened_since(t.a, t.b, before)[0].message).tx_id;
  t.w.run(5s);
  t.a.deliver_udp(ep("203.0.113.5:41641"), seal(t.b, t.a, wire::disco::Pong{tx, ep("198.51.100.5:41641")}));
  EXPECT_FALSE(direct(t.a, t.b));
}

TEST(Paths, CallMeMaybeListsEverythingAndIsNotAnsweredInKind) {
  TwoHomes t;
  const std::size_t a0 = t.a.sent.size(), b0 = t.b.sent.size();
  t.a.send_data(t.b);
  t.w.run(300ms);
  std::size_t calls = 0;
  for (const auto& m : opened_since(t.a, t.b, a0))
    if (const auto* c = std::get_if<wire::disco::CallMeMaybe>(&m.message)) {
      ++calls;
      EXPECT_EQ(c->endpoints, t.a.announced);
      EXPECT_EQ(m.sent.region, 1);
    }
  EXPECT_EQ(calls, 1u);
  for (const auto& m : opened_since(t.b, t.a, b0)) EXPECT_FALSE(std::holds_alternative<wire::disco::CallMeMaybe>(m.message));
}

TEST(Paths, NoCallMeMaybeToAPeerWithoutCandidates) {
  TwoHomes t;
  PeerConfig c = t.b.config();
  c.endpoints.clear();
  t.a.paths->upsert_peer(t.w.now, c);
  t.w.traffic(t.a, t.b, 10s, false);
  EXPECT_EQ(t.a.paths->counters().call_me_maybe_sent, 0u);
}

TEST(Paths, CallMeMaybeWaitsForFreshEndpoints) {
  TwoHomes t;
  t.w.run(28s);
  const std::size_t before = t.a.sent.size();
  t.a.send_data(t.b);
  for (const auto& m : opened_since(t.a, t.b, before)) EXPECT_FALSE(std::holds_alternative<wire::disco::CallMeMaybe>(m.message));
  bool stun = false;
  for (std::size_t i = before; i < t.a.sent.size(); ++i) stun |= t.a.sent[i].kind == DatagramKind::kStun;
  EXPECT_TRUE(stun);
  t.w.run(21ms);
  EXPECT_EQ(t.a.paths->counters().call_me_maybe_sent, 1u);
}

TEST(Paths, CallMeMaybeReplacesEarlierOnesAndPingsAtOnce) {
  TwoPublic t;
  t.w.lose = [](const Endpoint&, const Endpoint&) { return true; };
  const std::size_t before = t.a.sent.size();
  auto call = [&](std::vector<Endpoint> list) {
    t.a.deliver_relay(1, t.b.node, seal(t.b, t.a, wire::disco::CallMeMaybe{std::move(list)}));
  };
  call({ep("203.0.113.60:1"), ep("203.0.113.61:1"), ep("[fe80::1]:1"), ep("100.64.0.9:1"), ep("224.0.0.1:1"), ep("1.2.3.4:0")});
  EXPECT_EQ(t.a.paths->status(t.w.now, t.b.node)->candidates.size(), 3u);   // two usable and the one of the map
  EXPECT_EQ(opened_since(t.a, t.b, before).size(), 3u);
  // The 5 s spacing does not apply: earlier pings met a closed filter.
  call({ep("203.0.113.60:1")});
  EXPECT_EQ(t.a.paths->status(t.w.now, t.b.node)->candidates.size(), 2u);
  EXPECT_EQ(opened_since(t.a, t.b, before).size(), 5u);
  call({});
  EXPECT_EQ(t.a.paths->status(t.w.now, t.b.node)->candidates.size(), 1u);
  // Only two quick repeats follow, then nothing: there is no traffic of our own.
  t.w.run(1min);
  const auto all = opened_since(t.a, t.b, before);
  EXPECT_LE(all.size(), 8u);
}

TEST(Paths, CallMeMaybeWithdrawingTheBestClearsIt) {
  TwoPublic t;
  const Endpoint best = t.b.addresses[0];
  t.a.deliver_relay(1, t.b.node, seal(t.b, t.a, wire::disco::CallMeMaybe{{best}}));
  t.w.run(30ms);
  ASSERT_TRUE(direct(t.a, t.b));
  t.a.deliver_relay(1, t.b.node, seal(t.b, t.a, wire::disco::CallMeMaybe{}));
  EXPECT_FALSE(t.a.paths->status(t.w.now, t.b.node)->direct);
}

TEST(Paths, CallMeMaybeNeedsRelayAndTheRightNode) {
  TwoPublic t;
  const ByteVector call = seal(t.b, t.a, wire::disco::CallMeMaybe{{ep("203.0.113.60:1")}});
  t.a.deliver_udp(ep("203.0.113.5:41641"), call);
  EXPECT_EQ(drops(t.a, Drop::kDiscoWrongTransport), 1u);
  SeededRng rng(9);
  PeerConfig other;
  other.key = crypto::NodePrivate::generate(rng).public_key();
  other.disco = crypto::DiscoPrivate::generate(rng).public_key();
  t.a.paths->upsert_peer(t.w.now, other);
  t.a.deliver_relay(1, other.key, call);
  EXPECT_EQ(drops(t.a, Drop::kDiscoWrongNode), 1u);
  EXPECT_EQ(t.a.paths->status(t.w.now, t.b.node)->candidates.size(), 1u);
  t.a.deliver_relay(1, crypto::NodePrivate::generate(rng).public_key(), call);
  EXPECT_EQ(drops(t.a, Drop::kRelayUnknownSource), 1u);
}

TEST(Paths, HugeCallMeMaybeIsCapped) {
  TwoPublic t;
  std::vector<Endpoint> many;
  for (int i = 0; i < 2000; ++i) many.push_back({IpAddress::v4(9, 1, 1, 1), static_cast<std::uint16_t>(1000 + i)});
  t.w.lose = [](const Endpoint&, const Endpoint&) { return true; };
  t.a.deliver_relay(1, t.b.node, seal(t.b, t.a, wire::disco::CallMeMaybe{many}));
  EXPECT_EQ(t.a.paths->status(t.w.now, t.b.node)->candidates.size(), kEndpointsTakenMax + 1);
}

TEST(Paths, OneDiscoKeyForTwoNodes) {
  TwoPublic t;
  // The same machine is in the map twice (two accounts): pongs are matched by transaction id over both.
  SeededRng rng(9);
  PeerConfig twin = t.b.config();
  twin.key = crypto::NodePrivate::generate(rng).public_key();
  t.a.paths->upsert_peer(t.w.now, twin);
  EXPECT_FALSE(t.a.paths->route(t.w.now, twin.key).udp);
  t.w.run(50ms);
  EXPECT_TRUE(t.a.paths->route(t.w.now, twin.key).udp);
  // A ping without a node key is ambiguous: answered and a candidate for both, but not in the receive index.
  t.a.deliver_udp(ep("203.0.113.50:7"), seal(t.b, t.a, wire::disco::Ping{{7}, {}, 0}));
  EXPECT_FALSE(t.a.paths->peer_at(ep("203.0.113.50:7")));
  EXPECT_EQ(t.a.paths->status(t.w.now, t.b.node)->candidates.size(), 2u);
  EXPECT_EQ(t.a.paths->status(t.w.now, twin.key)->candidates.size(), 2u);
}

TEST(Paths, StrangersAndForgeriesAreDroppedSilently) {
  TwoPublic t;
  Host stranger(t.w, "stranger", 77);
  const std::size_t before = t.a.sent.size();
  t.a.deliver_udp(ep("9.9.9.9:9"), seal(stranger, t.a, wire::disco::Ping{{1}, stranger.node, 0}));
  EXPECT_EQ(drops(t.a, Drop::kDiscoUnknownSender), 1u);
  ByteVector forged = seal(t.b, t.a, wire::disco::Ping{{1}, t.b.node, 0});
  forged.back() ^= 1;
  t.a.deliver_udp(ep("9.9.9.9:9"), forged);
  EXPECT_EQ(drops(t.a, Drop::kDiscoOpenFailed), 1u);
  t.a.deliver_udp(ep("9.9.9.9:9"), seal(t.a, t.a, wire::disco::Ping{{1}, t.a.node, 0}));
  EXPECT_EQ(drops(t.a, Drop::kDiscoOwnKey), 1u);
  ByteVector geneve = {0, 0, 0x7a, 0x11, 0, 0, 5, 0};
  append(geneve, seal(t.b, t.a, wire::disco::Ping{{1}, t.b.node, 0}));
  t.a.deliver_udp(ep("9.9.9.9:9"), geneve);
  t.a.deliver_relay(1, t.b.node, geneve);
  EXPECT_EQ(drops(t.a, Drop::kGeneve), 2u);
  EXPECT_EQ(t.a.sent.size(), before);
  EXPECT_EQ(t.a.data_udp, 0u);
}

// ---- changes ----

TEST(Paths, NewDiscoKeyFromTheMapMeansRestartFromTheTunnelDoesNot) {
  TwoPublic t;
  t.w.traffic(t.a, t.b, 1s);
  SeededRng rng(3);
  const auto key1 = crypto::DiscoPrivate::generate(rng), key2 = crypto::DiscoPrivate::generate(rng);
  t.a.paths->disco_key_learned(t.w.now, t.b.node, key1.public_key());
  t.a.poll();
  EXPECT_TRUE(t.a.events_of<PeerRestarted>().empty());
  PeerConfig c = t.b.config();
  t.a.paths->upsert_peer(t.w.now, c);   // the map lags behind: no change
  c.disco = key1.public_key();
  t.a.paths->upsert_peer(t.w.now, c);   // and catches up: known already
  t.a.poll();
  EXPECT_TRUE(t.a.events_of<PeerRestarted>().empty());
  c.disco = key2.public_key();
  EXPECT_FALSE(t.a.paths->route(t.w.now, t.b.node).relay_region);
  const std::uint64_t pings = t.a.paths->counters().pings_sent;
  t.a.paths->upsert_peer(t.w.now, c);
  t.a.poll();
  ASSERT_EQ(t.a.events_of<PeerRestarted>().size(), 1u);
  // The path stays, but the peer may have another port now: asked at once, and until it answers the relay carries a copy.
  EXPECT_TRUE(t.a.paths->status(t.w.now, t.b.node)->direct);
  EXPECT_GT(t.a.paths->counters().pings_sent, pings);
  EXPECT_TRUE(t.a.paths->route(t.w.now, t.b.node).udp);
  EXPECT_TRUE(t.a.paths->route(t.w.now, t.b.node).relay_region);
  // The old key no longer speaks for the peer.
  t.a.deliver_udp(ep("9.9.9.9:9"), seal(t.b, t.a, wire::disco::Ping{{1}, t.b.node, 0}));
  EXPECT_EQ(drops(t.a, Drop::kDiscoUnknownSender), 1u);
}

TEST(Paths, RebindDoubtsPathsKeepsCandidatesAndFindsThemAgain) {
  TwoHomes t;
  t.w.traffic(t.a, t.b, 1s);
  ASSERT_TRUE(direct(t.a, t.b));
  // The laptop moves: another NAT, another address.
  Nat& other = t.w.add_nat("198.51.100.77");
  t.a.nat = &other;
  t.a.addresses = {ep("172.16.0.9:5555")};
  World::set_addresses(t.a);
  t.a.paths->handle_rebind(t.w.now);
  t.a.poll();
  const auto s = t.a.paths->status(t.w.now, t.b.node);
  EXPECT_FALSE(s->direct);
  EXPECT_FALSE(s->candidates.empty());
  EXPECT_TRUE(t.a.send_data(t.b).relay_region);
  t.w.traffic(t.a, t.b, 400ms);
  EXPECT_TRUE(direct(t.a, t.b));
  EXPECT_EQ(t.a.announced[0], ep("198.51.100.77:20000"));
  EXPECT_EQ(t.b.paths->peer_at(ep("198.51.100.77:20000")), t.a.node);
}

TEST(Paths, UnreachableAddressIsDroppedAtOnce) {
  TwoPublic t;
  t.w.traffic(t.a, t.b, 1s);
  ASSERT_TRUE(direct(t.a, t.b));
  t.a.paths->handle_send_error(t.w.now, ep("203.0.113.5:41641"), SendErrorKind::kHostUnreachable);
  const Route r = t.a.send_data(t.b);
  EXPECT_FALSE(r.udp);
  EXPECT_TRUE(r.relay_region);
}

TEST(Paths, BrokenSocketAsksForRebindAtMostEveryFiveSeconds) {
  TwoPublic t;
  for (int i = 0; i < 10; ++i) t.a.paths->handle_send_error(t.w.now, ep("9.9.9.9:9"), SendErrorKind::kSocketBroken);
  t.a.poll();
  EXPECT_EQ(t.a.events_of<RebindWanted>().size(), 1u);
  t.w.run(5s);
  t.a.paths->handle_send_error(t.w.now, ep("9.9.9.9:9"), SendErrorKind::kNotPermitted);
  t.a.poll();
  EXPECT_EQ(t.a.events_of<RebindWanted>().size(), 2u);
}

TEST(Paths, MapUpdateWithNewEndpointsStartsARoundForWaitingTraffic) {
  World w;
  Host& a = w.add_host("a", {"192.168.1.2:41641"}, nullptr, "home");
  Host& b = w.add_host("b", {"192.168.1.3:41641"}, nullptr, "home");
  w.start_all();
  PeerConfig c = b.config();
  c.endpoints.clear();
  a.paths->upsert_peer(w.now, c);
  b.paths->upsert_peer(w.now, a.config());
  EXPECT_FALSE(a.send_data(b).known());
  w.run(1s);
  a.paths->upsert_peer(w.now, b.config());
  w.run(5ms);
  EXPECT_TRUE(direct(a, b));
}

TEST(Paths, RemovedPeerIsForgottenEverywhere) {
  TwoPublic t;
  t.w.traffic(t.a, t.b, 1s);
  const PathId id = t.a.paths->find(t.b.node);
  ASSERT_TRUE(id.is_valid());
  EXPECT_TRUE(t.a.paths->route(t.w.now, id).known());
  t.a.paths->set_peers(t.w.now, {});
  EXPECT_FALSE(t.a.paths->route(t.w.now, id).known());
  EXPECT_FALSE(t.a.paths->find(t.b.node).is_valid());
  EXPECT_FALSE(t.a.paths->peer_at(ep("203.0.113.5:41641")));
  t.w.run(1min);   // its timers are gone
  t.a.paths->upsert_peer(t.w.now, t.b.config());
  EXPECT_NE(t.a.paths->find(t.b.node), id);
  EXPECT_FALSE(t.a.paths->route(t.w.now, id).known());
}

TEST(Paths, ExpiredPeerIsRefused) {
  TwoPublic t;
  PeerConfig c = t.b.config();
  c.expired = true;
  t.a.paths->upsert_peer(t.w.now, c);
  const std::size_t before = t.a.sent.size();
  EXPECT_FALSE(t.a.send_data(t.b).known());
  EXPECT_EQ(t.a.sent.size(), before);
  EXPECT_EQ(to_text(t.a.paths->status(t.w.now, t.b.node)->not_direct), "the peer's key has expired");
}

TEST(Paths, RelayOnlyNeverTouchesPeersByUdp) {
  TwoPublic t;
  t.w.traffic(t.a, t.b, 1s);
  t.a.paths->set_mode(t.w.now, {true, true, false});
  t.a.poll();
  EXPECT_TRUE(t.a.announced.empty());
  const auto before = t.a.count_sent(kDisco, ep("203.0.113.5:41641"));
  t.w.traffic(t.a, t.b, 20s);
  EXPECT_EQ(t.a.count_sent(kDisco, ep("203.0.113.5:41641")), before);
  const Route r = t.a.send_data(t.b);
  EXPECT_FALSE(r.udp);
  EXPECT_EQ(r.relay_region, 1);
  EXPECT_FALSE(direct(t.b, t.a));   // it does not answer pings either
  t.a.paths->set_mode(t.w.now, {});
  t.w.traffic(t.a, t.b, 6s);
  EXPECT_TRUE(direct(t.a, t.b));
}

TEST(Paths, UdpDisabledMeansNoDatagramAtAll) {
  World w;
  w.add_region(1, "192.0.2.10:3478");
  w.add_region(2, "192.0.2.20:3478");
  Host& a = w.add_host("a", {"198.51.100.5:41641"});
  Host& b = w.add_host("b", {"203.0.113.5:41641"});
  a.paths->set_mode(w.now, {false, false, false});
  w.start_all();
  w.run(4s);
  w.share_map();
  w.traffic(a, b, 10s);
  for (const Sent& s : a.sent) EXPECT_FALSE(s.udp);
  EXPECT_NE(a.home, 0);
  EXPECT_GT(b.data_relay, 50u);
  EXPECT_EQ(a.paths->net_info().working_udp, false);
}

TEST(Paths, RelayRouteFollowsConnections) {
  World w;
  w.add_region(1, "192.0.2.10:3478");
  w.add_region(2, "192.0.2.20:3478");
  Host& a = w.add_host("a", {"198.51.100.5:41641"});
  a.relay_connected = false;
  w.start(a);
  SeededRng rng(9);
  PeerConfig c;
  c.key = crypto::NodePrivate::generate(rng).public_key();
  c.home_region = 1;
  a.paths->upsert_peer(w.now, c);
  auto region = [&] { return a.paths->route(w.now, c.key).relay_region; };
  EXPECT_EQ(region(), 1);                                   // dialled for it
  a.paths->note_relay_connected(w.now, 2, true);
  EXPECT_EQ(region(), 1);
  a.paths->note_authenticated_relay(w.now, c.key, 2);
  EXPECT_EQ(region(), 2);                                   // heard there on an open connection
  a.paths->note_relay_connected(w.now, 1, true);
  EXPECT_EQ(region(), 1);                                   // its home is open now
  a.paths->note_relay_connected(w.now, 1, false);
  EXPECT_EQ(region(), 2);
  a.paths->note_peer_gone(w.now, 2, c.key);
  EXPECT_EQ(region(), 1);
  c.home_region = 0;
  a.paths->upsert_peer(w.now, c);
  EXPECT_EQ(region(), std::nullopt);
  a.poll();
  a.events.clear();
  a.paths->note_authenticated_relay(w.now, c.key, 2);       // it reached us: there is a way back, and the tunnel is told
  a.poll();
  ASSERT_EQ(a.events_of<PeerPathChanged>().size(), 1u);
  EXPECT_EQ(a.events_of<PeerPathChanged>()[0].relay_region, 2);
}

// ---- pings for people ----

TEST(Paths, PingReportsTheWayItTook) {
  TwoHomes t;
  t.a.paths->ping(t.w.now, 42, t.b.node);
  t.w.run(500ms);
  ASSERT_EQ(t.a.events_of<PingResult>().size(), 1u);
  PingResult r = t.a.events_of<PingResult>()[0];
  EXPECT_TRUE(r.answered);
  EXPECT_EQ(r.token, 42u);
  EXPECT_EQ(r.relay_region, 1);
  EXPECT_EQ(r.latency, 40ms);
  t.w.run(1s);
  t.a.paths->ping(t.w.now, 43, t.b.node, 1360);
  t.w.run(500ms);
  r = t.a.events_of<PingResult>().back();
  EXPECT_EQ(r.token, 43u);
  EXPECT_EQ(r.endpoint, ep("203.0.113.1:20000"));
  EXPECT_EQ(r.latency, 20ms);
  bool padded = false;
  for (const Sent& s : t.a.sent) padded |= s.udp && s.data.size() == 1332;
  EXPECT_TRUE(padded);
  // Only the direct path was asked, since it is trusted: a quicker relay must not hide it.
  std::size_t relayed = 0;
  for (const Sent& s : t.a.sent) relayed += !s.udp && s.kind == kDisco;
  t.a.paths->ping(t.w.now, 44, t.b.node);
  for (const Sent& s : t.a.sent) relayed -= !s.udp && s.kind == kDisco;
  EXPECT_EQ(relayed, 0u);
}

TEST(Paths, PingTimesOutOrFailsAtOnce) {
  TwoPublic t;
  t.b.udp_blocked = true;
  t.b.relay_connected = false;
  t.a.paths->ping(t.w.now, 1, t.b.node);
  t.a.paths->ping(t.w.now, 2, NodePublic());
  t.a.poll();
  ASSERT_EQ(t.a.events_of<PingResult>().size(), 1u);
  EXPECT_EQ(t.a.events_of<PingResult>()[0].token, 2u);
  t.w.run(5s);
  ASSERT_EQ(t.a.events_of<PingResult>().size(), 2u);
  EXPECT_FALSE(t.a.events_of<PingResult>()[1].answered);
}

TEST(Paths, PingWaitsForTheFirstWay) {
  TwoPublic t;
  PeerConfig known = t.b.config();
  PeerConfig stranger = known;
  stranger.home_region = 0;
  stranger.endpoints.clear();
  t.a.paths->remove_peer(t.w.now, t.b.node);
  t.a.paths->upsert_peer(t.w.now, stranger);
  t.a.paths->ping(t.w.now, 1, t.b.node);
  t.w.run(2s);
  EXPECT_TRUE(t.a.events_of<PingResult>().empty());
  t.a.paths->upsert_peer(t.w.now, known);
  t.w.run(500ms);
  ASSERT_EQ(t.a.events_of<PingResult>().size(), 1u);
  PingResult r = t.a.events_of<PingResult>()[0];
  EXPECT_TRUE(r.answered && r.sent);
  EXPECT_LE(r.latency, 100ms);   // of the way, not of the wait
  // And when none becomes known, that is what is said.
  t.a.paths->remove_peer(t.w.now, t.b.node);
  t.a.paths->upsert_peer(t.w.now, stranger);
  t.a.paths->ping(t.w.now, 2, t.b.node);
  t.w.run(6s);
  ASSERT_EQ(t.a.events_of<PingResult>().size(), 2u);
  r = t.a.events_of<PingResult>()[1];
  EXPECT_FALSE(r.answered || r.sent);
}

TEST(Paths, SaysWhyItIsNotDirect) {
  using Reason = NotDirect::Reason;
  TwoHomes t;
  auto why = [&] { return t.a.paths->status(t.w.now, t.b.node)->not_direct; };
  EXPECT_EQ(why().reason, Reason::kNotTried);
  EXPECT_EQ(to_text(why()), "not tried yet: no traffic");
  t.w.traffic(t.a, t.b, 5s);
  EXPECT_EQ(why(), NotDirect{});
  EXPECT_EQ(to_text(why()), "");
  // The way dies under traffic: how long it has been silent is told, and grows.
  t.b.udp_blocked = true;
  t.w.traffic(t.a, t.b, 20s);
  EXPECT_EQ(why().reason, Reason::kNoAnswer);
  const NotDirect before = why();
  EXPECT_GT(before.silent, 5s);
  EXPECT_EQ(before.addresses, 2u);
  t.w.traffic(t.a, t.b, 5s);
  EXPECT_EQ(why().silent - before.silent, 5s);
  // Without traffic nothing is pinged, so nothing is counted.
  t.w.run(1min);
  EXPECT_EQ(why().reason, Reason::kIdle);
  EXPECT_EQ(why().silent, Duration{});
  // No STUN answer either.
  t.b.udp_blocked = false;
  t.a.udp_blocked = true;
  t.a.paths->handle_rebind(t.w.now);
  t.w.traffic(t.a, t.b, 30s);
  EXPECT_EQ(why().reason, Reason::kUdpBlocked);
  EXPECT_EQ(to_text({Reason::kUdpBlocked, 1, 12s, false}),
            "UDP is blocked here: no STUN server answers, and no answer to pings at 1 address since 12 s");
  EXPECT_EQ(to_text({Reason::kNoAnswer, 3, 500ms, true}),
            "no answer to pings at 3 addresses; the NAT here changes ports by destination, which makes a direct path unlikely");
  PeerConfig c = t.b.config();
  t.a.paths->remove_peer(t.w.now, t.b.node);
  c.endpoints.clear();
  t.a.paths->upsert_peer(t.w.now, c);
  EXPECT_EQ(to_text(why()), "the peer has announced no endpoints");
  c.disco = {};
  t.a.paths->upsert_peer(t.w.now, c);
  EXPECT_EQ(why().reason, Reason::kNoDisco);
}

// ---- determinism and hostile input ----

TEST(Paths, SameSeedSameBytes) {
  auto run = [] {
    TwoHomes t;
    t.w.traffic(t.a, t.b, 10s);
    ByteVector all;
    for (const Sent& s : t.a.sent) append(all, s.data);
    return all;
  };
  EXPECT_EQ(run(), run());
}

TEST(Paths, NoiseDoesNotCrashOrAnswer) {
  TwoPublic t;
  SeededRng rng(11);
  const std::size_t before = t.a.sent.size();
  const ByteVector ping = seal(t.b, t.a, wire::disco::Ping{{7}, t.b.node, 0});
  for (int i = 0; i < 20000; ++i) {
    ByteVector p(rng.below(200));
    rng.fill(p);
    if (i % 3 == 0 && !p.empty()) std::memcpy(p.data(), ping.data(), std::min<std::size_t>(p.size(), rng.below(ping.size())));
    const Endpoint from{IpAddress::v4(rng.u32()), static_cast<std::uint16_t>(1 + rng.below(65535))};
    (void)t.a.paths->handle_udp(t.w.now, {from, p});
    (void)t.a.paths->handle_relayed(t.w.now, 1, t.b.node, p);
  }
  for (std::size_t bit = 0; bit < ping.size() * 8; ++bit) {
    ByteVector p = ping;
    p[bit / 8] ^= static_cast<std::uint8_t>(1u << (bit % 8));
    (void)t.a.paths->handle_udp(t.w.now, {ep("9.9.9.9:9"), p});
  }
  EXPECT_EQ(t.a.sent.size(), before);
}

}  // namespace
}  // namespace porthole::paths
