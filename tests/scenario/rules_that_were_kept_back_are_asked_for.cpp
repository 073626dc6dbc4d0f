#include "scenario.h"
#include "sim/foreign_coordinator.h"

namespace porthole::scenario {
namespace {

using Rules = ForeignCoordinator::Rules;

// Two nodes of another coordinator, with our relay between them.
struct Abroad {
  Tailnet t{kSeed};
  ForeignCoordinator foreign = make_coordinator(t);
  NodeHost& first = t.add_node({.name = "first", .control_url = foreign.url()}, t.add_home("one"), false);
  NodeHost& late = t.add_node({.name = "late", .control_url = foreign.url()}, t.add_home("two"), false);

  Abroad() { t.server().stop_coordinator(); }  // then the relay takes everybody

  static ForeignCoordinator make_coordinator(Tailnet& t) {
    Site& site = t.add_public_site("abroad");
    Host& host = t.network.add_host("foreign.test", site, t.next_addresses(site));
    return ForeignCoordinator(t.network, t.streams, host, "foreign.test", t.relay_map());
  }
  // The first has been there for a while when the other comes; from it, and how long until it has an answer.
  TransferRef join_and_call() {
    first.start();
    EXPECT_IN(t, t.run_until([&] { return first.is_running(); }, 5s));
    t.run_for(20s);
    late.start();
    EXPECT_IN(t, t.run_until([&] { return late.is_running() && late.sees(first) && first.sees(late); }, 5s));
    auto call = late.transfer(first, 1000, 1000, 20s);
    t.run_until_over({call}, 25s);
    return call;
  }
};

}  // namespace

TEST(Scenario, RulesThatCameWithThePeerNeedNoQuestion) {
  Abroad a;
  auto call = a.join_and_call();
  EXPECT_IN(a.t, call->is_done());
  a.t.run_for(1min);
  EXPECT_EQ(a.foreign.whole_maps(a.first.key()), 1);
}

// Headscale 0.28: seen with 7 of 30 nodes that joined one after the other (docs/headscale.md).
TEST(Scenario, RulesThatWereKeptBackAreAskedFor) {
  Abroad a;
  a.foreign.rules = Rules::kWithTheWholeMap;
  auto call = a.join_and_call();
  EXPECT_IN(a.t, call->is_done());
  EXPECT_LT(call->until_first_byte(), 1500ms) << a.t.report();
  EXPECT_EQ(a.foreign.whole_maps(a.first.key()), 2);
  EXPECT_EQ(a.foreign.whole_maps(a.late.key()), 1);
}

TEST(Scenario, WhatTheRulesRefuseIsAskedForOnce) {
  Abroad a;
  a.foreign.rules = Rules::kNever;
  auto call = a.join_and_call();
  EXPECT_EQ(call->state, Transfer::State::kFailed);
  // And whoever is refused is told so.
  const Instant start = a.t.world.now();
  auto again = a.late.transfer(a.first, 1, 1, 20s);
  a.t.run_until_over({again}, 25s);
  EXPECT_EQ(again->state, Transfer::State::kFailed);
  EXPECT_TRUE(again->error && again->error->code == ErrorCode::kUnauthorized);
  EXPECT_LT(a.t.world.now() - start, 4s);
  EXPECT_EQ(a.foreign.whole_maps(a.first.key()), 2);
}

}  // namespace porthole::scenario
