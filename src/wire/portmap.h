// NAT-PMP (RFC 6886) and PCP (RFC 6887): how a node asks its gateway for a port that is open to the internet. Requests
// are encoded and answers decoded here, for UDP mappings of an IPv4 host only. Stateless: pairing an answer with its
// request, renewal and the epoch's meaning are the caller's part. There is no such caller yet: the paths layer does not
// ask gateways.
//
//   NAT-PMP   0     1        2        4        8
//   request   | 0 | opcode | 0 0    | internal port (2), wanted external port (2), lifetime (4)  (map only)
//   answer    | 0 | 128+op | result | epoch  | external address (4), or ports (2+2) and lifetime (4)
//
//   PCP       0     1        2   3        4          8              24         36   37  40     42     44
//   request   | 2 | opcode | 0 0        | lifetime | client address | nonce   | 17 | 0 | port | port | address (16)
//   answer    | 2 | 128+op | 0 | result | lifetime | epoch, 0       | nonce   | 17 | 0 | port | port | address (16)
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "base/bytes.h"
#include "base/ip.h"

namespace porthole::wire::portmap {

// Both protocols share the gateway's port; the first byte tells them apart (RFC 6887 section 9).
constexpr std::uint16_t kGatewayPort = 5351;

// ---- NAT-PMP ----
constexpr std::uint8_t kNatPmpVersion = 0;
constexpr std::size_t kNatPmpExternalRequestSize = 2;
constexpr std::size_t kNatPmpMapRequestSize = 12;
constexpr std::size_t kNatPmpErrorSize = 8;   // what every answer begins with
constexpr std::size_t kNatPmpExternalResponseSize = 12;
constexpr std::size_t kNatPmpMapResponseSize = 16;

// RFC 6886 section 3.5. Others may arrive; all but 0 are failures.
enum class NatPmpResult : std::uint16_t {
  kSuccess = 0,
  kUnsupportedVersion = 1,
  kNotAuthorized = 2,
  kNetworkFailure = 3,
  kOutOfResources = 4,
  kUnsupportedOpcode = 5,
};

std::array<std::uint8_t, kNatPmpExternalRequestSize> encode_nat_pmp_external_request();

struct NatPmpMapRequest {
  std::uint16_t internal_port = 0;   // not 0: with lifetime 0 that would delete every mapping of this host
  std::uint16_t external_port = 0;   // wanted; 0: any. A gateway ignores it when it deletes
  std::uint32_t lifetime_s = 0;      // 0 deletes the mapping (section 3.4)
};
std::array<std::uint8_t, kNatPmpMapRequestSize> encode_nat_pmp_map_request(const NatPmpMapRequest& request);

struct NatPmpExternalResponse {
  NatPmpResult result = NatPmpResult::kSuccess;
  std::uint32_t epoch_s = 0;         // since the gateway lost its mappings; going back means that it did again
  IpAddress external;                // invalid unless the result is kSuccess
};
struct NatPmpMapResponse {
  NatPmpResult result = NatPmpResult::kSuccess;
  std::uint32_t epoch_s = 0;
  std::uint16_t internal_port = 0;   // these three are 0 unless the result is kSuccess
  std::uint16_t external_port = 0;
  std::uint32_t lifetime_s = 0;      // granted; 0: the mapping is gone
};
// nullopt: short, another version or opcode, or a success that is of no use: an external address that is unspecified or
// loopback, a living mapping to port 0. A failure may be as short as kNatPmpErrorSize. Bytes behind are ignored.
std::optional<NatPmpExternalResponse> parse_nat_pmp_external_response(Bytes datagram);
std::optional<NatPmpMapResponse> parse_nat_pmp_map_response(Bytes datagram);

// ---- PCP ----
constexpr std::uint8_t kPcpVersion = 2;
constexpr std::size_t kPcpHeaderSize = 24;
constexpr std::size_t kPcpMapSize = 60;
constexpr std::size_t kPcpSizeMax = 1100;     // RFC 6887 section 7

// RFC 6887 section 7.4, as far as a client treats them apart. Others may arrive; all but 0 are failures.
enum class PcpResult : std::uint8_t {
  kSuccess = 0,
  kUnsupportedVersion = 1,
  kNotAuthorized = 2,
  kNetworkFailure = 7,
  kNoResources = 8,
  kAddressMismatch = 12,   // another NAT stands between us and the gateway
};
enum class PcpOpcode : std::uint8_t { kAnnounce = 0, kMap = 1 };

using PcpNonce = std::array<std::uint8_t, 12>;

// `client`: the address the request is sent from; the gateway compares.
std::array<std::uint8_t, kPcpHeaderSize> encode_pcp_announce_request(const IpAddress& client);

struct PcpMapRequest {
  IpAddress client;
  PcpNonce nonce{};                  // random per mapping and kept for it: renewing and deleting need the same one
  std::uint16_t internal_port = 0;   // not 0, which would mean all ports
  std::uint16_t external_port = 0;   // wanted; 0: any
  IpAddress external;                // wanted; invalid: any IPv4 address
  std::uint32_t lifetime_s = 0;      // 0 deletes the mapping (section 15)
};
std::array<std::uint8_t, kPcpMapSize> encode_pcp_map_request(const PcpMapRequest& request);

struct PcpMapping {
  PcpNonce nonce{};                  // an answer with another nonce or internal port than asked for is not ours
  std::uint16_t internal_port = 0;
  Endpoint external;
};
struct PcpResponse {
  PcpOpcode opcode = PcpOpcode::kAnnounce;
  PcpResult result = PcpResult::kSuccess;
  std::uint32_t lifetime_s = 0;      // granted; of a failure: how long it will last
  std::uint32_t epoch_s = 0;
  std::optional<PcpMapping> mapping;   // of every successful map answer, and of a failed one that says what failed
};
// nullopt: sizes that RFC 6887 section 8.3 tells clients to ignore (below the header, above kPcpSizeMax, no multiple of
// 4), a request, another version or opcode, a successful map answer that is short, not about UDP or of no use as above.
// Options behind the payload are ignored.
std::optional<PcpResponse> parse_pcp_response(Bytes datagram);

}  // namespace porthole::wire::portmap
