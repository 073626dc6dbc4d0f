// Changes of keys, sockets, maps and relays; pings for people; determinism and noise.
#include <gtest/gtest.h>

#include "paths/limits.h"
#include "paths/spec_constants.h"
#include "paths/world_for_test.h"

namespace porthole::paths {
namespace {

using namespace world;

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
