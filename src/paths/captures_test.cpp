// Disco messages of real nodes and of the vectors, opened, parsed, and sealed again to the same bytes.
#include <gtest/gtest.h>

#include "crypto/dh.h"
#include "crypto/secret.h"
#include "support/vectors.h"
#include "wire/classify.h"
#include "wire/disco.h"

namespace porthole::paths {
namespace {

using boost::json::value;

ByteVector bytes_of(const value& keys, const value& who, const char* field) { return test::unhex(keys.at(test::text(who)).at(field)); }

std::optional<ByteVector> open(const crypto::BoxKey& key, Bytes packet) {
  const auto e = wire::disco::parse_envelope(packet);
  if (!e) return std::nullopt;
  ByteVector plain(e->box.size() - wire::disco::kTagSize);
  if (!key.open(e->nonce, e->box, plain)) return std::nullopt;
  return plain;
}

ByteVector seal(const crypto::BoxKey& key, const DiscoPublic& sender, Bytes nonce, Bytes plain) {
  ByteVector out(wire::disco::kOverhead + plain.size());
  wire::disco::write_envelope(out, sender, nonce);
  key.seal(nonce, plain, MutBytes(out).subspan(wire::disco::kBoxOffset));
  return out;
}

void round_trip(const value& keys, const value& from, const value& to, const value& nonce, const value& plaintext, Bytes packet) {
  const auto sender = DiscoPublic::from_bytes(bytes_of(keys, from, "disco_public"));
  const auto ours = crypto::BoxKey::make(bytes_of(keys, to, "disco_private"), sender.bytes());
  const auto theirs = crypto::BoxKey::make(bytes_of(keys, from, "disco_private"), bytes_of(keys, to, "disco_public"));
  ASSERT_TRUE(ours && theirs);
  const auto plain = open(*ours, packet);
  ASSERT_TRUE(plain);
  EXPECT_EQ(to_hex(*plain), test::text(plaintext));
  EXPECT_TRUE(wire::disco::parse(*plain));
  EXPECT_EQ(to_hex(seal(*theirs, sender, test::unhex(nonce), *plain)), to_hex(packet));
}

TEST(DiscoCaptures, EveryCapturedMessageOpensParsesAndSealsAgain) {
  const auto all = test::load_capture("disco-packets.json");
  int seen = 0;
  for (const char* list : {"udp", "over_derp"}) {
    for (const auto& v : all.at(list).as_array()) {
      if (!v.as_object().contains("opened")) continue;
      const auto& o = v.at("opened");
      const ByteVector packet = test::unhex(v.as_object().contains("datagram") ? v.at("datagram") : v.at("packet"));
      SCOPED_TRACE(seen);
      round_trip(all.at("keys"), o.at("from"), o.at("to"), o.at("nonce"), o.at("plaintext"), packet);
      const auto m = wire::disco::parse(test::unhex(o.at("plaintext")));
      ASSERT_TRUE(m);
      EXPECT_EQ(to_hex(wire::disco::encode(*m)), test::text(o.at("plaintext")));
      if (const auto* ping = std::get_if<wire::disco::Ping>(&*m)) {
        EXPECT_EQ(ping->node_key.to_string(), test::text(o.at("parsed").at("NodeKey")));
      }
      if (const auto* pong = std::get_if<wire::disco::Pong>(&*m)) {
        EXPECT_EQ(pong->source.to_string(), test::text(o.at("parsed").at("Src")));
      }
      ++seen;
    }
  }
  EXPECT_EQ(seen, 19);
}

TEST(DiscoCaptures, KeysOfVectorsAndCaptures) {
  for (const auto& all : {test::load_vectors("disco.json"), test::load_capture("disco-packets.json")}) {
    for (const auto& [name, k] : all.at("keys").as_object()) {
      const auto disco = crypto::DiscoPrivate::from_bytes(test::unhex(k.at("disco_private")));
      EXPECT_EQ(to_hex(disco.public_key().bytes()), test::text(k.at("disco_public"))) << name;
      if (!k.as_object().contains("node_private")) continue;
      const auto node = crypto::NodePrivate::from_bytes(test::unhex(k.at("node_private")));
      EXPECT_EQ(to_hex(node.public_key().bytes()), test::text(k.at("node_public"))) << name;
    }
  }
}

TEST(DiscoCaptures, VectorsSealToTheSameBytes) {
  const auto all = test::load_vectors("disco.json");
  for (const auto& v : all.at("messages").as_array()) {
    SCOPED_TRACE(std::string(test::text(v.at("name"))));
    round_trip(all.at("keys"), v.at("from"), v.at("to"), v.at("nonce"), v.at("plaintext"), test::unhex(v.at("packet")));
  }
}

TEST(DiscoCaptures, MustRejectVectors) {
  const auto all = test::load_vectors("disco.json");
  const auto& keys = all.at("keys");
  int seen = 0;
  for (const auto& v : all.at("must_reject").as_array()) {
    const ByteVector packet = test::unhex(v.at("packet"));
    bool accepted = wire::classify(packet).kind == wire::DatagramKind::kDisco;
    const auto e = wire::disco::parse_envelope(packet);
    accepted = accepted && e.has_value();
    if (accepted) {
      const auto key = crypto::BoxKey::make(bytes_of(keys, v.at("to"), "disco_private"), e->sender.bytes());
      const auto plain = key ? open(*key, packet) : std::nullopt;
      accepted = plain && wire::disco::parse(*plain);
    }
    EXPECT_FALSE(accepted) << v.at("name");
    ++seen;
  }
  EXPECT_EQ(seen, 10);
}

}  // namespace
}  // namespace porthole::paths
