#include "wire/derp.h"

#include <gtest/gtest.h>

#include "support/vectors.h"

namespace porthole::wire::derp {
namespace {

using test::load_vectors;
using test::text;
using test::unhex;

NodePublic key(const boost::json::value& v) { return NodePublic::from_bytes(unhex(v)); }

// Encodes an entry of the vector file from its named fields.
ByteVector encode_entry(const boost::json::object& e, FrameType type) {
  ByteVector out;
  switch (type) {
    case FrameType::kServerKey: encode_server_key(out, key(e.at("server_public"))); break;
    case FrameType::kClientInfo: {
      ByteVector nonce = unhex(e.at("nonce")), box = unhex(e.at("box"));
      encode_client_info(out, {key(e.at("client_public")), nonce, box});
      break;
    }
    case FrameType::kServerInfo: {
      ByteVector nonce = unhex(e.at("nonce")), box = unhex(e.at("box"));
      encode_server_info(out, {nonce, box});
      break;
    }
    case FrameType::kSendPacket:
    case FrameType::kRecvPacket: {
      ByteVector packet = unhex(e.at("packet"));
      out.resize(kPacketHeadSize);
      store_packet_head(out.data(), type, key(e.at(type == FrameType::kSendPacket ? "dst" : "src")), packet.size());
      append(out, packet);
      break;
    }
    case FrameType::kForwardPacket: {
      ByteVector packet = unhex(e.at("packet"));
      encode_forward_packet(out, {key(e.at("src")), key(e.at("dst")), packet});
      break;
    }
    case FrameType::kKeepAlive:
    case FrameType::kWatchConns: encode_frame(out, type, {}); break;
    case FrameType::kNotePreferred: encode_note_preferred(out, e.at("preferred").as_bool()); break;
    case FrameType::kPeerGone: encode_peer_gone(out, key(e.at("peer")), static_cast<GoneReason>(test::u64(e.at("reason")))); break;
    case FrameType::kPeerPresent: {
      PeerPresent p{key(e.at("peer")), std::nullopt, 0};
      if (e.contains("ip")) {
        p.endpoint = Endpoint{*IpAddress::parse(text(e.at("ip"))), static_cast<std::uint16_t>(test::u64(e.at("port")))};
        p.flags = static_cast<std::uint8_t>(test::u64(e.at("flags")));
      }
      encode_peer_present(out, p);
      break;
    }
    case FrameType::kClosePeer: encode_frame(out, type, unhex(e.at("peer"))); break;
    case FrameType::kPing: encode_ping(out, *parse_ping(unhex(e.at("data")))); break;
    case FrameType::kPong: encode_pong(out, *parse_ping(unhex(e.at("data")))); break;
    case FrameType::kHealth: encode_health(out, text(e.at("text"))); break;
    case FrameType::kRestarting:
      encode_restarting(out, {static_cast<std::uint32_t>(test::u64(e.at("reconnect_in_ms"))), static_cast<std::uint32_t>(test::u64(e.at("try_for_ms")))});
      break;
  }
  return out;
}

TEST(DerpFrames, VectorsEncodeAndDecode) {
  boost::json::value vectors = load_vectors("derp.json");
  int checked = 0;
  for (const auto& value : vectors.at("frames").as_array()) {
    const auto& e = value.as_object();
    std::string name(text(e.at("name")));
    SCOPED_TRACE(name);
    ByteVector frame = unhex(e.at("frame"));
    FrameHeader header = load_frame_header(frame.data());
    MutBytes payload = MutBytes(frame).subspan(kHeaderSize);
    ASSERT_EQ(header.size, payload.size());
    EXPECT_EQ(header.size, test::u64(e.at("length")));
    FrameType type = static_cast<FrameType>(header.type);
    std::string_view direction = text(e.at("direction"));
    if (direction == "s2c" || direction == "both") {
      EXPECT_TRUE(client_accepts(header));
    }
    if (direction != "s2c") {
      EXPECT_EQ(server_accepts(header), direction != "mesh");
    }
    ++checked;
    if (name == "unknown_type") continue;
    // Forms that only other programs produce: no reason byte, bytes behind the known part.
    if (name != "server_key_future_tail" && name != "peer_gone_legacy" && name != "ping_long") {
      EXPECT_EQ(to_hex(encode_entry(e, type)), to_hex(frame));
    }
    switch (type) {
      case FrameType::kServerKey: EXPECT_EQ(parse_server_key(payload), key(e.at("server_public"))); break;
      case FrameType::kClientInfo: {
        auto info = parse_client_info(payload);
        ASSERT_TRUE(info);
        EXPECT_EQ(info->key, key(e.at("client_public")));
        EXPECT_EQ(to_hex(info->nonce), text(e.at("nonce")));
        EXPECT_EQ(to_hex(info->box), text(e.at("box")));
        break;
      }
      case FrameType::kServerInfo: EXPECT_EQ(to_hex(parse_server_info(payload)->box), text(e.at("box"))); break;
      case FrameType::kSendPacket:
      case FrameType::kRecvPacket: {
        auto p = parse_packet(payload);
        ASSERT_TRUE(p);
        EXPECT_EQ(p->key, key(e.at(e.contains("dst") ? "dst" : "src")));
        EXPECT_EQ(to_hex(p->data), text(e.at("packet")));
        EXPECT_EQ(looks_like_disco(p->data), name == "send_packet_disco_min");
        break;
      }
      case FrameType::kForwardPacket: {
        auto p = parse_forward_packet(payload);
        ASSERT_TRUE(p);
        EXPECT_EQ(p->source, key(e.at("src")));
        EXPECT_EQ(p->destination, key(e.at("dst")));
        break;
      }
      case FrameType::kPeerGone: {
        auto g = parse_peer_gone(payload);
        ASSERT_TRUE(g);
        EXPECT_EQ(g->key, key(e.at("peer")));
        EXPECT_EQ(g->reason, test::u64(e.at("reason")));
        break;
      }
      case FrameType::kPeerPresent: {
        auto p = parse_peer_present(payload);
        ASSERT_TRUE(p);
        EXPECT_EQ(p->key, key(e.at("peer")));
        ASSERT_EQ(p->endpoint.has_value(), e.contains("ip"));
        if (p->endpoint) {
          EXPECT_EQ(p->endpoint->address.to_string(), text(e.at("ip")));
          EXPECT_EQ(p->endpoint->port, test::u64(e.at("port")));
          EXPECT_EQ(p->flags, test::u64(e.at("flags")));
        }
        break;
      }
      case FrameType::kPing:
      case FrameType::kPong: EXPECT_EQ(to_hex(*parse_ping(payload)), text(e.at("data"))); break;
      case FrameType::kHealth: EXPECT_EQ(as_text(payload), text(e.at("text"))); break;
      case FrameType::kRestarting: EXPECT_EQ(parse_restarting(payload)->try_for_ms, test::u64(e.at("try_for_ms"))); break;
      default: break;
    }
  }
  EXPECT_EQ(checked, 30);
}

TEST(DerpFrames, MetaCertName) {
  boost::json::value vectors = load_vectors("derp.json");
  const auto& cert = vectors.at("metacert").as_object();
  EXPECT_EQ(meta_cert_name(key(cert.at("server_public"))), text(cert.at("common_name")));
  EXPECT_EQ(parse_meta_cert_name(text(cert.at("common_name"))), key(cert.at("server_public")));
  EXPECT_EQ(static_cast<std::uint64_t>(kProtocolVersion), test::u64(cert.at("serial")));
  EXPECT_FALSE(parse_meta_cert_name("derpkey"));
  EXPECT_FALSE(parse_meta_cert_name("derpkey" + std::string(64, '0')));
  EXPECT_FALSE(parse_meta_cert_name("relay.example"));
}

TEST(DerpFrames, SizesAtTheirEdges) {
  auto server = [](FrameType t, std::uint32_t size) { return server_accepts({static_cast<std::uint8_t>(t), size}); };
  EXPECT_TRUE(server(FrameType::kSendPacket, 65568));
  EXPECT_FALSE(server(FrameType::kSendPacket, 65569));
  EXPECT_TRUE(server(FrameType::kSendPacket, 32));
  EXPECT_FALSE(server(FrameType::kSendPacket, 31));
  EXPECT_FALSE(server(FrameType::kNotePreferred, 2));
  EXPECT_TRUE(server(FrameType::kPing, 1000));
  EXPECT_FALSE(server(FrameType::kPing, 1001));
  EXPECT_FALSE(server(FrameType::kPing, 7));
  EXPECT_TRUE(server_accepts({0x7f, 1048576}));
  EXPECT_FALSE(server_accepts({0x7f, 1048577}));
  EXPECT_TRUE(client_accepts({0x7f, 1048576}));
  EXPECT_FALSE(client_accepts({0x48, 0x5454502f}));
  EXPECT_TRUE(client_accepts({0x05, 65568}));
  EXPECT_FALSE(client_accepts({0x05, 65569}));
}

TEST(DerpFrames, EveryTruncationIsRefusedOrShorter) {
  ByteVector payload(64, 1);
  for (std::size_t n = 0; n < 64; ++n) {
    MutBytes p = MutBytes(payload).first(n);
    EXPECT_FALSE(parse_server_key(p));
    EXPECT_EQ(parse_client_info(p).has_value(), n >= 56);
    EXPECT_EQ(parse_packet(p).has_value(), n >= 32);
    EXPECT_EQ(parse_peer_gone(p).has_value(), n >= 32);
    EXPECT_EQ(parse_peer_present(p).has_value(), n >= 32);
    EXPECT_EQ(parse_server_info(p).has_value(), n >= 24);
    EXPECT_EQ(parse_ping(p).has_value(), n >= 8);
    EXPECT_EQ(parse_restarting(p).has_value(), n >= 8);
    EXPECT_FALSE(parse_forward_packet(p));
  }
}

}  // namespace
}  // namespace porthole::wire::derp
