#include "proxy/udp_association.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "base/rng.h"
#include "proxy/limits.h"
#include "support/vectors.h"

namespace porthole::proxy {
namespace {

const Instant kBegin = Instant::from_ns(1'000'000'000);
const IpAddress kLoopback = IpAddress::v4(127, 0, 0, 1);
const IpAddress kNas = IpAddress::v4(100, 64, 0, 9);

ByteVector datagram(std::string_view target_hex, std::string_view data, std::string_view front = "000000") {
  ByteVector out = test::unhex(front);
  append(out, test::unhex(target_hex));
  append(out, as_bytes(data));
  return out;
}
// "nas" in letters, port 53.
constexpr std::string_view kNasName = "03036e61730035", kNasAddress = "01644000090035";

struct World final : UdpHost {
  struct Sent {
    FlowId flow;
    Endpoint to;
    std::string data;
  };
  Result<Endpoint> locate(const wire::socks5::Host& host, std::uint16_t port) override {
    if (const auto* a = std::get_if<IpAddress>(&host)) {
      if (peers.contains(*a)) return Endpoint{*a, port};
    } else if (auto it = names.find(std::string(std::get<std::string_view>(host))); it != names.end()) {
      return Endpoint{it->second, port};
    }
    return Error{ErrorCode::kNotFound, "nobody"};
  }
  Result<FlowId> open_flow() override {
    if (none_left) return Error{ErrorCode::kLimit, "no more"};
    open.insert(++last);
    return last;
  }
  void close_flow(FlowId flow) override { EXPECT_EQ(open.erase(flow), 1u); }
  Status send_to_target(FlowId flow, const Endpoint& to, Bytes data) override {
    EXPECT_TRUE(open.contains(flow));
    if (trouble) return Error{*trouble, "trouble"};
    sent.push_back({flow, to, std::string(as_text(data))});
    return {};
  }
  bool send_to_client(const Endpoint& client, Bytes head, Bytes data) override {
    client_at = client;
    answers.push_back(to_hex(head) + " " + std::string(as_text(data)));
    return !client_full;
  }

  std::set<IpAddress> peers{kNas, *IpAddress::parse("fd7a::9")};
  std::map<std::string, IpAddress> names{{"nas", kNas}};
  std::set<FlowId> open;
  FlowId last = 0;
  std::vector<Sent> sent;
  std::vector<std::string> answers;
  Endpoint client_at;
  std::optional<ErrorCode> trouble;
  bool none_left = false, client_full = false;
};

struct Association {
  World world;
  AssociationCounters counters;
  UdpAssociation machine{kLoopback, world, counters};
  Instant now = kBegin;
  Endpoint client{kLoopback, 4000};
  void say(std::string_view target_hex, std::string_view data) { machine.handle_client(now, client, datagram(target_hex, data)); }
  std::string target(int port) { return "0164400009" + to_hex(ByteVector{static_cast<std::uint8_t>(port >> 8), static_cast<std::uint8_t>(port)}); }
};

TEST(UdpAssociation, EachSpellingOfATargetHasAFlowAndItsAnswersItsHead) {
  Association a;
  const std::string_view spellings[] = {kNasName, kNasAddress, "030a3130302e36342e302e390035", "04fd7a00000000000000000000000000090035", "01644000090036"};
  for (auto target : spellings) a.say(target, "question");
  a.say(kNasName, "again");
  ASSERT_EQ(a.world.sent.size(), 6u);
  EXPECT_EQ(a.world.sent[5].flow, a.world.sent[0].flow);
  EXPECT_EQ(a.world.open.size(), 5u);
  EXPECT_EQ(a.world.sent[0].to, (Endpoint{kNas, 53}));
  EXPECT_EQ(a.world.sent[2].to, (Endpoint{kNas, 53}));
  EXPECT_EQ(a.world.sent[3].to, *Endpoint::parse("[fd7a::9]:53"));
  EXPECT_EQ(a.world.sent[5].data, "again");
  for (std::size_t i = 0; i < 5; ++i) {
    a.machine.handle_target(a.now, a.world.sent[i].flow, a.world.sent[i].to, as_bytes("answer"));
    EXPECT_EQ(a.world.answers.back(), "000000" + std::string(spellings[i]) + " answer");
    EXPECT_EQ(a.world.client_at, a.client);
  }
  a.machine.handle_target(a.now, a.world.sent[0].flow, a.world.sent[0].to, {});
  EXPECT_EQ(a.world.answers.back(), "000000" + std::string(kNasName) + " ") << "an empty one is one, too";
  EXPECT_EQ(a.counters.from_client, 6u);
  EXPECT_EQ(a.counters.to_client, 6u);
  a.machine.close();
  EXPECT_TRUE(a.world.open.empty());
}

TEST(UdpAssociation, OnlyTheFirstPortOfTheClientsAddress) {
  Association a;
  Endpoint elsewhere{IpAddress::v4(127, 0, 0, 2), 4000}, second{kLoopback, 4001};
  a.machine.handle_client(a.now, elsewhere, datagram(kNasName, "x"));
  // What cannot be understood decides nothing.
  a.machine.handle_client(a.now, second, as_bytes("junk"));
  a.machine.handle_client(a.now, second, datagram(kNasName, "x", "000001"));
  EXPECT_TRUE(a.world.sent.empty());
  a.say(kNasName, "mine");
  a.machine.handle_client(a.now, second, datagram(kNasName, "x"));
  a.machine.handle_client(a.now, elsewhere, datagram(kNasName, "x"));
  a.say(kNasName, "mine");
  EXPECT_EQ(a.world.sent.size(), 2u);
  EXPECT_EQ(a.counters.other_client, 3u);
  // An unknown target is understood.
  Association b;
  b.say("030178" "0035", "x");
  b.machine.handle_client(b.now, second, datagram(kNasName, "x"));
  EXPECT_TRUE(b.world.sent.empty());
  EXPECT_EQ(b.counters.other_client, 1u);
}

TEST(UdpAssociation, WhatIsDroppedIsCounted) {
  Association a;
  for (const char* front : {"000001", "000002", "000080", "0000ff"}) a.machine.handle_client(a.now, a.client, datagram(kNasName, "x", front));
  EXPECT_EQ(a.counters.fragment, 4u);
  for (const char* bad : {"", "01", "0164400009", "036e", "0200000000" "0035", "03036e61730000"}) a.say(bad, "");
  a.machine.handle_client(a.now, a.client, {});
  EXPECT_EQ(a.counters.bad_head, 7u);
  a.say("030178" "0035", "x");          // no such name
  a.say("01644000010035", "x");         // no such device
  a.say("017f0000010035", "x");         // not of the tailnet
  EXPECT_EQ(a.counters.unknown_target, 3u);
  EXPECT_EQ(a.machine.flows(), 0u) << "none of these holds a port";
  a.world.none_left = true;
  a.say(kNasName, "x");
  EXPECT_EQ(a.counters.no_flow, 1u);
  a.world.none_left = false;
  a.world.trouble = ErrorCode::kLimit;
  a.say(kNasName, "x");
  a.world.trouble = ErrorCode::kUnavailable;
  a.say(kNasName, "x");
  EXPECT_EQ(a.counters.too_long, 1u);
  EXPECT_EQ(a.counters.way_full, 1u);
  EXPECT_TRUE(a.world.sent.empty());
  a.world.trouble.reset();
  a.say(kNasName, "x");
  FlowId flow = a.world.sent.at(0).flow;
  a.machine.handle_target(a.now, flow, {kNas, 54}, as_bytes("x"));
  a.machine.handle_target(a.now, flow, {IpAddress::v4(100, 64, 0, 8), 53}, as_bytes("x"));
  a.machine.handle_target(a.now, flow + 1, {kNas, 53}, as_bytes("x"));
  EXPECT_EQ(a.counters.other_source, 3u);
  EXPECT_TRUE(a.world.answers.empty());
  a.world.client_full = true;
  a.machine.handle_target(a.now, flow, {kNas, 53}, as_bytes("x"));
  EXPECT_EQ(a.counters.way_full, 2u);
  EXPECT_EQ(a.counters.to_client, 0u);
  EXPECT_EQ(a.counters.from_client, 1u);
}

TEST(UdpAssociation, AFlowFollowsItsNameAndEndsWithIt) {
  Association a;
  a.say(kNasName, "x");
  IpAddress moved = IpAddress::v4(100, 64, 0, 10);
  a.world.names["nas"] = moved;
  a.say(kNasName, "x");
  EXPECT_EQ(a.world.sent[1].flow, a.world.sent[0].flow);
  EXPECT_EQ(a.world.sent[1].to, (Endpoint{moved, 53}));
  a.machine.handle_target(a.now, a.world.sent[0].flow, {kNas, 53}, as_bytes("late"));
  EXPECT_EQ(a.counters.other_source, 1u);
  a.world.names.clear();
  a.say(kNasName, "x");
  EXPECT_EQ(a.world.sent.size(), 2u) << "a device that is gone gets nothing more";
}

TEST(UdpAssociation, QuietFlowsGoAndTheQuietestMakesRoom) {
  Association a;
  EXPECT_TRUE(a.machine.next_timeout().is_never());
  for (std::size_t i = 0; i < kUdpTargetsMax; ++i) {
    a.say(a.target(static_cast<int>(i) + 1), "x");
    a.now = a.now + 1s;
  }
  EXPECT_EQ(a.machine.flows(), kUdpTargetsMax);
  // The first and the second are used again, one from each side.
  a.say(a.target(1), "x");
  a.machine.handle_target(a.now, a.world.sent[1].flow, a.world.sent[1].to, as_bytes("x"));
  FlowId third = a.world.sent[2].flow;
  a.say(a.target(1000), "x");
  EXPECT_EQ(a.machine.flows(), kUdpTargetsMax);
  EXPECT_EQ(a.world.open.size(), kUdpTargetsMax);
  EXPECT_FALSE(a.world.open.contains(third));
  a.machine.handle_target(a.now, third, {kNas, 3}, as_bytes("x"));
  EXPECT_EQ(a.counters.other_source, 1u);
  // Many more than fit all pass.
  std::uint64_t before = a.counters.from_client;
  for (int port = 2000; port < 2500; ++port) a.say(a.target(port), "x");
  EXPECT_EQ(a.counters.from_client, before + 500);
  EXPECT_EQ(a.world.open.size(), kUdpTargetsMax);

  EXPECT_EQ(a.machine.next_timeout().latest, a.now + kUdpTargetIdle);
  a.now = a.now + kUdpTargetIdle - 1s;
  a.machine.handle_timeout(a.now);
  EXPECT_EQ(a.machine.flows(), kUdpTargetsMax);
  a.say(a.target(2499), "x");
  a.now = a.now + 1s;
  a.machine.handle_timeout(a.now);
  EXPECT_EQ(a.machine.flows(), 1u);
  EXPECT_EQ(a.machine.next_timeout().latest, a.now + kUdpTargetIdle - 1s);
  a.now = a.now + kUdpTargetIdle;
  a.machine.handle_timeout(a.now);
  EXPECT_TRUE(a.world.open.empty());
  EXPECT_TRUE(a.machine.next_timeout().is_never());
  a.say(kNasName, "and it works on");
  EXPECT_EQ(a.world.sent.back().data, "and it works on");
}

TEST(UdpAssociation, HostileDatagramsKeepItsBounds) {
  Association a;
  SeededRng rng(8);
  for (int round = 0; round < 20000; ++round) {
    ByteVector in = datagram(round % 2 ? kNasName : a.target(static_cast<int>(rng.below(100))), "data");
    for (std::uint64_t k = rng.below(3); k > 0; --k) in[rng.below(in.size())] ^= static_cast<std::uint8_t>(1 << rng.below(8));
    if (rng.below(4) == 0) in.resize(rng.below(in.size()));
    a.machine.handle_client(a.now, {kLoopback, static_cast<std::uint16_t>(4000 + rng.below(2))}, in);
    a.machine.handle_target(a.now, rng.below(a.world.last + 2), {kNas, static_cast<std::uint16_t>(rng.below(100))}, as_bytes("x"));
    if (rng.below(100) == 0) a.now = a.now + 30s;
    a.machine.handle_timeout(a.now);
    ASSERT_LE(a.machine.flows(), kUdpTargetsMax);
    ASSERT_EQ(a.machine.flows(), a.world.open.size());
  }
  EXPECT_GT(a.counters.to_client, 0u);
  for (const std::string& answer : a.world.answers) EXPECT_TRUE(answer.starts_with("000000")) << answer;
}

}  // namespace
}  // namespace porthole::proxy
