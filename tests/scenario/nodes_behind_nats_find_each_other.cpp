#include "scenario.h"

namespace porthole::scenario {

namespace {

NatConfig nat_of(NatMapping mapping, NatFiltering filtering) {
  NatConfig nat;
  nat.mapping = mapping;
  nat.filtering = filtering;
  nat.keeps_port = mapping == NatMapping::kEndpointIndependent;
  return nat;
}

constexpr auto kEasy = NatMapping::kEndpointIndependent;
constexpr auto kHard = NatMapping::kAddressAndPort;
constexpr auto kOpen = NatFiltering::kEndpointIndependent;
constexpr auto kAddress = NatFiltering::kAddress;
constexpr auto kStrict = NatFiltering::kAddressAndPort;

struct Pair {
  NatConfig one, two;
  bool direct;
};

}  // namespace

TEST(Scenario, NodesBehindNatsFindEachOther) {
  const Pair pairs[] = {
      {nat_of(kEasy, kStrict), nat_of(kEasy, kStrict), true},
      {nat_of(kEasy, kAddress), nat_of(kEasy, kStrict), true},
      {nat_of(kEasy, kOpen), nat_of(kEasy, kStrict), true},
      // One side's port towards the other is not known beforehand: the other must let it in or learn it.
      {nat_of(kHard, kStrict), nat_of(kEasy, kOpen), true},
      {nat_of(kHard, kStrict), nat_of(kEasy, kAddress), true},
      {nat_of(kHard, kStrict), nat_of(kEasy, kStrict), false},
      {nat_of(kHard, kStrict), nat_of(kHard, kStrict), false},
  };
  int number = 0;
  for (const Pair& p : pairs) {
    SCOPED_TRACE(number++);
    Tailnet t(kSeed);
    NodeHost& a = t.add_node({.name = "a"}, t.add_home("one", p.one));
    NodeHost& b = t.add_node({.name = "b"}, t.add_home("two", p.two));
    ASSERT_IN(t, t.run_until_running(3s));
    t.run_for(3s);
    for (NodeHost* from : {&a, &b}) {
      auto transfer = from->transfer(from == &a ? b : a, 20'000, 20'000);
      ASSERT_IN(t, t.run_until_over({transfer}, 10s));
      EXPECT_IN(t, transfer->is_done());
    }
    EXPECT_EQ(t.run_until_direct(a, b, 10s), p.direct) << t.report();
  }
}

TEST(Scenario, NodesOfOneHomeUseTheirOwnNetwork) {
  Tailnet t(kSeed);
  Site& home = t.add_home("home", hard_nat());
  NodeHost& a = t.add_node({.name = "a"}, home);
  NodeHost& b = t.add_node({.name = "b"}, home);
  ASSERT_IN(t, t.run_until_running(3s));
  t.run_for(2s);
  auto transfer = a.transfer(b, 1000, 1000);
  ASSERT_IN(t, t.run_until_over({transfer}, 5s));
  ASSERT_IN(t, t.run_until_direct(a, b, 5s));
  auto status = a.engine().peer_status(t.world.now(), b.key());
  ASSERT_TRUE(status && status->path && status->path->direct);
  EXPECT_EQ(status->path->direct->address, b.host().addresses().front());

  // The line goes down; the coordinator and the relay are gone, the house is not.
  home.set_up(false);
  t.run_for(60s);
  auto offline = b.transfer(a, 100'000, 100'000);
  ASSERT_IN(t, t.run_until_over({offline}, 10s));
  EXPECT_IN(t, offline->is_done());
}

TEST(Scenario, ANatBehindANatIsNoObstacle) {
  Tailnet t(kSeed);
  Site& carrier = t.add_home("carrier", easy_nat());
  NodeHost& phone = t.add_node({.name = "phone"}, t.add_home("phone", easy_nat(), link_of(5ms), &carrier));
  NodeHost& tv = t.add_node({.name = "tv"}, t.add_home("home", easy_nat()));
  ASSERT_IN(t, t.run_until_running(3s));
  t.run_for(2s);
  auto transfer = phone.transfer(tv, 1000, 200'000);
  ASSERT_IN(t, t.run_until_over({transfer}, 10s));
  EXPECT_IN(t, transfer->is_done());
  EXPECT_IN(t, t.run_until_direct(phone, tv, 10s));
}

}  // namespace porthole::scenario
