// Files that survive crashes: atomic replacement, private modes, an exclusive lock on a state directory.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/bytes.h"
#include "base/result.h"

namespace porthole::runtime {

// Owns a descriptor; closes it when dropped.
class UniqueFd {
 public:
  explicit UniqueFd(int fd = -1) : fd_(fd) {}
  UniqueFd(UniqueFd&& o) noexcept : fd_(o.release()) {}
  UniqueFd& operator=(UniqueFd&& o) noexcept {
    if (this != &o) reset(o.release());
    return *this;
  }
  ~UniqueFd() { reset(); }
  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  int release() {
    int fd = fd_;
    fd_ = -1;
    return fd;
  }
  void reset(int fd = -1);

 private:
  int fd_;
};

// nullopt when the file does not exist.
Result<std::optional<std::string>> read_file(const std::string& path, std::size_t size_max);

// Temporary file beside it, mode 0600, fsync, rename, fsync of the directory. Whatever fails (full disk included), the
// old content stays.
Status write_file_atomic(const std::string& path, std::string_view content);

// Creates `path` (0700) with its parents and takes an exclusive lock for the life of the object.
// kPermission: cannot be created or written. kAlreadyExists: another process holds it.
class StateDir {
 public:
  static Result<StateDir> open(const std::string& path);
  const std::string& path() const { return path_; }
  std::string file(std::string_view name) const { return path_ + "/" + std::string(name); }
  // The next process, or node, may have it.
  void unlock() { lock_.reset(); }

 private:
  StateDir(std::string path, UniqueFd lock) : path_(std::move(path)), lock_(std::move(lock)) {}
  std::string path_;
  UniqueFd lock_;
};

// "doing what: reason" from errno, with the matching code.
Error errno_error(std::string_view doing_what, int error_number);

}  // namespace porthole::runtime
