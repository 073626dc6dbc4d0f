#include "coordinator/directory.h"

#include <gtest/gtest.h>

#include <set>

#include "coordinator/addresses.h"
#include "coordinator/limits.h"
#include "coordinator/memory_store.h"
#include "coordinator/names.h"

namespace porthole::coordinator {
namespace {

TEST(Names, AccountsAndDevices) {
  for (const char* good : {"a", "smith", "smith-2", "0"}) EXPECT_TRUE(check_account_name(good).ok()) << good;
  for (const char* bad : {"", "-a", "a-", "Smith", "a.b", "a b", "é"}) EXPECT_FALSE(check_account_name(bad).ok()) << bad;
  EXPECT_FALSE(check_account_name(std::string(41, 'a')).ok());
  EXPECT_TRUE(check_account_name(std::string(40, 'a')).ok());
  for (const char* good : {"a", "A.b_c-1", "0f8fad5b-d9cb-469f-a165-70867728950e"}) EXPECT_TRUE(check_device_id(good).ok()) << good;
  for (const char* bad : {"", "-a", ".", "a/b", "a b", "a%"}) EXPECT_FALSE(check_device_id(bad).ok()) << bad;
  EXPECT_FALSE(check_device_id(std::string(65, 'a')).ok());
}

TEST(Names, DnsLabels) {
  EXPECT_EQ(dns_label("Curtis’s iPad Pro"), "curtis-s-ipad-pro");
  EXPECT_EQ(dns_label("Kitchen.local"), "kitchen");
  EXPECT_EQ(dns_label("a.LAN"), "a");
  EXPECT_EQ(dns_label("___"), "node");
  EXPECT_EQ(dns_label(""), "node");
  EXPECT_EQ(dns_label(std::string(100, 'a')).size(), 63u);
  EXPECT_EQ(dns_label(std::string(62, 'a') + "-b").size(), 62u);
  EXPECT_EQ(numbered_label("tv", 2), "tv-2");
  EXPECT_EQ(numbered_label(std::string(63, 'a'), 10).size(), 63u);
}

TEST(Addresses, AreUniqueAndLeaveOutWhatIsReserved) {
  AddressPool pool;
  auto first = pool.allocate();
  EXPECT_EQ(first->ipv4.to_string(), "100.64.0.1");
  EXPECT_EQ(first->ipv6.to_string(), "fd7a:115c:a1e0::1");
  std::set<IpAddress> v4, v6;
  for (int i = 0; i < 100'000; ++i) {
    auto a = pool.allocate();
    ASSERT_TRUE(a);
    ASSERT_TRUE(a->ipv4.is_tailnet() && a->ipv6.is_tailnet());
    ASSERT_TRUE(v4.insert(a->ipv4).second);
    ASSERT_TRUE(v6.insert(a->ipv6).second);
  }
  EXPECT_FALSE(v4.contains(IpAddress::v4(100, 64, 0, 0)));
  EXPECT_FALSE(v4.contains(IpAddress::v4(100, 64, 0, 255)));
  EXPECT_FALSE(v6.contains(*IpAddress::parse("fd7a:115c:a1e0::53")));
  EXPECT_FALSE(AddressPool::usable(0x64646464));  // 100.100.100.100
  EXPECT_FALSE(AddressPool::usable(0x64735c01));  // 100.115.92.1
  EXPECT_FALSE(AddressPool::usable(0x64735d01));  // 100.115.93.1
  EXPECT_TRUE(AddressPool::usable(0x64735e01));
  EXPECT_FALSE(AddressPool::usable(0x64800001));  // outside the /10
  EXPECT_FALSE(AddressPool::usable(0x643f0001));
  // A released address rests; after a restart the pool goes on behind the highest one.
  pool.release(first->ipv4);
  EXPECT_NE(pool.allocate()->ipv4, first->ipv4);
  AddressPool again;
  again.take(IpAddress::v4(100, 64, 3, 7));
  EXPECT_EQ(again.allocate()->ipv4.to_string(), "100.64.3.8");
  AddressPool end;
  end.take(IpAddress::v4(100, 127, 255, 254));
  EXPECT_EQ(end.allocate()->ipv4.to_string(), "100.64.0.1") << "goes round";
}

TEST(AuthKeys, TextsAndHashes) {
  SeededRng rng(1);
  Issued a = issue_auth_key(rng), b = issue_auth_key(rng);
  EXPECT_NE(a.text.reveal(), b.text.reveal());
  auto parsed = parse_auth_key(a.text.reveal());
  ASSERT_TRUE(parsed);
  EXPECT_EQ(parsed->prefix, a.prefix);
  EXPECT_EQ(parsed->secret_hash, a.secret_hash);
  EXPECT_EQ(std::string(a.text.reveal()).find(to_hex(a.secret_hash)), std::string::npos);
  EXPECT_TRUE(parse_auth_key(std::string(a.text.reveal()) + "--TLabc-def"));
  EXPECT_FALSE(parse_token(a.text.reveal()));
  for (std::string_view bad : {"", "phkey-auth", "phkey-auth-", "phkey-auth-a-b", "hskey-auth-abc-def"}) EXPECT_FALSE(parse_auth_key(bad));
  EXPECT_FALSE(parse_auth_key(std::string(a.text.reveal()) + "\n"));

  std::uint8_t raw[32] = {1};
  crypto::SecretBytes<32> secret(raw);
  Issued d1 = derive_device_key(secret, 1, "tv", 1);
  EXPECT_EQ(d1.text.reveal(), derive_device_key(secret, 1, "tv", 1).text.reveal());
  EXPECT_NE(d1.text.reveal(), derive_device_key(secret, 1, "tv", 2).text.reveal());
  EXPECT_NE(d1.text.reveal(), derive_device_key(secret, 2, "tv", 1).text.reveal());
  EXPECT_NE(d1.text.reveal(), derive_device_key(secret, 1, "tw", 1).text.reveal());

  Issued token = issue_token("smith-and-jones", rng);
  EXPECT_EQ(parse_token(token.text.reveal())->prefix, "smith-and-jones");
}

class DirectoryTest : public testing::Test {
 protected:
  DirectoryTest() {
    directory_ = Directory::open({}, store_, rng_, Log::none()).value();
    EXPECT_TRUE(directory_->create_account(clock_, "smith").ok());
  }
  RegisterOutcome join(std::uint8_t machine, std::uint8_t node, std::string_view key) {
    ts2021::RegisterRequest r;
    r.version = 131;
    r.node_key = NodePublic(std::array<std::uint8_t, 32>{node});
    r.auth_key = crypto::SecretText(key);
    return directory_->register_node(clock_, MachinePublic(std::array<std::uint8_t, 32>{machine}), r);
  }
  std::string device_key(std::string_view device, bool replace = false) {
    auto k = directory_->device_key(clock_, "smith", device, replace);
    EXPECT_TRUE(k.ok());
    return std::string(k->key.reveal());
  }

  SeededRng rng_{1};
  MemoryStore store_;
  std::unique_ptr<Directory> directory_;
  Clock clock_{Instant::from_ns(1), WallTime::from_unix_s(1'790'000'000)};
};

TEST_F(DirectoryTest, DeviceKeyAcrossItsLife) {
  std::string key = device_key("tv");
  EXPECT_EQ(device_key("tv"), key);
  EXPECT_EQ(join(1, 1, key).response.error, "");
  auto enrolled = directory_->device_key(clock_, "smith", "tv", false);
  EXPECT_EQ(enrolled->key.reveal(), key);
  EXPECT_EQ(enrolled->device.state, DeviceState::kEnrolled);
  EXPECT_FALSE(enrolled->expires);
  EXPECT_EQ(join(2, 2, key).response.error, "authkey already used");
  // It lost everything: a new key, and the old node is gone.
  std::string fresh = device_key("tv", true);
  EXPECT_NE(fresh, key);
  EXPECT_EQ(directory_->node_count(), 0u);
  EXPECT_EQ(join(2, 2, fresh).response.error, "");
  // Unused, a key lapses, and the next one is another.
  std::string late = device_key("radio");
  clock_.wall = clock_.wall + kDeviceKeyLifetime;
  EXPECT_EQ(join(3, 3, late).response.error, "authkey expired");
  EXPECT_NE(device_key("radio"), late);
  EXPECT_EQ(join(3, 3, late).response.error, "invalid pre auth key");
}

TEST_F(DirectoryTest, OneNodePerDevice) {
  EXPECT_EQ(join(1, 1, device_key("tv")).response.error, "");
  // Its node key expires; it comes back with another machine key and the device's next key.
  ts2021::RegisterRequest logout;
  logout.version = 131;
  logout.node_key = NodePublic(std::array<std::uint8_t, 32>{1});
  logout.expiry = WallTime::from_unix_s(123);
  directory_->register_node(clock_, MachinePublic(std::array<std::uint8_t, 32>{1}), logout);
  EXPECT_EQ(join(2, 2, device_key("tv")).response.error, "");
  EXPECT_EQ(directory_->node_count(), 1u);
  EXPECT_EQ(directory_->devices_list(clock_, "smith")->size(), 1u);
  EXPECT_EQ(store_.load()->nodes.size(), 1u);
}

TEST_F(DirectoryTest, RevokeNamesItsTarget) {
  EXPECT_TRUE(directory_->create_account(clock_, "jones").ok());
  ASSERT_TRUE(directory_->device_key(clock_, "jones", "tv", false).ok());
  EXPECT_EQ(join(1, 1, device_key("tv")).response.error, "");
  EXPECT_EQ(directory_->revoke(clock_, "", "tv").error().code, ErrorCode::kInvalid);
  EXPECT_EQ(directory_->revoke(clock_, "smith", "nope").error().code, ErrorCode::kNotFound);
  EXPECT_EQ(directory_->revoke(clock_, "jones", "1").error().code, ErrorCode::kNotFound) << "another account's node";
  EXPECT_TRUE(directory_->revoke(clock_, "", "1").ok()) << "by node number";
  EXPECT_EQ(directory_->node_count(), 0u);
  EXPECT_EQ(directory_->revoke(clock_, "smith", "tv").error().code, ErrorCode::kNotFound);
  EXPECT_TRUE(directory_->revoke(clock_, "", "tv").ok()) << "only the other account's is left";
}

// A device chooses its id; it hides no node by choosing a number.
TEST_F(DirectoryTest, ANodeIsAlwaysFoundByItsNumber) {
  device_key("1");
  ASSERT_TRUE(directory_->revoke(clock_, "smith", "1").ok());
  KeyOptions any;
  auto key = directory_->key_create(clock_, "smith", any);
  ASSERT_TRUE(key.ok());
  EXPECT_EQ(join(1, 1, key->key.reveal()).response.error, "");
  ASSERT_EQ(directory_->node_count(), 1u);
  device_key("1", true);
  EXPECT_EQ(directory_->node_count(), 1u) << "replacing the key of device 1 is nothing to node 1";
  EXPECT_TRUE(directory_->revoke(clock_, "smith", "1").ok()) << "the device";
  EXPECT_EQ(directory_->node_count(), 1u);
  EXPECT_TRUE(directory_->revoke(clock_, "smith", "1").ok()) << "the node";
  EXPECT_EQ(directory_->node_count(), 0u);
}

TEST_F(DirectoryTest, AKeyIsReplacedWhateverBecameOfTheDevice) {
  std::string key = device_key("tv", true);
  EXPECT_EQ(join(1, 1, key).response.error, "");
  ASSERT_TRUE(directory_->revoke(clock_, "smith", "tv").ok());
  std::string next = device_key("tv", true);
  EXPECT_NE(next, key);
  EXPECT_EQ(join(2, 2, next).response.error, "");
}

TEST_F(DirectoryTest, ReusableAndDeviceDoNotMix) {
  KeyOptions o;
  o.device_id = "tv";
  o.reusable = true;
  EXPECT_EQ(directory_->key_create(clock_, "smith", o).error().code, ErrorCode::kInvalid);
  o = {};
  o.lifetime = Duration(0);
  EXPECT_EQ(directory_->key_create(clock_, "smith", o).error().code, ErrorCode::kInvalid);
  EXPECT_EQ(directory_->key_create(clock_, "nobody", {}).error().code, ErrorCode::kNotFound);
}

// A key, a node or an account at a time, with a store that fails now and then: memory and store never disagree.
TEST_F(DirectoryTest, StoreFailuresAtEveryStep) {
  SeededRng dice(7);
  std::vector<std::string> keys;
  for (int i = 0; i < 3000; ++i) {
    clock_.wall = clock_.wall + 1s;
    bool fails = dice.below(3) == 0;
    store_.fail_with(fails ? std::optional(Error{ErrorCode::kIo, "full"}) : std::nullopt);
    std::string device = "d" + std::to_string(dice.below(20));
    switch (dice.below(5)) {
      case 0:
        if (auto k = directory_->device_key(clock_, "smith", device, dice.below(4) == 0); k.ok()) keys.emplace_back(k->key.reveal());
        break;
      case 1: (void)directory_->revoke(clock_, "smith", device); break;
      case 2:
      case 3:
        if (!keys.empty())
          (void)join(static_cast<std::uint8_t>(dice.below(30) + 1), static_cast<std::uint8_t>(dice.below(60) + 1), keys[dice.below(keys.size())]);
        break;
      case 4:
        if (Member* m = directory_->find_by_node_key(NodePublic(std::array<std::uint8_t, 32>{static_cast<std::uint8_t>(dice.below(60) + 1)}))) {
          ts2021::MapRequest r;
          r.version = 131;
          r.hostinfo.emplace();
          r.hostinfo->hostname = "h" + std::to_string(dice.below(3));
          directory_->update(clock_, *m, r);
        }
        break;
    }
    if (i % 100 != 99) continue;
    store_.fail_with(std::nullopt);
    ASSERT_TRUE(directory_->save().ok());
    auto again = Directory::open({}, store_, rng_, Log::none());
    ASSERT_TRUE(again.ok());
    auto a = *directory_->devices_list(clock_, ""), b = *(*again)->devices_list(clock_, "");
    ASSERT_EQ(a.size(), b.size());
    for (std::size_t j = 0; j < a.size(); ++j) {
      EXPECT_EQ(a[j].node_id, b[j].node_id);
      EXPECT_EQ(a[j].device_id, b[j].device_id);
      EXPECT_EQ(a[j].name, b[j].name);
      EXPECT_EQ(a[j].node_key, b[j].node_key);
      EXPECT_EQ(a[j].state, b[j].state);
    }
  }
}

// ---- another engine ----------------------------------------------------------------------------------------------------

// Notes what it is asked, and refuses when told to.
class NotingEngine final : public Engine {
 public:
  Status open_account(const AccountRecord& a) override { return note("open " + a.name); }
  Result<Issued> issue_key(const AccountRecord& a, const AuthKeyRecord& key, std::int64_t generation) override {
    if (auto s = note("issue " + a.name + "/" + key.device_id + " " + std::to_string(generation)); !s) return s.error();
    Issued out;
    out.prefix = "theirs-" + std::to_string(++issued);
    out.text = crypto::SecretText(out.prefix + "-secret");
    out.sealed = ByteVector{1, 2, 3};
    return out;
  }
  Result<crypto::SecretText> key_text(const DeviceRecord&, const AuthKeyRecord& key) const override {
    EXPECT_EQ(key.sealed, (ByteVector{1, 2, 3}));
    return crypto::SecretText(key.prefix + "-secret");
  }
  Status retire_key(const AccountRecord&, const AuthKeyRecord& key) override { return note("retire " + key.prefix); }
  Status revoke(const AccountRecord&, const AuthKeyRecord* key, const NodeRecord* node) override {
    return note("revoke " + (key ? key->prefix : "-") + " " + (node ? std::to_string(node->id) : "-"));
  }
  Status note(std::string what) {
    if (failure) return *failure;
    calls.push_back(std::move(what));
    return {};
  }

  std::vector<std::string> calls;
  std::optional<Error> failure;
  int issued = 0;
};

EngineNode engine_node(NodeId id, const std::string& account, const std::string& key_prefix) {
  EngineNode n;
  n.account = account;
  n.key_prefix = key_prefix;
  n.online = true;
  n.record.id = id;
  std::array<std::uint8_t, 32> raw{};
  store_be<std::uint64_t>(raw.data(), static_cast<std::uint64_t>(id));
  n.record.machine = MachinePublic(raw);
  n.record.node_key = NodePublic(raw);
  n.record.ipv4 = IpAddress::v4(0x64400000u + static_cast<std::uint32_t>(id));
  n.record.label = "node" + std::to_string(id);
  return n;
}

class OtherEngineTest : public testing::Test {
 protected:
  OtherEngineTest() { open(); }
  void open() {
    DirectoryConfig config;
    config.engine = &engine_;
    config.account_in_names = false;
    config.base_domain = "tail.example";
    auto opened = Directory::open(std::move(config), store_, rng_, Log::none());
    directory_ = std::move(*opened);
  }
  std::vector<DeviceInfo> devices() { return *directory_->devices_list(clock_, ""); }
  std::string key(const std::string& device) {
    auto k = directory_->device_key(clock_, "smith", device, false);
    return k ? std::string(k->key.reveal()) : k.error().message;
  }

  SeededRng rng_{3};
  MemoryStore store_;
  NotingEngine engine_;
  std::unique_ptr<Directory> directory_;
  Clock clock_{Instant::from_ns(1'000'000'000), WallTime::from_unix_s(1'790'000'000)};
};

TEST_F(OtherEngineTest, IsAskedBeforeAnythingIsStored) {
  engine_.failure = Error{ErrorCode::kUnavailable, "it is away"};
  EXPECT_EQ(directory_->create_account(clock_, "smith").error().code, ErrorCode::kUnavailable);
  EXPECT_FALSE(directory_->has_account("smith"));
  engine_.failure.reset();
  ASSERT_TRUE(directory_->create_account(clock_, "smith").ok());
  engine_.failure = Error{ErrorCode::kUnavailable, "it is away"};
  EXPECT_EQ(key("tv"), "it is away");
  EXPECT_TRUE(devices().empty());
  engine_.failure.reset();
  EXPECT_EQ(key("tv"), "theirs-1-secret");
  EXPECT_EQ(key("tv"), "theirs-1-secret");
  EXPECT_EQ(devices().size(), 1u);
  engine_.failure = Error{ErrorCode::kUnavailable, "it is away"};
  EXPECT_EQ(directory_->revoke(clock_, "smith", "tv").error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(devices()[0].state, DeviceState::kInvited);
  engine_.failure.reset();
  // What cannot be stored is taken back.
  store_.fail_with(Error{ErrorCode::kIo, "disk full"});
  EXPECT_EQ(key("pad"), "disk full");
  store_.fail_with(std::nullopt);
  open();
  EXPECT_EQ(key("tv"), "theirs-1-secret") << "kept over a restart";
  ASSERT_TRUE(directory_->revoke(clock_, "smith", "tv").ok());
  EXPECT_EQ(key("tv"), "theirs-3-secret");
  // A key with other properties replaces the one that waits.
  KeyOptions options;
  options.device_id = "tv";
  options.lifetime = 1h;
  ASSERT_TRUE(directory_->key_create(clock_, "smith", options).ok());
  EXPECT_EQ(engine_.calls, (std::vector<std::string>{"open smith", "issue smith/tv 1", "issue smith/pad 1", "retire theirs-2", "revoke theirs-1 -",
                                                     "issue smith/tv 2", "retire theirs-3", "issue smith/tv 3"}));
}

TEST_F(OtherEngineTest, WhatItKnowsIsMirrored) {
  ASSERT_TRUE(directory_->create_account(clock_, "smith").ok());
  ASSERT_TRUE(directory_->create_account(clock_, "jones").ok());
  (void)key("tv");
  std::vector<EngineKey> keys{{"theirs-1", true, true}, {"somebody's", false, true}};
  // The device's node by its key, even if it was tagged away from its user; one that joined by hand; one of no account.
  ASSERT_TRUE(directory_->mirror(clock_, keys, {engine_node(7, "", "theirs-1"), engine_node(8, "jones", ""), engine_node(9, "", ""), engine_node(10, "x", "y")}).ok());
  auto list = devices();
  ASSERT_EQ(list.size(), 2u);
  EXPECT_EQ(list[0].account, "jones");
  EXPECT_EQ(list[0].device_id, "");
  EXPECT_EQ(list[1].account, "smith");
  EXPECT_EQ(list[1].device_id, "tv");
  EXPECT_EQ(list[1].state, DeviceState::kEnrolled);
  EXPECT_EQ(list[1].fqdn, "node7.tail.example");
  EXPECT_EQ(list[1].addresses.size(), 1u) << "there is no IPv6 here";
  EXPECT_EQ(key("tv"), "theirs-1-secret") << "spent, and its own";
  EXPECT_EQ((*directory_->list_accounts(clock_))[1].online, 1u);
  // The key is not told any more, and the service was restarted: the device's node is remembered.
  open();
  ASSERT_TRUE(directory_->mirror(clock_, keys, {engine_node(7, "smith", "")}).ok());
  EXPECT_EQ(devices()[0].device_id, "tv");
  // Nodes and keys that are gone there are gone here.
  ASSERT_TRUE(directory_->mirror(clock_, keys, {}).ok());
  EXPECT_EQ(directory_->node_count(), 0u);
  EXPECT_EQ(key("tv"), "theirs-2-secret");
  ASSERT_TRUE(directory_->mirror(clock_, {{"theirs-2", false, false}}, {}).ok());
  EXPECT_EQ(devices()[0].state, DeviceState::kLapsed);
  EXPECT_EQ(key("tv"), "theirs-3-secret") << "it had expired there";
  ASSERT_TRUE(directory_->mirror(clock_, {}, {}).ok());
  EXPECT_EQ(key("tv"), "theirs-4-secret") << "it was deleted there";
}

TEST_F(OtherEngineTest, NonsenseInTheMirrorDoesNoHarm) {
  ASSERT_TRUE(directory_->create_account(clock_, "smith").ok());
  (void)key("tv");
  for (std::uint64_t seed = 1; seed <= 300; ++seed) {
    SeededRng rng(seed);
    std::vector<EngineKey> keys;
    std::vector<EngineNode> nodes;
    std::uint8_t raw[64];
    rng.fill(raw);
    for (std::size_t i = 0; i < raw[0] % 8u; ++i) keys.push_back({"theirs-" + std::to_string(raw[i + 1] % 3), (raw[i + 1] & 4) != 0, (raw[i + 1] & 8) != 0});
    for (std::size_t i = 0; i < raw[10] % 16u; ++i) {
      // Ids, keys, addresses and labels that are not unique, in any combination.
      EngineNode n = engine_node(raw[i + 11] % 4 + 1, raw[i + 11] & 8 ? "smith" : "", "theirs-" + std::to_string(raw[i + 30] % 3));
      if (raw[i + 30] & 4) n.record.node_key = engine_node(raw[i + 30] % 5 + 1, "", "").record.node_key;
      if (raw[i + 30] & 8) n.record.machine = MachinePublic();
      if (raw[i + 30] & 16) n.record.ipv4 = IpAddress();
      if (raw[i + 30] & 32) n.record.label.clear();
      nodes.push_back(std::move(n));
    }
    ASSERT_TRUE(directory_->mirror(clock_, keys, std::move(nodes)).ok());
    std::set<NodeId> ids;
    std::set<std::string> with_node;
    for (const DeviceInfo& d : devices()) {
      if (d.node_id == 0) continue;
      EXPECT_TRUE(ids.insert(d.node_id).second);
      if (d.device_id.empty()) continue;
      EXPECT_TRUE(with_node.insert(d.device_id).second) << "two nodes of one device";
    }
    EXPECT_EQ(ids.size(), directory_->node_count());
  }
}

}  // namespace
}  // namespace porthole::coordinator
