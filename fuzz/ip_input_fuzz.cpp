// links: base wire crypto netstack
// Raw packets into a stack with a listener, a UDP socket and a connection being opened. Input: records of a 16-bit
// length (low 11 bits) and the packet; the high bits make time pass.
#include <cstddef>
#include <cstdint>

#include "base/rng.h"
#include "netstack/stack.h"

namespace {
class NullSink final : public porthole::PacketSink {
 public:
  porthole::MutBytes begin(std::size_t size_max) override { return porthole::MutBytes(room_).first(size_max); }
  void commit(std::size_t) override {}

 private:
  std::uint8_t room_[65536];
};
}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace porthole;
  using namespace porthole::netstack;
  SeededRng rng(1);
  StackConfig config;
  config.memory_max = 2 << 20;
  Stack stack(config, rng);
  IpAddress own[] = {IpAddress::v4(100, 64, 0, 1), *IpAddress::parse("fd7a:115c:a1e0::1")};
  stack.set_addresses(own);
  Instant now = Instant::from_ns(1'000'000'000);
  NullSink sink;
  (void)stack.listen(now, std::nullopt, 80);
  (void)stack.udp_bind(std::nullopt, 53);
  ConnectOptions options;
  options.local_port = 40000;
  (void)stack.connect(now, Endpoint{IpAddress::v4(100, 64, 0, 2), 443}, options);
  stack.produce(now, sink);
  ByteReader in(Bytes(data, size));
  while (in.remaining() >= 2) {
    std::uint16_t head = in.be16();
    ByteVector packet = to_vector(in.take(std::min<std::size_t>(head & 0x7ff, in.remaining())));
    MutBytes view(packet);
    stack.handle_packets(now, {&view, 1});
    now = now + Duration(std::int64_t{1} << (head >> 11));
    if (stack.next_timeout().latest <= now) stack.handle_timeout(now);
    stack.produce(now, sink);
    while (stack.poll_event()) {}
  }
  stack.check_invariants();
  return 0;
}
