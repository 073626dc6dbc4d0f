// Tests only: two stacks and a link between them, in virtual time. Everything that happens follows from the seed.
#pragma once

#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "base/rng.h"
#include "netstack/stack.h"
#include "wire/checksum.h"
#include "wire/ip.h"
#include "wire/tcp.h"

namespace porthole::netstack::harness {

inline const IpAddress kA4 = IpAddress::v4(100, 64, 0, 1), kB4 = IpAddress::v4(100, 64, 0, 2);
inline const IpAddress kA6 = *IpAddress::parse("fd7a:115c:a1e0::1"), kB6 = *IpAddress::parse("fd7a:115c:a1e0::2");

// Collects what a stack writes.
class VectorSink final : public PacketSink {
 public:
  explicit VectorSink(std::size_t limit = static_cast<std::size_t>(-1)) : limit_(limit) {}
  MutBytes begin(std::size_t size_max) override {
    if (packets.size() >= limit_) return {};
    slot_.resize(size_max);
    return slot_;
  }
  void commit(std::size_t size) override { packets.emplace_back(slot_.begin(), slot_.begin() + static_cast<std::ptrdiff_t>(size)); }
  std::vector<ByteVector> packets;

 private:
  std::size_t limit_;
  ByteVector slot_;
};

// Decoded for assertions.
struct Seen {
  wire::IpPacket ip;
  wire::TcpSegment tcp;
};
inline std::optional<Seen> decode_tcp(Bytes packet) {
  auto parsed = wire::parse_ip(packet);
  auto* ip = std::get_if<wire::IpPacket>(&parsed);
  if (ip == nullptr || ip->protocol != wire::ip_protocol::kTcp) return std::nullopt;
  Seen out;
  out.ip = *ip;
  if (!wire::parse_tcp(ip->payload, out.tcp)) return std::nullopt;
  return out;
}

struct LinkConfig {
  double rate_bps = 0;             // 0: infinite; charged per packet: inner size + 60
  Duration delay = 25ms;           // one way
  Duration jitter = Duration::zero();
  bool reorder = false;            // jitter may overtake
  double loss = 0;
  double duplicate = 0;
  std::size_t queue_bytes = 0;     // 0: unbounded
  std::size_t queue_packets = 0;
};

class Link {
 public:
  Link(const LinkConfig& c, std::uint64_t seed) : config(c), loss_(seed * 2 + 1), jitter_(seed * 2 + 2) {}

  LinkConfig config;
  // True: drop this packet. Called for every packet before anything else.
  std::function<bool(Instant, const ByteVector&)> drop;
  std::function<void(Instant, const ByteVector&)> tap;
  Instant blackout_from = Instant::max(), blackout_until;
  std::uint64_t sent = 0, lost = 0, queue_lost = 0, delivered_bytes = 0;

  void send(Instant now, ByteVector packet) {
    ++sent;
    if (tap) tap(now, packet);
    if (now >= blackout_from && now < blackout_until) {
      ++lost;
      return;
    }
    if (drop && drop(now, packet)) {
      ++lost;
      return;
    }
    Instant departure = now;
    if (config.rate_bps > 0) {
      while (!departures_.empty() && departures_.front().first <= now) {
        queued_ -= departures_.front().second;
        departures_.pop_front();
      }
      std::size_t size = packet.size() + 60;
      if ((config.queue_bytes != 0 && queued_ + size > config.queue_bytes) ||
          (config.queue_packets != 0 && departures_.size() >= config.queue_packets)) {
        ++queue_lost;
        return;
      }
      departure = std::max(now, free_at_) + Duration(static_cast<std::int64_t>(static_cast<double>(size) * 8e9 / config.rate_bps));
      free_at_ = departure;
      departures_.emplace_back(departure, size);
      queued_ += size;
    }
    if (config.loss > 0 && loss_.unit() < config.loss) {
      ++lost;
      return;
    }
    Instant arrival = departure + config.delay;
    if (config.jitter > Duration::zero()) arrival = arrival + jitter_.between(Duration::zero(), config.jitter);
    if (!config.reorder) {
      arrival = std::max(arrival, last_arrival_);
      last_arrival_ = arrival;
    }
    bool twice = config.duplicate > 0 && loss_.unit() < config.duplicate;
    if (twice) in_flight_.emplace(std::make_pair(arrival, ++order_), packet);
    in_flight_.emplace(std::make_pair(arrival, ++order_), std::move(packet));
  }
  Instant next() const { return in_flight_.empty() ? Instant::max() : in_flight_.begin()->first.first; }
  std::vector<ByteVector> take(Instant now) {
    std::vector<ByteVector> out;
    while (!in_flight_.empty() && in_flight_.begin()->first.first <= now && out.size() < 64) {
      delivered_bytes += in_flight_.begin()->second.size();
      out.push_back(std::move(in_flight_.begin()->second));
      in_flight_.erase(in_flight_.begin());
    }
    return out;
  }

 private:
  SeededRng loss_, jitter_;
  std::map<std::pair<Instant, std::uint64_t>, ByteVector> in_flight_;
  std::deque<std::pair<Instant, std::size_t>> departures_;
  std::size_t queued_ = 0;
  Instant free_at_, last_arrival_;
  std::uint64_t order_ = 0;
};

class World {
 public:
  struct Options {
    LinkConfig forward, backward;    // A to B, B to A
    StackConfig a, b;
    bool invariants = true;
  };
  explicit World(const Options& options, std::uint64_t seed = 1)
      : options_(options), rng_a(seed * 7 + 1), rng_b(seed * 7 + 2), a(options.a, rng_a), b(options.b, rng_b),
        ab(options.forward, seed * 7 + 3), ba(options.backward, seed * 7 + 4) {
    IpAddress own_a[] = {kA4, kA6}, own_b[] = {kB4, kB6};
    a.set_addresses(own_a);
    b.set_addresses(own_b);
  }

  std::function<void(const SocketEvent&)> on_a, on_b;
  std::function<void()> on_step;
  Instant now = Instant::from_ns(1'000'000'000'000);

  // Runs until `done` says so or `limit` has passed. False: time ran out.
  bool run(Duration limit, const std::function<bool()>& done = {}) {
    Instant end = now + limit;
    std::uint64_t steps = 0;
    for (;;) {
      pump();
      if (on_step) on_step();
      if (options_.invariants && ++steps % 16 == 0) {
        a.check_invariants();
        b.check_invariants();
      }
      if (done && done()) return true;
      Instant next = std::min({ab.next(), ba.next(), a.next_timeout().latest, b.next_timeout().latest});
      if (next > end) {
        now = end;
        pump();
        return done && done();
      }
      now = std::max(now, next);
      deliver(ab, b);
      deliver(ba, a);
      a.handle_timeout(now);
      b.handle_timeout(now);
    }
  }
  void pump() {
    for (int i = 0; i < 1000; ++i) {
      bool any = false;
      while (auto e = a.poll_event()) { any = true; if (on_a) on_a(*e); }
      while (auto e = b.poll_event()) { any = true; if (on_b) on_b(*e); }
      VectorSink sink_a, sink_b;
      a.produce(now, sink_a);
      b.produce(now, sink_b);
      for (auto& p : sink_a.packets) ab.send(now, std::move(p));
      for (auto& p : sink_b.packets) ba.send(now, std::move(p));
      if (!any && sink_a.packets.empty() && sink_b.packets.empty()) break;
    }
  }

 private:
  void deliver(Link& link, Stack& to) {
    for (;;) {
      std::vector<ByteVector> batch = link.take(now);
      if (batch.empty()) return;
      std::vector<MutBytes> views;
      for (auto& p : batch) views.emplace_back(p);
      to.handle_packets(now, views);
    }
  }
  Options options_;

 public:
  SeededRng rng_a, rng_b;
  Stack a, b;
  Link ab, ba;
};

// The n-th byte of every test stream.
inline std::uint8_t pattern(std::uint64_t n) { return static_cast<std::uint8_t>((n * 2654435761u) >> 13); }

// A sends `total` bytes to B over one connection and half-closes; B reads all and closes.
class Transfer {
 public:
  Transfer(World& w, std::uint64_t total, bool v6 = false, ConnectOptions options = {}) : w_(w), total_(total) {
    listener = *w.b.listen(w.now, std::nullopt, 80);
    client = *w.a.connect(w.now, Endpoint{v6 ? kB6 : kB4, 80}, options);
    w.on_a = [this](const SocketEvent& e) { handle_a(e); };
    w.on_b = [this](const SocketEvent& e) { handle_b(e); };
  }
  bool done() const { return eof && closed; }

  SocketId listener = 0, client = 0, server = 0;
  std::uint64_t written = 0, received = 0;
  bool connected = false, eof = false, closed = false, corrupt = false;
  bool paused = false;
  std::optional<Error> failed;
  Instant connected_at, finished_at;
  std::size_t read_max = static_cast<std::size_t>(-1);

  void write_more() {
    while (written < total_) {
      std::size_t n = static_cast<std::size_t>(std::min<std::uint64_t>(total_ - written, buffer_.size()));
      for (std::size_t i = 0; i < n; ++i) buffer_[i] = pattern(written + i);
      std::size_t taken = w_.a.write(w_.now, client, Bytes(buffer_).first(n));
      written += taken;
      if (taken < n) return;
    }
    if (written == total_ && !shut_) {
      shut_ = true;
      w_.a.shutdown_write(w_.now, client);
    }
  }
  void read_more() {
    if (paused || server == 0) return;
    for (;;) {
      Bytes spans[8];
      std::size_t n = w_.b.peek(server, spans);
      if (n == 0) break;
      std::size_t size = 0;
      for (std::size_t i = 0; i < n; ++i) {
        for (std::uint8_t byte : spans[i]) {
          if (size == read_max) break;
          if (byte != pattern(received++)) corrupt = true;
          ++size;
        }
      }
      w_.b.consume(w_.now, server, size);
    }
    if (w_.b.read_eof(server) && !eof) {
      eof = true;
      finished_at = w_.now;
      w_.b.close(w_.now, server);
    }
  }

 private:
  void handle_a(const SocketEvent& e) {
    if (e.id != client) return;
    switch (e.kind) {
      case SocketEventKind::kConnected: connected = true; connected_at = w_.now; write_more(); break;
      case SocketEventKind::kWritable: write_more(); break;
      case SocketEventKind::kConnectFailed:
      case SocketEventKind::kReset: failed = e.error; break;
      case SocketEventKind::kClosed: closed = true; w_.a.close(w_.now, client); break;
      default: break;
    }
  }
  void handle_b(const SocketEvent& e) {
    if (e.kind == SocketEventKind::kAcceptable && server == 0) {
      auto id = w_.b.accept(listener);
      if (id) server = *id;
    }
    if (e.id == server) {
      if (e.kind == SocketEventKind::kReset) failed = e.error;
      read_more();
    }
  }
  World& w_;
  std::uint64_t total_;
  bool shut_ = false;
  ByteVector buffer_ = ByteVector(65536);
};

}  // namespace porthole::netstack::harness
