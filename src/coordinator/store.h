// Where the coordinator's records live. The directory holds everything in memory and hands each change over as one
// transaction, so a store needs two operations: give back all, and apply a change as a whole or not at all.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "coordinator/records.h"

namespace porthole::coordinator {

struct StoreSnapshot {
  std::vector<AccountRecord> accounts;
  std::vector<AuthKeyRecord> keys;
  std::vector<DeviceRecord> devices;
  std::vector<NodeRecord> nodes;
  // Highest ids ever given out, also by records that are gone: ids are never used twice.
  AccountId last_account = 0;
  KeyId last_key = 0;
  NodeId last_node = 0;
};

// Upserts by id (devices: by account and device id), then removals.
struct StoreChange {
  std::vector<AccountRecord> accounts;
  std::vector<AuthKeyRecord> keys;
  std::vector<DeviceRecord> devices;
  std::vector<NodeRecord> nodes;
  std::vector<NodeId> removed_nodes;
  std::vector<KeyId> removed_keys;
  std::vector<std::pair<AccountId, std::string>> removed_devices;
  // True: on the medium before commit() returns, power failure included (revocations, keys, accounts). False: survives
  // a crash of the process; a power failure may take the last moments (joins, which clients repeat, and soft state).
  bool durable = true;
};

class Store {
 public:
  virtual ~Store() = default;
  virtual Result<StoreSnapshot> load() = 0;
  // All or nothing. Error kLimit or kIo: nothing was changed; the message says what to do (disk full, read-only).
  virtual Status commit(const StoreChange& change) = 0;
};

}  // namespace porthole::coordinator
