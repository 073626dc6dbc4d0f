// The coordinator's records in one SQLite file (WAL), for the embedded coordinator.
#pragma once

#include <memory>
#include <string>

#include "coordinator/store.h"

struct sqlite3;
struct sqlite3_stmt;

namespace porthole::remote {

// The schema this program writes. A file of an older one is brought up to date, a newer one is refused untouched.
constexpr int kSchemaVersion = 2;

class SqliteStore final : public coordinator::Store {
 public:
  // Opens or creates `path` (mode 0600). Error: not writable, not a database, somebody else's, damaged, or written by a
  // newer version; what is there is left as it is.
  static Result<std::unique_ptr<SqliteStore>> open(const std::string& path);
  ~SqliteStore() override;

  Result<coordinator::StoreSnapshot> load() override;
  Status commit(const coordinator::StoreChange& change) override;

  // Whether anybody depends on the keys beside the store. False also when the store cannot be read: load() says why.
  bool has_accounts() { return has_rows("accounts"); }
  bool has_nodes() { return has_rows("nodes"); }

  // Tests: the file may not grow beyond this (a disk that is full).
  void limit_pages(int pages);

 private:
  class Statement;
  struct Statements;
  explicit SqliteStore(std::string path);
  Status prepare();
  Error failed(const std::string& what) const;
  Status run(const std::string& sql);
  bool has_rows(const std::string& table);
  Status write(const coordinator::StoreChange& change);

  std::string path_;
  sqlite3* db_ = nullptr;
  std::unique_ptr<Statements> statements_;
  bool synchronous_full_ = false;
};

}  // namespace porthole::remote
