// Single segments in, single segments out (RFC 9293 and its companions): handshakes; limits, and what must break nothing.
#include <gtest/gtest.h>

#include <set>

#include "netstack/limits.h"
#include "netstack/script_harness.h"

namespace porthole::netstack {
namespace {

using namespace harness;

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

TEST(TcpScript, SynsThatCrossOpenOneConnection) {
  // Each end sees a SYN, and then the other's SYN again with an ACK, nothing else.
  for (bool lose : {false, true}) {
    World w({});
    ConnectOptions from_a, from_b;
    from_a.local_port = 1000;
    from_b.local_port = 2000;
    SocketId a = *w.a.connect(w.now, Endpoint{kB4, 2000}, from_a);
    SocketId b = *w.b.connect(w.now, Endpoint{kA4, 1000}, from_b);
    int packets = 0;
    // The second packet of B is its SYN-ACK: B stays behind until A has answered the next one.
    w.ba.drop = [&](Instant, const ByteVector&) { return ++packets == 2 && lose; };
    auto established = [&] {
      return w.a.info(a).state == TcpState::kEstablished && w.b.info(b).state == TcpState::kEstablished;
    };
    ASSERT_TRUE(w.run(lose ? Duration(5s) : Duration(200ms), established));
    ByteVector data(100'000, 1);
    ASSERT_EQ(w.a.write(w.now, a, data), data.size());
    ASSERT_EQ(w.b.write(w.now, b, data), data.size());
    EXPECT_TRUE(w.run(2s, [&] { return w.a.readable(a) == data.size() && w.b.readable(b) == data.size(); }));
    EXPECT_EQ(w.a.counters().tcp_resets_sent + w.b.counters().tcp_resets_sent, 0u);
  }
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
