#include "remote/sqlite_store.h"

#include <sqlite3.h>
#include <sys/stat.h>

#include <algorithm>

#include "ts2021/json.h"

namespace porthole::remote {

using coordinator::AccountRecord;
using coordinator::AuthKeyRecord;
using coordinator::DeviceRecord;
using coordinator::NodeRecord;
using coordinator::StoreChange;
using coordinator::StoreSnapshot;

namespace {

// Times are Unix nanoseconds, keys and hashes raw bytes, addresses text, Hostinfo the protocol's JSON.
constexpr const char* kSchema = R"sql(
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO counters VALUES ('account', 0), ('key', 0), ('node', 0);
CREATE TABLE accounts (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, created INTEGER NOT NULL, token_hash BLOB NOT NULL);
CREATE TABLE auth_keys (
  id INTEGER PRIMARY KEY, account INTEGER NOT NULL REFERENCES accounts(id), prefix TEXT NOT NULL UNIQUE,
  secret_hash BLOB NOT NULL, device TEXT NOT NULL, reusable INTEGER NOT NULL, ephemeral INTEGER NOT NULL,
  used INTEGER NOT NULL, revoked INTEGER NOT NULL, created INTEGER NOT NULL, expires INTEGER,
  sealed BLOB NOT NULL DEFAULT x'');
CREATE TABLE devices (
  account INTEGER NOT NULL REFERENCES accounts(id), device TEXT NOT NULL, generation INTEGER NOT NULL,
  key INTEGER NOT NULL, created INTEGER NOT NULL, node INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (account, device)) WITHOUT ROWID;
CREATE TABLE nodes (
  id INTEGER PRIMARY KEY, account INTEGER NOT NULL REFERENCES accounts(id), device TEXT NOT NULL,
  auth_key INTEGER NOT NULL, machine BLOB NOT NULL, node_key BLOB NOT NULL UNIQUE, disco_key BLOB NOT NULL,
  ipv4 TEXT NOT NULL UNIQUE, ipv6 TEXT NOT NULL UNIQUE, label TEXT NOT NULL, hostinfo TEXT NOT NULL,
  endpoints TEXT NOT NULL, home_relay INTEGER NOT NULL, cap INTEGER NOT NULL, ephemeral INTEGER NOT NULL,
  created INTEGER NOT NULL, key_expiry INTEGER, last_seen INTEGER,
  UNIQUE (account, machine));
)sql";

// What made each schema out of the one before: kUpgrades[0] goes from 1 to 2.
constexpr const char* kUpgrades[] = {
    // Other engines: keys that cannot be derived, nodes that are kept elsewhere.
    "ALTER TABLE auth_keys ADD COLUMN sealed BLOB NOT NULL DEFAULT x'';"
    "ALTER TABLE devices ADD COLUMN node INTEGER NOT NULL DEFAULT 0;",
};
static_assert(std::size(kUpgrades) == kSchemaVersion - 1);

}  // namespace

// One prepared statement; bind in order, then step.
class SqliteStore::Statement {
 public:
  Statement() = default;
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;
  ~Statement() { sqlite3_finalize(s_); }

  bool prepare(sqlite3* db, const char* sql) {
    return sqlite3_prepare_v3(db, sql, -1, SQLITE_PREPARE_PERSISTENT, &s_, nullptr) == SQLITE_OK;
  }
  Statement& start() {
    sqlite3_reset(s_);
    sqlite3_clear_bindings(s_);
    next_ = 1;
    return *this;
  }
  Statement& integer(std::int64_t v) { sqlite3_bind_int64(s_, next_++, v); return *this; }
  Statement& text(std::string_view v) {
    sqlite3_bind_text(s_, next_++, v.data(), static_cast<int>(v.size()), SQLITE_TRANSIENT);
    return *this;
  }
  Statement& blob(Bytes v) {
    // A null pointer would be NULL.
    if (v.empty()) sqlite3_bind_zeroblob(s_, next_++, 0);
    else sqlite3_bind_blob(s_, next_++, v.data(), static_cast<int>(v.size()), SQLITE_TRANSIENT);
    return *this;
  }
  Statement& time(WallTime v) { return integer(v.unix_ns()); }
  Statement& time(const std::optional<WallTime>& v) {
    if (v) return integer(v->unix_ns());
    ++next_;  // stays NULL
    return *this;
  }
  // A statement without rows.
  bool done() {
    bool ok = sqlite3_step(s_) == SQLITE_DONE;
    sqlite3_reset(s_);
    return ok;
  }
  // SQLITE_ROW, SQLITE_DONE or an error.
  int step() { column_ = 0; return sqlite3_step(s_); }
  std::int64_t get_integer() { return sqlite3_column_int64(s_, column_++); }
  bool get_bool() { return get_integer() != 0; }
  std::string get_text() { return std::string(as_text(get_blob())); }
  Bytes get_blob() {
    const void* p = sqlite3_column_blob(s_, column_);
    auto n = static_cast<std::size_t>(sqlite3_column_bytes(s_, column_));
    ++column_;
    return {static_cast<const std::uint8_t*>(p), n};
  }
  crypto::Hash32 get_hash() {
    crypto::Hash32 h{};
    Bytes b = get_blob();
    if (b.size() == h.size()) std::copy(b.begin(), b.end(), h.begin());
    return h;
  }
  WallTime get_time() { return WallTime::from_unix_ns(get_integer()); }
  std::optional<WallTime> get_optional_time() {
    if (sqlite3_column_type(s_, column_) == SQLITE_NULL) {
      ++column_;
      return std::nullopt;
    }
    return get_time();
  }

 private:
  sqlite3_stmt* s_ = nullptr;
  int next_ = 1;
  int column_ = 0;
};

struct SqliteStore::Statements {
  Statement begin, commit, rollback, counter;
  Statement account, key, device, node;
  Statement remove_key, remove_device, remove_node;
};

SqliteStore::SqliteStore(std::string path) : path_(std::move(path)) {}

SqliteStore::~SqliteStore() {
  statements_.reset();
  sqlite3_close(db_);
}

Error SqliteStore::failed(const std::string& what) const {
  int code = db_ ? sqlite3_errcode(db_) : SQLITE_NOMEM;
  std::string reason = db_ ? sqlite3_errmsg(db_) : "out of memory";
  if (code == SQLITE_FULL) reason = "the disk is full; free some space (nothing was lost)";
  if (code == SQLITE_NOTADB || code == SQLITE_CORRUPT) reason = "the file is not a database or damaged; restore a backup";
  if (code == SQLITE_READONLY) reason = "the file is read-only";
  return {ErrorCode::kIo, "store " + path_ + ": " + what + ": " + reason};
}

Status SqliteStore::run(const std::string& sql) {
  if (sqlite3_exec(db_, sql.c_str(), nullptr, nullptr, nullptr) != SQLITE_OK) return failed("cannot be used");
  return {};
}

bool SqliteStore::has_rows(const std::string& table) {
  Statement any;
  return any.prepare(db_, ("SELECT EXISTS(SELECT 1 FROM " + table + ")").c_str()) && any.step() == SQLITE_ROW && any.get_integer() != 0;
}

Result<std::unique_ptr<SqliteStore>> SqliteStore::open(const std::string& path) {
  std::unique_ptr<SqliteStore> store(new SqliteStore(path));
  mode_t old = umask(0077);  // the files hold who belongs to whom: nobody else's business
  int opened = sqlite3_open_v2(path.c_str(), &store->db_,
                               SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, nullptr);
  umask(old);
  if (opened != SQLITE_OK) return store->failed("cannot be opened");
  sqlite3_busy_timeout(store->db_, 2000);

  Statement version;
  if (!version.prepare(store->db_, "PRAGMA user_version") || version.step() != SQLITE_ROW)
    return store->failed("cannot be read");
  std::int64_t found = version.get_integer();
  version.start();
  if (found > kSchemaVersion)
    return Error{ErrorCode::kUnsupported, "store " + path + ": it was written by a newer version of porthole (schema " +
                                              std::to_string(found) + ", this program knows " +
                                              std::to_string(kSchemaVersion) + "); update porthole"};
  // A new store has no tables; another program's database often has no version.
  if (found == 0 && store->has_rows("sqlite_master"))
    return Error{ErrorCode::kUnsupported, "store " + path + ": it is the database of another program; choose another directory"};
  old = umask(0077);
  Status wal = store->run("PRAGMA journal_mode=WAL");
  if (wal) wal = store->run("PRAGMA foreign_keys=OFF; PRAGMA synchronous=NORMAL; PRAGMA cache_size=-4096");
  if (wal && found == 0)
    wal = store->run("BEGIN IMMEDIATE;" + std::string(kSchema) + "PRAGMA user_version=" +
                     std::to_string(kSchemaVersion) + ";COMMIT");
  else if (wal && found < kSchemaVersion) {
    std::string upgrade = "BEGIN IMMEDIATE;";
    for (std::int64_t from = found; from < kSchemaVersion; ++from) upgrade += kUpgrades[from - 1];
    wal = store->run(upgrade + "PRAGMA user_version=" + std::to_string(kSchemaVersion) + ";COMMIT");
  }
  umask(old);
  if (!wal) return wal.error();
  if (auto s = store->prepare(); !s) return s.error();
  return store;
}

Status SqliteStore::prepare() {
  statements_ = std::make_unique<Statements>();
  Statements& s = *statements_;
  bool ok = s.begin.prepare(db_, "BEGIN IMMEDIATE") && s.commit.prepare(db_, "COMMIT") &&
            s.rollback.prepare(db_, "ROLLBACK") &&
            s.counter.prepare(db_, "UPDATE counters SET value = max(value, ?2) WHERE name = ?1") &&
            s.account.prepare(db_, "INSERT INTO accounts VALUES (?,?,?,?) ON CONFLICT(id) DO UPDATE SET "
                                   "name=excluded.name, token_hash=excluded.token_hash") &&
            s.key.prepare(db_, "INSERT INTO auth_keys VALUES (?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT(id) DO UPDATE SET "
                               "used=excluded.used, revoked=excluded.revoked, expires=excluded.expires") &&
            s.device.prepare(db_, "INSERT OR REPLACE INTO devices VALUES (?,?,?,?,?,?)") &&
            s.node.prepare(db_, "INSERT INTO nodes VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?) "
                                "ON CONFLICT(id) DO UPDATE SET device=excluded.device, auth_key=excluded.auth_key, "
                                "node_key=excluded.node_key, disco_key=excluded.disco_key, label=excluded.label, "
                                "hostinfo=excluded.hostinfo, endpoints=excluded.endpoints, "
                                "home_relay=excluded.home_relay, cap=excluded.cap, ephemeral=excluded.ephemeral, "
                                "key_expiry=excluded.key_expiry, last_seen=excluded.last_seen") &&
            s.remove_key.prepare(db_, "DELETE FROM auth_keys WHERE id=?") &&
            s.remove_device.prepare(db_, "DELETE FROM devices WHERE account=? AND device=?") &&
            s.remove_node.prepare(db_, "DELETE FROM nodes WHERE id=?");
  if (!ok) return failed("does not have the expected tables");
  return {};
}

Status SqliteStore::commit(const StoreChange& change) {
  if (change.durable != synchronous_full_) {
    if (auto s = run(change.durable ? "PRAGMA synchronous=FULL" : "PRAGMA synchronous=NORMAL"); !s) return s;
    synchronous_full_ = change.durable;
  }
  if (!statements_->begin.start().done()) return failed("cannot be written");
  Status s = write(change);
  if (s && !statements_->commit.start().done()) s = failed("cannot be written");
  if (!s && sqlite3_get_autocommit(db_) == 0) statements_->rollback.start().done();
  return s;
}

Status SqliteStore::write(const StoreChange& change) {
  Statements& s = *statements_;
  auto count = [&](std::string_view name, std::int64_t value) { return s.counter.start().text(name).integer(value).done(); };
  // Removals first: what replaces a record may carry its unique values.
  for (auto id : change.removed_nodes)
    if (!s.remove_node.start().integer(id).done()) return failed("cannot be written");
  for (auto id : change.removed_keys)
    if (!s.remove_key.start().integer(id).done()) return failed("cannot be written");
  for (const auto& [account, device] : change.removed_devices)
    if (!s.remove_device.start().integer(account).text(device).done()) return failed("cannot be written");
  for (const AccountRecord& r : change.accounts)
    if (!s.account.start().integer(r.id).text(r.name).time(r.created).blob(r.token_hash).done() ||
        !count("account", r.id))
      return failed("cannot be written");
  for (const AuthKeyRecord& r : change.keys)
    if (!s.key.start().integer(r.id).integer(r.account).text(r.prefix).blob(r.secret_hash).text(r.device_id)
             .integer(r.reusable).integer(r.ephemeral).integer(r.used).integer(r.revoked).time(r.created)
             .time(r.expires).blob(r.sealed).done() ||
        !count("key", r.id))
      return failed("cannot be written");
  for (const DeviceRecord& r : change.devices)
    if (!s.device.start().integer(r.account).text(r.device_id).integer(r.generation).integer(r.key).time(r.created)
             .integer(r.node).done())
      return failed("cannot be written");
  for (const NodeRecord& r : change.nodes) {
    std::string endpoints;
    for (const Endpoint& e : r.endpoints) endpoints += (endpoints.empty() ? "" : " ") + e.to_string();
    if (!s.node.start().integer(r.id).integer(r.account).text(r.device_id).integer(r.auth_key)
             .blob(r.machine.bytes()).blob(r.node_key.bytes()).blob(r.disco_key.bytes()).text(r.ipv4.to_string())
             .text(r.ipv6.to_string()).text(r.label).text(ts2021::encode_hostinfo(r.hostinfo)).text(endpoints)
             .integer(r.home_relay).integer(r.cap).integer(r.ephemeral).time(r.created).time(r.key_expiry)
             .time(r.last_seen).done() ||
        !count("node", r.id))
      return failed("cannot be written");
  }
  return {};
}

Result<StoreSnapshot> SqliteStore::load() {
  StoreSnapshot out;
  auto each = [&](const char* sql, auto&& row) -> Status {
    Statement q;
    if (!q.prepare(db_, sql)) return failed("cannot be read");
    for (;;) {
      int code = q.step();
      if (code == SQLITE_DONE) return {};
      if (code != SQLITE_ROW) return failed("cannot be read");
      if (Status ok = row(q); !ok) return ok;
    }
  };
  auto damaged = [&](const std::string& what) {
    return Error{ErrorCode::kInvalid, "store " + path_ + ": " + what + " cannot be understood; restore a backup"};
  };
  Status ok = each("SELECT name, value FROM counters", [&](Statement& q) -> Status {
    std::string name = q.get_text();
    std::int64_t value = q.get_integer();
    (name == "account" ? out.last_account : name == "key" ? out.last_key : out.last_node) = value;
    return {};
  });
  if (ok)
    ok = each("SELECT * FROM accounts ORDER BY id", [&](Statement& q) -> Status {
      AccountRecord r;
      r.id = q.get_integer();
      r.name = q.get_text();
      r.created = q.get_time();
      r.token_hash = q.get_hash();
      out.accounts.push_back(std::move(r));
      return {};
    });
  if (ok)
    ok = each("SELECT * FROM auth_keys ORDER BY id", [&](Statement& q) -> Status {
      AuthKeyRecord r;
      r.id = q.get_integer();
      r.account = q.get_integer();
      r.prefix = q.get_text();
      r.secret_hash = q.get_hash();
      r.device_id = q.get_text();
      r.reusable = q.get_bool();
      r.ephemeral = q.get_bool();
      r.used = q.get_bool();
      r.revoked = q.get_bool();
      r.created = q.get_time();
      r.expires = q.get_optional_time();
      Bytes sealed = q.get_blob();
      r.sealed.assign(sealed.begin(), sealed.end());
      out.keys.push_back(std::move(r));
      return {};
    });
  if (ok)
    ok = each("SELECT * FROM devices ORDER BY account, device", [&](Statement& q) -> Status {
      DeviceRecord r;
      r.account = q.get_integer();
      r.device_id = q.get_text();
      r.generation = q.get_integer();
      r.key = q.get_integer();
      r.created = q.get_time();
      r.node = q.get_integer();
      out.devices.push_back(std::move(r));
      return {};
    });
  if (ok)
    ok = each("SELECT * FROM nodes ORDER BY id", [&](Statement& q) -> Status {
      NodeRecord r;
      r.id = q.get_integer();
      std::string what = "node " + std::to_string(r.id);
      r.account = q.get_integer();
      r.device_id = q.get_text();
      r.auth_key = q.get_integer();
      r.machine = MachinePublic::from_bytes(q.get_blob());
      r.node_key = NodePublic::from_bytes(q.get_blob());
      r.disco_key = DiscoPublic::from_bytes(q.get_blob());
      auto ipv4 = IpAddress::parse(q.get_text());
      auto ipv6 = IpAddress::parse(q.get_text());
      r.label = q.get_text();
      auto hostinfo = ts2021::parse_hostinfo(as_bytes(q.get_text()));
      if (!ipv4 || !ipv6 || !hostinfo || r.node_key.is_zero()) return damaged(what);
      r.ipv4 = *ipv4;
      r.ipv6 = *ipv6;
      r.hostinfo = std::move(*hostinfo);
      std::string endpoints = q.get_text();
      for (std::size_t at = 0; at < endpoints.size();) {
        std::size_t end = std::min(endpoints.find(' ', at), endpoints.size());
        if (auto e = Endpoint::parse(std::string_view(endpoints).substr(at, end - at))) r.endpoints.push_back(*e);
        at = end + 1;
      }
      r.home_relay = static_cast<int>(q.get_integer());
      r.cap = static_cast<int>(q.get_integer());
      r.ephemeral = q.get_bool();
      r.created = q.get_time();
      r.key_expiry = q.get_optional_time();
      r.last_seen = q.get_optional_time();
      out.nodes.push_back(std::move(r));
      return {};
    });
  if (!ok) return ok.error();
  return out;
}

void SqliteStore::limit_pages(int pages) { (void)run("PRAGMA max_page_count=" + std::to_string(pages)); }

}  // namespace porthole::remote
