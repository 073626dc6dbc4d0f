// Which of two addresses of a peer is better: latency with a bonus for near and for IPv6 addresses, and hysteresis.
#pragma once

#include <cstdint>
#include <optional>

#include "base/ip.h"
#include "base/time.h"

namespace porthole::paths {

// A UDP address of a peer as confirmed by a pong. An invalid endpoint means "none".
struct PathAddress {
  Endpoint endpoint;
  std::optional<std::uint32_t> vni;   // set: through a peer relay
  Duration latency{};
  int wire_mtu = 0;

  bool same_way(const PathAddress& o) const { return endpoint == o.endpoint && vni == o.vni; }
};

// Exact to the last nanosecond on purpose: both ends should come to the same conclusion (Tailscale betterAddr).
bool better(const PathAddress& a, const PathAddress& b);

}  // namespace porthole::paths
