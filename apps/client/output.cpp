#include "client/output.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "support/support.h"

namespace porthole::client {

Output::Output(std::string path) : path_(path == "-" ? std::string() : std::move(path)) {}

Output::~Output() {
  if (fd_ > STDERR_FILENO) ::close(fd_);
  if (!partial_.empty()) ::unlink(partial_.c_str());
}

void Output::fail() const { throw app::CommandError("cannot write " + name() + ": " + std::strerror(errno)); }

std::string Output::name() const { return path_.empty() ? "standard output" : path_; }

std::string Output::unfinished() const {
  if (path_.empty() || (fd_ >= 0 && partial_.empty())) return "what was written to " + name() + " is not complete";
  struct stat s {};
  return ::stat(path_.c_str(), &s) == 0 ? path_ + " is as it was" : path_ + " was not written";
}

void Output::open() {
  struct stat s {};
  if (path_.empty()) {
    fd_ = STDOUT_FILENO;
    waits_ = ::fstat(fd_, &s) != 0 || !S_ISREG(s.st_mode);
    return;
  }
  bool there = ::stat(path_.c_str(), &s) == 0;
  if (there && !S_ISREG(s.st_mode)) {
    fd_ = ::open(path_.c_str(), O_WRONLY | O_CLOEXEC);
    if (fd_ < 0) fail();
    waits_ = true;
    return;
  }
  // What its owner made read-only is not replaced either.
  if (there && ::access(path_.c_str(), W_OK) != 0) fail();
  std::error_code error;
  target_ = std::filesystem::weakly_canonical(path_, error).string();
  if (error) target_ = path_;
  std::string partial = target_ + ".part." + std::to_string(::getpid());
  fd_ = ::open(partial.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0644);
  if (fd_ < 0) fail();
  partial_ = std::move(partial);
  if (there) ::fchmod(fd_, s.st_mode & 07777);
}

bool Output::ready() const {
  pollfd p{fd_, POLLOUT, 0};
  return !waits_ || ::poll(&p, 1, 0) > 0;
}

void Output::wait(int stop_fd) const {
  pollfd p[2] = {{fd_, POLLOUT, 0}, {stop_fd, POLLIN, 0}};
  while (::poll(p, 2, -1) < 0 && errno == EINTR) {
  }
}

std::size_t Output::write(std::string_view bytes) {
  // A pipe that is ready takes this much without waiting for its reader.
  if (waits_) bytes = bytes.substr(0, PIPE_BUF);
  ssize_t n = ::write(fd_, bytes.data(), bytes.size());
  if (n < 0 && (errno == EINTR || errno == EAGAIN)) return 0;
  if (n <= 0) fail();
  return static_cast<std::size_t>(n);
}

void Output::finish() {
  // Pipes and some devices know no fsync.
  if (!path_.empty() && ::fsync(fd_) != 0 && errno != EINVAL) fail();
  if (partial_.empty()) return;
  if (::rename(partial_.c_str(), target_.c_str()) != 0) fail();
  partial_.clear();
}

}  // namespace porthole::client
