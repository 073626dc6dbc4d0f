#include "paths/probe_plan.h"

#include <algorithm>

#include "paths/spec_constants.h"
#include "wire/stun.h"

namespace porthole::paths {
namespace {

bool sendable(const PlanInput& in, const RelayNode& node, bool v6) {
  if (!(v6 ? in.socket_v6 : in.socket_v4)) return false;
  if (!(v6 ? in.has_v6 : in.has_v4) && !is_test_node(node)) return false;
  return stun_target(node, v6).kind != StunTarget::Kind::kOff;
}

struct Tries {
  int count = 1;
  bool v4 = true, v6 = true;
  bool v6_only_first = false;
  Duration spacing{};
  Duration late_extra{};
};

void add_sets(const PlanInput& in, std::size_t index, const Tries& tries, std::vector<ProbeSet>& out) {
  const RelayRegion& region = in.regions[index];
  if (region.nodes.empty()) return;
  for (bool v6 : {false, true}) {
    if (!(v6 ? tries.v6 : tries.v4)) continue;
    ProbeSet set{index, v6, {}};
    for (int k = 0; k < tries.count; ++k) {
      if (v6 && k > 0 && tries.v6_only_first) break;
      const std::size_t node = static_cast<std::size_t>(k) % region.nodes.size();
      if (!sendable(in, region.nodes[node], v6)) continue;
      set.probes.push_back({k * tries.spacing + (k >= 2 ? k * tries.late_extra : Duration(0)), node});
    }
    if (!set.probes.empty()) out.push_back(std::move(set));
  }
}

std::vector<ProbeSet> full_plan(const PlanInput& in) {
  std::vector<ProbeSet> out;
  for (std::size_t i = 0; i < in.regions.size(); ++i)
    if (!in.regions[i].no_measure_no_home)
      add_sets(in, i, {kFullProbeTries, true, true, false, kFullProbeSpacing, Duration(0)}, out);
  return out;
}

std::optional<Duration> last_latency(const PlanInput& in, std::size_t index) {
  auto it = in.last.find(in.regions[index].id);
  return it == in.last.end() ? std::nullopt : std::optional(it->second.best());
}

}  // namespace

bool is_test_node(const RelayNode& node) { return !node.stun_test_ip.empty() || node.ipv4 == "127.0.0.1"; }

StunTarget stun_target(const RelayNode& node, bool v6) {
  using Kind = StunTarget::Kind;
  if (node.stun_port < 0 || node.stun_port > 65535) return {};
  const std::uint16_t port =
      node.stun_port == 0 ? wire::stun::kDefaultPort : static_cast<std::uint16_t>(node.stun_port);
  auto literal = [&](const std::string& text) -> StunTarget {
    auto a = IpAddress::parse(text);
    if (!a || a->is_v6() != v6) return {};
    return {Kind::kAddress, *a, port};
  };
  if (!node.stun_test_ip.empty()) return literal(node.stun_test_ip);
  const std::string& field = v6 ? node.ipv6 : node.ipv4;
  if (!field.empty()) return literal(field);
  if (IpAddress::parse(node.host_name)) return literal(node.host_name);
  if (node.host_name.empty()) return {};
  return {Kind::kResolve, {}, port};
}

std::vector<ProbeSet> make_probe_plan(const PlanInput& in) {
  if (in.full || in.last.empty()) return full_plan(in);

  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < in.regions.size(); ++i) {
    const RelayRegion& r = in.regions[i];
    if (!r.no_measure_no_home && (!r.avoid || r.id == in.home)) order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    auto la = last_latency(in, a), lb = last_latency(in, b);
    if (la && lb) return *la < *lb;
    return la.has_value() && !lb.has_value();
  });

  const bool had_v4 = std::any_of(in.last.begin(), in.last.end(), [](const auto& e) { return e.second.v4.has_value(); });
  const bool had_v6 = std::any_of(in.last.begin(), in.last.end(), [](const auto& e) { return e.second.v6.has_value(); });
  std::vector<ProbeSet> out;
  for (std::size_t rank = 0; rank < order.size(); ++rank) {
    const bool home = in.regions[order[rank]].id == in.home;
    if (rank >= static_cast<std::size_t>(kNumIncrementalRegions) && !home) continue;
    Tries t;
    t.spacing = kDefaultActiveRetransmitTime;
    if (auto l = last_latency(in, order[rank]); l && l->count() > 0) t.spacing = *l * 120 / 100;
    t.late_extra = kLateTryExtra;
    t.v6_only_first = !had_v6;
    if (home) {
      t.count = kHomeTries;
    } else if (rank < 2) {
      t.count = kFastestTries;
    } else if (had_v4 && had_v6) {
      t.v4 = rank % 2 == 0;
      t.v6 = !t.v4;
    } else if (!had_v6) {
      t.v6 = false;
    }
    add_sets(in, order[rank], t, out);
  }
  return out;
}

}  // namespace porthole::paths
