#include "remote/headscale_engine.h"

#include <algorithm>
#include <charconv>

#include "crypto/aead.h"
#include "crypto/hash.h"
#include "remote/headscale_isolation.h"

namespace porthole::remote {

using coordinator::AccountRecord;
using coordinator::AuthKeyRecord;
using coordinator::DeviceRecord;
using coordinator::Issued;
using coordinator::NodeRecord;

namespace {

constexpr std::size_t kNonceSize = 24;

// To whoever called, what Headscale does not have is not the thing that was asked for.
Error not_ours(Error e) {
  if (e.code == ErrorCode::kNotFound) e.code = ErrorCode::kUnavailable;
  return e;
}

}  // namespace

std::string headscale_user_of(std::string_view account) { return std::string(kAccountUserPrefix) + std::string(account); }

HeadscaleEngine::HeadscaleEngine(HeadscaleApi& api, const crypto::SecretBytes<32>& server_secret, Rng& rng, Timing timing,
                                 std::function<void(std::chrono::milliseconds)> pause)
    : api_(api), rng_(rng), timing_(timing), pause_(std::move(pause)) {
  crypto::hkdf_blake2s(server_secret.reveal(), as_bytes("porthole sealed key 1"), sealing_key_.writable());
}

Result<HeadscaleUser> HeadscaleEngine::user_of(const std::string& account) {
  std::string name = headscale_user_of(account);
  auto users = api_.users();
  if (!users) return not_ours(users.error());
  for (const HeadscaleUser& u : *users)
    if (u.name == name) return u;
  // Deleted there by hand: a new one is empty, so nobody is joined to anybody.
  auto made = api_.create_user(name);
  if (!made) return not_ours(made.error());
  return made;
}

Status HeadscaleEngine::open_account(const AccountRecord& account) {
  std::string name = headscale_user_of(account.name);
  auto users = api_.users();
  if (!users) return not_ours(users.error());
  auto same = [&](const HeadscaleUser& u) { return u.name == name; };
  if (std::none_of(users->begin(), users->end(), same)) {
    auto made = api_.create_user(name);
    return made ? Status() : Status(not_ours(made.error()));
  }
  // Made by an attempt that got no further; or somebody's. Whoever can join it already would join this account.
  auto keys = api_.keys();
  if (!keys) return not_ours(keys.error());
  auto nodes = api_.nodes();
  if (!nodes) return not_ours(nodes.error());
  bool empty = std::none_of(nodes->begin(), nodes->end(), [&](const HeadscaleNode& n) { return n.user == name; }) &&
               std::none_of(keys->begin(), keys->end(), [&](const HeadscaleKey& k) {
                 return k.user == name && k.expires > account.created;
               });
  if (empty) return {};
  return Error{ErrorCode::kAlreadyExists, "Headscale has a user \"" + name + "\" with devices or keys that this service does not "
                                          "know; choose another name for the account, or rename or clear that user there"};
}

Result<Issued> HeadscaleEngine::issue_key(const AccountRecord& account, const AuthKeyRecord& key, std::int64_t) {
  auto user = user_of(account.name);
  if (!user) return user.error();
  auto text = api_.create_key(user->id, key.reusable, key.ephemeral, key.expires.value_or(WallTime()));
  if (!text) return not_ours(text.error());
  Issued issued;
  issued.prefix = headscale_key_prefix(text->reveal());
  issued.secret_hash = crypto::sha256(as_bytes(text->reveal()));
  if (!key.device_id.empty()) {
    issued.sealed.resize(kNonceSize + text->reveal().size() + crypto::kAeadTagSize);
    MutBytes sealed(issued.sealed);
    rng_.fill(sealed.first(kNonceSize));
    crypto::xaead_seal(sealing_key_.reveal(), sealed.first(kNonceSize), as_bytes(issued.prefix), as_bytes(text->reveal()),
                       sealed.subspan(kNonceSize));
  }
  issued.text = std::move(*text);
  return issued;
}

Result<crypto::SecretText> HeadscaleEngine::key_text(const DeviceRecord& device, const AuthKeyRecord& key) const {
  Bytes sealed(key.sealed);
  if (sealed.size() > kNonceSize + crypto::kAeadTagSize) {
    ByteVector plain(sealed.size() - kNonceSize - crypto::kAeadTagSize);
    bool good = crypto::xaead_open(sealing_key_.reveal(), sealed.first(kNonceSize), as_bytes(key.prefix),
                                   sealed.subspan(kNonceSize), plain);
    crypto::SecretText text(as_text(plain));
    crypto::wipe(plain);
    if (good) return text;
  }
  return Error{ErrorCode::kInternal, "the key of device \"" + device.device_id + "\" cannot be read (is server.secret another one than "
                                     "it was?); revoke the device, then it gets a new one"};
}

Result<std::optional<HeadscaleKey>> HeadscaleEngine::find_key(const std::string& prefix) {
  auto keys = api_.keys();
  if (!keys) return not_ours(keys.error());
  for (HeadscaleKey& k : *keys)
    if (k.prefix == prefix) return std::optional(std::move(k));
  return std::optional<HeadscaleKey>();
}

Status HeadscaleEngine::retire_key(const AccountRecord&, const AuthKeyRecord& key) {
  auto there = find_key(key.prefix);
  if (!there) return there.error();
  if (!*there) return {};
  if (auto s = api_.expire_key((*there)->id); !s) return not_ours(s.error());
  return {};
}

Status HeadscaleEngine::revoke(const AccountRecord& account, const AuthKeyRecord* key, const NodeRecord* node) {
  std::optional<HeadscaleKey> there;
  if (key) {
    auto found = find_key(key->prefix);
    if (!found) return found.error();
    there = std::move(*found);
    if (there)
      if (auto s = api_.expire_key(there->id); !s) return not_ours(s.error());
  }
  // From here on nobody comes in with the key; who came in before is in the list.
  std::string user = headscale_user_of(account.name);
  auto revoked = [&](const HeadscaleNode& n) {
    if (node && n.id == std::to_string(node->id)) return true;
    if (node && n.machine == node->machine && n.user == user) return true;
    return key && !key->device_id.empty() && n.key_prefix == key->prefix;
  };
  bool online = false;
  auto collect = [&]() -> Result<std::vector<std::string>> {
    auto nodes = api_.nodes();
    if (!nodes) return not_ours(nodes.error());
    std::vector<std::string> ids;
    for (const auto& n : *nodes)
      if (revoked(n)) {
        ids.push_back(n.id);
        online = online || n.online;
      }
    return ids;
  };
  auto ids = collect();
  if (!ids) return ids.error();
  // Expired first: peers drop it and it learns itself that it is out. Deleted then: that survives a restart of Headscale. A
  // node that is gone already answers with errors of several kinds, so what counts is the list.
  for (const std::string& id : *ids) (void)api_.expire_node(id);
  if (online) pause_(timing_.expiry_grace);  // else nobody is there to be told
  for (int round = 0; !ids->empty(); ++round) {
    constexpr int kRounds = 3;
    Status last;
    for (const std::string& id : *ids) last = api_.delete_node(id);
    ids = collect();
    if (!ids) return ids.error();
    if (round == kRounds && !ids->empty())
      return last ? Status(Error{ErrorCode::kUnavailable, "Headscale at " + api_.url() + " does not delete node " + ids->front()})
                  : Status(not_ours(last.error()));
  }
  if (there) (void)api_.delete_key(there->id);  // it has expired: this is only tidier
  return {};
}

Status HeadscaleEngine::approve(const std::string& account, std::string_view id) {
  auto user = user_of(account);
  if (!user) return user.error();
  auto s = api_.register_node(user->name, std::string(id));
  return s ? Status() : Status(not_ours(s.error()));
}

Result<HeadscaleEngine::Snapshot> HeadscaleEngine::snapshot(WallTime wall) {
  auto keys = api_.keys();
  if (!keys) return not_ours(keys.error());
  auto nodes = api_.nodes();
  if (!nodes) return not_ours(nodes.error());
  Snapshot out;
  for (const HeadscaleKey& k : *keys) out.keys.push_back({k.prefix, k.used, k.expires > wall});
  for (HeadscaleNode& n : *nodes) {
    coordinator::EngineNode e;
    if (n.user.starts_with(kAccountUserPrefix)) e.account = n.user.substr(kAccountUserPrefix.size());
    e.key_prefix = n.key_prefix;
    e.online = n.online;
    NodeRecord& r = e.record;
    auto [end, problem] = std::from_chars(n.id.data(), n.id.data() + n.id.size(), r.id);
    if (problem != std::errc() || r.id == 0) continue;
    r.machine = n.machine;
    r.node_key = n.node_key;
    r.disco_key = n.disco_key;
    for (const IpAddress& a : n.addresses) (a.is_v4() ? r.ipv4 : r.ipv6) = a;
    r.label = n.name;
    r.hostinfo.hostname = n.hostname;
    r.ephemeral = n.ephemeral;
    r.created = n.created;
    r.key_expiry = n.expiry;
    r.last_seen = n.last_seen;
    out.nodes.push_back(std::move(e));
  }
  return out;
}

}  // namespace porthole::remote
