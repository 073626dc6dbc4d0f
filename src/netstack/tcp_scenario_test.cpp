// Named situations on an emulated link, with what must come of them.
#include <gtest/gtest.h>

#include "netstack/limits.h"
#include "netstack/link_harness.h"

namespace porthole::netstack {
namespace {

using namespace harness;

World::Options link(double mbit, Duration one_way) {
  World::Options o;
  o.forward.rate_bps = o.backward.rate_bps = mbit * 1e6;
  o.forward.delay = o.backward.delay = one_way;
  o.forward.queue_bytes = o.backward.queue_bytes =
      std::max<std::size_t>(128000, static_cast<std::size_t>(mbit * 1e6 / 8 * 2 * std::chrono::duration<double>(one_way).count()));
  return o;
}

// Drops data segments by the order in which their sequence first appears (1-based), the given number of times each.
std::function<bool(Instant, const ByteVector&)> drop_list(std::map<int, int> times) {
  auto state = std::make_shared<std::pair<std::map<std::uint32_t, int>, int>>();
  auto left = std::make_shared<std::map<int, int>>(std::move(times));
  return [state, left](Instant, const ByteVector& packet) {
    auto seen = decode_tcp(packet);
    if (!seen || seen->tcp.data.empty()) return false;
    auto [it, is_new] = state->first.try_emplace(seen->tcp.sequence, 0);
    if (is_new) it->second = ++state->second;
    auto budget = left->find(it->second);
    if (budget == left->end() || budget->second == 0) return false;
    --budget->second;
    return true;
  };
}

TEST(TcpScenario, LastSegmentLostIsRepairedByAProbe) {
  World w(link(50, 25ms));
  Transfer t(w, 100'000);
  int n = (100'000 + 1227) / 1228;
  w.ab.drop = drop_list({{n, 1}});
  Instant sent_last;
  w.ab.tap = [&](Instant now, const ByteVector& p) {
    auto seen = decode_tcp(p);
    if (seen && !seen->tcp.data.empty() && sent_last == Instant() && seen->tcp.has(wire::tcp_flag::kFin)) sent_last = now;
  };
  ASSERT_TRUE(w.run(10s, [&] { return t.eof; }));
  Duration srtt = w.a.info(t.client).srtt;
  ASSERT_TRUE(w.run(1s, [&] { return t.done(); }));
  EXPECT_EQ(w.a.counters().tcp_timeouts, 0u);
  EXPECT_GE(w.a.counters().tcp_tail_probes, 1u);
  EXPECT_EQ(w.a.counters().tcp_recoveries, 1u);   // a repaired loss is a loss
  ASSERT_NE(sent_last, Instant());
  // One round trip until the segment before it is acknowledged, two to the probe, half a one for that.
  EXPECT_LE(t.finished_at - sent_last, 4 * srtt);
}

// A film is answers with pauses. A loss at the end of one finds little in flight, which says nothing about the path.
TEST(TcpScenario, ALossAtTheEndOfAnAnswerKeepsTheWindow) {
  World w(link(50, 25ms));
  SocketId listener = *w.b.listen(w.now, std::nullopt, 80), server = 0, client = *w.a.connect(w.now, Endpoint{kB4, 80});
  const ByteVector block(65536);
  std::uint64_t left = 0, received = 0;
  auto write = [&] {
    while (left > 0) {
      std::size_t n = w.a.write(w.now, client, Bytes(block).first(std::min<std::size_t>(left, block.size())));
      left -= n;
      if (n == 0) break;
    }
  };
  w.on_a = [&](const SocketEvent&) { write(); };
  w.on_b = [&](const SocketEvent&) {
    if (auto id = w.b.accept(listener)) server = *id;
    received += w.b.readable(server);
    w.b.consume(w.now, server, w.b.readable(server));
  };
  ASSERT_TRUE(w.run(1s, [&] { return server != 0; }));
  std::uint64_t cwnd = 0;
  constexpr std::uint64_t kAnswer = 1'000'000;
  for (int i = 1; i <= 6; ++i) {
    left = kAnswer;
    std::uint64_t written = 0;
    bool dropped = false;
    w.ab.drop = [&](Instant, const ByteVector& packet) {
      auto seen = decode_tcp(packet);
      if (i < 6 || dropped || !seen || seen->tcp.data.empty()) return false;
      written += seen->tcp.data.size();
      if (written < kAnswer) return false;
      cwnd = w.a.info(client).cwnd;
      return dropped = true;
    };
    write();
    ASSERT_TRUE(w.run(5s, [&] { return received == static_cast<std::uint64_t>(i) * kAnswer; }));
    w.run(100ms);
  }
  EXPECT_GT(w.a.counters().tcp_tail_probes, 0u);
  EXPECT_EQ(w.a.counters().tcp_timeouts, 0u);
  EXPECT_LT(w.a.info(client).cwnd, cwnd);
  EXPECT_GE(w.a.info(client).cwnd, cwnd / 2) << cwnd;
}

TEST(TcpScenario, LostResendIsFoundWithoutTimeout) {
  World w(link(50, 25ms));
  Transfer t(w, 1'000'000);
  w.ab.drop = drop_list({{50, 2}});
  ASSERT_TRUE(w.run(10s, [&] { return t.done(); }));
  EXPECT_EQ(w.a.counters().tcp_timeouts, 0u);
  EXPECT_EQ(w.a.counters().tcp_resent, 2u);
  EXPECT_FALSE(t.corrupt);
}

TEST(TcpScenario, ManyLossesInOneWindowAreOneReduction) {
  World w(link(100, 25ms));
  Transfer t(w, 3'000'000);
  std::map<int, int> drops;
  for (int i = 0; i < 20; ++i) drops[300 + i * 9] = 1;
  w.ab.drop = drop_list(drops);
  ASSERT_TRUE(w.run(10s, [&] { return t.done(); }));
  EXPECT_EQ(w.a.counters().tcp_recoveries, 1u);
  EXPECT_EQ(w.a.counters().tcp_timeouts, 0u);
  EXPECT_EQ(w.a.counters().tcp_resent, 20u);
}

TEST(TcpScenario, ReorderingIsLearned) {
  World::Options o = link(20, 25ms);
  o.forward.jitter = 10ms;
  o.forward.reorder = true;
  o.forward.queue_bytes = 4 << 20;
  World w(o);
  Transfer t(w, 5'000'000);
  ASSERT_TRUE(w.run(60s, [&] { return t.done(); }));
  EXPECT_FALSE(t.corrupt);
  EXPECT_EQ(w.a.counters().tcp_timeouts, 0u);
  // False alarms end once reordering was seen, and what they took is given back.
  EXPECT_LE(w.a.counters().tcp_recoveries, w.a.counters().tcp_undone + 2);
  double share = 5e6 * 8 / 20e6 / std::chrono::duration<double>(t.finished_at - t.connected_at).count();
  EXPECT_GE(share, 0.5);
}

// What a false alarm puts back into the network must not be timed: an answer that comes at once would look like a round
// trip of nothing, and everything older than that like a loss.
TEST(TcpScenario, FalseAlarmsMeasureNothing) {
  World::Options o = link(400, 2ms);
  for (LinkConfig* l : {&o.forward, &o.backward}) {
    l->jitter = 8ms;
    l->reorder = true;
    l->queue_bytes = 4 << 20;
  }
  World w(o);
  Transfer t(w, 8'000'000);
  ASSERT_TRUE(w.run(60s, [&] { return t.eof; }));
  EXPECT_FALSE(t.corrupt);
  EXPECT_GT(w.a.counters().tcp_undone, 0u);
  EXPECT_GE(w.a.info(t.client).min_rtt, 4ms);
  EXPECT_LE(w.a.counters().tcp_resent, 400u);   // of 6,515 segments
  EXPECT_LE(t.finished_at - t.connected_at, 2s);
}

TEST(TcpScenario, PathFlipsWithoutTimeout) {
  World::Options o = link(20, 40ms);
  o.forward.queue_bytes = o.backward.queue_bytes = 400'000;
  World w(o);
  Transfer t(w, std::uint64_t{1} << 40);
  w.run(5s);
  auto flip = [&](Duration one_way, PathChange kind) {
    // Packets of the old path are still on their way and get overtaken.
    w.ab.config.reorder = w.ba.config.reorder = true;
    w.ab.config.delay = w.ba.config.delay = one_way;
    w.a.path_changed(w.now, kB4, kind);
    w.b.path_changed(w.now, kA4, kind);
  };
  std::uint64_t timeouts = w.a.counters().tcp_timeouts;
  flip(10ms, PathChange::kDirect);
  w.run(1s);
  std::uint64_t before = t.received;
  w.run(1s);
  EXPECT_GE(static_cast<double>(t.received - before) * 8, 0.8 * 20e6);
  flip(40ms, PathChange::kRelayed);
  w.run(2s);
  before = t.received;
  w.run(1s);
  EXPECT_GE(static_cast<double>(t.received - before) * 8, 0.7 * 20e6);
  EXPECT_EQ(w.a.counters().tcp_timeouts, timeouts);
  EXPECT_FALSE(t.corrupt);
}

TEST(TcpScenario, ShortBlackout) {
  World w(link(20, 25ms));
  Transfer t(w, std::uint64_t{1} << 40);
  w.run(3s);
  for (Link* l : {&w.ab, &w.ba}) {
    l->blackout_from = w.now;
    l->blackout_until = w.now + 3s;
  }
  std::uint64_t resent = w.a.counters().tcp_timeouts;
  w.run(3s);
  EXPECT_LE(w.a.counters().tcp_timeouts - resent, 5u);
  std::uint64_t before = t.received;
  w.run(2s, [&] { return t.received > before; });
  EXPECT_GT(t.received, before);
  w.run(3s);
  EXPECT_GE(t.received - before, 2'000'000u);
  EXPECT_FALSE(t.corrupt);
}

TEST(TcpScenario, LongBlackoutWithAndWithoutAHint) {
  for (bool hint : {false, true}) {
    World w(link(20, 25ms));
    Transfer t(w, 20'000'000);
    w.run(3s);
    for (Link* l : {&w.ab, &w.ba}) {
      l->blackout_from = w.now;
      l->blackout_until = w.now + 60s;
    }
    if (hint) w.a.path_changed(w.now, kB4, PathChange::kUnreachable);
    w.run(60s);
    Instant back = w.now;
    if (hint) w.a.path_changed(w.now, kB4, PathChange::kReachable);
    std::uint64_t before = t.received;
    ASSERT_TRUE(w.run(61s, [&] { return t.received > before; }));
    if (hint) {
      EXPECT_LE(w.now - back, 5s);
    }
    ASSERT_TRUE(w.run(60s, [&] { return t.done(); })) << t.received;
    EXPECT_FALSE(t.corrupt);
    EXPECT_FALSE(t.failed);
  }
}

TEST(TcpScenario, ReaderStopsForTenMinutes) {
  World w(link(100, 10ms));
  Transfer t(w, 30'000'000);
  w.run(1s);
  t.paused = true;
  w.run(10min);
  EXPECT_FALSE(t.failed);
  std::uint64_t sent = w.a.counters().tcp_segments_out;
  w.run(5min);
  EXPECT_LE(w.a.counters().tcp_segments_out - sent, 10u);   // only probes, once a minute
  t.paused = false;
  t.read_more();
  ASSERT_TRUE(w.run(60s, [&] { return t.done(); })) << t.received;
  EXPECT_FALSE(t.corrupt);
}

TEST(TcpScenario, HalfClosedThenTheOtherWay) {
  World w(link(1000, 5ms));
  SocketId listener = *w.b.listen(w.now, std::nullopt, 80), server = 0;
  SocketId client = *w.a.connect(w.now, Endpoint{kB4, 80});
  std::uint64_t total = 100'000'000, written = 0, received = 0;
  bool server_eof = false, client_eof = false, client_closed = false, server_closed = false;
  ByteVector chunk(65536);
  auto fill = [&] {
    while (written < total) {
      std::size_t n = w.b.write(w.now, server, chunk);
      written += n;
      if (n < chunk.size()) return;
    }
    w.b.shutdown_write(w.now, server);
  };
  w.on_a = [&](const SocketEvent& e) {
    if (e.kind == SocketEventKind::kConnected) {
      w.a.write(w.now, client, as_bytes("request"));
      w.a.shutdown_write(w.now, client);
    }
    if (e.kind == SocketEventKind::kReadable || e.kind == SocketEventKind::kPeerClosed) {
      received += w.a.readable(client);
      w.a.consume(w.now, client, w.a.readable(client));
      client_eof = w.a.read_eof(client);
    }
    if (e.kind == SocketEventKind::kClosed) client_closed = true;
  };
  w.on_b = [&](const SocketEvent& e) {
    if (e.kind == SocketEventKind::kAcceptable) server = *w.b.accept(listener);
    if (e.id != server) return;
    if (e.kind == SocketEventKind::kReadable) w.b.consume(w.now, server, w.b.readable(server));
    if (e.kind == SocketEventKind::kPeerClosed) {
      server_eof = w.b.read_eof(server);
      fill();
    }
    if (e.kind == SocketEventKind::kWritable) fill();
    if (e.kind == SocketEventKind::kClosed) server_closed = true;
  };
  ASSERT_TRUE(w.run(60s, [&] { return client_closed && server_closed; })) << received;
  EXPECT_TRUE(server_eof);
  EXPECT_TRUE(client_eof);
  EXPECT_GE(received, total);
}

TEST(TcpScenario, ResetIsNotAnEnd) {
  World w(link(20, 10ms));
  Transfer t(w, 5'000'000);
  w.run(1s);
  w.a.abort(w.now, t.client);
  w.run(1s);
  EXPECT_FALSE(t.eof);
  ASSERT_TRUE(t.failed);
  EXPECT_EQ(t.failed->code, ErrorCode::kReset);
}

TEST(TcpScenario, TwoStacksNeverArgue) {
  // Both ends of a dead connection still talk; nobody may answer an answer.
  World w(link(20, 10ms));
  Transfer t(w, std::uint64_t{1} << 40);
  w.run(1s);
  w.ab.drop = [](Instant, const ByteVector& p) { return decode_tcp(p) && !decode_tcp(p)->tcp.data.empty(); };
  std::uint64_t before = w.ab.sent + w.ba.sent;
  w.run(30s);
  EXPECT_LE(w.ab.sent + w.ba.sent - before, 200u);
}

TEST(TcpScenario, SequenceAndTimestampWrap) {
  // The clock starts so that the millisecond timestamp crosses its sign whatever the offset, over a long slow stream.
  World w(link(2, 10ms));
  w.now = Instant::from_ns((std::int64_t{1} << 31) * 1'000'000 - 20'000'000'000);
  Transfer t(w, 8'000'000);
  ASSERT_TRUE(w.run(120s, [&] { return t.done(); })) << t.received;
  EXPECT_FALSE(t.corrupt);
  EXPECT_EQ(w.a.counters().tcp_timeouts, 0u);
}

TEST(TcpScenario, RelayQueueOf32Packets) {
  World::Options o = link(20, 25ms);
  o.forward.queue_packets = o.backward.queue_packets = 32;
  World w(o);
  w.a.path_changed(w.now, kB4, PathChange::kRelayed);
  w.b.path_changed(w.now, kA4, PathChange::kRelayed);
  Transfer t(w, std::uint64_t{1} << 40);
  w.run(20s);
  double share = static_cast<double>(t.received) * 8 / 20e6 / 20;
  EXPECT_GE(share, 0.6);
  EXPECT_LE(static_cast<double>(w.ab.queue_lost) / static_cast<double>(w.ab.sent), 0.01);
  EXPECT_EQ(w.a.counters().tcp_timeouts, 0u);
}

TEST(TcpScenario, ThousandIdleConnections) {
  World w(link(1000, 1ms));
  SocketId listener = *w.b.listen(w.now, std::nullopt, 80, 2000);
  int accepted = 0;
  w.on_b = [&](const SocketEvent& e) {
    if (e.kind == SocketEventKind::kAcceptable)
      while (w.b.accept(listener)) ++accepted;
  };
  for (int i = 0; i < 1000; ++i) {
    ASSERT_TRUE(w.a.connect(w.now, Endpoint{kB4, 80}).ok());
    w.run(11ms);   // a peer's SYNs are answered at 100 per second
  }
  w.run(2s);
  EXPECT_EQ(accepted, 1000);
  w.run(5s);
  EXPECT_EQ(w.a.memory().buffers, 0u);
  EXPECT_EQ(w.b.memory().buffers, 0u);
  EXPECT_TRUE(w.a.next_timeout().is_never());
  EXPECT_TRUE(w.b.next_timeout().is_never());
}

TEST(TcpScenario, TinyReadsMakeNoTinySegments) {
  World::Options o = link(10, 5ms);
  o.b.receive_buffer_start = o.b.receive_buffer_max = 8192;
  World w(o);
  Transfer t(w, 200'000);
  t.read_max = 1;
  ASSERT_TRUE(w.run(600s, [&] { return t.done(); }));
  EXPECT_FALSE(t.corrupt);
  EXPECT_LE(w.ab.sent, 200'000u / 50);
}

TEST(TcpScenario, StalledHandshakeReleasesNoStorm) {
  World w(link(20, 25ms));
  w.a.tunnel_blocked(w.now, kB4, false);
  Transfer t(w, 2'000'000);
  w.run(500ms);
  w.a.tunnel_blocked(w.now, kB4, true);
  w.ab.blackout_from = w.now;
  w.ab.blackout_until = w.now + 5s;
  std::uint64_t before = w.ab.sent;
  w.run(5s);
  EXPECT_LE(w.ab.sent - before, 500u);   // acknowledgment-free: what was allowed to be in flight at most
  w.a.tunnel_blocked(w.now, kB4, false);
  ASSERT_TRUE(w.run(20s, [&] { return t.done(); }));
  EXPECT_FALSE(t.corrupt);
}

TEST(TcpScenario, OnePeerCannotHoldAllMemory) {
  // A has two addresses, which are two peers for B: over IPv4 come many connections that nobody reads.
  constexpr std::size_t kLimit = 2u << 20, kSlack = 64u << 10;   // a write is not cut at a chunk
  for (bool other_first : {false, true}) {
    World::Options options;
    options.b.memory_max = kLimit;
    World w(options);
    SocketId listener = *w.b.listen(w.now, std::nullopt, 80);
    std::vector<SocketId> clients;
    ByteVector block(1 << 20);
    SocketId other = 0, served = 0;
    auto fill = [&](SocketId id) { w.a.write(w.now, id, block); };
    w.on_a = [&](const SocketEvent& e) {
      if (e.kind == SocketEventKind::kConnected || e.kind == SocketEventKind::kWritable) fill(e.id);
    };
    w.on_b = [&](const SocketEvent& e) {
      if (e.kind != SocketEventKind::kAcceptable) return;
      while (auto id = w.b.accept(listener))
        if (w.b.remote(*id).address == kA6) served = *id;
    };
    auto connect_other = [&] {
      other = *w.a.connect(w.now, Endpoint{kB6, 80});
      return w.run(2s, [&] { return served != 0 && w.b.readable(served) > 0; });
    };
    if (other_first) {
      ASSERT_TRUE(connect_other());
    }
    for (int i = 0; i < 40; ++i) clients.push_back(*w.a.connect(w.now, Endpoint{kB4, 80}));
    w.run(10s);
    std::size_t by_other = served != 0 ? w.b.info(served).unread + 2 * 32768 : 0;
    EXPECT_LE(w.b.memory().buffers, kLimit / 4 * (other_first ? 2 : 3) + by_other + kSlack);
    EXPECT_GE(w.b.memory().buffers, kLimit / 4 * (other_first ? 2 : 3) - kSlack);
    // The other one connects, and is served as if it were alone.
    if (!other_first) {
      ASSERT_TRUE(connect_other());
    }
    std::uint64_t read = 0;
    auto served_well = [&] {
      read += w.b.readable(served);
      w.b.consume(w.now, served, w.b.readable(served));
      return read > (4u << 20);
    };
    EXPECT_TRUE(w.run(10s, served_well));
  }
}

TEST(TcpScenario, MemoryLimitHoldsAndRecovers) {
  World::Options o = link(1000, 1ms);
  o.a.memory_max = o.b.memory_max = 2 << 20;
  World w(o);
  SocketId listener = *w.b.listen(w.now, std::nullopt, 80, 200);
  std::vector<SocketId> clients, servers;
  ByteVector chunk(65536);
  for (int i = 0; i < 60; ++i) clients.push_back(*w.a.connect(w.now, Endpoint{kB4, 80}));
  w.on_a = [&](const SocketEvent& e) {
    if (e.kind == SocketEventKind::kConnected || e.kind == SocketEventKind::kWritable)
      while (w.a.write(w.now, e.id, chunk) > 0) {}
  };
  w.on_b = [&](const SocketEvent& e) {
    if (e.kind == SocketEventKind::kAcceptable)
      while (auto id = w.b.accept(listener)) servers.push_back(*id);
  };
  // Nobody reads: everything fills, nothing exceeds its bound.
  for (int i = 0; i < 50; ++i) {
    w.run(100ms);
    EXPECT_LE(w.a.memory().buffers, std::size_t{2} << 20);
    EXPECT_LE(w.b.memory().buffers, std::size_t{2} << 20);
  }
  EXPECT_GT(w.b.memory().buffers, std::size_t{1} << 20);
  // Everybody reads: data flows again on what survived.
  std::uint64_t read = 0;
  w.on_b = [&](const SocketEvent& e) {
    read += w.b.readable(e.id);
    w.b.consume(w.now, e.id, w.b.readable(e.id));
  };
  for (SocketId id : servers) {
    read += w.b.readable(id);
    w.b.consume(w.now, id, w.b.readable(id));
  }
  w.run(5s);
  EXPECT_GT(read, 10u << 20);
  for (SocketId id : clients) w.a.abort(w.now, id);
  for (SocketId id : servers) w.b.abort(w.now, id);
  w.run(5s);
  EXPECT_EQ(w.a.memory().buffers, 0u);
  EXPECT_EQ(w.b.memory().buffers, 0u);
}

}  // namespace
}  // namespace porthole::netstack
