#include "wire/classify.h"

#include <gtest/gtest.h>

#include "support/vectors.h"
#include "wire/disco.h"

namespace porthole::wire {
namespace {

TEST(Classify, Vectors) {
  const auto all = test::load_vectors("disco.json");
  ASSERT_EQ(all.at("classify").as_array().size(), 14u);
  for (const auto& v : all.at("classify").as_array()) {
    const Classified c = classify(test::unhex(v.at("datagram")));
    const std::string_view want = test::text(v.at("class"));
    EXPECT_EQ(c.kind, want == "stun" ? DatagramKind::kStun : want == "disco" ? DatagramKind::kDisco : DatagramKind::kWireGuard)
        << v.at("name");
    EXPECT_EQ(c.geneve, v.at("geneve").as_bool()) << v.at("name");
  }
}

TEST(Classify, CapturedTraffic) {
  const auto all = test::load_capture("disco-packets.json");
  for (const auto& v : all.at("udp").as_array()) {
    const std::string_view kind = test::text(v.at("kind"));
    if (kind != "disco" && kind != "stun") continue;
    const Classified c = classify(test::unhex(v.at("datagram")));
    EXPECT_EQ(c.kind, kind == "disco" ? DatagramKind::kDisco : DatagramKind::kStun);
    EXPECT_FALSE(c.geneve);
  }
}

TEST(Classify, WireGuardNeverLooksLikeAnythingElse) {
  // Message types 1..4 with their three zero bytes, whatever follows.
  for (std::uint8_t type = 1; type <= 4; ++type) {
    ByteVector p(200, 0xff);
    p[0] = type;
    p[1] = p[2] = p[3] = 0;
    std::memcpy(p.data() + 4, "\x21\x12\xa4\x42", 4);
    for (std::size_t n = 0; n <= p.size(); ++n) EXPECT_EQ(classify(Bytes(p).first(n)).kind, DatagramKind::kWireGuard);
  }
}

TEST(Classify, GeneveRoundTripAndVectors) {
  const auto all = test::load_vectors("disco.json");
  int seen = 0;
  for (const auto& v : all.at("messages").as_array()) {
    if (!v.as_object().contains("geneve_header")) continue;
    ++seen;
    const ByteVector raw = test::unhex(v.at("geneve_header"));
    const auto h = parse_geneve(raw);
    ASSERT_TRUE(h);
    EXPECT_EQ(h->protocol, kGeneveDisco);
    EXPECT_EQ(h->vni, 658188u);
    EXPECT_EQ(h->control, test::text(v.at("name")) != "ping_via_relay");
    EXPECT_TRUE(equal(encode_geneve(*h), raw));
    const Classified c = classify(test::unhex(v.at("datagram")));
    EXPECT_EQ(c.kind, DatagramKind::kDisco);
    EXPECT_TRUE(c.geneve);
  }
  EXPECT_EQ(seen, 4);
  for (std::size_t n = 0; n < kGeneveHeaderSize; ++n) EXPECT_FALSE(parse_geneve(Bytes(encode_geneve({})).first(n)));
}

}  // namespace
}  // namespace porthole::wire
