#include "wire/portmap.h"

#include <gtest/gtest.h>

#include "base/rng.h"
#include "support/vectors.h"

namespace porthole::wire::portmap {
namespace {

constexpr std::uint16_t kInternal = 41641;
constexpr std::uint16_t kExternal = 52000;
constexpr std::uint32_t kLifetimeSeconds = 7200;
constexpr PcpNonce kNonce{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};

const boost::json::object& vectors() {
  static const boost::json::value v = test::load_vectors("disco.json");
  return v.at("portmap").as_object();
}
std::string_view hex(std::string_view name) { return test::text(vectors().at(name)); }
ByteVector bytes(std::string_view name) { return test::unhex(vectors().at(name)); }

ByteVector with(ByteVector b, std::size_t at, std::uint8_t value) {
  b.at(at) = value;
  return b;
}
// The mapping's address in a PCP answer.
ByteVector with_external(ByteVector b, std::string_view address) {
  const auto raw = IpAddress::parse(address)->mapped();
  std::copy(raw.begin(), raw.end(), b.begin() + 44);
  return b;
}

TEST(Portmap, EveryRequestVector) {
  ASSERT_EQ(vectors().size(), 8u) << "a new entry needs a test";
  EXPECT_EQ(to_hex(encode_nat_pmp_external_request()), hex("natpmp_external_request"));
  EXPECT_EQ(to_hex(encode_nat_pmp_map_request({kInternal, 0, kLifetimeSeconds})), hex("natpmp_map_request"));
  EXPECT_EQ(to_hex(encode_nat_pmp_map_request({kInternal, kExternal, 0})), hex("natpmp_delete_request"));
  const IpAddress client = IpAddress::v4(192, 168, 1, 10);
  EXPECT_EQ(to_hex(encode_pcp_announce_request(client)), hex("pcp_announce_request"));
  EXPECT_EQ(to_hex(encode_pcp_map_request({client, kNonce, kInternal, 0, {}, kLifetimeSeconds})), hex("pcp_map_request"));
}

TEST(Portmap, PcpRenewalAsksForWhatItHad) {
  const auto request = encode_pcp_map_request(
      {IpAddress::v4(192, 168, 1, 10), kNonce, kInternal, kExternal, IpAddress::v4(203, 0, 113, 7), kLifetimeSeconds});
  // From the nonce on, request and answer have one form.
  EXPECT_EQ(to_hex(Bytes(request).subspan(kPcpHeaderSize)), hex("pcp_map_response").substr(2 * kPcpHeaderSize));
}

TEST(Portmap, EveryResponseVector) {
  const auto external = parse_nat_pmp_external_response(bytes("natpmp_external_response"));
  ASSERT_TRUE(external);
  EXPECT_EQ(external->result, NatPmpResult::kSuccess);
  EXPECT_EQ(external->epoch_s, 1000u);
  EXPECT_EQ(external->external.to_string(), "203.0.113.7");

  const auto map = parse_nat_pmp_map_response(bytes("natpmp_map_response"));
  ASSERT_TRUE(map);
  EXPECT_EQ(map->result, NatPmpResult::kSuccess);
  EXPECT_EQ(map->epoch_s, 1000u);
  EXPECT_EQ(map->internal_port, kInternal);
  EXPECT_EQ(map->external_port, kExternal);
  EXPECT_EQ(map->lifetime_s, kLifetimeSeconds);

  const auto pcp = parse_pcp_response(bytes("pcp_map_response"));
  ASSERT_TRUE(pcp && pcp->mapping);
  EXPECT_EQ(pcp->opcode, PcpOpcode::kMap);
  EXPECT_EQ(pcp->result, PcpResult::kSuccess);
  EXPECT_EQ(pcp->lifetime_s, kLifetimeSeconds);
  EXPECT_EQ(pcp->epoch_s, 1000u);
  EXPECT_EQ(pcp->mapping->nonce, kNonce);
  EXPECT_EQ(pcp->mapping->internal_port, kInternal);
  EXPECT_EQ(pcp->mapping->external.to_string(), "203.0.113.7:52000");
}

TEST(Portmap, ShortAnswersAreRefused) {
  for (const char* name : {"natpmp_external_response", "natpmp_map_response", "pcp_map_response"}) {
    SCOPED_TRACE(name);
    const ByteVector whole = bytes(name);
    for (std::size_t n = 0; n < whole.size(); ++n) {
      // A copy of its own, so that a sanitizer sees a read behind the end.
      const ByteVector cut(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(n));
      EXPECT_FALSE(parse_nat_pmp_external_response(cut)) << n;
      EXPECT_FALSE(parse_nat_pmp_map_response(cut)) << n;
      EXPECT_FALSE(parse_pcp_response(cut)) << n;
    }
  }
}

TEST(Portmap, EachAnswerFitsOneParserOnly) {
  for (const auto& entry : vectors()) {
    const std::string_view name = entry.key();
    const ByteVector b = test::unhex(entry.value());
    EXPECT_EQ(parse_nat_pmp_external_response(b).has_value(), name == "natpmp_external_response") << name;
    EXPECT_EQ(parse_nat_pmp_map_response(b).has_value(), name == "natpmp_map_response") << name;
    EXPECT_EQ(parse_pcp_response(b).has_value(), name == "pcp_map_response") << name;
  }
}

TEST(Portmap, OtherVersionsAndOpcodesAreRefused) {
  const ByteVector external = bytes("natpmp_external_response"), map = bytes("natpmp_map_response"), pcp = bytes("pcp_map_response");
  for (int v = 0; v < 256; ++v) {
    const auto byte = static_cast<std::uint8_t>(v);
    EXPECT_EQ(parse_nat_pmp_external_response(with(external, 0, byte)).has_value(), v == 0) << v;
    EXPECT_EQ(parse_nat_pmp_map_response(with(map, 0, byte)).has_value(), v == 0) << v;
    EXPECT_EQ(parse_pcp_response(with(pcp, 0, byte)).has_value(), v == 2) << v;
    EXPECT_EQ(parse_nat_pmp_external_response(with(external, 1, byte)).has_value(), v == 0x80) << v;
    EXPECT_EQ(parse_nat_pmp_map_response(with(map, 1, byte)).has_value(), v == 0x81) << v;  // 0x82 is TCP
    const auto answer = parse_pcp_response(with(pcp, 1, byte));
    EXPECT_EQ(answer.has_value(), v == 0x80 || v == 0x81) << v;
    if (answer) {
      EXPECT_EQ(answer->mapping.has_value(), v == 0x81);
    }
  }
}

TEST(Portmap, FailuresCarryTheirResultAndNothingElse) {
  for (std::uint8_t code = 1; code < 20; ++code) {
    const ByteVector external = with(bytes("natpmp_external_response"), 3, code);
    const auto e = parse_nat_pmp_external_response(external);
    ASSERT_TRUE(e);
    EXPECT_EQ(static_cast<int>(e->result), code);
    EXPECT_FALSE(e->external.is_valid());
    EXPECT_TRUE(parse_nat_pmp_external_response(Bytes(external).first(kNatPmpErrorSize)));
    EXPECT_FALSE(parse_nat_pmp_external_response(Bytes(external).first(kNatPmpErrorSize - 1)));

    const auto m = parse_nat_pmp_map_response(with(bytes("natpmp_map_response"), 3, code));
    ASSERT_TRUE(m);
    EXPECT_EQ(static_cast<int>(m->result), code);
    EXPECT_EQ(m->external_port, 0);
    EXPECT_EQ(m->lifetime_s, 0u);

    const ByteVector pcp = with(bytes("pcp_map_response"), 3, code);
    const auto p = parse_pcp_response(pcp);
    ASSERT_TRUE(p && p->mapping);
    EXPECT_EQ(static_cast<int>(p->result), code);
    EXPECT_EQ(p->mapping->nonce, kNonce);
    const auto bare = parse_pcp_response(Bytes(pcp).first(kPcpHeaderSize));
    ASSERT_TRUE(bare);
    EXPECT_EQ(static_cast<int>(bare->result), code);
    EXPECT_FALSE(bare->mapping);
  }
  // Both bytes of a NAT-PMP result count.
  EXPECT_EQ(static_cast<int>(parse_nat_pmp_map_response(with(bytes("natpmp_map_response"), 2, 1))->result), 0x100);
}

TEST(Portmap, SuccessesOfNoUseAreRefused) {
  ByteVector external = bytes("natpmp_external_response");
  std::fill(external.begin() + 8, external.end(), std::uint8_t{0});
  EXPECT_FALSE(parse_nat_pmp_external_response(external));
  external[8] = 127;
  EXPECT_FALSE(parse_nat_pmp_external_response(external));
  external[8] = 10;   // a private one is a gateway behind a gateway: true, if useless
  EXPECT_TRUE(parse_nat_pmp_external_response(external));

  ByteVector map = with(with(bytes("natpmp_map_response"), 10, 0), 11, 0);
  EXPECT_FALSE(parse_nat_pmp_map_response(map));
  std::fill(map.begin() + 12, map.end(), std::uint8_t{0});   // the answer to a delete request
  ASSERT_TRUE(parse_nat_pmp_map_response(map));
  EXPECT_EQ(parse_nat_pmp_map_response(map)->lifetime_s, 0u);

  const ByteVector pcp = bytes("pcp_map_response");
  EXPECT_FALSE(parse_pcp_response(with(with(pcp, 42, 0), 43, 0)));
  EXPECT_FALSE(parse_pcp_response(with(pcp, 36, 6))) << "TCP";
  for (const char* bad : {"0.0.0.0", "127.0.0.1", "::", "::1"}) EXPECT_FALSE(parse_pcp_response(with_external(pcp, bad))) << bad;
  EXPECT_TRUE(parse_pcp_response(with_external(pcp, "10.0.0.1")));
  ByteVector gone = with_external(pcp, "0.0.0.0");
  std::fill(gone.begin() + 4, gone.begin() + 8, std::uint8_t{0});
  ASSERT_TRUE(parse_pcp_response(gone));
  EXPECT_EQ(parse_pcp_response(gone)->lifetime_s, 0u);
}

TEST(Portmap, PcpSizes) {
  ByteVector pcp = bytes("pcp_map_response");
  pcp.resize(kPcpMapSize + 1);
  EXPECT_FALSE(parse_pcp_response(pcp)) << "no multiple of four";
  pcp.resize(kPcpSizeMax);
  EXPECT_TRUE(parse_pcp_response(pcp)) << "options";
  pcp.resize(kPcpSizeMax + 4);
  EXPECT_FALSE(parse_pcp_response(pcp));
}

TEST(Portmap, HostileInput) {
  SeededRng rng(6);
  for (const auto& entry : vectors()) {
    const ByteVector whole = test::unhex(entry.value());
    for (int i = 0; i < 2000; ++i) {
      ByteVector bad = whole;
      bad[rng.below(bad.size())] = static_cast<std::uint8_t>(rng.u32());
      bad.resize(rng.below(bad.size() + 8));
      if (const auto e = parse_nat_pmp_external_response(bad)) {
        EXPECT_EQ(e->external.is_valid(), e->result == NatPmpResult::kSuccess);
      }
      if (const auto m = parse_nat_pmp_map_response(bad); m && m->lifetime_s != 0) {
        EXPECT_NE(m->external_port, 0);
      }
      if (const auto p = parse_pcp_response(bad); p && p->opcode == PcpOpcode::kMap && p->result == PcpResult::kSuccess) {
        EXPECT_TRUE(p->mapping);
      }
    }
  }
}

}  // namespace
}  // namespace porthole::wire::portmap
