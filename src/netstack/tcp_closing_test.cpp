// Single segments in, single segments out (RFC 9293 and its companions): the ends of a connection.
#include <gtest/gtest.h>

#include "netstack/limits.h"
#include "netstack/script_harness.h"

namespace porthole::netstack {
namespace {

using namespace harness;

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

TEST(TcpScript, AHalfClosedConnectionEndsWhenNothingMoves) {
  ConnectOptions options;
  options.half_closed_timeout = 10min;
  for (bool by_peer : {false, true}) {
    Script s;
    SocketId id = s.accept();
    s.stack.set_options(s.now, id, options);
    s.wait(1h);                                // open both ways: as long as it likes
    if (by_peer) {
      s.send(kFin | kAck, 1, s.iss + 1);
    } else {
      s.stack.shutdown_write(s.now, id);
      s.collect();
      s.send(kAck, 1, s.iss + 2);
    }
    std::uint32_t seq = 1, ack = s.iss + (by_peer ? 1 : 2);
    for (int i = 0; i < 3; ++i) {              // the other direction is used
      s.wait(9min);
      if (by_peer) {
        write(s, id, 10);
        s.send(kAck, 2, ack += 10);
      } else {
        s.send(kAck, seq, ack, 10);
        seq += 10;
        if (i < 2) read_all(s, id);
      }
    }
    // What was not read is not idle, however long the reader pauses.
    if (!by_peer) {
      s.wait(30min);
      read_all(s, id);
    }
    s.wait(9min);
    EXPECT_FALSE(s.has_event(SocketEventKind::kReset));
    s.wait(2min);
    ASSERT_TRUE(s.has_event(SocketEventKind::kReset));
    EXPECT_EQ(s.last_event.error.code, ErrorCode::kTimeout);
    s.stack.close(s.now, id);
  }
}

TEST(TcpScript, AnEndedConnectionKeepsItsPeerWhileTheAppHoldsIt) {
  Script s;
  SocketId id = s.accept();
  s.send(kFin | kAck, 1, s.iss + 1, 100);
  s.stack.shutdown_write(s.now, id);
  s.collect();
  s.send(kAck, 102, s.iss + 2);
  ASSERT_TRUE(s.has_event(SocketEventKind::kClosed));
  // So many others that room must be made; nothing of the kind looks at the app's socket.
  s.ts = false;
  for (std::uint32_t i = 0; i <= kPeersMax; ++i) {
    s.peer = IpAddress::v4(100, 65, static_cast<std::uint8_t>(i >> 8), static_cast<std::uint8_t>(i));
    if (i >> 16 != 0) s.peer = IpAddress::v4(100, 66, 0, 0);
    ByteVector packet = s.build(kAck, 1, 1);
    MutBytes view(packet);
    s.stack.handle_packets(s.now, {&view, 1});
  }
  s.collect();
  EXPECT_EQ(s.stack.readable(id), 100u);
  s.stack.close(s.now, id);
  s.collect();
}

TEST(TcpScript, AFinRepeatedInTimeWaitCostsNoMemory) {
  Script s;
  for (int i = 0; i < 2; ++i) {                // two records, so that one is not always the oldest
    s.peer_port = static_cast<std::uint16_t>(4000 + i);
    SocketId id = s.accept();
    s.stack.shutdown_write(s.now, id);
    s.collect();
    s.send(kFin | kAck, 1, s.iss + 2);
    s.stack.close(s.now, id);
    s.out.clear();
  }
  ASSERT_EQ(s.stack.memory().time_wait, 2u);
  std::uint32_t iss = s.iss;
  for (int i = 0; i < 1000; ++i) {             // collect() checks: one place in the queue for each record
    s.wait(30ms);
    s.send(kFin | kAck, 1, iss + 2);
    s.out.clear();
  }
  s.wait(31s);                                 // the other one has ended, this one started anew with each
  EXPECT_EQ(s.stack.memory().time_wait, 1u);
  s.wait(30s);
  EXPECT_EQ(s.stack.memory().time_wait, 0u);
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

}  // namespace
}  // namespace porthole::netstack
