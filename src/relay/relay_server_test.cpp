#include "relay/relay_server.h"

#include <gtest/gtest.h>

#include "derp/login.h"
#include "relay/http_front.h"
#include "relay/login.h"
#include "support/relay_world.h"
#include "support/vectors.h"

namespace porthole::relay {
namespace {

namespace frames = wire::derp;
using frames::FrameHeader;
using frames::FrameType;
using test::RelayWorld;
using test::text;
using test::unhex;

ByteVector disco_packet(std::size_t size = 80) {
  ByteVector p(size, 7);
  const std::uint8_t magic[] = {0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac};
  std::copy(std::begin(magic), std::end(magic), p.begin());
  return p;
}

// A server with scripted clients: raw frames in and out.
struct Raw {
  SeededRng rng{77};
  test::OpenAdmission admission;
  crypto::NodePrivate key;
  RelayServer server;
  Instant now = Instant::from_ns(1'000'000'000);

  explicit Raw(crypto::NodePrivate k) : key(std::move(k)), server(key, admission, rng, Log::none()) {}
  Raw() : Raw(make_key(1)) {}
  static crypto::NodePrivate make_key(std::uint64_t seed) {
    SeededRng r(seed);
    return crypto::NodePrivate::generate(r);
  }

  struct Frame {
    FrameType type;
    ByteVector payload;
  };
  std::vector<Frame> read(ConnId id, std::size_t chunk = 65536) {
    ByteVector all, buffer(chunk);
    while (std::size_t n = server.produce(now, id, buffer)) append(all, Bytes(buffer).first(n));
    std::vector<Frame> out;
    Bytes rest = all;
    while (rest.size() >= frames::kHeaderSize) {
      FrameHeader h = frames::load_frame_header(rest.data());
      PORTHOLE_ASSERT(rest.size() >= frames::kHeaderSize + h.size);
      out.push_back({static_cast<FrameType>(h.type), to_vector(rest.subspan(frames::kHeaderSize, h.size))});
      rest = rest.subspan(frames::kHeaderSize + h.size);
    }
    PORTHOLE_ASSERT(rest.empty());
    return out;
  }
  void write(ConnId id, Bytes bytes, std::size_t slice = 1 << 20) {
    ByteVector copy = to_vector(bytes);
    for (std::size_t at = 0; at < copy.size(); at += slice) {
      MutBytes part = MutBytes(copy).subspan(at);
      server.consume(now, id, part.first(std::min(slice, part.size())));
    }
  }
  ConnId connect(const char* from = "203.0.113.5:1000") { return server.on_connect(now, *Endpoint::parse(from)); }
  ByteVector login_frame(const crypto::NodePrivate& k) {
    auto box = crypto::BoxKey::make(k.reveal(), server.public_key().bytes());
    ByteVector out, nonce(24, 3);
    derp::encode_login(out, k.public_key(), *box, nonce);
    return out;
  }
  ConnId log_in(const crypto::NodePrivate& k, const char* from = "203.0.113.5:1000") {
    ConnId id = connect(from);
    write(id, login_frame(k));
    auto got = read(id);
    EXPECT_EQ(got.size(), 2u);
    return id;
  }
  void send(ConnId id, const NodePublic& to, Bytes packet) {
    ByteVector f(frames::kPacketHeadSize);
    frames::store_packet_head(f.data(), FrameType::kSendPacket, to, packet.size());
    append(f, packet);
    write(id, f);
  }
  std::vector<ClosedConnection> closed() {
    while (server.poll_ready()) {
    }
    std::vector<ClosedConnection> out;
    while (auto c = server.poll_close()) out.push_back(*c);
    return out;
  }
  void advance(Duration d) {
    Instant end = now + d;
    for (int i = 0; i < 100000 && server.next_timeout().latest <= end; ++i) {
      now = server.next_timeout().latest;
      server.handle_timeout(now);
    }
    now = end;
  }
};

TEST(RelayServer, TranscriptsOfTheVectorsInAnySlice) {
  boost::json::value vectors = test::load_vectors("derp.json");
  for (std::size_t slice : {1u, 7u, 100000u}) {
    for (const auto& t : vectors.at("transcripts").as_array()) {
      bool fast = text(t.at("name")) == "fast_start";
      Raw raw(crypto::NodePrivate::from_bytes(unhex(vectors.at("keys").at("server").at("private"))));
      // The receiver of the packet.
      crypto::NodePrivate peer = crypto::NodePrivate::from_bytes(unhex(vectors.at("keys").at("peer").at("private")));
      ConnId peer_conn = raw.log_in(peer);
      wire::HttpHeadParser head(wire::HttpKind::kRequest);
      ConnId id = 0;
      for (const auto& step : t.at("steps").as_array()) {
        ByteVector bytes = unhex(step.at(1));
        if (text(step.at(0)) == "s2c") continue;
        Bytes rest = bytes;
        if (!head.done()) {
          auto n = head.consume(rest);
          ASSERT_TRUE(n.ok());
          ASSERT_TRUE(head.done());
          rest = rest.subspan(*n);
          auto answer = answer_relay_request(head, raw.server.public_key());
          ASSERT_TRUE(answer && answer->upgrade);
          EXPECT_EQ(as_text(answer->bytes), fast ? "" : text(vectors.at("http").at("answer_tailscale")));
          id = raw.connect();
          auto key = raw.read(id);
          ASSERT_EQ(key.size(), 1u);
          EXPECT_EQ(key[0].type, FrameType::kServerKey);
        }
        raw.write(id, rest, slice);
      }
      auto info = raw.read(id);
      ASSERT_EQ(info.size(), 1u);
      auto box = crypto::BoxKey::make(unhex(vectors.at("keys").at("client").at("private")), raw.server.public_key().bytes());
      EXPECT_TRUE(derp::open_server_info(info[0].payload, *box).ok());
      auto packet = raw.read(peer_conn);
      ASSERT_EQ(packet.size(), 1u);
      for (const auto& f : vectors.at("frames").as_array())
        if (text(f.at("name")) == "recv_packet") {
          EXPECT_EQ("0500000044" + to_hex(packet[0].payload), text(f.at("frame")));
        }
      EXPECT_EQ(raw.server.gauges().home_connections, 1u);
      EXPECT_TRUE(raw.closed().empty());
    }
  }
}

TEST(RelayServer, ListedRequestsAreAnswered) {
  boost::json::value vectors = test::load_vectors("derp.json");
  const auto& http = vectors.at("http");
  const NodePublic key = NodePublic::from_bytes(unhex(vectors.at("keys").at("server").at("public")));
  for (const char* name : {"request", "request_fast_start", "request_not_ideal"}) {
    SCOPED_TRACE(name);
    wire::HttpHeadParser head(wire::HttpKind::kRequest);
    const std::string_view request = text(http.at(name));
    auto n = head.consume(as_bytes(request));
    ASSERT_TRUE(n.ok() && head.done());
    EXPECT_EQ(*n, request.size());
    auto answer = answer_relay_request(head, key);
    ASSERT_TRUE(answer && answer->upgrade);
    const bool fast = std::string_view(name) == "request_fast_start";
    EXPECT_EQ(as_text(answer->bytes), fast ? "" : text(http.at("answer_tailscale")));
  }
}

TEST(RelayServer, EveryClientFrameIsTaken) {
  boost::json::value vectors = test::load_vectors("derp.json");
  for (std::size_t slice : {1u, 7u, 100000u}) {
    Raw raw;
    ConnId id = raw.log_in(Raw::make_key(2));
    for (const auto& f : vectors.at("frames").as_array()) {
      // Known types in the wrong direction are skipped like unknown ones.
      if (text(f.at("direction")) == "mesh") continue;
      raw.write(id, unhex(f.at("frame")), slice);
      EXPECT_TRUE(raw.closed().empty()) << text(f.at("name"));
    }
    auto got = raw.read(id);
    int pongs = 0;
    for (auto& f : got) {
      if (f.type != FrameType::kPong) continue;
      ++pongs;
      EXPECT_EQ(to_hex(f.payload), "0102030405060708");
    }
    EXPECT_EQ(pongs, 2);
  }
}

TEST(RelayServer, ClientInfoVariantsLogIn) {
  boost::json::value vectors = test::load_vectors("derp.json");
  auto server_key = crypto::NodePrivate::from_bytes(unhex(vectors.at("keys").at("server").at("private")));
  int checked = 0;
  for (const auto& f : vectors.at("frames").as_array()) {
    std::string name(text(f.at("name")));
    if (!name.starts_with("client_info")) continue;
    std::optional<crypto::BoxKey> box;
    ByteVector frame = unhex(f.at("frame"));
    auto login = open_client_info(Bytes(frame).subspan(5), server_key, box);
    ASSERT_TRUE(login.ok()) << name;
    EXPECT_EQ(login->version, 2);
    EXPECT_EQ(login->can_ack_pings, name != "client_info_mesh_prober");
    EXPECT_EQ(login->is_prober, name == "client_info_mesh_prober");
    EXPECT_EQ(login->has_mesh_key, name == "client_info_mesh_prober");
    EXPECT_EQ(login->app_name, name == "client_info_app_name" ? "example-app" : "");
    Raw raw(server_key.duplicate());
    ConnId id = raw.connect();
    raw.write(id, frame);
    EXPECT_TRUE(raw.closed().empty()) << name;
    EXPECT_EQ(raw.server.counters().logins, 1u);
    ++checked;
  }
  EXPECT_EQ(checked, 3);
}

TEST(RelayServer, JsonOfTheLoginIsReadLikeTheFieldDoes) {
  auto relay = Raw::make_key(1), client = Raw::make_key(2);
  auto opened = [&](std::string_view json) {
    auto box = crypto::BoxKey::make(client.reveal(), relay.public_key().bytes());
    ByteVector sealed(json.size() + 16), nonce(24), payload = to_vector(client.public_key().bytes());
    box->seal(nonce, as_bytes(json), sealed);
    append(payload, nonce);
    append(payload, sealed);
    std::optional<crypto::BoxKey> out;
    return open_client_info(payload, relay, out);
  };
  auto accepted = [&](std::string_view json) { return opened(json).ok(); };
  EXPECT_EQ(opened(R"({"version":4294967298})").value().version, 4'294'967'298);  // not 2
  for (const char* good : {"{}", R"({"Version":7,"canackpings":false})", R"({"version":null,"extra":{"a":[1]}})", R"({"IsProber":true,"AppName":"x"})"})
    EXPECT_TRUE(accepted(good)) << good;
  for (const char* bad : {"", "[]", "{", "2", R"({"version":"2"})", R"({"CanAckPings":1})", R"({"meshKey":""})", R"({"meshKey":null})",
                          R"({"MESHKEY":"ab"})", R"({"AppName":3})", R"({"version":2}x)"})
    EXPECT_FALSE(accepted(bad)) << bad;
}

TEST(RelayServer, RejectVectors) {
  boost::json::value vectors = test::load_vectors("derp.json");
  auto server_key = crypto::NodePrivate::from_bytes(unhex(vectors.at("keys").at("server").at("private")));
  int checked = 0;
  for (const auto& r : vectors.at("reject").as_array()) {
    if (text(r.at("side")) != "server") continue;
    std::string name(text(r.at("name")));
    SCOPED_TRACE(name);
    ByteVector bytes = unhex(r.at(r.as_object().contains("bytes") ? "bytes" : "head"));
    for (std::size_t slice : {1u, 3u, 1000u}) {
      Raw raw(server_key.duplicate());
      ConnId id = name.starts_with("client_info") ? raw.connect() : raw.log_in(Raw::make_key(2));
      raw.write(id, bytes, slice);
      auto closed = raw.closed();
      ASSERT_EQ(closed.size(), 1u);
      EXPECT_EQ(closed[0].id, id);
      EXPECT_EQ(raw.server.gauges().connections, 0u);
      // Nothing of a dropped connection is left to trip over.
      EXPECT_EQ(raw.read(id).size(), 0u);
      raw.write(id, bytes);
      raw.server.on_close(raw.now, id);
      EXPECT_TRUE(raw.server.next_timeout().is_never());
    }
    ++checked;
  }
  EXPECT_EQ(checked, 10);
}

TEST(RelayServer, RealClientsFramesReplayed) {
  boost::json::value capture = test::load_capture("derp-sessions.json");
  for (const auto& session : capture.at("sessions").as_array()) {
    bool headscale = text(session.at("relay")) == "headscale";
    auto key = crypto::NodePrivate::parse(text(capture.at("keys").at(headscale ? "headscale_relay_private" : "derper_private")));
    for (std::size_t slice : {1u, 7u, 100000u}) {
      Raw raw(key->duplicate());
      wire::HttpHeadParser head(wire::HttpKind::kRequest);
      ASSERT_TRUE(head.consume(as_bytes(text(session.at("client_request")))).ok());
      auto answer = answer_relay_request(head, raw.server.public_key());
      ASSERT_TRUE(answer && answer->upgrade);
      EXPECT_EQ(answer->bytes.empty(), text(session.at("server_head")).empty());
      ConnId id = raw.connect();
      for (const auto& f : session.at("client_frames").as_array()) raw.write(id, unhex(f.at("frame")), slice);
      EXPECT_TRUE(raw.closed().empty());
      auto got = raw.read(id);
      ASSERT_GE(got.size(), 2u);
      EXPECT_EQ(to_hex(got[0].payload), std::string(text(session.at("server_frames").at(0).at("frame"))).substr(10));
      EXPECT_EQ(got[1].type, FrameType::kServerInfo);
      EXPECT_TRUE(raw.server.is_connected(NodePublic::from_bytes(unhex(session.at("client_frames").at(0).at("client_public")))));
    }
  }
}

TEST(RelayServer, AdmissionMessages) {
  boost::json::value vectors = test::load_vectors("derp.json");
  const auto& admit = vectors.at("admit");
  auto key = NodePublic::from_bytes(unhex(vectors.at("keys").at("client").at("public")));
  EXPECT_EQ(encode_admission_request(key, *IpAddress::parse("203.0.113.7")), text(admit.at("request")));
  EXPECT_EQ(parse_admission_answer(text(admit.at("answer_allow"))), true);
  EXPECT_EQ(parse_admission_answer(text(admit.at("answer_deny"))), false);
  for (const char* bad : {"", "{}", R"({"Allow":1})", "true", "<html>"}) EXPECT_FALSE(parse_admission_answer(bad)) << bad;
}

TEST(RelayServer, PeerGoneNotHereOnlyForDiscoAndLimited) {
  Raw raw;
  ConnId id = raw.log_in(Raw::make_key(2));
  NodePublic nobody = Raw::make_key(99).public_key();
  raw.send(id, nobody, ByteVector(100, 4));
  EXPECT_TRUE(raw.read(id).empty());
  for (int i = 0; i < 10; ++i) raw.send(id, nobody, disco_packet());
  auto got = raw.read(id);
  ASSERT_EQ(got.size(), 3u);
  EXPECT_EQ(got[0].type, FrameType::kPeerGone);
  EXPECT_EQ(frames::parse_peer_gone(got[0].payload)->reason, 1);
  EXPECT_EQ(frames::parse_peer_gone(got[0].payload)->key, nobody);
  raw.now = raw.now + 2100ms;
  for (int i = 0; i < 10; ++i) raw.send(id, nobody, disco_packet());
  EXPECT_EQ(raw.read(id).size(), 2u);
  EXPECT_EQ(raw.server.counters().dropped_unknown_destination, 21u);
}

TEST(RelayServer, PeerGoneToThoseWhoHeardFromIt) {
  Raw raw;
  auto ka = Raw::make_key(2), kb = Raw::make_key(3), kc = Raw::make_key(4);
  ConnId a = raw.log_in(ka), b = raw.log_in(kb), c = raw.log_in(kc);
  raw.send(a, kb.public_key(), ByteVector(10));
  raw.read(b);
  raw.server.on_close(raw.now, a);
  auto got = raw.read(b);
  ASSERT_EQ(got.size(), 1u);
  EXPECT_EQ(frames::parse_peer_gone(got[0].payload)->key, ka.public_key());
  EXPECT_EQ(frames::parse_peer_gone(got[0].payload)->reason, 0);
  EXPECT_TRUE(raw.read(c).empty());
  // It comes back, is heard again, and is told about again.
  a = raw.log_in(ka);
  raw.send(a, kb.public_key(), ByteVector(10));
  raw.read(b);
  raw.server.on_close(raw.now, a);
  EXPECT_EQ(raw.read(b).size(), 1u);
  // A sender's cached way to a peer that left must not be used.
  raw.send(c, kb.public_key(), ByteVector(1));
  raw.server.on_close(raw.now, b);
  raw.send(c, kb.public_key(), ByteVector(1));
  EXPECT_EQ(raw.server.counters().dropped_unknown_destination, 1u);
}

TEST(RelayServer, DuplicateKeyLastWriterGetsThePackets) {
  Raw raw;
  auto k = Raw::make_key(2), other = Raw::make_key(3);
  ConnId first = raw.log_in(k), second = raw.log_in(k), sender = raw.log_in(other);
  EXPECT_EQ(raw.server.gauges().duplicate_keys, 1u);
  auto where = [&] {
    raw.send(sender, k.public_key(), ByteVector(10));
    bool at_first = !raw.read(first).empty(), at_second = !raw.read(second).empty();
    EXPECT_NE(at_first, at_second);
    return at_first ? 1 : 2;
  };
  EXPECT_EQ(where(), 2);
  raw.write(first, unhex(std::string_view("12000000080102030405060708")));
  raw.read(first);
  EXPECT_EQ(where(), 1);
  raw.server.on_close(raw.now, first);
  EXPECT_EQ(raw.server.gauges().duplicate_keys, 0u);
  raw.send(sender, k.public_key(), ByteVector(10));
  EXPECT_EQ(raw.read(second).size(), 1u);
  raw.send(second, other.public_key(), ByteVector(1));
  raw.read(sender);
  ConnId third = raw.log_in(k);
  raw.server.on_close(raw.now, second);
  EXPECT_TRUE(raw.read(sender).empty());  // somebody with that key is still here
  raw.server.on_close(raw.now, third);
  EXPECT_EQ(raw.read(sender).size(), 1u);
}

TEST(RelayServer, SlowReaderIsBoundedThenDropped) {
  Raw raw;
  auto ka = Raw::make_key(2), kb = Raw::make_key(3);
  ConnId a = raw.log_in(ka), b = raw.log_in(kb);
  for (int i = 0; i < 2000; ++i) {
    ByteVector p(1312, 4);
    store_be(p.data(), static_cast<std::uint32_t>(i));
    raw.send(a, kb.public_key(), p);
    raw.send(a, kb.public_key(), disco_packet());
  }
  EXPECT_EQ(raw.server.counters().dropped_queue_full, 2000 - kDataQueuePacketsMax + 2000 - kDiscoQueuePacketsMax);
  ByteVector out(1 << 20);
  std::size_t n = raw.server.produce(raw.now, b, out);
  EXPECT_LE(n, 512u * 1024);
  // The newest got through, in order.
  EXPECT_FALSE(raw.server.has_output(b));
  raw.send(a, kb.public_key(), ByteVector(1312));
  raw.advance(2100ms);
  auto closed = raw.closed();
  ASSERT_EQ(closed.size(), 1u);
  EXPECT_EQ(closed[0].id, b);
  EXPECT_EQ(raw.server.counters().write_timeouts, 1u);
  EXPECT_EQ(raw.server.counters().dropped_gone, 1u);
}

TEST(RelayServer, BigPacketsAreBoundedInBytes) {
  Raw raw;
  auto ka = Raw::make_key(2), kb = Raw::make_key(3);
  ConnId a = raw.log_in(ka), b = raw.log_in(kb);
  for (int i = 0; i < 40; ++i) raw.send(a, kb.public_key(), ByteVector(65536, 1));
  auto got = raw.read(b, 1000);  // smaller than a frame
  EXPECT_EQ(got.size(), kDataQueueBytesMax / (65536 + 37));
  for (auto& f : got) EXPECT_EQ(f.payload.size(), 65568u);
}

TEST(RelayServer, ReaderThatKeepsReadingIsNotDropped) {
  Raw raw;
  auto ka = Raw::make_key(2), kb = Raw::make_key(3);
  ConnId a = raw.log_in(ka), b = raw.log_in(kb);
  ByteVector out(2000);
  for (int i = 0; i < 100; ++i) {
    raw.send(a, kb.public_key(), ByteVector(1312));
    raw.send(a, kb.public_key(), ByteVector(1312));
    raw.server.produce(raw.now, b, out);
    raw.read(a);
    raw.advance(1s);
  }
  EXPECT_TRUE(raw.closed().empty());
  EXPECT_TRUE(raw.server.has_output(b));
}

TEST(RelayServer, LoginDeadlineAndKeepAlive) {
  Raw raw;
  ConnId silent = raw.connect();
  raw.read(silent);
  raw.advance(9900ms);
  EXPECT_TRUE(raw.closed().empty());
  raw.advance(200ms);
  ASSERT_EQ(raw.closed().size(), 1u);
  EXPECT_EQ(raw.server.counters().login_timeouts, 1u);

  ConnId id = raw.log_in(Raw::make_key(2));
  for (int i = 1; i <= 5; ++i) {
    raw.advance(49900ms);
    std::size_t before = raw.server.counters().keepalives;
    for (int k = 0; k < 55 && raw.server.counters().keepalives == before; ++k) raw.advance(100ms);
    auto got = raw.read(id);
    ASSERT_EQ(got.size(), 1u);
    EXPECT_EQ(got[0].type, FrameType::kKeepAlive);
  }
  // A client that says nothing for hours stays.
  EXPECT_TRUE(raw.closed().empty());
}

TEST(RelayServer, AdmissionAtLoginAndRevocation) {
  Raw raw;
  auto ka = Raw::make_key(2), kb = Raw::make_key(3);
  raw.admission.refused = {kb.public_key()};
  ConnId a = raw.log_in(ka);
  ConnId b = raw.connect();
  raw.read(b);
  raw.write(b, raw.login_frame(kb));
  EXPECT_TRUE(raw.read(b).empty());  // refused without a frame
  ASSERT_EQ(raw.closed().size(), 1u);
  raw.admission.refused = {ka.public_key()};
  raw.server.recheck(raw.now);
  auto closed = raw.closed();
  ASSERT_EQ(closed.size(), 1u);
  EXPECT_EQ(closed[0].id, a);
  EXPECT_EQ(raw.server.counters().revoked, 1u);
  // Without being told, within ten minutes.
  raw.admission.refused.clear();
  a = raw.log_in(ka);
  raw.admission.refused = {ka.public_key()};
  for (int i = 0; i < 660; ++i) {
    raw.advance(1s);
    raw.read(a);
  }
  EXPECT_FALSE(raw.server.is_connected(ka.public_key()));
}

TEST(RelayServer, LimitsOfConnections) {
  Raw raw;
  for (std::size_t i = 0; i < kConnectionsPerAddressMax; ++i) ASSERT_NE(raw.connect(), 0u);
  EXPECT_EQ(raw.connect(), 0u);
  for (std::size_t i = kConnectionsPerAddressMax; i < kLoginsPendingMax; ++i) ASSERT_NE(raw.connect("127.0.0.1:5"), 0u);
  EXPECT_EQ(raw.connect("127.0.0.1:5"), 0u);
  raw.advance(11s);
  EXPECT_EQ(raw.server.gauges().connections, 0u);
  EXPECT_NE(raw.connect(), 0u);
  auto k = Raw::make_key(2);
  for (std::size_t i = 0; i < kConnectionsPerKeyMax; ++i) raw.log_in(k, "127.0.0.1:9");
  ConnId one_more = raw.connect("127.0.0.1:9");
  raw.write(one_more, raw.login_frame(k));
  EXPECT_EQ(raw.server.counters().refused_limit, 3u);
}

TEST(RelayHttp, Paths) {
  NodePublic key = Raw::make_key(1).public_key();
  auto ask = [&](std::string_view request) {
    wire::HttpHeadParser p(wire::HttpKind::kRequest);
    EXPECT_TRUE(p.consume(as_bytes(request)).ok());
    EXPECT_TRUE(p.done());
    return answer_relay_request(p, key);
  };
  auto starts = [](const std::optional<RelayHttpAnswer>& a, std::string_view what) { return a && as_text(a->bytes).starts_with(what); };
  EXPECT_TRUE(starts(ask("GET /derp/probe HTTP/1.1\r\n\r\n"), "HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\n"));
  EXPECT_TRUE(starts(ask("HEAD /derp/latency-check?x HTTP/1.1\r\n\r\n"), "HTTP/1.1 200"));
  EXPECT_TRUE(starts(ask("POST /derp/probe HTTP/1.1\r\n\r\n"), "HTTP/1.1 405"));
  EXPECT_TRUE(starts(ask("POST /derp HTTP/1.1\r\nUpgrade: derp\r\n\r\n"), "HTTP/1.1 101"));
  EXPECT_TRUE(starts(ask("GET /derp HTTP/1.1\r\nUpgrade: websocket\r\n\r\n"), "HTTP/1.1 101"));
  EXPECT_TRUE(starts(ask("GET /derp HTTP/1.1\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: derp\r\n\r\n"), "HTTP/1.1 426"));
  EXPECT_TRUE(starts(ask("GET /derp HTTP/1.1\r\n\r\n"), "HTTP/1.1 426"));
  EXPECT_FALSE(ask("GET /derp HTTP/1.1\r\n\r\n")->upgrade);
  EXPECT_TRUE(starts(ask("HEAD /derp HTTP/1.1\r\n\r\n"), "HTTP/1.1 426"));
  EXPECT_TRUE(as_text(ask("HEAD /derp HTTP/1.1\r\n\r\n")->bytes).ends_with("\r\n\r\n"));
  for (const char* request : {"GET /derp HTTP/1.1\r\n\r\n", "POST /derp/probe HTTP/1.1\r\n\r\n",
                              "GET /derp/probe HTTP/1.1\r\n\r\n", "GET /generate_204 HTTP/1.1\r\n\r\n"}) {
    auto answer = ask(request);
    EXPECT_EQ(answer->close, as_text(answer->bytes).find("Connection: close") != std::string_view::npos) << request;
  }
  EXPECT_FALSE(ask("GET / HTTP/1.1\r\n\r\n"));
  auto plain = ask("GET /generate_204 HTTP/1.1\r\n\r\n");
  EXPECT_TRUE(starts(plain, "HTTP/1.1 204"));
  EXPECT_EQ(as_text(plain->bytes).find("X-Tailscale-Response"), std::string::npos);
  auto challenged = ask("GET /generate_204?t=1 HTTP/1.1\r\nX-Tailscale-Challenge: ts_192.0.2.1\r\n\r\n");
  EXPECT_NE(as_text(challenged->bytes).find("X-Tailscale-Response: response ts_192.0.2.1\r\n"), std::string::npos);
  auto bad = ask("GET /generate_204 HTTP/1.1\r\nX-Tailscale-Challenge: a<b\r\n\r\n");
  EXPECT_EQ(as_text(bad->bytes).find("X-Tailscale-Response"), std::string::npos);
}

TEST(RelayHostile, RandomBytesAfterLogin) {
  SeededRng rng(31);
  boost::json::value vectors = test::load_vectors("derp.json");
  Raw raw;
  auto kb = Raw::make_key(3);
  ConnId b = raw.log_in(kb);
  for (int round = 0; round < 500; ++round) {
    auto ka = Raw::make_key(100 + rng.below(3));
    ConnId a = raw.connect("127.0.0.1:3");
    ByteVector bytes = raw.login_frame(ka);
    for (std::uint64_t k = rng.below(10); k > 0; --k) {
      const auto& all = vectors.at("frames").as_array();
      append(bytes, unhex(all[rng.below(all.size())].at("frame")));
    }
    for (std::uint64_t k = rng.below(3); k > 0; --k) bytes[rng.below(bytes.size())] ^= static_cast<std::uint8_t>(1 << rng.below(8));
    raw.write(a, bytes, 1 + rng.below(50));
    raw.closed();
    if (rng.below(2)) raw.server.on_close(raw.now, a);
    raw.read(b);
    raw.advance(Duration(static_cast<std::int64_t>(rng.below(3'000'000'000))));
  }
  // The server still works.
  auto kc = Raw::make_key(4);
  ConnId c = raw.log_in(kc, "127.0.0.1:4");
  raw.send(c, kc.public_key(), ByteVector(5));
  auto got = raw.read(c);
  ASSERT_EQ(got.size(), 1u);
  EXPECT_EQ(got[0].type, FrameType::kRecvPacket);
}

}  // namespace
}  // namespace porthole::relay
