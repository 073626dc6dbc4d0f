// Registration (control protocol, sections 5.2 to 5.4): who may become, stay or stop being a node.
#include <algorithm>

#include "coordinator/directory.h"
#include "coordinator/limits.h"
#include "coordinator/names.h"

namespace porthole::coordinator {
namespace {

constexpr std::string_view kRegisterPagePath = "/register/";

RegisterOutcome refuse(std::string message) {
  RegisterOutcome out;
  out.response.error = std::move(message);
  return out;
}
RegisterOutcome store_failed() { return {500, "internal server error: the store cannot be written\n", {}, {}}; }
RegisterOutcome accept(ts2021::RegisterResponse response) { return {200, {}, std::move(response), {}}; }

// The id in an AuthURL of ours, empty for anything else.
std::string_view pending_id_of(std::string_view url) {
  std::size_t at = url.rfind(kRegisterPagePath);
  return at == std::string_view::npos ? std::string_view() : url.substr(at + kRegisterPagePath.size());
}

}  // namespace

std::string Directory::unique_label(const AccountState& account, std::string_view hostname, std::string_view own) const {
  std::string base = dns_label(hostname);
  std::string label = base;
  for (unsigned n = 1; label != own && account.labels.contains(label); ++n) label = numbered_label(base, n);
  return label;
}

ts2021::RegisterResponse Directory::accepted(const Member& member) {
  const AccountRecord& account = accounts_.at(member.record.account).record;
  ts2021::RegisterResponse r;
  r.user.id = account.id;
  r.user.display_name = account.name;
  r.user.created = account.created;
  r.login.id = account.id;
  r.login.provider = "porthole";
  r.login.login_name = account.name + "@" + config_.base_domain;
  r.login.display_name = account.name;
  r.machine_authorized = true;
  return r;
}

RegisterOutcome Directory::register_node(Clock clock, const MachinePublic& machine,
                                         const ts2021::RegisterRequest& request) {
  if (request.version < kClientVersionMin)
    return {400, "unsupported client version:  (" + std::to_string(request.version) + ")\n", {}, {}};
  if (request.node_key.is_zero()) return refuse("the request has no node key");
  Member* existing = find_by_node_key(request.node_key);
  if (existing && existing->record.machine != machine) return refuse("node key already in use by another machine");

  // Log-out comes before the key: a client that leaves may still carry one.
  if (request.expiry && *request.expiry <= clock.wall) return log_out(clock, existing);

  if (!request.followup.empty()) {
    auto it = pending_.find(pending_id_of(request.followup));
    if (it != pending_.end() && it->second.machine == machine && it->second.node_key == request.node_key &&
        it->second.expires > clock.wall) {
      RegisterOutcome out;
      out.wait_for = it->first;
      return out;
    }
    if (existing && !existing->expired(clock.wall)) return accept(accepted(*existing));
    return register_interactive(clock, machine, request);
  }

  if (existing && !existing->expired(clock.wall)) {
    // A restart. The key that the client may still carry was spent by this very node; it is not looked at, unless it is
    // another account's.
    if (request.auth_key.empty()) {
      if (request.expiry) return refuse("extending key is not allowed");
    } else if (auto parsed = parse_auth_key(request.auth_key.reveal())) {
      auto id = key_prefixes_.find(parsed->prefix);
      if (id != key_prefixes_.end() && keys_.at(id->second).account != existing->record.account &&
          crypto::equal_secret(keys_.at(id->second).secret_hash, parsed->secret_hash))
        return refuse("this node belongs to another account than the key; log out first");
    }
    return accept(accepted(*existing));
  }
  if (!request.auth_key.empty()) return register_with_key(clock, machine, request);
  if (existing) {
    RegisterOutcome out = accept(accepted(*existing));
    out.response.node_key_expired = true;
    out.response.machine_authorized = false;
    return out;
  }
  return register_interactive(clock, machine, request);
}

RegisterOutcome Directory::log_out(Clock clock, Member* existing) {
  RegisterOutcome out;
  out.response.node_key_expired = true;
  if (!existing) return out;
  if (existing->record.ephemeral) {
    if (!remove(clock, existing->record.id)) return store_failed();
    return out;
  }
  out.response = accepted(*existing);
  out.response.node_key_expired = true;
  if (existing->expired(clock.wall)) return out;
  StoreChange change;
  change.nodes.push_back(existing->record);
  change.nodes.back().key_expiry = clock.wall;
  if (!commit(change)) return store_failed();
  existing->record.key_expiry = clock.wall;
  expiry_reached(clock, *existing);
  return out;
}

RegisterOutcome Directory::register_with_key(Clock clock, const MachinePublic& machine,
                                             const ts2021::RegisterRequest& request) {
  auto parsed = parse_auth_key(request.auth_key.reveal());
  auto id = parsed ? key_prefixes_.find(parsed->prefix) : key_prefixes_.end();
  if (id == key_prefixes_.end()) return refuse("invalid pre auth key");
  const AuthKeyRecord& key = keys_.at(id->second);
  if (!crypto::equal_secret(key.secret_hash, parsed->secret_hash)) return refuse("invalid pre auth key");
  if (key.revoked) return refuse("authkey revoked");
  if (key.used && !key.reusable) return refuse("authkey already used");
  if (key.expires && *key.expires <= clock.wall) return refuse("authkey expired");
  if (request.hostinfo && !request.hostinfo->request_tags.empty()) {
    std::string tags;
    for (const auto& tag : request.hostinfo->request_tags) tags += (tags.empty() ? "" : " ") + tag.substr(0, kHostinfoTextMax);
    return refuse("requested tags [" + tags + "] are invalid or not permitted");
  }
  Owner owner{&accounts_.at(key.account), &key};
  auto member = admit(clock, owner, machine, request.node_key, request.hostinfo.value_or(ts2021::Hostinfo()),
                      request.version, key.ephemeral || request.ephemeral, request.expiry);
  if (!member) {
    if (member.error().code == ErrorCode::kIo) return store_failed();
    return refuse(member.error().message);
  }
  return accept(accepted(**member));
}

RegisterOutcome Directory::register_interactive(Clock clock, const MachinePublic& machine,
                                                const ts2021::RegisterRequest& request) {
  expire_pending(clock);
  Pending* pending = nullptr;
  for (auto& [id, p] : pending_)
    if (p.machine == machine) pending = &p;
  if (!pending) {
    if (pending_.size() >= kPendingMax) return {503, "too many logins wait for approval; try again later\n", {}, {}};
    std::uint8_t random[12];
    rng_.fill(random);
    std::string id = to_hex(random);
    pending = &pending_[id];
    pending->id = id;
    pending->machine = machine;
    pending->expires = clock.wall + kPendingLifetime;
  }
  pending->node_key = request.node_key;
  pending->version = request.version;
  pending->ephemeral = request.ephemeral;
  pending->hostinfo = hostinfo_for_peers(request.hostinfo.value_or(ts2021::Hostinfo()));
  RegisterOutcome out;
  out.response.auth_url = config_.public_url + std::string(kRegisterPagePath) + pending->id;
  return out;
}

ts2021::RegisterRequest needed_later(const ts2021::RegisterRequest& request) {
  ts2021::RegisterRequest out;
  out.version = request.version;
  out.node_key = request.node_key;
  out.ephemeral = request.ephemeral;
  if (request.hostinfo) out.hostinfo = hostinfo_for_peers(*request.hostinfo);
  return out;
}

RegisterOutcome Directory::decided(Clock clock, const MachinePublic& machine, const ts2021::RegisterRequest& request) {
  Member* member = find_by_node_key(request.node_key);
  if (member && member->record.machine == machine && !member->expired(clock.wall)) return accept(accepted(*member));
  return register_interactive(clock, machine, request);
}

std::optional<PendingInfo> Directory::pending(Clock clock, std::string_view id) const {
  auto it = pending_.find(id);
  if (it == pending_.end() || it->second.expires <= clock.wall) return std::nullopt;
  return PendingInfo{it->second.id, it->second.hostinfo.hostname, it->second.hostinfo.os, it->second.expires};
}

Result<DeviceInfo> Directory::approve(Clock clock, std::string_view name, std::string_view pending_id) {
  AccountState* account = find_account(name);
  if (!account) return Error{ErrorCode::kNotFound, "account \"" + std::string(name) + "\" does not exist"};
  auto it = pending_.find(pending_id);
  if (it == pending_.end() || it->second.expires <= clock.wall)
    return Error{ErrorCode::kNotFound, "no login waits under \"" + std::string(pending_id) +
                                           "\"; it is too old or was approved already"};
  Pending pending = it->second;
  auto member = admit(clock, {account, nullptr}, pending.machine, pending.node_key, pending.hostinfo, pending.version,
                      pending.ephemeral, std::nullopt);
  if (!member) return member.error();
  pending_.erase(pending.id);
  if (listener_) listener_->pending_decided(clock, pending.id);
  return describe(clock, *account, **member);
}

void Directory::expire_pending(Clock clock) {
  std::vector<std::string> old;
  for (const auto& [id, p] : pending_)
    if (p.expires <= clock.wall) old.push_back(id);
  for (const auto& id : old) pending_.erase(id);
  if (listener_)
    for (const auto& id : old) listener_->pending_decided(clock, id);
}

std::optional<WallTime> Directory::next_pending_expiry() const {
  std::optional<WallTime> first;
  for (const auto& [id, p] : pending_)
    if (!first || p.expires < *first) first = p.expires;
  return first;
}

Result<Member*> Directory::admit(Clock clock, const Owner& owner, const MachinePublic& machine,
                                 const NodePublic& node_key, const ts2021::Hostinfo& hostinfo, int version,
                                 bool ephemeral, std::optional<WallTime> key_expiry) {
  AccountState& account = *owner.account;
  Member* member = find_by_machine(account, machine);
  if (Member* other = find_by_node_key(node_key); other && other != member)
    return Error{ErrorCode::kAlreadyExists, "this node key belongs to a node of another account; log out first"};

  StoreChange change;
  change.durable = false;
  if (owner.key && !owner.key->reusable) {
    change.keys.push_back(*owner.key);
    change.keys.back().used = true;
  }
  NodeRecord record;
  if (member) {
    record = member->record;
  } else {
    if (account.members.size() >= kNodesPerAccountMax)
      return Error{ErrorCode::kLimit, "account \"" + account.record.name + "\" has " +
                                          std::to_string(kNodesPerAccountMax) + " nodes, the most there can be"};
    auto addresses = addresses_.allocate();
    if (!addresses) return Error{ErrorCode::kLimit, "all tailnet addresses are in use"};
    record.id = last_node_ + 1;
    record.account = account.record.id;
    record.machine = machine;
    record.ipv4 = addresses->ipv4;
    record.ipv6 = addresses->ipv6;
    record.created = clock.wall;
  }
  NodePublic old_key = record.node_key;
  std::string old_label = record.label;
  std::string old_device = record.device_id;
  record.node_key = node_key;
  record.hostinfo = hostinfo_for_peers(hostinfo);
  record.label = unique_label(account, record.hostinfo.hostname, old_label);
  record.cap = version;
  record.key_expiry = key_expiry;
  if (!member || owner.key) record.ephemeral = ephemeral;
  if (owner.key) {
    record.auth_key = owner.key->id;
    if (!owner.key->device_id.empty()) record.device_id = owner.key->device_id;
  }
  if (hostinfo.net_info && hostinfo.net_info->preferred_derp > 0) record.home_relay = hostinfo.net_info->preferred_derp;

  // One node per device: a device that lost its machine key and got a new pre-auth key leaves its old node behind.
  std::optional<NodeRecord> replaced;
  if (!record.device_id.empty())
    if (auto it = account.device_nodes.find(record.device_id); it != account.device_nodes.end() && it->second != member)
      replaced = it->second->record;

  change.nodes.push_back(record);
  if (replaced) change.removed_nodes.push_back(replaced->id);
  if (auto s = commit(change); !s) {
    if (!member) addresses_.release(record.ipv4);
    return s.error();
  }
  if (replaced) forget(clock, *replaced);
  if (!change.keys.empty()) keys_[change.keys.front().id].used = true;

  if (!member) {
    last_node_ = record.id;
    auto made = std::make_unique<Member>();
    member = made.get();
    made->record = std::move(record);
    attach(std::move(made));
    if (listener_) listener_->node_added(clock, *member);
    return member;
  }
  if (old_label != record.label) account.labels.erase(old_label);
  account.labels.insert(record.label);
  if (!old_device.empty() && old_device != record.device_id) account.device_nodes.erase(old_device);
  if (!record.device_id.empty()) account.device_nodes[record.device_id] = member;
  by_node_key_.erase(old_key);
  by_node_key_[record.node_key] = member;
  member->record = std::move(record);
  unsaved_.erase(member->record.id);
  member->dirty = false;
  if (listener_ && old_key != node_key) listener_->node_key_retired(old_key);
  refresh_online(clock, *member);
  changed(clock, *member, kNodeChanged | kSelfChanged, false);
  return member;
}

}  // namespace porthole::coordinator
