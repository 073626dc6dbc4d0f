// What an operator or a household's server can ask of the coordinator. The enrolment API and the command line are two
// spellings of this interface; who may call what is decided above it (an account's token acts on its account only).
//
// Every answer is final: what it reports is stored. Errors are sentences for a person: kInvalid (malformed argument),
// kNotFound, kAlreadyExists, kLimit (a bound was reached), kIo (the store could not be written; nothing was changed),
// kUnavailable (what coordinates elsewhere cannot be reached or relied on now; nothing is stored, try again).
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/ip.h"
#include "base/result.h"
#include "base/time.h"
#include "coordinator/records.h"
#include "crypto/secret.h"

namespace porthole::coordinator {

struct CreatedAccount {
  std::string name;
  crypto::SecretText token;  // shown once: only its hash is kept
};

struct AccountInfo {
  std::string name;
  WallTime created;
  std::size_t devices = 0;  // nodes and devices that have not joined yet
  std::size_t online = 0;
};

enum class DeviceState {
  kInvited,   // has a key, has not joined
  kEnrolled,  // is a node
  kExpired,   // its node key ran out: it must join again
  kLapsed,    // its key ran out unused
};
std::string_view to_string(DeviceState state);

// A device, a node, or both: a device that has not joined has no node, a node joined by hand has no device id.
struct DeviceInfo {
  std::string account;
  std::string device_id;  // may be empty
  DeviceState state = DeviceState::kInvited;
  NodeId node_id = 0;     // 0: not joined
  std::string name;       // "kitchen-tv"; the node's first label
  std::string fqdn;       // without trailing dot
  std::vector<IpAddress> addresses;
  NodePublic node_key;
  std::string os;
  std::string hostname;   // as the device calls itself
  std::string version;
  bool online = false;
  bool ephemeral = false;
  int home_relay = 0;
  std::vector<Endpoint> endpoints;
  WallTime created;
  std::optional<WallTime> last_seen;
  std::optional<WallTime> key_expiry;   // of the node key
  std::optional<WallTime> key_expires;  // of an unused pre-auth key
};

struct KeyOptions {
  std::string device_id;  // empty: not bound to a device
  bool reusable = false;
  bool ephemeral = false;
  std::optional<Duration> lifetime;  // absent: kKeyLifetimeDefault
};

struct KeyInfo {
  crypto::SecretText key;
  std::optional<WallTime> expires;
};

struct DeviceKey {
  crypto::SecretText key;            // of an enrolled device: the key that it joined with, spent
  std::optional<WallTime> expires;
  DeviceInfo device;                 // state kInvited or kEnrolled
  bool created = false;              // false: the key existed before this call
};

struct Health {
  bool ok = true;
  std::string problem;  // when not ok: one sentence
  std::size_t accounts = 0;
  std::size_t nodes = 0;
  std::size_t online = 0;
};

// Waiting for a person to approve it.
struct PendingInfo {
  std::string id;
  std::string hostname;
  std::string os;
  WallTime expires;
};

class Service {
 public:
  virtual ~Service() = default;

  virtual Result<CreatedAccount> create_account(Clock clock, std::string_view name) = 0;
  // Replaces the account's token; the old one dies at once.
  virtual Result<CreatedAccount> replace_token(Clock clock, std::string_view account) = 0;
  // By name.
  virtual Result<std::vector<AccountInfo>> list_accounts(Clock clock) = 0;
  virtual bool has_account(std::string_view account) const = 0;
  // Name of the account this token belongs to.
  virtual std::optional<std::string> account_of_token(std::string_view token) const = 0;

  // A new pre-auth key at every call. With a device id: that device's key, as device_key() but with these options.
  virtual Result<KeyInfo> key_create(Clock clock, std::string_view account, const KeyOptions& options) = 0;
  // The device's own key. The same device gets the same live key however often and concurrently this is asked, and once
  // it has joined, its node; never a second one. `replace` first revokes what the device has (it lost its state).
  virtual Result<DeviceKey> device_key(Clock clock, std::string_view account, std::string_view device_id,
                                       bool replace = false) = 0;

  // By node id, devices that have not joined behind. Empty account: all.
  virtual Result<std::vector<DeviceInfo>> devices_list(Clock clock, std::string_view account) = 0;
  // A device id or a node id in decimal. Its node is deleted, its peers drop it at once, its keys die; a new key is
  // needed to come back. Empty account: any account, unless the id is ambiguous.
  virtual Status revoke(Clock clock, std::string_view account, std::string_view id) = 0;

  virtual std::optional<PendingInfo> pending(Clock clock, std::string_view id) const = 0;
  // Interactive login: lets the machine that shows this id into the account.
  virtual Result<DeviceInfo> approve(Clock clock, std::string_view account, std::string_view pending_id) = 0;

  virtual Health health() const = 0;
};

}  // namespace porthole::coordinator
