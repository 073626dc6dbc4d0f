#include "runtime/files.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace porthole::runtime {

void UniqueFd::reset(int fd) {
  if (fd_ >= 0) ::close(fd_);
  fd_ = fd;
}

Error errno_error(std::string_view doing_what, int e) {
  ErrorCode code = ErrorCode::kIo;
  switch (e) {
    case EACCES:
    case EPERM:
    case EROFS: code = ErrorCode::kPermission; break;
    case ENOENT: code = ErrorCode::kNotFound; break;
    case EADDRINUSE:
    case EEXIST: code = ErrorCode::kAlreadyExists; break;
    case ECONNREFUSED: code = ErrorCode::kRefused; break;
    case ETIMEDOUT: code = ErrorCode::kTimeout; break;
    case ECONNRESET:
    case EPIPE: code = ErrorCode::kReset; break;
    case ENETUNREACH:
    case EHOSTUNREACH:
    case EADDRNOTAVAIL: code = ErrorCode::kUnavailable; break;
    case ENOSPC:
    case EDQUOT:
    case EMFILE:
    case ENFILE: code = ErrorCode::kLimit; break;
    default: break;
  }
  return {code, std::string(doing_what) + ": " + std::strerror(e)};
}

Result<std::optional<std::string>> read_file(const std::string& path, std::size_t size_max) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) {
    if (errno == ENOENT) return std::optional<std::string>{};
    return errno_error("cannot read " + path, errno);
  }
  std::string text;
  char block[16384];
  for (;;) {
    ssize_t n = ::read(fd.get(), block, sizeof block);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_error("cannot read " + path, errno);
    if (n == 0) return std::optional<std::string>(std::move(text));
    text.append(block, static_cast<std::size_t>(n));
    if (text.size() > size_max) return Error{ErrorCode::kLimit, path + " is larger than it can be; is it the right file?"};
  }
}

Status write_file_atomic(const std::string& path, std::string_view content) {
  std::string temporary = path + ".new";
  auto fail = [&](std::string_view what) -> Status {
    int e = errno;
    ::unlink(temporary.c_str());
    return errno_error(std::string("cannot ") + std::string(what) + " " + path + " (the old content is kept)", e);
  };
  UniqueFd fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd) return fail("write");
  if (::fchmod(fd.get(), 0600) != 0) return fail("set the mode of");
  while (!content.empty()) {
    ssize_t n = ::write(fd.get(), content.data(), content.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return fail("write");
    content.remove_prefix(static_cast<std::size_t>(n));
  }
  if (::fsync(fd.get()) != 0) return fail("write");
  if (::close(fd.release()) != 0) return fail("write");
  if (::rename(temporary.c_str(), path.c_str()) != 0) return fail("replace");
  std::size_t slash = path.rfind('/');
  UniqueFd dir(::open(slash == std::string::npos ? "." : path.substr(0, slash + 1).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (dir) ::fsync(dir.get());
  return {};
}

Result<StateDir> StateDir::open(const std::string& path) {
  for (std::size_t i = 1; i <= path.size(); ++i) {
    if (i < path.size() && path[i] != '/') continue;
    if (::mkdir(path.substr(0, i).c_str(), 0700) != 0 && errno != EEXIST && errno != EISDIR && i == path.size())
      return errno_error("cannot create the state directory " + path, errno);
  }
  struct stat s {};
  if (::stat(path.c_str(), &s) != 0) return errno_error("cannot use the state directory " + path, errno);
  if (!S_ISDIR(s.st_mode)) return Error{ErrorCode::kInvalid, "the state directory " + path + " is not a directory"};
  std::string lock_path = path + "/lock";
  UniqueFd lock(::open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!lock) return errno_error("the state directory " + path + " is not writable", errno);
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK)
      return Error{ErrorCode::kAlreadyExists,
                   "the state directory " + path + " is in use by another process; stop it or choose another directory"};
    return errno_error("cannot lock the state directory " + path, errno);
  }
  return StateDir(path, std::move(lock));
}

}  // namespace porthole::runtime
