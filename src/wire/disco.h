// Disco messages (Tailscale), with which nodes find paths to each other. Stateless: the envelope is taken apart and put
// together here, sealing and opening the box (crypto_box) is the caller's part.
//
//   0      6                        38          62        78
//   +------+------------------------+-----------+---------+-------------------------
//   | magic| sender's disco key (32)| nonce (24)| tag (16)| sealed: type, version, payload
//   +------+------------------------+-----------+---------+-------------------------
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <variant>
#include <vector>

#include "base/bytes.h"
#include "base/ip.h"
#include "base/key.h"

namespace porthole::wire::disco {

constexpr std::array<std::uint8_t, 6> kMagic{0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac};
constexpr std::size_t kKeyOffset = 6;
constexpr std::size_t kNonceOffset = 38;
constexpr std::size_t kNonceSize = 24;
constexpr std::size_t kBoxOffset = 62;
constexpr std::size_t kTagSize = 16;
constexpr std::size_t kOverhead = kBoxOffset + kTagSize;   // envelope around a plaintext
constexpr std::size_t kPlaintextSizeMin = 2;
constexpr std::size_t kAddressSize = 18;
// A ping without padding, sealed.
constexpr std::size_t kPingSize = 124;
constexpr std::size_t kPongSize = 110;

// The parts of a sealed message; views into the datagram.
struct Envelope {
  DiscoPublic sender;
  Bytes nonce;
  Bytes box;   // tag and ciphertext, at least kTagSize bytes
};
std::optional<Envelope> parse_envelope(Bytes datagram);
// Writes magic, key and nonce into the first kBoxOffset bytes of `out`.
void write_envelope(MutBytes out, const DiscoPublic& sender, Bytes nonce24);

using TxId = std::array<std::uint8_t, 12>;

struct Ping {
  TxId tx_id{};
  NodePublic node_key;          // zero: absent (very old senders)
  std::size_t padding = 0;      // bytes behind, for MTU probing
  friend bool operator==(const Ping&, const Ping&) = default;
};
struct Pong {
  TxId tx_id{};
  Endpoint source;              // of the ping, as its receiver saw it; over a relay 127.3.3.40:<region>
  friend bool operator==(const Pong&, const Pong&) = default;
};
struct CallMeMaybe {
  std::vector<Endpoint> endpoints;   // empty withdraws everything
  friend bool operator==(const CallMeMaybe&, const CallMeMaybe&) = default;
};

// Types 4, 5, 6: handshake with a peer relay.
struct BindRelay {
  enum class Step : std::uint8_t { kBind = 4, kChallenge = 5, kAnswer = 6 };
  Step step = Step::kBind;
  std::uint32_t vni = 0;
  std::uint32_t generation = 0;
  DiscoPublic remote_key;
  std::array<std::uint8_t, 32> challenge{};
  friend bool operator==(const BindRelay&, const BindRelay&) = default;
};
struct RelayEndpoint {
  DiscoPublic server_disco;
  std::array<DiscoPublic, 2> client_disco;   // ascending
  std::uint64_t lamport_id = 0;
  std::uint32_t vni = 0;
  std::uint64_t bind_lifetime_ns = 0;
  std::uint64_t steady_lifetime_ns = 0;
  std::vector<Endpoint> addresses;           // at least one
  friend bool operator==(const RelayEndpoint&, const RelayEndpoint&) = default;
};
struct CallMeMaybeVia {                      // type 7
  RelayEndpoint endpoint;
  friend bool operator==(const CallMeMaybeVia&, const CallMeMaybeVia&) = default;
};
struct AllocateRequest {                     // type 8
  std::array<DiscoPublic, 2> client_disco;
  std::uint32_t generation = 0;
  friend bool operator==(const AllocateRequest&, const AllocateRequest&) = default;
};
struct AllocateResponse {                    // type 9
  std::uint32_t generation = 0;
  RelayEndpoint endpoint;
  friend bool operator==(const AllocateResponse&, const AllocateResponse&) = default;
};
// Authentic but newer than this code: drop silently.
struct Unknown {
  std::uint8_t type = 0;
  friend bool operator==(const Unknown&, const Unknown&) = default;
};

using Message = std::variant<Ping, Pong, CallMeMaybe, BindRelay, CallMeMaybeVia, AllocateRequest, AllocateResponse, Unknown>;

// Parses an opened plaintext. nullopt: too short for its type, or a bad address list of types 7 and 9. Bytes behind the
// payload are ignored. A CallMeMaybe of bad length or version is an empty list. Types 7..9 of a version other than 0
// come out as Unknown.
std::optional<Message> parse(Bytes plaintext);

// The plaintext, version 0. Unknown may not be encoded (empty result).
ByteVector encode(const Message& message);

// The two messages that must not wait behind bulk data are built without allocation.
constexpr std::size_t kPongPlaintextSize = 32;
constexpr std::size_t kPingPlaintextSize = 46;
std::array<std::uint8_t, kPongPlaintextSize> encode_pong(const TxId& tx_id, const Endpoint& source);
std::array<std::uint8_t, kPingPlaintextSize> encode_ping(const TxId& tx_id, const NodePublic& node_key);

// The address a pong over a relay reports: 127.3.3.40:<region>. Never a UDP destination.
Endpoint relay_pseudo_endpoint(int region);

}  // namespace porthole::wire::disco
