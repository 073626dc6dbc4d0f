// Frames of the control protocol's Noise layer (Tailscale control protocol, section 3.2). Stateless.
//
//   initiation  version u16be | 01 | 0060 | e 32 | encrypted s 48 | tag 16       101 bytes, client to server
//   response    02 | 0030 | e 32 | tag 16                                        51 bytes, server to client
//   error       03 | length u16be | text                                          server to client, instead of a response
//   record      04 | length u16be | ciphertext | tag 16                           both ways, at most 4096 bytes in all
#pragma once

#include <optional>

#include "base/bytes.h"

namespace porthole::wire {

enum class Ts2021Type : std::uint8_t { kInitiation = 1, kResponse = 2, kError = 3, kRecord = 4 };

constexpr std::size_t kTs2021HeaderSize = 3;
constexpr std::size_t kTs2021InitiationSize = 101;
constexpr std::size_t kTs2021InitiationPayloadSize = 96;
constexpr std::size_t kTs2021ResponseSize = 51;
constexpr std::size_t kTs2021ResponsePayloadSize = 48;
constexpr std::size_t kTs2021TagSize = 16;
constexpr std::size_t kTs2021FrameSizeMax = 4096;
constexpr std::size_t kTs2021PlaintextSizeMax = kTs2021FrameSizeMax - kTs2021HeaderSize - kTs2021TagSize;  // 4077

struct Ts2021Header {
  Ts2021Type type;
  std::uint16_t length;  // bytes that follow the header
};

// The three bytes before a response, error or record. nullopt: fewer than three bytes, or a type outside 2..4.
std::optional<Ts2021Header> parse_ts2021_header(Bytes frame);
// Writes three bytes at `out`.
void encode_ts2021_header(Ts2021Header header, MutBytes out);

struct Ts2021Initiation {
  std::uint16_t version = 0;
  Bytes ephemeral;         // 32
  Bytes encrypted_static;  // 48
  Bytes tag;               // 16
};
// What is wrong with an initiation: a server sends the text of an Error frame for each (section 3.4).
enum class Ts2021InitiationFault { kSize, kType, kLength };
std::optional<Ts2021InitiationFault> check_ts2021_initiation(Bytes frame);
// Views into `frame`; nullopt when check_ts2021_initiation finds a fault.
std::optional<Ts2021Initiation> parse_ts2021_initiation(Bytes frame);

// The nine bytes before an early payload (section 3.6): magic and big-endian length.
constexpr std::size_t kTs2021EarlyHeaderSize = 9;
constexpr std::uint8_t kTs2021EarlyMagic[5] = {0xff, 0xff, 0xff, 'T', 'S'};
// Length of the payload, or nullopt when these bytes are not an early payload's header.
std::optional<std::uint32_t> parse_ts2021_early_header(Bytes nine);

}  // namespace porthole::wire
