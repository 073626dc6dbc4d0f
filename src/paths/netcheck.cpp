#include "paths/netcheck.h"

#include <algorithm>

#include "paths/limits.h"
#include "paths/spec_constants.h"

namespace porthole::paths {

// ---- NameCache ----

std::span<const IpAddress> NameCache::lookup(Instant now, const std::string& host) {
  Name& n = names_[host];
  const bool stale = n.answered && now - n.at > (n.addresses.empty() ? kResolveRetry : kResolvedFor);
  if (!n.asked && (!n.answered || stale)) {
    n.asked = true;
    requests_.push_back(host);
  }
  return n.addresses;
}

void NameCache::resolved(Instant now, const std::string& host, std::span<const IpAddress> addresses) {
  auto it = names_.find(host);
  if (it == names_.end()) return;
  it->second.asked = false;
  it->second.answered = true;
  it->second.at = now;
  // A failed lookup keeps what was known: name servers fail more often than STUN servers move.
  if (!addresses.empty()) it->second.addresses.assign(addresses.begin(), addresses.end());
}

std::optional<std::string> NameCache::take_request() {
  if (requests_.empty()) return std::nullopt;
  std::string host = std::move(requests_.front());
  requests_.erase(requests_.begin());
  return host;
}

// ---- Netcheck ----

void Netcheck::start(Instant now, std::span<const RelayRegion> regions, std::vector<ProbeSet> plan, bool full) {
  running_ = true;
  full_ = full;
  probed_ = false;
  started_ = now;
  wake_ = now;
  regions_ = regions;
  sets_.clear();
  in_flight_.clear();
  planned_.clear();
  enough_at_.reset();
  to_measure_.clear();
  measuring_.clear();
  measured_ = udp_answered_ = http_v4_ = http_v6_ = false;
  latencies_.clear();
  mappings_.clear();
  global_v4_.reset();
  global_v6_.reset();
  varies_.reset();
  for (ProbeSet& p : plan) {
    planned_.insert(regions_[p.region].id);
    sets_.push_back({std::move(p), 0, false});
  }
}

// A set is skipped once its answer could add nothing: the region's latency is known, and its family has answered (IPv6)
// or the NAT's behaviour is decided (IPv4).
bool Netcheck::brings_nothing(const Set& set) const {
  if (!latencies_.contains(regions_[set.plan.region].id)) return false;
  if (!set.plan.v6) return varies_.has_value();
  return std::any_of(latencies_.begin(), latencies_.end(), [](const auto& e) { return e.second.v6.has_value(); });
}

void Netcheck::send_due(Instant now, std::size_t set_index) {
  Set& set = sets_[set_index];
  const RelayRegion& region = regions_[set.plan.region];
  while (!set.done && set.next < set.plan.probes.size() && started_ + set.plan.probes[set.next].delay <= now) {
    if (brings_nothing(set)) {
      set.done = true;
      return;
    }
    const RelayNode& node = region.nodes[set.plan.probes[set.next].node];
    const StunTarget target = stun_target(node, set.plan.v6);
    Endpoint destination{target.address, target.port};
    if (target.kind == StunTarget::Kind::kResolve) {
      auto known = names_.lookup(now, node.host_name);
      auto match = std::find_if(known.begin(), known.end(), [&](const IpAddress& a) { return a.is_v6() == set.plan.v6; });
      if (match == known.end()) return;   // waits for the name; the end of the run is the limit
      destination.address = *match;
    }
    ++set.next;
    if (in_flight_.size() >= kStunInFlightMax) continue;
    InFlight f{{}, now, set_index};
    rng_.fill(f.id);
    const auto request = wire::stun::encode_request(f.id);
    in_flight_.push_back(f);
    probed_ = true;
    ++counters_.stun_sent;
    sink_.send_udp(destination, request, request.size());
  }
}

// How long to go on after enough regions answered.
Duration Netcheck::settle_time() const {
  Duration slowest{};
  for (const auto& [region, latency] : latencies_) slowest = std::max(slowest, latency.best());
  const Duration settle = full_ ? 2 * slowest : slowest;
  // Fewer regions than usual answer sooner; the other family still gets its chance.
  return planned_.size() < static_cast<std::size_t>(kEnoughRegions) ? std::max(settle, kSettleMin) : settle;
}

bool Netcheck::finished(Instant now) const {
  if (measured_) return measuring_.empty() || now - started_ >= kReportTimeout;
  if (now - started_ >= kStunProbeTimeout) return true;
  if (std::all_of(sets_.begin(), sets_.end(), [](const Set& s) { return s.done; })) return true;
  if (!enough_at_) return false;
  return now >= *enough_at_ + settle_time();
}

// STUN has had its time. True: the run goes on with requests by HTTP.
bool Netcheck::measure_instead(Instant now) {
  if (measured_ || udp_answered_ || now - started_ >= kReportTimeout) return false;
  for (const RelayRegion& r : regions_) {
    const bool relays = std::any_of(r.nodes.begin(), r.nodes.end(), [](const RelayNode& n) { return !n.stun_only; });
    if (relays && !r.avoid && !r.no_measure_no_home) to_measure_.push_back(r.id);
  }
  measured_ = true;
  measuring_ = {to_measure_.begin(), to_measure_.end()};
  for (Set& s : sets_) s.done = true;
  return !measuring_.empty();
}

void Netcheck::relay_measured(Instant now, int region, std::optional<Duration> took, bool v6) {
  if (!running_ || measuring_.erase(region) == 0) return;
  if (took) {
    RegionLatency& l = latencies_[region];
    l.region = region;
    (v6 ? l.v6 : l.v4) = took;
    (v6 ? http_v6_ : http_v4_) = true;
  }
  if (finished(now)) wake_ = now;   // the next handle_timeout() ends the run
}

void Netcheck::compute_wake(Instant now) {
  if (measured_) {
    wake_ = started_ + kReportTimeout;
    return;
  }
  wake_ = started_ + kStunProbeTimeout;
  for (const Set& s : sets_) {
    if (s.done || s.next >= s.plan.probes.size()) continue;
    const Instant due = started_ + s.plan.probes[s.next].delay;
    if (due > now) wake_ = std::min(wake_, due);   // otherwise it waits for a name
  }
  if (enough_at_) wake_ = std::min(wake_, *enough_at_ + settle_time());
}

void Netcheck::handle_timeout(Instant now) {
  if (!running_) return;
  for (std::size_t i = 0; i < sets_.size(); ++i) send_due(now, i);
  if (finished(now) && !measure_instead(now)) {
    running_ = false;
    return;
  }
  compute_wake(now);
}

void Netcheck::note_mapping(const Endpoint& mapped) {
  auto it = std::find_if(mappings_.begin(), mappings_.end(), [&](const auto& m) { return m.first == mapped; });
  if (it != mappings_.end()) {
    ++it->second;
  } else if (mappings_.size() < kMappingsMax) {
    mappings_.push_back({mapped, 1});
  }
  if (mapped.address.is_v6()) {
    global_v6_ = mapped;
  } else if (!global_v4_) {
    global_v4_ = mapped;
  } else if (*global_v4_ != mapped) {
    varies_ = true;
  } else if (!varies_) {
    varies_ = false;
  }
}

bool Netcheck::handle_response(Instant now, const wire::stun::Response& response) {
  if (!running_) return false;
  auto it = std::find_if(in_flight_.begin(), in_flight_.end(), [&](const InFlight& f) { return f.id == response.id; });
  if (it == in_flight_.end()) return false;
  const InFlight answered = *it;
  in_flight_.erase(it);
  if (!response.mapped.is_valid()) return true;
  if (measured_) return true;   // too late to count: the run is about HTTP now
  Set& set = sets_[answered.set];
  set.done = true;
  udp_answered_ = true;
  const int id = regions_[set.plan.region].id;
  RegionLatency& l = latencies_[id];
  l.region = id;
  std::optional<Duration>& slot = response.mapped.address.is_v6() ? l.v6 : l.v4;
  const Duration took = now - answered.sent;
  if (!slot || took < *slot) slot = took;
  note_mapping(response.mapped);
  const std::size_t enough = std::min(planned_.size(), static_cast<std::size_t>(kEnoughRegions));
  if (!enough_at_ && latencies_.size() >= enough) enough_at_ = now;
  compute_wake(now);
  if (finished(now)) wake_ = now;   // the next handle_timeout() ends the run
  return true;
}

NetcheckReport Netcheck::report(Instant now) const {
  NetcheckReport r;
  r.full = full_;
  r.udp = udp_answered_;
  r.ipv4 = global_v4_.has_value() || http_v4_;
  r.ipv6 = global_v6_.has_value() || http_v6_;
  r.mapping_varies = varies_;
  r.global_v4 = global_v4_;
  r.global_v6 = global_v6_;
  for (const auto& [region, latency] : latencies_) r.regions.push_back(latency);
  r.took = now - started_;
  return r;
}

std::vector<Endpoint> Netcheck::announceable() const {
  std::vector<Endpoint> out;
  if (global_v4_) out.push_back(*global_v4_);
  for (const auto& [e, count] : mappings_)
    if (e.address.is_v4() && count >= 2 && e != global_v4_) out.push_back(e);
  if (global_v6_) out.push_back(*global_v6_);
  for (const auto& [e, count] : mappings_)
    if (e.address.is_v6() && count >= 2 && e != global_v6_) out.push_back(e);
  return out;
}

}  // namespace porthole::paths
