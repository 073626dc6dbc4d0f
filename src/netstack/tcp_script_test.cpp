// Single segments in, single segments out: the rules of RFC 9293 and its companions one by one.
#include <gtest/gtest.h>

#include <set>

#include "netstack/limits.h"
#include "netstack/script_harness.h"

namespace porthole::netstack {
namespace {

using namespace harness;

std::size_t write(Script& s, SocketId id, std::size_t size) {
  ByteVector data(size);
  for (std::size_t i = 0; i < size; ++i) data[i] = static_cast<std::uint8_t>(i);
  std::size_t n = s.stack.write(s.now, id, data);
  s.collect();
  return n;
}

void read_all(Script& s, SocketId id) {
  s.stack.consume(s.now, id, s.stack.readable(id));
  s.collect();
}

// ---- handshakes

TEST(TcpScript, PassiveHandshakeOptions) {
  Script s;
  s.listener = *s.stack.listen(s.now, std::nullopt, 80);
  auto o = s.syn_options();
  s.send(kSyn, 0, 0, 0, 65535, &o);
  auto answer = s.next();
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->tcp.flags, kSyn | kAck);
  EXPECT_EQ(answer->tcp.acknowledgment, 1u);
  EXPECT_EQ(answer->tcp.options.mss, 1240);
  EXPECT_EQ(answer->tcp.options.window_shift, kWindowShift);
  EXPECT_TRUE(answer->tcp.options.sack_permitted);
  EXPECT_TRUE(answer->tcp.options.has_timestamps);
  EXPECT_EQ(answer->tcp.options.ts_echo, 1000u);
  EXPECT_EQ(answer->tcp.window, 65535);
  EXPECT_EQ(answer->ip.payload.size(), 40u);   // 20 bytes of options, nothing wasted
  EXPECT_TRUE(s.quiet());
  EXPECT_EQ(s.stack.memory().half_open, 1u);
  s.send(kAck, 1, answer->tcp.sequence + 1);
  EXPECT_TRUE(s.has_event(SocketEventKind::kAcceptable));
  EXPECT_TRUE(s.quiet());
  EXPECT_EQ(s.stack.memory().half_open, 0u);
  auto id = s.stack.accept(s.listener);
  ASSERT_TRUE(id);
  EXPECT_EQ(s.stack.remote(*id), (Endpoint{kB4, 4000}));
  EXPECT_EQ(s.stack.local(*id), (Endpoint{kA4, 80}));
  EXPECT_FALSE(s.stack.accept(s.listener));
}

TEST(TcpScript, PassiveHandshakeOffersNothingTheSynDidNot) {
  Script s;
  s.ts = false;
  SocketId id = s.accept(536, false, std::nullopt);
  ASSERT_NE(id, 0u);
  TcpInfo i = s.stack.info(id);
  EXPECT_FALSE(i.timestamps);
  EXPECT_FALSE(i.sack);
  EXPECT_FALSE(i.window_scaling);
  EXPECT_EQ(i.max_segment, 536u);
  EXPECT_EQ(i.send_window, 512u);
}

TEST(TcpScript, SynAckIsRepeatedAndGivenUp) {
  Script s;
  s.listener = *s.stack.listen(s.now, std::nullopt, 80);
  auto o = s.syn_options();
  s.send(kSyn, 0, 0, 0, 65535, &o);
  ASSERT_TRUE(s.next());
  s.wait(40s);
  EXPECT_EQ(s.out.size(), static_cast<std::size_t>(kSynAckResendsMax));
  EXPECT_EQ(s.stack.memory().half_open, 0u);
  EXPECT_TRUE(s.stack.next_timeout().is_never());
}

TEST(TcpScript, ActiveHandshake) {
  Script s;
  SocketId id = *s.stack.connect(s.now, Endpoint{kB4, 443});
  s.peer_port = 443;
  s.collect();
  auto syn = s.next();
  ASSERT_TRUE(syn);
  EXPECT_EQ(syn->tcp.flags, kSyn);
  EXPECT_EQ(syn->tcp.options.mss, 1240);
  s.own_port = syn->tcp.source_port;
  EXPECT_GE(s.own_port, kEphemeralFirst);
  auto o = s.syn_options();
  s.now = s.now + 30ms;
  s.send(kSyn | kAck, 100, syn->tcp.sequence + 1, 0, 65535, &o);
  EXPECT_TRUE(s.has_event(SocketEventKind::kConnected));
  auto ack = s.next();
  ASSERT_TRUE(ack);
  EXPECT_EQ(ack->tcp.flags, kAck);
  EXPECT_EQ(ack->tcp.acknowledgment, 101u);
  EXPECT_EQ(s.stack.info(id).srtt, 30ms);
  EXPECT_EQ(s.stack.info(id).send_window, 65535u);   // unscaled on a SYN
}

TEST(TcpScript, NoPortComesAgainWhileAPeerMayHoldItsTimeWait) {
  // 600 runs of a node within a minute, each with a few connections: a peer that closed first may keep each pair for 60 s.
  std::set<std::uint16_t> used;
  Instant now = Instant() + 77s;
  SeededRng rng(5);
  for (int run = 0; run < 600; ++run) {
    Script s;
    s.now = now;
    for (int i = 0; i < 20; ++i) {
      SocketId id = *s.stack.connect(s.now, Endpoint{kB4, 443});
      std::uint16_t port = s.stack.info(id).local.port;
      EXPECT_GE(port, kEphemeralFirst);
      EXPECT_LE(port, kEphemeralLast);
      EXPECT_TRUE(used.insert(port).second) << "run " << run;
    }
    now = now + 100ms;
  }
}

TEST(TcpScript, ConnectRefusedTimesOutAndIsUnreachable) {
  {
    Script s;
    SocketId id = *s.stack.connect(s.now, Endpoint{kB4, 443});
    s.collect();
    auto syn = s.next();
    s.own_port = syn->tcp.source_port;
    s.peer_port = 443;
    s.send(kRst | kAck, 0, syn->tcp.sequence + 2);   // not for our SYN
    EXPECT_FALSE(s.has_event(SocketEventKind::kConnectFailed));
    s.send(kRst | kAck, 0, syn->tcp.sequence + 1);
    ASSERT_TRUE(s.has_event(SocketEventKind::kConnectFailed));
    EXPECT_EQ(s.last_event.error.code, ErrorCode::kRefused);
    s.stack.close(s.now, id);
    EXPECT_EQ(s.stack.memory().connections, 0u);
  }
  {
    Script s;
    s.stack.connect(s.now, Endpoint{kB4, 443}).value();
    s.collect();
    s.wait(31s);
    ASSERT_TRUE(s.has_event(SocketEventKind::kConnectFailed));
    EXPECT_EQ(s.last_event.error.code, ErrorCode::kTimeout);
    EXPECT_EQ(s.out.size(), 5u);   // 0, 1, 3, 7, 15 s
  }
}

TEST(TcpScript, SimultaneousOpen) {
  Script s;
  SocketId id = *s.stack.connect(s.now, Endpoint{kB4, 443});
  s.peer_port = 443;
  s.collect();
  auto syn = s.next();
  s.own_port = syn->tcp.source_port;
  std::uint32_t iss = syn->tcp.sequence;
  auto o = s.syn_options();
  s.send(kSyn, 500, 0, 0, 65535, &o);
  auto again = s.next();
  ASSERT_TRUE(again);
  EXPECT_EQ(again->tcp.flags, kSyn | kAck);
  EXPECT_EQ(again->tcp.sequence, iss);
  EXPECT_EQ(again->tcp.acknowledgment, 501u);
  s.send(kAck, 501, iss + 1);
  EXPECT_TRUE(s.has_event(SocketEventKind::kConnected));
  EXPECT_EQ(s.stack.info(id).state, TcpState::kEstablished);
}

TEST(TcpScript, ClosedPortsAnswerWithReset) {
  Script s;
  s.ts = false;
  s.send(kSyn, 77, 0);
  auto reset = s.next();
  ASSERT_TRUE(reset);
  EXPECT_EQ(reset->tcp.flags, kRst | kAck);
  EXPECT_EQ(reset->tcp.acknowledgment, 78u);
  EXPECT_EQ(reset->tcp.sequence, 0u);
  s.send(kAck, 77, 1234, 10);
  reset = s.next();
  ASSERT_TRUE(reset);
  EXPECT_EQ(reset->tcp.flags, kRst);
  EXPECT_EQ(reset->tcp.sequence, 1234u);
  s.send(kRst, 77, 0);
  EXPECT_TRUE(s.quiet());
  // No more than 100 per second to one peer.
  for (int i = 0; i < 300; ++i) s.send(kAck, 77, 1234);
  EXPECT_LE(s.out.size(), 100u);
  EXPECT_GT(s.stack.counters().drop(Drop::kRateLimit), 100u);
}

TEST(TcpScript, ListenerIgnoresWhatIsNotASyn) {
  Script s;
  s.listener = *s.stack.listen(s.now, std::nullopt, 80);
  s.send(kAck, 5, 9999);
  auto reset = s.next();
  ASSERT_TRUE(reset);
  EXPECT_EQ(reset->tcp.sequence, 9999u);
  s.send(kSyn | kFin, 5, 0);
  EXPECT_TRUE(s.quiet());
}

TEST(TcpScript, ResetEndsAHalfOpenSilently) {
  Script s;
  s.listener = *s.stack.listen(s.now, std::nullopt, 80);
  auto o = s.syn_options();
  s.send(kSyn, 0, 0, 0, 65535, &o);
  ASSERT_TRUE(s.next());
  s.send(kRst, 7, 0);
  EXPECT_EQ(s.stack.memory().half_open, 1u);
  s.send(kRst, 1, 0);
  EXPECT_EQ(s.stack.memory().half_open, 0u);
  EXPECT_TRUE(s.quiet());
}

// ---- acceptance

TEST(TcpScript, ChallengesInsteadOfBlindResets) {
  Script s;
  SocketId id = s.accept();
  std::uint32_t una = s.iss + 1;
  s.send(kRst, 100, 0);                       // in the window, not at its start
  auto challenge = s.next();
  ASSERT_TRUE(challenge);
  EXPECT_EQ(challenge->tcp.flags, kAck);
  EXPECT_EQ(challenge->tcp.acknowledgment, 1u);
  s.send(kSyn, 1, 0);                         // throttled: two per second at most
  s.send(kAck, 1, una + 100);                 // for data never sent
  EXPECT_TRUE(s.quiet());
  s.wait(500ms);
  s.send(kSyn, 1, 0);
  EXPECT_TRUE(s.next());
  s.wait(500ms);
  s.send(kAck, 1, una + 100);
  EXPECT_TRUE(s.next());
  s.send(kRst, 70000, 0);                     // outside
  EXPECT_TRUE(s.quiet());
  EXPECT_EQ(s.stack.info(id).state, TcpState::kEstablished);
  s.send(kRst, 1, 0);
  ASSERT_TRUE(s.has_event(SocketEventKind::kReset));
  EXPECT_EQ(s.last_event.error.code, ErrorCode::kReset);
  EXPECT_EQ(s.stack.info(id).state, TcpState::kClosed);
}

TEST(TcpScript, OldTimestampIsRefused) {
  Script s;
  SocketId id = s.accept();
  s.wait(50ms);
  s.out.clear();
  s.ts_value = 900;   // before the handshake's 1000
  s.send(kAck | kPsh, 1, s.iss + 1, 100);
  EXPECT_EQ(s.stack.readable(id), 0u);
  ASSERT_TRUE(s.next());                       // told the state
  EXPECT_EQ(s.stack.counters().drop(Drop::kTcpPaws), 1u);
  s.send(kAck, 1, s.iss + 1);
  EXPECT_TRUE(s.quiet());                      // a bare late ACK is just dropped
  s.ts = false;
  s.send(kAck | kPsh, 1, s.iss + 1, 100);      // negotiated but missing
  EXPECT_EQ(s.stack.readable(id), 0u);
  s.ts = true;
  s.ts_value = 1000;
  s.send(kAck | kPsh, 1, s.iss + 1, 100);
  EXPECT_EQ(s.stack.readable(id), 100u);
  // After 24 days the clock of the peer may have wrapped.
  s.wait(std::chrono::hours(24 * 25));
  s.ts_value = 900;
  s.send(kAck | kPsh, 101, s.iss + 1, 100);
  EXPECT_EQ(s.stack.readable(id), 200u);
}

TEST(TcpScript, KeepaliveProbeIsAnswered) {
  Script s;
  s.accept();
  s.send(kAck, 0, s.iss + 1);
  auto ack = s.next();
  ASSERT_TRUE(ack);
  EXPECT_EQ(ack->tcp.acknowledgment, 1u);
  EXPECT_EQ(ack->tcp.sequence, s.iss + 1);
}

TEST(TcpScript, DataBehindTheWindowIsCut) {
  StackConfig c;
  c.receive_buffer_start = c.receive_buffer_max = 4096;
  Script s(c);
  SocketId id = s.accept();
  std::uint32_t at = 1;
  for (int i = 0; i < 5; ++i, at += 1000) s.send(kAck, at, s.iss + 1, 1000);
  EXPECT_LE(s.stack.readable(id), 4096u + 256u);
  EXPECT_GE(s.stack.readable(id), 4096u);
  std::optional<Seen> last, seen;
  while ((seen = s.next())) last = seen;
  ASSERT_TRUE(last);
  EXPECT_EQ(last->tcp.window, 0);
  // Opening again is announced.
  read_all(s, id);
  last = s.next();
  ASSERT_TRUE(last);
  EXPECT_GE(last->tcp.window << kWindowShift, 3000);
}

TEST(TcpScript, RightEdgeNeverMovesLeft) {
  StackConfig c;
  c.receive_buffer_start = c.receive_buffer_max = 20000;
  Script s(c);
  SocketId id = s.accept();
  SeededRng rng(3);
  std::uint32_t at = 1, edge = 0;
  for (int i = 0; i < 3000; ++i) {
    std::size_t size = 1 + rng.below(1200);
    if (s.stack.readable(id) + size < 20000) {
      s.send(kAck, at, s.iss + 1, size);
      at += static_cast<std::uint32_t>(size);
    }
    if (rng.below(3) == 0) s.stack.consume(s.now, id, rng.below(3000));
    s.wait(Duration(static_cast<std::int64_t>(rng.below(30'000'000))));
    while (auto seen = s.next()) {
      std::uint32_t now_edge = seen->tcp.acknowledgment + (std::uint32_t{seen->tcp.window} << kWindowShift);
      // Rounding may cost less than one step, and only where more would exceed the reserve.
      EXPECT_GE(static_cast<std::int32_t>(now_edge - edge), -static_cast<std::int32_t>(1u << kWindowShift));
      edge = std::max(edge, now_edge);
      EXPECT_LE(edge, at + 20000 + 512);
    }
  }
}

TEST(TcpScript, UrgentDataStaysInline) {
  Script s;
  SocketId id = s.accept();
  s.send(kAck | kUrg | kPsh, 1, s.iss + 1, 50);
  EXPECT_EQ(s.stack.readable(id), 50u);
}

// ---- acknowledging

TEST(TcpScript, DelayedAck) {
  Script s;
  SocketId id = s.accept();
  std::uint32_t at = 1;
  // The first sixteen are answered at once.
  for (int i = 0; i < kQuickAcks; ++i, at += 100) {
    s.send(kAck, at, s.iss + 1, 100);
    auto ack = s.next();
    ASSERT_TRUE(ack) << i;
    EXPECT_EQ(ack->tcp.acknowledgment, at + 100);
    read_all(s, id);
  }
  s.send(kAck, at, s.iss + 1, 100);
  at += 100;
  EXPECT_TRUE(s.quiet());
  s.wait(24ms);
  EXPECT_TRUE(s.quiet());
  s.wait(2ms);
  auto ack = s.next();
  ASSERT_TRUE(ack);
  EXPECT_EQ(ack->tcp.acknowledgment, at);
  // Two full segments do not wait.
  s.send(kAck, at, s.iss + 1, 1228);
  EXPECT_TRUE(s.quiet());
  s.send(kAck, at + 1228, s.iss + 1, 1228);
  at += 2 * 1228;
  EXPECT_TRUE(s.next());
  // Data carries the acknowledgment.
  s.send(kAck, at, s.iss + 1, 100);
  EXPECT_TRUE(s.quiet());
  write(s, id, 10);
  auto data = s.next();
  ASSERT_TRUE(data);
  EXPECT_EQ(data->tcp.acknowledgment, at + 100);
  EXPECT_EQ(data->tcp.data.size(), 10u);
  EXPECT_TRUE(s.quiet());
  s.wait(100ms);
  for (auto& p : s.out) EXPECT_GT(decode_tcp(p)->tcp.data.size(), 0u);   // the tail probe, no bare ACK
}

TEST(TcpScript, OneAckPerBatch) {
  Script s;
  SocketId id = s.accept();
  std::uint32_t at = 1;
  auto batch = [&](int n) {
    std::vector<ByteVector> packets;
    for (int i = 0; i < n; ++i, at += 1228) packets.push_back(s.build(kAck, at, s.iss + 1, 1228));
    std::vector<MutBytes> views(packets.begin(), packets.end());
    s.stack.handle_packets(s.now, views);
    s.collect();
    s.stack.consume(s.now, id, s.stack.readable(id));
  };
  batch(12);
  EXPECT_EQ(s.out.size(), 1u);
  s.out.clear();
  batch(49);                          // one per sixteen, and the rest
  EXPECT_EQ(s.out.size(), 4u);
  std::uint32_t last = 0;
  while (auto ack = s.next()) last = ack->tcp.acknowledgment;
  EXPECT_EQ(last, at);
}

TEST(TcpScript, SackBlocksAndDuplicateAcks) {
  Script s;
  SocketId id = s.accept();
  // 1: lost. 1001, 3001, 2001, then the hole.
  s.send(kAck, 1001, s.iss + 1, 1000);
  auto ack = s.next();
  ASSERT_TRUE(ack);
  EXPECT_EQ(ack->tcp.acknowledgment, 1u);
  ASSERT_EQ(ack->tcp.options.sack_count, 1);
  EXPECT_EQ(ack->tcp.options.sack[0], (wire::SackBlock{1001, 2001}));
  std::uint16_t window = ack->tcp.window;
  s.send(kAck, 3001, s.iss + 1, 1000);
  ack = s.next();
  ASSERT_EQ(ack->tcp.options.sack_count, 2);
  EXPECT_EQ(ack->tcp.options.sack[0], (wire::SackBlock{3001, 4001}));
  EXPECT_EQ(ack->tcp.options.sack[1], (wire::SackBlock{1001, 2001}));
  EXPECT_EQ(ack->tcp.window, window);   // or it would not count as a duplicate
  s.send(kAck, 2001, s.iss + 1, 1000);
  ack = s.next();
  ASSERT_EQ(ack->tcp.options.sack_count, 1);
  EXPECT_EQ(ack->tcp.options.sack[0], (wire::SackBlock{1001, 4001}));
  // A duplicate out of order is reported (RFC 2883).
  s.send(kAck, 2001, s.iss + 1, 1000);
  ack = s.next();
  ASSERT_EQ(ack->tcp.options.sack_count, 2);
  EXPECT_EQ(ack->tcp.options.sack[0], (wire::SackBlock{2001, 3001}));
  EXPECT_EQ(ack->tcp.options.sack[1], (wire::SackBlock{1001, 4001}));
  EXPECT_EQ(s.stack.readable(id), 0u);
  s.send(kAck, 1, s.iss + 1, 1000);
  ack = s.next();
  EXPECT_EQ(ack->tcp.acknowledgment, 4001u);
  EXPECT_EQ(ack->tcp.options.sack_count, 0);
  EXPECT_EQ(s.stack.readable(id), 4000u);
  Bytes span[4];
  std::uint64_t n = 1;
  for (std::size_t i = 0, spans = s.stack.peek(id, span); i < spans; ++i)
    for (std::uint8_t byte : span[i]) ASSERT_EQ(byte, pattern(n++));
  // And below the window.
  s.send(kAck, 1, s.iss + 1, 1000);
  ack = s.next();
  ASSERT_EQ(ack->tcp.options.sack_count, 1);
  EXPECT_EQ(ack->tcp.options.sack[0], (wire::SackBlock{1, 1001}));
  EXPECT_EQ(ack->tcp.acknowledgment, 4001u);
}

TEST(TcpScript, FirstDuplicatesOfABatchAreSingle) {
  Script s;
  s.accept();
  std::vector<ByteVector> packets;
  for (std::uint32_t i = 1; i <= 20; ++i) packets.push_back(s.build(kAck, 1 + 1000 * i, s.iss + 1, 1000));
  std::vector<MutBytes> views(packets.begin(), packets.end());
  s.stack.handle_packets(s.now, views);
  s.collect();
  EXPECT_EQ(s.out.size(), kDuplicateAcksPerEpisode + 1);
  std::uint32_t end = 2001;
  for (std::size_t i = 0; i < kDuplicateAcksPerEpisode; ++i, end += 1000) {
    auto ack = s.next();
    EXPECT_EQ(ack->tcp.acknowledgment, 1u);
    EXPECT_EQ(ack->tcp.options.sack[0], (wire::SackBlock{1001, end}));
  }
  EXPECT_EQ(s.next()->tcp.options.sack[0], (wire::SackBlock{1001, 21001}));
}

TEST(TcpScript, OutOfOrderFinWaitsForItsData) {
  Script s;
  SocketId id = s.accept();
  s.send(kAck | kFin, 101, s.iss + 1, 100);
  EXPECT_FALSE(s.has_event(SocketEventKind::kPeerClosed));
  s.send(kAck, 1, s.iss + 1, 100);
  EXPECT_TRUE(s.has_event(SocketEventKind::kPeerClosed));
  EXPECT_EQ(s.stack.readable(id), 200u);
  EXPECT_FALSE(s.stack.read_eof(id));
  read_all(s, id);
  EXPECT_TRUE(s.stack.read_eof(id));
  EXPECT_EQ(s.stack.info(id).state, TcpState::kCloseWait);
}

// ---- closing

TEST(TcpScript, ActiveCloseThroughTimeWait) {
  Script s;
  SocketId id = s.accept();
  s.stack.shutdown_write(s.now, id);
  s.collect();
  auto fin = s.next();
  ASSERT_TRUE(fin);
  EXPECT_EQ(fin->tcp.flags, kFin | kAck);
  EXPECT_EQ(s.stack.info(id).state, TcpState::kFinWait1);
  s.send(kAck, 1, s.iss + 2);
  EXPECT_EQ(s.stack.info(id).state, TcpState::kFinWait2);
  s.send(kAck, 1, s.iss + 2, 500);            // half-closed: the peer still talks
  EXPECT_EQ(s.stack.readable(id), 500u);
  s.out.clear();
  s.send(kFin | kAck, 501, s.iss + 2);
  auto ack = s.next();
  ASSERT_TRUE(ack);
  EXPECT_EQ(ack->tcp.acknowledgment, 502u);
  EXPECT_TRUE(s.has_event(SocketEventKind::kClosed));
  EXPECT_EQ(s.stack.memory().time_wait, 1u);
  EXPECT_EQ(s.stack.readable(id), 500u);
  read_all(s, id);
  EXPECT_TRUE(s.stack.read_eof(id));
  s.stack.close(s.now, id);
  // A FIN again is acknowledged again; a reset does not shorten the wait (RFC 1337).
  s.wait(1s);
  s.send(kFin | kAck, 501, s.iss + 2);
  EXPECT_EQ(s.next()->tcp.acknowledgment, 502u);
  s.send(kRst, 502, 0);
  EXPECT_EQ(s.stack.memory().time_wait, 1u);
  s.wait(59s);
  EXPECT_EQ(s.stack.memory().time_wait, 1u);   // the second FIN started it anew
  s.wait(2s);
  EXPECT_EQ(s.stack.memory().time_wait, 0u);
}

TEST(TcpScript, SimultaneousClose) {
  Script s;
  SocketId id = s.accept();
  s.stack.shutdown_write(s.now, id);
  s.collect();
  ASSERT_TRUE(s.next());
  s.send(kFin | kAck, 1, s.iss + 1);
  EXPECT_EQ(s.stack.info(id).state, TcpState::kClosing);
  EXPECT_EQ(s.next()->tcp.acknowledgment, 2u);
  s.send(kAck, 2, s.iss + 2);
  EXPECT_TRUE(s.has_event(SocketEventKind::kClosed));
  EXPECT_EQ(s.stack.memory().time_wait, 1u);
}

TEST(TcpScript, PassiveClose) {
  Script s;
  SocketId id = s.accept();
  s.send(kFin | kAck, 1, s.iss + 1);
  EXPECT_TRUE(s.has_event(SocketEventKind::kPeerClosed));
  ASSERT_TRUE(s.next());
  write(s, id, 10);                           // the other half still works
  EXPECT_EQ(s.next()->tcp.data.size(), 10u);
  s.stack.close(s.now, id);
  s.collect();
  auto fin = s.next();
  ASSERT_TRUE(fin);
  EXPECT_EQ(fin->tcp.flags & kFin, kFin);
  s.send(kAck, 2, s.iss + 12);
  EXPECT_EQ(s.stack.memory().connections, 0u);
  EXPECT_EQ(s.stack.memory().time_wait, 0u);
}

TEST(TcpScript, CloseWithUnreadDataResets) {
  Script s;
  SocketId id = s.accept();
  s.send(kAck, 1, s.iss + 1, 10);
  s.out.clear();
  s.stack.close(s.now, id);
  s.collect();
  EXPECT_EQ(s.next()->tcp.flags & kRst, kRst);
  EXPECT_EQ(s.stack.memory().connections, 0u);
}

TEST(TcpScript, DataAfterCloseResets) {
  Script s;
  SocketId id = s.accept();
  s.stack.close(s.now, id);
  s.collect();
  ASSERT_TRUE(s.next());
  s.send(kAck, 1, s.iss + 2, 10);
  auto reset = s.next();
  ASSERT_TRUE(reset);
  EXPECT_EQ(reset->tcp.flags & kRst, kRst);
  EXPECT_EQ(reset->tcp.sequence, s.iss + 2);
  EXPECT_EQ(s.stack.memory().connections, 0u);
}

TEST(TcpScript, OrphansDoNotWaitForEver) {
  Script s;
  SocketId id = s.accept();
  s.stack.close(s.now, id);
  s.collect();
  s.send(kAck, 1, s.iss + 2);
  s.wait(59s);
  EXPECT_EQ(s.stack.memory().connections, 1u);
  s.wait(2s);
  EXPECT_EQ(s.stack.memory().connections, 0u);
}

TEST(TcpScript, AbortResetsAtSendNext) {
  Script s;
  SocketId id = s.accept();
  write(s, id, 100);
  ASSERT_TRUE(s.next());
  s.stack.abort(s.now, id);
  s.collect();
  auto reset = s.next();
  ASSERT_TRUE(reset);
  EXPECT_EQ(reset->tcp.flags & kRst, kRst);
  EXPECT_EQ(reset->tcp.sequence, s.iss + 101);
  EXPECT_EQ(s.stack.memory().connections, 0u);
  EXPECT_EQ(s.stack.write(s.now, id, as_bytes("x")), 0u);
}

TEST(TcpScript, TimeWaitGivesWayToANewerConnection) {
  Script s;
  SocketId id = s.accept();
  s.stack.shutdown_write(s.now, id);
  s.collect();
  s.send(kFin | kAck, 1, s.iss + 2);
  s.stack.close(s.now, id);
  ASSERT_EQ(s.stack.memory().time_wait, 1u);
  s.out.clear();
  auto o = s.syn_options();
  s.send(kSyn, 5000, 0, 0, 65535, &o);        // same timestamp: not newer
  EXPECT_EQ(s.stack.memory().time_wait, 1u);
  s.out.clear();
  s.ts_value += 10;
  s.send(kSyn, 5000, 0, 0, 65535, &o);
  EXPECT_EQ(s.stack.memory().time_wait, 0u);
  auto answer = s.next();
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->tcp.flags, kSyn | kAck);
  EXPECT_GT(static_cast<std::int32_t>(answer->tcp.sequence - (s.iss + 2)), 0);
}

// ---- sending

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

// ---- limits

TEST(TcpScript, SynFloodHurtsOnlyItsOwnPeer) {
  Script s;
  s.listener = *s.stack.listen(s.now, std::nullopt, 80);
  auto o = s.syn_options();
  for (std::uint32_t i = 0; i < 20000; ++i) {
    s.peer_port = static_cast<std::uint16_t>(1024 + i);
    MutBytes view;
    ByteVector packet = s.build(kSyn, i, 0, 0, 65535, &o);
    view = packet;
    s.stack.handle_packets(s.now, {&view, 1});
    s.now = s.now + 10us;
  }
  s.collect();
  EXPECT_EQ(s.stack.memory().half_open, kHalfOpenPerPeerMax);
  EXPECT_EQ(s.stack.memory().buffers, 0u);
  EXPECT_LE(s.out.size(), 150u);
  s.out.clear();
  // Another peer gets through.
  s.peer = IpAddress::v4(100, 64, 0, 77);
  s.peer_port = 999;
  EXPECT_NE(s.accept(), 0u);
}

TEST(TcpScript, FullAcceptQueueIsPatient) {
  Script s;
  s.listener = *s.stack.listen(s.now, std::nullopt, 80, 1);
  auto o = s.syn_options();
  s.peer_port = 1;
  s.send(kSyn, 0, 0, 0, 65535, &o);
  std::uint32_t first = s.next()->tcp.sequence;
  s.peer_port = 2;
  s.send(kSyn, 0, 0, 0, 65535, &o);
  std::uint32_t second = s.next()->tcp.sequence;
  s.peer_port = 1;
  s.send(kAck, 1, first + 1);
  s.peer_port = 2;
  s.send(kAck, 1, second + 1);                 // early, not wrong: no reset
  EXPECT_TRUE(s.quiet());
  s.peer_port = 3;
  s.send(kSyn, 0, 0, 0, 65535, &o);
  EXPECT_TRUE(s.quiet());
  ASSERT_TRUE(s.stack.accept(s.listener));
  s.peer_port = 2;
  s.send(kAck, 1, second + 1, 5);
  auto id = s.stack.accept(s.listener);
  ASSERT_TRUE(id);
  EXPECT_EQ(s.stack.readable(*id), 5u);
}

TEST(TcpScript, ResetInTheAcceptQueueIsNotDelivered) {
  Script s;
  s.listener = *s.stack.listen(s.now, std::nullopt, 80);
  auto o = s.syn_options();
  s.send(kSyn, 0, 0, 0, 65535, &o);
  std::uint32_t iss = s.next()->tcp.sequence;
  s.send(kAck, 1, iss + 1);
  s.send(kRst, 1, 0);
  EXPECT_EQ(s.stack.memory().connections, 0u);
  EXPECT_FALSE(s.stack.accept(s.listener));
}

TEST(TcpScript, ClosingAListenerResetsWhatWaits) {
  Script s;
  s.listener = *s.stack.listen(s.now, std::nullopt, 80);
  auto o = s.syn_options();
  s.send(kSyn, 0, 0, 0, 65535, &o);
  std::uint32_t iss = s.next()->tcp.sequence;
  s.send(kAck, 1, iss + 1);
  s.peer_port = 77;
  s.send(kSyn, 0, 0, 0, 65535, &o);
  s.out.clear();
  s.stack.close(s.now, s.listener);
  s.collect();
  EXPECT_EQ(s.next()->tcp.flags & kRst, kRst);
  EXPECT_EQ(s.stack.memory().connections, 0u);
  EXPECT_EQ(s.stack.memory().half_open, 0u);
  EXPECT_EQ(s.stack.memory().listeners, 0u);
}

TEST(TcpScript, VanishedAddressEndsItsConnections) {
  Script s;
  SocketId id = s.accept();
  IpAddress other[] = {IpAddress::v4(100, 64, 0, 9)};
  s.stack.set_addresses(other);
  s.collect();
  ASSERT_TRUE(s.has_event(SocketEventKind::kReset));
  EXPECT_EQ(s.last_event.error.code, ErrorCode::kCancelled);
  EXPECT_TRUE(s.quiet());                      // nothing may leave from the old address
  s.stack.close(s.now, id);
  EXPECT_EQ(s.stack.memory().connections, 0u);
}

TEST(TcpScript, ConnectArgumentsAreChecked) {
  Script s;
  EXPECT_EQ(s.stack.connect(s.now, Endpoint{kA4, 80}).error().code, ErrorCode::kInvalid);
  EXPECT_EQ(s.stack.connect(s.now, Endpoint{kB4, 0}).error().code, ErrorCode::kInvalid);
  EXPECT_EQ(s.stack.connect(s.now, Endpoint{IpAddress::v4(224, 0, 0, 1), 80}).error().code, ErrorCode::kInvalid);
  IpAddress only[] = {kA4};
  s.stack.set_addresses(only);
  EXPECT_EQ(s.stack.connect(s.now, Endpoint{kB6, 80}).error().code, ErrorCode::kUnavailable);
  ConnectOptions o;
  o.local_port = 5555;
  EXPECT_TRUE(s.stack.connect(s.now, Endpoint{kB4, 80}, o).ok());
  EXPECT_EQ(s.stack.connect(s.now, Endpoint{kB4, 80}, o).error().code, ErrorCode::kAlreadyExists);
  EXPECT_TRUE(s.stack.listen(s.now, std::nullopt, 80).ok());
  EXPECT_EQ(s.stack.listen(s.now, std::nullopt, 80).error().code, ErrorCode::kAlreadyExists);
}

TEST(TcpScript, HostileSegmentsNeverBreakAnything) {
  for (std::uint64_t seed = 1; seed <= 30; ++seed) {
    Script s;
    SocketId id = s.accept();
    SeededRng rng(seed);
    write(s, id, 30000);
    for (int i = 0; i < 400; ++i) {
      std::uint8_t flags = static_cast<std::uint8_t>(rng.u32() & 0x3f);
      if (rng.below(4) != 0) flags = kAck;
      std::uint32_t seq = rng.below(2) != 0 ? static_cast<std::uint32_t>(rng.below(70000)) : rng.u32();
      std::uint32_t ack = s.iss + (rng.below(2) != 0 ? static_cast<std::uint32_t>(rng.below(31000)) : rng.u32());
      wire::TcpOptions o;
      o.sack_count = static_cast<std::uint8_t>(rng.below(4));
      for (std::size_t b = 0; b < o.sack_count; ++b) {
        o.sack[b].start = s.iss + static_cast<std::uint32_t>(rng.below(31000));
        o.sack[b].end = o.sack[b].start + static_cast<std::uint32_t>(rng.below(5000));
      }
      if (rng.below(8) == 0) s.ts_value = rng.u32();
      s.ts_echo = rng.u32();
      ByteVector packet = s.build(flags, seq, ack, rng.below(1200), static_cast<std::uint16_t>(rng.u32()), &o);
      if (rng.below(5) == 0) packet[rng.below(packet.size())] ^= static_cast<std::uint8_t>(1u << rng.below(8));
      if (rng.below(10) == 0) packet.resize(rng.below(packet.size() + 1));
      s.inject(packet);
      if (rng.below(3) == 0) s.wait(Duration(static_cast<std::int64_t>(rng.below(300'000'000))));
      if (rng.below(3) == 0) read_all(s, id);
    }
  }
}

}  // namespace
}  // namespace porthole::netstack
