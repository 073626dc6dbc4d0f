#include "control/packet_filter.h"

#include <gtest/gtest.h>

#include "base/rng.h"
#include "control/netmap.h"
#include "ts2021/json.h"

namespace porthole::control {
namespace {

constexpr std::uint8_t kSyn = 2, kSynAck = 0x12, kAck = 0x10;

struct Spec {
  std::string source = "100.64.0.2";
  std::string destination = "100.64.0.1";
  std::uint8_t protocol = 6;
  std::uint16_t source_port = 40000;
  std::uint16_t destination_port = 80;
  std::uint8_t flags = kSyn;     // TCP
  std::uint8_t icmp_type = 8;
  std::uint16_t fragment = 0;    // offset in bytes
  std::size_t payload = 40;
};

ByteVector transport(const Spec& s) {
  ByteVector t(s.payload);
  if (s.protocol == 1 || s.protocol == 58) {
    t[0] = s.icmp_type;
  } else if (t.size() >= 14) {
    store_be(t.data(), s.source_port);
    store_be(t.data() + 2, s.destination_port);
    t[12] = 0x50;
    t[13] = s.flags;
  }
  return t;
}
ByteVector packet(const Spec& s) {
  auto src = *IpAddress::parse(s.source), dst = *IpAddress::parse(s.destination);
  ByteVector t = transport(s), p;
  if (src.is_v4()) {
    p.resize(20);
    p[0] = 0x45;
    store_be<std::uint16_t>(p.data() + 2, static_cast<std::uint16_t>(20 + t.size()));
    store_be<std::uint16_t>(p.data() + 6, static_cast<std::uint16_t>(s.fragment / 8));
    p[8] = 64;
    p[9] = s.protocol;
    std::copy_n(src.bytes().begin(), 4, p.begin() + 12);
    std::copy_n(dst.bytes().begin(), 4, p.begin() + 16);
  } else {
    p.resize(40);
    p[0] = 0x60;
    p[6] = s.protocol;
    p[7] = 64;
    std::copy_n(src.bytes().begin(), 16, p.begin() + 8);
    std::copy_n(dst.bytes().begin(), 16, p.begin() + 24);
    if (s.fragment != 0) {
      p[6] = 44;
      ByteVector f(8);
      f[0] = s.protocol;
      store_be<std::uint16_t>(f.data() + 2, s.fragment);
      append(p, f);
    }
    store_be<std::uint16_t>(p.data() + 4, static_cast<std::uint16_t>(p.size() - 40 + t.size()));
  }
  append(p, t);
  return p;
}

CompiledFilter rules(std::string_view json) {
  auto parsed = ts2021::parse_filter_rules(as_bytes(json));
  EXPECT_TRUE(parsed.ok()) << (parsed.ok() ? "" : parsed.error().message);
  return CompiledFilter::compile(*parsed);
}
constexpr std::string_view kAllowAll = R"([{"SrcIPs":["*"],"DstPorts":[{"IP":"*","Ports":{"First":0,"Last":65535}}]}])";

PacketFilter filter(std::string_view json) {
  PacketFilter f;
  f.set_rules(rules(json));
  f.set_local({*Prefix::parse("100.64.0.1/32"), *Prefix::parse("fd7a:115c:a1e0::1/128"), *Prefix::parse("10.5.0.0/16")});
  return f;
}
const Spec kV6{"fd7a:115c:a1e0::2", "fd7a:115c:a1e0::1", 6, 40000, 80, kSyn, 128, 0, 40};

TEST(PacketFilter, DeniesUntilTold) {
  PacketFilter f;
  EXPECT_EQ(f.check(packet({})), Verdict::no(FilterDrop::kNotForUs));
  f.set_local({*Prefix::parse("100.64.0.1/32")});
  EXPECT_EQ(f.check(packet({})), Verdict::no(FilterDrop::kNoRule));
  f.set_rules(rules(kAllowAll));
  EXPECT_TRUE(f.check(packet({})));
  EXPECT_EQ(f.accepted(), 1u);
  EXPECT_EQ(f.dropped(FilterDrop::kNoRule), 1u);
}

TEST(PacketFilter, TcpNeedsARuleForTheSynOnly) {
  PacketFilter f = filter(R"([{"SrcIPs":["100.64.0.2"],"DstPorts":[{"IP":"100.64.0.1","Ports":{"First":22,"Last":23}}]}])");
  for (std::uint16_t port : {std::uint16_t{21}, std::uint16_t{22}, std::uint16_t{23}, std::uint16_t{24}}) {
    Spec s;
    s.destination_port = port;
    EXPECT_EQ(f.check(packet(s)).accept, port == 22 || port == 23) << port;
    s.flags = kSynAck;
    EXPECT_TRUE(f.check(packet(s)));
    s.flags = kAck;
    EXPECT_TRUE(f.check(packet(s)));
    s.flags = 4;  // RST
    EXPECT_TRUE(f.check(packet(s)));
  }
  Spec other;
  other.source = "100.64.0.3";
  other.destination_port = 22;
  EXPECT_EQ(f.check(packet(other)), Verdict::no(FilterDrop::kNoRule));
  Spec route;
  route.destination = "10.5.1.2";
  route.destination_port = 22;
  EXPECT_EQ(f.check(packet(route)), Verdict::no(FilterDrop::kNoRule));  // ours, but no rule names it
}

TEST(PacketFilter, UdpAnswersToOurFlows) {
  PacketFilter f = filter("[]");
  Spec in;
  in.protocol = 17;
  in.source_port = 53;
  in.destination_port = 5555;
  EXPECT_FALSE(f.check(packet(in)));
  Spec out;
  out.source = in.destination;
  out.destination = in.source;
  out.protocol = 17;
  out.source_port = 5555;
  out.destination_port = 53;
  f.note_outbound(packet(out));
  EXPECT_TRUE(f.check(packet(in)));
  in.source_port = 54;
  EXPECT_FALSE(f.check(packet(in)));
  in.source_port = 53;
  in.source = "100.64.0.9";
  EXPECT_FALSE(f.check(packet(in)));
  Spec v6 = kV6;
  v6.protocol = 132;
  EXPECT_FALSE(f.check(packet(v6)));
  std::swap(v6.source, v6.destination);
  std::swap(v6.source_port, v6.destination_port);
  f.note_outbound(packet(v6));
  std::swap(v6.source, v6.destination);
  std::swap(v6.source_port, v6.destination_port);
  EXPECT_TRUE(f.check(packet(v6)));
}

TEST(PacketFilter, FlowTableKeeps512Newest) {
  PacketFilter f = filter("[]");
  auto out = [&](std::uint16_t port) {
    Spec s;
    s.source = "100.64.0.1";
    s.destination = "100.64.0.2";
    s.protocol = 17;
    s.source_port = port;
    s.destination_port = 9;
    f.note_outbound(packet(s));
  };
  auto answered = [&](std::uint16_t port) {
    Spec s;
    s.protocol = 17;
    s.source_port = 9;
    s.destination_port = port;
    return f.check(packet(s)).accept;
  };
  for (std::uint16_t p = 1000; p < 1512; ++p) out(p);
  EXPECT_TRUE(answered(1000));  // now the newest
  out(2000);
  EXPECT_FALSE(answered(1001));
  EXPECT_TRUE(answered(1000));
  EXPECT_TRUE(answered(2000));
  for (int round = 0; round < 20; ++round) {
    for (std::uint16_t p = 0; p < 3000; ++p) out(static_cast<std::uint16_t>(10000 + p));
  }
  int held = 0;
  for (std::uint16_t p = 0; p < 3000; ++p) held += answered(static_cast<std::uint16_t>(10000 + p)) ? 1 : 0;
  EXPECT_EQ(held, 512);
}

TEST(PacketFilter, Icmp) {
  PacketFilter deny = filter("[]");
  PacketFilter allow = filter(R"([{"SrcIPs":["100.64.0.2"],"IPProto":[6],"DstPorts":[{"IP":"100.64.0.1","Ports":{"First":22,"Last":22}}]}])");
  Spec s;
  s.protocol = 1;
  for (std::uint8_t type : {std::uint8_t{0}, std::uint8_t{3}, std::uint8_t{11}, std::uint8_t{12}}) {
    s.icmp_type = type;
    EXPECT_TRUE(deny.check(packet(s))) << int(type);
  }
  s.icmp_type = 8;
  EXPECT_FALSE(deny.check(packet(s)));
  EXPECT_TRUE(allow.check(packet(s)));  // any rule for the pair, whatever its ports and protocol
  s.source = "100.64.0.3";
  EXPECT_FALSE(allow.check(packet(s)));
  Spec v6 = kV6;
  v6.protocol = 58;
  v6.icmp_type = 129;
  EXPECT_TRUE(deny.check(packet(v6)));
  v6.icmp_type = 128;
  EXPECT_FALSE(deny.check(packet(v6)));
  v6.protocol = 1;  // IPv4's ICMP in IPv6 is just some protocol
  v6.icmp_type = 0;
  EXPECT_FALSE(deny.check(packet(v6)));
}

TEST(PacketFilter, TsmpAndOtherProtocols) {
  PacketFilter f = filter(kAllowAll);
  Spec s;
  s.protocol = 99;
  EXPECT_TRUE(filter("[]").check(packet(s)));
  s.protocol = 47;
  EXPECT_FALSE(f.check(packet(s)));  // "*" still means TCP, UDP, ICMP
  PacketFilter gre = filter(R"([{"SrcIPs":["*"],"IPProto":[47],"DstPorts":[{"IP":"*","Ports":{"First":0,"Last":65535}}]}])");
  EXPECT_TRUE(gre.check(packet(s)));
  PacketFilter narrow = filter(R"([{"SrcIPs":["*"],"IPProto":[47],"DstPorts":[{"IP":"*","Ports":{"First":0,"Last":100}}]}])");
  EXPECT_FALSE(narrow.check(packet(s)));
}

TEST(PacketFilter, DestinationsThatAreNotOurs) {
  PacketFilter f = filter(kAllowAll);
  Spec s;
  s.destination = "100.64.0.7";
  EXPECT_EQ(f.check(packet(s)), Verdict::no(FilterDrop::kNotForUs));
  s.destination = "10.5.200.1";
  EXPECT_TRUE(f.check(packet(s)));
  s.destination = "224.0.0.251";
  EXPECT_EQ(f.check(packet(s)), Verdict::no(FilterDrop::kMulticast));
  s.destination = "169.254.1.1";
  EXPECT_EQ(f.check(packet(s)), Verdict::no(FilterDrop::kMulticast));
  Spec v6 = kV6;
  v6.destination = "ff02::1";
  EXPECT_EQ(f.check(packet(v6)), Verdict::no(FilterDrop::kMulticast));
}

TEST(PacketFilter, Fragments) {
  PacketFilter f = filter("[]");
  Spec s;
  s.fragment = 80;
  EXPECT_TRUE(f.check(packet(s)));
  s.fragment = 72;
  EXPECT_EQ(f.check(packet(s)), Verdict::no(FilterDrop::kFragment));
  s.destination = "100.64.0.7";
  s.fragment = 800;
  EXPECT_EQ(f.check(packet(s)), Verdict::no(FilterDrop::kNotForUs));
  Spec v6 = kV6;
  v6.fragment = 80;
  EXPECT_TRUE(f.check(packet(v6)));
  v6.fragment = 8;
  EXPECT_EQ(f.check(packet(v6)), Verdict::no(FilterDrop::kFragment));
  s = {};
  s.payload = 12;  // TCP without its flags
  EXPECT_EQ(f.check(packet(s)), Verdict::no(FilterDrop::kMalformed));
}

TEST(PacketFilter, Ipv6ExtensionHeaders) {
  PacketFilter f = filter(kAllowAll);
  for (std::uint8_t next : {std::uint8_t{0}, std::uint8_t{43}, std::uint8_t{60}, std::uint8_t{51}, std::uint8_t{135}}) {
    Spec s = kV6;
    s.protocol = next;
    EXPECT_EQ(f.check(packet(s)), Verdict::no(FilterDrop::kExtensionHeader)) << int(next);
    s.fragment = 80;
    EXPECT_EQ(f.check(packet(s)), Verdict::no(FilterDrop::kExtensionHeader)) << int(next);
  }
}

TEST(PacketFilter, JailedPeersAndShields) {
  PacketFilter f = filter(kAllowAll);
  Spec syn;
  EXPECT_EQ(f.check(packet(syn), true), Verdict::no(FilterDrop::kBlockedPeer));
  EXPECT_TRUE(f.check(packet(syn), false));
  Spec ack;
  ack.flags = kAck;
  EXPECT_TRUE(f.check(packet(ack), true));
  f.set_shields_up(true);
  EXPECT_FALSE(f.check(packet(syn)));
  Spec ping;
  ping.protocol = 1;
  EXPECT_EQ(f.check(packet(ping)), Verdict::no(FilterDrop::kBlockedPeer));
}

TEST(PacketFilter, RulesChangeAtOnce) {
  PacketFilter f = filter(kAllowAll);
  EXPECT_TRUE(f.check(packet({})));
  f.set_rules(rules("[]"));
  EXPECT_FALSE(f.check(packet({})));  // the remembered answer is gone
}

TEST(CompiledFilter, SourceForms) {
  struct Case {
    std::string_view form, address;
    bool match;
  };
  for (const Case& c : {Case{"*", "1.2.3.4", true}, Case{"*", "2001:db8::1", true}, Case{"100.64.0.5", "100.64.0.5", true},
                        Case{"100.64.0.5", "100.64.0.6", false}, Case{"100.64.0.0/16", "100.64.255.255", true},
                        Case{"100.64.0.0/16", "100.65.0.0", false}, Case{"100.64.0.1/16", "100.64.0.1", false},
                        Case{"100.64.0.1-100.64.0.9", "100.64.0.9", true}, Case{"100.64.0.1-100.64.0.9", "100.64.0.10", false},
                        Case{"100.64.0.9-100.64.0.1", "100.64.0.5", false}, Case{"1.2.3.4-fd00::1", "1.2.3.4", false},
                        Case{"fd7a:115c:a1e0::/48", "fd7a:115c:a1e0:ffff::1", true}, Case{"::/0", "2001:db8::1", true},
                        Case{"::/0", "::", true}, Case{"::/0", "1.2.3.4", false}, Case{"0.0.0.0/0", "1.2.3.4", true},
                        Case{"0.0.0.0/0", "2001:db8::1", false}, Case{"::/80", "1.2.3.4", false}, Case{"", "1.2.3.4", false},
                        Case{"cap:x", "1.2.3.4", false}, Case{"nonsense", "1.2.3.4", false}, Case{"::/0", "ffff::1", true}}) {
    ts2021::FilterRule rule;
    rule.src_ips = {std::string(c.form)};
    rule.dst_ports = {{"*", ts2021::PortRange::any()}};
    const ts2021::FilterRule one[] = {rule};
    EXPECT_EQ(CompiledFilter::compile(one).matches(6, *IpAddress::parse(c.address), *IpAddress::parse("100.64.0.1"), 1), c.match)
        << c.form << " " << c.address;
    // The same forms as destination, where capabilities have no meaning.
    rule.src_ips = {"*"};
    rule.dst_ports[0].ip = c.form;
    const ts2021::FilterRule two[] = {rule};
    EXPECT_EQ(CompiledFilter::compile(two).matches(6, *IpAddress::parse("9.9.9.9"), *IpAddress::parse(c.address), 1), c.match)
        << c.form << " " << c.address;
  }
}

TEST(CompiledFilter, BadEntriesAreSkippedAndCounted) {
  CompiledFilter f = rules(R"([{"SrcIPs":["bad","100.64.0.2"],"IPProto":[6,300,-1],"DstPorts":[{"IP":"worse","Ports":{"First":0,"Last":1}},
    {"IP":"*","Ports":{"First":9,"Last":1}},{"IP":"*","Ports":{"First":1,"Last":9}}]}])");
  EXPECT_EQ(f.rules(), 1u);
  EXPECT_EQ(f.skipped_entries(), 5u);
  EXPECT_TRUE(f.matches(6, *IpAddress::parse("100.64.0.2"), *IpAddress::parse("1.1.1.1"), 5));
  EXPECT_FALSE(f.matches(17, *IpAddress::parse("100.64.0.2"), *IpAddress::parse("1.1.1.1"), 5));
  EXPECT_EQ(rules(R"([{"SrcIPs":["*"],"SrcBits":[1],"DstPorts":[{"IP":"*","Ports":{"First":0,"Last":65535}}]}])").rules(), 0u);
  EXPECT_EQ(rules(R"([{"SrcIPs":["*"],"CapGrant":[{"Dsts":["100.64.0.1/32"]}]}])").rules(), 0u);
}

TEST(CompiledFilter, CapabilitySources) {
  Netmap map;
  const std::string peer = R"({"ID":2,"Name":"b.","Key":"nodekey:)" + std::string(64, '1') + R"(","Addresses":["100.64.0.2/32"],"CapMap":{"funnel":[]}})";
  auto message = ts2021::parse_map_response(as_bytes(R"({"Node":{"ID":1,"Key":"nodekey:)" + std::string(64, '2') + R"("},"Peers":[)" + peer +
                                                     R"(],"PacketFilters":{"base":[{"SrcIPs":["cap:funnel"],"DstPorts":[{"IP":"*","Ports":{"First":443,"Last":443}}]}]}})"));
  ASSERT_TRUE(message.ok());
  ASSERT_TRUE(map.apply(std::move(*message), WallTime()).ok());
  CompiledFilter f = CompiledFilter::compile(map);
  EXPECT_TRUE(f.matches(6, *IpAddress::parse("100.64.0.2"), *IpAddress::parse("100.64.0.1"), 443));
  EXPECT_FALSE(f.matches(6, *IpAddress::parse("100.64.0.3"), *IpAddress::parse("100.64.0.1"), 443));
}

// The ranges against the obvious model, on random rules.
TEST(CompiledFilter, AgreesWithANaiveModel) {
  SeededRng rng(11);
  for (int round = 0; round < 200; ++round) {
    std::vector<std::pair<std::uint32_t, std::uint32_t>> model;
    ts2021::FilterRule rule;
    rule.dst_ports = {{"*", ts2021::PortRange::any()}};
    for (int i = 0; i < 8; ++i) {
      std::uint32_t a = static_cast<std::uint32_t>(rng.below(200)), b = a + static_cast<std::uint32_t>(rng.below(20));
      model.emplace_back(a, b);
      rule.src_ips.push_back(IpAddress::v4(a).to_string() + "-" + IpAddress::v4(b).to_string());
    }
    const ts2021::FilterRule one[] = {rule};
    CompiledFilter f = CompiledFilter::compile(one);
    for (std::uint32_t x = 0; x < 230; ++x) {
      const bool expected = std::any_of(model.begin(), model.end(), [&](auto r) { return r.first <= x && x <= r.second; });
      ASSERT_EQ(f.matches(6, IpAddress::v4(x), IpAddress::v4(1), 1), expected) << x;
    }
  }
}

TEST(PacketFilter, HostilePackets) {
  PacketFilter f = filter(kAllowAll);
  SeededRng rng(4);
  for (int i = 0; i < 200000; ++i) {
    ByteVector p(rng.below(80));
    rng.fill(p);
    if (!p.empty() && i % 3 != 0) p[0] = i % 3 == 1 ? 0x45 : 0x60;
    (void)f.check(p);
    f.note_outbound(p);
  }
  for (const Spec& s : {Spec{}, kV6}) {
    ByteVector good = packet(s);
    for (std::size_t n = 0; n < good.size(); ++n) EXPECT_FALSE(f.check(Bytes(good).first(n)).accept) << n;
    good.resize(good.size() + 16);  // tunnel padding
    EXPECT_TRUE(f.check(good));
  }
}

}  // namespace
}  // namespace porthole::control
