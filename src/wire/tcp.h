// TCP segments on the wire (RFC 9293 section 3.1; options: RFC 7323, 2018).
#pragma once

#include <cstdint>
#include <optional>

#include "base/bytes.h"
#include "base/ip.h"

namespace porthole::wire {

inline constexpr std::size_t kTcpHeaderSize = 20;
inline constexpr std::size_t kTcpOptionsMax = 40;
inline constexpr std::size_t kSackBlocksMax = 4;
inline constexpr std::uint8_t kWindowShiftMax = 14;  // RFC 7323 2.3

namespace tcp_flag {
inline constexpr std::uint8_t kFin = 0x01;
inline constexpr std::uint8_t kSyn = 0x02;
inline constexpr std::uint8_t kRst = 0x04;
inline constexpr std::uint8_t kPsh = 0x08;
inline constexpr std::uint8_t kAck = 0x10;
inline constexpr std::uint8_t kUrg = 0x20;
}  // namespace tcp_flag

struct SackBlock {
  std::uint32_t start = 0;
  std::uint32_t end = 0;
  friend constexpr bool operator==(const SackBlock&, const SackBlock&) = default;
};

struct TcpOptions {
  std::optional<std::uint16_t> mss;            // only believed on a SYN; so are the next two
  std::optional<std::uint8_t> window_shift;    // at most 14
  bool sack_permitted = false;
  bool has_timestamps = false;
  std::uint32_t ts_value = 0;
  std::uint32_t ts_echo = 0;
  std::uint8_t sack_count = 0;
  SackBlock sack[kSackBlocksMax];
};

struct TcpSegment {
  std::uint16_t source_port = 0;
  std::uint16_t destination_port = 0;
  std::uint32_t sequence = 0;
  std::uint32_t acknowledgment = 0;
  std::uint8_t flags = 0;
  std::uint16_t window = 0;      // unscaled
  TcpOptions options;
  Bytes data;

  bool has(std::uint8_t flag) const { return (flags & flag) != 0; }
  // Sequence space taken: data, SYN and FIN.
  std::uint32_t length() const {
    return static_cast<std::uint32_t>(data.size()) + (has(tcp_flag::kSyn) ? 1u : 0u) + (has(tcp_flag::kFin) ? 1u : 0u);
  }
};

// False: data offset out of range. The checksum is not looked at. `out` is written in place because this runs once
// per packet. Broken options end the option list, the segment stays.
bool parse_tcp(Bytes payload, TcpSegment& out);
bool tcp_checksum_ok(Bytes payload, const IpAddress& source, const IpAddress& destination);

// Writes options padded with NOP/EOL to a multiple of 4 and returns their size (at most 40). On a SYN:
// MSS, SACK permitted, timestamps, NOP, window shift; else NOP NOP timestamps, NOP NOP SACK.
std::size_t write_tcp_options(std::uint8_t* out, const TcpOptions& options);

// Writes header and options; the checksum field is left zero. Returns the size.
std::size_t write_tcp_header(std::uint8_t* out, std::uint16_t source_port, std::uint16_t destination_port,
                             std::uint32_t sequence, std::uint32_t acknowledgment, std::uint8_t flags,
                             std::uint16_t window, const TcpOptions& options);

}  // namespace porthole::wire
