// What we tell others about where we can be reached: rules over interface addresses, memory of what STUN saw, and the
// order of the announcement.
#pragma once

#include <span>
#include <vector>

#include "base/ip.h"
#include "base/time.h"
#include "paths/paths.h"

namespace porthole::paths {

// Interface addresses worth announcing, ascending, IPv4 first.
struct LocalAddresses {
  std::vector<IpAddress> usable;
  std::vector<IpAddress> loopback;   // only for a host that has nothing else

  // The host can send in that family beyond itself (or has nothing but itself).
  bool has_v4 = false;
  bool has_v6 = false;
  friend bool operator==(const LocalAddresses&, const LocalAddresses&) = default;
};
LocalAddresses select_local_addresses(std::span<const InterfaceAddress> addresses);

// May `e` be tried as an address of a peer? No port 0, unspecified, multicast, broadcast, tunnel ranges, or IPv6
// link-local (the zone would be unknown).
bool is_usable_candidate(const Endpoint& e);

// Keeps STUN and port-mapped endpoints announced for a while after they were last seen, so that a short flap does not
// withdraw a working path.
class EndpointTracker {
 public:
  void seen(Instant now, const TypedEndpoint& e);
  // Those still within their life, oldest first.
  std::vector<TypedEndpoint> current(Instant now);
  void clear() { entries_.clear(); }

 private:
  struct Entry {
    TypedEndpoint endpoint;
    Instant seen;
  };
  std::vector<Entry> entries_;   // ascending by `seen`
};

// Everything one announcement is made of.
struct GatherInput {
  std::span<const TypedEndpoint> extra;        // port mappings and configured endpoints
  std::span<const Endpoint> stun;              // IPv4 first, then IPv6
  std::optional<Endpoint> stun_local_port;     // hard NAT and fixed local port
  std::span<const TypedEndpoint> remembered;
  const LocalAddresses* local = nullptr;
  std::uint16_t port_v4 = 0, port_v6 = 0;
};
// In announcement order, without duplicates (the first type wins). Never empty when a port is bound.
std::vector<TypedEndpoint> assemble_endpoints(const GatherInput& in);

}  // namespace porthole::paths
