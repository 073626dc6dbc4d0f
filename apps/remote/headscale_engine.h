// An existing Headscale as the directory's engine (coordinator/engine.h).
//
//   account          a user of its own, "acct-NAME", never renamed, never deleted
//   key              a pre-auth key of that user, one-time unless asked otherwise, never tagged
//   revocation       the key expires, its nodes expire, a moment later they are deleted, then the key is
//
// Headscale shows a key's text once, so the texts of devices' keys are kept, encrypted with a key derived from the
// service's secret (XChaCha20-Poly1305).
#pragma once

#include <functional>

#include "coordinator/engine.h"
#include "remote/headscale_api.h"

namespace porthole::remote {

class HeadscaleEngine final : public coordinator::Engine {
 public:
  struct Timing {
    std::chrono::milliseconds expiry_grace;  // between expiring and deleting a node (kHeadscaleExpiryGrace)
  };
  // `pause` waits, and returns early when the service stops.
  HeadscaleEngine(HeadscaleApi& api, const crypto::SecretBytes<32>& server_secret, Rng& rng, Timing timing,
                  std::function<void(std::chrono::milliseconds)> pause);

  Status open_account(const coordinator::AccountRecord& account) override;
  Result<coordinator::Issued> issue_key(const coordinator::AccountRecord& account, const coordinator::AuthKeyRecord& key,
                                        std::int64_t generation) override;
  Result<crypto::SecretText> key_text(const coordinator::DeviceRecord& device,
                                      const coordinator::AuthKeyRecord& key) const override;
  Status retire_key(const coordinator::AccountRecord& account, const coordinator::AuthKeyRecord& key) override;
  Status revoke(const coordinator::AccountRecord& account, const coordinator::AuthKeyRecord* key,
                const coordinator::NodeRecord* node) override;

  // What Directory::mirror() wants: keys first, so that a key that is used has its node in the list.
  struct Snapshot {
    std::vector<coordinator::EngineKey> keys;
    std::vector<coordinator::EngineNode> nodes;
  };
  Result<Snapshot> snapshot(WallTime wall);
  // Interactive login: lets the node into the account's user.
  Status approve(const std::string& account, std::string_view id);

 private:
  Result<HeadscaleUser> user_of(const std::string& account);
  // nullopt: Headscale does not have it.
  Result<std::optional<HeadscaleKey>> find_key(const std::string& prefix);

  HeadscaleApi& api_;
  crypto::SecretBytes<32> sealing_key_;
  Rng& rng_;
  Timing timing_;
  std::function<void(std::chrono::milliseconds)> pause_;
};

std::string headscale_user_of(std::string_view account);

}  // namespace porthole::remote
