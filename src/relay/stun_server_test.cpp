#include "relay/stun_server.h"

#include <gtest/gtest.h>

#include "support/vectors.h"

namespace porthole::relay {
namespace {

TEST(StunServer, AnswersExactlyTheVectorsRequests) {
  boost::json::value vectors = test::load_vectors("stun.json");
  StunServer server;
  Endpoint v4 = *Endpoint::parse("203.0.113.7:41641");
  for (const auto& r : vectors.at("requests").as_array()) {
    bool accept = r.at("accept").as_bool();
    Bytes answer = server.answer(v4, test::unhex(r.at("bytes")));
    EXPECT_EQ(!answer.empty(), accept) << test::text(r.at("name"));
    if (!accept) continue;
    auto parsed = wire::stun::parse_response(answer);
    ASSERT_TRUE(parsed);
    EXPECT_EQ(parsed->mapped, v4);
    EXPECT_EQ(to_hex(parsed->id), test::text(r.at("txid")));
  }
  EXPECT_GT(server.counters().answered_v4, 0u);
  EXPECT_GT(server.counters().ignored, 0u);
}

TEST(StunServer, AnswersAreTheVectorsBytes) {
  boost::json::value vectors = test::load_vectors("stun.json");
  StunServer server;
  int checked = 0;
  for (const auto& r : vectors.at("responses").as_array()) {
    std::string_view name = test::text(r.at("name"));
    if (name != "ipv4" && name != "ipv6") continue;
    Endpoint source{*IpAddress::parse(test::text(r.at("ip"))), static_cast<std::uint16_t>(test::u64(r.at("port")))};
    wire::stun::TransactionId id;
    ByteVector txid = test::unhex(r.at("txid"));
    std::copy(txid.begin(), txid.end(), id.begin());
    EXPECT_EQ(to_hex(server.answer(source, wire::stun::encode_request(id))), test::text(r.at("bytes")));
    ++checked;
  }
  EXPECT_EQ(checked, 2);
}

TEST(StunServer, SilentForFlippedCutAndSourcelessRequests) {
  StunServer server;
  auto request = wire::stun::encode_request({1, 2, 3});
  Endpoint source = *Endpoint::parse("[2001:db8::1]:5");
  for (std::size_t bit = 0; bit < request.size() * 8; ++bit) {
    auto flipped = request;
    flipped[bit / 8] ^= static_cast<std::uint8_t>(1 << bit % 8);
    EXPECT_TRUE(server.answer(source, flipped).empty()) << bit;
  }
  for (std::size_t n = 0; n < request.size(); ++n) EXPECT_TRUE(server.answer(source, Bytes(request).first(n)).empty());
  EXPECT_TRUE(server.answer({}, request).empty());
  EXPECT_EQ(server.answer(source, request).size(), 44u);
}

}  // namespace
}  // namespace porthole::relay
