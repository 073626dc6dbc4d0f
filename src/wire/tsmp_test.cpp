#include "wire/tsmp.h"

#include <gtest/gtest.h>

#include "base/rng.h"
#include "support/vectors.h"

namespace porthole::wire::tsmp {
namespace {

std::string flow_text(const Reject& r) {
  return (r.ip_protocol == 6 ? std::string("tcp ") : std::string("? ")) + r.flow_source.to_string() + " > " +
         r.flow_destination.to_string();
}

void expect_fields(const boost::json::object& v, const Packet& p) {
  if (v.contains("data") && !v.contains("peerapi_port")) {
    ASSERT_TRUE(std::holds_alternative<Ping>(p.message));
    EXPECT_EQ(to_hex(std::get<Ping>(p.message).data), test::text(v.at("data")));
  } else if (v.contains("peerapi_port")) {
    ASSERT_TRUE(std::holds_alternative<Pong>(p.message));
    EXPECT_EQ(to_hex(std::get<Pong>(p.message).data), test::text(v.at("data")));
    EXPECT_EQ(std::get<Pong>(p.message).peer_api_port, test::u64(v.at("peerapi_port")));
  } else if (v.contains("flow")) {
    ASSERT_TRUE(std::holds_alternative<Reject>(p.message));
    const Reject& r = std::get<Reject>(p.message);
    EXPECT_EQ(flow_text(r), test::text(v.at("flow")));
    EXPECT_EQ(static_cast<char>(r.reason), test::text(v.at("reason"))[0]);
    EXPECT_EQ(r.maybe_broken, v.at("maybe_broken").as_bool());
  } else {
    ASSERT_TRUE(std::holds_alternative<DiscoKey>(p.message));
    EXPECT_EQ(to_hex(std::get<DiscoKey>(p.message).key.bytes()), test::text(v.at("disco_key")));
  }
}

TEST(Tsmp, VectorsParseAndEncode) {
  const auto all = test::load_vectors("disco.json");
  ASSERT_EQ(all.at("tsmp").as_array().size(), 7u);
  for (const auto& v : all.at("tsmp").as_array()) {
    SCOPED_TRACE(std::string(test::text(v.at("name"))));
    const ByteVector raw = test::unhex(v.at("ip_packet"));
    EXPECT_TRUE(is_tsmp(raw));
    const auto p = parse(raw);
    ASSERT_TRUE(p);
    expect_fields(v.as_object(), *p);
    EXPECT_EQ(to_hex(encode(*p)), to_hex(raw));
  }
}

TEST(Tsmp, PongWithoutPortAndBadInput) {
  const IpAddress a = IpAddress::v4(100, 64, 0, 1), b = IpAddress::v4(100, 64, 0, 2);
  ByteVector pong = encode({a, b, 0xfffe, Pong{{1, 2, 3, 4, 5, 6, 7, 8}, 9}});
  EXPECT_EQ(parse(pong)->ip_id, 0xfffe);
  pong.resize(pong.size() - 2);
  store_be(pong.data() + 2, static_cast<std::uint16_t>(pong.size()));
  ASSERT_TRUE(parse(pong));
  EXPECT_EQ(std::get<Pong>(parse(pong)->message).peer_api_port, 0);

  EXPECT_FALSE(parse(encode({a, b, 0, DiscoKey{}})));   // zero key
  ByteVector unknown = encode({a, b, 0, Ping{}});
  unknown[20] = 'z';
  EXPECT_TRUE(is_tsmp(unknown));
  EXPECT_FALSE(parse(unknown));
  ByteVector fragment = encode({a, b, 0, Ping{}});
  fragment[6] = 0x20;   // more fragments
  EXPECT_FALSE(parse(fragment));
}

TEST(Tsmp, HostileInput) {
  const auto all = test::load_vectors("disco.json");
  SeededRng rng(3);
  for (const auto& v : all.at("tsmp").as_array()) {
    const ByteVector raw = test::unhex(v.at("ip_packet"));
    for (std::size_t n = 0; n < raw.size(); ++n) EXPECT_FALSE(parse(Bytes(raw).first(n)));
    for (int i = 0; i < 2000; ++i) {
      ByteVector bad = raw;
      bad[rng.below(bad.size())] = static_cast<std::uint8_t>(rng.u32());
      (void)parse(bad);
    }
  }
}

}  // namespace
}  // namespace porthole::wire::tsmp
