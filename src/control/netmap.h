// The client's picture of its tailnet, built from map messages (Tailscale control protocol, sections 6.4 to 6.9).
//
// One Netmap lives as long as its stream: the first message is complete, later ones are deltas with their own rules
// (what absent means differs by field). apply() has all of them and says what changed, so that nothing above has to
// compare two maps.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/time.h"
#include "ts2021/messages.h"

namespace porthole::control {

// What one message changed. Ids are ascending and without doubles; an id is in one of the two lists at most.
struct NetmapChange {
  bool full = false;  // first message of a stream; upserted then lists what differs from the map before, too
  bool self = false;
  bool filter = false;     // rebuild the packet filter
  bool relay_map = false;
  bool dns = false;
  bool users = false;
  bool domain = false;
  bool health = false;
  std::vector<ts2021::NodeId> peers_upserted;
  std::vector<ts2021::NodeId> peers_removed;

  bool any() const {
    return full || self || filter || relay_map || dns || users || domain || health || !peers_upserted.empty() ||
           !peers_removed.empty();
  }
};

class Netmap {
 public:
  // Nodes as this map holds them are normalised: allowed_ips always present (routes()), home_derp resolved from the
  // legacy text, `expired` also true once key_expiry has passed by the server's clock.
  const std::optional<ts2021::Node>& self() const { return self_; }
  const std::map<ts2021::NodeId, ts2021::Node>& peers() const { return peers_; }
  const ts2021::Node* peer(ts2021::NodeId id) const;
  // nullptr for an unknown key; the self node is not a peer.
  const ts2021::Node* peer_by_key(const NodePublic& key) const;
  const std::map<ts2021::UserId, ts2021::UserProfile>& users() const { return users_; }
  const ts2021::RelayMap& relay_map() const { return relay_map_; }
  const ts2021::DnsConfig& dns() const { return dns_; }
  const std::string& domain() const { return domain_; }
  // Chunks of rules by name; the filter in force is their union. No chunk at all: deny everything.
  const std::map<std::string, ts2021::FilterRules>& filter_chunks() const { return filter_chunks_; }
  ts2021::FilterRules filter_rules() const;
  const std::vector<std::string>& health() const { return health_; }
  const std::map<std::string, ts2021::DisplayMessage>& display_messages() const { return display_messages_; }
  // What follows the first label of the self name, without the trailing dot: "tail.example".
  std::string magic_dns_suffix() const;
  // Server clock minus ours, when they differ by more than a minute; else zero.
  Duration clock_offset() const { return clock_offset_; }
  bool has_map() const { return self_.has_value(); }
  // The whole map as the first message of a stream would tell it: apply() of it to an empty Netmap gives the same map.
  ts2021::MapResponse snapshot() const;

  // A new stream begins: the next map message is complete and replaces everything. What is held stays readable
  // until then.
  void begin_stream() { fresh_ = true; }
  // Error (kProtocol): the first map message has no Node; the map is unchanged and the stream must be dropped.
  // A keep-alive changes the clock offset at most.
  Result<NetmapChange> apply(ts2021::MapResponse&& message, WallTime now);

  // Marks peers (and self) whose key has expired since the last call.
  NetmapChange expire(WallTime now);
  // When expire() has something to do next, on our own wall clock.
  std::optional<WallTime> next_expiry(WallTime now) const;
  void clear() { *this = Netmap(); }

 private:
  void normalise(ts2021::Node& node, WallTime now) const;
  void upsert(ts2021::Node&& node, WallTime now, std::set<ts2021::NodeId>& upserted);
  void erase_peer(ts2021::NodeId id);
  void patch(const ts2021::PeerChange& change, WallTime now, std::set<ts2021::NodeId>& upserted);
  void apply_filters(ts2021::MapResponse& message, NetmapChange& change);

  std::optional<ts2021::Node> self_;
  std::map<ts2021::NodeId, ts2021::Node> peers_;
  std::map<NodePublic, ts2021::NodeId> by_key_;
  std::map<ts2021::UserId, ts2021::UserProfile> users_;
  ts2021::RelayMap relay_map_;
  ts2021::DnsConfig dns_;
  std::string domain_;
  std::map<std::string, ts2021::FilterRules> filter_chunks_;
  std::vector<std::string> health_;
  std::map<std::string, ts2021::DisplayMessage> display_messages_;
  Duration clock_offset_{};
  bool fresh_ = true;
};

}  // namespace porthole::control
