// Single segments in, single segments out (RFC 9293 and its companions): what is accepted, and how it is acknowledged.
#include <gtest/gtest.h>

#include "netstack/limits.h"
#include "netstack/script_harness.h"

namespace porthole::netstack {
namespace {

using namespace harness;

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

TEST(TcpScript, APeersShareHoldsWithinABatch) {
  StackConfig config;
  config.memory_max = 64 * kChunkSize;
  Script s(config);
  std::vector<ByteVector> batch;
  for (std::uint16_t i = 0; i < 60; ++i) {
    s.peer_port = static_cast<std::uint16_t>(4000 + i);
    ASSERT_NE(s.accept(), 0u);
    batch.push_back(s.build(kAck, 1, s.iss + 1, 1));
  }
  std::vector<MutBytes> views(batch.begin(), batch.end());
  s.stack.handle_packets(s.now, views);
  EXPECT_EQ(s.stack.memory().buffers, 48 * kChunkSize);
}

TEST(TcpScript, WhatCameEarlyGivesWayToWhatIsDue) {
  StackConfig config;
  config.memory_max = 32 * kChunkSize;
  config.receive_buffer_start = 2u << 20;
  Script s(config);
  SocketId id = s.accept();
  s.send(kAck, 1, s.iss + 1, 10);              // its answer opens the whole window
  read_all(s, id);
  for (std::uint32_t k = 1; k < 30; ++k) s.send(kAck, 11 + k * static_cast<std::uint32_t>(kChunkSize), s.iss + 1, 1);
  ASSERT_EQ(s.stack.memory().buffers, 24 * kChunkSize);   // the peer's share
  s.send(kAck, 11, s.iss + 1, 1000);
  EXPECT_EQ(s.stack.readable(id), 1000u);
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

}  // namespace
}  // namespace porthole::netstack
