#include <algorithm>
#include <utility>

#include "node/engine.h"
#include "node/limits.h"

namespace porthole::node {

// ---- control ----

void Engine::drain_control() {
  while (auto event = control_->poll_event()) {
    if (auto* e = std::get_if<control::StateChanged>(&*event)) {
      using S = control::ControlState;
      paths_->note_control_connected(clock_.now, e->state == S::kRunning);
      switch (e->state) {
        case S::kIdle:
        case S::kConnecting:
          if (!running_told_) set_state(NodeState::kStarting, e->error);
          break;
        case S::kReconnecting:
          break;   // the netmap stays usable: the node keeps running on what it knows, and a ControlNotice said why
        case S::kRunning: check_running(); break;
        case S::kNeedsLogin:
          stop_data_plane();
          set_state(NodeState::kNeedsLogin, e->error);
          break;
        case S::kNeedsApproval: set_state(NodeState::kNeedsApproval, e->error); break;
        case S::kExpired:
          stop_data_plane();
          set_state(NodeState::kExpired, e->error);
          break;
        case S::kLoggedOut:
          stop_data_plane();
          registered_ = false;
          emit(PersistEvent{});
          set_state(NodeState::kLoggedOut, e->error);
          break;
        case S::kFailed:
          stop_data_plane();
          set_state(NodeState::kFailed, e->error);
          break;
      }
    } else if (auto* url = std::get_if<control::LoginUrl>(&*event)) {
      emit(LoginUrlEvent{url->url});
    } else if (auto* open = std::get_if<control::OpenUrl>(&*event)) {
      emit(LoginUrlEvent{open->url});
    } else if (std::holds_alternative<control::NodeKeyChanged>(*event)) {
      registered_ = false;
      emit(PersistEvent{});
    } else if (auto* key = std::get_if<control::ControlKeyLearned>(&*event)) {
      control_key_ = key->key;
      emit(PersistEvent{});
    } else if (auto* done = std::get_if<control::Registered>(&*event)) {
      registered_ = true;
      login_name_ = done->login.login_name;
      emit(PersistEvent{});
    } else if (auto* changed = std::get_if<control::NetmapChanged>(&*event)) {
      apply_netmap(changed->change);
    } else if (auto* notice = std::get_if<control::ControlNotice>(&*event)) {
      emit(NoticeEvent{notice->error});
    } else if (std::holds_alternative<control::LoggedOut>(*event)) {
      emit(LoggedOutEvent{});
    }
  }
}

void Engine::apply_netmap(const control::NetmapChange& change) {
  const control::Netmap& map = control_->netmap();
  if (NodePublic key = control_->node_key().public_key(); key != installed_key_) {
    installed_key_ = key;
    tunnel_->set_private_key(clock_, control_->node_key());
    derp_->set_key(clock_.now, control_->node_key());
    paths_->set_keys(clock_.now, disco_, key);
  }
  if (change.self && map.self()) {
    std::vector<IpAddress> own = own_addresses();
    std::vector<Prefix> local;
    for (const IpAddress& a : own) local.push_back(Prefix::host(a));
    stack_->set_addresses(own);
    filter_.set_local(std::move(local));
    if (own != stored_addresses_) {
      stored_addresses_ = own;
      emit(PersistEvent{});
    }
  }
  if (change.filter || change.full || !change.peers_upserted.empty()) filter_.set_rules(control::CompiledFilter::compile(map));
  if (change.filter || change.full) rules_due_.reset();
  if (change.relay_map) update_relay_map();

  std::vector<std::string> added, removed;
  for (ts2021::NodeId id : change.peers_removed) remove_peer(id, &removed);
  for (ts2021::NodeId id : change.peers_upserted)
    if (const ts2021::Node* node = map.peer(id)) upsert_peer(*node, added);
  // After a time without a data plane (expiry, logout) the map names only what differs from before.
  if (change.full) {
    for (const auto& [id, node] : map.peers())
      if (!peers_.contains(id)) upsert_peer(node, added);
    for (auto& [id, peer] : peers_) peer.joined.reset();
  }
  if (change.self || change.full || !change.peers_removed.empty() || !change.peers_upserted.empty()) rebuild_names();
  if (!added.empty() || !removed.empty()) emit(PeersEvent{std::move(added), std::move(removed)});
  if (!map_at_) map_at_ = clock_.now;
  ++map_version_;
  check_running();
}

void Engine::upsert_peer(const ts2021::Node& node, std::vector<std::string>& added) {
  if (auto old = peers_.find(node.id); old != peers_.end() && (old->second.key != node.key || node.expired)) {
    remove_peer(node.id, nullptr);
  } else if (old == peers_.end() && !node.expired) {
    added.push_back(first_label(node.name));
  }
  if (node.expired || node.key.is_zero()) return;
  // A device that is in the map twice is the one that was told last: a key has one session.
  if (auto holder = by_key_.find(node.key); holder != by_key_.end() && holder->second != node.id) remove_peer(holder->second, nullptr);

  auto [entry, is_new] = peers_.try_emplace(node.id);
  Peer& peer = entry->second;
  if (is_new) peer.joined = clock_.now;
  peer.id = node.id;
  peer.key = node.key;
  peer.name = first_label(node.name);
  peer.jailed = node.is_jailed;
  peer.home_region = node.home_region();
  peer.addresses.clear();
  for (const Prefix& p : node.addresses) peer.addresses.push_back(p.address);
  by_key_[node.key] = node.id;

  // A default route is an exit node's offer, which this node never takes: with it, one peer would own every address.
  std::vector<Prefix> routes = node.routes();
  std::erase_if(routes, [](const Prefix& p) { return p.bits == 0; });
  wg::PeerId id = tunnel_->add_peer(clock_, node.key, routes);
  if (id == wg::kNoPeer) {  // our own key, or more peers than the tunnel holds
    by_key_.erase(node.key);
    peers_.erase(node.id);
    return;
  }
  peer.tunnel = id;
  if (by_tunnel_.size() <= id) by_tunnel_.resize(id + 1);
  by_tunnel_[id] = &peer;

  paths::PeerConfig config;
  config.key = node.key;
  config.disco = node.disco_key;
  config.endpoints = node.endpoints;
  config.home_region = peer.home_region;
  paths_->upsert_peer(clock_.now, config);
  peer.path = paths_->find(node.key);
}

void Engine::remove_peer(ts2021::NodeId id, std::vector<std::string>* removed) {
  auto it = peers_.find(id);
  if (it == peers_.end()) return;
  Peer& peer = it->second;
  if (removed) removed->push_back(peer.name);
  set_blocked(peer, false);
  by_tunnel_[peer.tunnel] = nullptr;
  hurry_.erase(peer.tunnel);
  probes_.erase(peer.key);
  tunnel_->remove_peer(clock_, peer.tunnel);
  paths_->remove_peer(clock_.now, peer.key);
  // Its connections end now and say so, instead of timing out: nothing of this peer may be delivered any more.
  for (const IpAddress& a : peer.addresses) stack_->peer_removed(clock_.now, a);
  by_key_.erase(peer.key);
  peers_.erase(it);
}

void Engine::stop_data_plane() {
  ++map_version_;
  restored_ = false;
  while (!peers_.empty()) remove_peer(peers_.begin()->first, nullptr);
  tunnel_->set_private_key(clock_, {});
  derp_->set_key(clock_.now, {});
  installed_key_ = {};
  stack_->set_addresses({});
  filter_.set_rules({});
  rules_due_.reset();
  running_told_ = false;
  map_at_.reset();
}

void Engine::rebuild_names() {
  const control::Netmap& map = control_->netmap();
  std::vector<proxy::NamedHost> hosts;
  auto add = [&](const ts2021::Node& node) {
    proxy::NamedHost h;
    h.fqdn = node.name;
    for (const Prefix& p : node.addresses) h.addresses.push_back(p.address);
    hosts.push_back(std::move(h));
  };
  if (map.self()) add(*map.self());
  for (const auto& [id, node] : map.peers()) add(node);
  names_ = proxy::NameTable(hosts, map.magic_dns_suffix());
}

void Engine::update_relay_map() {
  ts2021::RelayMap map = control_->netmap().relay_map();
  // A relay without TLS lets anyone on the way replay our login there: only under a coordinator that has none either.
  if (!plain_control_)
    for (auto& [id, region] : map.regions)
      for (ts2021::RelayNode& n : region.nodes) n.plain_http = false;
  derp_->set_map(clock_.now, map);
  latencies_->set_map(map);
  paths::RelayMap out;
  for (const auto& [id, region] : map.regions) {
    paths::RelayRegion r;
    r.id = id;
    r.code = region.region_code;
    r.avoid = region.avoid;
    r.no_measure_no_home = region.no_measure_no_home;
    if (auto s = map.region_score.find(id); s != map.region_score.end()) r.score = s->second;
    for (const ts2021::RelayNode& n : region.nodes)
      r.nodes.push_back({n.name, n.host_name, n.ipv4, n.ipv6, n.stun_port, n.stun_only, n.stun_test_ip});
    out.regions.push_back(std::move(r));
  }
  paths_->set_relay_map(clock_.now, out);
}

// ---- paths and relays ----

void Engine::drain_paths() {
  while (auto event = paths_->poll_event()) {
    if (auto* e = std::get_if<paths::EndpointsChanged>(&*event)) {
      std::vector<control::AnnouncedEndpoint> list;
      for (const paths::TypedEndpoint& t : e->endpoints)
        list.push_back({t.endpoint, static_cast<ts2021::EndpointType>(static_cast<int>(t.type))});
      control_->set_endpoints(clock_, std::move(list));
    } else if (auto* home = std::get_if<paths::HomeRegionChanged>(&*event)) {
      relay_connected_ = false;
      derp_->set_home(clock_.now, home->region);
      relay_connected_ = home->region != 0 && derp_->is_open(home->region);
      check_running();
    } else if (std::holds_alternative<paths::NetInfoChanged>(*event)) {
      paths::NetInfo in = paths_->net_info();
      ts2021::NetInfo out;
      out.mapping_varies_by_dest_ip = in.mapping_varies_by_dest_ip;
      out.working_ipv6 = in.working_ipv6;
      out.os_has_ipv6 = in.os_has_ipv6;
      out.working_udp = in.working_udp;
      out.preferred_derp = in.preferred_region;
      out.derp_latency = in.relay_latency;
      control_->set_net_info(clock_, std::move(out));
    } else if (auto* path = std::get_if<paths::PeerPathChanged>(&*event)) {
      auto it = by_key_.find(path->key);
      if (it == by_key_.end()) continue;
      Peer& peer = peers_.at(it->second);
      bool direct = path->direct.has_value();
      if (direct || path->relay_region) {
        if (peer.direct != direct) {
          peer.direct = direct;
          path_changed(peer, direct ? netstack::PathChange::kDirect : netstack::PathChange::kRelayed);
          // Confirmed by a pong: what an outage held up goes out now, not when a timer that backed off says so.
          if (direct) path_changed(peer, netstack::PathChange::kReachable);
        }
        // What was sent while there was no way, or an opening one, is lost: do not wait for the timer.
        if (tunnel_->state(peer.tunnel) == wg::SessionState::kHandshaking) tunnel_->retry_handshake(clock_, peer.tunnel);
      }
      emit(PathEvent{peer_name(path->key), path->key, path->direct, path->relay_region, path->latency});
    } else if (auto* restarted = std::get_if<paths::PeerRestarted>(&*event)) {
      auto it = by_key_.find(restarted->key);
      if (it == by_key_.end()) continue;
      Peer& peer = peers_.at(it->second);
      bool in_use = tunnel_->state(peer.tunnel) != wg::SessionState::kNone;
      tunnel_->reset_session(clock_, peer.tunnel);
      if (in_use) tunnel_->start_handshake(clock_, peer.tunnel);
    } else if (auto* ping = std::get_if<paths::PingResult>(&*event)) {
      emit(PingEvent{*ping});
    } else if (auto* measure = std::get_if<paths::MeasureRelays>(&*event)) {
      latencies_->start(clock_.now, measure->regions);
      drain_latencies();   // of relays that cannot even be dialled
    } else if (auto* resolve = std::get_if<paths::ResolveRequest>(&*event)) {
      emit(ResolveEvent{resolve->host});
    } else if (auto* done = std::get_if<paths::NetcheckDone>(&*event)) {
      emit(NetcheckEvent{done->report});
    } else if (auto* rebind = std::get_if<paths::RebindWanted>(&*event)) {
      emit(RebindEvent{rebind->reason});
    }
  }
}

void Engine::drain_derp() {
  while (auto event = derp_->poll_event()) {
    if (auto* up = std::get_if<derp::Connected>(&*event)) {
      paths_->note_relay_connected(clock_.now, up->region, true);
      if (up->region == paths_->home_region()) relay_connected_ = true;
      for (auto& [id, peer] : peers_) {
        if (!peer.direct.value_or(false)) path_changed(peer, netstack::PathChange::kReachable);
      }
      check_running();
    } else if (auto* down = std::get_if<derp::Disconnected>(&*event)) {
      paths_->note_relay_connected(clock_.now, down->region, false);
      if (down->region == paths_->home_region()) relay_connected_ = false;
      if (!down->final) emit(NoticeEvent{down->error});
    } else if (auto* gone = std::get_if<derp::PeerGone>(&*event)) {
      paths_->note_peer_gone(clock_.now, gone->region, gone->peer);
    }
  }
}

void Engine::drain_latencies() {
  while (auto result = latencies_->poll_result())
    paths_->relay_measured(clock_.now, result->region, result->took, result->remote.is_v6());
}

}  // namespace porthole::node
