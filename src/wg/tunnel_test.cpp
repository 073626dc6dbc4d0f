// Routing, runs, staging, admission, load, hostile input, memory.
#include <gtest/gtest.h>

#include <cstdio>
#include <set>

#include "wg/limits.h"
#include "wg/noise.h"
#include "wg/peer.h"
#include "wg/spec_constants.h"
#include "wg/test_world.h"
#include "wg/tunnel_impl.h"

namespace porthole::wg {
namespace {

using test::drops;
using test::Node;
using test::World;

std::uint64_t all_drops(const Node& n) {
  std::uint64_t sum = 0;
  for (std::uint64_t d : n.tunnel->counters().drops) sum += d;
  return sum;
}
Prefix prefix(const char* text) { return *Prefix::parse(text); }
IpAddress ip(const char* text) { return *IpAddress::parse(text); }

struct HandFedPair {
  explicit HandFedPair(std::uint64_t seed = 1) : world(seed), a(world.add("a")), b(world.add("b")) { world.introduce(a, b); }
  void establish() {
    a.send(b, 0);
    world.run_for(100ms);
    ASSERT_EQ(b.tunnel->state(b.id_of(a)), SessionState::kEstablished);
    a.send(b, 0);
    world.run_for(100ms);
    a.sent.clear();
    b.sent.clear();
    b.delivered.clear();
  }
  // One packet as it comes out of a, not delivered.
  ByteVector seal_one(std::uint64_t id, std::size_t size = 60) {
    world.pass = [](const Node&, const Node&, Bytes) { return false; };
    a.send(b, id, size);
    world.pass = nullptr;
    return a.sent.back().datagram;
  }
  void feed(Node& to, Bytes datagram) {
    ByteVector copy = to_vector(datagram);
    const RecvDatagram d{Endpoint{IpAddress::v4(198, 51, 100, 1), 1}, MutBytes(copy)};
    to.tunnel->handle_datagrams(to.clock(), std::span(&d, 1));
  }
  World world;
  Node &a, &b;
};

// ---- routing

TEST(PrefixTable, AgreesWithTheLinearSearch) {
  SeededRng rng(3);
  PrefixTable table;
  std::vector<std::pair<Prefix, std::uint32_t>> all;
  auto address = [&](bool v6) {
    if (!v6) return IpAddress::v4(static_cast<std::uint32_t>(0x0a000000 + rng.below(1 << 12)));
    std::uint8_t b[16] = {0xfd, 0x7a};
    b[15] = static_cast<std::uint8_t>(rng.u32());
    b[14] = static_cast<std::uint8_t>(rng.below(4));
    return IpAddress::v6_bytes(b);
  };
  for (int round = 0; round < 3000; ++round) {
    const bool v6 = rng.below(2) == 1;
    const IpAddress a = address(v6);
    const int bits = static_cast<int>(rng.below(v6 ? 129 : 33));
    const auto same = [&](const auto& e) {
      return e.first.bits == bits && e.first.address.is_v6() == v6 && e.first.contains(a);
    };
    if (rng.below(3) != 0) {
      const auto value = static_cast<std::uint32_t>(rng.below(50));
      table.set({a, bits}, value);
      std::erase_if(all, same);
      all.push_back({{a, bits}, value});
    } else {
      const auto it = std::find_if(all.begin(), all.end(), same);
      if (it != all.end()) {
        table.erase({a, bits}, it->second + 1);  // not the holder: stays
        table.erase({a, bits}, it->second);
        all.erase(it);
      }
    }
    const IpAddress q = address(rng.below(2) == 1);
    std::uint32_t expected = kNoPeer;
    int best = -1;
    for (const auto& [p, value] : all) {
      if (p.contains(q) && p.bits > best) {
        best = p.bits;
        expected = value;
      }
    }
    ASSERT_EQ(table.lookup(q, kNoPeer), expected) << q.to_string();
    ASSERT_EQ(table.size(), all.size());
  }
  EXPECT_EQ(table.lookup(IpAddress(), kNoPeer), kNoPeer);
}

TEST(WgRouting, LongestPrefixAndLastWriter) {
  World world;
  Node& a = world.add("a");
  SeededRng rng(5);
  auto add = [&](std::vector<Prefix> list) {
    return a.tunnel->add_peer(a.clock(), crypto::NodePrivate::generate(rng).public_key(), list);
  };
  const PeerId exit = add({prefix("0.0.0.0/0"), prefix("::/0")});
  const PeerId host = add({prefix("100.64.0.9/32"), prefix("fd7a:115c:a1e0::9/128")});
  const PeerId subnet = add({prefix("10.1.2.3/16")});  // host bits are ignored
  EXPECT_EQ(a.tunnel->route(ip("8.8.8.8")), exit);
  EXPECT_EQ(a.tunnel->route(ip("100.64.0.9")), host);
  EXPECT_EQ(a.tunnel->route(ip("fd7a:115c:a1e0::9")), host);
  EXPECT_EQ(a.tunnel->route(ip("fd7a:115c:a1e0::8")), exit);
  EXPECT_EQ(a.tunnel->route(ip("10.1.255.1")), subnet);
  // The address moves.
  const Prefix moved[] = {prefix("100.64.0.9/32"), prefix("10.1.0.0/16")};
  a.tunnel->set_allowed_ips(subnet, moved);
  EXPECT_EQ(a.tunnel->route(ip("100.64.0.9")), subnet);
  const Prefix rest[] = {prefix("fd7a:115c:a1e0::9/128")};
  a.tunnel->set_allowed_ips(host, rest);  // does not take away what is no longer its own
  EXPECT_EQ(a.tunnel->route(ip("100.64.0.9")), subnet);
  a.tunnel->remove_peer(a.clock(), subnet);
  EXPECT_EQ(a.tunnel->route(ip("100.64.0.9")), exit);
  a.tunnel->remove_peer(a.clock(), exit);
  EXPECT_EQ(a.tunnel->route(ip("100.64.0.9")), kNoPeer);
  EXPECT_EQ(a.tunnel->route(ip("fd7a:115c:a1e0::9")), host);
  EXPECT_FALSE(a.tunnel->contains(exit));
  EXPECT_NE(add({prefix("1.2.3.4/32")}), kNoPeer);
}

TEST(WgRouting, InboundIsHeldToThePeersOwnList) {
  for (const bool long_list : {false, true}) {
    HandFedPair p;
    Node& c = p.world.add("c");
    p.b.add(c);  // c owns 100.64.0.3/32 at b
    // a is an exit node for b: everything, so also a longer prefix of c is a legal source.
    std::vector<Prefix> list = {prefix("0.0.0.0/0")};
    if (long_list) {
      for (int i = 0; i < 20; ++i) list.push_back(Prefix::host(IpAddress::v4(10, 0, 0, static_cast<std::uint8_t>(i))));
    }
    p.b.tunnel->set_allowed_ips(p.b.id_of(p.a), list);
    p.establish();
    auto from = [&](IpAddress source) {
      p.a.tunnel->send(p.a.clock(), p.a.id_of(p.b), test::ip_packet(source, p.b.address, 5));
      p.a.tunnel->flush(p.a.clock());
      p.world.run_for(20ms);
    };
    from(ip("8.8.8.8"));
    from(c.address);
    EXPECT_EQ(p.b.delivered.size(), 2u);
    list[0] = prefix("10.0.0.0/24");
    list.push_back(Prefix::host(p.a.address));
    p.b.tunnel->set_allowed_ips(p.b.id_of(p.a), list);
    from(c.address);  // the cached answer is gone as well
    from(ip("8.8.8.8"));
    EXPECT_EQ(p.b.delivered.size(), 2u);
    from(ip("10.0.0.77"));
    from(p.a.address);
    EXPECT_EQ(p.b.delivered.size(), 4u);
    EXPECT_EQ(drops(p.b, Drop::kDisallowedSource), 2u);
    EXPECT_EQ(p.b.tunnel->stats(p.b.id_of(p.a)).drops[static_cast<std::size_t>(Drop::kDisallowedSource)], 2u);
  }
}

TEST(WgRouting, NoRouteAndBadPackets) {
  HandFedPair p;
  p.establish();
  const ByteVector stray = test::ip_packet(p.a.address, ip("9.9.9.9"), 1);
  std::copy(stray.begin(), stray.end(), p.a.tunnel->begin(stray.size()).begin());
  p.a.tunnel->commit(p.a.clock(), stray.size());
  EXPECT_EQ(drops(p.a, Drop::kNoRoute), 1u);
  MutBytes room = p.a.tunnel->begin(100);
  std::fill(room.begin(), room.end(), std::uint8_t{0});
  p.a.tunnel->commit(p.a.clock(), 100);
  EXPECT_EQ(drops(p.a, Drop::kBadPacket), 1u);
  EXPECT_TRUE(p.a.tunnel->begin(kPacketSizeMax + 1).empty());
  EXPECT_EQ(p.a.tunnel->begin(kPacketSizeMax).size(), kPacketSizeMax);
  p.a.tunnel->flush(p.a.clock());
  EXPECT_TRUE(p.a.sent.empty());
}

TEST(IpPacketSize, TrimsAndRejects) {
  auto v4 = [](std::size_t buffer, std::uint16_t total) {
    ByteVector b(buffer);
    b[0] = 0x45;
    store_be(b.data() + 2, total);
    return ip_packet_size(b);
  };
  EXPECT_EQ(v4(48, 44), 44u);
  EXPECT_EQ(v4(48, 48), 48u);
  EXPECT_EQ(v4(48, 49), 0u);
  EXPECT_EQ(v4(48, 19), 0u);
  EXPECT_EQ(v4(20, 20), 20u);
  ByteVector tiny(19);
  tiny[0] = 0x45;
  EXPECT_EQ(ip_packet_size(tiny), 0u);
  auto v6 = [](std::size_t buffer, std::uint16_t payload) {
    ByteVector b(buffer);
    b[0] = 0x60;
    store_be(b.data() + 4, payload);
    return ip_packet_size(b);
  };
  EXPECT_EQ(v6(64, 21), 61u);
  EXPECT_EQ(v6(40, 0), 40u);
  EXPECT_EQ(v6(64, 25), 0u);
  EXPECT_EQ(v6(64, 65496), 0u);  // 40 + 65496 does not fit 16 bits
  EXPECT_EQ(v6(64, 65535), 0u);
  ByteVector other(64);
  other[0] = 0x50;
  EXPECT_EQ(ip_packet_size(other), 0u);
  EXPECT_EQ(ip_packet_size({}), 0u);
}

// ---- runs and staging

struct RunHost final : Host {
  struct Run { PeerId peer; std::size_t bytes, segment; const std::uint8_t* at; };
  std::vector<Run> runs;
  bool admit(const NodePublic&) override { return false; }
  void transmit(PeerId peer, Bytes run, std::size_t segment) override {
    if (run[0] == kTypeTransport) runs.push_back({peer, run.size(), segment, run.data()});
    last = to_vector(run);
  }
  void reply(const Source&, Bytes) override {}
  void deliver(PeerId, std::span<const MutBytes>) override {}
  void authenticated(PeerId, const Source&) override {}
  void stray(const Source&) override {}
  void session(PeerId, SessionState) override {}
  ByteVector last;
};

TEST(WgRuns, EqualSizesLeaveTogether) {
  RunHost host, other_host;
  SeededRng rng(1);
  Tunnel a(host, rng), b(other_host, rng), c(other_host, rng);
  const Clock clock{Instant::from_ns(1'000'000'000'000), WallTime::from_unix_s(1'800'000'000)};
  for (Tunnel* t : {&a, &b, &c}) t->set_private_key(clock, crypto::NodePrivate::generate(rng));
  const Prefix pb[] = {prefix("100.64.0.2/32")}, pc[] = {prefix("100.64.0.3/32")}, pa[] = {prefix("100.64.0.1/32")};
  const PeerId to_b = a.add_peer(clock, b.public_key(), pb), to_c = a.add_peer(clock, c.public_key(), pc);
  for (auto [tunnel, id] : {std::pair(&b, to_b), std::pair(&c, to_c)}) {
    tunnel->add_peer(clock, a.public_key(), pa);
    a.start_handshake(clock, id);
    ByteVector message = host.last;
    RecvDatagram d{Endpoint{ip("1.1.1.1"), 1}, MutBytes(message)};
    tunnel->handle_datagrams(clock, std::span(&d, 1));
    message = other_host.last;
    d.data = message;
    a.handle_datagrams(clock, std::span(&d, 1));
  }
  host.runs.clear();
  auto put = [&](const char* to, std::size_t size) {
    const ByteVector packet = test::ip_packet(ip("100.64.0.1"), ip(to), 1, size);
    MutBytes room = a.begin(size);
    ASSERT_EQ(room.size(), size);
    std::copy(packet.begin(), packet.end(), room.begin());
    a.commit(clock, size);
  };
  for (int i = 0; i < 10; ++i) put("100.64.0.2", 1280);
  put("100.64.0.2", 500);   // ends the run
  put("100.64.0.2", 500);   // starts the next
  put("100.64.0.3", 500);   // another peer
  put("100.64.0.3", 1280);  // larger: another run
  put("100.64.0.3", 40);
  EXPECT_TRUE(host.runs.empty());
  a.flush(clock);
  ASSERT_EQ(host.runs.size(), 4u);
  EXPECT_EQ(host.runs[0].peer, to_b);
  EXPECT_EQ(host.runs[0].segment, 1312u);
  EXPECT_EQ(host.runs[0].bytes, 10 * 1312u + 544u);
  EXPECT_EQ(host.runs[1].bytes, 544u);
  EXPECT_EQ(host.runs[2].peer, to_c);
  EXPECT_EQ(host.runs[2].bytes, 544u);
  EXPECT_EQ(host.runs[3].segment, 1312u);
  EXPECT_EQ(host.runs[3].bytes, 1312u + 80u);
  EXPECT_EQ(host.runs[1].at, host.runs[0].at + host.runs[0].bytes);  // contiguous all the way
  host.runs.clear();
  // A full arena flushes itself, within the bounds of one system call.
  for (int i = 0; i < 200; ++i) put("100.64.0.2", 1280);
  for (int i = 0; i < 200; ++i) put("100.64.0.2", 40);
  a.flush(clock);
  std::size_t large = 0, small = 0;
  for (const auto& r : host.runs) {
    EXPECT_LE(r.bytes, kRunBytesMax);
    const std::size_t n = (r.bytes + r.segment - 1) / r.segment;
    EXPECT_LE(n, kRunSegmentsMax);
    if (r.segment == 1312) large += n;
    else small += n;
  }
  EXPECT_EQ(large + small, 400u);
  EXPECT_LE(host.runs.size(), 5u + 5u);
  a.flush(clock);
  EXPECT_LE(host.runs.size(), 10u);
}

TEST(WgStaging, OldestGoesFirstAndAllIsBounded) {
  World world(2);
  Node& a = world.add("a");
  std::vector<Node*> peers;
  for (int i = 0; i < 40; ++i) {
    peers.push_back(&world.add("p" + std::to_string(i)));
    world.introduce(a, *peers.back());
  }
  for (std::uint64_t i = 0; i < 200; ++i) a.send(*peers[0], i);
  EXPECT_EQ(a.tunnel->stats(a.id_of(*peers[0])).staged, kStagedPerPeerMax);
  EXPECT_EQ(drops(a, Drop::kStagingFull), 200 - kStagedPerPeerMax);
  for (std::size_t k = 1; k < peers.size(); ++k) {
    for (std::uint64_t i = 0; i < kStagedPerPeerMax; ++i) a.send(*peers[k], i);
  }
  std::size_t total = 0;
  for (Node* p : peers) total += a.tunnel->stats(a.id_of(*p)).staged;
  EXPECT_EQ(total, kStagedTotalMax);
  world.run_for(1s);
  ASSERT_EQ(peers[0]->delivered.size(), kStagedPerPeerMax);
  for (std::size_t i = 0; i < kStagedPerPeerMax; ++i) {
    ASSERT_EQ(test::packet_id(peers[0]->delivered[i].packet), 200 - kStagedPerPeerMax + i);
  }
  total = 0;
  for (Node* p : peers) total += a.tunnel->stats(a.id_of(*p)).staged;
  EXPECT_EQ(total, 0u);
  for (std::uint64_t i = 0; i < 4; ++i) a.send(*peers[39], 1000 + i);  // the bound was released with them
  world.run_for(1s);
  EXPECT_EQ(test::packet_id(peers[39]->delivered.back().packet), 1003u);
}

TEST(WgStaging, PeerRemovedMidFlow) {
  HandFedPair p;
  p.establish();
  const ByteVector packet = test::ip_packet(p.a.address, p.b.address, 1);
  std::copy(packet.begin(), packet.end(), p.a.tunnel->begin(packet.size()).begin());
  p.a.tunnel->commit(p.a.clock(), packet.size());
  const ByteVector in_flight = p.seal_one(2);  // flushes both
  p.a.sent.clear();
  std::copy(packet.begin(), packet.end(), p.a.tunnel->begin(packet.size()).begin());
  p.a.tunnel->commit(p.a.clock(), packet.size());
  const PeerId id = p.a.id_of(p.b);
  p.a.tunnel->remove_peer(p.a.clock(), id);
  p.a.tunnel->flush(p.a.clock());
  EXPECT_TRUE(p.a.sent.empty());
  EXPECT_FALSE(p.a.tunnel->contains(id));
  EXPECT_TRUE(p.a.tunnel->next_timeout().is_never());
  p.b.tunnel->remove_peer(p.b.clock(), p.b.id_of(p.a));
  p.feed(p.b, in_flight);
  EXPECT_TRUE(p.b.delivered.empty());
  EXPECT_EQ(drops(p.b, Drop::kUnknownIndex), 1u);
  p.world.introduce(p.a, p.b);
  EXPECT_EQ(p.a.id_of(p.b), id);  // the number is free again
  p.a.send(p.b, 3);
  p.world.run_for(6s);
  EXPECT_EQ(p.b.delivered.size(), 1u);
}

// ---- sources

TEST(WgSources, OncePerBatchAndSourceAndBeforeDelivery) {
  HandFedPair p;
  p.establish();
  std::vector<ByteVector> data;
  for (std::uint64_t i = 0; i < 100; ++i) data.push_back(p.seal_one(i));
  std::vector<RecvDatagram> batch;
  const Endpoint one{ip("192.0.2.77"), 5}, two{ip("2001:db8::5"), 6};
  for (std::size_t i = 0; i < data.size(); ++i) batch.push_back({i % 2 == 0 ? one : two, MutBytes(data[i])});
  data[3].back() ^= 1;
  p.b.authentic.clear();
  std::size_t batches = 0;
  p.b.on_deliver = [&](PeerId, std::span<const MutBytes> packets) {
    EXPECT_EQ(p.b.authentic.size(), 2u);
    EXPECT_LE(packets.size(), kOpenBatchMax);
    ++batches;
  };
  p.b.tunnel->handle_datagrams(p.b.clock(), batch);
  EXPECT_EQ(p.b.delivered.size(), 99u);
  EXPECT_EQ(batches, 2u);
  ASSERT_EQ(p.b.authentic.size(), 2u);
  EXPECT_EQ(p.b.authentic[0].second, Source(one));
  EXPECT_EQ(p.b.authentic[1].second, Source(two));
  for (std::size_t i = 1; i < p.b.delivered.size(); ++i) {
    EXPECT_LT(test::packet_id(p.b.delivered[i - 1].packet), test::packet_id(p.b.delivered[i].packet));
  }
  // A replay from elsewhere says nothing about the peer.
  const RecvDatagram copy{Endpoint{ip("198.51.100.9"), 9}, MutBytes(data[0])};
  p.b.tunnel->handle_datagrams(p.b.clock(), std::span(&copy, 1));
  EXPECT_EQ(p.b.authentic.size(), 2u);
}

TEST(WgSources, RelayedHandshakeAndData) {
  HandFedPair p;
  p.world.pass = [](const Node&, const Node&, Bytes) { return false; };
  p.a.send(p.b, 1);
  auto relay = [&](Node& from, Node& to) {
    ByteVector copy = from.sent.back().datagram;
    to.tunnel->handle_relayed(to.clock(), 7, from.shown, copy);
  };
  relay(p.a, p.b);
  relay(p.b, p.a);
  relay(p.a, p.b);
  ASSERT_EQ(p.b.delivered.size(), 1u);
  EXPECT_EQ(p.b.authentic.back().second, Source(RelaySource{7, p.a.shown}));
}

// ---- admission

TEST(WgAdmit, OnlyProvenKeysAreAskedAbout) {
  World world(4);
  Node& a = world.add("a");
  Node& b = world.add("b");
  a.add(b);
  a.send(b, 1);
  world.run_for(1s);
  ASSERT_EQ(b.asked.size(), 1u);
  EXPECT_EQ(b.asked[0], a.shown);
  EXPECT_EQ(drops(b, Drop::kUnknownPeer), 1u);
  EXPECT_TRUE(b.sent.empty());
  b.admit_all = true;
  world.run_for(10s);
  EXPECT_EQ(b.tunnel->peer_count(), 1u);
  EXPECT_EQ(b.delivered.size(), 1u);

  // A stranger claims a's key without having it: the static field opens, the stamp does not.
  Node& c = world.add("c");
  b.asked.clear();
  SeededRng rng(9);
  Identity liar = Identity::of(c.key);
  liar.shown = crypto::NodePrivate::generate(rng).public_key();
  const PeerKeys to_b = PeerKeys::of(liar, b.shown, {});
  ByteVector message(kInitiationSize);
  ASSERT_TRUE(build_initiation(liar, to_b, crypto::NodePrivate::generate(rng), 5, Tai64n::from_wall(world.wall), message));
  write_mac1(to_b.mac1_key, message);
  const std::uint64_t before = drops(b, Drop::kBadHandshake);
  world.put(c.endpoint, b, message);
  world.run_for(1s);
  EXPECT_TRUE(b.asked.empty());
  EXPECT_EQ(drops(b, Drop::kBadHandshake), before + 1);
}

TEST(WgAdmit, OwnKeyIsNoPeer) {
  HandFedPair p;
  EXPECT_EQ(p.a.add(p.a), kNoPeer);
  EXPECT_EQ(p.a.tunnel->add_peer(p.a.clock(), NodePublic(), {}), kNoPeer);
  EXPECT_EQ(p.a.add(p.b), p.a.id_of(p.b));  // again: the same handle
  EXPECT_EQ(p.a.tunnel->peer_count(), 1u);
}

TEST(WgAdmit, PresharedKeysMustAgree) {
  World world(6);
  Node& a = world.add("a");
  Node& b = world.add("b");
  const Prefix pa[] = {Prefix::host(a.address)}, pb[] = {Prefix::host(b.address)};
  const crypto::SecretBytes<32> psk(ByteVector(32, 7));
  a.tunnel->add_peer(a.clock(), b.shown, pb, &psk);
  b.tunnel->add_peer(b.clock(), a.shown, pa);
  a.send(b, 1);
  world.run_for(3s);
  EXPECT_TRUE(b.delivered.empty());
  EXPECT_EQ(drops(a, Drop::kBadHandshake), 1u);
  b.tunnel->add_peer(b.clock(), a.shown, pa, &psk);
  world.run_for(10s);
  EXPECT_EQ(b.delivered.size(), 1u);
}

// ---- load

TEST(WgLoad, FloodGetsCookiesAndAGoodPeerGetsThrough) {
  World world(7);
  Node& server = world.add("server");
  Node& good = world.add("good");
  world.introduce(server, good);
  SeededRng rng(8);
  server.keep_sent = false;
  server.admit_all = false;
  // Strangers who know the server's public key, from 100 addresses, 10,000 a second.
  const Identity stranger = Identity::of(crypto::NodePrivate::generate(rng));
  const PeerKeys to_server = PeerKeys::of(stranger, server.shown, {});
  std::vector<ByteVector> flood;
  for (int i = 0; i < 50; ++i) {
    ByteVector m(kInitiationSize);
    ASSERT_TRUE(build_initiation(stranger, to_server, crypto::NodePrivate::generate(rng), rng.u32(),
                                 Tai64n::from_wall(world.wall), m));
    write_mac1(to_server.mac1_key, m);
    flood.push_back(m);
  }
  bool started = false;
  const Instant begin = world.now;
  std::size_t sent = 0;
  for (int ms = 0; ms < 7000; ++ms) {
    for (int k = 0; k < 10; ++k) {
      const Endpoint from{IpAddress::v4(10, 9, 0, static_cast<std::uint8_t>(sent % 100)), 1000};
      ByteVector copy = flood[sent++ % flood.size()];
      const RecvDatagram d{from, MutBytes(copy)};
      server.tunnel->handle_datagrams(server.clock(), std::span(&d, 1));
    }
    if (ms == 1000) {
      good.send(server, 1);
      started = true;
    }
    world.run_for(1ms);
  }
  EXPECT_TRUE(started);
  const Counters& c = server.tunnel->counters();
  EXPECT_GT(c.cookie_replies_sent, sent * 9 / 10);
  EXPECT_LE(drops(server, Drop::kUnknownPeer), 200u);  // what the budget let through before it was exhausted
  ASSERT_EQ(good.count_sent(kTypeInitiation), 2u);
  EXPECT_EQ(good.tunnel->counters().cookies_received, 1u);
  ASSERT_EQ(server.delivered.size(), 1u);
  EXPECT_LE(server.delivered[0].at - begin, 1000ms + 5333ms + 40ms);
  // Quiet again: mac2 is ignored after a second.
  world.run_for(2s);
  Node& fresh = world.add("fresh");
  world.introduce(server, fresh);
  fresh.send(server, 2);
  world.run_for(100ms);
  EXPECT_EQ(server.delivered.size(), 2u);
}

TEST(WgLoad, BadMac1IsNeverAnswered) {
  HandFedPair p;
  ByteVector m(kInitiationSize);
  m[0] = kTypeInitiation;
  for (int i = 0; i < 10'000; ++i) p.feed(p.b, m);
  EXPECT_EQ(p.b.cookie_replies, 0u);
  EXPECT_EQ(drops(p.b, Drop::kBadMac1), 10'000u);
  // And does not count as load.
  p.a.send(p.b, 1);
  p.world.run_for(100ms);
  EXPECT_EQ(p.b.delivered.size(), 1u);
}

TEST(SourceLimiter, RatePerSource) {
  SourceLimiter limiter;
  Instant now = Instant::from_ns(10'000'000'000);
  const Source a = Endpoint{ip("192.0.2.1"), 1}, same_host = Endpoint{ip("192.0.2.1"), 2};
  for (int i = 0; i < kSourceBurst; ++i) EXPECT_TRUE(limiter.allow(now, i % 2 == 0 ? a : same_host));
  EXPECT_FALSE(limiter.allow(now, a));
  EXPECT_TRUE(limiter.allow(now, Endpoint{ip("192.0.2.2"), 1}));
  EXPECT_TRUE(limiter.allow(now, Endpoint{ip("2001:db8::1"), 1}));
  for (int i = 0; i < kSourceBurst - 1; ++i) EXPECT_TRUE(limiter.allow(now, Endpoint{ip("2001:db8::2"), 1}));
  EXPECT_FALSE(limiter.allow(now, Endpoint{ip("2001:db8::3"), 1})) << "same /64";
  EXPECT_TRUE(limiter.allow(now, RelaySource{1, NodePublic(std::array<std::uint8_t, 32>{1})}));
  int allowed = 0;
  for (int i = 0; i < 1000; ++i) {
    now = now + 1ms;
    if (limiter.allow(now, a)) ++allowed;
  }
  EXPECT_GE(allowed, kSourceRatePerSecond - 1);
  EXPECT_LE(allowed, kSourceRatePerSecond + 1);
  for (std::uint32_t i = 0; i < 10'000; ++i) limiter.allow(now, Endpoint{IpAddress::v4(i), 1});
  EXPECT_LE(limiter.size(), kSourcesMax);
  now = now + 2s;
  limiter.allow(now, a);
  EXPECT_EQ(limiter.size(), 1u);
}

// ---- hostile input

struct Snapshot {
  std::size_t sent, delivered, sessions, authentic;
  std::uint64_t rx, tx, drops;
  explicit Snapshot(const Node& n)
      : sent(n.sent.size()),
        delivered(n.delivered.size()),
        sessions(n.sessions.size()),
        authentic(n.authentic.size()),
        rx(0), tx(0),
        drops(all_drops(n)) {
    for (const auto& other : n.world.nodes) {
      if (const auto id = n.tunnel->find(other->shown)) {
        rx += n.tunnel->stats(*id).rx_bytes;
        tx += n.tunnel->stats(*id).tx_bytes;
      }
    }
  }
  bool same_but_one_drop(const Snapshot& o) const {
    return sent == o.sent && delivered == o.delivered && sessions == o.sessions && authentic == o.authentic && rx == o.rx &&
           tx == o.tx && drops + 1 == o.drops;
  }
};

TEST(WgHostile, EveryBitOfEveryMessageMatters) {
  // The messages of one handshake, in order, with who receives them.
  HandFedPair p;
  std::vector<std::pair<Node*, ByteVector>> script;
  p.world.pass = [&](const Node& from, const Node&, Bytes d) {
    script.emplace_back(&from == &p.a ? &p.b : &p.a, to_vector(d));
    return false;
  };
  p.a.send(p.b, 1);
  for (std::size_t step = 0; step < 3; ++step) {
    ASSERT_EQ(script.size(), step + 1);
    auto [to, original] = script[step];
    const std::size_t fields_end = original[0] == kTypeTransport ? original.size() : original.size() - 16;  // mac2 is ignored
    for (std::size_t i = 0; i < fields_end; ++i) {
      for (int bit : {0, 3, 7}) {
        ByteVector bad = original;
        bad[i] ^= static_cast<std::uint8_t>(1 << bit);
        const Snapshot before(*to);
        p.feed(*to, bad);
        ASSERT_TRUE(before.same_but_one_drop(Snapshot(*to))) << "message " << step << " byte " << i;
      }
    }
    for (std::size_t n = 0; n < original.size(); ++n) {  // every truncation
      const Snapshot before(*to);
      p.feed(*to, Bytes(original).first(n));
      ASSERT_TRUE(before.same_but_one_drop(Snapshot(*to))) << "message " << step << " cut to " << n;
    }
    ByteVector longer = original;
    longer.push_back(0);
    const Snapshot before(*to);
    p.feed(*to, longer);
    ASSERT_TRUE(before.same_but_one_drop(Snapshot(*to)));
    p.feed(*to, original);  // and the untouched one still works
  }
  EXPECT_EQ(p.b.delivered.size(), 1u);
  EXPECT_EQ(p.b.tunnel->state(p.b.id_of(p.a)), SessionState::kEstablished);
}

TEST(WgHostile, CookieReplies) {
  HandFedPair p;
  p.world.pass = [](const Node&, const Node&, Bytes) { return false; };
  p.a.send(p.b, 1);
  const ByteVector initiation = p.a.sent[0].datagram;
  CookieMaker maker;
  SeededRng rng(3);
  const Identity b = Identity::of(p.b.key);
  const auto reply = maker.make_reply(p.world.now, rng, b.cookie_key, Endpoint{ip("1.1.1.1"), 1}, initiation);
  for (std::size_t i = 0; i < reply.size(); ++i) {
    ByteVector bad = to_vector(reply);
    bad[i] ^= 4;
    const Snapshot before(p.a);
    p.feed(p.a, bad);
    ASSERT_TRUE(before.same_but_one_drop(Snapshot(p.a))) << i;
  }
  EXPECT_EQ(p.a.tunnel->counters().cookies_received, 0u);
  p.feed(p.a, reply);
  EXPECT_EQ(p.a.tunnel->counters().cookies_received, 1u);
  EXPECT_EQ(p.a.sent.size(), 1u) << "a cookie alone sends nothing";
  p.world.run_for(6s);
  ASSERT_EQ(p.a.sent.size(), 2u);
  EXPECT_TRUE(maker.check(p.world.now, Endpoint{ip("1.1.1.1"), 1}, p.a.sent[1].datagram));
}

TEST(WgHostile, AuthenticPeersMaySendNonsense) {
  HandFedPair p;
  p.establish();
  SeededRng rng(11);
  for (int i = 0; i < 2000; ++i) {
    ByteVector junk(1 + rng.below(200));
    rng.fill(junk);
    if (i % 3 == 0) junk[0] = 0x45;
    if (i % 3 == 1) junk[0] = 0x60;
    p.a.tunnel->send(p.a.clock(), p.a.id_of(p.b), junk);
  }
  p.a.tunnel->flush(p.a.clock());
  p.world.run_for(1s);
  EXPECT_EQ(drops(p.b, Drop::kBadPacket) + drops(p.b, Drop::kDisallowedSource) + p.b.delivered.size(), 2000u);
  EXPECT_TRUE(p.b.delivered.empty());
  EXPECT_NE(p.b.tunnel->next_timeout().latest, Instant::max());
}

TEST(WgHostile, RandomBytes) {
  HandFedPair p;
  p.establish();
  SeededRng rng(12);
  const Snapshot before(p.b);
  for (int i = 0; i < 50'000; ++i) {
    ByteVector d(rng.below(400));
    rng.fill(d);
    if (d.size() >= 4 && i % 4 != 0) {
      d[0] = static_cast<std::uint8_t>(1 + rng.below(6));
      d[1] = d[2] = d[3] = 0;
      if (i % 8 == 1) d.resize(kInitiationSize);
      if (i % 8 == 2) d.resize(kResponseSize);
      if (i % 8 == 3) d.resize(kCookieReplySize);
    }
    p.feed(p.b, d);
  }
  const Snapshot after(p.b);
  EXPECT_EQ(after.sent, before.sent);
  EXPECT_EQ(after.delivered, before.delivered);
  EXPECT_EQ(after.drops, before.drops + 50'000);
  p.a.send(p.b, 77);
  p.world.run_for(100ms);
  EXPECT_EQ(test::packet_id(p.b.delivered.back().packet), 77u);
}

// ---- memory

TEST(WgMemory, IdlePeersAreSmall) {
  std::printf("sizeof Peer %zu, KeyPair %zu (cipher contexts 2 x about 1.1 KB on use), PendingInitiation %zu\n", sizeof(Peer),
              sizeof(KeyPair), sizeof(PendingInitiation));
  EXPECT_LE(sizeof(Peer), 1200u);
  EXPECT_LE(sizeof(KeyPair), 1200u);
}

}  // namespace
}  // namespace porthole::wg
