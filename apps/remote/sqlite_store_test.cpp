#include "remote/sqlite_store.h"

#include <gtest/gtest.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "coordinator/directory.h"
#include "coordinator/memory_store.h"
#include "support/support.h"

namespace porthole::remote {
namespace {

using namespace coordinator;

class TemporaryDir {
 public:
  TemporaryDir() {
    char name[] = "/tmp/porthole-store-XXXXXX";
    path_ = ::mkdtemp(name);
  }
  ~TemporaryDir() { std::filesystem::remove_all(path_); }
  std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

NodeRecord sample_node(NodeId id, AccountId account) {
  NodeRecord n;
  n.id = id;
  n.account = account;
  n.device_id = "tv";
  n.auth_key = 3;
  std::array<std::uint8_t, 32> raw{};
  raw[0] = static_cast<std::uint8_t>(id);
  n.machine = MachinePublic(raw);
  raw[1] = 1;
  n.node_key = NodePublic(raw);
  raw[1] = 2;
  n.disco_key = DiscoPublic(raw);
  n.ipv4 = IpAddress::v4(100, 64, 0, static_cast<std::uint8_t>(id));
  n.ipv6 = *IpAddress::parse("fd7a:115c:a1e0::" + std::to_string(id));
  n.label = "tv";
  n.hostinfo.hostname = "TV of Zoë";
  n.hostinfo.os = "linux";
  n.endpoints = {*Endpoint::parse("192.0.2.1:41641"), *Endpoint::parse("[2001:db8::1]:1")};
  n.home_relay = 900;
  n.cap = 131;
  n.ephemeral = true;
  n.created = WallTime::from_unix_s(1'790'000'000);
  n.key_expiry = WallTime::from_unix_s(1'800'000'000);
  return n;
}

// The same promises for every store.
class StoreTest : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override { reopen(); }
  void reopen() {
    if (!GetParam()) {
      if (!memory_) memory_ = std::make_unique<MemoryStore>();
      store_ = memory_.get();
      return;
    }
    sqlite_.reset();
    auto opened = SqliteStore::open(dir_.file("s.db"));
    ASSERT_TRUE(opened.ok()) << opened.error().message;
    sqlite_ = std::move(*opened);
    store_ = sqlite_.get();
  }

  TemporaryDir dir_;
  std::unique_ptr<MemoryStore> memory_;
  std::unique_ptr<SqliteStore> sqlite_;
  Store* store_ = nullptr;
};

TEST_P(StoreTest, KeepsWhatItWasGiven) {
  StoreChange change;
  change.accounts.push_back({1, "smith", WallTime::from_unix_s(5), {1, 2, 3}});
  AuthKeyRecord key;
  key.id = 3;
  key.account = 1;
  key.prefix = "abc";
  key.secret_hash = {9};
  key.device_id = "tv";
  key.ephemeral = true;
  key.created = WallTime::from_unix_s(6);
  key.sealed = {0, 1, 0};
  change.keys.push_back(key);
  change.devices.push_back({1, "tv", 2, 3, WallTime::from_unix_s(7), 12});
  change.nodes.push_back(sample_node(7, 1));
  ASSERT_TRUE(store_->commit(change).ok());
  key.used = true;
  key.expires = WallTime::from_unix_ns(123'456'789'012);
  StoreChange second;
  second.durable = false;
  second.keys.push_back(key);
  auto node = sample_node(7, 1);
  node.last_seen = WallTime::from_unix_s(99);
  node.label = "tv-2";
  second.nodes.push_back(node);
  ASSERT_TRUE(store_->commit(second).ok());
  // Only what may change after a record was made is asked to change; the sample's expiry is set here.
  reopen();
  auto s = store_->load();
  ASSERT_TRUE(s.ok()) << s.error().message;
  EXPECT_EQ(s->accounts, change.accounts);
  EXPECT_EQ(s->keys, std::vector<AuthKeyRecord>{key});
  EXPECT_EQ(s->devices, change.devices);
  EXPECT_EQ(s->nodes, std::vector<NodeRecord>{node});
  EXPECT_EQ(s->last_account, 1);
  EXPECT_EQ(s->last_key, 3);
  EXPECT_EQ(s->last_node, 7);

  StoreChange gone;
  gone.removed_nodes = {7};
  gone.removed_keys = {3};
  gone.removed_devices = {{1, "tv"}};
  ASSERT_TRUE(store_->commit(gone).ok());
  reopen();
  s = store_->load();
  ASSERT_TRUE(s.ok());
  EXPECT_TRUE(s->nodes.empty() && s->keys.empty() && s->devices.empty());
  EXPECT_EQ(s->last_node, 7) << "ids are never used twice";
}

TEST_P(StoreTest, DirectoryLivesOnIt) {
  SeededRng rng(1);
  Clock clock{Instant::from_ns(1), WallTime::from_unix_s(1'790'000'000)};
  std::string token, key;
  {
    auto d = Directory::open({}, *store_, rng, Log::none());
    ASSERT_TRUE(d.ok());
    token = (*d)->create_account(clock, "smith")->token.reveal();
    key = (*d)->device_key(clock, "smith", "tv", false)->key.reveal();
  }
  reopen();
  auto d = Directory::open({}, *store_, rng, Log::none());
  ASSERT_TRUE(d.ok());
  EXPECT_EQ((*d)->account_of_token(token), "smith");
  EXPECT_EQ((*d)->account_of_token(token + "0"), std::nullopt);
  auto again = (*d)->device_key(clock, "smith", "tv", false);
  ASSERT_TRUE(again.ok());
  EXPECT_FALSE(again->created);
  EXPECT_EQ(again->key.reveal(), key);
  ts2021::RegisterRequest r;
  r.version = 131;
  r.node_key = NodePublic(std::array<std::uint8_t, 32>{1});
  r.auth_key = crypto::SecretText(key);
  auto outcome = (*d)->register_node(clock, MachinePublic(std::array<std::uint8_t, 32>{2}), r);
  EXPECT_EQ(outcome.response.error, "");
  d = Directory::open({}, *store_, rng, Log::none());
  ASSERT_TRUE(d.ok());
  EXPECT_EQ((*d)->node_count(), 1u);
  auto enrolled = (*d)->device_key(clock, "smith", "tv", false);
  ASSERT_TRUE(enrolled.ok());
  EXPECT_EQ(enrolled->device.state, DeviceState::kEnrolled);
}

INSTANTIATE_TEST_SUITE_P(All, StoreTest, testing::Bool(),
                         [](const auto& p) { return p.param ? std::string("Sqlite") : std::string("Memory"); });

TEST(SqliteStore, RefusesANewerSchema) {
  TemporaryDir dir;
  std::string path = dir.file("s.db");
  { ASSERT_TRUE(SqliteStore::open(path).ok()); }
  sqlite3* db = nullptr;
  ASSERT_EQ(sqlite3_open(path.c_str(), &db), SQLITE_OK);
  ASSERT_EQ(sqlite3_exec(db, "PRAGMA user_version=99", nullptr, nullptr, nullptr), SQLITE_OK);
  sqlite3_close(db);
  auto opened = SqliteStore::open(path);
  ASSERT_FALSE(opened.ok());
  EXPECT_EQ(opened.error().code, ErrorCode::kUnsupported);
  EXPECT_NE(opened.error().message.find("newer version"), std::string::npos);
}

TEST(SqliteStore, BringsAnOlderSchemaUpToDate) {
  TemporaryDir dir;
  std::string path = dir.file("s.db");
  SeededRng rng(4);
  Clock clock{Instant::from_ns(1), WallTime::from_unix_s(1'790'000'000)};
  std::string key;
  {
    auto store = SqliteStore::open(path);
    auto d = Directory::open({}, **store, rng, Log::none());
    ASSERT_TRUE((*d)->create_account(clock, "smith").ok());
    key = (*d)->device_key(clock, "smith", "tv", false)->key.reveal();
  }
  // What schema 1 had.
  sqlite3* db = nullptr;
  ASSERT_EQ(sqlite3_open(path.c_str(), &db), SQLITE_OK);
  ASSERT_EQ(sqlite3_exec(db, "ALTER TABLE auth_keys DROP COLUMN sealed; ALTER TABLE devices DROP COLUMN node; PRAGMA user_version=1",
                         nullptr, nullptr, nullptr), SQLITE_OK) << sqlite3_errmsg(db);
  sqlite3_close(db);
  for (int i = 0; i < 2; ++i) {
    auto store = SqliteStore::open(path);
    ASSERT_TRUE(store.ok()) << store.error().message;
    auto d = Directory::open({}, **store, rng, Log::none());
    ASSERT_TRUE(d.ok()) << d.error().message;
    EXPECT_EQ((*d)->device_key(clock, "smith", "tv", false)->key.reveal(), key);
    EXPECT_TRUE((*d)->device_key(clock, "smith", "new" + std::to_string(i), false)->created);
  }
}

TEST(SqliteStore, RefusesWhatIsNoDatabase) {
  TemporaryDir dir;
  app::write_file_atomic(dir.file("s.db"), std::string(5000, 'x'));
  auto opened = SqliteStore::open(dir.file("s.db"));
  ASSERT_FALSE(opened.ok());
  EXPECT_NE(opened.error().message.find("not a database"), std::string::npos) << opened.error().message;
  EXPECT_FALSE(SqliteStore::open(dir.file("no/such/dir.db")).ok());
}

TEST(SqliteStore, LeavesAnotherProgramsDatabaseAlone) {
  TemporaryDir dir;
  std::string path = dir.file("s.db");
  sqlite3* db = nullptr;
  ASSERT_EQ(sqlite3_open(path.c_str(), &db), SQLITE_OK);
  ASSERT_EQ(sqlite3_exec(db, "CREATE TABLE recipes(name)", nullptr, nullptr, nullptr), SQLITE_OK);
  sqlite3_close(db);
  const std::string before = app::read_file(path);
  auto opened = SqliteStore::open(path);
  ASSERT_FALSE(opened.ok());
  EXPECT_NE(opened.error().message.find("another program"), std::string::npos) << opened.error().message;
  EXPECT_EQ(app::read_file(path), before);
}

TEST(SqliteStore, IsNobodyElsesBusiness) {
  TemporaryDir dir;
  auto opened = SqliteStore::open(dir.file("s.db"));
  ASSERT_TRUE(opened.ok());
  for (const char* name : {"s.db", "s.db-wal", "s.db-shm"}) {
    struct stat info {};
    ASSERT_EQ(::stat(dir.file(name).c_str(), &info), 0) << name;
    EXPECT_EQ(info.st_mode & 0777, 0600u) << name;
  }
}

TEST(SqliteStore, FullDiskLosesNothing) {
  TemporaryDir dir;
  auto opened = SqliteStore::open(dir.file("s.db"));
  ASSERT_TRUE(opened.ok());
  SqliteStore& store = **opened;
  StoreChange first;
  first.accounts.push_back({1, "smith", {}, {}});
  ASSERT_TRUE(store.commit(first).ok());
  store.limit_pages(20);
  Status s;
  int committed = 0;
  for (int i = 0; i < 1000 && s.ok(); ++i) {
    StoreChange change;
    auto n = sample_node(100 + i, 1);
    std::array<std::uint8_t, 32> raw{};
    store_be<std::uint32_t>(raw.data(), static_cast<std::uint32_t>(i + 1));
    n.machine = MachinePublic(raw);
    n.node_key = NodePublic(raw);
    n.ipv4 = IpAddress::v4(0x64410000u + static_cast<std::uint32_t>(i));
    n.ipv6 = *IpAddress::parse("fd7a:115c:a1e0::1:" + std::to_string(i));
    change.nodes.push_back(n);
    s = store.commit(change);
    if (s.ok()) ++committed;
  }
  ASSERT_FALSE(s.ok());
  EXPECT_NE(s.error().message.find("disk is full"), std::string::npos) << s.error().message;
  auto loaded = store.load();
  ASSERT_TRUE(loaded.ok());
  EXPECT_EQ(loaded->nodes.size(), static_cast<std::size_t>(committed));
  store.limit_pages(1 << 20);
  StoreChange more;
  more.accounts.push_back({2, "jones", {}, {}});
  EXPECT_TRUE(store.commit(more).ok());
}

}  // namespace
}  // namespace porthole::remote
