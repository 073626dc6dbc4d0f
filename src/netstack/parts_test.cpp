// The building blocks of the stack, one by one.
#include <gtest/gtest.h>

#include <map>

#include "base/rng.h"
#include "netstack/byte_queue.h"
#include "netstack/cubic.h"
#include "netstack/flow.h"
#include "netstack/limits.h"
#include "netstack/out_of_order.h"
#include "netstack/packet_fifo.h"
#include "netstack/ring.h"
#include "netstack/sent_segments.h"
#include "netstack/tcp_connection.h"
#include "netstack/timers.h"

namespace porthole::netstack {
namespace {

TEST(ByteQueue, RandomOperationsAgainstAModel) {
  for (std::uint64_t seed = 1; seed <= 3; ++seed) {
    ChunkPool pool(64 << 20);
    {
      ByteQueue q(pool);
      SeededRng rng(seed);
      std::uint64_t begin = rng.u64() >> 20, end = begin;
      q.start_at(begin);
      std::map<std::uint64_t, std::uint8_t> model;
      ByteVector data(40000);
      for (int i = 0; i < 120; ++i) {
        std::size_t size = 1 + rng.below(rng.below(4) == 0 ? 40000 : 2000);
        if (rng.below(3) != 0) {
          rng.fill(MutBytes(data).first(size));
          ASSERT_EQ(q.write(end, Bytes(data).first(size)), size);
          for (std::size_t n = 0; n < size; ++n) model[end + n] = data[n];
          end += size;
        } else if (end > begin) {
          std::uint64_t n = 1 + rng.below(end - begin);
          begin += n;
          q.release_to(begin, end);
          model.erase(model.begin(), model.lower_bound(begin));
        }
        if (begin == end) {
          EXPECT_EQ(q.chunk_count(), 0u);
          continue;
        }
        std::uint64_t at = begin + rng.below(end - begin);
        std::size_t n = static_cast<std::size_t>(std::min<std::uint64_t>(end - at, 1 + rng.below(3000)));
        ByteVector out(n), expected(n);
        wire::PartialSum sum = q.copy_and_sum(out.data(), at, n);
        for (std::size_t k = 0; k < n; ++k) expected[k] = model[at + k];
        ASSERT_EQ(out, expected);
        EXPECT_EQ(wire::fold(sum), wire::fold(wire::sum_bytes(expected)));
        Bytes spans[64];
        std::uint64_t seen = 0;
        for (std::size_t k = 0, count = q.spans(end, spans); k < count; ++k) {
          EXPECT_EQ(spans[k][0], model[begin + seen]);
          seen += spans[k].size();
        }
        EXPECT_EQ(seen, end - begin);
        EXPECT_LE(q.chunk_count(), (end - begin) / kChunkSize + 2);
      }
    }
    EXPECT_EQ(pool.bytes_in_use(), 0u);
  }
}

TEST(ByteQueue, SparseWritesAndTheLimit) {
  ChunkPool pool(40 * kChunkSize);
  ByteQueue q(pool);
  q.start_at(100);
  ByteVector data(kChunkSize);
  EXPECT_EQ(q.write(100 + 10 * kChunkSize, data), data.size());   // far ahead: only what is written is held
  EXPECT_EQ(q.chunk_count(), 2u);
  EXPECT_EQ(q.write(100, data), data.size());
  EXPECT_EQ(q.chunk_count(), 4u);
  q.drop_from(100 + kChunkSize);
  EXPECT_EQ(q.chunk_count(), 2u);
  ByteVector big(60 * kChunkSize);
  std::size_t taken = q.write(100 + kChunkSize, big);
  EXPECT_LT(taken, big.size());
  EXPECT_GE(taken, 35 * kChunkSize);
  EXPECT_EQ(q.write(100 + kChunkSize + taken, data), 0u);
  EXPECT_GT(q.write(100 + kChunkSize + taken, data, true), 0u);   // the reserve
  q.clear();
  EXPECT_EQ(pool.bytes_in_use(), 0u);
}

TEST(ChunkPool, TrimsWhatASecondDidNotNeed) {
  ChunkPool pool(64 << 20);
  std::vector<std::uint8_t*> held;
  for (int i = 0; i < 100; ++i) held.push_back(pool.take());
  for (auto* c : held) pool.give(c);
  EXPECT_EQ(pool.bytes_pooled(), 100 * kChunkSize);
  EXPECT_TRUE(pool.trim());
  EXPECT_FALSE(pool.trim());
  EXPECT_EQ(pool.bytes_pooled(), 0u);
}

TEST(OutOfOrder, AgainstAModel) {
  for (std::uint64_t seed = 1; seed <= 50; ++seed) {
    SeededRng rng(seed);
    OutOfOrder o;
    std::vector<bool> model(2000, false);
    for (int i = 0; i < 200; ++i) {
      std::size_t start = rng.below(1900), end = start + 1 + rng.below(99);
      bool all = true;
      for (std::size_t n = start; n < end; ++n) all = all && model[n];
      EXPECT_EQ(o.add(start, end), !all);
      std::fill(model.begin() + static_cast<std::ptrdiff_t>(start), model.begin() + static_cast<std::ptrdiff_t>(end), true);
      std::vector<OutOfOrder::Interval> expected;
      std::uint64_t bytes = 0;
      for (std::size_t n = 0; n < model.size(); ++n) {
        if (!model[n]) continue;
        ++bytes;
        if (n > 0 && model[n - 1]) expected.back().end = n + 1;
        else expected.push_back({n, n + 1, 0});
      }
      ASSERT_EQ(o.intervals().size(), expected.size());
      for (std::size_t n = 0; n < expected.size(); ++n) {
        EXPECT_EQ(o.intervals()[n].start, expected[n].start);
        EXPECT_EQ(o.intervals()[n].end, expected[n].end);
      }
      EXPECT_EQ(o.bytes(), bytes);
      // The newest is always the first block.
      wire::SackBlock blocks[wire::kSackBlocksMax];
      ASSERT_GE(o.fill_blocks(std::nullopt, 3, blocks), 1);
      EXPECT_LE(blocks[0].start, start);
      EXPECT_GE(blocks[0].end, end);
      if (rng.below(10) == 0) {
        std::size_t at = rng.below(2000);
        std::size_t reach = at;
        while (reach < model.size() && model[reach]) ++reach;
        auto got = o.take_contiguous(at);
        EXPECT_EQ(got.has_value(), reach > at);
        if (got) {
          EXPECT_EQ(*got, reach);
        }
        std::fill(model.begin(), model.begin() + static_cast<std::ptrdiff_t>(reach), false);
      }
    }
  }
}

TEST(SentSegments, ListAndPipe) {
  SentSegments s;
  SeededRng rng(5);
  std::uint64_t at = 1000;
  for (int round = 0; round < 50; ++round) {
    for (std::size_t i = 0, n = 1 + rng.below(200); i < n; ++i) {
      SentSegment r;
      r.sequence = at;
      r.size = 100;
      at += 100;
      s.link_newest(s.append(r));
    }
    for (int i = 0; i < 50; ++i) {
      SentSegments::Id id = s.first() + rng.below(s.size());
      EXPECT_EQ(s.find(s[id].sequence), id);
      EXPECT_EQ(s.find(s[id].sequence + 99), id);
      if (s[id].has(SentSegment::kInNetwork)) s.unlink(id);
      if (rng.below(2) != 0) {
        s.link_newest(id);
        EXPECT_EQ(s.newest(), id);
      }
    }
    EXPECT_EQ(s.pipe(), s.recount_pipe());
    for (std::size_t i = 0, n = rng.below(s.size() + 1); i < n; ++i) s.pop_front();
    EXPECT_EQ(s.pipe(), s.recount_pipe());
  }
}

TEST(TimerHeap, FiresInOrderAndLazily) {
  TimerHeap heap;
  std::vector<TimerNode> nodes(200);
  SeededRng rng(6);
  std::int64_t now = 0;
  for (int i = 0; i < 20000; ++i) {
    TimerNode& n = nodes[rng.below(nodes.size())];
    switch (rng.below(4)) {
      case 0:
      case 1: heap.set(n, Instant::from_ns(now + static_cast<std::int64_t>(rng.below(1000)))); break;
      case 2: heap.set(n, Instant::max()); break;
      default: heap.remove(n);
    }
    if (rng.below(5) == 0) {
      now += static_cast<std::int64_t>(rng.below(300));
      while (TimerNode* due = heap.pop_due(Instant::from_ns(now))) {
        EXPECT_EQ(due->wanted, Instant::max());
        EXPECT_EQ(due->position, TimerNode::kNotQueued);
      }
      for (const TimerNode& left : nodes) EXPECT_GT(left.wanted, Instant::from_ns(now));
    }
    Instant earliest = Instant::max();
    for (const TimerNode& left : nodes) earliest = std::min(earliest, left.wanted);
    EXPECT_LE(heap.next(), earliest);
  }
}

TEST(Flow, SequencesUnwrap) {
  std::uint64_t base = first_sequence(0xfffffff0u);
  EXPECT_EQ(unwrap_sequence(base, 0xfffffff5u), base + 5);
  EXPECT_EQ(unwrap_sequence(base, 5), base + 0x15);
  EXPECT_EQ(unwrap_sequence(base + 0x20, 0xfffffff0u), base);
  EXPECT_EQ(wire_sequence(base + 0x20), 0x10u);
}

TEST(PacketFifo, KeepsRecordsApart) {
  ChunkPool pool(4 << 20);
  PacketFifo fifo(pool);
  SeededRng rng(7);
  std::vector<ByteVector> model;
  for (int i = 0; i < 5000; ++i) {
    if (rng.below(2) == 0) {
      ByteVector data(rng.below(1500));
      rng.fill(data);
      if (fifo.push(as_bytes("head"), data, 100000)) model.push_back(data);
    } else if (!model.empty()) {
      ASSERT_EQ(fifo.front_size(), model.front().size() + 4);
      ByteVector out(model.front().size());
      fifo.read_front(4, out);
      EXPECT_EQ(out, model.front());
      fifo.pop();
      model.erase(model.begin());
    }
    EXPECT_LE(fifo.size_bytes(), 100000u);
  }
  while (!fifo.empty()) fifo.pop();
  EXPECT_EQ(pool.bytes_in_use(), 0u);
}

// ---- CUBIC

AckSample ack(Instant now, std::uint64_t bytes, Duration rtt, bool round_start) {
  AckSample s;
  s.now = now;
  s.delivered = bytes;
  s.segment = 1000;
  s.rtt = s.srtt = s.min_rtt = rtt;
  s.round_start = round_start;
  s.cwnd_limited = true;
  return s;
}

TEST(Cubic, SlowStartDoublesAndHystartLeaves) {
  Cubic c(1000);
  Instant now;
  EXPECT_EQ(c.cwnd(), 10'000u);
  for (int round = 0; round < 4; ++round, now = now + 50ms) {
    std::uint64_t window = c.cwnd();
    for (std::uint64_t n = 0; n < window; n += 1000) c.on_ack(ack(now, 1000, 50ms, n == 0));
    EXPECT_EQ(c.cwnd(), 2 * window);
  }
  EXPECT_EQ(c.ssthresh(), ~std::uint64_t{0});
  // The queue begins to fill: rounds get longer by more than an eighth.
  Duration rtt = 50ms;
  int rounds = 0;
  for (; c.ssthresh() == ~std::uint64_t{0} && rounds < 12; ++rounds) {
    rtt += 10ms;
    now = now + rtt;
    for (std::uint64_t n = 0, window = c.cwnd(); n < window; n += 1000) c.on_ack(ack(now, 1000, rtt, n == 0));
  }
  EXPECT_GE(rounds, 5);
  EXPECT_LE(rounds, 9);
}

TEST(Cubic, JitterDoesNotEndSlowStart) {
  Cubic c(1000);
  SeededRng rng(8);
  Instant now;
  for (int round = 0; round < 8; ++round, now = now + 60ms)
    for (std::uint64_t n = 0, window = c.cwnd(); n < window; n += 1000)
      c.on_ack(ack(now, 1000, rng.between(50ms, 70ms), n == 0));
  EXPECT_EQ(c.ssthresh(), ~std::uint64_t{0});
}

TEST(Cubic, ReductionGrowthAndUndo) {
  Cubic c(1000);
  Instant now;
  for (int i = 0; i < 390; ++i) c.on_ack(ack(now, 1000, 100ms, false));
  std::uint64_t before = c.cwnd();
  EXPECT_EQ(before, 400'000u);
  c.on_enter_recovery(now, before);
  EXPECT_EQ(c.ssthresh(), 280'000u);
  c.on_exit_recovery(now);
  EXPECT_EQ(c.cwnd(), 280'000u);
  // Back at the old window after K = cbrt(120 / 0.4) = 6.7 s, slowly around it, then beyond.
  auto run = [&](Duration time) {
    for (Instant end = now + time; now < end; now = now + 100ms)
      for (std::uint64_t n = 0, window = c.cwnd(); n < window; n += 1000) c.on_ack(ack(now, 1000, 100ms, n == 0));
  };
  run(3s);
  EXPECT_GT(c.cwnd(), 360'000u);
  EXPECT_LT(c.cwnd(), 400'000u);
  run(3700ms);
  EXPECT_NEAR(static_cast<double>(c.cwnd()), 400e3, 8e3);
  run(5s);
  EXPECT_GT(c.cwnd(), 430'000u);
  std::uint64_t grown = c.cwnd();
  c.on_timeout(now, grown, true);
  EXPECT_EQ(c.cwnd(), 1000u);
  c.on_timeout(now, 1000, false);
  EXPECT_GE(c.ssthresh(), static_cast<std::uint64_t>(0.69 * static_cast<double>(grown)));
  c.on_spurious(now);
  EXPECT_EQ(c.cwnd(), grown);
  // Not using the window does not make it grow.
  AckSample idle = ack(now, 1000, 100ms, true);
  idle.cwnd_limited = false;
  for (int i = 0; i < 1000; ++i) c.on_ack(idle);
  EXPECT_EQ(c.cwnd(), grown);
}

TEST(Memory, AnIdleConnectionIsSmall) {
  // The object, its controller and its places in the tables; buffers are returned when empty.
  EXPECT_LE(sizeof(TcpConnection) + sizeof(Cubic), 1900u);
}

}  // namespace
}  // namespace porthole::netstack
