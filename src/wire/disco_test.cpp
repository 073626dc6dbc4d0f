#include "wire/disco.h"

#include <gtest/gtest.h>

#include "base/rng.h"
#include "support/vectors.h"
#include "wire/ip.h"
#include "wire/udp.h"

namespace porthole::wire::disco {
namespace {

using boost::json::object;
using boost::json::value;

DiscoPublic disco_key(const value& v) { return DiscoPublic::from_bytes(test::unhex(v)); }

TxId tx_id(const value& v) {
  TxId id{};
  const ByteVector b = test::unhex(v);
  std::memcpy(id.data(), b.data(), id.size());
  return id;
}

std::vector<Endpoint> endpoints(const value& v) {
  std::vector<Endpoint> out;
  for (const auto& e : v.as_array()) out.push_back(*Endpoint::parse(test::text(e)));
  return out;
}

RelayEndpoint relay_endpoint(const object& f) {
  RelayEndpoint e;
  e.server_disco = disco_key(f.at("server_disco"));
  for (std::size_t i = 0; i < 2; ++i) e.client_disco[i] = disco_key(f.at("client_disco").as_array()[i]);
  e.lamport_id = test::u64(f.at("lamport_id"));
  e.vni = static_cast<std::uint32_t>(test::u64(f.at("vni")));
  e.bind_lifetime_ns = test::u64(f.at("bind_lifetime_ns"));
  e.steady_lifetime_ns = test::u64(f.at("steady_state_lifetime_ns"));
  e.addresses = endpoints(f.at("addr_ports"));
  return e;
}

// What the "fields" of a vector say, as a message.
Message expected(std::uint8_t type, const object& f) {
  switch (type) {
    case 1: {
      Ping m;
      m.tx_id = tx_id(f.at("txid"));
      if (!f.at("node_key").is_null()) m.node_key = NodePublic::from_bytes(test::unhex(f.at("node_key")));
      m.padding = test::u64(f.at("padding"));
      return m;
    }
    case 2: return Pong{tx_id(f.at("txid")), *Endpoint::parse(test::text(f.at("src")))};
    case 3: return CallMeMaybe{endpoints(f.at("endpoints"))};
    case 4:
    case 5:
    case 6: {
      BindRelay m;
      m.step = static_cast<BindRelay::Step>(type);
      m.vni = static_cast<std::uint32_t>(test::u64(f.at("vni")));
      m.generation = static_cast<std::uint32_t>(test::u64(f.at("generation")));
      m.remote_key = disco_key(f.at("remote_key"));
      EXPECT_TRUE(from_hex_exact(test::text(f.at("challenge")), m.challenge));
      return m;
    }
    case 7: return CallMeMaybeVia{relay_endpoint(f)};
    case 8: {
      AllocateRequest m;
      for (std::size_t i = 0; i < 2; ++i) m.client_disco[i] = disco_key(f.at("client_disco").as_array()[i]);
      m.generation = static_cast<std::uint32_t>(test::u64(f.at("generation")));
      return m;
    }
    case 9: return AllocateResponse{static_cast<std::uint32_t>(test::u64(f.at("generation"))), relay_endpoint(f)};
    default: return Unknown{type};
  }
}

// Messages whose bytes carry something that parsing drops on purpose.
bool reencodes(std::string_view name) {
  return name != "pong_trailing_bytes" && name != "call_me_maybe_bad_length" && name != "unknown_type_0x0a";
}

TEST(Disco, EveryVectorParsesAndEncodes) {
  const auto all = test::load_vectors("disco.json");
  ASSERT_EQ(all.at("messages").as_array().size(), 18u);
  for (const auto& v : all.at("messages").as_array()) {
    const std::string name(test::text(v.at("name")));
    SCOPED_TRACE(name);
    const ByteVector plain = test::unhex(v.at("plaintext"));
    const auto m = parse(plain);
    ASSERT_TRUE(m);
    EXPECT_EQ(*m, expected(plain[0], v.at("fields").as_object()));
    if (reencodes(name)) {
      EXPECT_EQ(to_hex(encode(*m)), to_hex(plain));
    }

    const ByteVector packet = test::unhex(v.at("packet"));
    EXPECT_EQ(packet.size(), test::u64(v.at("packet_len")));
    const auto e = parse_envelope(packet);
    ASSERT_TRUE(e);
    EXPECT_EQ(e->sender, disco_key(all.at("keys").at(test::text(v.at("from"))).at("disco_public")));
    EXPECT_EQ(to_hex(e->nonce), test::text(v.at("nonce")));
    EXPECT_EQ(e->box.size(), plain.size() + kTagSize);
    std::uint8_t head[kBoxOffset];
    write_envelope(head, e->sender, e->nonce);
    EXPECT_TRUE(equal(head, Bytes(packet).first(kBoxOffset)));
  }
}

TEST(Disco, CapturedPlaintexts) {
  const auto all = test::load_capture("disco-packets.json");
  int seen = 0;
  for (const char* list : {"udp", "over_derp"}) {
    for (const auto& v : all.at(list).as_array()) {
      if (!v.as_object().contains("opened")) continue;
      const ByteVector plain = test::unhex(v.at("opened").at("plaintext"));
      const auto m = parse(plain);
      ASSERT_TRUE(m);
      EXPECT_EQ(to_hex(encode(*m)), to_hex(plain));
      ++seen;
    }
  }
  EXPECT_EQ(seen, 19);
}

// A ping padded by what the table says is a datagram of exactly the probed size.
TEST(Disco, MtuProbeSizes) {
  const auto all = test::load_vectors("disco.json");
  std::array<std::uint8_t, 32> raw{};
  raw.fill(7);
  std::size_t n = 0;
  for (const auto& v : all.at("mtu_probe_sizes").as_array()) {
    const std::size_t wire_mtu = test::u64(v.at("wire_mtu"));
    for (const bool v6 : {false, true}) {
      SCOPED_TRACE(std::to_string(wire_mtu) + (v6 ? " over IPv6" : " over IPv4"));
      const std::size_t padding = test::u64(v.at(v6 ? "padding_ipv6" : "padding_ipv4"));
      const ByteVector plain = encode(Ping{{1, 2, 3}, NodePublic(raw), padding});
      const std::size_t sealed = kOverhead + plain.size();
      EXPECT_EQ(sealed, kPingSize + padding);
      EXPECT_EQ(sealed, test::u64(v.at(v6 ? "disco_len_ipv6" : "disco_len_ipv4")));
      EXPECT_EQ(sealed + kUdpHeaderSize + (v6 ? kIpv6HeaderSize : kIpv4HeaderSize), wire_mtu);
      const auto m = parse(plain);
      ASSERT_TRUE(m && std::holds_alternative<Ping>(*m));
      EXPECT_EQ(std::get<Ping>(*m).padding, padding);
      ++n;
    }
  }
  EXPECT_EQ(n, 12u);
}

TEST(Disco, FixedEncodersAgreeWithTheGeneralOne) {
  const TxId id{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
  std::array<std::uint8_t, 32> raw{};
  raw.fill(7);
  for (const char* text : {"1.2.3.4:5", "[2001:db8::9]:65535"}) {
    const Endpoint e = *Endpoint::parse(text);
    EXPECT_TRUE(equal(encode_pong(id, e), encode(Pong{id, e})));
  }
  EXPECT_TRUE(equal(encode_ping(id, NodePublic(raw)), encode(Ping{id, NodePublic(raw), 0})));
  EXPECT_EQ(relay_pseudo_endpoint(998).to_string(), "127.3.3.40:998");
}

TEST(Disco, VersionRules) {
  const auto all = test::load_vectors("disco.json");
  for (const auto& v : all.at("messages").as_array()) {
    ByteVector plain = test::unhex(v.at("plaintext"));
    const auto normal = parse(plain);
    plain[1] = 1;
    const auto newer = parse(plain);
    ASSERT_TRUE(newer);
    if (plain[0] == 3) {
      EXPECT_EQ(*newer, Message(CallMeMaybe{}));
    } else if (plain[0] >= 7) {
      EXPECT_EQ(*newer, Message(Unknown{plain[0]}));
    } else {
      EXPECT_EQ(*newer, *normal);
    }
  }
}

TEST(Disco, HostileInput) {
  const auto all = test::load_vectors("disco.json");
  SeededRng rng(4);
  for (const auto& v : all.at("messages").as_array()) {
    const ByteVector plain = test::unhex(v.at("plaintext"));
    for (std::size_t n = 0; n < plain.size(); ++n) (void)parse(Bytes(plain).first(n));
    EXPECT_FALSE(parse(Bytes(plain).first(1)));
    for (int i = 0; i < 500; ++i) {
      ByteVector bad = plain;
      bad[rng.below(bad.size())] = static_cast<std::uint8_t>(rng.u32());
      if (auto m = parse(bad)) (void)encode(*m);
    }
    const ByteVector packet = test::unhex(v.at("packet"));
    for (std::size_t n = 0; n < kOverhead; ++n) EXPECT_FALSE(parse_envelope(Bytes(packet).first(n)));
  }
  // Address lists of types 7 and 9 must be whole; the one of type 3 counts as empty when it is not.
  for (std::uint8_t type : {std::uint8_t{7}, std::uint8_t{9}}) {
    ByteVector p(2 + (type == 9 ? 4u : 0u) + 124u, 0);
    p[0] = type;
    EXPECT_FALSE(parse(p));
    p.resize(p.size() + 17);
    EXPECT_FALSE(parse(p));
    p.resize(p.size() + 1);
    EXPECT_TRUE(parse(p));
  }
}

}  // namespace
}  // namespace porthole::wire::disco
