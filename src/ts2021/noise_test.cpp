#include "ts2021/noise.h"

#include <gtest/gtest.h>

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
  }
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

    ScriptedRng server_rng(key("control_ephemeral"));
    auto r = respond_noise(unhex(h.at("initiation")), machine_key("control_static"), server_rng);
    ASSERT_TRUE(r.ok());
    EXPECT_EQ(to_hex(r->response), test::text(h.at("response")));
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
