// The servers this device has logged in to (C4), and what this device is called. One JSON file, 0600, replaced atomically;
// other processes of the same user may change it in between. A file that is damaged or from a newer version is an
// error and is never overwritten.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace porthole::client {

struct SavedServer {
  std::string id;        // UUID
  std::string name;
  std::string hostname;  // "host:port" on the LAN; empty: remote only
  std::string password;
  std::string pin;  // "sha256:..." of the certificate
  std::string remote_hostname, remote_ip, coordination_url, tailnet_preauth_key;
  std::string tailnet_profile;  // folder below the state directory's tailnet/ that holds the node for this server

  bool has_remote_details() const { return !remote_hostname.empty() || !remote_ip.empty(); }
};

class Store {
 public:
  // `dir` is made (0700) when missing.
  explicit Store(std::string dir);

  std::vector<SavedServer> servers() const;
  // Reads, lets `change` work on the list, writes; other processes wait meanwhile.
  void update(const std::function<void(std::vector<SavedServer>&)>& change);
  // By id, name (any case), LAN address, or a beginning of the id or name that fits only one; ClientError otherwise.
  SavedServer find(const std::string& what) const;

  struct Device {
    std::string id;    // UUID, made at the first call
    std::string name;  // as people know it
  };
  // `name` non-empty: the device is called this from now on; else as before, at first as the machine.
  Device device(const std::string& name);
  const std::string& dir() const { return dir_; }

 private:
  std::string file() const { return dir_ + "/servers.json"; }
  std::string dir_;
};

}  // namespace porthole::client
