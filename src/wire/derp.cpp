#include "wire/derp.h"

namespace porthole::wire::derp {
namespace {

constexpr std::array<std::uint8_t, 6> kDiscoMagic = {0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac};

constexpr std::string_view kMetaCertPrefix = "derpkey";

NodePublic key_at(Bytes payload, std::size_t offset) { return NodePublic::from_bytes(payload.subspan(offset, kKeySize)); }

void frame_head(ByteVector& out, FrameType type, std::size_t payload_size) {
  std::uint8_t head[kHeaderSize];
  store_frame_header(head, type, payload_size);
  append(out, head);
}

}  // namespace

bool looks_like_disco(Bytes packet) {
  return packet.size() >= kDiscoSizeMin && std::memcmp(packet.data(), kDiscoMagic.data(), kDiscoMagic.size()) == 0;
}

bool client_accepts(const FrameHeader& header) { return header.size <= kClientFrameSizeMax && (!header.is(FrameType::kRecvPacket) || header.size <= kKeySize + kPacketSizeMax); }

bool server_accepts(const FrameHeader& header) {
  switch (static_cast<FrameType>(header.type)) {
    case FrameType::kSendPacket: return header.size >= kKeySize && header.size <= kKeySize + kPacketSizeMax;
    case FrameType::kNotePreferred: return header.size == 1;
    case FrameType::kPing: return header.size >= kPingSize && header.size <= kPingSizeMax;
    case FrameType::kForwardPacket:
    case FrameType::kWatchConns:
    case FrameType::kClosePeer: return false;
    default: return header.size <= kClientFrameSizeMax;
  }
}

std::optional<NodePublic> parse_server_key(Bytes payload) {
  if (payload.size() < kServerKeySizeMin || !equal(payload.first(kMagic.size()), kMagic)) return std::nullopt;
  return key_at(payload, kMagic.size());
}

std::optional<ClientInfo> parse_client_info(Bytes payload) {
  if (payload.size() < kClientInfoSizeMin) return std::nullopt;
  return ClientInfo{key_at(payload, 0), payload.subspan(kKeySize, kNonceSize), payload.subspan(kKeySize + kNonceSize)};
}

std::optional<ServerInfo> parse_server_info(Bytes payload) {
  if (payload.size() < kServerInfoSizeMin) return std::nullopt;
  return ServerInfo{payload.first(kNonceSize), payload.subspan(kNonceSize)};
}

std::optional<Packet> parse_packet(MutBytes payload) {
  if (payload.size() < kKeySize) return std::nullopt;
  return Packet{key_at(payload, 0), payload.subspan(kKeySize)};
}

std::optional<PeerGone> parse_peer_gone(Bytes payload) {
  if (payload.size() < kKeySize) return std::nullopt;
  return PeerGone{key_at(payload, 0), payload.size() > kKeySize ? payload[kKeySize] : std::uint8_t{0}};
}

std::optional<PeerPresent> parse_peer_present(Bytes payload) {
  if (payload.size() < kKeySize) return std::nullopt;
  PeerPresent p;
  p.key = key_at(payload, 0);
  if (payload.size() >= kKeySize + 18) {
    const std::uint8_t* at = payload.data() + kKeySize;
    p.endpoint = Endpoint{IpAddress::v6_bytes(at), load_be<std::uint16_t>(at + 16)};
  }
  if (payload.size() >= kKeySize + 19) p.flags = payload[kKeySize + 18];
  return p;
}

std::optional<ForwardPacket> parse_forward_packet(Bytes payload) {
  if (payload.size() < 2 * kKeySize) return std::nullopt;
  return ForwardPacket{key_at(payload, 0), key_at(payload, kKeySize), payload.subspan(2 * kKeySize)};
}

std::optional<PingData> parse_ping(Bytes payload) {
  if (payload.size() < kPingSize) return std::nullopt;
  PingData data;
  std::memcpy(data.data(), payload.data(), kPingSize);
  return data;
}

std::optional<Restarting> parse_restarting(Bytes payload) {
  if (payload.size() < 8) return std::nullopt;
  return Restarting{load_be<std::uint32_t>(payload.data()), load_be<std::uint32_t>(payload.data() + 4)};
}

std::string meta_cert_name(const NodePublic& key) { return std::string(kMetaCertPrefix) + to_hex(key.bytes()); }

std::optional<NodePublic> parse_meta_cert_name(std::string_view common_name) {
  std::array<std::uint8_t, kKeySize> raw;
  if (!common_name.starts_with(kMetaCertPrefix) || !from_hex_exact(common_name.substr(kMetaCertPrefix.size()), raw)) return std::nullopt;
  NodePublic key(raw);
  if (key.is_zero()) return std::nullopt;
  return key;
}

void encode_frame(ByteVector& out, FrameType type, Bytes payload) {
  frame_head(out, type, payload.size());
  append(out, payload);
}

void encode_server_key(ByteVector& out, const NodePublic& key) {
  frame_head(out, FrameType::kServerKey, kMagic.size() + kKeySize);
  append(out, kMagic);
  append(out, key.bytes());
}

void encode_client_info(ByteVector& out, const ClientInfo& info) {
  frame_head(out, FrameType::kClientInfo, kKeySize + info.nonce.size() + info.box.size());
  append(out, info.key.bytes());
  append(out, info.nonce);
  append(out, info.box);
}

void encode_server_info(ByteVector& out, const ServerInfo& info) {
  frame_head(out, FrameType::kServerInfo, info.nonce.size() + info.box.size());
  append(out, info.nonce);
  append(out, info.box);
}

void encode_note_preferred(ByteVector& out, bool preferred) {
  const std::uint8_t flag[] = {preferred ? std::uint8_t{1} : std::uint8_t{0}};
  encode_frame(out, FrameType::kNotePreferred, flag);
}

void encode_peer_gone(ByteVector& out, const NodePublic& key, GoneReason reason) {
  frame_head(out, FrameType::kPeerGone, kKeySize + 1);
  append(out, key.bytes());
  out.push_back(static_cast<std::uint8_t>(reason));
}

void encode_peer_present(ByteVector& out, const PeerPresent& present) {
  frame_head(out, FrameType::kPeerPresent, kKeySize + (present.endpoint ? 19u : 0u));
  append(out, present.key.bytes());
  if (!present.endpoint) return;
  append(out, present.endpoint->address.mapped());
  ByteWriter w(out);
  w.be16(present.endpoint->port);
  w.u8(present.flags);
}

void encode_forward_packet(ByteVector& out, const ForwardPacket& packet) {
  frame_head(out, FrameType::kForwardPacket, 2 * kKeySize + packet.data.size());
  append(out, packet.source.bytes());
  append(out, packet.destination.bytes());
  append(out, packet.data);
}

void encode_ping(ByteVector& out, const PingData& data) { encode_frame(out, FrameType::kPing, data); }
void encode_pong(ByteVector& out, const PingData& data) { encode_frame(out, FrameType::kPong, data); }
void encode_health(ByteVector& out, std::string_view text) { encode_frame(out, FrameType::kHealth, as_bytes(text)); }

void encode_restarting(ByteVector& out, const Restarting& restarting) {
  frame_head(out, FrameType::kRestarting, 8);
  ByteWriter w(out);
  w.be32(restarting.reconnect_in_ms);
  w.be32(restarting.try_for_ms);
}

}  // namespace porthole::wire::derp
