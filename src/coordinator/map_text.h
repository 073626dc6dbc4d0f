// Map messages as JSON text. Peers of one account see the same bytes of a node, so each node is encoded once per change
// and messages are put together from those pieces.
#pragma once

#include <string>
#include <vector>

#include "coordinator/directory.h"
#include "ts2021/messages.h"

namespace porthole::coordinator {

class MapText {
 public:
  explicit MapText(Directory& directory) : directory_(directory) {}

  // The first message of a stream: the viewer, its peers by id, relay map, DNS, packet filter, profile.
  std::string full(Clock clock, Member& viewer, const ts2021::RelayMap& relays);

  // What has changed in one account since its last message.
  struct Delta {
    std::vector<Member*> changed;               // whole nodes
    std::vector<ts2021::PeerChange> patches;
    std::vector<NodeId> removed;
    bool empty() const { return changed.empty() && patches.empty() && removed.empty(); }
  };
  // `viewer`: also tell it about itself (may be null).
  std::string delta(Clock clock, const Delta& delta, Member* viewer);
  // The last message of a stream whose node was removed: it asks for a login then (control protocol, 9.3).
  std::string removed(Clock clock, const NodeRecord& record);
  // The same for a node key that no node has, as the first message of a stream.
  static std::string unknown(Clock clock, const NodePublic& key, const MachinePublic& machine,
                             const ts2021::RelayMap& relays);
  static std::string relay_map(Clock clock, const ts2021::RelayMap& relays);
  static std::string keep_alive();

  // The node as peers see it, from the cache.
  const std::string& peer(Clock clock, Member& member);

 private:
  ts2021::Node node(Clock clock, const Member& member) const;
  // As it sees itself.
  ts2021::Node self(Clock clock, const Member& member) const;

  Directory& directory_;
};

// The endpoints and flags of `member` that `changes` names, as a patch.
ts2021::PeerChange patch_of(const Member& member, NodeChanges changes);

}  // namespace porthole::coordinator
