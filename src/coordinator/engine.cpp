#include "coordinator/engine.h"

namespace porthole::coordinator {

Result<Issued> EmbeddedEngine::issue_key(const AccountRecord& account, const AuthKeyRecord& key, std::int64_t generation) {
  if (key.device_id.empty()) return issue_auth_key(rng_);
  return derive_device_key(server_secret_, account.id, key.device_id, generation);
}

Result<crypto::SecretText> EmbeddedEngine::key_text(const DeviceRecord& device, const AuthKeyRecord&) const {
  return derive_device_key(server_secret_, device.account, device.device_id, device.generation).text;
}

}  // namespace porthole::coordinator
