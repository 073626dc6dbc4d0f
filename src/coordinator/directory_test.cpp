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

}  // namespace
}  // namespace porthole::coordinator
