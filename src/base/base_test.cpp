#include <gtest/gtest.h>

#include "base/bytes.h"
#include "base/ip.h"
#include "base/key.h"
#include "base/out_bytes.h"
#include "base/result.h"
#include "base/rng.h"

namespace porthole {
namespace {

TEST(Bytes, HexRoundTripAndRejects) {
  EXPECT_EQ(to_hex(std::array<std::uint8_t, 3>{0x00, 0xab, 0xff}), "00abff");
  EXPECT_EQ(from_hex("00ABff"), (ByteVector{0x00, 0xab, 0xff}));
  EXPECT_FALSE(from_hex("0"));
  EXPECT_FALSE(from_hex("0g"));
}

TEST(Bytes, Base64Rfc4648Vectors) {
  const char* plain[] = {"", "f", "fo", "foo", "foob", "fooba", "foobar"};
  const char* coded[] = {"", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"};
  for (int i = 0; i < 7; ++i) {
    EXPECT_EQ(to_base64(as_bytes(plain[i])), coded[i]);
    auto back = from_base64(coded[i]);
    ASSERT_TRUE(back) << coded[i];
    EXPECT_EQ(as_text(*back), plain[i]);
  }
  for (const char* bad : {"Zg=", "Zg", "Z===", "====", "Zg=a", "Z g=", "Zg==Zg=="}) EXPECT_FALSE(from_base64(bad)) << bad;
}

TEST(Bytes, ReaderLatchesShortRead) {
  const std::uint8_t b[] = {1, 2, 3};
  ByteReader r(b);
  EXPECT_EQ(r.be16(), 0x0102);
  EXPECT_TRUE(r.ok());
  EXPECT_EQ(r.be32(), 0u);
  EXPECT_FALSE(r.ok());
  EXPECT_EQ(r.u8(), 0u);
}

// A reader that takes as much as comes, and is a kilobyte behind for ever.
TEST(OutBytes, AReaderThatIsAlwaysBehindCostsOnlyWhatWaits) {
  OutBytes out;
  std::uint8_t in = 0, expected = 0;
  auto write = [&](std::size_t n) {
    while (n-- > 0) out.end().push_back(in++);
  };
  write(1024);
  for (int i = 0; i < 5000; ++i) {
    write(100);
    std::uint8_t block[100];
    ASSERT_EQ(out.take(block), sizeof block);
    for (std::uint8_t b : block) ASSERT_EQ(b, expected++);
    ASSERT_EQ(out.size(), 1024u);
  }
  EXPECT_LE(out.end().capacity(), 8u * 1024);
  ByteVector rest(2000);
  EXPECT_EQ(out.take(rest), 1024u);
  EXPECT_EQ(rest[1023], static_cast<std::uint8_t>(in - 1));
  EXPECT_TRUE(out.empty());
  EXPECT_EQ(out.take(rest), 0u);
}

TEST(Ip, ParseAndFormat) {
  const std::pair<const char*, const char*> good[] = {
      {"192.0.2.1", "192.0.2.1"}, {"::", "::"}, {"::1", "::1"}, {"2001:db8::1", "2001:db8::1"},
      {"2001:DB8:0:0:1:0:0:1", "2001:db8::1:0:0:1"}, {"fe80::1:2", "fe80::1:2"}, {"1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7:8"},
      {"::ffff:1.2.3.4", "1.2.3.4"}, {"1::", "1::"}, {"1:0:0:2::3", "1:0:0:2::3"}, {"1:2:3:4:5:6:7::", "1:2:3:4:5:6:7:0"}};
  for (auto [in, out] : good) {
    auto a = IpAddress::parse(in);
    ASSERT_TRUE(a) << in;
    EXPECT_EQ(a->to_string(), out);
  }
  for (const char* bad : {"", "1.2.3", "1.2.3.256", "01.2.3.4", "1.2.3.4.5", ":", ":::", "1::2::3", "1:2:3:4:5:6:7:8:9",
                          "1:2:3:4:5:6:7:", "12345::", "g::", "1.2.3.4:80", "::1.2.3", "1:2:3:4:5:6:7:8::"})
    EXPECT_FALSE(IpAddress::parse(bad)) << bad;
}

TEST(Ip, EndpointAndPrefix) {
  EXPECT_EQ(Endpoint::parse("[2001:db8::1]:41641")->to_string(), "[2001:db8::1]:41641");
  EXPECT_EQ(Endpoint::parse("1.2.3.4:0")->port, 0);
  for (const char* bad : {"1.2.3.4", "1.2.3.4:65536", "2001:db8::1:80", "[1.2.3.4]:80", "[::1]", ":80"})
    EXPECT_FALSE(Endpoint::parse(bad)) << bad;
  auto p = *Prefix::parse("100.64.0.0/10");
  EXPECT_TRUE(p.contains(*IpAddress::parse("100.127.255.255")));
  EXPECT_FALSE(p.contains(*IpAddress::parse("100.128.0.0")));
  EXPECT_FALSE(p.contains(*IpAddress::parse("::1")));
  EXPECT_TRUE(p.is_canonical());
  EXPECT_FALSE(Prefix::parse("100.64.0.1/10")->is_canonical());
  EXPECT_TRUE(Prefix::parse("0.0.0.0/0")->contains(*IpAddress::parse("8.8.8.8")));
  EXPECT_FALSE(Prefix::parse("1.2.3.4/33"));
}

TEST(Key, TextForms) {
  auto k = NodePublic::parse("nodekey:" + std::string(64, 'a'));
  ASSERT_TRUE(k);
  EXPECT_EQ(k->to_string(), "nodekey:" + std::string(64, 'a'));
  EXPECT_FALSE(NodePublic::parse("mkey:" + std::string(64, 'a')));
  EXPECT_FALSE(NodePublic::parse("nodekey:" + std::string(63, 'a')));
  EXPECT_TRUE(NodePublic::parse("nodekey:" + std::string(64, '0'))->is_zero());
}

TEST(Result, CarriesErrorWithContext) {
  Result<int> r = Error{ErrorCode::kTimeout, "no answer"};
  ASSERT_FALSE(r.ok());
  EXPECT_EQ(r.error().with_context("relay home").message, "relay home: no answer");
}

TEST(Rng, SameSeedSameBytesAndBackoffIsBounded) {
  SeededRng a(7), b(7), c(8);
  EXPECT_EQ(a.u64(), b.u64());
  EXPECT_NE(a.u64(), c.u64());
  Backoff backoff(5s);
  for (int i = 0; i < 1000; ++i) EXPECT_LE(backoff.next(a), 7500ms);
}

}  // namespace
}  // namespace porthole
