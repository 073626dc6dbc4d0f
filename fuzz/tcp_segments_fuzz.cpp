// links: base wire crypto netstack
// A structured sequence of segments, app calls and time against one established connection, with the invariants
// checked after every step. Near-valid sequence numbers, so that the deep states are reached.
#include "base/rng.h"
#include "netstack/stack.h"
#include "wire/checksum.h"
#include "wire/ip.h"
#include "wire/tcp.h"

namespace {
using namespace porthole;
using namespace porthole::netstack;

// Remembers the newest sequence number and acknowledgment the stack sent.
class WatchSink final : public PacketSink {
 public:
  MutBytes begin(std::size_t size_max) override { return full ? MutBytes() : MutBytes(room_).first(size_max); }
  void commit(std::size_t size) override {
    auto parsed = wire::parse_ip({room_, size});
    wire::TcpSegment s;
    if (!wire::parse_tcp(std::get<wire::IpPacket>(parsed).payload, s)) return;
    end = s.sequence + s.length();
    if (s.options.has_timestamps) ts = s.options.ts_value;
    sequence = s.sequence;
  }
  std::uint32_t sequence = 0, end = 0, ts = 0;
  bool full = false;

 private:
  std::uint8_t room_[65536];
};
}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  SeededRng rng(1);
  StackConfig config;
  config.memory_max = 2 << 20;
  config.receive_buffer_start = 32 << 10;
  Stack stack(config, rng);
  const IpAddress own = IpAddress::v4(100, 64, 0, 1), peer = IpAddress::v4(100, 64, 0, 2);
  stack.set_addresses({&own, 1});
  Instant now = Instant::from_ns(1'000'000'000);
  WatchSink sink;
  ByteReader in(Bytes(data, size));
  std::uint8_t setup = in.u8();
  SocketId listener = *stack.listen(now, std::nullopt, 80);
  SocketId id = 0;
  bool ts = (setup & 1) != 0;
  std::uint32_t clock = 1000;

  auto inject = [&](std::uint8_t flags, std::uint32_t seq, std::uint32_t ack, std::size_t length, std::uint16_t window,
                    wire::TcpOptions options) {
    if (ts) {
      options.has_timestamps = true;
      options.ts_value = clock;
      options.ts_echo = sink.ts;
    }
    ByteVector p(20 + 60 + length);
    std::size_t header = wire::write_tcp_header(p.data() + 20, 4000, 80, seq, ack, flags, window, options);
    p.resize(20 + header + length);
    wire::write_ipv4_header(p.data(), peer, own, 6, header + length, 0, true);
    wire::store_checksum(p.data() + 36, wire::sum_bytes(Bytes(p).subspan(20)) +
                                            wire::pseudo_header_sum(peer, own, 6, header + length));
    MutBytes view(p);
    stack.handle_packets(now, {&view, 1});
  };
  auto step = [&] {
    stack.produce(now, sink);
    while (stack.poll_event()) {}
    stack.check_invariants();
  };
  wire::TcpOptions syn;
  syn.mss = static_cast<std::uint16_t>((setup & 2) != 0 ? 100 : 1240);
  syn.sack_permitted = (setup & 4) != 0;
  if ((setup & 8) != 0) syn.window_shift = 7;
  inject(wire::tcp_flag::kSyn, 0, 0, 0, 65535, syn);
  step();
  std::uint32_t base = sink.end;
  inject(wire::tcp_flag::kAck, 1, base, 0, 512, {});
  step();
  id = stack.accept(listener).value_or(0);
  if ((setup & 16) != 0) {
    ConnectOptions options;
    options.keepalive = true;
    options.user_timeout = 120s;
    options.half_closed_timeout = 10min;
    stack.set_options(now, id, options);
  }
  std::uint8_t chunk[4096] = {};
  while (in.remaining() > 0) {
    std::uint8_t op = in.u8();
    switch (op & 7) {
      case 0:
      case 1:
      case 2: {
        std::uint8_t flags = in.u8();
        if ((op & 8) == 0) flags = wire::tcp_flag::kAck;
        std::uint32_t seq = 1 + static_cast<std::uint32_t>(in.be16());
        std::uint32_t ack = base + static_cast<std::uint32_t>(in.be16());
        if ((op & 16) == 0) ack = sink.end;
        wire::TcpOptions options;
        options.sack_count = static_cast<std::uint8_t>(op >> 6);
        for (std::size_t i = 0; i < options.sack_count; ++i) {
          options.sack[i].start = base + in.be16();
          options.sack[i].end = options.sack[i].start + in.be16() % 8192;
        }
        inject(flags, seq, ack, in.u8() * 5u, in.be16(), options);
        break;
      }
      case 3: stack.write(now, id, Bytes(chunk).first(in.be16() % sizeof chunk)); break;
      case 4: stack.consume(now, id, in.be16()); break;
      case 5:
        now = now + Duration(std::int64_t{in.be16()} * 100'000);
        clock += op >> 4;
        if (stack.next_timeout().earliest <= now) stack.handle_timeout(now);
        break;
      case 6:
        switch (in.u8() % 8) {
          case 0: stack.shutdown_write(now, id); break;
          case 1: stack.close(now, id); break;
          case 2: stack.abort(now, id); break;
          case 3: stack.path_changed(now, peer, PathChange::kRelayed); break;
          case 4: stack.path_changed(now, peer, PathChange::kUnreachable); break;
          case 5: stack.path_changed(now, peer, PathChange::kReachable); break;
          case 6: stack.tunnel_blocked(now, peer, true); break;
          default: stack.tunnel_blocked(now, peer, false); break;
        }
        break;
      default: sink.full = (op & 8) != 0; break;
    }
    step();
  }
  return 0;
}
