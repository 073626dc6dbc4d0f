// A coordinator with the manners of others, for what ours never does: rules that name every peer (as Headscale compiles
// them), told late, or not at all. Lets in whoever comes, knows no accounts, and tells whole nodes where ours sends patches.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "sim/streams.h"
#include "ts2021/messages.h"

namespace porthole::sim {

class ForeignCoordinator {
 public:
  // When a member learns of the rule that lets another one in.
  enum class Rules {
    kWithThePeer,
    kWithTheWholeMap,  // not when that one joins: with the next stream only
    kNever,
  };

  ForeignCoordinator(Network& network, Streams& streams, Host& host, std::string name, ts2021::RelayMap relays);
  ~ForeignCoordinator();
  ForeignCoordinator(const ForeignCoordinator&) = delete;
  ForeignCoordinator& operator=(const ForeignCoordinator&) = delete;

  std::string url() const { return "https://" + name_; }
  Rules rules = Rules::kWithThePeer;
  // What it says of this node, and any news for it.
  const ts2021::Node& node(const NodePublic& key) const { return members_.at(key).node; }
  void tell(const NodePublic& key, const ts2021::MapResponse& news) { tell(members_.at(key), news); }
  // How often this node was given everything.
  int whole_maps(const NodePublic& key) const { return members_.at(key).whole_maps; }

 private:
  class Connection;
  struct Member {
    ts2021::Node node;
    Connection* connection = nullptr;  // of its map stream
    std::int32_t stream = 0;
    bool zstd = false;
    int whole_maps = 0;
  };

  void handle_register(Connection& c, std::int32_t stream, Bytes body);
  void handle_map(Connection& c, std::int32_t stream, Bytes body);
  void tell(Member& member, const ts2021::MapResponse& news);
  void add_rules(const Member& member, ts2021::MapResponse& out) const;

  World& world_;
  std::string name_;
  ts2021::RelayMap relays_;
  SeededRng rng_;
  crypto::MachinePrivate noise_key_;
  std::map<NodePublic, Member> members_;
  std::vector<std::unique_ptr<Connection>> connections_;  // also those that are over
};

}  // namespace porthole::sim
