// The enrolment service over an existing Headscale: the same Directory as everywhere has accounts, tokens, devices and
// keys; HeadscaleEngine carries to Headscale what it decides, and what Headscale knows is mirrored into it before each
// answer (at most kHeadscaleFresh old).
//
// Nothing is given out while isolation is not proved: at the start, and again after every time that Headscale could not be
// reached, for then it may be another one or have another policy. Its policy is looked at regularly. Until all is well
// again, every call but the look-up of tokens fails with kUnavailable and the sentence why.
//
// Blocks in its calls; one thread.
#pragma once

#include <functional>
#include <memory>

#include "coordinator/directory.h"
#include "remote/headscale_engine.h"
#include "remote/headscale_isolation.h"

namespace porthole::remote {

class HeadscaleService final : public coordinator::Service {
 public:
  struct Config {
    coordinator::Store& store;
    Rng& rng;
    Log& log;
    crypto::SecretBytes<32> server_secret;
    HeadscaleEngine::Timing timing;
    std::function<void(std::chrono::milliseconds)> pause;
    ProofOptions proof;
    // Each time that isolation was looked at: the proof, or why there is none.
    std::function<void(const Result<IsolationProof>&)> on_proof;
  };
  // Proves isolation first. Error: it could not be proved, or the store's.
  static Result<std::unique_ptr<HeadscaleService>> open(Clock clock, HeadscaleApi& api, Config config);

  // To be called every kHeadscaleWatch or so: notices that Headscale is gone or back, and a changed policy.
  void watch(Clock clock);

  Result<coordinator::CreatedAccount> create_account(Clock clock, std::string_view name) override;
  Result<coordinator::CreatedAccount> replace_token(Clock clock, std::string_view account) override;
  Result<std::vector<coordinator::AccountInfo>> list_accounts(Clock clock) override;
  bool has_account(std::string_view account) const override { return directory_->has_account(account); }
  std::optional<std::string> account_of_token(std::string_view token) const override { return directory_->account_of_token(token); }
  Result<coordinator::KeyInfo> key_create(Clock clock, std::string_view account, const coordinator::KeyOptions& options) override;
  Result<coordinator::DeviceKey> device_key(Clock clock, std::string_view account, std::string_view device_id, bool replace) override;
  Result<std::vector<coordinator::DeviceInfo>> devices_list(Clock clock, std::string_view account) override;
  Status revoke(Clock clock, std::string_view account, std::string_view id) override;
  // Logins wait at Headscale, which shows a page of its own.
  std::optional<coordinator::PendingInfo> pending(Clock, std::string_view) const override { return std::nullopt; }
  Result<coordinator::DeviceInfo> approve(Clock clock, std::string_view account, std::string_view pending_id) override;
  coordinator::Health health() const override;

 private:
  HeadscaleService(HeadscaleApi& api, Config config);

  Status prove(Clock clock);
  // Isolation is proved and the directory knows what Headscale knows, not older than `age`.
  Status ready(Clock clock, Duration age);
  // Remembers that Headscale is not to be relied on, and passes the error on.
  Error lost(Clock clock, Error error);
  template <typename T>
  Result<T> checked(Clock clock, Result<T> result);

  HeadscaleApi& api_;
  Config config_;
  HeadscaleEngine engine_;
  std::unique_ptr<coordinator::Directory> directory_;
  IsolationProof proof_;
  std::optional<Error> problem_;  // why nothing is given out now
  bool proved_ = false;
  Instant retry_;                 // not asked again before
  std::optional<Instant> mirrored_;
  Instant policy_seen_;
};

}  // namespace porthole::remote
