// What lets devices in and keeps accounts apart, seen from the directory. The directory (directory.h) has the rules and
// the records of enrolment: accounts and their tokens, which device has which key, what is revoked. An engine makes them
// true where nodes really register.
//
//   embedded     the coordinator reads the directory itself, so there is nothing to carry anywhere; keys are our own
//   another one  a coordination server elsewhere (Headscale): accounts, keys and revocations are carried there first, and
//                what registered there comes back through Directory::mirror()
//
// Every call comes before the directory stores what it is about; an Error means that nothing is stored, and reaches the
// caller as it is. A call that was carried out but could not be stored after it is repeated later, so all of them must
// find their own work done already and go on. Same thread as the directory; calls may block.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "coordinator/auth_keys.h"
#include "coordinator/records.h"

namespace porthole::coordinator {

class Engine {
 public:
  virtual ~Engine() = default;

  // A namespace for a new account, which must be empty. kAlreadyExists: there is one of that name which is not.
  virtual Status open_account(const AccountRecord& account) = 0;
  // A key with the record's properties (reusable, ephemeral, expires; device_id, to whose `generation` it belongs).
  virtual Result<Issued> issue_key(const AccountRecord& account, const AuthKeyRecord& key, std::int64_t generation) = 0;
  // The text of a device's key again.
  virtual Result<crypto::SecretText> key_text(const DeviceRecord& device, const AuthKeyRecord& key) const = 0;
  // The key admits nobody from now on; whom it admitted stays.
  virtual Status retire_key(const AccountRecord& account, const AuthKeyRecord& key) = 0;
  // The key (null: none) admits nobody, the node (null: none) and whatever else the key admitted is gone.
  virtual Status revoke(const AccountRecord& account, const AuthKeyRecord* key, const NodeRecord* node) = 0;
};

// The default. Keys of devices are derived from a secret, so that they can be handed out again without being kept.
class EmbeddedEngine final : public Engine {
 public:
  EmbeddedEngine(crypto::SecretBytes<32> server_secret, Rng& rng) : server_secret_(std::move(server_secret)), rng_(rng) {}

  Status open_account(const AccountRecord&) override { return {}; }
  Result<Issued> issue_key(const AccountRecord& account, const AuthKeyRecord& key, std::int64_t generation) override;
  Result<crypto::SecretText> key_text(const DeviceRecord& device, const AuthKeyRecord& key) const override;
  Status retire_key(const AccountRecord&, const AuthKeyRecord&) override { return {}; }
  Status revoke(const AccountRecord&, const AuthKeyRecord*, const NodeRecord*) override { return {}; }

 private:
  crypto::SecretBytes<32> server_secret_;
  Rng& rng_;
};

// What another engine says about its keys and nodes (Directory::mirror).
struct EngineKey {
  std::string prefix;
  bool used = false;
  bool live = true;  // false: expired there
};
struct EngineNode {
  std::string account;     // empty: of no account of ours
  std::string key_prefix;  // of the key it registered with; empty: none, or not told any more
  bool online = false;
  NodeRecord record;       // account, device_id and auth_key are filled in by the directory
};

}  // namespace porthole::coordinator
