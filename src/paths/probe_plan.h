// Which STUN requests a netcheck sends, and when.
#pragma once

#include <map>
#include <span>
#include <vector>

#include "base/time.h"
#include "paths/paths.h"

namespace porthole::paths {

struct Probe {
  Duration delay{};         // after the start of the run
  std::size_t node = 0;     // index into the region's nodes
};
// Tries for one region in one family; the first answer ends the set.
struct ProbeSet {
  std::size_t region = 0;   // index into the span of regions
  bool v6 = false;
  std::vector<Probe> probes;
};

struct PlanInput {
  std::span<const RelayRegion> regions;                       // ascending by id
  const std::map<int, RegionLatency>& last;                   // answers of the last run; empty: there was none
  int home = 0;
  bool full = true;
  bool has_v4 = false, has_v6 = false;                        // the host has an address of the family
  bool socket_v4 = false, socket_v6 = false;                  // a socket is bound
};
std::vector<ProbeSet> make_probe_plan(const PlanInput& in);

// Where a node can be asked in one family.
struct StunTarget {
  enum class Kind { kOff, kAddress, kResolve } kind = Kind::kOff;
  IpAddress address;        // kAddress
  std::uint16_t port = 0;
};
StunTarget stun_target(const RelayNode& node, bool v6);
// Test nodes are asked even when the host seems to lack the family.
bool is_test_node(const RelayNode& node);

}  // namespace porthole::paths
