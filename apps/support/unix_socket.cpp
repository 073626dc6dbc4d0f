#include "support/unix_socket.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace porthole::app {
namespace {

int call(int (*what)(int, const sockaddr*, socklen_t), int fd, const std::string& path) {
  sockaddr_un a{};
  a.sun_family = AF_UNIX;
  std::string name = path;
  int directory = -1;
  // Shorter paths do without /proc, and say where they are to whoever lists sockets.
  if (std::size_t slash = path.rfind('/'); path.size() >= sizeof a.sun_path && slash != std::string::npos) {
    directory = ::open(path.substr(0, slash + 1).c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0) return -1;
    name = "/proc/self/fd/" + std::to_string(directory) + path.substr(slash);
  }
  int result = -1;
  int error = ENAMETOOLONG;
  if (name.size() < sizeof a.sun_path) {
    std::memcpy(a.sun_path, name.data(), name.size());
    result = what(fd, reinterpret_cast<const sockaddr*>(&a), sizeof a);
    error = errno;
  }
  if (directory >= 0) ::close(directory);
  errno = error;
  return result;
}

}  // namespace

int bind_unix(int fd, const std::string& path) { return call(::bind, fd, path); }
int connect_unix(int fd, const std::string& path) { return call(::connect, fd, path); }

}  // namespace porthole::app
