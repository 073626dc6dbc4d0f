#include "coordinator/memory_store.h"

#include <algorithm>

namespace porthole::coordinator {

Result<StoreSnapshot> MemoryStore::load() {
  StoreSnapshot s;
  for (const auto& [id, r] : accounts_) s.accounts.push_back(r);
  for (const auto& [id, r] : keys_) s.keys.push_back(r);
  for (const auto& [id, r] : devices_) s.devices.push_back(r);
  for (const auto& [id, r] : nodes_) s.nodes.push_back(r);
  s.last_account = last_account_;
  s.last_key = last_key_;
  s.last_node = last_node_;
  return s;
}

Status MemoryStore::commit(const StoreChange& change) {
  if (failure_) return *failure_;
  ++commits_;
  for (const auto& r : change.accounts) {
    accounts_[r.id] = r;
    last_account_ = std::max(last_account_, r.id);
  }
  for (const auto& r : change.keys) {
    keys_[r.id] = r;
    last_key_ = std::max(last_key_, r.id);
  }
  for (const auto& r : change.devices) devices_[{r.account, r.device_id}] = r;
  for (const auto& r : change.nodes) {
    nodes_[r.id] = r;
    last_node_ = std::max(last_node_, r.id);
  }
  for (NodeId id : change.removed_nodes) nodes_.erase(id);
  for (KeyId id : change.removed_keys) keys_.erase(id);
  for (const auto& key : change.removed_devices) devices_.erase(key);
  return {};
}

}  // namespace porthole::coordinator
