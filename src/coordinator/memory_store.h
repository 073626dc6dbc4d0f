// A store that lasts as long as the object: for the simulator and tests. fail_with() plays a full disk.
#pragma once

#include <map>
#include <optional>

#include "coordinator/store.h"

namespace porthole::coordinator {

class MemoryStore final : public Store {
 public:
  Result<StoreSnapshot> load() override;
  Status commit(const StoreChange& change) override;

  // Every commit() fails with this error until it is cleared with nullopt.
  void fail_with(std::optional<Error> error) { failure_ = std::move(error); }
  std::size_t commits() const { return commits_; }

 private:
  std::map<AccountId, AccountRecord> accounts_;
  std::map<KeyId, AuthKeyRecord> keys_;
  std::map<std::pair<AccountId, std::string>, DeviceRecord> devices_;
  std::map<NodeId, NodeRecord> nodes_;
  AccountId last_account_ = 0;
  KeyId last_key_ = 0;
  NodeId last_node_ = 0;
  std::optional<Error> failure_;
  std::size_t commits_ = 0;
};

}  // namespace porthole::coordinator
