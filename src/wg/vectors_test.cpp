// Every entry of wireguard.json, against the parts and against whole tunnels.
#include <gtest/gtest.h>

#include "crypto/aead.h"
#include "crypto/dh.h"
#include "support/vectors.h"
#include "wg/cookie.h"
#include "wg/noise.h"
#include "wg/replay.h"
#include "wg/test_world.h"
#include "wg/tunnel_impl.h"

namespace porthole::wg {
namespace {

using porthole::test::text;
using porthole::test::u64;
using porthole::test::unhex;
namespace json = boost::json;

const json::value& vectors() {
  static const json::value doc = porthole::test::load_vectors("wireguard.json");
  return doc;
}

crypto::NodePrivate private_key(const json::value& v) { return crypto::NodePrivate::from_bytes(unhex(v)); }

struct Parties {
  Identity initiator, responder;
  PeerKeys to_responder, to_initiator;
  explicit Parties(const json::value& in)
      : initiator(Identity::of(private_key(in.at("initiator_static_private")))),
        responder(Identity::of(private_key(in.at("responder_static_private")))),
        to_responder(PeerKeys::of(initiator, responder.shown, unhex(in.at("preshared_key")))),
        to_initiator(PeerKeys::of(responder, initiator.shown, unhex(in.at("preshared_key")))) {}
};

WallTime wall_of(const json::value& in) {
  return WallTime::from_unix_ns(static_cast<std::int64_t>(u64(in.at("unix_seconds")) * 1'000'000'000 +
                                                          u64(in.at("unix_nanoseconds"))));
}

TEST(WgVectors, Constants) {
  const auto& c = vectors().at("constants");
  EXPECT_EQ(text(c.at("construction")), kConstruction);
  EXPECT_EQ(text(c.at("identifier")), kIdentifier);
  EXPECT_EQ(text(c.at("label_mac1")), kLabelMac1);
  EXPECT_EQ(text(c.at("label_cookie")), kLabelCookie);
  const crypto::Hash32 ck = crypto::blake2s(as_bytes(kConstruction));
  EXPECT_EQ(to_hex(ck), text(c.at("initial_chaining_key")));
  EXPECT_EQ(to_hex(crypto::blake2s(ck, as_bytes(kIdentifier))), text(c.at("initial_hash")));
}

TEST(WgVectors, Tai64n) {
  std::size_t n = 0;
  for (const auto& v : vectors().at("tai64n").as_array()) {
    const auto wall = WallTime::from_unix_ns(
        static_cast<std::int64_t>(u64(v.at("unix_seconds")) * 1'000'000'000 + u64(v.at("nanoseconds"))));
    const Tai64n stamp = Tai64n::from_wall(wall);
    EXPECT_EQ(to_hex(stamp.bytes()), text(v.at("bytes")));
    EXPECT_GT(stamp.next(), stamp);
    EXPECT_LE(stamp.next(), Tai64n::from_wall(wall + 1s + 17ms));
    EXPECT_EQ(Tai64n::from_bytes(stamp.bytes()), stamp);
    ++n;
  }
  EXPECT_EQ(n, 7u);
  Tai64n s = Tai64n::from_wall(WallTime::from_unix_s(5));
  for (int i = 0; i < 1000; ++i) {
    ASSERT_GT(s.next(), s);
    s = s.next();
    ASSERT_LT(load_be<std::uint32_t>(s.bytes().data() + 8), 1'000'000'000u);
    ASSERT_EQ(load_be<std::uint32_t>(s.bytes().data() + 8) & 0xffffff, 0u);
  }
  EXPECT_GT(s.plus_seconds(60), s);
}

TEST(WgVectors, HandshakesByParts) {
  std::size_t n = 0;
  for (const auto& h : vectors().at("handshakes").as_array()) {
    SCOPED_TRACE(std::string(text(h.at("name"))));
    const auto& in = h.at("inputs");
    Parties p(in);
    EXPECT_EQ(to_hex(p.initiator.shown.bytes()), text(in.at("initiator_static_public")));
    EXPECT_EQ(to_hex(p.responder.shown.bytes()), text(in.at("responder_static_public")));
    EXPECT_EQ(to_hex(p.to_responder.static_static.reveal()), text(h.at("static_static_dh")));
    EXPECT_EQ(to_hex(p.to_initiator.static_static.reveal()), text(h.at("static_static_dh")));
    EXPECT_EQ(to_hex(p.to_responder.mac1_key), text(h.at("mac1_key_toward_responder")));
    EXPECT_EQ(to_hex(p.to_initiator.mac1_key), text(h.at("mac1_key_toward_initiator")));
    EXPECT_EQ(to_hex(p.responder.cookie_key), text(h.at("cookie_key_of_responder")));
    EXPECT_EQ(to_hex(p.initiator.cookie_key), text(h.at("cookie_key_of_initiator")));

    const Tai64n stamp = Tai64n::from_wall(wall_of(in));
    EXPECT_EQ(to_hex(stamp.bytes()), text(in.at("tai64n_whitened")));
    ByteVector initiation(kInitiationSize), response(kResponseSize);
    auto pending = build_initiation(p.initiator, p.to_responder, private_key(in.at("initiator_ephemeral_private")),
                                    static_cast<std::uint32_t>(u64(in.at("initiator_index"))), stamp, initiation);
    ASSERT_TRUE(pending);
    write_mac1(p.to_responder.mac1_key, initiation);
    EXPECT_EQ(to_hex(initiation), text(h.at("initiation")));
    const auto& trace1 = h.at("initiation_trace").as_array();
    EXPECT_EQ(to_hex(pending->transcript.chaining_key()), text(trace1.back().at("chaining_key")));
    EXPECT_EQ(to_hex(pending->transcript.hash()), text(trace1.back().at("hash")));

    ASSERT_TRUE(check_mac1(p.responder.mac1_key, initiation));
    auto claimed = open_initiation(p.responder, initiation);
    ASSERT_TRUE(claimed);
    EXPECT_EQ(claimed->static_key, p.initiator.shown);
    const auto got = open_stamp(*claimed, p.to_initiator.static_static.reveal(), initiation);
    ASSERT_TRUE(got);
    EXPECT_EQ(*got, stamp);
    EXPECT_EQ(to_hex(claimed->transcript.hash()), text(trace1.back().at("hash")));

    const auto r_keys = build_response(*claimed, p.to_initiator, private_key(in.at("responder_ephemeral_private")),
                                       static_cast<std::uint32_t>(u64(in.at("responder_index"))), response);
    ASSERT_TRUE(r_keys);
    write_mac1(p.to_initiator.mac1_key, response);
    EXPECT_EQ(to_hex(response), text(h.at("response")));
    const auto i_keys = consume_response(p.initiator, p.to_responder, *pending, response);
    ASSERT_TRUE(i_keys);
    EXPECT_EQ(to_hex(i_keys->send.reveal()), text(h.at("key_initiator_to_responder")));
    EXPECT_EQ(to_hex(i_keys->receive.reveal()), text(h.at("key_responder_to_initiator")));
    EXPECT_EQ(to_hex(r_keys->send.reveal()), text(h.at("key_responder_to_initiator")));
    EXPECT_EQ(to_hex(r_keys->receive.reveal()), text(h.at("key_initiator_to_responder")));

    std::size_t packets = 0;
    for (const auto& v : h.at("packets").as_array()) {
      const bool from_initiator = text(v.at("direction")) == "initiator_to_responder";
      const ByteVector packet = unhex(v.at("ip_packet"));
      const std::size_t padded = padded_size(packet.size(), kPacketSizeMax);
      EXPECT_EQ(padded, u64(v.at("padded_plaintext_len")));
      ByteVector wire(kTransportHeaderSize + padded + 16);
      EXPECT_EQ(wire.size(), u64(v.at("wire_len")));
      wire[0] = kTypeTransport;
      store_le(wire.data() + 4, static_cast<std::uint32_t>(u64(v.at("receiver_index"))));
      store_le(wire.data() + 8, u64(v.at("counter")));
      std::copy(packet.begin(), packet.end(), wire.begin() + 16);
      const TransportKeys& keys = from_initiator ? *i_keys : *r_keys;
      crypto::AeadKey seal(crypto::AeadKey::Direction::kSeal, keys.send.reveal());
      crypto::AeadJob job{MutBytes(wire).subspan(16), u64(v.at("counter")), false};
      seal.process(std::span(&job, 1));
      EXPECT_EQ(to_hex(wire), text(v.at("wire")));
      ++packets;
    }
    EXPECT_EQ(packets, 8u);
    ++n;
  }
  EXPECT_EQ(n, 2u);
}

// The steps of a response one by one, with the operations the functions above are made of: where a handshake breaks, this
// says at which step. Both sides' view of each Diffie-Hellman must be the listed one.
TEST(WgVectors, ResponseStepByStep) {
  std::size_t n = 0;
  for (const auto& h : vectors().at("handshakes").as_array()) {
    SCOPED_TRACE(std::string(text(h.at("name"))));
    const auto& in = h.at("inputs");
    Parties p(in);
    const crypto::NodePrivate e_i = private_key(in.at("initiator_ephemeral_private"));
    const crypto::NodePrivate e_r = private_key(in.at("responder_ephemeral_private"));
    auto claimed = open_initiation(p.responder, unhex(h.at("initiation")));
    ASSERT_TRUE(claimed);
    ASSERT_TRUE(open_stamp(*claimed, p.to_initiator.static_static.reveal(), unhex(h.at("initiation"))));
    Transcript t = claimed->transcript.duplicate();

    const auto& trace = h.at("response_trace").as_array();
    ASSERT_EQ(trace.size(), 5u);
    auto expect_step = [&](std::size_t i) {
      EXPECT_EQ(to_hex(t.chaining_key()), text(trace[i].at("chaining_key"))) << text(trace[i].at("op"));
      EXPECT_EQ(to_hex(t.hash()), text(trace[i].at("hash"))) << text(trace[i].at("op"));
    };
    auto dh = [&](std::size_t i, const crypto::NodePrivate& ours, const NodePublic& theirs) {
      crypto::SecretBytes<32> shared;
      EXPECT_TRUE(crypto::x25519(ours.reveal(), theirs.bytes(), shared));
      EXPECT_EQ(to_hex(shared.reveal()), text(trace[i].at("dh"))) << text(trace[i].at("op"));
      return shared;
    };

    const NodePublic shown = e_r.public_key();
    EXPECT_EQ(to_hex(shown.bytes()), text(trace[0].at("ephemeral_public")));
    EXPECT_EQ(to_hex(shown.bytes()), text(in.at("responder_ephemeral_public")));
    EXPECT_EQ(to_hex(e_i.public_key().bytes()), text(in.at("initiator_ephemeral_public")));
    t.mix_key(shown.bytes());
    t.mix_hash(shown.bytes());
    expect_step(0);
    dh(1, e_i, shown);
    t.mix_key(dh(1, e_r, claimed->ephemeral).reveal());
    expect_step(1);
    dh(2, p.initiator.key, shown);
    t.mix_key(dh(2, e_r, p.initiator.shown).reveal());
    expect_step(2);

    crypto::SecretBytes<32> key;
    crypto::Hash32 chaining, tau, third;
    crypto::hkdf_blake2s(t.chaining_key(), p.to_initiator.psk.reveal(), chaining, tau, third);
    EXPECT_EQ(to_hex(tau), text(trace[3].at("tau")));
    t.mix_psk(p.to_initiator.psk.reveal(), key);
    EXPECT_EQ(to_hex(key.reveal()), text(trace[3].at("key")));
    expect_step(3);
    Mac16 empty;
    t.seal(key, {}, empty);
    EXPECT_EQ(to_hex(empty), text(trace[3].at("encrypted")));
    expect_step(4);
    EXPECT_EQ(to_hex(t.chaining_key()), text(h.at("final_chaining_key")));
    EXPECT_EQ(to_hex(t.hash()), text(h.at("final_hash")));
    ++n;
  }
  EXPECT_EQ(n, 2u);
}

// The same for the initiation, whose end alone HandshakesByParts compares.
TEST(WgVectors, InitiationStepByStep) {
  for (const auto& h : vectors().at("handshakes").as_array()) {
    SCOPED_TRACE(std::string(text(h.at("name"))));
    const auto& in = h.at("inputs");
    Parties p(in);
    const crypto::NodePrivate e_i = private_key(in.at("initiator_ephemeral_private"));
    const NodePublic shown = e_i.public_key();
    const auto& trace = h.at("initiation_trace").as_array();
    ASSERT_EQ(trace.size(), 4u);
    Transcript t = Transcript::start(p.responder.shown);
    crypto::SecretBytes<32> key, shared;
    auto expect_step = [&](std::size_t i) {
      EXPECT_EQ(to_hex(t.chaining_key()), text(trace[i].at("chaining_key"))) << text(trace[i].at("op"));
      EXPECT_EQ(to_hex(t.hash()), text(trace[i].at("hash"))) << text(trace[i].at("op"));
    };
    expect_step(0);
    EXPECT_EQ(to_hex(shown.bytes()), text(trace[1].at("ephemeral_public")));
    t.mix_key(shown.bytes());
    t.mix_hash(shown.bytes());
    expect_step(1);
    auto sealed_step = [&](std::size_t i, Bytes dh, Bytes plain) {
      EXPECT_EQ(to_hex(dh), text(trace[i].at("dh")));
      t.mix_key(dh, key);
      EXPECT_EQ(to_hex(key.reveal()), text(trace[i].at("key")));
      ByteVector sealed(plain.size() + crypto::kAeadTagSize);
      t.seal(key, plain, sealed);
      EXPECT_EQ(to_hex(sealed), text(trace[i].at("encrypted")));
      expect_step(i);
    };
    ASSERT_TRUE(crypto::x25519(e_i.reveal(), p.responder.shown.bytes(), shared));
    sealed_step(2, shared.reveal(), p.initiator.shown.bytes());
    sealed_step(3, p.to_responder.static_static.reveal(), Tai64n::from_wall(wall_of(in)).bytes());
  }
}

// Records what a tunnel wants, for byte-exact scripts.
struct ScriptHost final : Host {
  std::vector<ByteVector> sent, packets, replies;
  std::vector<SessionState> states;
  bool admit(const NodePublic&) override { return false; }
  void transmit(PeerId, Bytes run, std::size_t segment) override {
    for (std::size_t at = 0; at < run.size(); at += segment)
      sent.push_back(to_vector(run.subspan(at, std::min(segment, run.size() - at))));
  }
  void reply(const Source&, Bytes b) override { replies.push_back(to_vector(b)); }
  void deliver(PeerId, std::span<const MutBytes> p) override {
    for (MutBytes b : p) packets.push_back(to_vector(b));
  }
  void authenticated(PeerId, const Source&) override {}
  void stray(const Source&) override {}
  void session(PeerId, SessionState s) override { states.push_back(s); }
};

struct Scripted {
  ScriptHost host;
  test::ScriptedRng rng{9};
  Tunnel tunnel{host, rng};
  void receive(Clock clock, const ByteVector& datagram) {
    ByteVector copy = datagram;
    const RecvDatagram d{Endpoint{IpAddress::v4(203, 0, 113, 7), 41641}, MutBytes(copy)};
    tunnel.handle_datagrams(clock, std::span(&d, 1));
  }
};

const std::vector<Prefix>& everything() {
  static const std::vector<Prefix> all = {*Prefix::parse("0.0.0.0/0"), *Prefix::parse("::/0")};
  return all;
}

TEST(WgVectors, HandshakesByTunnelsByteForByte) {
  for (const auto& h : vectors().at("handshakes").as_array()) {
    SCOPED_TRACE(std::string(text(h.at("name"))));
    const auto& in = h.at("inputs");
    Scripted i, r;
    const Clock clock{Instant::from_ns(5'000'000'000), wall_of(in)};
    i.tunnel.set_private_key(clock, private_key(in.at("initiator_static_private")));
    r.tunnel.set_private_key(clock, private_key(in.at("responder_static_private")));
    const crypto::SecretBytes<32> psk(unhex(in.at("preshared_key")));
    const PeerId at_i = i.tunnel.add_peer(clock, r.tunnel.public_key(), everything(), &psk);
    const PeerId at_r = r.tunnel.add_peer(clock, i.tunnel.public_key(), everything(), &psk);
    i.rng.script(unhex(in.at("initiator_ephemeral_private")));
    i.rng.script_index(static_cast<std::uint32_t>(u64(in.at("initiator_index"))));
    r.rng.script(unhex(in.at("responder_ephemeral_private")));
    r.rng.script_index(static_cast<std::uint32_t>(u64(in.at("responder_index"))));
    const auto& packets = h.at("packets").as_array();

    i.tunnel.start_handshake(clock, at_i);
    ASSERT_EQ(i.host.sent.size(), 1u);
    EXPECT_EQ(to_hex(i.host.sent[0]), text(h.at("initiation")));
    r.receive(clock, i.host.sent[0]);
    ASSERT_EQ(r.host.sent.size(), 1u);
    EXPECT_EQ(to_hex(r.host.sent[0]), text(h.at("response")));
    EXPECT_TRUE(r.host.states.empty());  // not confirmed yet
    i.receive(clock, r.host.sent[0]);
    EXPECT_EQ(i.host.states.back(), SessionState::kEstablished);

    // The initiator confirms with a keepalive by itself: packet 0.
    ASSERT_EQ(i.host.sent.size(), 2u);
    EXPECT_EQ(to_hex(i.host.sent[1]), text(packets[0].at("wire")));
    r.receive(clock, i.host.sent[1]);
    EXPECT_EQ(r.host.states.back(), SessionState::kEstablished);
    // A keepalive of the responder: packet 1.
    r.tunnel.set_persistent_keepalive(clock, at_r, 1s);
    const Clock later{clock.now + 1s, clock.wall + 1s};
    r.tunnel.handle_timeout(later);
    ASSERT_EQ(r.host.sent.size(), 2u);
    EXPECT_EQ(to_hex(r.host.sent[1]), text(packets[1].at("wire")));
    i.receive(later, r.host.sent[1]);

    std::size_t delivered = 0;
    for (std::size_t k = 2; k < packets.size(); ++k) {
      const bool from_initiator = text(packets[k].at("direction")) == "initiator_to_responder";
      Scripted& from = from_initiator ? i : r;
      Scripted& to = from_initiator ? r : i;
      const ByteVector packet = unhex(packets[k].at("ip_packet")), wire = unhex(packets[k].at("wire"));
      if (u64(packets[k].at("counter")) < 100) {
        from.tunnel.send(later, from_initiator ? at_i : at_r, packet);
        from.tunnel.flush(later);
        EXPECT_EQ(to_hex(from.host.sent.back()), to_hex(wire)) << k;
      }
      const std::size_t before = to.host.packets.size();
      to.receive(later, wire);
      ASSERT_EQ(to.host.packets.size(), before + 1) << k;
      EXPECT_EQ(to.host.packets.back(), packet);
      to.receive(later, wire);  // and only once
      EXPECT_EQ(to.host.packets.size(), before + 1);
      ++delivered;
    }
    EXPECT_EQ(delivered, 6u);
  }
}

TEST(WgVectors, Cookie) {
  const auto& v = vectors().at("cookie");
  const auto& in = vectors().at("handshakes").as_array()[0].at("inputs");
  Parties p(in);
  const Instant now = Instant::from_ns(1'000'000'000);
  test::ScriptedRng rng(1);
  rng.script(unhex(v.at("responder_secret_R")));
  rng.script(unhex(v.at("xnonce")));
  const Source source = Endpoint{IpAddress::v4(203, 0, 113, 7), 0xa2a9};
  const ByteVector initiation = unhex(vectors().at("handshakes").as_array()[0].at("initiation"));
  EXPECT_EQ(to_hex(p.responder.cookie_key), text(v.at("cookie_key")));
  EXPECT_EQ(to_hex(Bytes(initiation).subspan(116, 16)), text(v.at("aad_mac1_of_triggering_message")));

  // XChaCha20 is ChaCha20 under a key made of the first 16 bytes of the nonce (draft-irtf-cfrg-xchacha section 2.3): our
  // reply opens with the listed subkey, the other 8 bytes as the nonce and mac1 as associated data.
  const ByteVector subkey = unhex(v.at("hchacha20_subkey")), xnonce = unhex(v.at("xnonce"));
  ByteVector nonce(crypto::kAeadNonceSize);
  std::copy(xnonce.begin() + 16, xnonce.end(), nonce.begin() + 4);

  CookieMaker maker;
  EXPECT_FALSE(maker.check(now, source, initiation));
  const auto reply = maker.make_reply(now, rng, p.responder.cookie_key, source, initiation);
  EXPECT_EQ(to_hex(reply), text(v.at("cookie_reply")));
  Mac16 cookie;
  ASSERT_TRUE(crypto::aead_open(subkey, nonce, unhex(v.at("aad_mac1_of_triggering_message")), Bytes(reply).last(32), cookie));
  EXPECT_EQ(to_hex(cookie), text(v.at("cookie")));

  CookieJar jar;
  EXPECT_FALSE(jar.accept(now, p.to_responder, reply)) << "nothing was sent yet";
  ByteVector message = initiation;
  jar.sign(now, p.to_responder, message);
  EXPECT_EQ(message, initiation);
  ByteVector tampered(reply.begin(), reply.end());
  tampered[40] ^= 1;
  EXPECT_FALSE(jar.accept(now, p.to_responder, tampered));
  ASSERT_TRUE(jar.accept(now, p.to_responder, reply));

  ByteVector retry(kInitiationSize);
  ASSERT_TRUE(build_initiation(p.initiator, p.to_responder, private_key(v.at("retry_initiator_ephemeral_private")),
                               static_cast<std::uint32_t>(u64(v.at("retry_initiator_index"))),
                               Tai64n::from_bytes(unhex(v.at("retry_tai64n"))), retry));
  ByteVector without = retry;
  jar.sign(now + 119s, p.to_responder, retry);
  EXPECT_EQ(to_hex(retry), text(v.at("retry_initiation_with_mac2")));
  EXPECT_EQ(to_hex(Bytes(retry).subspan(116, 16)), text(v.at("retry_mac1")));
  EXPECT_EQ(to_hex(Bytes(retry).subspan(132, 16)), text(v.at("retry_mac2")));
  EXPECT_TRUE(maker.check(now + 119s, source, retry));
  EXPECT_FALSE(maker.check(now + 119s, Endpoint{IpAddress::v4(203, 0, 113, 8), 0xa2a9}, retry));
  EXPECT_FALSE(maker.check(now + 119s, Endpoint{IpAddress::v4(203, 0, 113, 7), 1}, retry));
  EXPECT_FALSE(maker.check(now + 121s, source, retry)) << "the secret is too old";
  jar.sign(now + 120s, p.to_responder, without);
  EXPECT_EQ(Bytes(without).last(16)[0] | Bytes(without).last(16)[15], 0) << "the cookie is too old";
}

TEST(WgVectors, Padding) {
  std::size_t n = 0;
  for (const auto& v : vectors().at("padding").as_array()) {
    EXPECT_EQ(padded_size(u64(v.at("len")), u64(v.at("mtu"))), u64(v.at("padded")));
    ++n;
  }
  EXPECT_EQ(n, 15u);
}

TEST(WgVectors, ReplayWindow) {
  std::size_t n = 0;
  for (const auto& v : vectors().at("replay_window_8128").as_array()) {
    ReplayWindow window;
    for (const auto& step : v.at("steps").as_array()) {
      const std::uint64_t counter = u64(step.at("counter"));
      EXPECT_EQ(window.fresh(counter), step.at("accept").as_bool()) << text(v.at("name")) << " " << counter;
      EXPECT_EQ(window.accept(counter), step.at("accept").as_bool()) << text(v.at("name")) << " " << counter;
    }
    ++n;
  }
  EXPECT_EQ(n, 8u);
}

// Against the obvious model: a set of everything ever accepted.
TEST(ReplayWindow, AgreesWithAModel) {
  SeededRng rng(4);
  ReplayWindow window;
  std::map<std::uint64_t, bool> seen;
  std::uint64_t newest = 0;
  for (int i = 0; i < 200'000; ++i) {
    std::uint64_t c = newest;
    const std::uint64_t kind = rng.below(100);
    if (kind < 50) c += rng.below(4);
    else if (kind < 97) c -= std::min(newest, rng.below(8400));
    else c += rng.below(20'000);
    const bool expected = !seen.contains(c) && (c > newest || newest - c <= ReplayWindow::kWindow);
    ASSERT_EQ(window.accept(c), expected) << c << " newest " << newest;
    if (expected) {
      seen[c] = true;
      newest = std::max(newest, c);
    }
  }
}

TEST(WgVectors, Tamper) {
  const auto& h = vectors().at("handshakes").as_array()[0];
  const auto& in = h.at("inputs");
  std::size_t n = 0;
  for (const auto& v : vectors().at("tamper").as_array()) {
    for (const bool recompute : {false, true}) {
      const json::value& expectation = v.at(recompute ? "with_mac1_recomputed" : "rejected_at");
      if (expectation.is_null()) continue;
      SCOPED_TRACE(std::string(text(v.at("field"))) + (recompute ? " with mac1" : ""));
      Scripted r;
      const Clock clock{Instant::from_ns(5'000'000'000), wall_of(in)};
      r.tunnel.set_private_key(clock, private_key(in.at("responder_static_private")));
      const NodePublic initiator = private_key(in.at("initiator_static_private")).public_key();
      const PeerId id = r.tunnel.add_peer(clock, initiator, everything());
      ByteVector message = unhex(h.at("initiation"));
      message[u64(v.at("flip_bit0_of_byte"))] ^= 1;
      if (recompute) write_mac1(mac1_key_of(r.tunnel.public_key()), message);
      r.receive(clock, message);
      const auto& drops = r.tunnel.counters().drops;
      auto dropped = [&](Drop d) { return drops[static_cast<std::size_t>(d)]; };
      const std::string_view stage = text(expectation);
      if (stage == "accept") {
        EXPECT_EQ(r.host.sent.size(), 1u);
      } else {
        EXPECT_TRUE(r.host.sent.empty());
        EXPECT_FALSE(r.tunnel.stats(id).last_received.has_value());
        if (stage == "type") {
          EXPECT_EQ(dropped(Drop::kUnknownType), 1u);
        } else if (stage == "mac1") {
          EXPECT_EQ(dropped(Drop::kBadMac1), 1u);
        } else {
          EXPECT_EQ(dropped(Drop::kBadHandshake), 1u);
        }
        r.receive(clock, unhex(h.at("initiation")));  // nothing was committed: the original still passes
        EXPECT_EQ(r.host.sent.size(), 1u);
      }
      ++n;
    }
  }
  EXPECT_GE(n, 14u);
}

TEST(WgVectors, LowOrderPeersAreUnusable) {
  Scripted t;
  const Clock clock{Instant::from_ns(5'000'000'000), WallTime::from_unix_s(1'800'000'000)};
  SeededRng rng(2);
  t.tunnel.set_private_key(clock, crypto::NodePrivate::generate(rng));
  std::size_t n = 0;
  for (const auto& v : vectors().at("low_order_points").as_array()) {
    const NodePublic key = NodePublic::from_bytes(unhex(v.at("public")));
    const PeerId id = t.tunnel.add_peer(clock, key, everything());
    ++n;
    if (key.is_zero()) {
      EXPECT_EQ(id, kNoPeer);
      continue;
    }
    ASSERT_NE(id, kNoPeer);
    t.tunnel.start_handshake(clock, id);
    EXPECT_TRUE(t.host.sent.empty());
    // As the ephemeral of an initiation whose mac1 is right.
    ByteVector message(kInitiationSize);
    message[0] = kTypeInitiation;
    std::copy(key.raw().begin(), key.raw().end(), message.begin() + 8);
    write_mac1(mac1_key_of(t.tunnel.public_key()), message);
    t.receive(clock, message);
    EXPECT_TRUE(t.host.sent.empty());
  }
  EXPECT_EQ(n, 4u);
  EXPECT_EQ(t.tunnel.counters().drops[static_cast<std::size_t>(Drop::kBadHandshake)], 3u);
}

}  // namespace
}  // namespace porthole::wg
