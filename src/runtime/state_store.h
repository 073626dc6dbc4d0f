// What a node remembers between runs: keys, where it is registered, and little else. One JSON file, mode 0600,
// replaced atomically. A file that is corrupt, foreign or of a newer version is an error and is never overwritten.
#pragma once

#include <optional>
#include <vector>
#include <string>

#include "base/ip.h"
#include "base/result.h"
#include "crypto/secret.h"
#include "runtime/files.h"
#include "wg/tai64n.h"

namespace porthole::runtime {

struct NodeState {
  crypto::MachinePrivate machine_key;   // generated at first start
  crypto::NodePrivate node_key;         // zero: not registered yet
  std::string control_url;
  MachinePublic control_key;            // the coordinator's Noise key as last seen; zero: none
  std::string hostname;
  bool registered = false;              // a login has succeeded with node_key
  bool ephemeral = false;
  std::uint16_t udp_port = 0;           // last bound port: kept across restarts, so peers' paths stay good
  crypto::DiscoPrivate disco_key;       // of the last run, with udp_port; zero: none
  wg::Tai64n last_tai64n;               // of handshakes, WireGuard: nothing newer was ever sent
  std::string login_name;               // display
  std::vector<IpAddress> addresses;     // last known own addresses; display
};

class StateStore {
 public:
  // The file `node.json` in the directory.
  explicit StateStore(const StateDir& dir) : path_(dir.file("node.json")) {}
  // Absent file: nullopt. Errors name the file and say what to do.
  Result<std::optional<NodeState>> load() const;
  Status save(const NodeState& state) const;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace porthole::runtime
