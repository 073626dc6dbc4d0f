// Single segments in, single segments out (RFC 9293 and its companions): segments, windows, probes, resends.
#include <gtest/gtest.h>

#include "netstack/limits.h"
#include "netstack/script_harness.h"
#include "netstack/spec_constants.h"

namespace porthole::netstack {
namespace {

using namespace harness;

TEST(TcpScript, SegmentsAreFullAndAlike) {
  Script s;
  SocketId id = s.accept();
  EXPECT_EQ(write(s, id, 10000), 10000u);
  std::optional<Seen> seen;
  std::size_t bytes = 0;
  std::uint32_t ts = 0;
  for (int i = 0; (seen = s.next()); ++i) {
    if (i == 0) ts = seen->tcp.options.ts_value;
    EXPECT_EQ(seen->tcp.options.ts_value, ts);
    EXPECT_EQ(seen->tcp.sequence, s.iss + 1 + bytes);
    bytes += seen->tcp.data.size();
    EXPECT_EQ(seen->tcp.has(kPsh), bytes == 10000);
    if (bytes != 10000) {
      EXPECT_EQ(seen->ip.whole.size(), 1280u);
    }
    EXPECT_EQ(seen->ip.whole[6], 0x40);   // DF
    EXPECT_EQ(seen->ip.ttl, 64);
    EXPECT_TRUE(wire::tcp_checksum_ok(seen->ip.payload, kA4, kB4));
  }
  EXPECT_EQ(bytes, 10000u);
}

TEST(TcpScript, PeerWindowIsObeyedAndProbed) {
  Script s;
  SocketId id = s.accept(1240, true, 0);      // window 512
  write(s, id, 5000);
  auto data = s.next();
  ASSERT_TRUE(data);
  EXPECT_EQ(data->tcp.data.size(), 512u);
  EXPECT_TRUE(s.quiet());
  s.send(kAck, 1, s.iss + 513, 0, 0);
  EXPECT_TRUE(s.quiet());
  std::vector<Instant> probes;
  for (int i = 0; i < 600; ++i) {
    s.wait(100ms);
    while (auto probe = s.next()) {
      EXPECT_EQ(probe->tcp.sequence, s.iss + 512);   // below the window: must be answered
      EXPECT_EQ(probe->tcp.data.size(), 0u);
      probes.push_back(s.now);
      s.send(kAck, 1, s.iss + 513, 0, 0);
    }
  }
  EXPECT_GE(probes.size(), 5u);
  EXPECT_LE(probes.size(), 10u);               // backs off
  EXPECT_EQ(s.stack.info(id).state, TcpState::kEstablished);
  s.send(kAck, 1, s.iss + 513, 0, 10000);
  std::size_t bytes = 0;
  while ((data = s.next())) bytes += data->tcp.data.size();
  EXPECT_EQ(bytes, 5000u - 512u);
}

TEST(TcpScript, OldSegmentDoesNotChangeTheWindow) {
  Script s;
  SocketId id = s.accept(1240, true, 0);
  s.send(kAck, 1, s.iss + 1, 100, 2000);
  s.send(kAck, 101, s.iss + 1, 100, 3000);
  EXPECT_EQ(s.stack.info(id).send_window, 3000u);
  s.send(kAck, 50, s.iss + 1, 100, 0);         // overlaps, older SEQ than WL1: its window is history
  EXPECT_EQ(s.stack.info(id).send_window, 3000u);
}

TEST(TcpScript, NagleHoldsOneSmallSegment) {
  Script s;
  SocketId id = s.accept();
  ConnectOptions o;
  o.nodelay = false;
  s.stack.set_options(s.now, id, o);
  write(s, id, 10);
  EXPECT_EQ(s.next()->tcp.data.size(), 10u);
  write(s, id, 10);
  write(s, id, 10);
  EXPECT_TRUE(s.quiet());
  s.send(kAck, 1, s.iss + 11);
  EXPECT_EQ(s.next()->tcp.data.size(), 20u);
}

TEST(TcpScript, TailProbeThenTimeout) {
  Script s;
  SocketId id = s.accept();                    // handshake sample: practically zero
  write(s, id, 5000);
  EXPECT_EQ(s.out.size(), 5u);
  s.out.clear();
  s.wait(100ms);
  ASSERT_EQ(s.out.size(), 1u);                 // the last segment again
  auto probe = s.next();
  EXPECT_EQ(probe->tcp.sequence + probe->tcp.data.size(), s.iss + 5001);
  EXPECT_EQ(s.stack.info(id).tail_probes, 1u);
  EXPECT_EQ(s.stack.info(id).timeouts, 0u);
  s.wait(400ms);
  EXPECT_EQ(s.stack.info(id).timeouts, 1u);
  auto head = s.next();
  ASSERT_TRUE(head);
  EXPECT_EQ(head->tcp.sequence, s.iss + 1);
  EXPECT_TRUE(s.quiet());                      // a window of one
  EXPECT_EQ(s.stack.info(id).cwnd, 1228u);
}

// RFC 8985 7.4.2. Without timestamps the answer to a resent probe may be the late answer to the original.
TEST(TcpScript, ASuperfluousTailProbeIsNoLoss) {
  for (bool repaired : {false, true}) {
    Script s;
    s.ts = false;
    SocketId id = s.accept();
    write(s, id, 5000);
    while (s.next()) {}
    s.wait(100ms);
    ASSERT_EQ(s.stack.info(id).tail_probes, 1u);
    while (s.next()) {}
    const std::uint32_t end = s.iss + 1 + 5000;
    s.send(kAck, 1, end, 0, 512);
    EXPECT_EQ(s.stack.info(id).recoveries, 0u);
    if (!repaired) s.send_sack(1, end, {{end - 40, end}}, 512);   // DSACK: the probe was a second copy
    write(s, id, 1000);
    while (s.next()) {}
    s.send(kAck, 1, end + 1000, 0, 512);
    EXPECT_EQ(s.stack.info(id).recoveries, repaired ? 1u : 0u);
  }
}

// Linux delays even the answer to a FIN.
TEST(TcpScript, ALoneFinMayBeAnsweredLate) {
  Script s;
  SocketId id = s.accept();
  s.stack.shutdown_write(s.now, id);
  s.collect();
  while (s.next()) {}
  s.wait(39ms);
  EXPECT_EQ(s.stack.info(id).tail_probes, 0u);
  s.wait(20ms);
  EXPECT_EQ(s.stack.info(id).tail_probes, 1u);
}

TEST(TcpScript, DataResendsGiveUp) {
  Script s;
  SocketId id = s.accept();
  write(s, id, 100);
  s.wait(20min);
  ASSERT_TRUE(s.has_event(SocketEventKind::kReset));
  EXPECT_EQ(s.last_event.error.code, ErrorCode::kTimeout);
  EXPECT_EQ(s.last_event.id, id);
  EXPECT_LE(s.out.size(), 18u);
  s.stack.close(s.now, id);
  EXPECT_EQ(s.stack.memory().connections, 0u);
}

TEST(TcpScript, BlockedTunnelCountsNothing) {
  Script s;
  SocketId id = s.accept();
  write(s, id, 100);
  s.out.clear();
  s.stack.tunnel_blocked(s.now, kB4, true);
  write(s, id, 100);
  s.wait(10min);
  EXPECT_TRUE(s.quiet());
  EXPECT_EQ(s.stack.info(id).timeouts, 0u);
  s.stack.tunnel_blocked(s.now, kB4, false);
  s.collect();
  EXPECT_EQ(s.next()->tcp.sequence, s.iss + 101);
  s.wait(2s);
  EXPECT_FALSE(s.quiet());
}

TEST(TcpScript, ThreeDuplicatesWithoutSack) {
  Script s;
  s.ts = false;
  SocketId id = s.accept(1000, false, 7);
  write(s, id, 10000);
  ASSERT_EQ(s.out.size(), 10u);
  s.out.clear();
  s.now = s.now + 20ms;
  s.send(kAck, 1, s.iss + 1, 0, 512);
  s.send(kAck, 1, s.iss + 1, 0, 512);
  EXPECT_TRUE(s.quiet());
  s.send(kAck, 1, s.iss + 1, 0, 512);
  auto again = s.next();
  ASSERT_TRUE(again);
  EXPECT_EQ(again->tcp.sequence, s.iss + 1);
  EXPECT_EQ(s.stack.info(id).recoveries, 1u);
  s.now = s.now + 20ms;
  s.send(kAck, 1, s.iss + 1 + 4000, 0, 512);   // partial: the next hole
  again = s.next();
  ASSERT_TRUE(again);
  EXPECT_EQ(again->tcp.sequence, s.iss + 4001);
  s.send(kAck, 1, s.iss + 10001, 0, 512);
  EXPECT_EQ(s.stack.info(id).in_flight, 0u);
  EXPECT_EQ(s.stack.info(id).recoveries, 1u);
  EXPECT_EQ(s.stack.info(id).timeouts, 0u);
}

TEST(TcpScript, AKnownRoundTripMakesTheFirstResendQuickAndSaysWhoIsSilent) {
  Script s;
  // As a first dial does it: the SYN starts the tunnel's handshake, which tells the round trip.
  SocketId quick = *s.stack.connect(s.now, Endpoint{kB4, 443});
  s.stack.tunnel_blocked(s.now, kB4, true);
  s.stack.set_round_trip(kB4, 10ms);
  s.stack.tunnel_blocked(s.now, kB4, false);
  s.wait(1ms);
  ASSERT_TRUE(s.next());
  EXPECT_TRUE(s.stack.take_unanswered().empty());
  s.wait(130ms);
  auto again = s.next();
  ASSERT_TRUE(again);
  EXPECT_TRUE(again->tcp.has(kSyn));
  EXPECT_EQ(s.stack.take_unanswered(), std::vector<IpAddress>{kB4});
  EXPECT_TRUE(s.stack.take_unanswered().empty());
  // Then after 0.2, 0.4 and 0.8 s, and from then on at the usual pace, with the usual patience.
  for (Duration d : {250ms, 450ms, 900ms, 1100ms}) {
    s.wait(d);
    EXPECT_TRUE(s.next());
    EXPECT_FALSE(s.next());
  }
  s.stack.abort(s.now, quick);
}

TEST(TcpScript, ALateAnswerToAResendMeasuresNoOutage) {
  Script s;
  SocketId id = s.accept();
  write(s, id, 4 * 1228);
  while (s.next()) {}
  s.now = s.now + 20ms;
  s.send(kAck, 1, s.iss + 1, 0, 512);
  // Everything arrived, no answer did. The head is resent for a minute; then one of its copies is answered at once.
  for (Instant until = s.now + 60s; s.now < until;) s.wait(100ms);
  while (s.next()) {}
  while (!s.next()) s.wait(100ms);
  ASSERT_GE(s.stack.info(id).timeouts, 5u);
  s.send(kAck, 1, s.iss + 1 + 4 * 1228, 0, 512);
  EXPECT_EQ(s.stack.info(id).in_flight, 0u);
  EXPECT_LT(s.stack.info(id).srtt, 200ms);
}

TEST(TcpScript, SackStartsRecoveryOfTheHoleOnly) {
  Script s;
  SocketId id = s.accept();
  write(s, id, 12280);
  ASSERT_EQ(s.out.size(), 10u);
  while (s.next()) {}
  s.now = s.now + 20ms;
  std::uint32_t base = s.iss + 1;
  s.send_sack(1, base, {{base + 2 * 1228, base + 5 * 1228}}, 512);
  std::vector<std::uint32_t> resent;
  while (auto seen = s.next()) resent.push_back((seen->tcp.sequence - base) / 1228);
  ASSERT_FALSE(resent.empty());
  EXPECT_EQ(resent[0], 0u);
  // Never what was reported as received, nor the end that nobody can have reported yet.
  s.wait(20ms);
  while (auto seen = s.next()) resent.push_back((seen->tcp.sequence - base) / 1228);
  for (std::uint32_t n : resent) EXPECT_LT(n, 2u);
  EXPECT_EQ(s.stack.info(id).recoveries, 1u);
}

TEST(TcpScript, EifelUndoesASpuriousTimeout) {
  Script s;
  SocketId id = s.accept();
  write(s, id, 12280);
  while (s.next()) {}
  std::uint32_t original_echo = s.ts_echo;
  std::uint64_t cwnd = s.stack.info(id).cwnd;
  s.wait(2s);                                  // probe, timeout(s)
  EXPECT_GE(s.stack.info(id).timeouts, 1u);
  while (s.next()) {}
  s.ts_echo = original_echo;                   // the original was only late
  s.send(kAck, 1, s.iss + 1 + 12280, 0, 512);
  EXPECT_EQ(s.stack.info(id).undone, 1u);
  EXPECT_GE(s.stack.info(id).cwnd, cwnd);
}

// Pacing may hold a resend back until the original arrives after all: nothing was lost.
TEST(TcpScript, AnOriginalThatComesAfterItsResendAccusesNobody) {
  Script s;
  SocketId id = s.accept();
  write(s, id, 5 * 1228);
  ASSERT_EQ(s.out.size(), 5u);
  const std::uint32_t base = s.iss + 1, sent_at = s.next()->tcp.options.ts_value;
  s.out.clear();
  s.now = s.now + 10ms;
  s.send_sack(1, base, {{base + 1228, base + 4 * 1228}}, 512);
  ASSERT_EQ(s.next()->tcp.sequence, base);     // the first is taken for lost, the last is not
  s.out.clear();
  s.now = s.now + 15ms;
  // The first as it was sent at first, by the time it echoes. That the resend is so fast must not count against the last
  // one, which left before it and is as late.
  s.ts_echo = sent_at;
  s.send(kAck, 1, base + 4 * 1228, 0, 512);
  EXPECT_EQ(s.stack.info(id).undone, 1u);
  EXPECT_EQ(s.stack.info(id).recoveries, 1u);
  EXPECT_TRUE(s.quiet());
}

TEST(TcpScript, ARecoveryWithoutAnyResendIsUndone) {
  Script s;
  SocketId id = s.accept();
  write(s, id, 12280);
  while (s.next()) {}
  s.now = s.now + 20ms;
  const std::uint32_t base = s.iss + 1;
  const std::uint64_t cwnd = s.stack.info(id).cwnd;
  // Both reports come in one batch, so no resend can leave between them.
  wire::TcpOptions options;
  options.sack[options.sack_count++] = {base + 1228, base + 6 * 1228};
  ByteVector first = s.build(kAck, 1, base, 0, 512, &options), second = s.build(kAck, 1, base + 6 * 1228, 0, 512);
  MutBytes batch[] = {MutBytes(first), MutBytes(second)};
  s.stack.handle_packets(s.now, batch);
  s.collect();
  EXPECT_EQ(s.stack.info(id).recoveries, 1u);
  EXPECT_EQ(s.stack.info(id).segments_resent, 0u);
  EXPECT_EQ(s.stack.info(id).undone, 1u);
  EXPECT_GE(s.stack.info(id).cwnd, cwnd);
}

TEST(TcpScript, BogusSackIsIgnored) {
  Script s;
  SocketId id = s.accept();
  write(s, id, 12280);
  while (s.next()) {}
  std::uint32_t base = s.iss + 1;
  s.send_sack(1, base, {{base + 50000, base + 60000}, {base + 100, base + 50}, {base - 100000, base - 90000}}, 512);
  EXPECT_EQ(s.stack.info(id).recoveries, 0u);
  EXPECT_EQ(s.stack.info(id).in_flight, 12280u);
  EXPECT_GE(s.stack.counters().tcp_bad_sack, 2u);
}

TEST(TcpScript, SequenceNumbersWrap) {
  // The peer's numbers start just below the wrap; ours are chosen by hash, so several connections see both.
  Script s;
  s.listener = *s.stack.listen(s.now, std::nullopt, 80);
  for (std::uint16_t port = 4000; port < 4010; ++port) {
    s.peer_port = port;
    std::uint32_t irs = 0u - 1500u;
    auto o = s.syn_options();
    s.send(kSyn, irs, 0, 0, 65535, &o);
    auto answer = s.next();
    s.send(kAck, irs + 1, answer->tcp.sequence + 1);
    SocketId id = *s.stack.accept(s.listener);
    std::uint32_t at = irs + 1;
    for (int i = 0; i < 5; ++i, at += 1000) s.send(kAck, at, answer->tcp.sequence + 1, 1000);
    EXPECT_EQ(s.stack.readable(id), 5000u);
    s.out.clear();
  }
}

TEST(TcpScript, KeepaliveFindsADeadPeer) {
  Script s;
  SocketId id = s.accept();
  ConnectOptions o;
  o.keepalive = true;
  o.keepalive_idle = 60s;
  o.keepalive_interval = 10s;
  o.keepalive_probes = 3;
  s.stack.set_options(s.now, id, o);
  s.wait(59s);
  EXPECT_TRUE(s.quiet());
  s.wait(2s);
  auto probe = s.next();
  ASSERT_TRUE(probe);
  EXPECT_EQ(probe->tcp.sequence, s.iss);
  s.send(kAck, 1, s.iss + 1);                  // alive
  s.wait(59s);
  EXPECT_TRUE(s.quiet());
  s.wait(40s);
  ASSERT_TRUE(s.has_event(SocketEventKind::kReset));
  EXPECT_EQ(s.last_event.error.code, ErrorCode::kTimeout);
}

TEST(TcpScript, DataThatStopsIsAskedAfterOnceAndForABusyPeerOnly) {
  ConnectOptions o;
  o.keepalive = true;
  auto is_probe = [](Script& s) {
    auto seen = s.next();
    return seen && seen->tcp.sequence == s.iss && seen->tcp.data.empty() && s.quiet();
  };
  Script s;
  SocketId id = s.accept();
  s.stack.set_options(s.now, id, o);
  s.wait(1min);
  s.stack.path_changed(s.now, kB4, PathChange::kReachable);
  s.collect();
  EXPECT_TRUE(s.quiet());                      // nothing came: nothing to ask
  for (std::uint32_t seq : {1u, 11u}) {
    s.send(kAck, seq, s.iss + 1, 10);
    s.wait(kQuietProbe - 1ms);
    s.out.clear();
    s.wait(2ms);
    EXPECT_TRUE(is_probe(s));
    s.send(kAck, seq + 10, s.iss + 1);
    s.wait(1h);                                // answered, so only new data asks again
    s.stack.path_changed(s.now, kB4, PathChange::kReachable);
    s.collect();
    EXPECT_TRUE(s.quiet());
  }
  // No answer: once more, and the tunnel hears of it; then when the way opens, as often as it does.
  s.send(kAck, 21, s.iss + 1, 10);
  s.wait(kQuietProbe - 1ms);
  s.out.clear();
  s.wait(2ms);
  EXPECT_TRUE(is_probe(s));
  EXPECT_TRUE(s.stack.take_unanswered().empty());
  s.wait(kQuietProbe);
  EXPECT_TRUE(is_probe(s));
  EXPECT_EQ(s.stack.take_unanswered(), std::vector<IpAddress>{kB4});
  s.wait(1min);
  EXPECT_TRUE(s.quiet());
  for (int i = 0; i < 2; ++i) {
    s.stack.path_changed(s.now, kB4, PathChange::kReachable);
    s.collect();
    EXPECT_TRUE(is_probe(s));
  }
  s.send(kRst, 31, 0);                         // a new life of the peer
  ASSERT_TRUE(s.has_event(SocketEventKind::kReset));
  EXPECT_EQ(s.last_event.error.code, ErrorCode::kReset);
}

TEST(TcpScript, TheUserTimeoutCountsFromTheOldestByteNotFromTheLastAnswer) {
  Script s;
  SocketId id = s.accept();
  ConnectOptions o;
  o.user_timeout = 120s;
  s.stack.set_options(s.now, id, o);
  write(s, id, 10);
  s.send(kAck, 1, s.iss + 11);
  s.wait(10min);
  write(s, id, 10);
  s.wait(119s);
  EXPECT_FALSE(s.has_event(SocketEventKind::kReset));
  s.wait(2s);
  ASSERT_TRUE(s.has_event(SocketEventKind::kReset));
  EXPECT_EQ(s.last_event.error.code, ErrorCode::kTimeout);
}

TEST(TcpScript, ASilenceHalvesTheWindowOnce) {
  Script s;
  SocketId id = s.accept();
  std::uint32_t acked = s.iss + 1;
  for (int i = 0; i < 100 && s.stack.info(id).cwnd < 100'000; ++i) {
    write(s, id, 100'000);
    s.wait(1ms);
    for (s.ts_value += 50; auto seen = s.next();) acked = std::max(acked, seen->tcp.sequence + static_cast<std::uint32_t>(seen->tcp.data.size()));
    s.send(kAck, 1, acked, 0, 4096);
  }
  while (s.stack.info(id).unacked > 0 || s.stack.info(id).unsent > 0) {
    s.wait(1ms);
    while (auto seen = s.next()) acked = std::max(acked, seen->tcp.sequence + static_cast<std::uint32_t>(seen->tcp.data.size()));
    s.send(kAck, 1, acked, 0, 4096);
  }
  const std::uint64_t before = s.stack.info(id).cwnd;
  ASSERT_GE(before, 100'000u);
  s.wait(10s);
  ByteVector data(5000);
  ASSERT_EQ(s.stack.write(s.now, id, data), data.size());
  for (int i = 0; i < 20; ++i) {
    VectorSink full(0);
    s.stack.produce(s.now, full);
    s.now = s.now + 100ms;
  }
  EXPECT_GE(s.stack.info(id).cwnd, before / 2 - 1228);
  EXPECT_LE(s.stack.info(id).cwnd, before / 2 + 1228);
}

TEST(TcpScript, PathMtuIsBelievedOnlyForOwnData) {
  Script s;
  SocketId id = s.accept();
  write(s, id, 12280);
  ByteVector sent = s.out[0];
  s.out.clear();
  auto too_big = [&](std::uint32_t seq, std::uint16_t mtu) {
    ByteVector quote(sent.begin(), sent.begin() + 28);
    store_be(quote.data() + 24, seq);
    ByteVector packet(20 + 8 + quote.size());
    std::uint8_t* icmp = packet.data() + 20;
    icmp[0] = 3;
    icmp[1] = 4;
    store_be(icmp + 6, mtu);
    std::copy(quote.begin(), quote.end(), icmp + 8);
    wire::store_checksum(icmp + 2, wire::sum_bytes({icmp, 8 + quote.size()}));
    wire::write_ipv4_header(packet.data(), kB4, kA4, 1, 8 + quote.size(), 0, true);
    s.inject(packet);
  };
  too_big(s.iss + 1 + 500000, 600);
  EXPECT_EQ(s.stack.info(id).max_segment, 1228u);
  too_big(s.iss + 1, 400);                     // below the floor
  EXPECT_EQ(s.stack.info(id).max_segment, 1228u);
  too_big(s.iss + 1, 1000);
  EXPECT_EQ(s.stack.info(id).max_segment, 948u);
  EXPECT_FALSE(s.quiet());
  while (auto seen = s.next()) {
    EXPECT_LE(seen->ip.whole.size(), 1000u);
    EXPECT_TRUE(wire::tcp_checksum_ok(seen->ip.payload, kA4, kB4));
  }
  too_big(s.iss + 1, 1200);                    // more than is known already
  EXPECT_EQ(s.stack.info(id).max_segment, 948u);
  s.send(kAck, 1, s.iss + 12281);
  // Another connection the same way does not have to be told.
  s.peer_port = 4001;
  SocketId other = s.accept();
  EXPECT_EQ(s.stack.info(other).max_segment, 948u);
  // After ten minutes it is tried again (RFC 8201 4), by all of them.
  s.wait(kPathMtuLifetime - 1s);
  s.out.clear();
  write(s, other, 5000);
  EXPECT_EQ(s.out[0].size(), 1000u);
  s.send(kAck, 1, s.iss + 5001);
  s.wait(2s);
  s.out.clear();
  write(s, other, 5000);
  EXPECT_EQ(s.out[0].size(), 1280u);
  s.out.clear();
  write(s, id, 5000);
  EXPECT_EQ(s.out[0].size(), 1280u);
}

TEST(TcpScript, IcmpUnreachableEndsOnlyAConnect) {
  Script s;
  SocketId id = *s.stack.connect(s.now, Endpoint{kB4, 443});
  s.collect();
  ByteVector syn = s.out[0];
  auto unreachable = [&](std::uint8_t code) {
    ByteVector packet(20 + 8 + 28);
    std::uint8_t* icmp = packet.data() + 20;
    icmp[0] = 3;
    icmp[1] = code;
    std::copy(syn.begin(), syn.begin() + 28, icmp + 8);
    wire::store_checksum(icmp + 2, wire::sum_bytes({icmp, 36}));
    wire::write_ipv4_header(packet.data(), kB4, kA4, 1, 36, 0, true);
    s.inject(packet);
  };
  unreachable(1);                              // host: soft
  EXPECT_FALSE(s.has_event(SocketEventKind::kConnectFailed));
  unreachable(3);
  ASSERT_TRUE(s.has_event(SocketEventKind::kConnectFailed));
  EXPECT_EQ(s.last_event.error.code, ErrorCode::kRefused);
  s.stack.close(s.now, id);
}

}  // namespace
}  // namespace porthole::netstack
