#include "wire/tcp.h"

#include <algorithm>

#include "wire/checksum.h"
#include "wire/ip.h"

namespace porthole::wire {
namespace {

constexpr std::uint8_t kEnd = 0, kNop = 1, kMss = 2, kWindowShift = 3, kSackPermitted = 4, kSack = 5, kTimestamps = 8;

void parse_options(Bytes options, bool syn, TcpOptions& out) {
  const std::uint8_t* p = options.data();
  std::size_t left = options.size();
  // What nearly every data segment carries.
  if (left == 12 && load_be<std::uint32_t>(p) == 0x0101080a) {
    out.has_timestamps = true;
    out.ts_value = load_be<std::uint32_t>(p + 4);
    out.ts_echo = load_be<std::uint32_t>(p + 8);
    return;
  }
  while (left > 0) {
    std::uint8_t kind = p[0];
    if (kind == kEnd) return;
    if (kind == kNop) {
      ++p;
      --left;
      continue;
    }
    if (left < 2) return;
    std::size_t size = p[1];
    if (size < 2 || size > left) return;
    switch (kind) {
      case kMss:
        if (syn && size == 4) out.mss = load_be<std::uint16_t>(p + 2);
        break;
      case kWindowShift:
        if (syn && size == 3) out.window_shift = std::min(p[2], kWindowShiftMax);
        break;
      case kSackPermitted:
        if (syn && size == 2) out.sack_permitted = true;
        break;
      case kTimestamps:
        if (size == 10) {
          out.has_timestamps = true;
          out.ts_value = load_be<std::uint32_t>(p + 2);
          out.ts_echo = load_be<std::uint32_t>(p + 6);
        }
        break;
      case kSack:
        if (size >= 10 && (size - 2) % 8 == 0 && !syn) {
          out.sack_count = static_cast<std::uint8_t>(std::min((size - 2) / 8, kSackBlocksMax));
          for (std::size_t i = 0; i < out.sack_count; ++i)
            out.sack[i] = {load_be<std::uint32_t>(p + 2 + 8 * i), load_be<std::uint32_t>(p + 6 + 8 * i)};
        }
        break;
      default: break;
    }
    p += size;
    left -= size;
  }
}

}  // namespace

bool parse_tcp(Bytes payload, TcpSegment& out) {
  if (payload.size() < kTcpHeaderSize) return false;
  const std::uint8_t* p = payload.data();
  std::size_t header = static_cast<std::size_t>(p[12] >> 4) * 4;
  if (header < kTcpHeaderSize || header > payload.size()) return false;
  out.source_port = load_be<std::uint16_t>(p);
  out.destination_port = load_be<std::uint16_t>(p + 2);
  out.sequence = load_be<std::uint32_t>(p + 4);
  out.acknowledgment = load_be<std::uint32_t>(p + 8);
  out.flags = p[13];
  out.window = load_be<std::uint16_t>(p + 14);
  out.options = TcpOptions{};
  if (header > kTcpHeaderSize)
    parse_options(payload.subspan(kTcpHeaderSize, header - kTcpHeaderSize), (out.flags & tcp_flag::kSyn) != 0,
                  out.options);
  out.data = payload.subspan(header);
  return true;
}

bool tcp_checksum_ok(Bytes payload, const IpAddress& source, const IpAddress& destination) {
  return finish(pseudo_header_sum(source, destination, ip_protocol::kTcp, payload.size()) + sum_bytes(payload)) == 0;
}

std::size_t write_tcp_options(std::uint8_t* out, const TcpOptions& options) {
  std::uint8_t* p = out;
  if (options.mss) {
    *p++ = kMss;
    *p++ = 4;
    store_be(p, *options.mss);
    p += 2;
  }
  if (options.sack_permitted) {
    if (!options.has_timestamps) {
      *p++ = kNop;
      *p++ = kNop;
    }
    *p++ = kSackPermitted;
    *p++ = 2;
  }
  if (options.has_timestamps) {
    if (!options.sack_permitted) {
      *p++ = kNop;
      *p++ = kNop;
    }
    *p++ = kTimestamps;
    *p++ = 10;
    store_be(p, options.ts_value);
    store_be(p + 4, options.ts_echo);
    p += 8;
  }
  if (options.window_shift) {
    *p++ = kNop;
    *p++ = kWindowShift;
    *p++ = 3;
    *p++ = *options.window_shift;
  }
  if (options.sack_count > 0) {
    *p++ = kNop;
    *p++ = kNop;
    *p++ = kSack;
    *p++ = static_cast<std::uint8_t>(2 + 8 * options.sack_count);
    for (std::size_t i = 0; i < options.sack_count; ++i) {
      store_be(p, options.sack[i].start);
      store_be(p + 4, options.sack[i].end);
      p += 8;
    }
  }
  return static_cast<std::size_t>(p - out);
}

std::size_t write_tcp_header(std::uint8_t* out, std::uint16_t source_port, std::uint16_t destination_port,
                             std::uint32_t sequence, std::uint32_t acknowledgment, std::uint8_t flags,
                             std::uint16_t window, const TcpOptions& options) {
  std::size_t size = kTcpHeaderSize + write_tcp_options(out + kTcpHeaderSize, options);
  store_be(out, source_port);
  store_be(out + 2, destination_port);
  store_be(out + 4, sequence);
  store_be(out + 8, acknowledgment);
  out[12] = static_cast<std::uint8_t>(size / 4 << 4);
  out[13] = flags;
  store_be(out + 14, window);
  store_be(out + 16, std::uint32_t{0});  // checksum, urgent pointer
  return size;
}

}  // namespace porthole::wire
