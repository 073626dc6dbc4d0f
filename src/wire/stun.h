// STUN binding requests and answers (RFC 8489) in the one form that tailnet relays speak: the request carries SOFTWARE
// "tailnode" and a final FINGERPRINT, exactly 40 bytes; the answer carries XOR-MAPPED-ADDRESS only.
//
//   0         2         4              8                     20
//   +---------+---------+--------------+---------------------+------------------
//   | type    | length  | 21 12 a4 42  | transaction id (12) | attributes ...
//   +---------+---------+--------------+---------------------+------------------
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "base/bytes.h"
#include "base/ip.h"

namespace porthole::wire::stun {

constexpr std::uint16_t kDefaultPort = 3478;
constexpr std::size_t kHeaderSize = 20;
constexpr std::size_t kRequestSize = 40;
constexpr std::size_t kResponseSizeMax = 44;  // 32 for IPv4, 44 for IPv6

using TransactionId = std::array<std::uint8_t, 12>;

// ---- client ----
// The transaction id must be random and new for every datagram.
std::array<std::uint8_t, kRequestSize> encode_request(const TransactionId& id);

struct Response {
  TransactionId id{};
  Endpoint mapped;   // v4-in-v6 already unmapped
};
// A success answer with a usable address. Bytes beyond the header's length are ignored; a malformed attribute, an
// unknown address family or an error answer is nullopt. XOR-MAPPED-ADDRESS wins over MAPPED-ADDRESS.
std::optional<Response> parse_response(Bytes datagram);

// ---- server ----
// The transaction id of a request that must be answered; nullopt: ignore silently. `any_software` also accepts requests
// whose SOFTWARE is not "tailnode".
std::optional<TransactionId> parse_request(Bytes datagram, bool any_software = false);

// Writes an answer for a request seen from `source` into `out` (at least kResponseSizeMax bytes); returns its size.
// IPv4 sources are encoded as family 1. `source` must be valid as an address.
std::size_t encode_response(const TransactionId& id, const Endpoint& source, MutBytes out);

// CRC-32 as in IEEE 802.3, the base of FINGERPRINT.
std::uint32_t crc32(Bytes bytes);

}  // namespace porthole::wire::stun
