// The service's directory: its lock, its keys, its store.
//
//   lock            held by the process that serves; a second one is refused
//   coordinator.db  accounts, keys, devices, nodes (SQLite, with -wal and -shm)
//   noise.key       identity towards clients; losing it strands every running client
//   relay.key       identity of the relay
//   server.secret   device keys are derived from it
//   admin-token     for the enrolment API; delete it and restart to get a new one
//   engine          "headscale-api" where Headscale coordinates; not there otherwise
//   control.sock    where the command line talks to the running service
#pragma once

#include <string>

#include "crypto/secret.h"

namespace porthole::remote {

class StateDir {
 public:
  // Creates it (0700) and takes the lock. CommandError: not writable, or in use by a running service when
  // `in_use` is null; otherwise *in_use tells and nothing is locked.
  explicit StateDir(const std::string& path, bool* in_use = nullptr);
  ~StateDir();
  StateDir(const StateDir&) = delete;
  StateDir& operator=(const StateDir&) = delete;

  std::string file(const std::string& name) const { return path_ + "/" + name; }
  std::string store_path() const { return file("coordinator.db"); }
  std::string socket_path() const { return file("control.sock"); }
  std::string admin_token_path() const { return file("admin-token"); }

  // Whose accounts these are: the embedded coordinator's, or kept together with Headscale. claim_engine() settles it for a new
  // directory; CommandError when it belongs to the other.
  bool is_headscale() const;
  void claim_engine(bool headscale);

  // Before the store is opened: keys without a store mean that it was lost, and a new, empty one would hide that.
  // CommandError says what to do.
  void check_store() const;

  // Each is made at first use and written 0600. CommandError when a file cannot be read or understood, or is gone although
  // `needed`: somebody depends on it, and a new one would strand them without a word.
  crypto::MachinePrivate noise_key(bool needed);
  crypto::NodePrivate relay_key();
  crypto::SecretBytes<32> server_secret(bool needed);
  crypto::SecretText admin_token();

 private:
  crypto::SecretText load_or_create(const std::string& name, const crypto::SecretText& fresh, bool needed = false);
  std::string path_;
  int lock_fd_ = -1;
};

}  // namespace porthole::remote
