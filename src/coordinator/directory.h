// Everything the coordinator knows, in memory, and the rules by which it changes: enrolment (service.h), registration
// (control protocol, section 5.3), what nodes report about themselves (9.4).
//
// Each change goes to the store first, in one transaction, and then into memory; when the store refuses, nothing has
// happened. Only soft state (endpoints, home relay, Hostinfo, last seen) goes the other way round and is written within
// kPersistDelay. Accounts share nothing but the address pool and the id counters.
//
// No clock, and no I/O but the store's and the engine's (engine.h). Single-threaded. The listener is told after the change, and must not change the directory.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/log.h"
#include "base/rng.h"
#include "coordinator/addresses.h"
#include "coordinator/auth_keys.h"
#include "coordinator/engine.h"
#include "coordinator/service.h"
#include "coordinator/store.h"
#include "ts2021/messages.h"

namespace porthole::coordinator {

struct DirectoryConfig {
  std::string base_domain = "porthole.internal";  // of all node names; no trailing dot
  std::string public_url;                         // without trailing slash; for login links
  crypto::SecretBytes<32> server_secret;          // device keys are derived from it
  Engine* engine = nullptr;                       // null: embedded; must outlive the directory
  bool account_in_names = true;                   // NODE.ACCOUNT.DOMAIN; else NODE.DOMAIN
};

// What changed about a node, as bits.
using NodeChanges = std::uint32_t;
constexpr NodeChanges kEndpointsChanged = 1;
constexpr NodeChanges kHomeRelayChanged = 2;
constexpr NodeChanges kDiscoKeyChanged = 4;
constexpr NodeChanges kOnlineChanged = 8;
constexpr NodeChanges kNodeChanged = 16;  // anything else: peers need the whole node
constexpr NodeChanges kSelfChanged = 32;  // the node itself must learn of it

struct Member {
  NodeRecord record;
  bool connected = false; // has a map stream, or had one a moment ago
  bool online = false;    // connected, and its node key is good
  bool held_back = false; // new, and peers cannot reach it yet: they do not hear of it (the coordinator's)
  bool dirty = false;     // soft state not written yet
  std::string peer_json;  // as peers see it; empty: stale

  bool expired(WallTime wall) const { return record.key_expiry && *record.key_expiry <= wall; }
};

struct AccountState {
  AccountRecord record;
  std::map<NodeId, Member*> members;
  std::set<std::string, std::less<>> labels;
  std::map<std::string, DeviceRecord, std::less<>> devices;
  std::map<std::string, Member*, std::less<>> device_nodes;
  std::set<KeyId> keys;
};

class DirectoryListener {
 public:
  virtual ~DirectoryListener() = default;
  virtual void node_added(Clock clock, Member& member) = 0;
  virtual void node_changed(Clock clock, Member& member, NodeChanges changes) = 0;
  // The record is the last there was; the member is gone.
  virtual void node_removed(Clock clock, const NodeRecord& record) = 0;
  // This node key admits nobody any more (rotated, expired, revoked).
  virtual void node_key_retired(const NodePublic& key) = 0;
  // Approved, or dropped because it was too old.
  virtual void pending_decided(Clock clock, const std::string& pending_id) = 0;
};

struct RegisterOutcome {
  int status = 200;
  std::string text;                  // body when status is not 200
  ts2021::RegisterResponse response; // when 200 and not waiting
  std::string wait_for;              // pending id: answer when it has been decided
};

class Directory final : public Service {
 public:
  // Reads the store. Error: the store's.
  static Result<std::unique_ptr<Directory>> open(DirectoryConfig config, Store& store, Rng& rng, Log& log);
  void set_listener(DirectoryListener* listener) { listener_ = listener; }

  // ---- Service ----
  Result<CreatedAccount> create_account(Clock clock, std::string_view name) override;
  Result<CreatedAccount> replace_token(Clock clock, std::string_view account) override;
  Result<std::vector<AccountInfo>> list_accounts(Clock clock) override;
  bool has_account(std::string_view account) const override { return find_account(account) != nullptr; }
  std::optional<std::string> account_of_token(std::string_view token) const override;
  Result<KeyInfo> key_create(Clock clock, std::string_view account, const KeyOptions& options) override;
  Result<DeviceKey> device_key(Clock clock, std::string_view account, std::string_view device_id, bool replace) override;
  Result<std::vector<DeviceInfo>> devices_list(Clock clock, std::string_view account) override;
  Status revoke(Clock clock, std::string_view account, std::string_view id) override;
  std::optional<PendingInfo> pending(Clock clock, std::string_view id) const override;
  Result<DeviceInfo> approve(Clock clock, std::string_view account, std::string_view pending_id) override;
  Health health() const override;

  // ---- nodes, where another engine registers them ----
  // Takes over what it says: all keys, and all nodes of our accounts; whatever is not there is gone. Keys used, ended or
  // missing there are so here. Node records live in memory only; which device a node belongs to is stored.
  Status mirror(Clock clock, const std::vector<EngineKey>& keys, std::vector<EngineNode> nodes);

  // ---- nodes, for the coordinator ----
  // `machine` is the key that the Noise session proved.
  RegisterOutcome register_node(Clock clock, const MachinePublic& machine, const ts2021::RegisterRequest& request);
  // The answer to those who waited for a decided pending id, to their request or what needed_later() kept of it.
  RegisterOutcome decided(Clock clock, const MachinePublic& machine, const ts2021::RegisterRequest& request);
  Member* find_by_node_key(const NodePublic& key);
  Member* find(NodeId id);
  // Of an id in hand; the account exists as long as it has members.
  AccountState& account_of(const Member& member);
  const std::map<AccountId, AccountState>& accounts() const { return accounts_; }
  std::size_t node_count() const { return members_.size(); }

  // A lite update: stores what the node reports and tells the listener what peers must hear.
  void update(Clock clock, Member& member, const ts2021::MapRequest& request);
  // A stream of a node whose disco key is not known yet.
  void adopt_disco_key(Clock clock, Member& member, const DiscoPublic& key, int version);
  void set_connected(Clock clock, Member& member, bool connected);
  // Deletes the node (ephemeral ones); its device and keys stay.
  Status remove(Clock clock, NodeId id);
  // The node key's time has come: tells everyone.
  void expiry_reached(Clock clock, Member& member);

  std::string suffix(const AccountRecord& account) const {
    return config_.account_in_names ? account.name + "." + config_.base_domain : config_.base_domain;
  }
  std::string fqdn(const Member& member) const;  // with trailing dot
  const DirectoryConfig& config() const { return config_; }

  // ---- soft state ----
  bool has_unsaved() const { return !unsaved_.empty(); }
  // Writes what is unsaved, in one transaction. Error: kept for the next time.
  Status save();
  // Drops interactive logins that are too old.
  void expire_pending(Clock clock);
  std::optional<WallTime> next_pending_expiry() const;

 private:
  struct Pending {
    std::string id;
    MachinePublic machine;
    NodePublic node_key;
    ts2021::Hostinfo hostinfo;
    int version = 0;
    bool ephemeral = false;
    WallTime expires;
  };
  struct Owner {  // what decides about a new node
    AccountState* account = nullptr;
    const AuthKeyRecord* key = nullptr;  // null: approved by a person
  };

  Directory(DirectoryConfig config, Store& store, Rng& rng, Log& log);
  Status adopt(StoreSnapshot snapshot);

  AccountState* find_account(std::string_view name);
  const AccountState* find_account(std::string_view name) const;
  Member* find_by_machine(const AccountState& account, const MachinePublic& machine);
  void attach(std::unique_ptr<Member> member);
  // Takes a node out of memory and tells the listener; the store has forgotten it already.
  void forget(Clock clock, const NodeRecord& record);
  const AuthKeyRecord* device_key_record(const DeviceRecord& device) const;
  // Has a key and no node; what was revoked is neither.
  bool waits_to_join(const AccountState& account, const DeviceRecord& device) const;

  Status commit(const StoreChange& change);
  Result<KeyInfo> add_key(Clock clock, AccountState& account, const KeyOptions& options);
  RegisterOutcome register_with_key(Clock clock, const MachinePublic& machine, const ts2021::RegisterRequest& request);
  RegisterOutcome register_interactive(Clock clock, const MachinePublic& machine,
                                       const ts2021::RegisterRequest& request);
  RegisterOutcome log_out(Clock clock, Member* existing);
  // Makes the node, or gives the machine's node in this account its new node key. Error: nothing was changed.
  Result<Member*> admit(Clock clock, const Owner& owner, const MachinePublic& machine, const NodePublic& node_key,
                        const ts2021::Hostinfo& hostinfo, int version, bool ephemeral,
                        std::optional<WallTime> key_expiry);
  Status remove_with(Clock clock, const NodeRecord& record, StoreChange change);
  struct Match {
    AccountState* account = nullptr;       // null: nothing to revoke
    Member* member = nullptr;              // null: has not joined
    const DeviceRecord* device = nullptr;  // null: a node without a device id
  };
  Match match_device(AccountState& account, std::string_view device_id);
  Status revoke(Clock clock, const Match& match);
  std::string unique_label(const AccountState& account, std::string_view hostname, std::string_view own) const;
  ts2021::RegisterResponse accepted(const Member& member);
  DeviceInfo describe(Clock clock, const AccountState& account, const Member& member) const;
  DeviceInfo describe(Clock clock, const AccountState& account, const DeviceRecord& device) const;
  void changed(Clock clock, Member& member, NodeChanges changes, bool soft);
  // Brings `online` in line with what it follows from; what peers must be told.
  NodeChanges refresh_online(Clock clock, Member& member);

  DirectoryConfig config_;
  std::unique_ptr<Engine> own_engine_;
  Engine& engine_;
  Store& store_;
  Rng& rng_;
  Log& log_;
  DirectoryListener* listener_ = nullptr;

  std::map<AccountId, AccountState> accounts_;
  std::map<std::string, AccountId, std::less<>> account_names_;
  std::map<KeyId, AuthKeyRecord> keys_;
  std::map<std::string, KeyId, std::less<>> key_prefixes_;
  std::unordered_map<NodeId, std::unique_ptr<Member>> members_;
  std::map<NodePublic, Member*> by_node_key_;
  std::map<std::pair<AccountId, MachinePublic>, Member*> by_machine_;
  std::map<std::string, Pending, std::less<>> pending_;
  AddressPool addresses_;
  std::set<NodeId> unsaved_;
  AccountId last_account_ = 0;
  KeyId last_key_ = 0;
  NodeId last_node_ = 0;
  std::size_t online_ = 0;
  std::optional<Error> store_problem_;
};

// The part of Hostinfo that peers may see, each text cut to kHostinfoTextMax.
ts2021::Hostinfo hostinfo_for_peers(const ts2021::Hostinfo& hostinfo);
// What Directory::decided() reads of a request that waits: a few hundred bytes of a text of up to kRegisterSizeMax.
ts2021::RegisterRequest needed_later(const ts2021::RegisterRequest& request);

}  // namespace porthole::coordinator
