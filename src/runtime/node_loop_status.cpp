// What the node knows, as JSON: the answers to status, netcheck, whois and ping. No secret is in any of them.
#include <boost/json.hpp>

#include "runtime/json_text.h"
#include "runtime/node_loop.h"

namespace porthole::runtime {
namespace {
namespace json = boost::json;

constexpr Duration kPingTimeout = 5s;   // a disco ping's own (paths); the other kinds follow it

std::int64_t to_s(Duration d) { return d.count() / 1'000'000'000; }

// "nas.tail.example" and "nas" from a name as the map has it.
std::string without_dot(std::string_view fqdn) {
  if (fqdn.ends_with('.')) fqdn.remove_suffix(1);
  return std::string(fqdn);
}

}  // namespace

// What a person calls a relay: its code, else its name, else its number.
std::string NodeRuntime::Loop::relay_name(int region) const {
  const auto& regions = engine_->netmap().relay_map().regions;
  auto it = regions.find(region);
  if (it != regions.end() && !it->second.region_code.empty()) return it->second.region_code;
  if (it != regions.end() && !it->second.region_name.empty()) return it->second.region_name;
  return std::to_string(region);
}

std::string NodeRuntime::Loop::status_json() {
  json::object o{{"state", node::to_string(engine_->state())}};
  if (auto e = engine_->state_error()) o["reason"] = e->message;
  o["control_url"] = persistent_.control_url;
  if (!last_notice_.empty()) o["last_notice"] = last_notice_;
  const auto& map = engine_->netmap();
  if (!map.health().empty()) o["health"] = texts(map.health());
  json::object self{{"ips", texts(engine_->own_addresses())}, {"key", engine_->node_key().public_key().to_string()}};
  if (map.self()) {
    std::string fqdn = without_dot(map.self()->name);
    self["fqdn"] = fqdn;
    self["name"] = node::first_label(fqdn);
    self["stable_id"] = map.self()->stable_id;
    if (auto u = map.users().find(map.self()->user); u != map.users().end()) self["user"] = u->second.login_name;
    if (!map.self()->tags.empty()) self["tags"] = texts(map.self()->tags);
  } else {
    self["name"] = persistent_.hostname;
  }
  self["home_relay"] = engine_->home_region();
  if (engine_->home_region() != 0) self["home_relay_name"] = relay_name(engine_->home_region());
  self["relay_connected"] = engine_->relay_connected();
  self["udp_port"] = udp4_ ? udp4_->port() : 0;
  json::array endpoints;
  for (const auto& e : engine_->endpoints()) endpoints.emplace_back(e.endpoint.to_string());
  self["endpoints"] = std::move(endpoints);
  o["self"] = std::move(self);
  json::array peers;
  for (const auto& p : engine_->peers(clock_.now)) {
    json::object e{{"name", p.name}, {"fqdn", p.fqdn}, {"ips", texts(p.addresses)}, {"user", p.user}, {"stable_id", p.stable_id},
                   {"key", p.key.to_string()}, {"expired", p.expired}, {"rx_bytes", p.tunnel.rx_bytes}, {"tx_bytes", p.tunnel.tx_bytes}};
    if (!p.tags.empty()) e["tags"] = texts(p.tags);
    if (!p.os.empty()) e["os"] = p.os;
    e["online"] = p.online ? json::value(*p.online) : json::value(nullptr);
    if (p.last_seen) e["last_seen_s"] = std::max<std::int64_t>(0, to_s(clock_.wall - *p.last_seen));
    if (p.tunnel.last_handshake) e["last_handshake_s"] = to_s(clock_.now - *p.tunnel.last_handshake);
    if (p.path) {
      e["active"] = p.path->active;
      if (p.path->direct && p.path->trusted) {
        e["path"] = "direct";
        e["endpoint"] = p.path->direct->to_string();
        e["latency_ms"] = to_ms(p.path->latency);
      } else if (p.path->relay_region) {
        e["path"] = "relay";
        e["relay"] = *p.path->relay_region;
        e["relay_name"] = relay_name(*p.path->relay_region);
      } else {
        e["path"] = "none";
      }
      if (std::string why = paths::to_text(p.path->not_direct); !why.empty()) e["why_not_direct"] = why;
    }
    peers.push_back(std::move(e));
  }
  o["peers"] = std::move(peers);
  json::object io;
  for (const auto* s : {udp4_.get(), udp6_.get()}) {
    if (!s) continue;
    const UdpCounters& c = s->counters();
    io[s == udp4_.get() ? "udp4" : "udp6"] = json::object{{"datagrams_in", c.datagrams_in}, {"datagrams_out", c.datagrams_out},
                                                          {"reads", c.reads}, {"writes", c.writes}, {"dropped_out", c.dropped_out},
                                                          {"send_errors", c.send_errors}, {"segment_offload", s->uses_segment_offload()}};
  }
  const auto memory = engine_->stack().memory();
  io["connections"] = memory.connections;
  io["buffer_bytes"] = memory.buffers;
  io["pooled_bytes"] = memory.pooled;
  const DatagramCounters& d = datagram_counters_;
  io["datagrams"] = json::object{{"to_app", d.to_app}, {"from_app", d.from_app}, {"too_long", d.too_long}, {"empty", d.empty},
                                 {"other_source", d.other_source}, {"bad_head", d.bad_head}, {"way_full", d.way_full},
                                 {"local_failed", d.local_failed},
                                 {"unread", engine_->stack().counters().drop(netstack::Drop::kUdpQueueFull)}};
  const proxy::AssociationCounters& a = association_counters_;
  io["proxied_datagrams"] = json::object{{"to_client", a.to_client}, {"from_client", a.from_client}, {"other_client", a.other_client},
                                         {"bad_head", a.bad_head}, {"fragment", a.fragment}, {"unknown_target", a.unknown_target},
                                         {"no_flow", a.no_flow}, {"too_long", a.too_long}, {"way_full", a.way_full},
                                         {"other_source", a.other_source}};
  o["counters"] = std::move(io);
  return json::serialize(o);
}

// Who has this tailnet address. A loopback address with port is a connection that this node forwards to a local service
// (--expose): then who is behind it.
Result<std::string> NodeRuntime::Loop::whois(const std::string& text) const {
  auto address = IpAddress::parse(text);
  std::optional<std::uint16_t> port;
  if (!address) {
    auto endpoint = Endpoint::parse(text);
    if (!endpoint) return Error{ErrorCode::kInvalid, "'" + text + "' is not an IP address or IP:PORT"};
    address = endpoint->address;
    port = endpoint->port;
  }
  if (address->is_loopback()) {
    auto it = port ? exposed_peers_.find(*port) : exposed_peers_.end();
    if (it == exposed_peers_.end())
      return Error{ErrorCode::kNotFound, "no tailnet connection comes from " + text};
    address = it->second.first;
  }
  const auto& map = engine_->netmap();
  if (!map.has_map())
    return Error{ErrorCode::kUnavailable, "the node knows nobody yet: it has had no network map (" + std::string(node::to_string(engine_->state())) + ")"};
  auto has = [&](const ts2021::Node& n) {
    return std::any_of(n.addresses.begin(), n.addresses.end(), [&](const Prefix& p) { return p.address == *address; });
  };
  const ts2021::Node* found = has(*map.self()) ? &*map.self() : nullptr;
  for (const auto& [id, n] : map.peers())
    if (!found && has(n)) found = &n;
  if (!found) return Error{ErrorCode::kNotFound, "peer not found: no machine of this tailnet has the address " + address->to_string()};
  json::object machine{{"name", without_dot(found->name)}, {"id", found->stable_id}, {"key", found->key.to_string()}};
  json::array ips, routes;
  for (const Prefix& p : found->addresses) ips.emplace_back(p.address.to_string());
  for (const Prefix& p : found->routes()) routes.emplace_back(p.to_string());
  machine["ips"] = std::move(ips);
  machine["allowed_ips"] = std::move(routes);
  if (found->hostinfo && !found->hostinfo->os.empty()) machine["os"] = found->hostinfo->os;
  machine["online"] = found == &*map.self() ? json::value(true) : found->online ? json::value(*found->online) : json::value(nullptr);
  if (!found->tags.empty()) machine["tags"] = texts(found->tags);
  json::object o{{"ip", address->to_string()}, {"machine", std::move(machine)}};
  json::object user{{"id", found->user}};
  if (auto u = map.users().find(found->user); u != map.users().end()) {
    user["login"] = u->second.login_name;
    user["name"] = u->second.display_name;
  }
  o["user"] = std::move(user);
  return json::serialize(o);
}

// ---- netcheck ----

void NodeRuntime::Loop::netcheck(std::shared_ptr<Pending<std::string>> p) {
  if (!has_room(netchecks_, p)) return;
  netchecks_.push_back(std::move(p));
  engine_->netcheck(clock_);
}

void NodeRuntime::Loop::answer_netchecks(const paths::NetcheckReport& r) {
  if (netchecks_.empty()) return;
  const auto& map = engine_->netmap().relay_map().regions;
  json::object o{{"udp", r.udp}, {"ipv4", r.ipv4}, {"ipv6", r.ipv6}, {"home_relay", r.home_region}};
  if (r.home_region != 0) o["home_relay_name"] = relay_name(r.home_region);
  o["mapping_varies"] = r.mapping_varies ? json::value(*r.mapping_varies) : json::value(nullptr);
  if (r.global_v4) o["public_v4"] = r.global_v4->to_string();
  if (r.global_v6) o["public_v6"] = r.global_v6->to_string();
  json::array regions;
  for (const auto& region : r.regions) {
    json::object e{{"region", region.region}, {"code", relay_name(region.region)}, {"latency_ms", to_ms(region.best())}};
    if (auto named = map.find(region.region); named != map.end()) e["name"] = named->second.region_name;
    regions.push_back(std::move(e));
  }
  o["relays"] = std::move(regions);
  o["relays_known"] = map.size();
  json::array endpoints;
  for (const auto& e : engine_->endpoints()) endpoints.emplace_back(e.endpoint.to_string());
  o["endpoints"] = std::move(endpoints);
  o["relay_connected"] = engine_->relay_connected();
  for (auto& p : netchecks_) p->set(json::serialize(o));
  netchecks_.clear();
}

// ---- pings ----

void NodeRuntime::Loop::ping(const std::string& name, PingKind kind, std::shared_ptr<Pending<std::string>> p) {
  if (engine_->state() != node::NodeState::kRunning)
    return when_running(kPingTimeout, [this, name, kind, p](Status s) {
      if (!s) return p->set(s.error());
      ping(name, kind, p);
    });
  if (pings_.size() >= kWaitersMax) return p->set(too_many_wait());  // each ends with its time
  auto addresses = engine_->resolve_name(name);
  if (!addresses) return p->set(addresses.error());
  auto own = engine_->own_addresses();
  if (std::find(own.begin(), own.end(), addresses->front()) != own.end())
    return p->set(Error{ErrorCode::kInvalid, name + " is this node itself"});
  auto key = engine_->peer_of(addresses->front());
  if (!key) return p->set(Error{ErrorCode::kNotFound, name + " is not a peer of this node"});
  std::uint64_t token = next_ping_++;
  pings_[token] = {engine_->peer_name(*key), addresses->front(), *key, kind, std::move(p)};
  switch (kind) {
    case PingKind::kDisco: return engine_->ping(clock_, token, *key);
    case PingKind::kTsmp: return engine_->tsmp_ping(clock_, token, *key, addresses->front());
    case PingKind::kIcmp: {
      auto socket = engine_->stack().ping(clock_.now, addresses->front(), 56, kPingTimeout);
      if (socket) icmp_pings_[*socket] = token;
      else answer_ping(token, socket.error());
      return;
    }
  }
}

// `way`: what a disco ping found out about the path.
void NodeRuntime::Loop::answer_ping(std::uint64_t token, Result<Duration> latency, const paths::PingResult* way) {
  auto it = pings_.find(token);
  if (it == pings_.end()) return;
  AskedPing asked = std::move(it->second);
  pings_.erase(it);
  if (!latency) return asked.pending->set(latency.error());
  json::object o{{"peer", asked.name}, {"ip", asked.address.to_string()}, {"latency_ms", to_ms(*latency)}};
  if (way) {
    o["type"] = "disco";
    if (way->endpoint) {
      o["path"] = "direct";
      o["endpoint"] = way->endpoint->to_string();
    } else {
      o["path"] = "relay";
      if (way->relay_region) {
        o["relay"] = *way->relay_region;
        o["relay_name"] = relay_name(*way->relay_region);
      }
    }
  } else {
    o["type"] = asked.kind == PingKind::kTsmp ? "TSMP" : "ICMP";
    o["path"] = "tunnel";
  }
  asked.pending->set(json::serialize(o));
}

void NodeRuntime::Loop::handle_ping(const paths::PingResult& result) {
  auto it = pings_.find(result.token);
  if (it == pings_.end()) return;
  const AskedPing& asked = it->second;
  if (!result.answered) {
    std::string why = asked.name + " did not answer";
    auto peer = engine_->peer_status(clock_.now, asked.key);
    if (!peer) why = asked.name + " left the tailnet";
    else if (!result.sent) why = "no way to " + asked.name + " is known yet: no relay is connected, and it has announced no endpoint";
    else if (peer->online == false) why += " (the coordination server says it is offline)";
    return answer_ping(result.token, Error{ErrorCode::kTimeout, why});
  }
  answer_ping(result.token, result.latency, asked.kind == PingKind::kDisco ? &result : nullptr);
}

}  // namespace porthole::runtime
