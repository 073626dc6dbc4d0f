// DERP frames, protocol version 2: what relays and their clients say to each other inside one byte stream.
//
//   0      1                    5
//   +------+--------------------+--------------------
//   | type | length (be32)      | payload of `length` bytes
//   +------+--------------------+--------------------
//
// There is no checksum and no resynchronisation: one wrong length loses the stream. So lengths are checked from the five
// header bytes alone, before anything is kept. Payload parsers take the payload without its header, return nullopt when
// it is too short, and skip bytes behind the known part where the protocol allows for growth.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/bytes.h"
#include "base/ip.h"
#include "base/key.h"

namespace porthole::wire::derp {

// C: client, S: server, M: client that proved the mesh key.
enum class FrameType : std::uint8_t {
  kServerKey = 0x01,      // S>C
  kClientInfo = 0x02,     // C>S
  kServerInfo = 0x03,     // S>C
  kSendPacket = 0x04,     // C>S
  kRecvPacket = 0x05,     // S>C
  kKeepAlive = 0x06,      // S>C
  kNotePreferred = 0x07,  // C>S
  kPeerGone = 0x08,       // S>C
  kPeerPresent = 0x09,    // S>M
  kForwardPacket = 0x0a,  // M>S
  kWatchConns = 0x10,     // M>S
  kClosePeer = 0x11,      // M>S
  kPing = 0x12,           // both
  kPong = 0x13,           // both
  kHealth = 0x14,         // S>C
  kRestarting = 0x15,     // S>C
};

constexpr int kProtocolVersion = 2;
constexpr std::size_t kHeaderSize = 5;
constexpr std::size_t kKeySize = 32;
constexpr std::size_t kNonceSize = 24;
constexpr std::size_t kPingSize = 8;
constexpr std::array<std::uint8_t, 8> kMagic = {0x44, 0x45, 0x52, 0x50, 0xf0, 0x9f, 0x94, 0x91};

// The packet inside a SendPacket, RecvPacket or ForwardPacket. The frame is one or two keys larger.
constexpr std::size_t kPacketSizeMax = 65536;
constexpr std::size_t kPacketHeadSize = kHeaderSize + kKeySize;  // before the packet of a Send/RecvPacket frame
constexpr std::size_t kServerKeySizeMin = 40;
constexpr std::size_t kServerKeySizeMax = 1024;
constexpr std::size_t kClientInfoSizeMin = 56;
constexpr std::size_t kClientInfoSizeMax = 262144;
constexpr std::size_t kServerInfoSizeMin = 24;
constexpr std::size_t kClientFrameSizeMax = 1048576;  // any frame, as read by a client
constexpr std::size_t kPingSizeMax = 1000;            // as read by a server

// What the relay takes for a disco message when it chooses a queue (disco header, keys and nonce: 62 bytes).
constexpr std::size_t kDiscoSizeMin = 62;
bool looks_like_disco(Bytes packet);

struct FrameHeader {
  std::uint8_t type = 0;   // any value: unknown ones are skipped
  std::uint32_t size = 0;  // of the payload

  bool is(FrameType t) const { return type == static_cast<std::uint8_t>(t); }
};
// `p` points to kHeaderSize bytes.
inline FrameHeader load_frame_header(const std::uint8_t* p) { return {p[0], load_be<std::uint32_t>(p + 1)}; }
inline void store_frame_header(std::uint8_t* p, FrameType type, std::size_t payload_size) {
  p[0] = static_cast<std::uint8_t>(type);
  store_be(p + 1, static_cast<std::uint32_t>(payload_size));
}

// Whether the reader may accept a frame with this header once the login is over; false means close. The text of
// section "sizes": what is merely too short for its type is skipped by clients and closes at servers.
bool client_accepts(const FrameHeader& header);
// Mesh frames (ForwardPacket, WatchConns, ClosePeer) are refused: they need a key that this relay never gives out.
bool server_accepts(const FrameHeader& header);

// ---- payloads ----

std::optional<NodePublic> parse_server_key(Bytes payload);

struct ClientInfo {
  NodePublic key;
  Bytes nonce;  // 24 bytes
  Bytes box;    // tag and sealed JSON
};
std::optional<ClientInfo> parse_client_info(Bytes payload);

struct ServerInfo {
  Bytes nonce;
  Bytes box;
};
std::optional<ServerInfo> parse_server_info(Bytes payload);

// SendPacket: `key` is the destination; RecvPacket: the source.
struct Packet {
  NodePublic key;
  MutBytes data;
};
std::optional<Packet> parse_packet(MutBytes payload);

enum class GoneReason : std::uint8_t { kDisconnected = 0, kNotHere = 1 };
struct PeerGone {
  NodePublic key;
  std::uint8_t reason = 0;  // missing: 0; unknown ones are handled as 0
};
std::optional<PeerGone> parse_peer_gone(Bytes payload);

struct PeerPresent {
  NodePublic key;
  std::optional<Endpoint> endpoint;
  std::uint8_t flags = 0;
};
std::optional<PeerPresent> parse_peer_present(Bytes payload);

struct ForwardPacket {
  NodePublic source;
  NodePublic destination;
  Bytes data;
};
std::optional<ForwardPacket> parse_forward_packet(Bytes payload);

using PingData = std::array<std::uint8_t, kPingSize>;
std::optional<PingData> parse_ping(Bytes payload);  // also Pong

struct Restarting {
  std::uint32_t reconnect_in_ms = 0;
  std::uint32_t try_for_ms = 0;
};
std::optional<Restarting> parse_restarting(Bytes payload);

// MetaCert: a relay tells its key during the TLS 1.3 handshake with one more certificate behind its chain. Its common name
// is "derpkey" and the key as 64 hex digits; its serial number is the protocol version.
std::string meta_cert_name(const NodePublic& key);
// nullopt for other names and for the zero key.
std::optional<NodePublic> parse_meta_cert_name(std::string_view common_name);

// ---- encoders: append one whole frame ----

void encode_frame(ByteVector& out, FrameType type, Bytes payload);
void encode_server_key(ByteVector& out, const NodePublic& key);
void encode_client_info(ByteVector& out, const ClientInfo& info);
void encode_server_info(ByteVector& out, const ServerInfo& info);
void encode_note_preferred(ByteVector& out, bool preferred);
void encode_peer_gone(ByteVector& out, const NodePublic& key, GoneReason reason);
void encode_peer_present(ByteVector& out, const PeerPresent& present);
void encode_forward_packet(ByteVector& out, const ForwardPacket& packet);
void encode_ping(ByteVector& out, const PingData& data);
void encode_pong(ByteVector& out, const PingData& data);
void encode_health(ByteVector& out, std::string_view text);
void encode_restarting(ByteVector& out, const Restarting& restarting);

// The data path: header and key of a Send/RecvPacket frame into `out` (kPacketHeadSize bytes); the packet follows.
inline void store_packet_head(std::uint8_t* out, FrameType type, const NodePublic& key, std::size_t packet_size) {
  store_frame_header(out, type, kKeySize + packet_size);
  std::memcpy(out + kHeaderSize, key.raw().data(), kKeySize);
}

}  // namespace porthole::wire::derp
