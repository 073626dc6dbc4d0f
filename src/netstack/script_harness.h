// Tests only: one stack and a peer whose every segment the test writes itself, in the manner of packetdrill.
#pragma once

#include "netstack/link_harness.h"

namespace porthole::netstack::harness {

using namespace wire::tcp_flag;

struct Script {
  explicit Script(StackConfig config = {}) : rng(7), stack(config, rng) {
    IpAddress own[] = {kA4, kA6};
    stack.set_addresses(own);
  }

  SeededRng rng;
  Stack stack;
  Instant now = Instant::from_ns(5'000'000'000'000);
  std::vector<ByteVector> out;          // what the stack sent and the test has not looked at
  std::vector<SocketEvent> events;
  IpAddress peer = kB4;
  std::uint16_t peer_port = 4000, own_port = 80;
  bool ts = true;
  std::uint32_t ts_value = 1000, ts_echo = 0;

  void collect() {
    VectorSink sink;
    stack.produce(now, sink);
    for (auto& p : sink.packets) out.push_back(std::move(p));
    while (auto e = stack.poll_event()) events.push_back(*e);
    stack.check_invariants();
  }
  void inject(ByteVector packet) {
    MutBytes view(packet);
    stack.handle_packets(now, {&view, 1});
    collect();
  }
  // Time passes, with every timer on its way.
  void wait(Duration d) {
    Instant end = now + d;
    for (;;) {
      Instant next = stack.next_timeout().earliest;
      if (next > end) break;
      now = std::max(now, next);
      stack.handle_timeout(now);
      collect();
    }
    now = end;
    stack.handle_timeout(now);
    collect();
  }
  ByteVector build(std::uint8_t flags, std::uint32_t seq, std::uint32_t ack, std::size_t data_size = 0,
                   std::uint16_t window = 65535, const wire::TcpOptions* extra = nullptr) {
    wire::TcpOptions options;
    if (extra != nullptr) options = *extra;
    if (ts && (flags & kRst) == 0) {
      options.has_timestamps = true;
      options.ts_value = ts_value;
      options.ts_echo = ts_echo;
    }
    const IpAddress& own = peer.is_v4() ? kA4 : kA6;
    std::size_t ip = peer.is_v4() ? 20 : 40;
    ByteVector packet(ip + 60 + data_size);
    std::size_t header = wire::write_tcp_header(packet.data() + ip, peer_port, own_port, seq, ack, flags, window, options);
    packet.resize(ip + header + data_size);
    for (std::size_t i = 0; i < data_size; ++i) packet[ip + header + i] = pattern(seq + i);
    if (peer.is_v4()) wire::write_ipv4_header(packet.data(), peer, own, 6, header + data_size, 0, true);
    else wire::write_ipv6_header(packet.data(), peer, own, 6, header + data_size, 0);
    std::size_t length = header + data_size;
    wire::store_checksum(packet.data() + ip + 16,
                         wire::sum_bytes(Bytes(packet).subspan(ip)) + wire::pseudo_header_sum(peer, own, 6, length));
    return packet;
  }
  void send(std::uint8_t flags, std::uint32_t seq, std::uint32_t ack, std::size_t data_size = 0,
            std::uint16_t window = 65535, const wire::TcpOptions* extra = nullptr) {
    inject(build(flags, seq, ack, data_size, window, extra));
  }
  void send_sack(std::uint32_t seq, std::uint32_t ack, std::initializer_list<wire::SackBlock> blocks,
                 std::uint16_t window = 65535) {
    wire::TcpOptions options;
    for (const auto& b : blocks) options.sack[options.sack_count++] = b;
    send(kAck, seq, ack, 0, window, &options);
  }
  // The next TCP segment the stack sent; nullopt: none. The packet stays alive until the next call.
  std::optional<Seen> next() {
    if (out.empty()) return std::nullopt;
    current = std::move(out.front());
    out.erase(out.begin());
    auto seen = decode_tcp(current);
    if (seen && seen->tcp.options.has_timestamps) ts_echo = seen->tcp.options.ts_value;
    return seen;
  }
  bool quiet() { return out.empty(); }
  bool has_event(SocketEventKind kind) {
    for (auto it = events.begin(); it != events.end(); ++it) {
      if (it->kind != kind) continue;
      last_event = *it;
      events.erase(it);
      return true;
    }
    return false;
  }
  wire::TcpOptions syn_options(std::uint16_t mss = 1240, bool sack = true, std::optional<std::uint8_t> shift = 7) {
    wire::TcpOptions o;
    o.mss = mss;
    o.sack_permitted = sack;
    o.window_shift = shift;
    return o;
  }

  // A passive connection: the peer's sequence numbers begin at 1 (data), ours at `iss + 1`.
  SocketId accept(std::uint16_t mss = 1240, bool sack = true, std::optional<std::uint8_t> shift = 7) {
    if (listener == 0) listener = *stack.listen(now, std::nullopt, own_port);
    wire::TcpOptions o = syn_options(mss, sack, shift);
    send(kSyn, 0, 0, 0, 65535, &o);
    auto syn_ack = next();
    if (!syn_ack) return 0;
    iss = syn_ack->tcp.sequence;
    send(kAck, 1, iss + 1, 0, 512);
    if (!has_event(SocketEventKind::kAcceptable)) return 0;
    return stack.accept(listener).value_or(0);
  }
  SocketId listener = 0;
  std::uint32_t iss = 0;
  ByteVector current;
  SocketEvent last_event;
};

inline std::size_t write(Script& s, SocketId id, std::size_t size) {
  ByteVector data(size);
  for (std::size_t i = 0; i < size; ++i) data[i] = static_cast<std::uint8_t>(i);
  std::size_t n = s.stack.write(s.now, id, data);
  s.collect();
  return n;
}

inline void read_all(Script& s, SocketId id) {
  s.stack.consume(s.now, id, s.stack.readable(id));
  s.collect();
}

}  // namespace porthole::netstack::harness
