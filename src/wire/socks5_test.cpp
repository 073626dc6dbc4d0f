#include "wire/socks5.h"

#include <gtest/gtest.h>

#include "support/vectors.h"

namespace porthole::wire::socks5 {
namespace {

ByteVector unhex(std::string_view hex) { return test::unhex(hex); }

TEST(Socks5, GreetingAndLogin) {
  Greeting g;
  std::size_t size = 0;
  ByteVector in = unhex("0503000102ff");
  ASSERT_EQ(parse_greeting(in, g, size), Parsed::kDone);
  EXPECT_EQ(size, 5u);
  EXPECT_TRUE(g.offers(Method::kPassword));
  ByteVector two = unhex("05020001"), none = unhex("0500"), four = unhex("0401");
  ASSERT_EQ(parse_greeting(two, g, size), Parsed::kDone);
  EXPECT_FALSE(g.offers(Method::kPassword));
  EXPECT_EQ(parse_greeting(none, g, size), Parsed::kDone);
  EXPECT_EQ(parse_greeting(four, g, size), Parsed::kBad);
  for (std::size_t n = 0; n < 5; ++n) EXPECT_EQ(parse_greeting(Bytes(in).first(n), g, size), Parsed::kMore);

  Login l;
  ByteVector login = unhex("010474736e6574027077aa");
  ASSERT_EQ(parse_login(unhex("0104"), l, size), Parsed::kMore);
  ByteVector tsnet = unhex("010574736e6574027077aa");
  ASSERT_EQ(parse_login(tsnet, l, size), Parsed::kDone);
  EXPECT_EQ(l.user, "tsnet");
  EXPECT_EQ(as_text(l.password), "pw");
  EXPECT_EQ(size, tsnet.size() - 1);
  for (std::size_t n = 0; n < size; ++n) EXPECT_EQ(parse_login(Bytes(tsnet).first(n), l, size), Parsed::kMore) << n;
  EXPECT_EQ(parse_login(unhex("0500"), l, size), Parsed::kBad);
}

TEST(Socks5, RequestForms) {
  struct Case {
    const char* hex;
    const char* host;
    bool is_address;
    int port;
  } cases[] = {
      {"0501000164400102232800", "100.64.1.2", true, 9000},
      {"05010003046e6f64650050ff", "node", false, 80},
      {"050100030931302e302e302e31010050", nullptr, false, 0},
      {"050100030831302e302e302e310050", "10.0.0.1", true, 80},
      {"05010003053a3a3132340050", "::124", true, 80},
      {"05010003055b3a3a315d0050", "::1", true, 80},
      {"0501aa04fd7a115ca1e000000000000000000001ffff", "fd7a:115c:a1e0::1", true, 65535},
  };
  for (const Case& c : cases) {
    ByteVector in = unhex(c.hex);
    Request r;
    std::size_t size = 0;
    Parsed p = parse_request(in, r, size);
    if (!c.host) {
      EXPECT_EQ(p, Parsed::kBad) << c.hex;
      continue;
    }
    ASSERT_EQ(p, Parsed::kDone) << c.hex;
    EXPECT_EQ(r.command, 1);
    EXPECT_EQ(r.port, c.port);
    ASSERT_EQ(std::holds_alternative<IpAddress>(r.host), c.is_address) << c.hex;
    EXPECT_EQ(c.is_address ? std::get<IpAddress>(r.host).to_string() : std::string(std::get<std::string_view>(r.host)), c.host);
    std::size_t whole = size;
    for (std::size_t n = 0; n < whole; ++n) EXPECT_EQ(parse_request(Bytes(in).first(n), r, size), Parsed::kMore);
  }
  Request r;
  std::size_t size = 0;
  EXPECT_EQ(parse_request(unhex("0501000201020304"), r, size), Parsed::kBadAddressType);
  EXPECT_EQ(parse_request(unhex("0401"), r, size), Parsed::kBad);
  EXPECT_EQ(parse_request(unhex("05010003000050"), r, size), Parsed::kBad);
  EXPECT_EQ(parse_request(unhex("0501000304612062630050"), r, size), Parsed::kBad);
}

TEST(Socks5, DatagramForms) {
  struct Case {
    const char* target;  // as written: ATYP, address, port
    const char* host;    // nullptr: bad
    bool is_address;
    int port;
  } cases[] = {
      {"01644001022328", "100.64.1.2", true, 9000},
      {"04fd7a115ca1e0000000000000000000010035", "fd7a:115c:a1e0::1", true, 53},
      {"03034e61730035", "Nas", false, 53},
      {"030831302e302e302e310050", "10.0.0.1", true, 80},
      {"03055b3a3a315d0050", "::1", true, 80},
      {"0300" "0050", nullptr, false, 0},
      {"030461206263" "0050", nullptr, false, 0},
      {"00644001022328", nullptr, false, 0},
      {"02644001022328", nullptr, false, 0},
  };
  for (const Case& c : cases) {
    // RSV is not zero in the second: tolerated, as in requests.
    for (const char* front : {"000000", "ffff03"}) {
      ByteVector target = unhex(c.target), in = unhex(front);
      append(in, target);
      std::size_t head = in.size();
      append(in, as_bytes("data"));
      auto d = parse_datagram(in);
      ASSERT_EQ(d.has_value(), c.host != nullptr) << c.target;
      if (!d) continue;
      EXPECT_EQ(d->fragment, in[2]);
      EXPECT_EQ(d->port, c.port);
      ASSERT_EQ(std::holds_alternative<IpAddress>(d->host), c.is_address) << c.target;
      EXPECT_EQ(c.is_address ? std::get<IpAddress>(d->host).to_string() : std::string(std::get<std::string_view>(d->host)), c.host);
      EXPECT_EQ(to_hex(d->target), c.target);
      EXPECT_EQ(as_text(d->data), "data");
      // The head of an answer is the one of the question.
      ByteVector answer;
      encode_datagram_head(answer, d->target);
      EXPECT_EQ(to_hex(answer), "000000" + std::string(c.target));
      for (std::size_t n = 0; n < head; ++n) EXPECT_FALSE(parse_datagram(Bytes(in).first(n))) << n;
      auto empty = parse_datagram(Bytes(in).first(head));
      ASSERT_TRUE(empty);
      EXPECT_TRUE(empty->data.empty());
    }
  }
  ByteVector longest = unhex("00000003ff");
  longest.resize(longest.size() + 255, 'x');
  append(longest, unhex("0001"));
  EXPECT_EQ(longest.size(), kDatagramHeadMax);
  EXPECT_TRUE(parse_datagram(longest));
}

TEST(Socks5, Encoders) {
  ByteVector out;
  encode_method(out, Method::kPassword);
  encode_login_result(out, false);
  encode_reply(out, Reply::kSucceeded, {IpAddress::v4(100, 64, 0, 1), 0x1234});
  encode_reply(out, Reply::kConnectionRefused, {});
  EXPECT_EQ(to_hex(out), "05020101" "05000001644000011234" "05050001000000000000");
  out.clear();
  encode_reply(out, Reply::kSucceeded, {*IpAddress::parse("fd7a::1"), 1});
  EXPECT_EQ(to_hex(out), "05000004fd7a00000000000000000000000000010001");
}

}  // namespace
}  // namespace porthole::wire::socks5
