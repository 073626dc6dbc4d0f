// How two nodes become direct, stay so and fall back to the relay, in virtual time.
#include <gtest/gtest.h>

#include "paths/limits.h"
#include "paths/spec_constants.h"
#include "paths/world_for_test.h"

namespace porthole::paths {
namespace {

using namespace world;

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
  HardHome t;
  Host& b = t.w.add_host("b", {"203.0.113.5:41641"});
  t.w.start_all();
  t.w.run(4s);
  t.w.share_map();
  t.w.traffic(t.a, b, 1s);
  EXPECT_TRUE(direct(t.a, b));
  EXPECT_TRUE(direct(b, t.a));   // by ping-back, without waiting for a round
  const auto s = b.paths->status(t.w.now, t.a.node);
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

}  // namespace
}  // namespace porthole::paths
