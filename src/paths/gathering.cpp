// When and how our own endpoints are gathered, and what follows from a netcheck: announcement, NetInfo, home region.
#include <algorithm>

#include "paths/impl.h"

namespace porthole::paths {

const RelayRegion* Paths::Impl::find_region(int region) const {
  auto it = std::lower_bound(regions.begin(), regions.end(), region, [](const RelayRegion& r, int id) { return r.id < id; });
  return it != regions.end() && it->id == region ? &*it : nullptr;
}

bool Paths::Impl::region_known(int region) const {
  return find_region(region) != nullptr || connected_regions.contains(region);
}

// ---- runs ----

void Paths::Impl::request_gather(Instant now, bool full) {
  if (!may_gather() || netcheck.running()) {
    run_again = true;
    run_again_full |= full;
    return;
  }
  run_again_full |= full;
  start_run(now);
}

// The answers of a run in progress would be about a network that is no more.
void Paths::Impl::restart_gather(Instant now, bool full) {
  if (netcheck.running()) {
    netcheck.abort();
    report_wanted |= report_this_run;
  }
  request_gather(now, full);
}

void Paths::Impl::start_run(Instant now) {
  const bool due = !last_full_run || now - *last_full_run > kFullReportInterval;
  run_full = run_again_full || due || last_latencies.empty();
  run_again = run_again_full = false;
  report_this_run = report_wanted;
  report_wanted = false;
  periodic_at.reset();
  if (run_full) last_full_run = now;
  ++counters.netchecks;
  std::vector<ProbeSet> plan;
  if (mode.udp_enabled)
    plan = make_probe_plan({regions, last_latencies, home, run_full, local.has_v4, local.has_v6, port_v4 != 0, port_v6 != 0});
  netcheck.start(now, regions, std::move(plan), run_full);
  pump_netcheck(now);
}

void Paths::Impl::pump_netcheck(Instant now) {
  const bool was_running = netcheck.running();
  netcheck.handle_timeout(now);
  while (auto host = netcheck.names().take_request()) events.push_back(ResolveRequest{std::move(*host)});
  if (std::vector<int> far = netcheck.take_measure_request(); !far.empty()) {
    events.push_back(MeasureRelays{std::move(far)});
    // The rest of the run is about relays: nobody waits for it to learn where we are.
    gathered_at = now;
    update_endpoints(now);
    release_call_me_maybes(now);
  }
  if (was_running && !netcheck.running()) finish_run(now);
}

// The first answer tells our public address: nobody has to wait for slower regions to learn it.
void Paths::Impl::early_results(Instant now) {
  if (!netcheck.running()) return;
  if (gathered_at && waiting_for_endpoints.empty()) return;
  if (!netcheck.global_v4() && (local.has_v4 || !netcheck.global_v6())) return;
  gathered_at = now;
  update_endpoints(now);
  release_call_me_maybes(now);
}

void Paths::Impl::finish_run(Instant now) {
  NetcheckReport report = netcheck.report(now);
  if (!report.regions.empty()) {
    last_latencies = netcheck.latencies();
    history.add(now, home_latencies());
  }
  choose_home_now(now);
  report.home_region = home;
  gathered_at = last_run_end = now;
  update_endpoints(now);
  update_net_info(report);
  release_call_me_maybes(now);
  if (report_this_run) events.push_back(NetcheckDone{std::move(report)});
  report_this_run = false;
  if (last_traffic && now - *last_traffic <= kSessionActiveTimeout) arm_periodic(now);
  if (run_again) start_run(now);
}

// Keeps STUN answers and NAT bindings fresh while there is traffic. After idle time the next send brings it back.
void Paths::Impl::arm_periodic(Instant now) {
  if (periodic_at || netcheck.running() || !last_run_end || by_key.empty() || home == 0) return;
  periodic_at = std::max(now, *last_run_end + rng.between(kRestunIntervalMin, kRestunIntervalMax));
}

// ---- announcement ----

void Paths::Impl::update_endpoints(Instant now) {
  if (!may_gather()) return;
  std::vector<TypedEndpoint> list;
  if (udp_to_peers()) {
    const std::vector<Endpoint> stun = netcheck.announceable();
    std::optional<Endpoint> local_port;
    if (mode.fixed_port && netcheck.mapping_varies() == true && netcheck.global_v4() && port_v4 != 0)
      local_port = Endpoint{netcheck.global_v4()->address, port_v4};
    for (const Endpoint& e : stun) tracker.seen(now, {e, EndpointType::kStun});
    if (local_port) tracker.seen(now, {*local_port, EndpointType::kStunLocalPort});
    for (const TypedEndpoint& e : extra)
      if (e.type == EndpointType::kPortMapped) tracker.seen(now, e);
    const std::vector<TypedEndpoint> remembered = tracker.current(now);
    list = assemble_endpoints({extra, stun, local_port, remembered, &local, port_v4, port_v6});
  }
  // The order means nothing to receivers: only another set is news.
  auto sorted = [](std::vector<TypedEndpoint> v) {
    std::sort(v.begin(), v.end());
    return v;
  };
  const bool news = !announced_once || sorted(list) != sorted(announced);
  announced = std::move(list);
  announced_once = true;
  if (news) events.push_back(EndpointsChanged{announced});
}

// ---- home region ----

// Regions that may be home, ascending. Those to avoid only when there is no other.
std::vector<int> Paths::Impl::home_candidates() const {
  std::vector<int> good, avoided;
  for (const RelayRegion& r : regions) {
    const bool relays = std::any_of(r.nodes.begin(), r.nodes.end(), [](const RelayNode& n) { return !n.stun_only; });
    if (r.no_measure_no_home || !relays) continue;
    (r.avoid ? avoided : good).push_back(r.id);
  }
  return good.empty() ? avoided : good;
}

// What the last run measured of regions that have a relay at all.
RegionLatencies Paths::Impl::home_latencies() const {
  RegionLatencies out;
  for (const auto& [region, latency] : netcheck.latencies()) {
    const RelayRegion* r = find_region(region);
    if (r != nullptr && std::any_of(r->nodes.begin(), r->nodes.end(), [](const RelayNode& n) { return !n.stun_only; }))
      out[region] = latency.best();
  }
  return out;
}

void Paths::Impl::choose_home_now(Instant now) {
  const std::vector<int> possible = home_candidates();
  const RegionLatencies current = home_latencies();
  int chosen = choose_home({current, history, scores, heard, home, netcheck.started(), now});
  if (find_region(chosen) == nullptr) chosen = 0;
  if (chosen == 0) chosen = home;
  if (chosen == 0 && !possible.empty()) chosen = possible[home_seed % possible.size()];
  if (home != 0 && !control_connected) chosen = home;   // peers could not learn of it
  set_home(chosen);
}

void Paths::Impl::set_home(int region) {
  if (region == home) return;
  home = region;
  info.preferred_region = region;
  events.push_back(HomeRegionChanged{region});
  events.push_back(NetInfoChanged{});
}

void Paths::Impl::update_net_info(const NetcheckReport& report) {
  NetInfo next;
  next.preferred_region = home;
  next.os_has_ipv6 = port_v6 != 0;
  if (!mode.udp_enabled) {
    next.working_udp = false;
  } else if (netcheck.probed_anything()) {
    next.working_udp = report.udp;
    next.working_ipv6 = report.ipv6;
    next.mapping_varies_by_dest_ip = report.mapping_varies;
  }
  for (const RegionLatency& r : report.regions) {
    auto seconds = [](Duration d) { return std::chrono::duration<double>(d).count(); };
    if (r.v4) next.relay_latency[std::to_string(r.region) + "-v4"] = seconds(*r.v4);
    if (r.v6) next.relay_latency[std::to_string(r.region) + "-v6"] = seconds(*r.v6);
  }
  // A short run often measures one region only; what an earlier one decided about the NAT still holds.
  if (!next.mapping_varies_by_dest_ip && next.working_udp == true)
    next.mapping_varies_by_dest_ip = info.mapping_varies_by_dest_ip;
  const bool news = next.mapping_varies_by_dest_ip != info.mapping_varies_by_dest_ip || next.working_ipv6 != info.working_ipv6 ||
                    next.os_has_ipv6 != info.os_has_ipv6 || next.working_udp != info.working_udp;
  info = std::move(next);
  if (news) events.push_back(NetInfoChanged{});
}

// ---- what the node tells us ----

void Paths::restore_home(int region) {
  const std::vector<int> possible = impl_->home_candidates();
  if (impl_->home == 0 && std::find(possible.begin(), possible.end(), region) != possible.end()) impl_->set_home(region);
}

void Paths::set_relay_map(Instant now, const RelayMap& map) {
  Impl& i = *impl_;
  std::vector<RelayRegion> regions;
  for (const RelayRegion& r : map.regions)
    if (r.id >= 1 && r.id <= 65535 && regions.size() < kRegionsMax) regions.push_back(r);
  std::stable_sort(regions.begin(), regions.end(), [](const RelayRegion& a, const RelayRegion& b) { return a.id < b.id; });
  regions.erase(std::unique(regions.begin(), regions.end(), [](const RelayRegion& a, const RelayRegion& b) { return a.id == b.id; }),
                regions.end());
  if (i.relay_map_known && regions == i.regions) return;
  if (i.netcheck.running()) {
    i.netcheck.abort();   // it looks at the old regions
    i.report_wanted |= i.report_this_run;
  }
  i.netcheck.names().clear();
  i.regions = std::move(regions);
  i.relay_map_known = true;
  i.scores.clear();
  for (const RelayRegion& r : i.regions) i.scores[r.id] = r.score;
  std::erase_if(i.last_latencies, [&](const auto& e) { return i.find_region(e.first) == nullptr; });

  const std::vector<int> possible = i.home_candidates();
  const RelayRegion* home = i.find_region(i.home);
  if (i.home != 0 && (home == nullptr || home->no_measure_no_home)) i.set_home(0);
  // With one region there is nothing to measure: be reachable now.
  if (i.home == 0 && possible.size() == 1) i.set_home(possible[0]);
  i.update_relays();
  i.send_waiting_pings(now);
  i.update_endpoints(now);
  i.request_gather(now, true);
}

void Paths::set_local_addresses(Instant now, std::span<const InterfaceAddress> addresses, std::uint16_t port_v4,
                                std::uint16_t port_v6) {
  Impl& i = *impl_;
  LocalAddresses local = select_local_addresses(addresses);
  if (i.local_known && local == i.local && port_v4 == i.port_v4 && port_v6 == i.port_v6) return;
  i.local = std::move(local);
  i.port_v4 = port_v4;
  i.port_v6 = port_v6;
  i.local_known = true;
  i.gathered_at.reset();
  i.update_endpoints(now);
  i.restart_gather(now, false);
  for (auto& p : i.slots)
    if (p) i.try_again(now, *p);
  i.send_waiting_pings(now);
}

void Paths::set_extra_endpoints(Instant now, std::span<const TypedEndpoint> endpoints) {
  Impl& i = *impl_;
  std::vector<TypedEndpoint> list(endpoints.begin(), endpoints.end());
  if (list == i.extra) return;
  i.extra = std::move(list);
  i.update_endpoints(now);
  i.request_gather(now, false);
}

void Paths::set_mode(Instant now, const Mode& mode) {
  Impl& i = *impl_;
  if (mode == i.mode) return;
  i.mode = mode;
  for (auto& p : i.slots) {
    if (!p) continue;
    if (!i.udp_to_peers()) {
      i.forget_paths(*p);
      p->heartbeat_at.reset();
      p->burst_at.reset();
      i.reschedule(*p);
    } else {
      p->next_round = {};
    }
  }
  i.update_endpoints(now);
  i.restart_gather(now, false);
}

void Paths::note_control_connected(Instant now, bool connected) {
  Impl& i = *impl_;
  if (connected == i.control_connected) return;
  i.control_connected = connected;
  if (connected && i.last_run_end && !i.netcheck.running()) i.choose_home_now(now);   // a choice may have been held back
}

void Paths::note_relay_connected(Instant now, int region, bool connected) {
  Impl& i = *impl_;
  const bool was = i.connected_regions.contains(region);
  // Home stays away: is there a better one meanwhile? News only where there is a choice.
  if (!was && !connected && region == i.home && i.home_candidates().size() > 1) i.request_gather(now, false);
  if (was == connected) return;
  if (connected) {
    i.connected_regions.insert(region);
  } else {
    i.connected_regions.erase(region);
    i.request_gather(now, false);   // a relay that fails may be a network that changed
  }
  i.update_relays();
  i.send_waiting_pings(now);
}

void Paths::note_relay_heard(Instant now, int region) {
  Instant& at = impl_->heard[region];
  if (now - at >= 5s || at == Instant()) at = now;   // for rules in steps of 8 s and more
}

void Paths::note_peer_gone(Instant, int region, const NodePublic& key) {
  Peer* p = impl_->peer_of(key);
  if (p == nullptr || p->learned_region != region) return;
  p->learned_region = 0;
  impl_->update_relay(*p);
}

void Paths::resolved(Instant now, const std::string& host, std::span<const IpAddress> addresses) {
  impl_->netcheck.resolved(now, host, addresses);
  impl_->pump_netcheck(now);
}

void Paths::relay_measured(Instant now, int region, std::optional<Duration> took, bool v6) {
  impl_->netcheck.relay_measured(now, region, took, v6);
  impl_->pump_netcheck(now);
}

void Paths::start_netcheck(Instant now, bool full) {
  impl_->report_wanted = true;
  impl_->request_gather(now, full);
}

}  // namespace porthole::paths
