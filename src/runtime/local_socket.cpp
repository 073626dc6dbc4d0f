#include "runtime/local_socket.h"

#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>

#include "runtime/sockaddr.h"

namespace porthole::runtime {

Result<UniqueFd> listen_tcp(const Endpoint& address, int backlog) {
  UniqueFd fd(::socket(address.address.is_v6() ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  std::string what = "cannot listen on " + address.to_string();
  if (!fd) return errno_error(what, errno);
  int one = 1;
  ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  SockAddr a = to_sockaddr(address);
  if (::bind(fd.get(), a.get(), a.size) != 0 || ::listen(fd.get(), backlog) != 0) return errno_error(what, errno);
  return fd;
}

Result<UniqueFd> connect_tcp(const Endpoint& address) {
  UniqueFd fd(::socket(address.address.is_v6() ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  std::string what = "cannot connect to " + address.to_string();
  if (!fd) return errno_error(what, errno);
  SockAddr a = to_sockaddr(address);
  if (::connect(fd.get(), a.get(), a.size) != 0 && errno != EINPROGRESS) return errno_error(what, errno);
  return fd;
}

Result<UniqueFd> listen_unix(const std::string& path) {
  sockaddr_un a{};
  a.sun_family = AF_UNIX;
  // A socket's name has room for 107 characters, and people choose their state directories: a longer path is bound by way
  // of its open directory. Shorter ones do without /proc, and say where they are to whoever lists sockets.
  std::string name = path;
  UniqueFd directory;
  if (std::size_t slash = path.rfind('/'); path.size() >= sizeof a.sun_path && slash != std::string::npos) {
    directory.reset(::open(path.substr(0, slash + 1).c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!directory) return errno_error("cannot listen on " + path, errno);
    name = "/proc/self/fd/" + std::to_string(directory.get()) + path.substr(slash);
  }
  if (name.size() >= sizeof a.sun_path) return errno_error("cannot listen on " + path, ENAMETOOLONG);
  std::memcpy(a.sun_path, name.data(), name.size());
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return errno_error("cannot open a socket", errno);
  // The state directory is locked by us, so a socket file that exists is left from a process that was killed.
  ::unlink(path.c_str());
  // Between bind and chmod the directory's own mode (0700) keeps others out.
  if (::bind(fd.get(), reinterpret_cast<sockaddr*>(&a), sizeof a) != 0) return errno_error("cannot listen on " + path, errno);
  if (::chmod(path.c_str(), 0600) != 0 || ::listen(fd.get(), 16) != 0) return errno_error("cannot listen on " + path, errno);
  return fd;
}

Result<std::pair<UniqueFd, UniqueFd>> connected_pair() {
  auto listener = listen_tcp({IpAddress::v4(127, 0, 0, 1), 0}, 16);
  if (!listener) return listener.error();
  auto ours = connect_tcp(local_endpoint(listener->get()));
  if (!ours) return ours.error();
  Endpoint our_name = local_endpoint(ours->get());
  // Another local process may be quicker than we are; only our own connection is accepted.
  for (int i = 0; i < 16; ++i) {
    pollfd p{listener->get(), POLLIN, 0};
    ::poll(&p, 1, 1000);
    UniqueFd app(::accept4(listener->get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!app) return errno_error("cannot make a local connection", errno);
    if (remote_endpoint(app.get()) != our_name) continue;
    int one = 1;
    ::setsockopt(app.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    // 0, 1 and 2 mean other things to programs.
    if (app.get() < 3) app.reset(::fcntl(app.get(), F_DUPFD_CLOEXEC, 3));
    tune_local(ours->get());
    return std::pair(std::move(*ours), std::move(app));
  }
  return Error{ErrorCode::kLimit, "cannot make a local connection: something else keeps connecting to it"};
}

namespace {
constexpr std::size_t kDialTextMax = 512;   // as in porthole_error
}

ssize_t send_with_descriptor(int fd, std::string_view text, int passed) {
  iovec part{const_cast<char*>(text.data()), text.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof passed)] = {};
  if (passed >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof passed);
    std::memcpy(CMSG_DATA(c), &passed, sizeof passed);
  }
  return ::sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

// The message is a byte, 0 or the code and one, and the sentence. Sending fails only if nobody is there any more.
void tell_dialled(int fd, const Result<UniqueFd>& outcome) {
  if (outcome) {
    send_with_descriptor(fd, std::string_view("", 1), outcome->get());
    return;
  }
  const Error& e = outcome.error();
  send_with_descriptor(fd, static_cast<char>(static_cast<int>(e.code) + 1) + e.message.substr(0, kDialTextMax - 1), -1);
}

Result<UniqueFd> take_dialled(int fd) {
  char text[kDialTextMax];
  iovec part{text, sizeof text};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t n;
  do n = ::recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  while (n < 0 && errno == EINTR);
  if (n < 0 && errno == EAGAIN) return Error{ErrorCode::kUnavailable, "the dial has not ended yet"};
  if (n < 0) return errno_error("this descriptor is not one of a dial", errno);
  UniqueFd got;
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS || c->cmsg_len != CMSG_LEN(sizeof(int))) continue;
    int passed = -1;
    std::memcpy(&passed, CMSG_DATA(c), sizeof passed);
    got.reset(passed);
  }
  if (n == 0) return Error{ErrorCode::kCancelled, "the node was closed, or the outcome was taken before"};
  if (text[0] != 0) return Error{static_cast<ErrorCode>(text[0] - 1), std::string(text + 1, static_cast<std::size_t>(n) - 1)};
  if (!got) return Error{ErrorCode::kLimit, "this program has no descriptor left for the connection"};
  if (got.get() < 3) got.reset(::fcntl(got.get(), F_DUPFD_CLOEXEC, 3));
  return got;
}

void tune_local(int fd) {
  int one = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  ::setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4);
}

void reset_on_close(int fd) {
  linger l{1, 0};
  ::setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof l);
}

}  // namespace porthole::runtime
