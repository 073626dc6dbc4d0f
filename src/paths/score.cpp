#include "paths/score.h"

namespace porthole::paths {
namespace {

std::int64_t address_bonus(const IpAddress& a) {
  std::int64_t bonus = a.is_v6() ? 10 : 0;
  if (a.is_loopback()) return bonus + 50;
  if (a.is_link_local()) return bonus + 30;
  if (a.is_private()) return bonus + 20;
  return bonus;
}

}  // namespace

bool better(const PathAddress& a, const PathAddress& b) {
  if (a.same_way(b)) return a.wire_mtu > b.wire_mtu;
  if (!b.endpoint.is_valid()) return true;
  if (!a.endpoint.is_valid()) return false;
  if (a.vni.has_value() != b.vni.has_value()) return !a.vni.has_value();

  // Points: percent of latency saved, on the side of the faster one.
  const std::int64_t la = a.latency.count(), lb = b.latency.count();
  std::int64_t pa = 0, pb = 0;
  if (la > lb && la > 0) {
    pb = 100 - lb * 100 / la;
  } else if (lb > 0) {
    pa = 100 - la * 100 / lb;
  }
  pa += address_bonus(a.endpoint.address);
  pb += address_bonus(b.endpoint.address);
  if (pa <= 1 && pb == 0) return false;   // one percent is noise
  return pa > pb;
}

}  // namespace porthole::paths
