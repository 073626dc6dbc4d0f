#include "ts2021/noise.h"

#include <gtest/gtest.h>

#include "crypto/dh.h"
#include "support/vectors.h"
#include "ts2021/limits.h"
#include "wire/ts2021.h"

namespace porthole::ts2021 {

// Gives prescribed bytes once: the ephemeral keys of the vectors.
class ScriptedRng final : public Rng {
 public:
  explicit ScriptedRng(ByteVector bytes) : bytes_(std::move(bytes)) {}
  void fill(MutBytes out) override {
    ASSERT_LE(at_ + out.size(), bytes_.size());
    std::copy_n(bytes_.begin() + static_cast<std::ptrdiff_t>(at_), out.size(), out.begin());
    at_ += out.size();
  }

 private:
  ByteVector bytes_;
  std::size_t at_ = 0;
};

// Reaches the receive counter, to test nonces that honest connections take years to get to.
class RecordStreamTest : public ::testing::Test {
 protected:
  static void set_send(RecordStream& s, std::uint64_t counter) { s.send_counter_ = counter; }
  static void set_receive(RecordStream& s, std::uint64_t counter) { s.receive_counter_ = counter; }
};

// Sees the handshake state between the messages.
class NoiseTraceTest : public ::testing::Test {
 protected:
  static const NoiseSymmetric& state(const NoiseInitiator& i) { return i.state_; }
};

namespace {

using test::unhex;

const boost::json::object& vectors() {
  static const boost::json::value v = test::load_vectors("control-noise.json");
  return v.as_object();
}
ByteVector key(std::string_view name, std::string_view part = "private") {
  for (const auto& entry : vectors().at("keys").as_object()) {
    if (std::string_view(entry.key()).starts_with(name)) return unhex(entry.value().at(part));
  }
  ADD_FAILURE() << "no key " << name;
  return {};
}
crypto::MachinePrivate machine_key(std::string_view name) { return crypto::MachinePrivate::from_bytes(key(name)); }
MachinePublic control_public() { return MachinePublic::from_bytes(key("control_static", "public")); }

struct Pair {
  NoiseSession client, server;
};
Pair handshake(std::uint16_t version) {
  ScriptedRng client_rng(key("client_ephemeral")), server_rng(key("control_ephemeral"));
  auto i = NoiseInitiator::start(version, control_public(), machine_key("client_static"), client_rng);
  auto r = respond_noise(i->initiation(), machine_key("control_static"), server_rng);
  auto client = i->finish(r->response);
  return {std::move(client).value(), std::move(r->session)};
}

TEST(NoiseHandshake, KeyTextForms) {
  const auto& forms = vectors().at("key_text_forms").as_object();
  ByteVector raw = unhex(forms.at("raw32"));
  EXPECT_EQ(MachinePublic::from_bytes(raw).to_string(), test::text(forms.at("mkey")));
  EXPECT_EQ(NodePublic::from_bytes(raw).to_string(), test::text(forms.at("nodekey")));
  EXPECT_EQ(DiscoPublic::from_bytes(raw).to_string(), test::text(forms.at("discokey")));
  EXPECT_EQ(ChallengePublic::from_bytes(raw).to_string(), test::text(forms.at("chalpub")));
  EXPECT_EQ(NodePublic().to_string(), test::text(forms.at("zero_nodekey")));
  for (const auto& entry : vectors().at("keys").as_object()) {
    auto secret = crypto::MachinePrivate::from_bytes(unhex(entry.value().at("private")));
    EXPECT_EQ(to_hex(secret.public_key().bytes()), test::text(entry.value().at("public"))) << entry.key();
    if (const auto* shown = entry.value().as_object().if_contains("public_text")) {
      const bool challenge = entry.key() == "challenge";
      EXPECT_EQ(challenge ? ChallengePublic(secret.public_key().raw()).to_string() : secret.public_key().to_string(), test::text(*shown));
    }
    if (const auto* hidden = entry.value().as_object().if_contains("private_text")) {
      auto parsed = crypto::MachinePrivate::parse(test::text(*hidden));
      ASSERT_TRUE(parsed) << entry.key();
      EXPECT_EQ(parsed->public_key(), secret.public_key()) << entry.key();
    }
  }

  // The private form holds any 32 bytes; a key of ours is clamped (RFC 7748 section 5) and written so.
  auto parsed = crypto::MachinePrivate::parse(test::text(forms.at("privkey")));
  ASSERT_TRUE(parsed);
  ByteVector clamped = raw;
  clamped[0] &= 248;
  clamped[31] = static_cast<std::uint8_t>((clamped[31] & 127) | 64);
  EXPECT_EQ(to_hex(parsed->reveal()), to_hex(clamped));
  EXPECT_EQ(parsed->to_text().reveal(), "privkey:" + to_hex(clamped));
}

// One set of bytes, a type per role: the prefix decides, and what is not ours is refused. nlpub is the key of the tailnet
// lock, an Ed25519 key that must not pass as a Curve25519 key of any role.
TEST(NoiseHandshake, KeyTextOfAnotherRoleIsRefused) {
  const auto& forms = vectors().at("key_text_forms").as_object();
  for (const char* form : {"mkey", "nodekey", "discokey", "chalpub", "nlpub", "privkey"}) {
    const std::string_view text = test::text(forms.at(form)), name = form;
    EXPECT_EQ(text, std::string(form) + ":" + std::string(test::text(forms.at("raw32"))));
    EXPECT_EQ(MachinePublic::parse(text).has_value(), name == "mkey") << form;
    EXPECT_EQ(NodePublic::parse(text).has_value(), name == "nodekey") << form;
    EXPECT_EQ(DiscoPublic::parse(text).has_value(), name == "discokey") << form;
    EXPECT_EQ(ChallengePublic::parse(text).has_value(), name == "chalpub") << form;
    EXPECT_EQ(crypto::MachinePrivate::parse(text).has_value(), name == "privkey") << form;
  }
}

// Noise_IK as its specification writes it, from the primitives and with both private halves at hand: the prologue is
// free, and every step can be looked at.
struct WrittenOutIk {
  crypto::Hash32 h{}, ck{}, k{}, dh{};
  ByteVector ciphertext;

  explicit WrittenOutIk(std::string_view protocol_name) : h(crypto::blake2s(as_bytes(protocol_name))), ck(h) {}
  void mix_hash(Bytes data) { h = crypto::blake2s(h, data); }
  // Both sides' computation, which must agree.
  void mix_dh(std::string_view ours, std::string_view theirs) {
    crypto::SecretBytes<32> one, other;
    ASSERT_TRUE(crypto::x25519(key(ours), key(theirs, "public"), one));
    ASSERT_TRUE(crypto::x25519(key(theirs), key(ours, "public"), other));
    ASSERT_TRUE(equal(one.reveal(), other.reveal()));
    std::copy_n(one.reveal().begin(), 32, dh.begin());
    const crypto::Hash32 before = ck;
    crypto::hkdf_blake2s(before, dh, ck, k);
  }
  void encrypt_and_hash(Bytes plain) {
    const ByteVector nonce(crypto::kAeadNonceSize);
    ciphertext.resize(plain.size() + crypto::kAeadTagSize);
    crypto::aead_seal(k, nonce, h, plain, ciphertext);
    mix_hash(ciphertext);
  }
  // The twelve steps of both messages; `after(i)` looks at each.
  template <typename After>
  void run(std::string_view prologue, After after) {
    const ByteVector e_i = key("client_ephemeral", "public"), e_r = key("control_ephemeral", "public");
    std::size_t i = 0;
    after(i++);
    mix_hash(as_bytes(prologue)), after(i++);
    mix_hash(key("control_static", "public")), after(i++);
    mix_hash(e_i), after(i++);
    mix_dh("client_ephemeral", "control_static"), after(i++);
    encrypt_and_hash(key("client_static", "public")), after(i++);
    mix_dh("client_static", "control_static"), after(i++);
    encrypt_and_hash({}), after(i++);
    mix_hash(e_r), after(i++);
    mix_dh("client_ephemeral", "control_ephemeral"), after(i++);
    mix_dh("client_static", "control_ephemeral"), after(i++);
    encrypt_and_hash({}), after(i++);
  }
};
constexpr std::size_t kStepStatic = 5, kStepMessage1 = 7, kStepMessage2 = 11;

// Where a handshake breaks, this says at which step. Ours shows its state after each of the two messages.
TEST_F(NoiseTraceTest, EveryStepOfTheListedHandshake) {
  std::size_t traced = 0;
  for (const auto& h : vectors().at("handshakes").as_array()) {
    if (!h.as_object().contains("trace_initiator")) continue;
    const auto& trace = h.at("trace_initiator").as_array();
    ASSERT_EQ(trace.size(), kStepMessage2 + 1);
    ScriptedRng rng(key("client_ephemeral"));
    auto ours = NoiseInitiator::start(static_cast<std::uint16_t>(test::u64(h.at("version"))), control_public(),
                                      machine_key("client_static"), rng);
    ASSERT_TRUE(ours.ok());
    auto expect_ours = [&](const boost::json::value& step, const boost::json::value& last_key) {
      EXPECT_EQ(to_hex(state(*ours).hash), test::text(step.at("h")));
      EXPECT_EQ(to_hex(state(*ours).chaining_key.reveal()), test::text(step.at("ck")));
      EXPECT_EQ(to_hex(state(*ours).key.reveal()), test::text(last_key.at("k")));
    };
    expect_ours(trace[kStepMessage1], trace[kStepMessage1 - 1]);
    EXPECT_EQ(to_hex(ours->initiation().subspan(37, 48)), test::text(trace[kStepStatic].at("ciphertext")));
    EXPECT_EQ(to_hex(ours->initiation().subspan(85)), test::text(trace[kStepMessage1].at("ciphertext")));
    ASSERT_TRUE(ours->finish(unhex(h.at("response"))).ok());
    expect_ours(trace[kStepMessage2], trace[kStepMessage2 - 1]);

    WrittenOutIk written(test::text(vectors().at("protocol_name")));
    const std::string prologue(test::text(h.at("prologue_ascii")));
    EXPECT_EQ(prologue, std::string(test::text(vectors().at("prologue_prefix"))) + std::to_string(test::u64(h.at("version"))));
    written.run(prologue, [&](std::size_t i) {
      const auto& step = trace[i].as_object();
      SCOPED_TRACE(std::string(test::text(step.at("step"))));
      EXPECT_EQ(to_hex(written.h), test::text(step.at("h")));
      EXPECT_EQ(to_hex(written.ck), test::text(step.at("ck")));
      if (step.contains("dh")) {
        EXPECT_EQ(to_hex(written.dh), test::text(step.at("dh")));
        EXPECT_EQ(to_hex(written.k), test::text(step.at("k")));
      }
      if (step.contains("ciphertext")) {
        EXPECT_EQ(to_hex(written.ciphertext), test::text(step.at("ciphertext")));
      }
      ++traced;
    });
  }
  EXPECT_EQ(traced, kStepMessage2 + 1);
}

// The handshake without the control protocol around it, as another implementation of Noise lists it. Prologue and framing
// are all that sets ours apart, so the fields that no prologue reaches are the same.
TEST(NoiseHandshake, PlainIkOfAnotherImplementation) {
  const auto& v = vectors().at("plain_ik_crosscheck").as_object();
  ByteVector message1 = key("client_ephemeral", "public"), message2 = key("control_ephemeral", "public");
  WrittenOutIk written(kNoiseProtocolName);
  written.run(test::text(v.at("prologue_ascii")), [&](std::size_t i) {
    if (i == kStepStatic || i == kStepMessage1) append(message1, written.ciphertext);
    if (i == kStepMessage2) append(message2, written.ciphertext);
  });
  EXPECT_EQ(to_hex(message1), test::text(v.at("message1")));
  EXPECT_EQ(to_hex(message2), test::text(v.at("message2")));
  EXPECT_EQ(to_hex(written.h), test::text(v.at("handshake_hash")));
  crypto::Hash32 to_responder, to_initiator;
  crypto::hkdf_blake2s(written.ck, {}, to_responder, to_initiator);
  EXPECT_EQ(to_hex(to_responder), test::text(v.at("key_initiator_to_responder")));
  EXPECT_EQ(to_hex(to_initiator), test::text(v.at("key_responder_to_initiator")));

  // Ours has the same keys and ciphertexts; the prologue reaches the tags alone.
  ScriptedRng client_rng(key("client_ephemeral")), server_rng(key("control_ephemeral"));
  auto i = NoiseInitiator::start(131, control_public(), machine_key("client_static"), client_rng);
  ASSERT_TRUE(i.ok());
  const Bytes ours = i->initiation().subspan(5);
  ASSERT_EQ(ours.size(), message1.size());
  EXPECT_TRUE(equal(ours.first(64), Bytes(message1).first(64)));
  EXPECT_FALSE(equal(ours.subspan(64), Bytes(message1).subspan(64)));
  auto r = respond_noise(i->initiation(), machine_key("control_static"), server_rng);
  ASSERT_TRUE(r.ok());
  EXPECT_TRUE(equal(Bytes(r->response).subspan(3, 32), Bytes(message2).first(32)));
  EXPECT_FALSE(equal(Bytes(r->response).subspan(35), Bytes(message2).subspan(32)));
  // A plain message in our framing is refused: its prologue is not ours.
  ByteVector foreign(i->initiation().begin(), i->initiation().begin() + 5);
  append(foreign, message1);
  SeededRng rng(3);
  EXPECT_FALSE(respond_noise(foreign, machine_key("control_static"), rng).ok());
}

TEST(NoiseHandshake, EveryVectorBothSides) {
  ASSERT_GE(vectors().at("handshakes").as_array().size(), 4u);
  for (const auto& h : vectors().at("handshakes").as_array()) {
    const auto version = static_cast<std::uint16_t>(test::u64(h.at("version")));
    SCOPED_TRACE(version);
    ScriptedRng client_rng(key("client_ephemeral"));
    auto i = NoiseInitiator::start(version, control_public(), machine_key("client_static"), client_rng);
    ASSERT_TRUE(i.ok());
    EXPECT_EQ(to_hex(i->initiation()), test::text(h.at("initiation")));
    EXPECT_EQ(to_base64(i->initiation()), test::text(h.at("x_tailscale_handshake_header")));

    const auto& f = h.at("initiation_fields");
    const ByteVector initiation = unhex(h.at("initiation"));
    const auto parts = wire::parse_ts2021_initiation(initiation);
    ASSERT_TRUE(parts);
    EXPECT_EQ(parts->version, version);
    EXPECT_EQ(to_hex(parts->ephemeral), test::text(f.at("client_ephemeral_public")));
    EXPECT_EQ(to_hex(parts->encrypted_static), test::text(f.at("encrypted_client_static")));
    EXPECT_EQ(to_hex(parts->tag), test::text(f.at("tag")));
    EXPECT_EQ(to_hex(i->initiation().first(5)), std::string(test::text(f.at("version_be16"))) + std::string(test::text(f.at("type"))) +
                                                    std::string(test::text(f.at("length_be16"))));

    ScriptedRng server_rng(key("control_ephemeral"));
    auto r = respond_noise(unhex(h.at("initiation")), machine_key("control_static"), server_rng);
    ASSERT_TRUE(r.ok());
    EXPECT_EQ(to_hex(r->response), test::text(h.at("response")));
    std::string fields;
    for (const char* part : {"type", "length_be16", "control_ephemeral_public", "tag"}) fields += test::text(h.at("response_fields").at(part));
    EXPECT_EQ(to_hex(r->response), fields);
    EXPECT_EQ(to_hex(r->session.handshake_hash), test::text(h.at("handshake_hash")));
    EXPECT_EQ(r->session.version, version);
    EXPECT_EQ(to_hex(r->session.peer.bytes()), to_hex(key("client_static", "public")));

    auto client = i->finish(unhex(h.at("response")));
    ASSERT_TRUE(client.ok());
    EXPECT_EQ(to_hex(client->handshake_hash), test::text(h.at("handshake_hash")));

    // The transport keys, seen through records sealed with streams made from the listed keys.
    ByteVector c2s = unhex(h.at("key_client_to_server")), s2c = unhex(h.at("key_server_to_client"));
    RecordStream listed_client(c2s, s2c), listed_server(s2c, c2s);
    const ByteVector text = to_vector(as_bytes("which keys?"));
    ByteVector ours, listed;
    ASSERT_TRUE(client->records.seal(text, ours).ok());
    ASSERT_TRUE(listed_client.seal(text, listed).ok());
    EXPECT_EQ(ours, listed);
    ours.clear();
    listed.clear();
    ASSERT_TRUE(r->session.records.seal(text, ours).ok());
    ASSERT_TRUE(listed_server.seal(text, listed).ok());
    EXPECT_EQ(ours, listed);
  }
}

TEST(NoiseHandshake, WrongVersionKeyOrBitIsRefused) {
  SeededRng rng(1);
  auto server = crypto::MachinePrivate::generate(rng);
  auto machine = crypto::MachinePrivate::generate(rng);
  auto i = NoiseInitiator::start(131, server.public_key(), machine, rng);
  ASSERT_TRUE(i.ok());
  auto other = crypto::MachinePrivate::generate(rng);
  EXPECT_FALSE(respond_noise(i->initiation(), other, rng).ok());
  ByteVector frame = to_vector(i->initiation());
  for (std::size_t bit = 0; bit < frame.size() * 8; ++bit) {
    frame[bit / 8] ^= static_cast<std::uint8_t>(1 << (bit % 8));
    EXPECT_FALSE(respond_noise(frame, server, rng).ok()) << bit;
    frame[bit / 8] ^= static_cast<std::uint8_t>(1 << (bit % 8));
  }
  auto r = respond_noise(frame, server, rng);
  ASSERT_TRUE(r.ok());
  for (std::size_t bit = 0; bit < r->response.size() * 8; bit += 3) {
    // finish() may be called once, so each trial needs a handshake of its own; a wrong response fits none.
    auto fresh = NoiseInitiator::start(131, server.public_key(), machine, rng);
    auto answer = respond_noise(fresh->initiation(), server, rng);
    answer->response[bit / 8] ^= static_cast<std::uint8_t>(1 << (bit % 8));
    EXPECT_FALSE(fresh->finish(answer->response).ok()) << bit;
  }
  EXPECT_FALSE(NoiseInitiator::start(131, MachinePublic(), machine, rng).ok());  // zero key
  EXPECT_FALSE(i->finish(Bytes(r->response).first(50)).ok());
}

TEST(NoiseHandshake, FaultsOfShapeHaveNames) {
  ByteVector frame = unhex(vectors().at("handshakes").as_array()[0].at("initiation"));
  EXPECT_FALSE(wire::check_ts2021_initiation(frame));
  ByteVector shorter(frame.begin(), frame.end() - 1);
  EXPECT_EQ(wire::check_ts2021_initiation(shorter), wire::Ts2021InitiationFault::kSize);
  frame[2] = 2;
  EXPECT_EQ(wire::check_ts2021_initiation(frame), wire::Ts2021InitiationFault::kType);
  frame[2] = 1;
  frame[4] = 0x61;
  EXPECT_EQ(wire::check_ts2021_initiation(frame), wire::Ts2021InitiationFault::kLength);
}

TEST(NoiseHandshake, ErrorFrame) {
  const auto& v = vectors().at("error_frame").as_object();
  ByteVector frame = unhex(v.at("frame"));
  auto header = wire::parse_ts2021_header(frame);
  ASSERT_TRUE(header.has_value());
  EXPECT_EQ(header->type, wire::Ts2021Type::kError);
  EXPECT_EQ(header->length, frame.size() - 3);
  EXPECT_EQ(to_hex(encode_noise_error(as_text(Bytes(frame).subspan(3)))), to_hex(frame));
}

TEST_F(RecordStreamTest, ListedRecordsInOrder) {
  Pair p = handshake(131);
  for (const auto& record : vectors().at("records_v131").as_array()) {
    SCOPED_TRACE(boost::json::serialize(record).substr(0, 200));
    const bool from_client = test::text(record.at("direction")).starts_with("c2s");
    NoiseSession& sender = from_client ? p.client : p.server;
    NoiseSession& receiver = from_client ? p.server : p.client;
    ByteVector plain = unhex(record.at("plaintext"));
    ByteVector frame = unhex(record.at("frame"));
    EXPECT_EQ(sender.records.records_sealed(), test::u64(record.at("nonce")));
    if (!plain.empty()) {
      ByteVector sealed;
      ASSERT_TRUE(sender.records.seal(plain, sealed).ok());
      EXPECT_EQ(to_hex(sealed), to_hex(frame));
    } else {
      set_send(sender.records, sender.records.records_sealed() + 1);  // we never make empty records, others do
    }
    ByteVector opened;
    ASSERT_TRUE(receiver.records.open(frame, opened).ok());
    EXPECT_EQ(to_hex(opened), to_hex(plain));
  }
}

TEST_F(RecordStreamTest, LargestRecordAndSplit) {
  const auto& v = vectors().at("max_record_v131").as_object();
  ByteVector plain(wire::kTs2021PlaintextSizeMax);
  for (std::size_t i = 0; i < plain.size(); ++i) plain[i] = static_cast<std::uint8_t>(i % 256);
  Pair p = handshake(131);
  set_send(p.client.records, test::u64(v.at("nonce")));
  ByteVector frame;
  ASSERT_TRUE(p.client.records.seal(plain, frame).ok());
  EXPECT_EQ(frame.size(), test::u64(v.at("frame_length")));
  EXPECT_EQ(to_hex(Bytes(frame).first(3)), test::text(v.at("frame_header")));
  EXPECT_EQ(to_hex(Bytes(frame).last(16)), test::text(v.at("frame_last_16")));
  EXPECT_EQ(to_hex(crypto::blake2s(frame)), test::text(v.at("frame_blake2s_256")));

  plain.push_back(7);  // one byte more: a second record
  ByteVector two;
  ASSERT_TRUE(p.server.records.seal(plain, two).ok());
  EXPECT_EQ(two.size(), 4096u + 3 + 1 + 16);
  for (std::size_t slice : {1u, 2u, 3u, 4u, 1000u, 5000u}) {
    Pair q = handshake(131);
    ByteVector opened;
    for (std::size_t at = 0; at < two.size(); at += slice) {
      ASSERT_TRUE(q.client.records.open(Bytes(two).subspan(at, std::min(slice, two.size() - at)), opened).ok());
    }
    EXPECT_EQ(opened, plain) << slice;
  }
}

TEST_F(RecordStreamTest, NoncesAreBigEndian) {
  const auto& v = vectors().at("nonce_encoding").as_object();
  ByteVector k = unhex(v.at("key")), plain = unhex(v.at("plaintext"));
  for (const auto& c : v.at("cases").as_array()) {
    const std::uint64_t counter = std::stoull(std::string(test::text(c.at("nonce"))));
    SCOPED_TRACE(counter);
    RecordStream s(k, k);
    set_send(s, counter);
    set_receive(s, counter);
    ByteVector frame, opened;
    ASSERT_TRUE(s.seal(plain, frame).ok());
    EXPECT_EQ(to_hex(frame), test::text(c.at("frame")));
    ASSERT_TRUE(s.open(frame, opened).ok());
    EXPECT_EQ(opened, plain);
  }
  RecordStream s(k, k);
  set_receive(s, 1);
  ByteVector opened;
  EXPECT_FALSE(s.open(unhex(v.at("wrong_little_endian_nonce_1").as_object().at("frame")), opened).ok());
  // 2^64-1 is never used: the record before it is the last.
  RecordStream last(k, k);
  set_send(last, ~std::uint64_t{0});
  set_receive(last, ~std::uint64_t{0});
  EXPECT_FALSE(last.seal(plain, opened).ok());
}

TEST_F(RecordStreamTest, PlainIkCrosscheckHasTheSameTransportKeys) {
  const auto& v = vectors().at("plain_ik_crosscheck").as_object();
  Pair p = handshake(131);
  RecordStream other(unhex(v.at("key_initiator_to_responder")), unhex(v.at("key_responder_to_initiator")));
  ByteVector a, b;
  ASSERT_TRUE(p.client.records.seal(as_bytes("x"), a).ok());
  ASSERT_TRUE(other.seal(as_bytes("x"), b).ok());
  EXPECT_EQ(a, b);
}

TEST_F(RecordStreamTest, BadRecordsKillTheStream) {
  Pair p = handshake(131);
  ByteVector frame, opened;
  ASSERT_TRUE(p.client.records.seal(as_bytes("hello"), frame).ok());
  for (std::size_t bit = 0; bit < frame.size() * 8; ++bit) {
    Pair q = handshake(131);
    ByteVector bad = frame;
    bad[bit / 8] ^= static_cast<std::uint8_t>(1 << (bit % 8));
    opened.clear();
    Status s = q.server.records.open(bad, opened);
    EXPECT_TRUE(opened.empty());
    // A larger length only makes the record incomplete; it must not be accepted when the rest arrives.
    for (int more = 0; s.ok() && more < 5; ++more) s = q.server.records.open(ByteVector(1000, 0x55), opened);
    EXPECT_FALSE(s.ok()) << bit;
    EXPECT_TRUE(opened.empty());
    EXPECT_FALSE(q.server.records.open(frame, opened).ok());  // dead stays dead
  }
  // A replayed record fails: its counter has passed.
  ASSERT_TRUE(p.server.records.open(frame, opened).ok());
  EXPECT_FALSE(p.server.records.open(frame, opened).ok());
}

TEST(EarlyPayload, PresentAbsentAndCutAnyhow) {
  ByteVector challenge_raw = key("challenge", "public");
  ByteVector early = encode_early_payload(ChallengePublic::from_bytes(challenge_raw));
  ByteVector listed;
  for (const auto& record : vectors().at("records_v131").as_array()) {
    if (test::text(record.at("what")).starts_with("early payload")) append(listed, unhex(record.at("plaintext")));
  }
  EXPECT_EQ(to_hex(early), to_hex(listed));

  ByteVector settings{0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100};
  for (bool present : {true, false}) {
    ByteVector stream = present ? early : ByteVector();
    append(stream, settings);
    for (std::size_t slice = 1; slice <= stream.size(); ++slice) {
      EarlyPayloadReader reader;
      ByteVector rest;
      for (std::size_t at = 0; at < stream.size(); at += slice) {
        ASSERT_TRUE(reader.consume(Bytes(stream).subspan(at, std::min(slice, stream.size() - at)), rest).ok());
      }
      EXPECT_TRUE(reader.done());
      EXPECT_EQ(rest, settings);
      EXPECT_EQ(reader.payload().empty(), !present);
    }
  }
  ByteVector huge{0xff, 0xff, 0xff, 'T', 'S', 0, 0, 4, 1};
  EarlyPayloadReader reader;
  ByteVector rest;
  EXPECT_FALSE(reader.consume(huge, rest).ok());
}

}  // namespace
}  // namespace porthole::ts2021
