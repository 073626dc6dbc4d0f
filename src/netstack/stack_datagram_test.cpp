// IP checks, fragments, UDP, ICMP and ping.
#include <gtest/gtest.h>

#include "netstack/limits.h"
#include "netstack/reassembly.h"
#include "netstack/script_harness.h"
#include "netstack/spec_constants.h"
#include "wire/icmp.h"
#include "wire/udp.h"

namespace porthole::netstack {
namespace {

using namespace harness;

ByteVector ip_packet(const IpAddress& from, const IpAddress& to, std::uint8_t protocol, Bytes payload) {
  std::size_t ip = from.is_v4() ? 20 : 40;
  ByteVector out(ip + payload.size());
  if (from.is_v4()) wire::write_ipv4_header(out.data(), from, to, protocol, payload.size(), 0, true);
  else wire::write_ipv6_header(out.data(), from, to, protocol, payload.size(), 0);
  std::copy(payload.begin(), payload.end(), out.begin() + static_cast<std::ptrdiff_t>(ip));
  return out;
}

ByteVector udp_payload(const Endpoint& from, const Endpoint& to, Bytes data) {
  ByteVector out(8 + data.size());
  wire::write_udp(out.data(), from, to, data);
  return out;
}

ByteVector udp_packet(const Endpoint& from, const Endpoint& to, Bytes data) {
  return ip_packet(from.address, to.address, 17, udp_payload(from, to, data));
}

wire::IpPacket parsed(Bytes packet) { return std::get<wire::IpPacket>(wire::parse_ip(packet)); }

TEST(StackUdp, BothWaysBothFamilies) {
  for (bool v6 : {false, true}) {
    Script s;
    Endpoint peer{v6 ? kB6 : kB4, 5000};
    IpAddress own = v6 ? kA6 : kA4;
    SocketId id = *s.stack.udp_bind(std::nullopt, 53);
    s.inject(udp_packet(peer, {own, 53}, as_bytes("question")));
    ASSERT_TRUE(s.has_event(SocketEventKind::kReadable));
    auto d = s.stack.udp_receive(id);
    ASSERT_TRUE(d);
    EXPECT_EQ(d->source, peer);
    EXPECT_EQ(d->destination, own);
    EXPECT_EQ(as_text(d->data), "question");
    EXPECT_FALSE(s.stack.udp_receive(id));
    ASSERT_TRUE(s.stack.udp_send(s.now, id, peer, as_bytes("answer")).ok());
    s.collect();
    ASSERT_EQ(s.out.size(), 1u);
    auto ip = parsed(s.out[0]);
    EXPECT_EQ(ip.source, own);
    auto udp = wire::parse_udp(ip.payload, ip.source, ip.destination);
    ASSERT_TRUE(udp);
    EXPECT_TRUE(udp->checksum_ok);
    EXPECT_EQ(as_text(udp->data), "answer");
    EXPECT_EQ(udp->source_port, 53);
    // Zero length is a datagram, too; truncation is told.
    s.inject(udp_packet(peer, {own, 53}, {}));
    s.inject(udp_packet(peer, {own, 53}, as_bytes("0123456789")));
    std::uint8_t small[4];
    auto info = s.stack.udp_receive(id, small);
    ASSERT_TRUE(info);
    EXPECT_EQ(info->size, 0u);
    info = s.stack.udp_receive(id, small);
    ASSERT_TRUE(info);
    EXPECT_EQ(info->size, 10u);
    EXPECT_EQ(s.stack.memory().buffers, 0u);
  }
}

TEST(StackUdp, LimitsAndErrors) {
  Script s;
  SocketId id = *s.stack.udp_bind(std::nullopt, 0);
  EXPECT_GE(s.stack.local(id).port, kEphemeralFirst);
  ByteVector big(1253);
  Endpoint peer{kB4, 5000};
  EXPECT_EQ(s.stack.udp_send(s.now, id, peer, big).error().code, ErrorCode::kLimit);
  EXPECT_TRUE(s.stack.udp_send(s.now, id, peer, Bytes(big).first(1252)).ok());
  EXPECT_EQ(s.stack.udp_send(s.now, id, {kB6, 5000}, Bytes(big).first(1233)).error().code, ErrorCode::kLimit);
  EXPECT_TRUE(s.stack.udp_send(s.now, id, {kB6, 5000}, Bytes(big).first(1232)).ok());
  EXPECT_EQ(s.stack.udp_send(s.now, id, {kA4, 1}, {}).error().code, ErrorCode::kInvalid);
  EXPECT_EQ(s.stack.udp_bind(std::nullopt, s.stack.local(id).port).error().code, ErrorCode::kAlreadyExists);
  // A tunnel that takes nothing: would block, and a word when there is room.
  Status status;
  int sent = 0;
  while ((status = s.stack.udp_send(s.now, id, peer, Bytes(big).first(1252))).ok()) ++sent;
  EXPECT_EQ(status.error().code, ErrorCode::kUnavailable);
  EXPECT_LE(static_cast<std::size_t>(sent) * 1280, kEgressBytesMax);
  s.collect();
  EXPECT_TRUE(s.has_event(SocketEventKind::kWritable));
  EXPECT_EQ(s.out.size(), static_cast<std::size_t>(sent) + 2);
  // A full receive queue drops the newest.
  std::uint16_t port = s.stack.local(id).port;
  for (int i = 0; i < 400; ++i) s.inject(udp_packet(peer, {kA4, port}, Bytes(big).first(1000)));
  EXPECT_GT(s.stack.counters().drop(Drop::kUdpQueueFull), 100u);
  EXPECT_LE(s.stack.memory().buffers, StackConfig{}.udp_receive_buffer + 2 * kChunkSize);
  s.stack.udp_close(id);
  EXPECT_EQ(s.stack.memory().buffers, 0u);
  EXPECT_EQ(s.stack.udp_send(s.now, id, peer, {}).error().code, ErrorCode::kNotFound);
}

TEST(StackUdp, ClosedPortIsUnreachableAtALimitedRate) {
  for (bool v6 : {false, true}) {
    Script s;
    IpAddress peer = v6 ? kB6 : kB4, own = v6 ? kA6 : kA4;
    ByteVector packet = udp_packet({peer, 5}, {own, 9}, as_bytes("x"));
    for (int i = 0; i < 100; ++i) s.inject(packet);
    EXPECT_EQ(s.out.size(), 10u);
    auto ip = parsed(s.out[0]);
    auto icmp = wire::parse_icmp(ip.payload, ip.source, ip.destination);
    ASSERT_TRUE(icmp);
    EXPECT_TRUE(icmp->checksum_ok);
    EXPECT_EQ(icmp->kind, wire::IcmpKind::kUnreachablePort);
    auto quoted = wire::parse_quoted(icmp->body);
    ASSERT_TRUE(quoted);
    EXPECT_EQ(quoted->destination_port, 9);
    // The same error coming back about a socket of ours is told once.
    SocketId id = *s.stack.udp_bind(std::nullopt, 77);
    ASSERT_TRUE(s.stack.udp_send(s.now, id, {peer, 9}, as_bytes("x")).ok());
    s.out.clear();
    s.collect();
    ByteVector error(8 + s.out[0].size());
    wire::write_icmp_error(error.data(), peer, own, wire::IcmpErrorToSend::kPortUnreachable, s.out[0]);
    s.inject(ip_packet(peer, own, v6 ? 58 : 1, error));
    ASSERT_TRUE(s.has_event(SocketEventKind::kSoftError));
    EXPECT_EQ(s.last_event.id, id);
    EXPECT_EQ(s.last_event.error.code, ErrorCode::kRefused);
  }
}

TEST(StackUdp, BadChecksumsAndLengths) {
  Script s;
  *s.stack.udp_bind(std::nullopt, 53);
  ByteVector good = udp_packet({kB4, 5}, {kA4, 53}, as_bytes("hello"));
  ByteVector bad = good;
  bad.back() ^= 1;
  s.inject(bad);
  EXPECT_EQ(s.stack.counters().drop(Drop::kUdpChecksum), 1u);
  bad = good;
  bad[26] = bad[27] = 0;                       // no checksum: legal in IPv4
  s.inject(bad);
  EXPECT_EQ(s.stack.counters().udp_in, 1u);
  bad = good;
  store_be(bad.data() + 24, std::uint16_t{100});
  s.inject(bad);
  EXPECT_EQ(s.stack.counters().drop(Drop::kUdp), 1u);
  // Padding of the tunnel is cut off.
  good.resize(good.size() + 11);
  s.inject(good);
  EXPECT_EQ(s.stack.counters().udp_in, 2u);
}

TEST(StackIp, RefusedPackets) {
  Script s;
  ByteVector good = udp_packet({kB4, 5}, {kA4, 53}, as_bytes("hello"));
  auto drops = [&](Drop d) { return s.stack.counters().drop(d); };
  ByteVector p = good;
  p[10] ^= 1;
  s.inject(p);
  EXPECT_EQ(drops(Drop::kIpChecksum), 1u);
  p = good;
  p.resize(10);
  s.inject(p);
  EXPECT_EQ(drops(Drop::kIpHeader), 1u);
  p = good;
  p.resize(p.size() - 1);
  s.inject(p);
  EXPECT_EQ(drops(Drop::kIpLength), 1u);
  s.inject(udp_packet({kB4, 5}, {IpAddress::v4(100, 64, 0, 50), 53}, {}));
  EXPECT_EQ(drops(Drop::kIpDestination), 1u);
  for (const char* source : {"224.0.0.1", "255.255.255.255", "127.0.0.1", "0.0.0.0", "100.64.0.1"})
    s.inject(udp_packet({*IpAddress::parse(source), 5}, {kA4, 53}, {}));
  EXPECT_EQ(drops(Drop::kIpSource), 5u);
  s.inject(ip_packet(kB4, kA4, 99, as_bytes("tsmp")));
  EXPECT_EQ(drops(Drop::kIpProtocol), 1u);
  // Options: skipped, but a source route is refused.
  for (std::uint8_t option : {std::uint8_t{0x07}, std::uint8_t{0x83}}) {
    ByteVector with(24 + 13);
    wire::write_ipv4_header(with.data(), kB4, kA4, 17, 4 + 13, 0, true);
    with[0] = 0x46;
    with[20] = option;
    with[21] = 4;
    with[22] = 4;
    ByteVector udp = udp_payload({kB4, 5}, {kA4, 53}, as_bytes("hello"));
    std::copy(udp.begin(), udp.end(), with.begin() + 24);
    with[10] = with[11] = 0;
    wire::store_checksum(with.data() + 10, wire::sum_bytes(Bytes(with).first(24)));
    s.inject(with);
  }
  EXPECT_EQ(drops(Drop::kIpOptions), 1u);
  EXPECT_EQ(drops(Drop::kUdpNoPort), 1u);      // the harmless one reached UDP
}

TEST(StackIcmp, EchoReply) {
  for (bool v6 : {false, true}) {
    Script s;
    IpAddress peer = v6 ? kB6 : kB4, own = v6 ? kA6 : kA4;
    ByteVector echo(8 + 100);
    ByteVector data(100, 0x42);
    wire::write_echo(echo.data(), peer, own, false, 77, 3, data);
    s.inject(ip_packet(peer, own, v6 ? 58 : 1, echo));
    ASSERT_EQ(s.out.size(), 1u);
    auto ip = parsed(s.out[0]);
    EXPECT_EQ(ip.source, own);
    EXPECT_EQ(ip.destination, peer);
    auto reply = wire::parse_icmp(ip.payload, ip.source, ip.destination);
    ASSERT_TRUE(reply);
    EXPECT_TRUE(reply->checksum_ok);
    EXPECT_EQ(reply->kind, wire::IcmpKind::kEchoReply);
    EXPECT_EQ(reply->id, 77);
    EXPECT_EQ(reply->sequence, 3);
    EXPECT_TRUE(equal(reply->body, data));
    echo[20] ^= 1;
    s.inject(ip_packet(peer, own, v6 ? 58 : 1, echo));
    EXPECT_EQ(s.out.size(), 1u);
    EXPECT_EQ(s.stack.counters().drop(Drop::kIcmp), 1u);
  }
}

TEST(StackIcmp, PingBetweenTwoStacks) {
  World::Options o;
  o.forward.delay = o.backward.delay = 17ms;
  World w(o);
  std::map<SocketId, SocketEvent> results;
  w.on_a = [&](const SocketEvent& e) { results[e.id] = e; };
  SocketId four = *w.a.ping(w.now, kB4), six = *w.a.ping(w.now, kB6, 1232);
  SocketId nobody = *w.a.ping(w.now, IpAddress::v4(100, 64, 0, 99), 0, 3s);
  EXPECT_FALSE(w.a.ping(w.now, kB6, 1233).ok());
  EXPECT_FALSE(w.a.ping(w.now, kA4).ok());
  w.run(5s);
  ASSERT_EQ(results.size(), 3u);
  EXPECT_EQ(results[four].kind, SocketEventKind::kPong);
  EXPECT_EQ(results[four].rtt, 34ms);
  EXPECT_EQ(results[six].kind, SocketEventKind::kPong);
  EXPECT_EQ(results[nobody].kind, SocketEventKind::kConnectFailed);
  EXPECT_EQ(results[nobody].error.code, ErrorCode::kTimeout);
}

// ---- fragments

std::vector<ByteVector> fragments(const IpAddress& from, const IpAddress& to, std::uint8_t protocol, Bytes payload,
                                  std::size_t step, std::uint32_t id = 9) {
  std::vector<ByteVector> out;
  bool v6 = from.is_v6();
  for (std::size_t at = 0; at < payload.size(); at += step) {
    Bytes piece = payload.subspan(at, std::min(step, payload.size() - at));
    bool more = at + piece.size() < payload.size();
    ByteVector p((v6 ? 48u : 20u) + piece.size());
    if (v6) {
      wire::write_ipv6_header(p.data(), from, to, 44, piece.size() + 8, 0);
      wire::write_fragment_header(p.data() + 40, protocol, static_cast<std::uint32_t>(at), more, id);
    } else {
      wire::write_ipv4_header(p.data(), from, to, protocol, piece.size(), static_cast<std::uint16_t>(id), false,
                              static_cast<std::uint16_t>(at), more);
    }
    std::copy(piece.begin(), piece.end(), p.end() - static_cast<std::ptrdiff_t>(piece.size()));
    out.push_back(std::move(p));
  }
  return out;
}

TEST(StackFragments, AnyOrderBothFamilies) {
  for (bool v6 : {false, true}) {
    Script s;
    IpAddress peer = v6 ? kB6 : kB4, own = v6 ? kA6 : kA4;
    SocketId id = *s.stack.udp_bind(std::nullopt, 53);
    ByteVector data(5000);
    for (std::size_t i = 0; i < data.size(); ++i) data[i] = pattern(i);
    auto pieces = fragments(peer, own, 17, udp_payload({peer, 5}, {own, 53}, data), 1200);
    for (std::uint64_t seed = 1; seed < 20; ++seed) {
      SeededRng rng(seed);
      auto shuffled = pieces;
      for (std::size_t i = shuffled.size(); i > 1; --i) std::swap(shuffled[i - 1], shuffled[rng.below(i)]);
      shuffled.insert(shuffled.begin() + 1, shuffled[0]);   // an exact duplicate does no harm
      for (auto& p : shuffled) s.inject(p);
      auto d = s.stack.udp_receive(id);
      ASSERT_TRUE(d) << seed;
      EXPECT_EQ(d->data, data);
    }
    EXPECT_EQ(s.stack.memory().buffers, 0u);
  }
}

TEST(StackFragments, AnErrorQuotesTheBeginningOfTheDatagram) {
  for (bool v6 : {false, true}) {
    Script s;
    IpAddress peer = v6 ? kB6 : kB4, own = v6 ? kA6 : kA4;
    for (const auto& piece : fragments(peer, own, 17, udp_payload({peer, 5}, {own, 53}, ByteVector(3000)), 1200))
      s.inject(piece);
    ASSERT_EQ(s.out.size(), 1u);                 // nobody listens there
    auto ip = parsed(s.out[0]);
    auto error = wire::parse_icmp(ip.payload, ip.source, ip.destination);
    ASSERT_TRUE(error);
    EXPECT_EQ(error->kind, wire::IcmpKind::kUnreachablePort);
    const std::size_t udp = v6 ? 48 : 20;        // behind the headers of a first fragment
    ASSERT_GE(error->body.size(), udp + 8);
    EXPECT_EQ(load_be<std::uint16_t>(&error->body[udp]), 5);
    EXPECT_EQ(load_be<std::uint16_t>(&error->body[udp + 2]), 53);
  }
}

TEST(StackFragments, OverlapKillsTheDatagram) {
  for (bool v6 : {false, true}) {
    Script s;
    IpAddress peer = v6 ? kB6 : kB4, own = v6 ? kA6 : kA4;
    SocketId id = *s.stack.udp_bind(std::nullopt, 53);
    ByteVector payload = udp_payload({peer, 5}, {own, 53}, ByteVector(3000));
    auto coarse = fragments(peer, own, 17, payload, 1200), fine = fragments(peer, own, 17, payload, 800);
    s.inject(coarse[0]);
    s.inject(fine[1]);                         // 800..1600 meets 0..1200
    EXPECT_EQ(s.stack.counters().drop(Drop::kFragmentOverlap), 1u);
    for (auto& p : coarse) s.inject(p);
    EXPECT_FALSE(s.stack.udp_receive(id));
    s.wait(61s);
    EXPECT_TRUE(s.quiet());                    // a killed datagram times out in silence
    EXPECT_TRUE(s.stack.next_timeout().is_never());
  }
}

TEST(StackFragments, TimeoutTellsOnlyIfTheFirstPieceCame) {
  Script s;
  auto pieces = fragments(kB4, kA4, 17, udp_payload({kB4, 5}, {kA4, 53}, ByteVector(3000)), 1200);
  s.inject(pieces[1]);
  s.wait(31s);
  EXPECT_TRUE(s.quiet());
  s.inject(pieces[0]);
  s.wait(31s);
  ASSERT_EQ(s.out.size(), 1u);
  auto ip = parsed(s.out[0]);
  auto icmp = wire::parse_icmp(ip.payload, ip.source, ip.destination);
  ASSERT_TRUE(icmp);
  EXPECT_EQ(icmp->kind, wire::IcmpKind::kTimeExceeded);
  EXPECT_EQ(s.stack.counters().drop(Drop::kFragmentTimeout), 2u);
}

TEST(StackFragments, Bounds) {
  Script s;
  // Many unfinished datagrams of one peer, then of many.
  for (std::uint32_t i = 0; i < 100; ++i)
    s.inject(fragments(kB4, kA4, 17, udp_payload({kB4, 5}, {kA4, 53}, ByteVector(3000)), 1200, i)[0]);
  EXPECT_EQ(s.stack.counters().drop(Drop::kFragmentLimit), 100u - kFragmentDatagramsPerPeerMax);
  for (std::uint8_t i = 10; i < 200; ++i) {
    IpAddress peer = IpAddress::v4(100, 64, 1, i);
    s.inject(fragments(peer, kA4, 17, udp_payload({peer, 5}, {kA4, 53}, ByteVector(3000)), 1200)[0]);
  }
  EXPECT_LE(s.stack.memory().buffers, kFragmentBytesMax);
  // A first piece without its transport header, a tail beyond 64 KiB, an odd middle: refused at once.
  std::uint64_t before = s.stack.counters().drop(Drop::kFragment);
  s.inject(fragments(kB6, kA6, 6, ByteVector(64), 8)[0]);
  ByteVector tail(28 + 8);
  wire::write_ipv4_header(tail.data(), kB4, kA4, 17, 16, 500, false, 65528, false);
  s.inject(tail);
  ByteVector odd(20 + 13);
  wire::write_ipv4_header(odd.data(), kB4, kA4, 17, 13, 501, false, 0, true);
  s.inject(odd);
  EXPECT_EQ(s.stack.counters().drop(Drop::kFragment), before + 3);
}

TEST(StackFragments, AtomicFragmentStandsAlone) {
  Script s;
  SocketId id = *s.stack.udp_bind(std::nullopt, 53);
  auto pieces = fragments(kB6, kA6, 17, udp_payload({kB6, 5}, {kA6, 53}, ByteVector(100)), 4096);
  ASSERT_EQ(pieces.size(), 1u);
  s.inject(pieces[0]);
  EXPECT_TRUE(s.stack.udp_receive(id));
  EXPECT_TRUE(s.stack.next_timeout().is_never());
}

TEST(StackFragments, LargeEchoIsAnsweredInFragments) {
  for (bool v6 : {false, true}) {
    Script s;
    IpAddress peer = v6 ? kB6 : kB4, own = v6 ? kA6 : kA4;
    ByteVector data(4000, 7), echo(4008);
    wire::write_echo(echo.data(), peer, own, false, 1, 1, data);
    for (auto& p : fragments(peer, own, v6 ? 58 : 1, echo, 1200)) s.inject(p);
    EXPECT_GE(s.out.size(), 4u);
    Reassembly again;
    Reassembly::Outcome outcome;
    for (auto& p : s.out) {
      EXPECT_LE(p.size(), 1280u);
      outcome = again.add(s.now, parsed(p));
    }
    ASSERT_TRUE(outcome.complete);
    auto reply = wire::parse_icmp(outcome.payload, own, peer);
    ASSERT_TRUE(reply);
    EXPECT_TRUE(reply->checksum_ok);
    EXPECT_TRUE(equal(reply->body, data));
  }
}

TEST(StackIp, RandomBytesNeverBreakAnything) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    Script s;
    *s.stack.udp_bind(std::nullopt, 53);
    *s.stack.listen(s.now, std::nullopt, 80);
    SeededRng rng(seed);
    for (int i = 0; i < 500; ++i) {
      ByteVector p(rng.below(200));
      rng.fill(p);
      if (p.size() >= 40 && rng.below(4) != 0) {
        std::uint8_t protocol = std::array<std::uint8_t, 6>{1, 6, 17, 44, 58, 0}[rng.below(6)];
        if (rng.below(2) == 0) wire::write_ipv4_header(p.data(), kB4, kA4, protocol, p.size() - 20, 1, false,
                                                       static_cast<std::uint16_t>(rng.below(4) * 8), rng.below(2) == 0);
        else wire::write_ipv6_header(p.data(), kB6, kA6, protocol, p.size() - 40, 0);
      }
      s.inject(p);
      if (rng.below(50) == 0) s.wait(10s);
    }
  }
}

}  // namespace
}  // namespace porthole::netstack
