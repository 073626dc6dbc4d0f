#include "control/netmap.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "control/limits.h"

namespace porthole::control {

using ts2021::MapResponse;
using ts2021::Node;
using ts2021::NodeId;
using ts2021::PeerChange;

namespace {

Duration magnitude(Duration d) { return d < Duration::zero() ? -d : d; }

// Sum that stops at the ends of the scale: the server's times may be anything.
WallTime shifted(WallTime t, Duration d) {
  std::int64_t sum = 0;
  if (__builtin_add_overflow(t.unix_ns(), d.count(), &sum)) {
    sum = d < Duration::zero() ? std::numeric_limits<std::int64_t>::min() : std::numeric_limits<std::int64_t>::max();
  }
  return WallTime::from_unix_ns(sum);
}

}  // namespace

const Node* Netmap::peer(NodeId id) const {
  auto it = peers_.find(id);
  return it == peers_.end() ? nullptr : &it->second;
}

const Node* Netmap::peer_by_key(const NodePublic& key) const {
  auto it = by_key_.find(key);
  return it == by_key_.end() ? nullptr : peer(it->second);
}

ts2021::FilterRules Netmap::filter_rules() const {
  ts2021::FilterRules all;
  for (const auto& [name, rules] : filter_chunks_) all.insert(all.end(), rules.begin(), rules.end());
  return all;
}

std::string Netmap::magic_dns_suffix() const {
  if (!self_) return {};
  std::string_view name = self_->name;
  if (name.ends_with('.')) name.remove_suffix(1);
  const std::size_t dot = name.find('.');
  return dot == std::string_view::npos ? std::string() : std::string(name.substr(dot + 1));
}

void Netmap::normalise(Node& node, WallTime now) const {
  node.allowed_ips = std::vector<Prefix>(node.routes());
  node.home_derp = node.home_region();
  if (node.key_expiry && *node.key_expiry <= shifted(now, clock_offset_)) node.expired = true;
}

void Netmap::erase_peer(NodeId id) {
  auto it = peers_.find(id);
  if (it == peers_.end()) return;
  auto key = by_key_.find(it->second.key);
  if (key != by_key_.end() && key->second == id) by_key_.erase(key);
  peers_.erase(it);
}

void Netmap::upsert(Node&& node, WallTime now, std::set<NodeId>& upserted) {
  if (node.id <= 0 || node.key.is_zero()) return;  // cannot be addressed or talked to
  normalise(node, now);
  const NodeId id = node.id;
  auto it = peers_.find(id);
  if (it != peers_.end() && it->second == node) return;
  erase_peer(id);
  by_key_[node.key] = id;
  peers_.insert_or_assign(id, std::move(node));
  upserted.insert(id);
}

void Netmap::patch(const PeerChange& change, WallTime now, std::set<NodeId>& upserted) {
  const Node* old = peer(change.node_id);
  if (old == nullptr) return;
  Node node = *old;
  if (change.derp_region != 0) node.home_derp = change.derp_region;
  if (change.cap != 0) node.cap = change.cap;
  if (change.cap_map) node.cap_map = *change.cap_map;
  if (change.endpoints) node.endpoints = *change.endpoints;
  if (change.key) node.key = *change.key;
  if (change.key_signature) node.key_signature = *change.key_signature;
  if (change.disco_key) node.disco_key = *change.disco_key;
  if (change.online) node.online = *change.online;
  if (change.last_seen) node.last_seen = *change.last_seen;
  if (change.key_expiry) node.key_expiry = *change.key_expiry;
  upsert(std::move(node), now, upserted);
}

void Netmap::apply_filters(MapResponse& message, NetmapChange& change) {
  if (message.packet_filter) {
    filter_chunks_["base"] = std::move(*message.packet_filter);
    change.filter = true;
  }
  if (message.packet_filters) {
    change.filter = true;
    // "*": null clears before anything else of this message is applied.
    auto all = message.packet_filters->find("*");
    if (all != message.packet_filters->end() && !all->second) {
      filter_chunks_.clear();
      message.packet_filters->erase(all);
    }
    for (auto& [name, rules] : *message.packet_filters) {
      if (rules) filter_chunks_[name] = std::move(*rules);
      else filter_chunks_.erase(name);
    }
  }
}

Result<NetmapChange> Netmap::apply(MapResponse&& message, WallTime now) {
  NetmapChange change;
  if (message.control_time && message.control_time->unix_s() >= ts2021::kControlTimeSane) {
    const Duration offset = *message.control_time - now;
    clock_offset_ = magnitude(offset) > kClockSkewMin ? offset : Duration::zero();
  }
  if (message.keep_alive) return change;

  std::map<NodeId, Node> previous;
  if (fresh_) {
    if (!message.node) {
      return Error{ErrorCode::kProtocol, "the control server's first map message does not say who we are"};
    }
    fresh_ = false;
    change.full = true;
    change.filter = change.relay_map = change.dns = change.users = change.domain = change.health = true;
    // What the new stream does not mention is gone. Peers are compared below, so that those which did not change
    // keep their sessions.
    previous = std::exchange(peers_, {});
    by_key_.clear();
    users_.clear();
    relay_map_ = {};
    dns_ = {};
    domain_.clear();
    filter_chunks_.clear();
    health_.clear();
    display_messages_.clear();
  }

  if (message.node) {
    normalise(*message.node, now);
    if (self_ != message.node) change.self = true;
    self_ = std::move(message.node);
  }

  std::set<NodeId> upserted;
  std::set<NodeId> removed;
  if (!message.peers.empty()) {
    // A complete list; every other peer field of this message is ignored.
    if (!change.full) previous = std::exchange(peers_, {});
    by_key_.clear();
    for (Node& node : message.peers) upsert(std::move(node), now, upserted);
  } else {
    for (NodeId id : message.peers_removed) {
      if (peers_.contains(id)) removed.insert(id);
      erase_peer(id);
    }
    for (Node& node : message.peers_changed) upsert(std::move(node), now, upserted);
    for (const auto& [id, seen] : message.peer_seen_change) {
      auto it = peers_.find(id);
      if (it == peers_.end()) continue;
      it->second.last_seen = seen ? std::optional(shifted(now, clock_offset_)) : std::nullopt;
      upserted.insert(id);
    }
    for (const auto& [id, online] : message.online_change) {
      auto it = peers_.find(id);
      if (it == peers_.end() || it->second.online == online) continue;
      it->second.online = online;
      upserted.insert(id);
    }
    for (const PeerChange& p : message.peers_changed_patch) patch(p, now, upserted);
  }
  // Against a map that was replaced as a whole: gone ones are removals, equal ones no change.
  for (auto& [id, node] : previous) {
    auto it = peers_.find(id);
    if (it == peers_.end()) removed.insert(id);
    else if (it->second == node) upserted.erase(id);
  }
  for (NodeId id : upserted) removed.erase(id);  // removed and added again in one message
  change.peers_upserted.assign(upserted.begin(), upserted.end());
  change.peers_removed.assign(removed.begin(), removed.end());

  if (message.derp_map) {
    message.derp_map->apply(relay_map_);
    change.relay_map = true;
  }
  if (message.dns_config) {
    dns_ = std::move(*message.dns_config);
    change.dns = true;
  }
  if (!message.domain.empty() && message.domain != domain_) {
    domain_ = std::move(message.domain);
    change.domain = true;
  }
  apply_filters(message, change);
  for (ts2021::UserProfile& profile : message.user_profiles) {
    const ts2021::UserId id = profile.id;
    users_.insert_or_assign(id, std::move(profile));
    change.users = true;
  }
  if (message.health) {
    health_ = std::move(*message.health);
    change.health = true;
  }
  if (!message.display_messages.empty()) {
    change.health = true;
    auto all = message.display_messages.find("*");
    if (all != message.display_messages.end() && !all->second) display_messages_.clear();
    for (auto& [id, text] : message.display_messages) {
      if (text) display_messages_[id] = std::move(*text);
      else display_messages_.erase(id);
    }
  }
  return change;
}

ts2021::MapResponse Netmap::snapshot() const {
  ts2021::MapResponse m;
  m.node = self_;
  for (const auto& [id, node] : peers_) m.peers.push_back(node);
  m.derp_map = ts2021::RelayMapUpdate::full(relay_map_);
  m.dns_config = dns_;
  m.domain = domain_;
  m.packet_filters.emplace();
  for (const auto& [name, rules] : filter_chunks_) m.packet_filters->emplace(name, rules);
  for (const auto& [id, profile] : users_) m.user_profiles.push_back(profile);
  return m;
}

NetmapChange Netmap::expire(WallTime now) {
  NetmapChange change;
  auto due = [&](const Node& node) {
    return !node.expired && node.key_expiry && *node.key_expiry <= shifted(now, clock_offset_);
  };
  if (self_ && due(*self_)) {
    self_->expired = true;
    change.self = true;
  }
  for (auto& [id, node] : peers_) {
    if (!due(node)) continue;
    node.expired = true;
    change.peers_upserted.push_back(id);
  }
  return change;
}

std::optional<WallTime> Netmap::next_expiry(WallTime now) const {
  std::optional<WallTime> next;
  auto consider = [&](const Node& node) {
    if (node.expired || !node.key_expiry) return;
    const WallTime ours = std::max(now, shifted(*node.key_expiry, -clock_offset_));
    if (!next || ours < *next) next = ours;
  };
  if (self_) consider(*self_);
  for (const auto& [id, node] : peers_) consider(node);
  return next;
}

}  // namespace porthole::control
