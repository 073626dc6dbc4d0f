// The Internet checksum (RFC 1071): ones-complement sum of 16-bit words.
//
// Partial sums are kept in 64 bits without folding, in the byte order of memory, so that they can be added freely and
// the result is stored without swapping. Pieces must start at even offsets of the checksummed data; sum_at() places
// a piece that starts at an odd one.
#pragma once

#include <cstdint>

#include "base/bytes.h"
#include "base/ip.h"

namespace porthole::wire {

using PartialSum = std::uint64_t;

// Sum of `data` as if it began at an even offset; an odd last byte is padded with zero.
PartialSum sum_bytes(Bytes data);
// Copies `size` bytes and gives their sum; one pass over memory.
PartialSum copy_and_sum(std::uint8_t* to, const std::uint8_t* from, std::size_t size);
// Folds to 16 bits (memory order).
inline std::uint16_t fold(PartialSum sum) {
  sum = (sum & 0xffffffffu) + (sum >> 32);
  sum = (sum & 0xffffffffu) + (sum >> 32);
  sum = (sum & 0xffffu) + (sum >> 16);
  sum = (sum & 0xffffu) + (sum >> 16);
  return static_cast<std::uint16_t>(sum);
}
// The sum of a piece that begins at an odd offset (RFC 1071 section 2 B: swapping bytes swaps the sum).
inline PartialSum sum_at(PartialSum sum, bool odd_offset) {
  if (!odd_offset) return sum;
  std::uint16_t folded = fold(sum);
  return static_cast<std::uint16_t>(folded << 8 | folded >> 8);
}
// The value for a checksum field, to be stored with memcpy.
inline std::uint16_t finish(PartialSum sum) { return static_cast<std::uint16_t>(~fold(sum)); }
inline void store_checksum(std::uint8_t* field, PartialSum sum) {
  std::uint16_t value = finish(sum);
  std::memcpy(field, &value, 2);
}

// Pseudo-header of TCP, UDP (RFC 9293 3.1, RFC 8200 8.1) and ICMPv6: addresses, protocol and length of the transport
// header plus data. Both addresses of the same family.
PartialSum pseudo_header_sum(const IpAddress& source, const IpAddress& destination, std::uint8_t protocol,
                             std::size_t length);

// RFC 1624 equation 3: the field after a 16-bit word changed. All three as stored (big-endian values).
std::uint16_t update_checksum(std::uint16_t checksum, std::uint16_t old_word, std::uint16_t new_word);

}  // namespace porthole::wire
