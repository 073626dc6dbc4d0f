// links: base wire
// A TCP header with arbitrary options: parse, write what was understood, parse again, compare.
#include <cstdlib>

#include "wire/tcp.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace porthole;
  using namespace porthole::wire;
  TcpSegment first;
  ByteVector exact(data, data + size);
  if (!parse_tcp(exact, first)) return 0;
  const TcpOptions& o = first.options;
  std::size_t space = (o.mss ? 4u : 0u) + (o.has_timestamps ? 12u : 0u) + (o.sack_permitted ? 4u : 0u) +
                      (o.window_shift ? 4u : 0u) + (o.sack_count > 0 ? 4u + 8u * o.sack_count : 0u);
  if (space > kTcpOptionsMax) return 0;
  std::uint8_t out[kTcpHeaderSize + kTcpOptionsMax];
  std::size_t n = write_tcp_header(out, first.source_port, first.destination_port, first.sequence,
                                   first.acknowledgment, first.flags, first.window, o);
  TcpSegment again;
  if (!parse_tcp({out, n}, again)) std::abort();
  if (again.options.mss != o.mss || again.options.window_shift != o.window_shift ||
      again.options.sack_permitted != o.sack_permitted || again.options.has_timestamps != o.has_timestamps ||
      again.options.ts_value != o.ts_value || again.options.sack_count != o.sack_count)
    std::abort();
  return 0;
}
