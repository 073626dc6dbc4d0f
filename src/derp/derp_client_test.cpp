#include "derp/derp_client.h"

#include <gtest/gtest.h>
#include <sodium.h>

#include "crypto/hash.h"
#include "derp/login.h"
#include "derp/meta_cert.h"
#include "support/vectors.h"

namespace porthole::derp {
namespace {

namespace frames = wire::derp;
using test::load_capture;
using test::load_vectors;
using test::text;
using test::unhex;

// Gives the nonces of the vector file; everything else comes from a seed.
class NonceRng final : public Rng {
 public:
  void fill(MutBytes out) override {
    if (out.size() == frames::kNonceSize)
      for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<std::uint8_t>(0xa0 + i);
    else
      seeded_.fill(out);
  }

 private:
  SeededRng seeded_{5};
};

ts2021::RelayMap one_region(std::vector<std::string> hosts, int id = 1) {
  ts2021::RelayMap map;
  ts2021::RelayRegion region;
  region.region_id = id;
  region.region_code = "lab";
  for (auto& host : hosts) {
    ts2021::RelayNode node;
    node.name = std::to_string(id) + static_cast<char>('a' + region.nodes.size());
    node.host_name = host;
    region.nodes.push_back(node);
  }
  map.regions[id] = region;
  return map;
}

// One client, its stream played by the test.
struct Scripted : DerpHost {
  boost::json::value vectors = load_vectors("derp.json");
  NonceRng rng;
  DerpClient client{{100, false}, *this, rng, Log::none()};
  Instant now = Instant::from_ns(1'000'000'000);
  StreamId stream = 0;
  OpenStream opened;
  std::vector<std::pair<NodePublic, ByteVector>> packets;

  Scripted() {
    client.set_key(now, crypto::NodePrivate::from_bytes(unhex(vectors.at("keys").at("client").at("private"))));
    client.set_map(now, one_region({"derp.example.com"}));
    client.set_home(now, 1);
    next_stream();
  }
  void relay_packet(Instant, int, const NodePublic& source, MutBytes data) override { packets.emplace_back(source, to_vector(data)); }

  // The next OpenStream; CloseStream actions before it are counted.
  int closes = 0;
  bool next_stream() {
    while (auto action = client.poll_action()) {
      if (auto* open = std::get_if<OpenStream>(&*action)) {
        opened = *open;
        stream = open->id;
        return true;
      }
      ++closes;
    }
    return false;
  }
  ByteVector produce() {
    ByteVector out(70000);
    out.resize(client.produce(now, stream, out));
    return out;
  }
  void feed(Bytes bytes, std::size_t slice = 100000) {
    ByteVector copy = to_vector(bytes);
    for (std::size_t at = 0; at < copy.size(); at += slice) {
      MutBytes part = MutBytes(copy).subspan(at);
      ASSERT_TRUE(client.consume(now, stream, part.first(std::min(slice, part.size()))).ok());
    }
  }
  void open(bool with_meta_cert = false) {
    StreamInfo info;
    info.local = *Endpoint::parse("10.0.0.2:9");
    if (with_meta_cert) {
      info.tls13 = true;
      info.certificates = {ByteVector{0x30, 0x00}, unhex(vectors.at("metacert").at("der"))};
    }
    client.stream_opened(now, stream, info);
  }
  const boost::json::array& steps(std::string_view name) {
    for (const auto& t : vectors.at("transcripts").as_array())
      if (text(t.at("name")) == name) return t.at("steps").as_array();
    PORTHOLE_ASSERT(!"no such transcript");
  }
  ByteVector frame(std::string_view name) {
    for (const auto& f : vectors.at("frames").as_array())
      if (text(f.at("name")) == name) return unhex(f.at("frame"));
    PORTHOLE_ASSERT(!"no such frame");
  }
  NodePublic peer() { return NodePublic::from_bytes(unhex(vectors.at("keys").at("peer").at("public"))); }
  void log_in() {
    open();
    produce();
    feed(unhex(steps("normal")[1].at(1)));
    produce();
    feed(frame("server_info_basic"));
    ASSERT_EQ(client.status(1).state, RegionState::kConnected);
  }
};

TEST(DerpClient, NormalTranscriptInAnySlice) {
  for (std::size_t slice : {1u, 7u, 100000u}) {
    Scripted s;
    EXPECT_EQ(s.opened.host, "derp.example.com");
    EXPECT_EQ(s.opened.port, 443);
    EXPECT_EQ(s.opened.tls, TlsMode::kVerify);
    const auto& steps = s.steps("normal");
    s.open();
    std::string request(as_text(s.produce()));
    EXPECT_TRUE(request.starts_with("GET /derp HTTP/1.1\r\nHost: derp.example.com\r\n")) << request;
    EXPECT_NE(request.find("Upgrade: DERP\r\n"), std::string::npos);
    EXPECT_EQ(request.find("Fast-Start"), std::string::npos);
    EXPECT_FALSE(s.client.is_open(1));
    s.feed(unhex(steps[1].at(1)), slice);
    EXPECT_TRUE(s.client.is_open(1));
    EXPECT_EQ(to_hex(s.produce()), text(steps[2].at(1)));
    s.feed(unhex(steps[3].at(1)), slice);
    EXPECT_EQ(s.client.status(1).state, RegionState::kConnected);
    ByteVector packet = unhex(steps[4].at(1));
    s.client.send(s.now, 1, s.peer(), Bytes(packet).subspan(frames::kPacketHeadSize));
    EXPECT_EQ(to_hex(s.produce()), text(steps[4].at(1)));
    EXPECT_FALSE(s.client.has_output(s.stream));
    s.feed(s.frame("recv_packet"), slice);
    ASSERT_EQ(s.packets.size(), 1u);
    EXPECT_EQ(to_hex(s.packets[0].second), to_hex(Bytes(s.frame("recv_packet")).subspan(frames::kPacketHeadSize)));
  }
}

TEST(DerpClient, FastStartTranscriptInAnySlice) {
  for (std::size_t slice : {1u, 7u, 100000u}) {
    Scripted s;
    const auto& steps = s.steps("fast_start");
    s.open(true);
    // Login and home flag do not wait for anything, packets neither.
    std::string first = to_hex(s.produce());
    std::string theirs(text(steps[0].at(1)));
    std::string login = theirs.substr(theirs.find("0d0a0d0a") + 8);
    EXPECT_TRUE(first.ends_with("0d0a0d0a" + login + std::string(text(steps[1].at(1)))));
    EXPECT_NE(as_text(unhex(std::string_view(first))).find("Derp-Fast-Start: 1\r\n"), std::string::npos);
    s.feed(unhex(steps[2].at(1)), slice);
    s.feed(unhex(steps[3].at(1)), slice);
    EXPECT_EQ(s.client.status(1).state, RegionState::kConnected);
    EXPECT_TRUE(s.client.status(1).fast_start);
  }
}

// Requests by their meaning: ours name another User-Agent and order their headers as they like.
void expect_same_request(Bytes ours, std::string_view listed) {
  wire::HttpHeadParser a(wire::HttpKind::kRequest), b(wire::HttpKind::kRequest);
  ASSERT_TRUE(a.consume(ours).ok() && b.consume(as_bytes(listed)).ok());
  ASSERT_TRUE(a.done() && b.done());
  EXPECT_EQ(a.method(), b.method());
  EXPECT_EQ(a.target(), b.target());
  EXPECT_EQ(a.minor_version(), b.minor_version());
  EXPECT_EQ(a.header_count(), b.header_count());
  for (std::size_t i = 0; i < b.header_count(); ++i) {
    const wire::HttpHeader h = b.header_at(i);
    if (h.name == "User-Agent") EXPECT_TRUE(a.header(h.name));
    else EXPECT_EQ(a.header(h.name), h.value) << h.name;
  }
}

TEST(DerpClient, RequestsSayWhatTheListedOnesSay) {
  const boost::json::value vectors = load_vectors("derp.json");
  const auto& http = vectors.at("http");
  Scripted plain;
  plain.open();
  expect_same_request(plain.produce(), text(http.at("request")));
  Scripted fast;
  fast.open(true);
  expect_same_request(fast.produce(), text(http.at("request_fast_start")));

  // The second node of a region, after the first could not be reached: "1a" is the one we would rather use.
  Scripted second;
  second.client.set_map(second.now, one_region({"first.example.com", "derp.example.com"}));
  ASSERT_TRUE(second.next_stream());
  ASSERT_EQ(second.opened.host, "first.example.com");
  second.client.stream_failed(second.now, second.stream, Error{ErrorCode::kUnavailable, "no route"});
  ASSERT_TRUE(second.next_stream());
  ASSERT_EQ(second.opened.host, "derp.example.com");
  second.open();
  expect_same_request(second.produce(), text(http.at("request_not_ideal")));
}

// Relays name their key in a header too, Headscale with its prefix. The key that counts is the one in the stream.
TEST(DerpClient, AnswersOfBothKindsOfRelaysAreTaken) {
  for (const char* kind : {"answer_tailscale", "answer_headscale"}) {
    SCOPED_TRACE(kind);
    for (std::size_t slice : {1u, 7u, 100000u}) {
      Scripted s;
      s.open();
      s.produce();
      s.feed(as_bytes(text(s.vectors.at("http").at(kind))), slice);
      EXPECT_FALSE(s.client.is_open(1)) << "before the relay's key";
      s.feed(s.frame("server_key"), slice);
      EXPECT_TRUE(s.client.is_open(1));
      EXPECT_EQ(to_hex(s.produce()), text(s.steps("normal")[2].at(1)));
    }
  }
}

TEST(DerpClient, FastStartRefusedIsRetriedOnceWithout) {
  Scripted s;
  s.open(true);
  s.produce();
  s.feed(as_bytes("HTTP/1.1 101 Switching Protocols\r\n"));
  ASSERT_TRUE(s.next_stream());
  EXPECT_EQ(s.closes, 1);
  s.open(true);
  EXPECT_EQ(as_text(s.produce()).find("Fast-Start"), std::string::npos);
  s.feed(unhex(s.steps("normal")[1].at(1)));
  EXPECT_TRUE(s.client.is_open(1));
}

TEST(DerpClient, FastStartWithAnotherKeyInTheStreamFails) {
  Scripted s;
  s.open(true);
  s.produce();
  ByteVector key;
  frames::encode_server_key(key, s.peer());
  s.feed(key);
  s.next_stream();
  EXPECT_EQ(s.closes, 1);
  EXPECT_EQ(s.client.status(1).state, RegionState::kWaiting);
  EXPECT_NE(s.client.status(1).last_error->message.find("certificate"), std::string::npos);
}

TEST(DerpClient, RejectVectors) {
  boost::json::value vectors = load_vectors("derp.json");
  int checked = 0;
  for (const auto& r : vectors.at("reject").as_array()) {
    if (text(r.at("side")) != "client") continue;
    std::string name(text(r.at("name")));
    SCOPED_TRACE(name);
    ByteVector bytes = unhex(r.at(r.as_object().contains("bytes") ? "bytes" : "head"));
    bool skip = text(r.at("expect")).starts_with("skip");
    for (std::size_t slice : {1u, 3u, 1000u}) {
      Scripted s;
      if (name.starts_with("server_key")) {
        s.open();
        s.produce();
        s.feed(as_bytes("HTTP/1.1 101 Switching Protocols\r\n\r\n"));
      } else {
        s.log_in();
      }
      s.feed(bytes, slice);
      s.next_stream();
      EXPECT_EQ(s.closes, skip ? 0 : 1);
      EXPECT_EQ(s.client.is_open(1), skip);
      if (skip) {
        EXPECT_EQ(s.client.counters().frames_skipped, 1u);
        s.feed(s.frame("recv_packet"));
        EXPECT_EQ(s.packets.size(), 1u);
      }
    }
    ++checked;
  }
  EXPECT_EQ(checked, 7);
}

TEST(DerpClient, EveryServerFrameKeepsTheConnection) {
  for (std::size_t slice : {1u, 7u, 100000u}) {
    Scripted s;
    s.log_in();
    for (const auto& f : s.vectors.at("frames").as_array()) {
      std::string_view direction = text(f.at("direction"));
      if (direction != "s2c" && direction != "both") continue;
      s.feed(unhex(f.at("frame")), slice);
      EXPECT_EQ(s.client.status(1).state, RegionState::kConnected) << text(f.at("name"));
    }
    EXPECT_TRUE(to_hex(s.produce()).ends_with(to_hex(s.frame("pong"))));
    EXPECT_EQ(s.packets.size(), 1u);
    int gone = 0, health = 0, restarting = 0;
    while (auto e = s.client.poll_event()) {
      gone += std::holds_alternative<PeerGone>(*e);
      health += std::holds_alternative<Health>(*e);
      restarting += std::holds_alternative<Restarting>(*e);
    }
    EXPECT_EQ(gone, 3);
    EXPECT_EQ(health, 2);
    EXPECT_EQ(restarting, 1);
  }
}

TEST(DerpClient, HttpRefusalIsTold) {
  Scripted s;
  s.open();
  s.produce();
  s.feed(as_bytes("HTTP/1.1 426 Upgrade Required\r\nContent-Length: 17\r\n\r\nproxy in the way\n"));
  EXPECT_EQ(s.client.status(1).state, RegionState::kWaiting);
  EXPECT_NE(s.client.status(1).last_error->message.find("426: proxy in the way; a proxy in front of it does not pass the upgrade (nginx: "), std::string::npos);
  Scripted until_close;
  until_close.open();
  until_close.produce();
  until_close.feed(as_bytes("HTTP/1.1 502 Bad Gateway\r\n\r\nno upstream"));
  EXPECT_EQ(until_close.client.status(1).state, RegionState::kConnecting);
  until_close.client.stream_closed(until_close.now, until_close.stream, nullptr);
  EXPECT_NE(until_close.client.status(1).last_error->message.find("502: no upstream; the relay behind that proxy does not run"), std::string::npos);
  Scripted endless;
  endless.open();
  endless.produce();
  endless.feed(as_bytes("HTTP/1.1 500 Oops\r\n\r\n" + std::string(5000, 'x')));
  EXPECT_EQ(endless.client.status(1).state, RegionState::kWaiting);
  Scripted no_http;
  no_http.open();
  no_http.produce();
  no_http.feed(as_bytes("SSH-2.0-OpenSSH_9.2p1\r\n"));
  EXPECT_EQ(no_http.client.status(1).state, RegionState::kWaiting);
}

TEST(DerpClient, ForgedServerInfoFailsTheLogin) {
  Scripted s;
  s.open();
  s.produce();
  s.feed(unhex(s.steps("normal")[1].at(1)));
  ByteVector info = s.frame("server_info_basic");
  info.back() ^= 1;
  s.feed(info);
  EXPECT_EQ(s.client.status(1).state, RegionState::kWaiting);
}

TEST(DerpClient, TokenBucketOfTheRelayIsKept) {
  Scripted s;
  s.open();
  s.produce();
  s.feed(unhex(s.steps("normal")[1].at(1)));
  s.produce();
  s.feed(s.frame("server_info_token_bucket"));  // 1,250,000 a second, burst 131,136
  ByteVector packet(1400);
  int queued = 0;
  for (int i = 0; i < 200; ++i) {
    queued += s.client.send(s.now, 1, s.peer(), packet) == SendResult::kQueued;
    s.produce();
  }
  EXPECT_EQ(queued, 131136 / 1437);
  s.now = s.now + 1s;
  EXPECT_EQ(s.client.send(s.now, 1, s.peer(), packet), SendResult::kQueued);
}

TEST(DerpClient, QueueForgetsTheOldest) {
  Scripted s;
  for (std::size_t i = 0; i < kSendQueuePacketsMax + 10; ++i) {
    ByteVector packet(4);
    store_be(packet.data(), static_cast<std::uint32_t>(i));
    SendResult r = s.client.send(s.now, 1, s.peer(), packet);
    EXPECT_EQ(r, i < kSendQueuePacketsMax ? SendResult::kQueued : SendResult::kDroppedOldest);
  }
  EXPECT_EQ(s.client.counters().dropped_oldest, 10u);
  EXPECT_EQ(s.client.send(s.now, 1, s.peer(), ByteVector(65537)), SendResult::kTooBig);
  EXPECT_EQ(s.client.send(s.now, 2, s.peer(), {}), SendResult::kUnknownRegion);
  s.open();
  s.produce();
  s.feed(unhex(s.steps("normal")[1].at(1)));
  ByteVector out = s.produce();
  std::size_t login = frames::kHeaderSize + 104 + 6;
  EXPECT_EQ(load_be<std::uint32_t>(out.data() + login + frames::kPacketHeadSize), 10u);
}

TEST(DerpClient, CongestedOnlyWhileTheQueueIsFullAndDraining) {
  Scripted s;
  s.log_in();
  for (std::size_t i = 0; i < kSendQueueCongested; ++i) {
    EXPECT_FALSE(s.client.congested(s.now));
    s.client.send(s.now, 1, s.peer(), ByteVector(10));
  }
  EXPECT_TRUE(s.client.congested(s.now));
  EXPECT_FALSE(s.client.congested(s.now + kStallIgnored));
  s.produce();
  EXPECT_FALSE(s.client.congested(s.now));
}

TEST(DerpClient, SmallWriteBuffersCutFramesWithoutHarm) {
  Scripted s;
  s.log_in();
  ByteVector expected;
  SeededRng rng(9);
  for (int i = 0; i < 20; ++i) {
    ByteVector packet(rng.below(3000));
    rng.fill(packet);
    s.client.send(s.now, 1, s.peer(), packet);
    std::uint8_t head[frames::kPacketHeadSize];
    frames::store_packet_head(head, frames::FrameType::kSendPacket, s.peer(), packet.size());
    append(expected, head);
    append(expected, packet);
  }
  ByteVector got;
  while (s.client.has_output(s.stream)) {
    ByteVector out(1 + rng.below(1500));
    out.resize(s.client.produce(s.now, s.stream, out));
    ASSERT_FALSE(out.empty());
    append(got, out);
  }
  EXPECT_EQ(got, expected);
}

TEST(DerpClient, PacketsStayValidUntilConsumeReturns) {
  // Frames that a read cut in two live in memory of the client; the host may still collect all of a call.
  struct Collector final : DerpHost {
    std::vector<MutBytes> spans;
    void relay_packet(Instant, int, const NodePublic&, MutBytes data) override { spans.push_back(data); }
  } host;
  Scripted s;
  DerpClient client({1, false}, host, s.rng, Log::none());
  client.set_key(s.now, crypto::NodePrivate::from_bytes(unhex(s.vectors.at("keys").at("client").at("private"))));
  client.set_map(s.now, one_region({"a"}));
  client.set_home(s.now, 1);
  StreamId id = std::get<OpenStream>(*client.poll_action()).id;
  client.stream_opened(s.now, id, {});
  ByteVector buffer = unhex(s.steps("normal")[1].at(1));
  ASSERT_TRUE(client.consume(s.now, id, buffer).ok());
  ByteVector stream;
  for (int i = 0; i < 6; ++i) append(stream, s.frame("recv_packet"));
  append(stream, s.frame("keep_alive"));
  append(stream, unhex(std::string_view("4854545020")));  // and then the stream turns to garbage: the connection is dropped
  std::size_t half = frames::kPacketHeadSize + 5;
  ASSERT_TRUE(client.consume(s.now, id, MutBytes(stream).first(half)).ok());
  ASSERT_TRUE(client.consume(s.now, id, MutBytes(stream).subspan(half)).ok());
  EXPECT_FALSE(client.is_open(1));
  ASSERT_EQ(host.spans.size(), 6u);
  for (MutBytes span : host.spans) EXPECT_EQ(to_hex(span), to_hex(Bytes(s.frame("recv_packet")).subspan(frames::kPacketHeadSize)));
}

TEST(DerpClient, NodeFieldsDecideHowToDial) {
  auto dial = [](auto change) -> std::optional<OpenStream> {
    Scripted s;
    ts2021::RelayMap map = one_region({"relay.example"}, 2);
    change(map.regions[2].nodes[0]);
    s.client.set_map(s.now, map);
    s.client.set_home(s.now, 2);
    s.closes = 0;
    if (!s.next_stream()) return std::nullopt;
    return s.opened;
  };
  using Node = ts2021::RelayNode;
  auto plain = dial([](Node&) {});
  EXPECT_TRUE(plain->addresses.empty());
  EXPECT_EQ(plain->tls, TlsMode::kVerify);
  auto literal = dial([](Node& n) { n.ipv4 = "192.0.2.10"; n.ipv6 = "none"; n.derp_port = 8443; });
  ASSERT_EQ(literal->addresses.size(), 1u);
  EXPECT_EQ(literal->addresses[0].to_string(), "192.0.2.10");
  EXPECT_EQ(literal->port, 8443);
  EXPECT_FALSE(dial([](Node& n) { n.ipv4 = "none"; n.ipv6 = "192.0.2.1"; }));
  EXPECT_FALSE(dial([](Node& n) { n.stun_only = true; }));
  EXPECT_FALSE(dial([](Node& n) { n.host_name = "192.0.2.1"; n.ipv4 = "none"; }));
  EXPECT_EQ(dial([](Node& n) { n.host_name = "192.0.2.1"; n.ipv6 = "none"; })->addresses[0].to_string(), "192.0.2.1");
  EXPECT_FALSE(dial([](Node& n) { n.derp_port = 70000; }));
  EXPECT_FALSE(dial([](Node& n) { n.cert_name = "sha256-raw:zz"; }));
  EXPECT_EQ(dial([](Node& n) { n.cert_name = "front.example"; })->certificate_name, "front.example");
  EXPECT_EQ(dial([](Node& n) { n.insecure_for_tests = true; })->tls, TlsMode::kInsecure);
  EXPECT_EQ(dial([](Node& n) { n.insecure_for_tests = true; n.cert_name = "front.example"; })->tls, TlsMode::kVerify);
  EXPECT_FALSE(dial([](Node& n) { n.host_name = ""; }));

  boost::json::value vectors = load_vectors("derp.json");
  const auto& pin = vectors.at("cert_pin").as_object();
  auto pinned = dial([&](Node& n) { n.host_name = text(pin.at("host_name")); n.cert_name = text(pin.at("cert_name")); n.insecure_for_tests = true; });
  EXPECT_EQ(pinned->tls, TlsMode::kPinned);
  EXPECT_EQ(to_hex(pinned->pin), to_hex(crypto::sha256(unhex(pin.at("der")))));
}

TEST(DerpClient, HostHeaderCarriesOddPortsAndForgedNamesDoNotGetOut) {
  Scripted s;
  ts2021::RelayMap map = one_region({"10.98.0.1"}, 1);
  map.regions[1].nodes[0].derp_port = 8444;
  s.client.set_map(s.now, map);
  ASSERT_TRUE(s.next_stream());
  s.open();
  EXPECT_NE(as_text(s.produce()).find("Host: 10.98.0.1:8444\r\n"), std::string::npos);
  map.regions[1].nodes[0].host_name = "a\r\nX: y";
  s.client.set_map(s.now, map);
  ASSERT_TRUE(s.next_stream());
  s.open();
  EXPECT_TRUE(s.produce().empty());
  EXPECT_EQ(s.client.status(1).state, RegionState::kWaiting);
}

TEST(DerpLogin, BoxVectors) {
  boost::json::value vectors = load_vectors("derp.json");
  const auto& keys = vectors.at("keys");
  ByteVector client_private = unhex(keys.at("client").at("private")), server_private = unhex(keys.at("server").at("private"));
  ByteVector client_public = unhex(keys.at("client").at("public")), server_public = unhex(keys.at("server").at("public"));
  auto ours = crypto::BoxKey::make(client_private, server_public);
  auto theirs = crypto::BoxKey::make(server_private, client_public);
  ASSERT_TRUE(ours && theirs);
  for (const auto& f : vectors.at("frames").as_array()) {
    if (!f.as_object().contains("box")) continue;
    SCOPED_TRACE(std::string(text(f.at("name"))));
    ByteVector nonce = unhex(f.at("nonce")), box = unhex(f.at("box"));
    ByteVector plain(box.size() - 16);
    for (const crypto::BoxKey* key : {&*ours, &*theirs}) {
      ASSERT_TRUE(key->open(nonce, box, plain));
      EXPECT_EQ(as_text(plain), text(f.at("json")));
      ByteVector sealed(box.size());
      key->seal(nonce, plain, sealed);
      EXPECT_EQ(sealed, box);
    }
  }
  EXPECT_FALSE(crypto::BoxKey::make(client_private, ByteVector(32)));
}

// The key of the boxes stays inside BoxKey; what libsodium seals under the listed key, and nothing else, shows that it is
// the same.
TEST(DerpLogin, PrecomputedKeysOfTheVectors) {
  boost::json::value vectors = load_vectors("derp.json");
  const auto& keys = vectors.at("keys");
  for (const bool client_side : {true, false}) {
    const char* ours = client_side ? "client" : "server";
    const char* theirs = client_side ? "server" : "client";
    const ByteVector listed = unhex(vectors.at("box").at(std::string("precomputed_") + ours + "_" + theirs));
    ASSERT_EQ(listed.size(), std::size_t{crypto_secretbox_KEYBYTES});
    const auto key = crypto::BoxKey::make(unhex(keys.at(ours).at("private")), unhex(keys.at(theirs).at("public")));
    ASSERT_TRUE(key);
    const ByteVector nonce(crypto::BoxKey::kNonceSize, 5), plain = to_vector(as_bytes("which key?"));
    ByteVector reference(plain.size() + crypto::BoxKey::kTagSize), sealed(reference.size()), opened(plain.size());
    crypto_secretbox_easy(reference.data(), plain.data(), plain.size(), nonce.data(), listed.data());
    key->seal(nonce, plain, sealed);
    EXPECT_EQ(to_hex(sealed), to_hex(reference));
    ASSERT_TRUE(key->open(nonce, reference, opened));
    EXPECT_EQ(opened, plain);
  }
}

TEST(DerpLogin, NumbersOfTheServerInfoAreWhatTheyAre) {
  SeededRng rng(1);
  auto relay_key = crypto::NodePrivate::generate(rng), node_key = crypto::NodePrivate::generate(rng);
  auto box = crypto::BoxKey::make(node_key.reveal(), relay_key.public_key().bytes());
  ASSERT_TRUE(box);
  auto opened = [&](std::string_view json) {
    ByteVector payload(crypto::BoxKey::kNonceSize), sealed(json.size() + crypto::BoxKey::kTagSize);
    box->seal(payload, as_bytes(json), sealed);
    append(payload, sealed);
    return open_server_info(payload, *box).value();
  };
  EXPECT_EQ(opened(R"({"version":4294967298})").version, 4'294'967'298u);  // not 2
  EXPECT_EQ(opened(R"({"version":18446744073709551615})").version, 18'446'744'073'709'551'615u);
  for (std::string_view none : {"{}", R"({"version":-1})", R"({"version":"2"})", R"({"version":1e300})"})
    EXPECT_EQ(opened(none).version, 0u) << none;
}

TEST(DerpLogin, ServerInfoOfRealRelaysOpens) {
  boost::json::value capture = load_capture("derp-sessions.json");
  const auto& keys = capture.at("keys");
  int opened = 0;
  for (const auto& session : capture.at("sessions").as_array()) {
    bool headscale = text(session.at("relay")) == "headscale";
    auto relay_key = crypto::NodePrivate::parse(text(keys.at(headscale ? "headscale_relay_private" : "derper_private")));
    auto relay_public = NodePublic::parse(text(keys.at(headscale ? "headscale_relay_public" : "derper_public")));
    ASSERT_TRUE(relay_key && relay_public);
    EXPECT_EQ(relay_key->public_key(), *relay_public);
    ByteVector client_public = unhex(session.at("client_frames").at(0).at("client_public"));
    auto box = crypto::BoxKey::make(relay_key->reveal(), client_public);
    ASSERT_TRUE(box);
    for (const auto& f : session.at("server_frames").as_array()) {
      ByteVector frame = unhex(f.at("frame"));
      auto header = frames::load_frame_header(frame.data());
      EXPECT_TRUE(frames::client_accepts(header));
      MutBytes payload = MutBytes(frame).subspan(frames::kHeaderSize);
      ASSERT_EQ(payload.size(), header.size);
      if (header.is(frames::FrameType::kServerKey)) {
        EXPECT_EQ(frames::parse_server_key(payload), relay_public);
      } else if (header.is(frames::FrameType::kServerInfo)) {
        auto info = open_server_info(payload, *box);
        ASSERT_TRUE(info.ok());
        EXPECT_EQ(info->version, 2u);
        EXPECT_EQ(info->bytes_per_second, 0u);
        ++opened;
      } else if (header.is(frames::FrameType::kRecvPacket)) {
        EXPECT_TRUE(frames::looks_like_disco(frames::parse_packet(payload)->data));
      }
    }
    std::string head(text(session.at("server_head")));
    if (!head.empty()) {
      wire::HttpHeadParser p(wire::HttpKind::kResponse);
      ASSERT_TRUE(p.consume(as_bytes(head)).ok());
      EXPECT_EQ(p.status(), 101);
      EXPECT_EQ(p.body(), wire::HttpBody::kNone);
    }
  }
  EXPECT_EQ(opened, 6);
  ByteVector real = unhex(keys.at("derper_metacert_der"));
  EXPECT_EQ(find_meta_cert(std::vector<ByteVector>{real}), NodePublic::parse(text(keys.at("derper_public"))));
}

TEST(DerpMetaCert, VectorAndHostileBytes) {
  boost::json::value vectors = load_vectors("derp.json");
  ByteVector der = unhex(vectors.at("metacert").at("der"));
  auto names = parse_certificate_names(der);
  ASSERT_TRUE(names);
  EXPECT_EQ(names->common_name, text(vectors.at("metacert").at("common_name")));
  EXPECT_EQ(names->serial, test::u64(vectors.at("metacert").at("serial")));
  EXPECT_EQ(names->serial, test::u64(vectors.at("metacert").at("protocol_version")));
  EXPECT_FALSE(find_meta_cert(std::vector<ByteVector>{unhex(vectors.at("cert_pin").at("der"))}));
  EXPECT_FALSE(find_meta_cert({}));
  for (std::size_t n = 0; n < der.size(); ++n) {
    EXPECT_FALSE(parse_certificate_names(Bytes(der).first(n)));
    for (int bit = 0; bit < 8; ++bit) {
      ByteVector flipped = der;
      flipped[n] ^= static_cast<std::uint8_t>(1 << bit);
      (void)parse_certificate_names(flipped);  // must stay inside the buffer (sanitizers watch)
    }
  }
}

TEST(DerpHostile, RandomFramesNeverBreakTheMachine) {
  SeededRng rng(21);
  Scripted seed;
  for (int round = 0; round < 300; ++round) {
    Scripted s;
    s.log_in();
    ByteVector bytes;
    for (std::uint64_t k = rng.below(20); k > 0; --k) {
      const auto& all = seed.vectors.at("frames").as_array();
      append(bytes, unhex(all[rng.below(all.size())].at("frame")));
    }
    for (std::uint64_t k = rng.below(4); k > 0 && !bytes.empty(); --k) bytes[rng.below(bytes.size())] ^= static_cast<std::uint8_t>(1 << rng.below(8));
    s.feed(bytes, 1 + rng.below(100));
    // However it ended, time heals: the client is connected or tries again.
    RegionState state = s.client.status(1).state;
    EXPECT_TRUE(state == RegionState::kConnected || state == RegionState::kWaiting);
    EXPECT_FALSE(s.client.next_timeout().is_never());
  }
}

}  // namespace
}  // namespace porthole::derp
