#include "scenario.h"

namespace porthole::scenario {

namespace {

constexpr Instant kNow = Instant::from_ns(1'000'000'000);
const Endpoint kInside{IpAddress::v4(192, 168, 1, 2), 5000};
const Endpoint kServer{IpAddress::v4(45, 1, 1, 1), 3478};
const Endpoint kServerOtherPort{IpAddress::v4(45, 1, 1, 1), 3479};
const Endpoint kStranger{IpAddress::v4(45, 2, 2, 2), 3478};

Nat make_nat(NatMapping mapping, NatFiltering filtering) {
  NatConfig config;
  config.mapping = mapping;
  config.filtering = filtering;
  return Nat(config, IpAddress::v4(81, 1, 1, 1), SeededRng(1));
}

}  // namespace

TEST(Scenario, SimulatedNatsBehaveAsNamed) {
  for (NatFiltering filtering : {NatFiltering::kEndpointIndependent, NatFiltering::kAddress, NatFiltering::kAddressAndPort}) {
    Nat easy = make_nat(NatMapping::kEndpointIndependent, filtering);
    Endpoint seen = easy.outbound(kNow, kInside, kServer);
    EXPECT_EQ(seen, easy.outbound(kNow, kInside, kStranger));
    Nat fresh = make_nat(NatMapping::kEndpointIndependent, filtering);
    std::uint16_t port = fresh.outbound(kNow, kInside, kServer).port;
    EXPECT_EQ(fresh.inbound(kNow, kServer, port), kInside);
    EXPECT_EQ(fresh.inbound(kNow, kServerOtherPort, port).has_value(), filtering != NatFiltering::kAddressAndPort);
    EXPECT_EQ(fresh.inbound(kNow, kStranger, port).has_value(), filtering == NatFiltering::kEndpointIndependent);
    EXPECT_FALSE(fresh.inbound(kNow + 121s, kServer, port));
  }
  Nat hard = make_nat(NatMapping::kAddressAndPort, NatFiltering::kAddressAndPort);
  EXPECT_NE(hard.outbound(kNow, kInside, kServer), hard.outbound(kNow, kInside, kServerOtherPort));
}

TEST(Scenario, SimulatedLinksBehaveAsDescribed) {
  LinkConfig config = link_of(10ms);
  config.loss = 0.03;
  Link lossy(config, SeededRng(1));
  int lost = 0;
  for (int i = 0; i < 100'000; ++i) lost += lossy.carry(kNow, 100).count == 0 ? 1 : 0;
  EXPECT_NEAR(lost, 3000, 300);

  config.loss = 0;
  config.rate = 1'000'000;
  config.queue_bytes = 10'000;
  Link slow(config, SeededRng(1));
  std::size_t carried = 0;
  Instant last;
  for (int i = 0; i < 100; ++i) {
    auto a = slow.carry(kNow, 1000);
    if (a.count == 0) continue;
    ++carried;
    EXPECT_GT(a.at[0], last);
    last = a.at[0];
  }
  EXPECT_EQ(carried, 11u);  // the queue, and the one that is being sent
  EXPECT_EQ(last, kNow + 10ms + 11ms);

  LinkConfig bursty = link_of(10ms);
  bursty.burst_enter = 0.01;
  Link spells(bursty, SeededRng(1));
  int in_a_row = 0, longest = 0;
  for (int i = 0; i < 100'000; ++i) {
    in_a_row = spells.carry(kNow, 100).count == 0 ? in_a_row + 1 : 0;
    longest = std::max(longest, in_a_row);
  }
  EXPECT_GE(longest, 5);
}

}  // namespace porthole::scenario
