// Checksum, IP, TCP, UDP and ICMP codecs: known values, round trips, hostile input.
#include <gtest/gtest.h>

#include "base/rng.h"
#include "wire/checksum.h"
#include "wire/icmp.h"
#include "wire/ip.h"
#include "wire/tcp.h"
#include "wire/udp.h"

namespace porthole::wire {
namespace {

const IpAddress kA = IpAddress::v4(100, 64, 0, 1), kB = IpAddress::v4(100, 64, 0, 2);
const IpAddress kA6 = *IpAddress::parse("fd7a:115c:a1e0::1"), kB6 = *IpAddress::parse("fd7a:115c:a1e0::2");

// The definition, word by word.
std::uint16_t naive_checksum(Bytes data) {
  std::uint32_t sum = 0;
  for (std::size_t i = 0; i < data.size(); i += 2)
    sum += static_cast<std::uint32_t>(data[i] << 8 | (i + 1 < data.size() ? data[i + 1] : 0));
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<std::uint16_t>(~sum);
}

std::uint16_t stored(PartialSum sum) {
  std::uint8_t field[2];
  store_checksum(field, sum);
  return load_be<std::uint16_t>(field);
}

TEST(Checksum, Rfc1071Example) {
  // RFC 1071 section 3: the bytes 00 01 f2 03 f4 f5 f6 f7 sum to ddf2.
  ByteVector data = *from_hex("0001f203f4f5f6f7");
  EXPECT_EQ(stored(sum_bytes(data)), static_cast<std::uint16_t>(~0xddf2));
}

TEST(Checksum, AgreesWithTheDefinition) {
  SeededRng rng(1);
  ByteVector data(4096), copy(4096);
  rng.fill(data);
  for (int i = 0; i < 3000; ++i) {
    std::size_t at = rng.below(64), size = i < 400 ? static_cast<std::size_t>(i) : rng.below(3000);
    Bytes piece = Bytes(data).subspan(at, size);
    EXPECT_EQ(stored(sum_bytes(piece)), naive_checksum(piece));
    EXPECT_EQ(stored(copy_and_sum(copy.data() + 3, piece.data(), size)), naive_checksum(piece));
    EXPECT_TRUE(equal(Bytes(copy).subspan(3, size), piece));
    std::size_t cut = size == 0 ? 0 : rng.below(size);
    EXPECT_EQ(stored(sum_bytes(piece.first(cut)) + sum_at(sum_bytes(piece.subspan(cut)), (cut & 1) != 0)),
              naive_checksum(piece));
  }
  std::fill(data.begin(), data.end(), std::uint8_t{0xff});
  EXPECT_EQ(stored(sum_bytes(data)), 0);
}

TEST(Checksum, IncrementalUpdate) {
  SeededRng rng(2);
  for (int i = 0; i < 2000; ++i) {
    ByteVector data(40);
    rng.fill(data);
    if (i % 10 == 0) std::fill(data.begin(), data.end(), std::uint8_t{0});
    std::uint16_t before = naive_checksum(data);
    std::uint16_t old_word = load_be<std::uint16_t>(&data[10]), new_word = static_cast<std::uint16_t>(rng.u32());
    store_be(&data[10], new_word);
    std::uint16_t after = naive_checksum(data), updated = update_checksum(before, old_word, new_word);
    // 0 and ffff are the same number here.
    EXPECT_TRUE(updated == after || (updated ^ after) == 0xffff) << updated << " " << after;
  }
}

TEST(Ip, V4RoundTrip) {
  ByteVector p(20 + 5);
  write_ipv4_header(p.data(), kA, kB, 17, 5, 0x1234, true);
  auto r = parse_ip(p);
  auto* ip = std::get_if<IpPacket>(&r);
  ASSERT_NE(ip, nullptr);
  EXPECT_EQ(ip->source, kA);
  EXPECT_EQ(ip->destination, kB);
  EXPECT_EQ(ip->protocol, 17);
  EXPECT_EQ(ip->ttl, 64);
  EXPECT_EQ(ip->payload.size(), 5u);
  EXPECT_FALSE(ip->fragmented);
  p.resize(64);                                // padding of the tunnel
  r = parse_ip(p);
  EXPECT_EQ(std::get<IpPacket>(r).payload.size(), 5u);
}

TEST(Ip, V6ExtensionHeaders) {
  auto build = [](std::initializer_list<std::uint8_t> kinds, std::size_t bytes = 8) {
    ByteVector body;
    std::vector<std::uint8_t> k(kinds);
    for (std::size_t i = 0; i < k.size(); ++i) {
      ByteVector h(bytes);
      h[0] = i + 1 < k.size() ? k[i + 1] : ip_protocol::kUdp;
      h[1] = static_cast<std::uint8_t>(bytes / 8 - 1);
      if (k[i] == ip_protocol::kRouting) h[2] = 3;
      if (k[i] == ip_protocol::kFragment) std::fill(h.begin() + 1, h.end(), std::uint8_t{0});
      append(body, h);
    }
    append(body, as_bytes("12345678"));
    ByteVector p(40);
    write_ipv6_header(p.data(), kA6, kB6, k.empty() ? ip_protocol::kUdp : k[0], body.size(), 0xabcde);
    append(p, body);
    return p;
  };
  for (const ByteVector& p : {build({}), build({0}), build({0, 60, 43, 60}), build({60, 44})}) {
    auto r = parse_ip(p);
    auto* ip = std::get_if<IpPacket>(&r);
    ASSERT_NE(ip, nullptr);
    EXPECT_EQ(ip->protocol, ip_protocol::kUdp);
    EXPECT_EQ(as_text(ip->payload), "12345678");
  }
  auto bad = [](const ByteVector& p) { return std::holds_alternative<IpError>(parse_ip(p)); };
  EXPECT_TRUE(bad(build({60, 0})));                                  // hop-by-hop not first
  EXPECT_TRUE(bad(build({60, 60, 60, 60, 60, 60, 60, 60, 60})));     // nine of them
  EXPECT_TRUE(bad(build({60, 60}, 136)));                            // more than 256 bytes
  EXPECT_TRUE(bad(build({44, 44})));
  ByteVector type0 = build({43});
  type0[42] = 0;
  EXPECT_TRUE(bad(type0));
  ByteVector mapped = build({});
  std::fill(mapped.begin() + 8, mapped.begin() + 18, std::uint8_t{0});
  mapped[18] = mapped[19] = 0xff;
  EXPECT_TRUE(bad(mapped));
}

TEST(Ip, FragmentFields) {
  ByteVector p(20 + 16);
  write_ipv4_header(p.data(), kA, kB, 17, 16, 77, false, 1480, true);
  auto r = parse_ip(p);
  ASSERT_TRUE(std::get<IpPacket>(r).fragmented);
  EXPECT_EQ(std::get<IpPacket>(r).fragment.offset, 1480u);
  EXPECT_EQ(std::get<IpPacket>(r).fragment.id, 77u);
  EXPECT_TRUE(std::get<IpPacket>(r).fragment.more);
  ByteVector q(48 + 16);
  write_ipv6_header(q.data(), kA6, kB6, 44, 24, 0);
  write_fragment_header(q.data() + 40, 17, 1232, false, 0xdeadbeef);
  r = parse_ip(q);
  EXPECT_EQ(std::get<IpPacket>(r).fragment.offset, 1232u);
  EXPECT_EQ(std::get<IpPacket>(r).fragment.id, 0xdeadbeefu);
  EXPECT_EQ(std::get<IpPacket>(r).protocol, 17);
}

TEST(Tcp, SynLayoutIsTwentyBytes) {
  TcpOptions o;
  o.mss = 1240;
  o.sack_permitted = true;
  o.has_timestamps = true;
  o.ts_value = 0x01020304;
  o.window_shift = 8;
  std::uint8_t out[40];
  ASSERT_EQ(write_tcp_options(out, o), 20u);
  EXPECT_EQ(to_hex({out, 20}), "020404d80402080a01020304000000000103" "0308");
}

TEST(Tcp, RoundTrips) {
  SeededRng rng(3);
  for (int i = 0; i < 5000; ++i) {
    TcpOptions o;
    bool syn = rng.below(2) != 0;
    if (syn) {
      if (rng.below(4) != 0) o.mss = static_cast<std::uint16_t>(rng.u32());
      o.sack_permitted = rng.below(2) != 0;
      if (rng.below(2) != 0) o.window_shift = static_cast<std::uint8_t>(rng.below(15));
    }
    if (rng.below(2) != 0) {
      o.has_timestamps = true;
      o.ts_value = rng.u32();
      o.ts_echo = rng.u32();
    }
    if (!syn) o.sack_count = static_cast<std::uint8_t>(rng.below(o.has_timestamps ? 4 : 5));
    for (std::size_t b = 0; b < o.sack_count; ++b) o.sack[b] = {rng.u32(), rng.u32()};
    std::uint8_t flags = syn ? tcp_flag::kSyn : tcp_flag::kAck;
    ByteVector p(60 + 7);
    std::size_t size = write_tcp_header(p.data(), 1, 2, 3, 4, flags, 5, o);
    ASSERT_LE(size, 60u);
    ASSERT_EQ(size % 4, 0u);
    p.resize(size + 7);
    TcpSegment s;
    ASSERT_TRUE(parse_tcp(p, s));
    EXPECT_EQ(s.sequence, 3u);
    EXPECT_EQ(s.acknowledgment, 4u);
    EXPECT_EQ(s.window, 5);
    EXPECT_EQ(s.data.size(), 7u);
    EXPECT_EQ(s.options.mss, o.mss);
    EXPECT_EQ(s.options.window_shift, o.window_shift);
    EXPECT_EQ(s.options.sack_permitted, o.sack_permitted);
    EXPECT_EQ(s.options.has_timestamps, o.has_timestamps);
    EXPECT_EQ(s.options.ts_value, o.ts_value);
    EXPECT_EQ(s.options.ts_echo, o.ts_echo);
    ASSERT_EQ(s.options.sack_count, o.sack_count);
    for (std::size_t b = 0; b < o.sack_count; ++b) EXPECT_EQ(s.options.sack[b], o.sack[b]);
  }
}

TEST(Tcp, BrokenOptionsEndTheListNotTheSegment) {
  auto parse = [](std::string_view hex, std::uint8_t flags = tcp_flag::kSyn) {
    ByteVector options = *from_hex(hex);
    while (options.size() % 4 != 0) options.push_back(0);
    ByteVector p(20);
    write_tcp_header(p.data(), 1, 2, 3, 4, flags, 5, {});
    p[12] = static_cast<std::uint8_t>((20 + options.size()) / 4 << 4);
    append(p, options);
    TcpSegment s;
    EXPECT_TRUE(parse_tcp(p, s));
    return s.options;
  };
  EXPECT_EQ(parse("020404d8").mss, 1240);
  EXPECT_FALSE(parse("020404d8", tcp_flag::kAck).mss);       // only on a SYN
  EXPECT_FALSE(parse("0200020404d8").mss);                   // length 0
  EXPECT_FALSE(parse("0201020404d8").mss);                   // length 1
  EXPECT_FALSE(parse("22ff020404d8").mss);                   // runs over the end
  EXPECT_EQ(parse("2206aabbccdd020404d8").mss, 1240);        // unknown: skipped
  EXPECT_FALSE(parse("00020404d8").mss);                     // after the end
  EXPECT_EQ(parse("0303ff").window_shift, 14);               // RFC 7323 2.3
  EXPECT_FALSE(parse("0304ff00").window_shift);
  EXPECT_FALSE(parse("080901020304050607").has_timestamps);
  EXPECT_EQ(parse("050b000000010000000200", tcp_flag::kAck).sack_count, 0);
  EXPECT_EQ(parse("050a0000000100000002", tcp_flag::kAck).sack_count, 1);
  TcpSegment s;
  ByteVector p(20);
  write_tcp_header(p.data(), 1, 2, 3, 4, 0, 5, {});
  p[12] = 0x40;
  EXPECT_FALSE(parse_tcp(p, s));
  p[12] = 0x60;
  EXPECT_FALSE(parse_tcp(p, s));
  EXPECT_FALSE(parse_tcp(Bytes(p).first(19), s));
}

TEST(Udp, NeverSendsAZeroChecksum) {
  // Two bytes of data that make the sum come out as zero.
  Endpoint a{kA, 1}, b{kB, 2};
  ByteVector data(2), p(10);
  write_udp(p.data(), a, b, data);
  std::uint16_t sum = load_be<std::uint16_t>(&p[6]);
  store_be(data.data(), sum);
  write_udp(p.data(), a, b, data);
  EXPECT_EQ(load_be<std::uint16_t>(&p[6]), 0xffff);
  auto u = parse_udp(p, kA, kB);
  ASSERT_TRUE(u);
  EXPECT_TRUE(u->checksum_ok);
  p[6] = p[7] = 0;
  EXPECT_TRUE(parse_udp(p, kA, kB)->checksum_ok);
  EXPECT_FALSE(parse_udp(p, kA6, kB6)->checksum_ok);
}

TEST(Udp, Lengths) {
  Endpoint a{kA, 1}, b{kB, 2};
  ByteVector p(8 + 4);
  write_udp(p.data(), a, b, as_bytes("abcd"));
  p.resize(20);                                // extra bytes are not data
  EXPECT_EQ(parse_udp(p, kA, kB)->data.size(), 4u);
  EXPECT_TRUE(parse_udp(p, kA, kB)->checksum_ok);
  store_be(&p[4], std::uint16_t{7});
  EXPECT_FALSE(parse_udp(p, kA, kB));
  store_be(&p[4], std::uint16_t{21});
  EXPECT_FALSE(parse_udp(p, kA, kB));
  EXPECT_FALSE(parse_udp(Bytes(p).first(7), kA, kB));
}

TEST(Icmp, KindsAndQuotes) {
  struct Row {
    bool v6;
    std::uint8_t type, code;
    IcmpKind kind;
  };
  for (Row r : {Row{false, 0, 0, IcmpKind::kEchoReply}, Row{false, 8, 0, IcmpKind::kEchoRequest},
                Row{false, 3, 0, IcmpKind::kUnreachableHost}, Row{false, 3, 3, IcmpKind::kUnreachablePort},
                Row{false, 3, 4, IcmpKind::kTooBig}, Row{false, 3, 13, IcmpKind::kProhibited},
                Row{false, 11, 0, IcmpKind::kTimeExceeded}, Row{false, 5, 0, IcmpKind::kOther},
                Row{true, 128, 0, IcmpKind::kEchoRequest}, Row{true, 129, 0, IcmpKind::kEchoReply},
                Row{true, 1, 4, IcmpKind::kUnreachablePort}, Row{true, 1, 1, IcmpKind::kProhibited},
                Row{true, 2, 0, IcmpKind::kTooBig}, Row{true, 135, 0, IcmpKind::kOther}}) {
    std::uint8_t p[8] = {r.type, r.code};
    auto m = parse_icmp(p, r.v6 ? kA6 : kA, r.v6 ? kB6 : kB);
    ASSERT_TRUE(m);
    EXPECT_EQ(m->kind, r.kind) << int(r.type) << "/" << int(r.code);
  }
  // A quoted packet of ours, cut behind eight transport bytes.
  ByteVector q(28);
  write_ipv4_header(q.data(), kA, kB, 6, 1000, 0, true);
  store_be(&q[20], std::uint16_t{1111});
  store_be(&q[22], std::uint16_t{80});
  store_be(&q[24], std::uint32_t{0xcafe});
  auto quoted = parse_quoted(q);
  ASSERT_TRUE(quoted);
  EXPECT_EQ(quoted->source_port, 1111);
  EXPECT_EQ(quoted->destination_port, 80);
  EXPECT_EQ(quoted->sequence, 0xcafeu);
  for (std::size_t n = 0; n < q.size(); ++n) EXPECT_FALSE(parse_quoted(Bytes(q).first(n)));
}

TEST(IpCodecs, HostileInput) {
  SeededRng rng(4);
  for (int i = 0; i < 200000; ++i) {
    ByteVector p(rng.below(120));
    rng.fill(p);
    if (!p.empty() && rng.below(2) != 0) p[0] = rng.below(2) != 0 ? 0x45 : 0x60;
    // Exact allocation, so that a sanitizer sees every byte too far.
    auto r = parse_ip(p);
    if (auto* ip = std::get_if<IpPacket>(&r)) {
      ASSERT_LE(ip->whole.size(), p.size());
      ASSERT_LE(ip->header_size + ip->payload.size(), p.size());
    }
    TcpSegment s;
    if (parse_tcp(p, s)) {
      ASSERT_LE(s.data.size(), p.size());
    }
    parse_udp(p, kA, kB);
    parse_icmp(p, kA6, kB6);
    parse_quoted(p);
  }
}

}  // namespace
}  // namespace porthole::wire
