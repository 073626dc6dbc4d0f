#include "paths/gather.h"

#include <algorithm>
#include <map>

#include "paths/limits.h"
#include "paths/spec_constants.h"

namespace porthole::paths {
namespace {

// Other overlays: announcing their addresses would make two overlays carry each other in a loop.
bool is_overlay_interface(std::string_view name) {
  return name.starts_with("zt") || name == "wt0" || name.find("ZeroTier") != std::string_view::npos;
}

// Our own tunnel ranges, except the corner of 100.64/10 that ChromeOS gives to its containers.
bool is_tunnel_address(const IpAddress& a) {
  if (!a.is_tailnet()) return false;
  return !(a.is_v4() && (a.v4_value() & 0xfffffe00u) == 0x64735c00u);   // 100.115.92.0/23
}

IpAddress prefix_of(const IpAddress& a, int bits) {
  std::array<std::uint8_t, 16> raw = a.mapped();
  for (int i = bits < 0 ? 0 : bits; i < 128; ++i)
    raw[static_cast<std::size_t>(i) / 8] &= static_cast<std::uint8_t>(~(0x80 >> (i % 8)));
  return IpAddress::v6_bytes(raw.data());
}

void sort_unique(std::vector<IpAddress>& v) {
  std::sort(v.begin(), v.end());   // IPv4 sorts before IPv6
  v.erase(std::unique(v.begin(), v.end()), v.end());
}

}  // namespace

LocalAddresses select_local_addresses(std::span<const InterfaceAddress> addresses) {
  std::vector<IpAddress> regular, link_local_v4, ula, loopback;
  std::map<std::pair<std::string, IpAddress>, int> per_prefix;
  for (const InterfaceAddress& i : addresses) {
    const IpAddress& a = i.address;
    if (!i.up || !a.is_valid() || a.is_unspecified() || a.is_multicast()) continue;
    if (is_overlay_interface(i.interface_name) || is_tunnel_address(a)) continue;
    if (i.loopback || a.is_loopback()) {
      loopback.push_back(a);
    } else if (a.is_link_local()) {
      if (a.is_v4()) link_local_v4.push_back(a);
    } else if (a.is_v6() && a.is_private()) {
      ula.push_back(a);
    } else {
      if (a.is_v6() && ++per_prefix[{i.interface_name, prefix_of(a, i.prefix_bits)}] > kGlobalV6PerPrefixMax) continue;
      regular.push_back(a);
    }
  }
  LocalAddresses out;
  out.usable = std::move(regular);
  if (out.usable.empty()) {
    // Some clouds give nothing but link-local IPv4 or ULA.
    out.usable.insert(out.usable.end(), link_local_v4.begin(), link_local_v4.end());
    out.usable.insert(out.usable.end(), ula.begin(), ula.end());
  }
  sort_unique(out.usable);
  sort_unique(loopback);
  out.loopback = std::move(loopback);
  const std::vector<IpAddress>& reach = out.usable.empty() ? out.loopback : out.usable;
  out.has_v4 = std::any_of(reach.begin(), reach.end(), [](const IpAddress& a) { return a.is_v4(); });
  out.has_v6 = std::any_of(reach.begin(), reach.end(), [](const IpAddress& a) { return a.is_v6(); });
  return out;
}

bool is_usable_candidate(const Endpoint& e) {
  const IpAddress& a = e.address;
  if (!e.is_valid() || a.is_unspecified() || a.is_multicast() || is_tunnel_address(a)) return false;
  return !(a.is_v6() && a.is_link_local());
}

void EndpointTracker::seen(Instant now, const TypedEndpoint& e) {
  std::erase_if(entries_, [&](const Entry& x) { return x.endpoint.endpoint == e.endpoint; });
  auto same_address = [&](const Entry& x) { return x.endpoint.endpoint.address == e.endpoint.address; };
  if (static_cast<std::size_t>(std::count_if(entries_.begin(), entries_.end(), same_address)) >= kEndpointTrackerMaxPerAddress)
    entries_.erase(std::find_if(entries_.begin(), entries_.end(), same_address));
  if (entries_.size() >= kAnnouncedEndpointsMax) entries_.erase(entries_.begin());
  entries_.push_back({e, now});
}

std::vector<TypedEndpoint> EndpointTracker::current(Instant now) {
  std::erase_if(entries_, [&](const Entry& x) { return now - x.seen > kEndpointTrackerLifetime; });
  std::vector<TypedEndpoint> out;
  for (const Entry& x : entries_) out.push_back(x.endpoint);
  return out;
}

std::vector<TypedEndpoint> assemble_endpoints(const GatherInput& in) {
  std::vector<TypedEndpoint> out;
  auto add = [&](const Endpoint& e, EndpointType type) {
    if (!e.is_valid() || out.size() >= kAnnouncedEndpointsMax) return;
    if (std::any_of(out.begin(), out.end(), [&](const TypedEndpoint& x) { return x.endpoint == e; })) return;
    out.push_back({e, type});
  };
  auto add_local = [&](const std::vector<IpAddress>& addresses) {
    for (const IpAddress& a : addresses) add({a, a.is_v4() ? in.port_v4 : in.port_v6}, EndpointType::kLocal);
  };
  for (const TypedEndpoint& e : in.extra)
    if (e.type == EndpointType::kPortMapped) add(e.endpoint, e.type);
  for (const Endpoint& e : in.stun) add(e, EndpointType::kStun);
  if (in.stun_local_port) add(*in.stun_local_port, EndpointType::kStunLocalPort);
  for (const TypedEndpoint& e : in.remembered) add(e.endpoint, e.type);
  for (const TypedEndpoint& e : in.extra)
    if (e.type != EndpointType::kPortMapped) add(e.endpoint, e.type);
  if (in.local != nullptr) add_local(in.local->usable);
  if (out.empty() && in.local != nullptr) add_local(in.local->loopback);
  // Peers call back only nodes that announce something, even something that cannot work.
  if (out.empty()) add({IpAddress::v4(127, 0, 0, 1), in.port_v4 != 0 ? in.port_v4 : in.port_v6}, EndpointType::kLocal);
  return out;
}

}  // namespace porthole::paths
