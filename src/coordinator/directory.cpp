#include "coordinator/directory.h"

#include <algorithm>
#include <charconv>

#include "coordinator/limits.h"
#include "coordinator/names.h"

namespace porthole::coordinator {
namespace {

std::string cut(const std::string& text) {
  if (text.size() <= kHostinfoTextMax) return text;
  std::size_t end = kHostinfoTextMax;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;  // not inside a UTF-8 character
  return text.substr(0, end);
}

Error no_account(std::string_view name) {
  return {ErrorCode::kNotFound, "account \"" + std::string(name) + "\" does not exist"};
}

// Zoned addresses are refused by the parser; link-local ones mean something else on every other machine.
std::vector<Endpoint> usable_endpoints(const std::vector<Endpoint>& endpoints) {
  std::vector<Endpoint> out;
  for (const Endpoint& e : endpoints) {
    if (!e.is_valid() || e.address.is_unspecified() || e.address.is_multicast() || e.address.is_tailnet()) continue;
    if (e.address.is_v6() && e.address.is_link_local()) continue;
    if (std::find(out.begin(), out.end(), e) != out.end()) continue;
    out.push_back(e);
    if (out.size() == kEndpointsPerNodeMax) break;
  }
  return out;
}

bool not_expired(const AuthKeyRecord& key, WallTime wall) { return !key.expires || *key.expires > wall; }
// Could still admit the device that it belongs to.
bool live(const AuthKeyRecord& key, WallTime wall) { return !key.revoked && !key.used && not_expired(key, wall); }

}  // namespace

std::string_view to_string(DeviceState state) {
  switch (state) {
    case DeviceState::kInvited: return "invited";
    case DeviceState::kEnrolled: return "enrolled";
    case DeviceState::kExpired: return "expired";
    case DeviceState::kLapsed: return "lapsed";
  }
  return "unknown";
}

ts2021::Hostinfo hostinfo_for_peers(const ts2021::Hostinfo& hostinfo) {
  ts2021::Hostinfo out;
  out.ipn_version = cut(hostinfo.ipn_version);
  out.os = cut(hostinfo.os);
  out.os_version = cut(hostinfo.os_version);
  out.app = cut(hostinfo.app);
  out.device_model = cut(hostinfo.device_model);
  out.hostname = cut(hostinfo.hostname);
  out.shields_up = hostinfo.shields_up;
  for (const auto& s : hostinfo.services) {
    if (out.services.size() == kServicesPerNodeMax) break;
    out.services.push_back({cut(s.proto), s.port, cut(s.description)});
  }
  return out;
}

// ---- opening -----------------------------------------------------------------------------------------------------

Directory::Directory(DirectoryConfig config, Store& store, Rng& rng, Log& log)
    : config_(std::move(config)),
      own_engine_(config_.engine ? nullptr : std::make_unique<EmbeddedEngine>(config_.server_secret.duplicate(), rng)),
      engine_(config_.engine ? *config_.engine : *own_engine_),
      store_(store),
      rng_(rng),
      log_(log) {}

Result<std::unique_ptr<Directory>> Directory::open(DirectoryConfig config, Store& store, Rng& rng, Log& log) {
  auto snapshot = store.load();
  if (!snapshot) return snapshot.error();
  std::unique_ptr<Directory> directory(new Directory(std::move(config), store, rng, log));
  if (auto s = directory->adopt(std::move(*snapshot)); !s) return s.error();
  return directory;
}

Status Directory::adopt(StoreSnapshot snapshot) {
  last_account_ = snapshot.last_account;
  last_key_ = snapshot.last_key;
  last_node_ = snapshot.last_node;
  for (auto& record : snapshot.accounts) {
    AccountState& account = accounts_[record.id];
    account_names_[record.name] = record.id;
    account.record = std::move(record);
  }
  auto orphan = [](std::string_view what) {
    return Error{ErrorCode::kInvalid, "store: a " + std::string(what) + " belongs to an account that does not exist"};
  };
  for (auto& key : snapshot.keys) {
    auto account = accounts_.find(key.account);
    if (account == accounts_.end()) return orphan("pre-auth key");
    account->second.keys.insert(key.id);
    key_prefixes_[key.prefix] = key.id;
    keys_[key.id] = std::move(key);
  }
  for (auto& device : snapshot.devices) {
    auto account = accounts_.find(device.account);
    if (account == accounts_.end()) return orphan("device");
    account->second.devices[device.device_id] = std::move(device);
  }
  for (auto& node : snapshot.nodes) {
    if (!accounts_.contains(node.account)) return orphan("node");
    auto member = std::make_unique<Member>();
    member->record = std::move(node);
    // A rename is soft state: after a crash another node may have taken what this one was about to give up.
    const AccountState& account = accounts_.at(member->record.account);
    if (account.labels.contains(member->record.label)) {
      member->record.label = unique_label(account, member->record.hostinfo.hostname, {});
      unsaved_.insert(member->record.id);
    }
    attach(std::move(member));
  }
  return {};
}

void Directory::attach(std::unique_ptr<Member> owned) {
  Member* member = owned.get();
  const NodeRecord& r = member->record;
  AccountState& account = accounts_.at(r.account);
  if (r.ipv4.is_v4()) addresses_.take(r.ipv4);
  account.members[r.id] = member;
  account.labels.insert(r.label);
  if (!r.device_id.empty()) account.device_nodes[r.device_id] = member;
  by_node_key_[r.node_key] = member;
  by_machine_[{r.account, r.machine}] = member;
  members_[r.id] = std::move(owned);
}

// ---- look-up -----------------------------------------------------------------------------------------------------

AccountState* Directory::find_account(std::string_view name) {
  auto it = account_names_.find(name);
  return it == account_names_.end() ? nullptr : &accounts_.at(it->second);
}
const AccountState* Directory::find_account(std::string_view name) const {
  auto it = account_names_.find(name);
  return it == account_names_.end() ? nullptr : &accounts_.at(it->second);
}
Member* Directory::find_by_node_key(const NodePublic& key) {
  auto it = by_node_key_.find(key);
  return it == by_node_key_.end() ? nullptr : it->second;
}
Member* Directory::find(NodeId id) {
  auto it = members_.find(id);
  return it == members_.end() ? nullptr : it->second.get();
}
Member* Directory::find_by_machine(const AccountState& account, const MachinePublic& machine) {
  auto it = by_machine_.find({account.record.id, machine});
  return it == by_machine_.end() ? nullptr : it->second;
}
AccountState& Directory::account_of(const Member& member) { return accounts_.at(member.record.account); }

const AuthKeyRecord* Directory::device_key_record(const DeviceRecord& device) const {
  auto it = keys_.find(device.key);
  return it == keys_.end() ? nullptr : &it->second;
}

bool Directory::waits_to_join(const AccountState& account, const DeviceRecord& device) const {
  const AuthKeyRecord* key = device_key_record(device);
  return key && !key->revoked && !account.device_nodes.contains(device.device_id);
}

std::string Directory::fqdn(const Member& member) const {
  return member.record.label + "." + suffix(accounts_.at(member.record.account).record) + ".";
}

Status Directory::commit(const StoreChange& change) {
  Status s = store_.commit(change);
  if (s) {
    store_problem_.reset();
  } else {
    store_problem_ = s.error();
    log_.write(LogLevel::kError, "coordinator", s.error().message);
  }
  return s;
}

void Directory::changed(Clock clock, Member& member, NodeChanges changes, bool soft) {
  if (changes == 0) return;
  member.peer_json.clear();
  if (soft) {
    member.dirty = true;
    unsaved_.insert(member.record.id);
  }
  if (listener_) listener_->node_changed(clock, member, changes);
}

// ---- accounts ------------------------------------------------------------------------------------------------------

Result<CreatedAccount> Directory::create_account(Clock clock, std::string_view name) {
  if (auto s = check_account_name(name); !s) return s.error();
  if (find_account(name)) return Error{ErrorCode::kAlreadyExists, "account \"" + std::string(name) + "\" already exists"};
  if (accounts_.size() >= kAccountsMax)
    return Error{ErrorCode::kLimit, "there are " + std::to_string(kAccountsMax) + " accounts already, the most there can be"};
  Issued token = issue_token(name, rng_);
  AccountRecord record{last_account_ + 1, std::string(name), clock.wall, token.secret_hash};
  if (auto s = engine_.open_account(record); !s) return s.error();
  StoreChange change;
  change.accounts.push_back(record);
  if (auto s = commit(change); !s) return s.error();
  last_account_ = record.id;
  account_names_[record.name] = record.id;
  accounts_[record.id].record = std::move(record);
  return CreatedAccount{std::string(name), std::move(token.text)};
}

Result<CreatedAccount> Directory::replace_token(Clock, std::string_view name) {
  AccountState* account = find_account(name);
  if (!account) return no_account(name);
  Issued token = issue_token(name, rng_);
  AccountRecord record = account->record;
  record.token_hash = token.secret_hash;
  StoreChange change;
  change.accounts.push_back(record);
  if (auto s = commit(change); !s) return s.error();
  account->record = std::move(record);
  return CreatedAccount{std::string(name), std::move(token.text)};
}

Result<std::vector<AccountInfo>> Directory::list_accounts(Clock) {
  std::vector<AccountInfo> out;
  for (const auto& [name, id] : account_names_) {
    const AccountState& account = accounts_.at(id);
    AccountInfo info{name, account.record.created, account.members.size(), 0};
    for (const auto& [node_id, member] : account.members) info.online += member->online ? 1u : 0u;
    for (const auto& [device_id, device] : account.devices) info.devices += waits_to_join(account, device) ? 1u : 0u;
    out.push_back(std::move(info));
  }
  return out;
}

std::optional<std::string> Directory::account_of_token(std::string_view token) const {
  auto parsed = parse_token(token);
  if (!parsed) return std::nullopt;
  const AccountState* account = find_account(parsed->prefix);
  if (!account || !crypto::equal_secret(account->record.token_hash, parsed->secret_hash)) return std::nullopt;
  return parsed->prefix;
}

// ---- keys ------------------------------------------------------------------------------------------------------------

Result<KeyInfo> Directory::add_key(Clock clock, AccountState& account, const KeyOptions& options) {
  Duration lifetime = options.lifetime.value_or(kKeyLifetimeDefault);
  if (lifetime <= 0s || lifetime > kKeyLifetimeMax)
    return Error{ErrorCode::kInvalid, "key lifetime: it must be more than 0 and at most 10 years"};
  StoreChange change;
  AuthKeyRecord record;
  record.id = last_key_ + 1;
  record.account = account.record.id;
  record.device_id = options.device_id;
  record.reusable = options.reusable;
  record.ephemeral = options.ephemeral;
  record.created = clock.wall;
  record.expires = clock.wall + lifetime;

  // Keys that can admit nobody any more make room; they stay only as long as their device or node names them.
  for (KeyId id : account.keys) {
    const AuthKeyRecord& key = keys_.at(id);
    bool dead = key.revoked || (key.used && !key.reusable) || !not_expired(key, clock.wall);
    if (dead && key.device_id.empty() && account.keys.size() - change.removed_keys.size() >= kKeysPerAccountMax)
      change.removed_keys.push_back(id);
  }
  if (account.keys.size() - change.removed_keys.size() >= kKeysPerAccountMax)
    return Error{ErrorCode::kLimit, "account \"" + account.record.name + "\" has " + std::to_string(kKeysPerAccountMax) +
                                        " keys, the most there can be"};

  std::optional<DeviceRecord> device;
  if (!options.device_id.empty()) {
    device = DeviceRecord{account.record.id, options.device_id, 1, record.id, clock.wall, 0};
    if (auto old = account.devices.find(options.device_id); old != account.devices.end()) {
      device->generation = old->second.generation + 1;
      device->created = old->second.created;
      device->node = old->second.node;
      if (const AuthKeyRecord* key = device_key_record(old->second)) {
        if (live(*key, clock.wall))
          if (auto s = engine_.retire_key(account.record, *key); !s) return s.error();
        change.removed_keys.push_back(key->id);
      }
    }
    change.devices.push_back(*device);
  }
  auto issued = engine_.issue_key(account.record, record, device ? device->generation : 0);
  if (!issued) return issued.error();
  record.prefix = issued->prefix;
  record.secret_hash = issued->secret_hash;
  record.sealed = std::move(issued->sealed);
  change.keys.push_back(record);
  if (auto s = commit(change); !s) {
    (void)engine_.retire_key(account.record, record);  // nobody has seen it
    return s.error();
  }

  for (KeyId id : change.removed_keys) {
    auto it = keys_.find(id);
    if (it == keys_.end()) continue;
    key_prefixes_.erase(it->second.prefix);
    account.keys.erase(id);
    keys_.erase(it);
  }
  last_key_ = record.id;
  account.keys.insert(record.id);
  key_prefixes_[record.prefix] = record.id;
  if (device) account.devices[device->device_id] = *device;
  KeyInfo info{std::move(issued->text), record.expires};
  keys_[record.id] = std::move(record);
  return info;
}

Result<KeyInfo> Directory::key_create(Clock clock, std::string_view name, const KeyOptions& options) {
  AccountState* account = find_account(name);
  if (!account) return no_account(name);
  if (options.device_id.empty()) return add_key(clock, *account, options);
  if (auto s = check_device_id(options.device_id); !s) return s.error();
  if (options.reusable) return Error{ErrorCode::kInvalid, "a key for one device cannot be reusable"};
  if (options.lifetime || options.ephemeral) {
    if (account->device_nodes.contains(options.device_id))
      return Error{ErrorCode::kAlreadyExists, "device \"" + options.device_id + "\" has joined already; revoke it first"};
    return add_key(clock, *account, options);
  }
  auto key = device_key(clock, name, options.device_id, false);
  if (!key) return key.error();
  return KeyInfo{std::move(key->key), key->expires};
}

Result<DeviceKey> Directory::device_key(Clock clock, std::string_view name, std::string_view device_id, bool replace) {
  AccountState* account = find_account(name);
  if (!account) return no_account(name);
  if (auto s = check_device_id(device_id); !s) return s.error();
  if (Match what = match_device(*account, device_id); replace && what.account)
    if (auto s = revoke(clock, what); !s) return s.error();

  DeviceKey out;
  auto device = account->devices.find(device_id);
  if (device != account->devices.end()) {
    const AuthKeyRecord* key = device_key_record(device->second);
    bool joined = account->device_nodes.contains(device_id);
    bool usable = key && live(*key, clock.wall);
    // A node whose node key expired must join again and needs a live key for it; others have what they need.
    bool settled = joined && !account->device_nodes.find(device_id)->second->expired(clock.wall);
    if (key && (usable || settled)) {
      auto text = engine_.key_text(device->second, *key);
      if (!text) return text.error();
      out.key = std::move(*text);
      if (usable) out.expires = key->expires;
      out.device = joined ? describe(clock, *account, *account->device_nodes.find(device_id)->second)
                          : describe(clock, *account, device->second);
      return out;
    }
  }
  KeyOptions options;
  options.device_id = std::string(device_id);
  options.lifetime = kDeviceKeyLifetime;
  auto key = add_key(clock, *account, options);
  if (!key) return key.error();
  out.key = std::move(key->key);
  out.expires = key->expires;
  out.device = describe(clock, *account, account->devices.find(device_id)->second);
  out.created = true;
  return out;
}

// ---- devices -----------------------------------------------------------------------------------------------------

DeviceInfo Directory::describe(Clock clock, const AccountState& account, const Member& member) const {
  const NodeRecord& r = member.record;
  DeviceInfo info;
  info.account = account.record.name;
  info.device_id = r.device_id;
  info.state = member.expired(clock.wall) ? DeviceState::kExpired : DeviceState::kEnrolled;
  info.node_id = r.id;
  info.name = r.label;
  info.fqdn = r.label + "." + suffix(account.record);
  for (const IpAddress& address : {r.ipv4, r.ipv6})
    if (address.is_valid()) info.addresses.push_back(address);
  info.node_key = r.node_key;
  info.os = r.hostinfo.os;
  info.hostname = r.hostinfo.hostname;
  info.version = r.hostinfo.ipn_version;
  info.online = member.online;
  info.ephemeral = r.ephemeral;
  info.home_relay = r.home_relay;
  info.endpoints = r.endpoints;
  info.created = r.created;
  info.last_seen = r.last_seen;
  info.key_expiry = r.key_expiry;
  return info;
}

DeviceInfo Directory::describe(Clock clock, const AccountState& account, const DeviceRecord& device) const {
  DeviceInfo info;
  info.account = account.record.name;
  info.device_id = device.device_id;
  info.created = device.created;
  const AuthKeyRecord* key = device_key_record(device);
  info.state = key && live(*key, clock.wall) ? DeviceState::kInvited : DeviceState::kLapsed;
  if (key) info.key_expires = key->expires;
  return info;
}

Result<std::vector<DeviceInfo>> Directory::devices_list(Clock clock, std::string_view name) {
  std::vector<DeviceInfo> out;
  auto add = [&](const AccountState& account) {
    for (const auto& [id, member] : account.members) out.push_back(describe(clock, account, *member));
    for (const auto& [device_id, device] : account.devices)
      if (waits_to_join(account, device)) out.push_back(describe(clock, account, device));
  };
  if (name.empty()) {
    for (const auto& [account_name, id] : account_names_) add(accounts_.at(id));
  } else {
    const AccountState* account = find_account(name);
    if (!account) return no_account(name);
    add(*account);
  }
  return out;
}

Status Directory::revoke(Clock clock, std::string_view name, std::string_view id) {
  NodeId number = 0;
  auto [end, problem] = std::from_chars(id.data(), id.data() + id.size(), number);
  bool is_number = problem == std::errc() && end == id.data() + id.size();

  std::vector<Match> matches;
  bool revoked_already = false;
  // By device id first; the number of a node always leads to it, whatever ids devices have chosen.
  auto look = [&](AccountState& account) {
    if (Match what = match_device(account, id); what.account) {
      matches.push_back(what);
    } else if (is_number && account.members.contains(number)) {
      Member* member = account.members.at(number);
      auto own = account.devices.find(member->record.device_id);
      matches.push_back({&account, member, own == account.devices.end() ? nullptr : &own->second});
    } else {
      revoked_already |= account.devices.contains(id);
    }
  };
  if (name.empty()) {
    for (auto& [account_id, account] : accounts_) look(account);
  } else {
    AccountState* account = find_account(name);
    if (!account) return no_account(name);
    look(*account);
  }
  if (matches.empty())
    return Error{ErrorCode::kNotFound, "device \"" + std::string(id) + "\" " + (revoked_already ? "is revoked already" : "does not exist")};
  if (matches.size() > 1)
    return Error{ErrorCode::kInvalid, "device \"" + std::string(id) + "\" exists in several accounts; name the account"};

  return revoke(clock, matches.front());
}

Directory::Match Directory::match_device(AccountState& account, std::string_view device_id) {
  auto device = account.devices.find(device_id);
  auto node = account.device_nodes.find(device_id);
  const bool joined = node != account.device_nodes.end();
  if (!joined && (device == account.devices.end() || !waits_to_join(account, device->second))) return {};
  return {&account, joined ? node->second : nullptr, device == account.devices.end() ? nullptr : &device->second};
}

Status Directory::revoke(Clock clock, const Match& match) {
  StoreChange change;
  const AuthKeyRecord* device_key = match.device ? device_key_record(*match.device) : nullptr;
  if (auto s = engine_.revoke(match.account->record, device_key, match.member ? &match.member->record : nullptr); !s) return s;
  if (match.device) {
    // The record stays: its generation keeps the next key from being this one.
    if (device_key && !device_key->revoked) {
      change.keys.push_back(*device_key);
      change.keys.back().revoked = true;
    }
  }
  if (match.member) return remove_with(clock, match.member->record, std::move(change));
  if (auto s = commit(change); !s) return s;
  for (auto& key : change.keys) keys_[key.id] = std::move(key);
  return {};
}

Status Directory::remove(Clock clock, NodeId id) {
  Member* member = find(id);
  if (!member) return {};
  return remove_with(clock, member->record, {});
}

Status Directory::remove_with(Clock clock, const NodeRecord& reference, StoreChange change) {
  NodeRecord record = reference;  // the argument dies with the member
  change.removed_nodes.push_back(record.id);
  if (auto s = commit(change); !s) return s;
  for (auto& key : change.keys) keys_[key.id] = std::move(key);
  forget(clock, record);
  return {};
}

void Directory::forget(Clock clock, const NodeRecord& record) {
  AccountState& account = accounts_.at(record.account);
  if (members_.at(record.id)->online) --online_;
  account.members.erase(record.id);
  account.labels.erase(record.label);
  if (auto it = account.device_nodes.find(record.device_id);
      it != account.device_nodes.end() && it->second->record.id == record.id)
    account.device_nodes.erase(it);
  by_node_key_.erase(record.node_key);
  by_machine_.erase({record.account, record.machine});
  if (record.ipv4.is_v4()) addresses_.release(record.ipv4);
  unsaved_.erase(record.id);
  members_.erase(record.id);
  if (listener_) {
    listener_->node_key_retired(record.node_key);
    listener_->node_removed(clock, record);
  }
}

// ---- another engine's keys and nodes ---------------------------------------------------------------------------------

Status Directory::mirror(Clock clock, const std::vector<EngineKey>& keys, std::vector<EngineNode> nodes) {
  StoreChange change;
  change.durable = false;  // it would only be read again
  std::map<std::string_view, const EngineKey*> there;
  for (const EngineKey& key : keys) there[key.prefix] = &key;
  for (const auto& [id, key] : keys_) {
    if (!live(key, clock.wall)) continue;
    AuthKeyRecord now = key;
    auto it = there.find(key.prefix);
    if (it == there.end()) now.revoked = true;
    else if (it->second->used && !key.reusable) now.used = true;
    else if (!it->second->live) now.expires = clock.wall;
    if (now != key) change.keys.push_back(std::move(now));
  }

  std::vector<std::unique_ptr<Member>> members;
  std::set<NodeId> ids;
  std::set<NodePublic> node_keys;
  std::set<std::pair<AccountId, std::string>> taken;  // devices that have their node
  for (EngineNode& node : nodes) {
    auto key = key_prefixes_.find(node.key_prefix);
    const AuthKeyRecord* record = key == key_prefixes_.end() ? nullptr : &keys_.at(key->second);
    AccountState* account = record ? &accounts_.at(record->account) : find_account(node.account);
    if (!account || !ids.insert(node.record.id).second || !node_keys.insert(node.record.node_key).second) continue;
    auto member = std::make_unique<Member>();
    member->record = std::move(node.record);
    member->connected = node.online;
    member->online = node.online && !member->expired(clock.wall);
    NodeRecord& r = member->record;
    r.account = account->record.id;
    DeviceRecord* device = nullptr;
    if (record && !record->device_id.empty()) {
      auto it = account->devices.find(record->device_id);
      if (it != account->devices.end()) device = &it->second;
    }
    if (!device)
      for (auto& [name, candidate] : account->devices)
        if (candidate.node == r.id) device = &candidate;
    if (record) r.auth_key = record->id;
    if (device && taken.insert({r.account, device->device_id}).second) {
      r.device_id = device->device_id;
      if (device->node != r.id) {
        change.devices.push_back(*device);
        change.devices.back().node = r.id;
      }
    }
    members.push_back(std::move(member));
  }

  if (!change.keys.empty() || !change.devices.empty())
    if (auto s = commit(change); !s) return s;
  for (AuthKeyRecord& key : change.keys) keys_[key.id] = std::move(key);
  for (DeviceRecord& device : change.devices) accounts_.at(device.account).devices[device.device_id] = device;
  std::vector<NodeRecord> before;
  for (const auto& [id, member] : members_) before.push_back(member->record);
  for (const NodeRecord& record : before) forget(clock, record);
  for (auto& member : members) {
    online_ += member->online ? 1u : 0u;
    attach(std::move(member));
  }
  return {};
}

// ---- what nodes report -----------------------------------------------------------------------------------------------

void Directory::update(Clock clock, Member& member, const ts2021::MapRequest& request) {
  NodeRecord& r = member.record;
  NodeChanges changes = 0;
  if (request.endpoints) {
    auto endpoints = usable_endpoints(*request.endpoints);
    if (endpoints != r.endpoints) {
      r.endpoints = std::move(endpoints);
      changes |= kEndpointsChanged;
    }
  }
  if (!request.disco_key.is_zero() && request.disco_key != r.disco_key) {
    r.disco_key = request.disco_key;
    changes |= kDiscoKeyChanged;
  }
  if (request.version != 0 && request.version != r.cap) {
    r.cap = request.version;
    changes |= kNodeChanged;
  }
  if (request.hostinfo) {
    const auto& net = request.hostinfo->net_info;
    if (net && net->preferred_derp > 0 && net->preferred_derp != r.home_relay) {
      r.home_relay = net->preferred_derp;
      changes |= kHomeRelayChanged;
    }
    auto seen = hostinfo_for_peers(*request.hostinfo);
    if (seen != r.hostinfo) {
      if (seen.hostname != r.hostinfo.hostname) {
        AccountState& account = accounts_.at(r.account);
        std::string label = unique_label(account, seen.hostname, r.label);
        if (label != r.label) {
          account.labels.erase(r.label);
          account.labels.insert(label);
          r.label = std::move(label);
        }
      }
      r.hostinfo = std::move(seen);
      changes |= kNodeChanged | kSelfChanged;
    }
  }
  changed(clock, member, changes, true);
}

void Directory::adopt_disco_key(Clock clock, Member& member, const DiscoPublic& key, int version) {
  NodeChanges changes = 0;
  if (!key.is_zero() && member.record.disco_key.is_zero()) {
    member.record.disco_key = key;
    changes |= kDiscoKeyChanged;
  }
  if (member.record.cap == 0 && version > 0) {
    member.record.cap = version;
    changes |= kNodeChanged;
  }
  changed(clock, member, changes, true);
}

void Directory::set_connected(Clock clock, Member& member, bool connected) {
  member.connected = connected;
  changed(clock, member, refresh_online(clock, member), !connected);
}

NodeChanges Directory::refresh_online(Clock clock, Member& member) {
  bool online = member.connected && !member.expired(clock.wall);
  if (member.online == online) return 0;
  member.online = online;
  if (online) {
    ++online_;
  } else {
    --online_;
    member.record.last_seen = clock.wall;
  }
  return kOnlineChanged;
}

void Directory::expiry_reached(Clock clock, Member& member) {
  if (listener_) listener_->node_key_retired(member.record.node_key);
  bool last_seen_changed = refresh_online(clock, member) != 0;
  changed(clock, member, kNodeChanged | kSelfChanged, last_seen_changed);
}

Status Directory::save() {
  if (unsaved_.empty()) return {};
  StoreChange change;
  change.durable = false;
  for (NodeId id : unsaved_) change.nodes.push_back(members_.at(id)->record);
  if (auto s = commit(change); !s) return s;
  for (NodeId id : unsaved_) members_.at(id)->dirty = false;
  unsaved_.clear();
  return {};
}

Health Directory::health() const {
  Health h;
  h.accounts = accounts_.size();
  h.nodes = members_.size();
  h.online = online_;
  if (store_problem_) {
    h.ok = false;
    h.problem = store_problem_->message;
  }
  return h;
}

}  // namespace porthole::coordinator
