// What the coordinator remembers: accounts, pre-auth keys, devices and nodes, as plain values that a store can keep.
//
//   account  a household: one namespace, one isolated tailnet
//   device   a name that the household's server gave to one device; owns at most one live key and one node
//   auth key proves the right to join an account; only a hash of it is kept
//   node     a registered member of the tailnet: machine key, node key, addresses, name
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/ip.h"
#include "base/key.h"
#include "base/time.h"
#include "crypto/hash.h"
#include "ts2021/messages.h"

namespace porthole::coordinator {

using AccountId = std::int64_t;  // also the UserId in maps
using KeyId = std::int64_t;
using ts2021::NodeId;

struct AccountRecord {
  AccountId id = 0;
  std::string name;
  WallTime created;
  crypto::Hash32 token_hash{};
  friend bool operator==(const AccountRecord&, const AccountRecord&) = default;
};

struct AuthKeyRecord {
  KeyId id = 0;
  AccountId account = 0;
  std::string prefix;            // the public part of the key's text, for look-up
  crypto::Hash32 secret_hash{};  // of the rest
  std::string device_id;         // empty: not bound to a device
  bool reusable = false;
  bool ephemeral = false;
  bool used = false;
  bool revoked = false;
  WallTime created;
  std::optional<WallTime> expires;
  ByteVector sealed;             // the text, encrypted, where it can neither be derived nor asked for again; else empty
  friend bool operator==(const AuthKeyRecord&, const AuthKeyRecord&) = default;
};

struct DeviceRecord {
  AccountId account = 0;
  std::string device_id;
  std::int64_t generation = 0;  // of its key: the text is derived from account, device and generation
  KeyId key = 0;                // the key of that generation
  WallTime created;
  NodeId node = 0;              // its node, where another engine keeps the nodes; else 0
  friend bool operator==(const DeviceRecord&, const DeviceRecord&) = default;
};

struct NodeRecord {
  NodeId id = 0;  // never used twice
  AccountId account = 0;
  std::string device_id;  // empty: joined with a key that belongs to no device, or by approval
  KeyId auth_key = 0;     // 0: approved by a person
  MachinePublic machine;
  NodePublic node_key;
  DiscoPublic disco_key;
  IpAddress ipv4;
  IpAddress ipv6;
  std::string label;  // first label of its name, unique in the account
  ts2021::Hostinfo hostinfo;
  std::vector<Endpoint> endpoints;
  int home_relay = 0;
  int cap = 0;
  bool ephemeral = false;
  WallTime created;
  std::optional<WallTime> key_expiry;  // absent: never
  std::optional<WallTime> last_seen;   // end of the last map stream
  friend bool operator==(const NodeRecord&, const NodeRecord&) = default;
};

}  // namespace porthole::coordinator
