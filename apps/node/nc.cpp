#include "node/nc.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "support/support.h"

namespace porthole::app {
namespace {
constexpr std::size_t kBlock = 64 * 1024;

// One direction: at most one block under way.
struct Buffer {
  std::vector<char> bytes = std::vector<char>(kBlock);
  std::size_t at = 0, end = 0;
  bool source_ended = false;
  bool done = false;   // the end was passed on, too
  bool empty() const { return at == end; }
};

bool later(int error) { return error == EINTR || error == EAGAIN || error == EWOULDBLOCK; }

// Writing must not block while the other direction has something to do, and the descriptor's own mode is shared with
// other programs: a pipe is opened again for ourselves, a socket is asked at each call, all else is taken in pieces
// that poll() promised.
struct Output {
  explicit Output(int fd_) : fd(fd_) {
    struct stat s {};
    ::fstat(fd, &s);
    is_socket = S_ISSOCK(s.st_mode);
    if (S_ISFIFO(s.st_mode)) own = ::open(("/proc/self/fd/" + std::to_string(fd)).c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC);
  }
  ~Output() { finish(); }
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;
  int to_poll() const { return own >= 0 ? own : fd; }
  ssize_t write(const char* data, std::size_t size) const {
    if (is_socket) return ::send(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (own >= 0) return ::write(own, data, size);
    return ::write(fd, data, std::min<std::size_t>(size, PIPE_BUF));
  }
  void finish() {
    if (own >= 0) ::close(own);
    own = -1;
    if (fd < 0) return;
    // Standard output may be the same socket as standard input.
    if (is_socket) ::shutdown(fd, SHUT_WR);
    int null = ::open("/dev/null", O_WRONLY | O_CLOEXEC);
    if (null >= 0) {
      ::dup2(null, fd);
      ::close(null);
    }
    fd = -1;
  }
  int fd;
  int own = -1;
  bool is_socket = false;
};

}  // namespace

int copy_both_ways(int in, int out_fd, int socket, int stop_fd, const std::string& name) {
  ::fcntl(socket, F_SETFL, ::fcntl(socket, F_GETFL) | O_NONBLOCK);
  const bool terminal = ::isatty(in) == 1;
  Output out(out_fd);
  Buffer up, down;
  auto broke = [&](int error) -> int { throw CommandError("the connection to " + name + " broke: " + std::strerror(error)); };
  while (!(down.done && (up.done || terminal))) {
    pollfd p[5] = {{up.empty() && !up.source_ended ? in : -1, POLLIN, 0},
                   {!down.done && !down.empty() ? out.to_poll() : -1, POLLOUT, 0},
                   {socket, 0, 0},
                   {stop_fd, POLLIN, 0},
                   {!down.done && down.empty() ? out.to_poll() : -1, 0, 0}};   // POLLERR: nobody reads any more
    if (!up.empty()) p[2].events |= POLLOUT;
    if (down.empty() && !down.source_ended) p[2].events |= POLLIN;
    if (p[2].events == 0 && down.source_ended) p[2].fd = -1;   // its POLLHUP would only wake us
    if (::poll(p, 5, -1) < 0) {
      if (errno == EINTR) continue;
      return broke(errno);
    }
    if (p[3].revents) return 130;

    if (p[0].revents) {
      ssize_t n = ::read(in, up.bytes.data(), kBlock);
      if (n > 0) {
        up.at = 0;
        up.end = static_cast<std::size_t>(n);
      } else if (n == 0 || !later(errno)) {
        up.source_ended = true;
      }
    }
    if (!up.empty()) {
      ssize_t n = ::send(socket, up.bytes.data() + up.at, up.end - up.at, MSG_NOSIGNAL);
      if (n > 0) up.at += static_cast<std::size_t>(n);
      else if (!later(errno)) return broke(errno);
    }
    if (up.empty() && up.source_ended && !up.done) {
      ::shutdown(socket, SHUT_WR);
      up.done = true;
    }

    if (down.empty() && !down.source_ended && (p[2].revents & (POLLIN | POLLHUP | POLLERR))) {
      ssize_t n = ::recv(socket, down.bytes.data(), kBlock, 0);
      if (n > 0) {
        down.at = 0;
        down.end = static_cast<std::size_t>(n);
      } else if (n == 0) {
        down.source_ended = true;
      } else if (!later(errno)) {
        return broke(errno);
      }
    } else if (p[2].revents & POLLERR) {
      int error = 0;
      socklen_t size = sizeof error;
      ::getsockopt(socket, SOL_SOCKET, SO_ERROR, &error, &size);
      if (error != 0) return broke(error);
    }
    if (!down.empty() && p[1].revents) {
      ssize_t n = out.write(down.bytes.data() + down.at, down.end - down.at);
      if (n > 0) down.at += static_cast<std::size_t>(n);
      else if (errno == EPIPE || errno == ECONNRESET) return 0;   // nobody reads any more: not our failure
      else if (!later(errno)) throw CommandError(std::string("cannot write to standard output: ") + std::strerror(errno));
    }
    if (p[4].revents & (POLLERR | POLLNVAL)) return 0;
    if (down.empty() && down.source_ended && !down.done) {
      out.finish();
      down.done = true;
    }
  }
  return 0;
}

}  // namespace porthole::app
