// Single disco messages: who is answered, who is believed, and what is dropped.
#include <gtest/gtest.h>

#include "paths/limits.h"
#include "paths/spec_constants.h"
#include "paths/world_for_test.h"

namespace porthole::paths {
namespace {

using namespace world;

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
  for (std::size_t i = before; i < t.a.sent.size(); ++i) stun |= t.a.sent[i].kind == wire::DatagramKind::kStun;
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

}  // namespace
}  // namespace porthole::paths
