#include "remote/headscale_service.h"

#include "remote/limits.h"

namespace porthole::remote {

using coordinator::AccountInfo;
using coordinator::CreatedAccount;
using coordinator::DeviceInfo;
using coordinator::DeviceKey;
using coordinator::KeyInfo;

HeadscaleService::HeadscaleService(HeadscaleApi& api, Config config)
    : api_(api),
      config_(std::move(config)),
      engine_(api, config_.server_secret, config_.rng, config_.timing, config_.pause) {}

Result<std::unique_ptr<HeadscaleService>> HeadscaleService::open(Clock clock, HeadscaleApi& api, Config config) {
  std::unique_ptr<HeadscaleService> service(new HeadscaleService(api, std::move(config)));
  if (auto s = service->prove(clock); !s) return s.error();
  coordinator::DirectoryConfig directory;
  directory.base_domain = service->proof_.base_domain;
  directory.account_in_names = false;
  directory.engine = &service->engine_;
  auto opened = coordinator::Directory::open(std::move(directory), service->config_.store, service->config_.rng, service->config_.log);
  if (!opened) return opened.error();
  service->directory_ = std::move(*opened);
  if (auto s = service->ready(clock, 0s); !s) return s.error();
  return service;
}

Status HeadscaleService::prove(Clock clock) {
  IsolationProof proof;
  Status s = check_isolation(api_, proof);
  if (s) s = prove_isolation(api_, config_.proof, proof);
  if (!s && s.error().code == ErrorCode::kNotFound) s = Error{ErrorCode::kUnavailable, s.error().message};
  // What cannot be reached is told by whoever asked; that it is not isolated (any more) is worth a word of its own.
  if (config_.on_proof) {
    if (s) config_.on_proof(proof);
    else if (s.error().code == ErrorCode::kUnsupported) config_.on_proof(s.error());
  }
  if (!s) return s;
  proof_ = std::move(proof);
  proved_ = true;
  problem_.reset();
  policy_seen_ = clock.now;
  mirrored_.reset();
  return {};
}

Error HeadscaleService::lost(Clock clock, Error error) {
  proved_ = false;
  problem_ = error;
  problem_->code = ErrorCode::kUnavailable;
  retry_ = clock.now + (error.code == ErrorCode::kUnsupported ? kHeadscalePolicyFresh : kHeadscaleRetry);
  return *problem_;
}

Status HeadscaleService::ready(Clock clock, Duration age) {
  if (!proved_ && clock.now < retry_) return *problem_;
  if (!proved_)
    if (auto s = prove(clock); !s) return lost(clock, s.error());
  if (mirrored_ && clock.now - *mirrored_ < age) return {};
  auto snapshot = engine_.snapshot(clock.wall);
  if (!snapshot) return lost(clock, snapshot.error());
  if (auto s = directory_->mirror(clock, snapshot->keys, std::move(snapshot->nodes)); !s) return s;
  mirrored_ = clock.now;
  return {};
}

template <typename T>
Result<T> HeadscaleService::checked(Clock clock, Result<T> result) {
  if (!result && result.error().code == ErrorCode::kUnavailable) return lost(clock, result.error());
  return result;
}

void HeadscaleService::watch(Clock clock) {
  if (!proved_) {
    (void)ready(clock, kHeadscaleFresh);
    return;
  }
  if (auto s = api_.health(); !s) {
    (void)lost(clock, s.error());
    return;
  }
  if (clock.now - policy_seen_ < kHeadscalePolicyFresh) return;
  policy_seen_ = clock.now;
  IsolationProof again;
  Status s = check_isolation(api_, again);
  if (s && !again.policy_was_set) return;
  // A policy that was not there had to be set again: what was in force meanwhile is anybody's guess, so all is proved anew.
  if (s) s = Error{ErrorCode::kUnavailable, "the policy of Headscale had gone; isolation is being proved again"};
  if (s.error().code == ErrorCode::kUnsupported && config_.on_proof) config_.on_proof(s.error());
  (void)lost(clock, s.error());
}

Result<CreatedAccount> HeadscaleService::create_account(Clock clock, std::string_view name) {
  if (auto s = ready(clock, kHeadscaleFresh); !s) return s.error();
  return checked(clock, directory_->create_account(clock, name));
}

Result<CreatedAccount> HeadscaleService::replace_token(Clock clock, std::string_view account) {
  if (auto s = ready(clock, kHeadscaleFresh); !s) return s.error();
  return directory_->replace_token(clock, account);
}

Result<std::vector<AccountInfo>> HeadscaleService::list_accounts(Clock clock) {
  if (auto s = ready(clock, kHeadscaleFresh); !s) return s.error();
  return directory_->list_accounts(clock);
}

Result<KeyInfo> HeadscaleService::key_create(Clock clock, std::string_view account, const coordinator::KeyOptions& options) {
  if (auto s = ready(clock, kHeadscaleFresh); !s) return s.error();
  return checked(clock, directory_->key_create(clock, account, options));
}

Result<DeviceKey> HeadscaleService::device_key(Clock clock, std::string_view account, std::string_view device_id, bool replace) {
  // A key that is handed out again, or a node that is named, may be as old as the mirror; what is revoked may not.
  if (auto s = ready(clock, replace ? 0s : kHeadscaleFresh); !s) return s.error();
  auto key = checked(clock, directory_->device_key(clock, account, device_id, replace));
  if (replace) mirrored_.reset();
  return key;
}

Result<std::vector<DeviceInfo>> HeadscaleService::devices_list(Clock clock, std::string_view account) {
  if (auto s = ready(clock, kHeadscaleFresh); !s) return s.error();
  return directory_->devices_list(clock, account);
}

Status HeadscaleService::revoke(Clock clock, std::string_view account, std::string_view id) {
  if (auto s = ready(clock, 0s); !s) return s;
  Status s = directory_->revoke(clock, account, id);
  mirrored_.reset();
  if (!s && s.error().code == ErrorCode::kUnavailable) return lost(clock, s.error());
  return s;
}

Result<DeviceInfo> HeadscaleService::approve(Clock clock, std::string_view account, std::string_view pending_id) {
  if (!directory_->has_account(account))
    return Error{ErrorCode::kNotFound, "account \"" + std::string(account) + "\" does not exist"};
  if (auto s = ready(clock, 0s); !s) return s.error();
  auto before = directory_->devices_list(clock, account);
  if (!before) return before.error();
  if (auto s = engine_.approve(std::string(account), pending_id); !s) {
    if (auto there = api_.health(); !there) return lost(clock, there.error());
    return Error{ErrorCode::kNotFound, "no login waits under \"" + std::string(pending_id) + "\" (" + s.error().message + ")"};
  }
  if (auto s = ready(clock, 0s); !s) return s.error();
  auto after = directory_->devices_list(clock, account);
  if (!after) return after.error();
  for (DeviceInfo& device : *after) {
    bool known = false;
    for (const DeviceInfo& old : *before) known = known || (old.node_id == device.node_id && old.node_key == device.node_key);
    if (!known && device.node_id != 0) return std::move(device);
  }
  return Error{ErrorCode::kUnavailable, "Headscale let the device in, but does not list it yet"};
}

coordinator::Health HeadscaleService::health() const {
  coordinator::Health h = directory_->health();
  if (problem_) {
    h.ok = false;
    h.problem = problem_->message;
  }
  return h;
}

}  // namespace porthole::remote
