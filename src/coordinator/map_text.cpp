#include "coordinator/map_text.h"

#include "base/assert.h"
#include "ts2021/json.h"

namespace porthole::coordinator {
namespace {

// {"a":1} and members `"b":2` become {"a":1,"b":2}.
void append_members(std::string& object, std::string_view members) {
  PORTHOLE_ASSERT(object.size() >= 2 && object.back() == '}');
  object.pop_back();
  if (object.size() > 1) object.push_back(',');
  object.append(members);
  object.push_back('}');
}

// Devices of one account are one person's: they may send each other files (Taildrop).
constexpr const char* kFileSharing = "https://tailscale.com/cap/file-sharing";

// Clients compare the expiry of their own key with their own clock: one that is wrong by years would still see it passed.
constexpr WallTime kLongPast = WallTime::from_unix_s(1);

ts2021::MapResponse key_is_void(Clock clock, ts2021::Node node) {
  node.key_expiry = kLongPast;
  node.expired = true;
  node.machine_authorized = false;
  ts2021::MapResponse m;
  m.control_time = clock.wall;
  m.node = std::move(node);
  return m;
}

// Everybody in the account may reach everybody on every port. Sources are the tailnet's own ranges: which of their
// addresses can occur at all is decided by the peers in the map, and those are the account's.
ts2021::FilterRules account_filter() {
  ts2021::FilterRule rule;
  rule.src_ips = {"100.64.0.0/10", "fd7a:115c:a1e0::/48"};
  rule.dst_ports.push_back({"*", ts2021::PortRange::any()});
  return {rule};
}

}  // namespace

ts2021::PeerChange patch_of(const Member& member, NodeChanges changes) {
  const NodeRecord& r = member.record;
  ts2021::PeerChange p;
  p.node_id = r.id;
  if (changes & kEndpointsChanged) p.endpoints = r.endpoints;
  if (changes & kHomeRelayChanged) p.derp_region = r.home_relay;
  if (changes & kDiscoKeyChanged) p.disco_key = r.disco_key;
  if (changes & kOnlineChanged) {
    p.online = member.online;
    if (!member.online) p.last_seen = r.last_seen;
  }
  return p;
}

ts2021::Node MapText::node(Clock clock, const Member& member) const {
  const NodeRecord& r = member.record;
  ts2021::Node n;
  n.id = r.id;
  n.stable_id = std::to_string(r.id);
  n.name = directory_.fqdn(member);
  n.user = r.account;
  n.key = r.node_key;
  n.key_expiry = r.key_expiry;
  n.machine = r.machine;
  n.disco_key = r.disco_key;
  n.addresses = {Prefix::host(r.ipv4), Prefix::host(r.ipv6)};
  n.allowed_ips = n.addresses;
  n.endpoints = r.endpoints;
  n.home_derp = r.home_relay;
  if (r.home_relay > 0) n.legacy_derp = std::string(ts2021::kLegacyDerpAddress) + std::to_string(r.home_relay);
  n.hostinfo = r.hostinfo;
  n.created = r.created;
  n.cap = r.cap;
  n.online = member.online;
  if (!member.online) n.last_seen = r.last_seen;
  n.expired = member.expired(clock.wall);
  n.machine_authorized = !n.expired;
  return n;
}

ts2021::Node MapText::self(Clock clock, const Member& member) const {
  ts2021::Node n = node(clock, member);
  n.cap_map[kFileSharing];
  return n;
}

const std::string& MapText::peer(Clock clock, Member& member) {
  if (member.peer_json.empty()) member.peer_json = ts2021::encode_node(node(clock, member));
  return member.peer_json;
}

std::string MapText::full(Clock clock, Member& viewer, const ts2021::RelayMap& relays) {
  AccountState& account = directory_.account_of(viewer);
  ts2021::MapResponse head;
  head.control_time = clock.wall;
  head.node = self(clock, viewer);
  head.derp_map = ts2021::RelayMapUpdate::full(relays);
  std::string suffix = directory_.suffix(account.record);
  head.domain = suffix;
  head.dns_config.emplace();
  head.dns_config->proxied = true;
  head.dns_config->domains = {suffix};
  head.collect_services = false;
  head.packet_filters.emplace();
  (*head.packet_filters)["base"] = account_filter();
  ts2021::UserProfile user;
  user.id = account.record.id;
  user.login_name = account.record.name + "@" + directory_.config().base_domain;
  user.display_name = account.record.name;
  head.user_profiles.push_back(std::move(user));
  head.debug.emplace();
  head.debug->disable_log_tail = true;
  std::string out = ts2021::encode_map_response(head);

  std::string peers = "\"Peers\":[";
  for (auto& [id, member] : account.members) {
    if (member == &viewer || member->held_back) continue;
    if (peers.back() != '[') peers.push_back(',');
    peers.append(peer(clock, *member));
  }
  if (peers.back() == '[') return out;
  peers.push_back(']');
  append_members(out, peers);
  return out;
}

std::string MapText::delta(Clock clock, const Delta& delta, Member* viewer) {
  ts2021::MapResponse head;
  head.control_time = clock.wall;
  head.peers_removed = delta.removed;
  head.peers_changed_patch = delta.patches;
  if (viewer) head.node = self(clock, *viewer);
  std::string out = ts2021::encode_map_response(head);
  if (!delta.changed.empty()) {
    std::string changed = "\"PeersChanged\":[";
    for (Member* member : delta.changed) {
      if (changed.back() != '[') changed.push_back(',');
      changed.append(peer(clock, *member));
    }
    changed.push_back(']');
    append_members(out, changed);
  }
  return out;
}

std::string MapText::removed(Clock clock, const NodeRecord& record) {
  Member last;
  last.record = record;
  return ts2021::encode_map_response(key_is_void(clock, self(clock, last)));
}

std::string MapText::unknown(Clock clock, const NodePublic& key, const MachinePublic& machine,
                             const ts2021::RelayMap& relays) {
  ts2021::Node node;
  node.id = 1;  // clients want one, and a stable id; nothing else is in this map that it could be mistaken for
  node.stable_id = "1";
  node.key = key;
  node.machine = machine;
  ts2021::MapResponse m = key_is_void(clock, std::move(node));
  // A Go client whose relay map was taken away does not connect to its relay after the new login, as it lives there already.
  m.derp_map = ts2021::RelayMapUpdate::full(relays);
  return ts2021::encode_map_response(m);
}

std::string MapText::relay_map(Clock clock, const ts2021::RelayMap& relays) {
  ts2021::MapResponse m;
  m.control_time = clock.wall;
  m.derp_map = ts2021::RelayMapUpdate::full(relays);
  return ts2021::encode_map_response(m);
}

std::string MapText::keep_alive() {
  ts2021::MapResponse m;
  m.keep_alive = true;
  return ts2021::encode_map_response(m);
}

}  // namespace porthole::coordinator
