// Sessions and timers: two tunnels on a fake wire, in virtual time.
#include <gtest/gtest.h>

#include <set>

#include "wg/limits.h"
#include "wg/spec_constants.h"
#include "wg/test_world.h"

namespace porthole::wg {
namespace {

using test::drops;
using test::Node;
using test::World;

struct Pair {
  explicit Pair(std::uint64_t seed = 1) : world(seed), a(world.add("a")), b(world.add("b")) { world.introduce(a, b); }
  // a is the initiator.
  void establish() {
    a.send(b, 0);
    world.run_for(100ms);
    ASSERT_EQ(a.tunnel->state(a.id_of(b)), SessionState::kEstablished);
    ASSERT_EQ(b.tunnel->state(b.id_of(a)), SessionState::kEstablished);
  }
  World world;
  Node &a, &b;
};

bool is_type(Bytes d, std::uint8_t type) { return d[0] == type; }

TEST(WgSession, FirstPacketTakesOneAndAHalfRoundTrips) {
  Pair p;
  const Instant start = p.world.now;
  p.a.send(p.b, 7);
  EXPECT_TRUE(p.a.tunnel->has_staged(p.a.id_of(p.b)));
  p.world.run_for(1s);
  ASSERT_EQ(p.b.delivered.size(), 1u);
  EXPECT_EQ(test::packet_id(p.b.delivered[0].packet), 7u);
  EXPECT_EQ(p.b.delivered[0].at - start, 30ms);
  EXPECT_FALSE(p.a.tunnel->has_staged(p.a.id_of(p.b)));
  EXPECT_EQ(p.a.count_sent(kTypeInitiation), 1u);
  EXPECT_EQ(p.b.count_sent(kTypeResponse), 1u);
  // handshaking, then established; the responder only established, on the first packet.
  ASSERT_EQ(p.a.sessions.size(), 2u);
  EXPECT_EQ(p.a.sessions[0].second, SessionState::kHandshaking);
  EXPECT_EQ(p.a.sessions[1].second, SessionState::kEstablished);
  ASSERT_EQ(p.b.sessions.size(), 1u);
  const PeerStats stats = p.a.tunnel->stats(p.a.id_of(p.b));
  EXPECT_EQ(stats.tx_packets, 1u);
  EXPECT_EQ(stats.tx_bytes, 148u + 32u + 64u);
  EXPECT_EQ(stats.rx_bytes, 92u);
  EXPECT_EQ(stats.last_handshake, std::optional(start + 20ms));
}

TEST(WgSession, WhatTheSessionCallbackSendsGoesFirst) {
  Pair p;
  p.a.on_session = [&](PeerId id, SessionState s) {
    if (s == SessionState::kEstablished) p.a.tunnel->send(p.a.clock(), id, test::ip_packet(p.a.address, p.b.address, 99));
  };
  p.b.on_session = [&](PeerId, SessionState s) {
    if (s == SessionState::kEstablished) p.b.send(p.a, 98);
  };
  p.a.send(p.b, 1);
  p.a.send(p.b, 2);
  p.world.run_for(1s);
  ASSERT_EQ(p.b.delivered.size(), 3u);
  EXPECT_EQ(test::packet_id(p.b.delivered[0].packet), 99u);
  EXPECT_EQ(test::packet_id(p.b.delivered[1].packet), 1u);
  EXPECT_EQ(test::packet_id(p.b.delivered[2].packet), 2u);
  ASSERT_EQ(p.a.delivered.size(), 1u);
  EXPECT_EQ(test::packet_id(p.a.delivered[0].packet), 98u);
  // It served as the confirmation: no keepalive of its own.
  EXPECT_EQ(p.a.count_sent(kTypeTransport), 3u);
}

TEST(WgSession, WithoutDataTheInitiatorConfirmsWithAKeepalive) {
  Pair p;
  p.a.tunnel->start_handshake(p.a.clock(), p.a.id_of(p.b));
  p.world.run_for(30s);
  EXPECT_EQ(p.b.tunnel->state(p.b.id_of(p.a)), SessionState::kEstablished);
  EXPECT_EQ(p.a.count_sent(kTypeTransport), 1u);  // and then two idle peers fall silent
  EXPECT_EQ(p.b.count_sent(kTypeTransport), 0u);
  EXPECT_EQ(p.a.count_sent(kTypeInitiation), 1u);
  p.a.tunnel->start_handshake(p.a.clock(), p.a.id_of(p.b));  // usable: nothing to do
  EXPECT_EQ(p.a.count_sent(kTypeInitiation), 1u);
}

TEST(WgSession, ResponderDoesNotSendBeforeConfirmation) {
  Pair p;
  p.world.pass = [](const Node& from, const Node&, Bytes d) { return from.name == "b" || !is_type(d, kTypeTransport); };
  p.a.tunnel->start_handshake(p.a.clock(), p.a.id_of(p.b));
  p.world.run_for(50ms);
  p.b.send(p.a, 5);
  p.world.run_for(1s);
  EXPECT_EQ(p.b.count_sent(kTypeTransport), 0u);
  EXPECT_TRUE(p.b.tunnel->has_staged(p.b.id_of(p.a)));
  EXPECT_EQ(p.b.count_sent(kTypeInitiation), 0u);  // it answered less than 5 s ago
  p.world.pass = nullptr;
  p.a.send(p.b, 6);
  p.world.run_for(1s);
  ASSERT_EQ(p.a.delivered.size(), 1u);
  EXPECT_EQ(test::packet_id(p.a.delivered[0].packet), 5u);
}

// The retransmission timer must not die inside the 5 s guard that our own response moved.
TEST(WgSession, BlockedInitiationIsSentWhenTheGuardEnds) {
  Pair p;
  p.world.pass = [](const Node& from, const Node&, Bytes d) { return from.name == "b" || !is_type(d, kTypeTransport); };
  p.a.tunnel->start_handshake(p.a.clock(), p.a.id_of(p.b));
  const Instant start = p.world.now;
  p.world.run_for(1s);
  p.b.send(p.a, 5);
  p.world.run_for(10s);
  const auto at = p.b.sent_at(kTypeInitiation);
  ASSERT_EQ(at.size(), 1u);
  EXPECT_EQ(at[0] - start, 5s + 10ms);
  ASSERT_EQ(p.a.delivered.size(), 1u);
}

TEST(WgSession, ResponseLossRetriesTwentyTimesThenGivesUp) {
  Pair p;
  p.world.pass = [](const Node&, const Node&, Bytes d) { return !is_type(d, kTypeResponse); };
  const Instant start = p.world.now;
  p.a.send(p.b, 1);
  p.a.send(p.b, 2);
  p.world.run_for(99s);
  EXPECT_TRUE(p.a.tunnel->has_staged(p.a.id_of(p.b)));
  EXPECT_EQ(p.a.tunnel->state(p.a.id_of(p.b)), SessionState::kHandshaking);
  p.world.run_for(8s);
  EXPECT_FALSE(p.a.tunnel->has_staged(p.a.id_of(p.b)));
  EXPECT_EQ(p.a.tunnel->state(p.a.id_of(p.b)), SessionState::kNone);
  EXPECT_EQ(drops(p.a, Drop::kHandshakeFailed), 2u);
  p.world.run_for(600s);
  const auto at = p.a.sent_at(kTypeInitiation);
  ASSERT_EQ(at.size(), 20u);
  EXPECT_EQ(at[0], start);
  std::set<ByteVector> ephemerals, indices;
  for (const auto& s : p.a.sent) {
    ASSERT_EQ(s.datagram[0], kTypeInitiation);
    ephemerals.insert(to_vector(Bytes(s.datagram).subspan(8, 32)));
    indices.insert(to_vector(Bytes(s.datagram).subspan(4, 4)));
  }
  EXPECT_EQ(ephemerals.size(), 20u);
  EXPECT_EQ(indices.size(), 20u);
  for (std::size_t i = 1; i < at.size(); ++i) {
    EXPECT_GE(at[i] - at[i - 1], 5s);
    EXPECT_LE(at[i] - at[i - 1], 5333ms);
  }
  EXPECT_EQ(p.b.count_sent(kTypeResponse), 20u);  // every stamp was newer
}

TEST(WgSession, RetriesEvenWhenTheWallClockStandsStill) {
  Pair p;
  p.world.pass = [](const Node&, const Node&, Bytes d) { return !is_type(d, kTypeResponse); };
  const WallTime frozen = p.world.wall;
  p.a.send(p.b, 1);
  for (int i = 0; i < 30; ++i) {
    p.world.run_for(1s);
    p.world.wall = frozen;
  }
  EXPECT_GT(p.a.count_sent(kTypeInitiation), 4u);
  EXPECT_EQ(drops(p.b, Drop::kReplayedStamp), 0u);
  EXPECT_EQ(p.b.count_sent(kTypeResponse), p.a.count_sent(kTypeInitiation));
}

TEST(WgSession, OnlyTheInitiatorRekeysOnSendAndOnlyAfter120Seconds) {
  for (const bool initiator_sends : {true, false}) {
    Pair p;
    p.establish();
    Node& from = initiator_sends ? p.a : p.b;
    Node& to = initiator_sends ? p.b : p.a;
    // The session was created at 10 ms (responder) and 20 ms (initiator) of the first 100 ms.
    p.world.run_for(119'900ms - 100ms + 10ms);
    from.send(to, 1);
    EXPECT_EQ(from.count_sent(kTypeInitiation), initiator_sends ? 1u : 0u);
    p.world.run_for(200ms);
    from.send(to, 2);
    EXPECT_EQ(from.count_sent(kTypeInitiation), initiator_sends ? 2u : 0u);
    p.world.run_for(1s);
    from.send(to, 3);
    p.world.run_for(1s);
    EXPECT_EQ(from.count_sent(kTypeInitiation), initiator_sends ? 2u : 0u);
    EXPECT_EQ(to.delivered.size(), initiator_sends ? 4u : 3u);
  }
}

TEST(WgSession, InitiatorRekeysOnceOnReceiveAfter165Seconds) {
  Pair p;
  p.establish();
  p.world.pass = [](const Node& from, const Node&, Bytes d) { return from.name == "b" || is_type(d, kTypeTransport); };
  p.world.run_for(165s - 100ms - 50ms);
  p.b.send(p.a, 1);
  p.world.run_for(30ms);
  EXPECT_EQ(p.a.count_sent(kTypeInitiation), 1u);
  p.world.run_for(200ms);
  p.b.send(p.a, 2);
  p.world.run_for(30ms);
  EXPECT_EQ(p.a.count_sent(kTypeInitiation), 2u);
  for (std::uint64_t i = 0; i < 20; ++i) {
    p.b.send(p.a, 3 + i);
    p.world.run_for(100ms);
  }
  EXPECT_EQ(p.a.count_sent(kTypeInitiation), 2u);  // once per key pair; retransmissions are the timer's business
}

TEST(WgSession, KeysDieAt180Seconds) {
  Pair p;
  p.establish();
  ByteVector late;
  p.world.pass = [&](const Node& from, const Node&, Bytes d) {
    if (from.name == "a" && is_type(d, kTypeTransport)) late = to_vector(d);
    return false;
  };
  p.world.run_for(100s);
  p.a.send(p.b, 1);
  ASSERT_FALSE(late.empty());
  p.world.run_for(80s);
  EXPECT_EQ(p.a.tunnel->state(p.a.id_of(p.b)), SessionState::kHandshaking);  // 15 s of silence after data began one
  EXPECT_EQ(p.b.tunnel->state(p.b.id_of(p.a)), SessionState::kExpired);
  const std::size_t before = p.a.count_sent(kTypeTransport);
  p.a.send(p.b, 2);
  EXPECT_EQ(p.a.count_sent(kTypeTransport), before);
  EXPECT_TRUE(p.a.tunnel->has_staged(p.a.id_of(p.b)));
  const std::size_t delivered = p.b.delivered.size();
  p.world.put(p.a.endpoint, p.b, late);
  p.world.run_for(50ms);
  EXPECT_EQ(p.b.delivered.size(), delivered);
  p.world.pass = nullptr;
  p.world.run_for(6s);
  EXPECT_EQ(p.b.delivered.size(), delivered + 1);
}

TEST(WgSession, SuspendDoesNotSendOnOldKeys) {
  Pair p;
  p.establish();
  p.world.jump(200s);
  const std::size_t before = p.a.count_sent(kTypeTransport);
  p.a.send(p.b, 1);  // before any timer had a chance to run
  EXPECT_EQ(p.a.count_sent(kTypeTransport), before);
  EXPECT_EQ(p.a.count_sent(kTypeInitiation), 2u);
  p.world.run_for(100ms);
  EXPECT_EQ(p.b.delivered.size(), 2u);
}

TEST(WgSession, ASessionThatThePeerForgotIsRenewed) {
  Pair p;
  p.establish();
  const PeerId id = p.a.id_of(p.b);
  p.b.tunnel->reset_session(p.b.clock(), p.b.id_of(p.a));
  p.a.send(p.b, 1);
  p.world.run_for(100ms);
  EXPECT_EQ(p.b.delivered.size(), 1u);                            // that of establish()
  EXPECT_EQ(p.a.tunnel->state(id), SessionState::kEstablished);   // as far as it knows
  p.a.tunnel->renew_session(p.a.clock(), id);
  p.world.run_for(100ms);
  p.a.send(p.b, 2);
  p.world.run_for(100ms);
  EXPECT_EQ(p.b.delivered.size(), 2u);
}

TEST(WgSession, AfterALongSleepAHandshakeStartsAtOnce) {
  Pair p;
  p.establish();
  const PeerId id = p.a.id_of(p.b);
  p.a.tunnel->send(p.a.clock(), id, test::ip_packet(p.a.address, p.b.address, 99));   // unanswered: due in 15 s
  Clock later{p.a.clock().now + 600s, p.a.clock().wall + 600s};
  p.a.tunnel->handle_timeout(later);
  EXPECT_EQ(p.a.tunnel->state(id), SessionState::kNone);
  const auto before = p.a.count_sent(kTypeInitiation);
  p.a.tunnel->start_handshake(later, id);
  EXPECT_EQ(p.a.tunnel->state(id), SessionState::kHandshaking);
  EXPECT_EQ(p.a.count_sent(kTypeInitiation), before + 1);
}

TEST(WgSession, EverythingIsWipedAfter540IdleSeconds) {
  Pair p;
  p.establish();
  p.a.sessions.clear();
  p.world.run_for(539s);
  ASSERT_EQ(p.a.sessions.size(), 1u);
  EXPECT_EQ(p.a.sessions[0].second, SessionState::kExpired);
  p.world.run_for(2s);
  EXPECT_EQ(p.a.sessions.back().second, SessionState::kNone);
  EXPECT_EQ(p.b.sessions.back().second, SessionState::kNone);
  EXPECT_TRUE(p.a.tunnel->next_timeout().is_never());
  // The node drops the peer; an initiation recorded before does not bring it back.
  const ByteVector recorded = p.a.sent[0].datagram;
  ASSERT_EQ(recorded[0], kTypeInitiation);
  p.b.tunnel->remove_peer(p.b.clock(), p.b.id_of(p.a));
  p.b.admit_all = true;
  p.world.put(p.a.endpoint, p.b, recorded);
  p.world.run_for(1s);
  EXPECT_EQ(p.b.tunnel->peer_count(), 0u);
  EXPECT_EQ(drops(p.b, Drop::kReplayedStamp), 1u);
  EXPECT_EQ(p.b.count_sent(kTypeResponse), 1u);
  p.a.send(p.b, 3);  // a fresh one does
  p.world.run_for(1s);
  EXPECT_EQ(p.b.tunnel->peer_count(), 1u);
  EXPECT_EQ(test::packet_id(p.b.delivered.back().packet), 3u);
}

TEST(WgSession, PeersThatNeverHadASessionAreReportedToo) {
  Pair p;
  p.world.run_for(541s);
  ASSERT_EQ(p.a.sessions.size(), 1u);
  EXPECT_EQ(p.a.sessions[0].second, SessionState::kNone);
}

TEST(WgSession, UnansweredDataStartsANewSessionAfter15Seconds) {
  Pair p;
  p.establish();
  p.world.run_for(20s);  // the passive keepalives are over
  p.world.pass = [](const Node& from, const Node&, Bytes) { return from.name == "a"; };
  const Instant start = p.world.now;
  p.a.send(p.b, 1);
  p.world.run_for(3s);
  p.a.send(p.b, 2);  // does not move the timer
  p.world.run_for(13s);
  const auto at = p.a.sent_at(kTypeInitiation);
  ASSERT_EQ(at.size(), 2u);
  EXPECT_GE(at[1] - start, 15s);
  EXPECT_LE(at[1] - start, 15'333ms);
}

TEST(WgSession, PassiveKeepalives) {
  Pair p;
  p.establish();
  p.world.run_for(60s);
  const std::size_t before = p.b.count_sent(kTypeTransport);
  const Instant start = p.world.now;
  p.a.send(p.b, 1);
  p.world.run_for(60s - 1ms);
  // Exactly one, 10 s after the data came; the keepalive itself provokes nothing.
  auto at = p.b.sent_at(kTypeTransport);
  ASSERT_EQ(at.size(), before + 1);
  EXPECT_EQ(at.back() - start, 10s + 10ms);
  EXPECT_EQ(p.b.sent.back().datagram.size(), 32u);
  EXPECT_EQ(p.a.count_sent(kTypeInitiation), 1u);
}

TEST(WgSession, SecondKeepaliveOnlyWhenMoreDataCame) {
  Pair p;
  p.establish();
  p.world.run_for(30s);
  const std::size_t before = p.b.count_sent(kTypeTransport);
  p.a.send(p.b, 1);
  p.world.run_for(5s);
  p.a.send(p.b, 2);
  p.world.run_for(40s);
  EXPECT_EQ(p.b.count_sent(kTypeTransport), before + 2);
}

TEST(WgSession, PersistentKeepalive) {
  Pair p;
  p.a.tunnel->set_persistent_keepalive(p.a.clock(), p.a.id_of(p.b), 25s);
  p.world.run_for(24s);
  EXPECT_TRUE(p.a.sent.empty());
  p.world.run_for(2s);
  EXPECT_EQ(p.a.count_sent(kTypeInitiation), 1u);
  EXPECT_EQ(p.a.count_sent(kTypeTransport), 1u);
  p.world.run_for(75s);
  EXPECT_EQ(p.a.count_sent(kTypeTransport), 4u);
  p.a.tunnel->set_persistent_keepalive(p.a.clock(), p.a.id_of(p.b), 0s);
  p.world.run_for(100s);
  EXPECT_EQ(p.a.count_sent(kTypeTransport), 4u);
}

TEST(WgSession, InFlightPacketsOnThePreviousKeysStillCount) {
  Pair p;
  p.establish();
  std::vector<ByteVector> held;
  bool hold = true;
  p.world.pass = [&](const Node& from, const Node&, Bytes d) {
    if (hold && from.name == "a" && is_type(d, kTypeTransport)) {
      held.push_back(to_vector(d));
      return false;
    }
    return true;
  };
  p.world.run_for(115s);
  p.a.send(p.b, 1);  // delayed on a slow path
  hold = false;
  p.world.run_for(6s);
  p.a.send(p.b, 2);  // rekeys
  p.world.run_for(1s);
  p.a.send(p.b, 3);
  p.world.run_for(1s);
  EXPECT_EQ(p.a.count_sent(kTypeInitiation), 2u);
  EXPECT_EQ(p.b.delivered.size(), 3u);
  ASSERT_EQ(held.size(), 1u);
  p.world.put(p.a.endpoint, p.b, held[0]);
  p.world.run_for(1s);
  EXPECT_EQ(p.b.delivered.size(), 4u);
  EXPECT_EQ(test::packet_id(p.b.delivered.back().packet), 1u);
  p.world.run_for(58s);  // 181 s after its session began
  p.world.put(p.a.endpoint, p.b, held[0]);
  p.world.run_for(1s);
  EXPECT_EQ(p.b.delivered.size(), 4u);
}

TEST(WgSession, SimultaneousInitiationDoesNotStall) {
  for (int skew_ms = 0; skew_ms <= 300; skew_ms += 5) {
    for (const Duration delay : {Duration(5ms), Duration(40ms), Duration(150ms)}) {
      Pair p(static_cast<std::uint64_t>(skew_ms) + 1);
      p.world.delay = delay;
      const Instant start = p.world.now;
      p.a.send(p.b, 1);
      p.world.run_for(Duration(1ms) * skew_ms);
      const Instant second = p.world.now;
      p.b.send(p.a, 2);
      p.world.run_for(4 * delay + 1ms);
      ASSERT_GE(p.b.delivered.size(), 1u) << skew_ms << " ms";
      ASSERT_GE(p.a.delivered.size(), 1u) << skew_ms << " ms";
      EXPECT_LE(p.b.delivered[0].at - start, 4 * delay);
      EXPECT_LE(p.a.delivered[0].at - second, 4 * delay);
      // And the session goes on working both ways, with nothing left to retransmit.
      for (std::uint64_t i = 0; i < 50; ++i) {
        p.a.send(p.b, 100 + i);
        p.b.send(p.a, 200 + i);
        p.world.run_for(200ms);
      }
      EXPECT_EQ(p.a.delivered.size(), 51u) << skew_ms;
      EXPECT_EQ(p.b.delivered.size(), 51u) << skew_ms;
      EXPECT_LE(p.a.count_sent(kTypeInitiation), 1u);
      EXPECT_LE(p.b.count_sent(kTypeInitiation), 1u);
    }
  }
}

TEST(WgSession, SimultaneousInitiationUnderLossRecovers) {
  for (std::uint64_t seed = 1; seed <= 40; ++seed) {
    Pair p(seed);
    p.world.loss = 0.3;
    p.world.jitter = 30ms;
    p.a.send(p.b, 1);
    p.world.run_for(Duration(1ms) * static_cast<int>(seed));
    p.b.send(p.a, 2);
    std::uint64_t id = 10;
    auto done = [&] {
      return p.a.tunnel->state(p.a.id_of(p.b)) == SessionState::kEstablished &&
             p.b.tunnel->state(p.b.id_of(p.a)) == SessionState::kEstablished;
    };
    for (int i = 0; i < 600 && !(done() && p.a.delivered.size() > 5 && p.b.delivered.size() > 5); ++i) {
      p.a.send(p.b, ++id);
      p.b.send(p.a, ++id);
      p.world.run_for(100ms);
    }
    EXPECT_GT(p.a.delivered.size(), 5u) << "seed " << seed;
    EXPECT_GT(p.b.delivered.size(), 5u) << "seed " << seed;
  }
}

// The first seconds of a connection: the node asks again every 250 ms.
void connect_with_retries(Pair& p, Duration for_time) {
  const Instant end = p.world.now + for_time;
  while (p.world.now < end) {
    p.world.run_for(250ms);
    p.a.tunnel->retry_handshake(p.a.clock(), p.a.id_of(p.b));
  }
}

TEST(WgSession, RetriesMakeALostFirstHandshakeShort) {
  Pair p;
  int lost = 0;
  p.world.pass = [&](const Node&, const Node&, Bytes d) { return !is_type(d, kTypeInitiation) || ++lost > 2; };
  const Instant start = p.world.now;
  p.a.send(p.b, 1);
  connect_with_retries(p, 3s);
  ASSERT_EQ(p.b.delivered.size(), 1u);
  EXPECT_EQ(p.b.delivered[0].at - start, 530ms);
  EXPECT_EQ(p.a.count_sent(kTypeInitiation), 3u);  // with a session, retry does nothing
}

TEST(WgSession, LateResponsesStillCount) {
  // One way takes 400 ms: the response to the first initiation comes when three newer ones are out.
  Pair p;
  p.world.delay = 400ms;
  const Instant start = p.world.now;
  p.a.send(p.b, 1);
  connect_with_retries(p, 3s);
  p.world.run_for(2s);
  ASSERT_GE(p.b.delivered.size(), 1u);
  EXPECT_EQ(test::packet_id(p.b.delivered[0].packet), 1u);
  // 1.2 s is the least; the packets sent on the first keys are void at the peer, and follow on the newest.
  EXPECT_LE(p.b.delivered[0].at - start, 2000ms);
  EXPECT_FALSE(p.a.tunnel->has_staged(p.a.id_of(p.b)));
  for (std::uint64_t i = 0; i < 10; ++i) {
    p.a.send(p.b, 10 + i);
    p.b.send(p.a, 20 + i);
    p.world.run_for(100ms);
  }
  p.world.run_for(1s);
  EXPECT_EQ(p.a.delivered.size(), 10u);
  std::set<std::uint64_t> ids;
  for (const auto& d : p.b.delivered) ids.insert(test::packet_id(d.packet));
  EXPECT_EQ(ids.size(), 11u);
}

TEST(WgSession, RetriesOverAnyDelayAndLossConnectSoon) {
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    Pair p(seed);
    p.world.delay = Duration(1ms) * static_cast<int>(p.world.rng.below(400));
    p.world.jitter = 50ms;
    p.world.loss = 0.2;
    p.a.send(p.b, 1);
    for (int i = 0; i < 80 && p.b.delivered.empty(); ++i) {
      p.world.run_for(250ms);
      if (i < 12) p.a.tunnel->retry_handshake(p.a.clock(), p.a.id_of(p.b));
      p.a.send(p.b, 2);  // TCP would retransmit
    }
    EXPECT_FALSE(p.b.delivered.empty()) << "seed " << seed;
  }
}

TEST(WgSession, OnlyTheLastFourInitiationsStayAnswerable) {
  Pair p;
  std::vector<ByteVector> initiations;
  p.world.pass = [&](const Node&, const Node&, Bytes d) {
    if (is_type(d, kTypeInitiation)) initiations.push_back(to_vector(d));
    return false;
  };
  p.a.tunnel->start_handshake(p.a.clock(), p.a.id_of(p.b));
  for (int i = 0; i < 5; ++i) {
    p.world.run_for(250ms);
    p.a.tunnel->retry_handshake(p.a.clock(), p.a.id_of(p.b));
  }
  ASSERT_EQ(initiations.size(), 6u);
  p.world.pass = nullptr;
  p.world.put(p.a.endpoint, p.b, initiations[1]);  // the second of six is forgotten
  p.world.run_for(100ms);
  EXPECT_EQ(p.a.tunnel->state(p.a.id_of(p.b)), SessionState::kHandshaking);
  p.world.put(p.a.endpoint, p.b, initiations[2]);  // the third is not
  p.world.run_for(100ms);
  EXPECT_EQ(p.a.tunnel->state(p.a.id_of(p.b)), SessionState::kEstablished);
}

TEST(WgSession, RekeyUnderLoadLosesNothing) {
  Pair p(3);
  p.a.keep_sent = p.b.keep_sent = false;
  p.world.delay = 20ms;
  p.world.jitter = 3ms;
  p.world.duplicate = 0.05;
  p.establish();
  std::uint64_t sent = 0;
  for (int i = 0; i < 600 * 20; ++i) {
    p.a.send(p.b, ++sent, 1280);
    p.b.send(p.a, sent);
    p.world.run_for(50ms);
  }
  p.world.run_for(1s);
  EXPECT_EQ(p.a.delivered.size(), sent);
  EXPECT_EQ(p.b.delivered.size(), sent + 1);
  EXPECT_GE(p.a.tunnel->counters().handshakes_completed, 5u);
  EXPECT_LE(p.a.tunnel->counters().initiations_sent, 7u);
  EXPECT_EQ(p.b.tunnel->counters().initiations_sent, 0u);
  EXPECT_GT(drops(p.b, Drop::kReplayed), 100u);
  for (const Drop d : {Drop::kBadTag, Drop::kUnknownIndex, Drop::kExpiredKey, Drop::kStagingFull, Drop::kHandshakeFailed}) {
    EXPECT_EQ(drops(p.a, d) + drops(p.b, d), 0u) << static_cast<int>(d);
  }
  Duration gap{};  // no pause at a rekey either
  for (std::size_t i = 1; i < p.b.delivered.size(); ++i) gap = std::max(gap, p.b.delivered[i].at - p.b.delivered[i - 1].at);
  EXPECT_LT(gap, 150ms);
}

TEST(WgSession, RekeySurvivesALossyReorderingWire) {
  for (std::uint64_t seed = 1; seed <= 5; ++seed) {
    Pair p(seed);
    p.a.keep_sent = p.b.keep_sent = false;
    p.world.delay = 20ms;
    p.world.jitter = 100ms;
    p.world.loss = 0.1;
    p.world.duplicate = 0.1;
    std::uint64_t sent = 0;
    for (int i = 0; i < 700 * 10; ++i) {
      p.a.send(p.b, ++sent);
      if (i % 3 == 0) p.b.send(p.a, sent);
      p.world.run_for(100ms);
    }
    std::set<std::uint64_t> got;
    for (const auto& d : p.b.delivered) EXPECT_TRUE(got.insert(test::packet_id(d.packet)).second);
    EXPECT_GT(static_cast<double>(got.size()), 0.87 * static_cast<double>(sent)) << "seed " << seed;
    EXPECT_GE(p.b.tunnel->counters().handshakes_completed, 5u);
    EXPECT_EQ(drops(p.a, Drop::kBadTag) + drops(p.b, Drop::kBadTag), 0u);
  }
}

TEST(WgSession, TwoPathsAndDeepReorderLoseNothing) {
  Pair p(8);
  p.a.keep_sent = false;
  p.establish();
  std::vector<ByteVector> flight;
  p.world.pass = [&](const Node&, const Node&, Bytes d) {
    flight.push_back(to_vector(d));
    return false;
  };
  constexpr std::uint64_t kCount = 8128;
  for (std::uint64_t i = 0; i < kCount; ++i) p.a.send(p.b, 1000 + i);
  ASSERT_EQ(flight.size(), kCount);
  p.world.pass = nullptr;
  const std::size_t before = p.b.delivered.size();
  // The fast path delivers the newest first; then the whole flight arrives again by the other path, shuffled.
  p.world.put(p.a.endpoint, p.b, flight.back());
  p.world.run_for(20ms);
  for (const ByteVector& d : flight) p.world.put(p.a.endpoint, p.b, d);
  p.world.run_for(20ms);
  for (std::size_t i = flight.size(); i > 1; --i) std::swap(flight[i - 1], flight[p.world.rng.below(i)]);
  for (const ByteVector& d : flight) p.world.put(p.a.endpoint, p.b, d);
  p.world.run_for(20ms);
  EXPECT_EQ(p.b.delivered.size(), before + kCount);
  EXPECT_EQ(drops(p.b, Drop::kReplayed), kCount + 1);
}

TEST(WgSession, DuplicateInitiationIsAReplay) {
  Pair p;
  p.establish();
  const ByteVector initiation = p.a.sent[0].datagram;
  p.world.put(p.a.endpoint, p.b, initiation);
  p.world.run_for(1s);
  EXPECT_EQ(p.b.count_sent(kTypeResponse), 1u);
  EXPECT_EQ(drops(p.b, Drop::kReplayedStamp), 1u);
  p.a.send(p.b, 9);
  p.b.send(p.a, 10);
  p.world.run_for(1s);
  EXPECT_EQ(test::packet_id(p.b.delivered.back().packet), 9u);
  EXPECT_EQ(test::packet_id(p.a.delivered.back().packet), 10u);
}

TEST(WgSession, OnePeerCannotAskMoreThanFiftyTimesASecond) {
  Pair p;
  p.world.pass = [](const Node&, const Node&, Bytes d) { return !is_type(d, kTypeResponse); };
  for (int i = 0; i < 100; ++i) {
    p.a.tunnel->retry_handshake(p.a.clock(), p.a.id_of(p.b));
    p.world.run_for(5ms);
  }
  p.world.run_for(100ms);
  EXPECT_LE(p.b.count_sent(kTypeResponse), 26u);
  EXPECT_GT(drops(p.b, Drop::kRateLimited), 60u);
}

TEST(WgSession, RestartedPeerIsFoundAgain) {
  Pair p;
  p.establish();
  // b loses everything, and its clock is an hour behind; only the persisted stamp survives.
  const Tai64n lease = p.b.tunnel->last_stamp().plus_seconds(60);
  p.b.tunnel = std::make_unique<Tunnel>(p.b, p.b.rng);
  p.b.wall_offset = -3600s;
  p.b.tunnel->set_private_key(p.b.clock(), p.b.key);
  p.b.tunnel->set_stamps({lease, lease});
  p.b.add(p.a);
  p.a.send(p.b, 1);  // vanishes
  p.world.run_for(1s);
  EXPECT_EQ(p.b.delivered.size(), 1u);
  EXPECT_EQ(drops(p.b, Drop::kUnknownIndex), 1u);
  EXPECT_EQ(p.b.strays, std::vector<Source>{p.a.endpoint});
  p.b.send(p.a, 2);  // its own initiation repairs at once
  p.world.run_for(100ms);
  EXPECT_EQ(test::packet_id(p.a.delivered.back().packet), 2u);
  p.a.send(p.b, 3);
  p.world.run_for(100ms);
  EXPECT_EQ(test::packet_id(p.b.delivered.back().packet), 3u);
}

// While the store lags behind, stamps stay within what it knows; with no room left they go on all the same.
TEST(WgSession, StampsStayWithinTheLease) {
  Pair p;
  const Tai64n now = Tai64n::from_wall(p.a.clock().wall);
  const Tai64n until = now.next().next().next();
  p.a.tunnel->set_stamps({now, until});
  p.world.run_for(1min);
  Tai64n before = now;
  for (int i = 0; i < 5; ++i) {
    p.a.tunnel->renew_session(p.a.clock(), p.a.id_of(p.b));
    EXPECT_GT(p.a.tunnel->last_stamp(), before);
    before = p.a.tunnel->last_stamp();
    if (i < 3) {
      EXPECT_LE(before, until);
    }
    p.world.run_for(100ms);
  }
  EXPECT_LT(before, until.plus_seconds(1));
  EXPECT_EQ(drops(p.b, Drop::kReplayedStamp), 0u);
  p.a.tunnel->set_stamps({before, now.plus_seconds(600)});
  p.a.tunnel->renew_session(p.a.clock(), p.a.id_of(p.b));
  EXPECT_GT(p.a.tunnel->last_stamp(), now.plus_seconds(59)) << "the clock's again";
}

TEST(WgSession, ClockStepsBack) {
  Pair p;
  p.establish();
  p.a.wall_offset = -3600s;  // running: stamps stay monotonic without help
  for (int i = 0; i < 4; ++i) {
    p.world.run_for(200s);
    p.a.send(p.b, 10);
    p.world.run_for(100ms);
  }
  EXPECT_EQ(drops(p.b, Drop::kReplayedStamp), 0u);
  EXPECT_EQ(p.b.delivered.size(), 5u);
  // A restart with the stamp persisted.
  const Tai64n last = p.a.tunnel->last_stamp();
  p.a.tunnel = std::make_unique<Tunnel>(p.a, p.a.rng);
  p.a.tunnel->set_private_key(p.a.clock(), p.a.key);
  p.a.add(p.b);
  p.a.tunnel->set_stamps({last, last.plus_seconds(60)});
  p.a.send(p.b, 11);
  p.world.run_for(100ms);
  EXPECT_EQ(p.b.delivered.size(), 6u);
  // And one without: this is what the persistence is for.
  p.a.tunnel = std::make_unique<Tunnel>(p.a, p.a.rng);
  p.a.wall_offset = -7200s;
  p.a.tunnel->set_private_key(p.a.clock(), p.a.key);
  p.a.add(p.b);
  p.a.send(p.b, 12);
  p.world.run_for(100ms);
  EXPECT_EQ(p.b.delivered.size(), 6u);
  EXPECT_EQ(drops(p.b, Drop::kReplayedStamp), 1u);
}

TEST(WgSession, ResetSessionHandshakesAtOnce) {
  Pair p;
  p.establish();
  p.b.tunnel = std::make_unique<Tunnel>(p.b, p.b.rng);
  p.b.tunnel->set_private_key(p.b.clock(), p.b.key);
  p.b.add(p.a);
  p.world.run_for(10ms);
  p.a.tunnel->reset_session(p.a.clock(), p.a.id_of(p.b));
  EXPECT_EQ(p.a.sessions.back().second, SessionState::kNone);
  p.a.tunnel->start_handshake(p.a.clock(), p.a.id_of(p.b));  // the 5 s guard does not apply
  p.world.run_for(100ms);
  EXPECT_EQ(p.a.tunnel->state(p.a.id_of(p.b)), SessionState::kEstablished);
}

TEST(WgSession, PrivateKeyChange) {
  Pair p;
  p.establish();
  Node& c = p.world.add("c");
  p.a.add(c);
  // a becomes c's key: the peer c is removed, the session with b ends.
  const PeerId at_b = p.b.id_of(p.a);
  p.a.key = c.key.duplicate();
  p.a.shown = c.shown;
  p.a.tunnel->set_private_key(p.a.clock(), p.a.key);
  EXPECT_FALSE(p.a.tunnel->find(c.shown).has_value());
  EXPECT_EQ(p.a.sessions.back().second, SessionState::kNone);
  p.b.tunnel->remove_peer(p.b.clock(), at_b);
  p.world.nodes.pop_back();
  p.b.add(p.a);
  p.a.send(p.b, 5);
  p.world.run_for(100ms);
  EXPECT_EQ(test::packet_id(p.b.delivered.back().packet), 5u);
  // Logged out.
  p.a.tunnel->set_private_key(p.a.clock(), {});
  p.b.send(p.a, 6);
  p.world.run_for(100ms);
  EXPECT_EQ(drops(p.a, Drop::kNoPrivateKey), 1u);
  p.a.send(p.b, 7);
  EXPECT_EQ(p.a.sent.back().datagram[0], kTypeTransport);  // nothing new left
}

TEST(WgSession, NextTimeoutWithManyPeers) {
  World world(5);
  Node& a = world.add("a");
  SeededRng rng(77);
  constexpr std::size_t kPeers = 1500;
  std::vector<PeerId> ids;
  for (std::size_t i = 0; i < kPeers; ++i) {
    const Prefix p = Prefix::host(IpAddress::v4(static_cast<std::uint32_t>(0x64400100 + i)));
    ids.push_back(a.tunnel->add_peer(a.clock(), crypto::NodePrivate::generate(rng).public_key(), std::span(&p, 1)));
  }
  a.keep_sent = true;
  for (std::size_t i = 0; i < kPeers; ++i) {
    a.tunnel->start_handshake(a.clock(), ids[i]);
    if (i % 100 == 0) world.run_for(10ms);
    ASSERT_LE(a.tunnel->next_timeout().latest, world.now + 6s);
  }
  for (std::size_t i = 0; i < kPeers; i += 3) a.tunnel->remove_peer(a.clock(), ids[i]);
  world.run_for(11s);
  EXPECT_EQ(a.count_sent(kTypeInitiation), kPeers + (kPeers - kPeers / 3) * 2);
  EXPECT_EQ(a.tunnel->peer_count(), kPeers - kPeers / 3);
  for (std::size_t i = 0; i < kPeers; ++i) {
    if (i % 3 != 0) a.tunnel->remove_peer(a.clock(), ids[i]);
  }
  EXPECT_TRUE(a.tunnel->next_timeout().is_never());
}

}  // namespace
}  // namespace porthole::wg
