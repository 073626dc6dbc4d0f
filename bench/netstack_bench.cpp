// Two netstacks in one process over a perfect wire, no encryption: what TCP itself costs, both sides on one core.
//   netstack_bench [gigabytes] [v6]
#include <sys/resource.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "base/rng.h"
#include "netstack/stack.h"

namespace {

using namespace porthole;
using namespace porthole::netstack;

// A burst of packets at the wire's stride, as the tunnel keeps them.
class Wire final : public PacketSink {
 public:
  static constexpr std::size_t kStride = 1344, kPackets = 98;
  MutBytes begin(std::size_t size_max) override {
    if (count_ == kPackets || size_max > kStride) return {};
    return {memory_.data() + count_ * kStride, size_max};
  }
  void commit(std::size_t size) override { sizes_[count_++] = size; }
  std::size_t take(std::vector<MutBytes>& out) {
    out.clear();
    for (std::size_t i = 0; i < count_; ++i) out.emplace_back(memory_.data() + i * kStride, sizes_[i]);
    return std::exchange(count_, 0);
  }

 private:
  std::vector<std::uint8_t> memory_ = std::vector<std::uint8_t>(kStride * kPackets);
  std::size_t sizes_[kPackets] = {};
  std::size_t count_ = 0;
};

Instant clock_now() {
  return Instant::from_ns(std::chrono::duration_cast<std::chrono::nanoseconds>(
                              std::chrono::steady_clock::now().time_since_epoch()).count());
}

std::size_t private_memory_kb() {
  std::ifstream in("/proc/self/smaps_rollup");
  std::string line;
  while (std::getline(in, line))
    if (line.starts_with("Private_Dirty:")) return std::strtoul(line.c_str() + 14, nullptr, 10);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  double gigabytes = argc > 1 ? std::atof(argv[1]) : 4;
  bool v6 = argc > 2 && std::strcmp(argv[2], "v6") == 0;
  SeededRng rng_a(1), rng_b(2);
  StackConfig config;
  Stack a(config, rng_a), b(config, rng_b);
  IpAddress own_a[] = {IpAddress::v4(100, 64, 0, 1), *IpAddress::parse("fd7a:115c:a1e0::1")};
  IpAddress own_b[] = {IpAddress::v4(100, 64, 0, 2), *IpAddress::parse("fd7a:115c:a1e0::2")};
  a.set_addresses(own_a);
  b.set_addresses(own_b);
  std::size_t memory_before = private_memory_kb();

  std::uint64_t total = static_cast<std::uint64_t>(gigabytes * 1e9), written = 0, received = 0;
  std::vector<std::uint8_t> chunk(65536, 0x5a);
  Wire wire_ab, wire_ba;
  std::vector<MutBytes> batch;
  Instant now = clock_now();
  SocketId listener = *b.listen(now, std::nullopt, 80), server = 0;
  SocketId client = *a.connect(now, Endpoint{own_b[v6 ? 1 : 0], 80});
  bool connected = false, room = false;
  auto start = std::chrono::steady_clock::now();
  while (received < total) {
    now = clock_now();
    if (a.next_timeout().earliest <= now) a.handle_timeout(now);
    if (b.next_timeout().earliest <= now) b.handle_timeout(now);
    while (auto e = a.poll_event()) {
      if (e->kind == SocketEventKind::kConnected) connected = room = true;
      if (e->kind == SocketEventKind::kWritable) room = true;
      if (e->kind == SocketEventKind::kReset) return std::printf("reset: %s\n", e->error.message.c_str()), 1;
    }
    while (auto e = b.poll_event()) {
      if (e->kind == SocketEventKind::kAcceptable) server = b.accept(listener).value_or(server);
    }
    if (connected && room && written < total) {
      std::size_t want = static_cast<std::size_t>(std::min<std::uint64_t>(chunk.size(), total - written));
      std::size_t n = a.write(now, client, Bytes(chunk).first(want));
      written += n;
      room = n == want;
    }
    a.produce(now, wire_ab);
    if (wire_ab.take(batch) > 0) b.handle_packets(now, batch);
    Bytes spans[16];
    for (std::size_t n; server != 0 && (n = b.peek(server, spans)) > 0;) {
      std::size_t size = 0;
      for (std::size_t i = 0; i < n; ++i) size += spans[i].size();
      b.consume(now, server, size);
      received += size;
    }
    b.produce(now, wire_ba);
    if (wire_ba.take(batch) > 0) a.handle_packets(now, batch);
  }
  double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  double cpu = static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
               static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
  TcpInfo info = a.info(client);
  std::printf("%.2f Gbit/s, %.0f ns per segment (both sides, wall), %.0f ns CPU; %llu segments, %llu resent, %llu ACKs\n",
              static_cast<double>(received) * 8 / seconds / 1e9, seconds * 1e9 / static_cast<double>(info.segments_sent),
              cpu * 1e9 / static_cast<double>(info.segments_sent), static_cast<unsigned long long>(info.segments_sent),
              static_cast<unsigned long long>(info.segments_resent),
              static_cast<unsigned long long>(b.counters().tcp_segments_out));
  std::printf("srtt %.1f us, cwnd %llu, limited: app %.2f s, window %.2f s, congestion or pacing %.2f s of %.2f s\n",
              std::chrono::duration<double, std::micro>(info.srtt).count(), static_cast<unsigned long long>(info.cwnd),
              std::chrono::duration<double>(info.limited_by_app).count(),
              std::chrono::duration<double>(info.limited_by_window).count(),
              std::chrono::duration<double>(info.limited_by_cwnd).count(), seconds);
  a.release_memory();
  b.release_memory();
  std::printf("private memory: %zu kB before, %zu kB after\n", memory_before, private_memory_kb());
  return 0;
}
