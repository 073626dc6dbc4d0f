#include "paths/probe_plan.h"

#include <gtest/gtest.h>

namespace porthole::paths {
namespace {

RelayNode node(std::string v4 = "192.0.2.1", std::string v6 = "2001:db8::1", int port = 0) {
  RelayNode n;
  n.host_name = "relay.example";
  n.ipv4 = std::move(v4);
  n.ipv6 = std::move(v6);
  n.stun_port = port;
  return n;
}

std::vector<RelayRegion> make_regions(int count, int nodes = 2) {
  std::vector<RelayRegion> out;
  for (int id = 1; id <= count; ++id) {
    RelayRegion r;
    r.id = id;
    for (int n = 0; n < nodes; ++n) r.nodes.push_back(node());
    out.push_back(r);
  }
  return out;
}

std::map<int, RegionLatency> latencies(std::initializer_list<std::pair<int, Duration>> list, bool v6) {
  std::map<int, RegionLatency> out;
  for (auto [id, d] : list) out[id] = {id, d, v6 ? std::optional(d) : std::nullopt};
  return out;
}

// "1v4: 0@0 1@100" : region, family, then node@milliseconds.
std::vector<std::string> text(const std::vector<RelayRegion>& regions, const std::vector<ProbeSet>& plan) {
  std::vector<std::string> out;
  for (const ProbeSet& s : plan) {
    std::string t = std::to_string(regions[s.region].id) + (s.v6 ? "v6:" : "v4:");
    for (const Probe& p : s.probes)
      t += " " + std::to_string(p.node) + "@" + std::to_string(std::chrono::duration_cast<std::chrono::milliseconds>(p.delay).count());
    out.push_back(t);
  }
  return out;
}
using Texts = std::vector<std::string>;

TEST(ProbePlan, FullAsksEveryRegionThreeTimesOverItsNodes) {
  auto regions = make_regions(3);
  regions[1].no_measure_no_home = true;
  regions[2].avoid = true;   // probed in full runs all the same
  EXPECT_EQ(text(regions, make_probe_plan({regions, {}, 0, true, true, true, true, true})),
            (Texts{"1v4: 0@0 1@100 0@200", "1v6: 0@0 1@100 0@200", "3v4: 0@0 1@100 0@200", "3v6: 0@0 1@100 0@200"}));
  EXPECT_EQ(text(regions, make_probe_plan({regions, {}, 0, true, true, false, true, true})).size(), 2u);
  EXPECT_EQ(text(regions, make_probe_plan({regions, {}, 0, true, true, true, true, false})).size(), 2u);
}

TEST(ProbePlan, IncrementalWithBothFamilies) {
  const auto regions = make_regions(5, 1);
  const auto last = latencies({{1, 50ms}, {2, 10ms}, {3, 20ms}, {4, 30ms}}, true);
  // 2 and 3 are the fastest two; 4 is third: even rank, IPv4 only; 1 is home: four tries, spacing 1.2 x 50 ms.
  EXPECT_EQ(text(regions, make_probe_plan({regions, last, 1, false, true, true, true, true})),
            (Texts{"2v4: 0@0 0@12", "2v6: 0@0 0@12", "3v4: 0@0 0@24", "3v6: 0@0 0@24", "4v4: 0@0",
                   "1v4: 0@0 0@60 0@220 0@330", "1v6: 0@0 0@60 0@220 0@330"}));
}

TEST(ProbePlan, IncrementalWithoutIpv6LastTime) {
  const auto regions = make_regions(4, 1);
  const auto last = latencies({{1, 10ms}, {2, 20ms}, {3, 30ms}}, false);
  EXPECT_EQ(text(regions, make_probe_plan({regions, last, 2, false, true, true, true, true})),
            (Texts{"1v4: 0@0 0@12", "1v6: 0@0", "2v4: 0@0 0@24 0@148 0@222", "2v6: 0@0", "3v4: 0@0"}));
}

TEST(ProbePlan, IncrementalLeavesOutAvoidedUnlessHomeAndUnknownLast) {
  auto regions = make_regions(4, 1);
  regions[0].avoid = true;
  const auto last = latencies({{1, 1ms}, {4, 40ms}}, false);
  EXPECT_EQ(text(regions, make_probe_plan({regions, last, 0, false, true, false, true, false})),
            (Texts{"4v4: 0@0 0@48", "2v4: 0@0 0@200", "3v4: 0@0"}));
  EXPECT_EQ(text(regions, make_probe_plan({regions, last, 1, false, true, false, true, false}))[0], "1v4: 0@0 0@1 0@102 0@153");
}

TEST(ProbePlan, NoEarlierAnswersMakeItFull) {
  const auto regions = make_regions(5, 1);
  EXPECT_EQ(make_probe_plan({regions, {}, 0, false, true, false, true, false}).size(), 5u);
}

TEST(ProbePlan, StunTargets) {
  using Kind = StunTarget::Kind;
  EXPECT_EQ(stun_target(node(), false).port, 3478);                         // 0 is the default ...
  EXPECT_EQ(stun_target(node("1.2.3.4", "", 99), false).port, 99);
  EXPECT_EQ(stun_target(node("1.2.3.4", "", -1), false).kind, Kind::kOff);  // ... and -1 is off
  EXPECT_EQ(stun_target(node("1.2.3.4", "", 70000), false).kind, Kind::kOff);
  EXPECT_EQ(stun_target(node("none", "none"), false).kind, Kind::kOff);     // never to the name service
  EXPECT_EQ(stun_target(node("none", ""), true).kind, Kind::kResolve);
  EXPECT_EQ(stun_target(node("2001:db8::1", ""), false).kind, Kind::kOff);
  RelayNode literal = node("", "");
  literal.host_name = "192.0.2.77";
  EXPECT_EQ(stun_target(literal, false).address.to_string(), "192.0.2.77");
  EXPECT_EQ(stun_target(literal, true).kind, Kind::kOff);
  RelayNode tested = node();
  tested.stun_test_ip = "127.0.0.9";
  EXPECT_EQ(stun_target(tested, false).address.to_string(), "127.0.0.9");
  EXPECT_EQ(stun_target(tested, true).kind, Kind::kOff);
}

TEST(ProbePlan, TestNodesAreAskedWithoutAnInterfaceOfTheFamily) {
  auto regions = make_regions(1, 1);
  regions[0].nodes[0] = node("127.0.0.1", "none");
  EXPECT_EQ(make_probe_plan({regions, {}, 0, true, false, false, true, true}).size(), 1u);
  regions[0].nodes[0] = node("192.0.2.1", "none");
  EXPECT_EQ(make_probe_plan({regions, {}, 0, true, false, false, true, true}).size(), 0u);
}

}  // namespace
}  // namespace porthole::paths
