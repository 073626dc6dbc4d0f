#include "wire/stun.h"

#include <gtest/gtest.h>

#include "base/rng.h"
#include "support/vectors.h"

namespace porthole::wire::stun {
namespace {

using test::unhex;

TransactionId id_from(const boost::json::value& v) {
  TransactionId id{};
  ByteVector b = unhex(v);
  std::memcpy(id.data(), b.data(), id.size());
  return id;
}

TEST(Stun, RequestVectors) {
  const auto all = test::load_vectors("stun.json");
  int accepted = 0;
  for (const auto& v : all.at("requests").as_array()) {
    const ByteVector bytes = unhex(v.at("bytes"));
    const auto id = parse_request(bytes);
    ASSERT_EQ(id.has_value(), v.at("accept").as_bool()) << v.at("name");
    if (!id) continue;
    ++accepted;
    EXPECT_EQ(*id, id_from(v.at("txid")));
    EXPECT_TRUE(equal(encode_request(*id), bytes)) << v.at("name");
    EXPECT_EQ(to_hex(Bytes(bytes).subspan(36)), test::text(v.at("fingerprint")));
    std::array<std::uint8_t, 4> crc{};
    store_be(crc.data(), crc32(Bytes(bytes).first(test::u64(v.at("crc_input_len")))));
    EXPECT_EQ(to_hex(crc), test::text(v.at("crc32")));
  }
  EXPECT_EQ(accepted, 2);
}

TEST(Stun, OtherSoftwareOnlyWhenAllowed) {
  const auto all = test::load_vectors("stun.json");
  for (const auto& v : all.at("requests").as_array())
    if (test::text(v.at("name")) == "wrong_software") {
      EXPECT_TRUE(parse_request(unhex(v.at("bytes")), true));
    }
}

TEST(Stun, ResponseVectors) {
  const auto all = test::load_vectors("stun.json");
  for (const auto& v : all.at("responses").as_array()) {
    const auto r = parse_response(unhex(v.at("bytes")));
    ASSERT_TRUE(r) << v.at("name");
    EXPECT_EQ(r->id, id_from(v.at("txid"))) << v.at("name");
    EXPECT_EQ(r->mapped.address.to_string(), test::text(v.at("ip"))) << v.at("name");
    EXPECT_EQ(r->mapped.port, test::u64(v.at("port"))) << v.at("name");
  }
  for (const auto& v : all.at("bad_responses").as_array()) EXPECT_FALSE(parse_response(unhex(v.at("bytes")))) << v.at("name");
}

TEST(Stun, DiscoVectorSection) {
  const auto all = test::load_vectors("disco.json");
  const auto& v = all.at("stun");
  const TransactionId id = id_from(v.at("txid"));
  EXPECT_EQ(to_hex(encode_request(id)), test::text(v.at("request")));
  EXPECT_EQ(parse_response(unhex(v.at("response_ipv4")))->mapped.to_string(), test::text(v.at("mapped_ipv4")));
  EXPECT_EQ(parse_response(unhex(v.at("response_ipv6")))->mapped.to_string(), test::text(v.at("mapped_ipv6")));
}

TEST(Stun, CapturedRequestsAndAnswers) {
  const auto all = test::load_capture("disco-packets.json");
  int requests = 0, answers = 0;
  for (const auto& v : all.at("udp").as_array()) {
    if (test::text(v.at("kind")) != "stun") continue;
    const ByteVector bytes = unhex(v.at("datagram"));
    if (auto id = parse_request(bytes)) {
      ++requests;
      EXPECT_TRUE(equal(encode_request(*id), bytes));
    } else if (auto r = parse_response(bytes)) {
      ++answers;
      EXPECT_EQ(r->mapped.to_string(), test::text(v.at("dst")));   // no NAT in that network
      EXPECT_TRUE(r->mapped.address.is_v4());                      // trap: family 2 carrying ::ffff:a.b.c.d
    } else {
      ADD_FAILURE() << "neither request nor answer";
    }
  }
  EXPECT_GT(requests, 0);
  EXPECT_GT(answers, 0);
}

TEST(Stun, AnswerRoundTripBothFamilies) {
  TransactionId id{};
  for (std::size_t i = 0; i < id.size(); ++i) id[i] = static_cast<std::uint8_t>(i * 17);
  for (const char* text : {"203.0.113.7:41641", "[2001:db8:1:2:3:4:5:6]:51820", "[::ffff:1.2.3.4]:9"}) {
    const Endpoint e = *Endpoint::parse(text);
    std::uint8_t out[kResponseSizeMax];
    const std::size_t n = encode_response(id, e, out);
    EXPECT_EQ(n, e.address.is_v4() ? 32u : 44u);
    const auto r = parse_response(Bytes(out).first(n));
    ASSERT_TRUE(r);
    EXPECT_EQ(r->mapped, e);
    EXPECT_EQ(r->id, id);
  }
}

TEST(Stun, HostileInput) {
  TransactionId id{};
  const auto request = encode_request(id);
  for (std::size_t n = 0; n < request.size(); ++n) EXPECT_FALSE(parse_request(Bytes(request).first(n)));
  for (std::size_t bit = 0; bit < request.size() * 8; ++bit) {
    auto bad = request;
    bad[bit / 8] ^= static_cast<std::uint8_t>(1u << (bit % 8));
    EXPECT_FALSE(parse_request(bad)) << bit;   // every bit is covered by the checks or by FINGERPRINT
  }
  ByteVector longer(request.begin(), request.end());
  longer.push_back(0);
  EXPECT_FALSE(parse_request(longer));

  std::uint8_t answer[kResponseSizeMax];
  const std::size_t size = encode_response(id, *Endpoint::parse("[2001:db8::1]:1"), answer);
  for (std::size_t n = 0; n < size; ++n) EXPECT_FALSE(parse_response(Bytes(answer).first(n)));
  SeededRng rng(1);
  for (int i = 0; i < 20000; ++i) {
    std::uint8_t noise[64];
    rng.fill(noise);
    std::memcpy(noise, answer, 8);
    if ((i & 1) != 0) store_be<std::uint16_t>(noise, 1);
    (void)parse_response(Bytes(noise).first(rng.below(65)));
    (void)parse_request(Bytes(noise).first(rng.below(65)));
  }
}

}  // namespace
}  // namespace porthole::wire::stun
