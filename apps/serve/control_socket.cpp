#include "serve/control_socket.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <cstring>
#include <thread>

#include "support/support.h"

namespace porthole::serve {
namespace {

using app::CommandError;

constexpr std::size_t kLineMax = 64 * 1024;
constexpr int kTimeoutMs = 5000;

class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_(fd) {}
  Descriptor(Descriptor&& o) noexcept : fd_(std::exchange(o.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& o) noexcept {
    std::swap(fd_, o.fd_);
    return *this;
  }
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

// The socket's name by way of an open directory, since the directory's own path may be longer than a socket's may be.
sockaddr_un address_in(int directory) {
  sockaddr_un out{};
  out.sun_family = AF_UNIX;
  std::string path = "/proc/self/fd/" + std::to_string(directory) + "/control.sock";
  std::memcpy(out.sun_path, path.data(), path.size());
  return out;
}

Descriptor open_directory(const std::string& path) {
  Descriptor out(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (out.get() < 0) throw CommandError("cannot open the state directory " + path + ": " + std::strerror(errno));
  return out;
}

const sockaddr* generic(const sockaddr_un& a) { return reinterpret_cast<const sockaddr*>(&a); }

std::string read_line(int fd) {
  std::string line;
  pollfd p{fd, POLLIN, 0};
  while (line.size() < kLineMax && ::poll(&p, 1, kTimeoutMs) > 0) {
    char part[4096];
    ssize_t n = ::read(fd, part, sizeof part);
    if (n <= 0) break;
    line.append(part, static_cast<std::size_t>(n));
    if (line.back() == '\n') break;
  }
  return line;
}

void write_all(int fd, std::string_view text) {
  while (!text.empty()) {
    ssize_t n = ::send(fd, text.data(), text.size(), MSG_NOSIGNAL);
    if (n <= 0) return;  // the asker went away
    text.remove_prefix(static_cast<std::size_t>(n));
  }
}

}  // namespace

class ControlSocket::Impl {
 public:
  Impl(const std::string& state_dir, Handler handler) : handler_(std::move(handler)), directory_(open_directory(state_dir)) {
    lock_ = Descriptor(::openat(directory_.get(), "lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (lock_.get() < 0) throw CommandError("cannot write to " + state_dir + ": " + std::strerror(errno));
    if (::flock(lock_.get(), LOCK_EX | LOCK_NB) != 0)
      throw CommandError("another porthole serve is using the state directory " + state_dir);
    ::unlinkat(directory_.get(), "control.sock", 0);
    listener_ = Descriptor(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un at = address_in(directory_.get());
    // Nobody can connect before listen(), so the mode is right by then.
    if (listener_.get() < 0 || ::bind(listener_.get(), generic(at), sizeof at) != 0 || ::chmod(at.sun_path, 0600) != 0 ||
        ::listen(listener_.get(), 8) != 0)
      throw CommandError("cannot make the control socket in " + state_dir + ": " + std::strerror(errno));
    stop_ = Descriptor(::eventfd(0, EFD_CLOEXEC));
    thread_ = std::thread([this] { run(); });
  }
  ~Impl() {
    std::uint64_t one = 1;
    [[maybe_unused]] ssize_t n = ::write(stop_.get(), &one, sizeof one);
    thread_.join();
    ::unlinkat(directory_.get(), "control.sock", 0);
  }

 private:
  void run() {
    for (;;) {
      pollfd p[2] = {{listener_.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}};
      if (::poll(p, 2, -1) < 0 && errno != EINTR) return;
      if (p[1].revents != 0) return;
      if ((p[0].revents & POLLIN) == 0) continue;
      Descriptor asker(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (asker.get() < 0) continue;
      boost::system::error_code error;
      boost::json::value request = boost::json::parse(read_line(asker.get()), error);
      boost::json::object answer;
      if (error || !request.is_object())
        answer["error"] = "not a JSON object";
      else
        answer = handler_(request.as_object());
      write_all(asker.get(), boost::json::serialize(answer) + "\n");
    }
  }

  Handler handler_;
  Descriptor directory_, lock_, listener_, stop_;
  std::thread thread_;
};

ControlSocket::ControlSocket(const std::string& state_dir, Handler handler)
    : impl_(std::make_unique<Impl>(state_dir, std::move(handler))) {}
ControlSocket::~ControlSocket() = default;

boost::json::object ask_server(const std::string& state_dir, const boost::json::object& request) {
  Descriptor directory = open_directory(state_dir);
  Descriptor fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un at = address_in(directory.get());
  if (fd.get() < 0 || ::connect(fd.get(), generic(at), sizeof at) != 0)
    throw CommandError("no porthole serve is running with the state directory " + state_dir);
  write_all(fd.get(), boost::json::serialize(request) + "\n");
  boost::system::error_code error;
  boost::json::value answer = boost::json::parse(read_line(fd.get()), error);
  if (error || !answer.is_object()) throw CommandError("the server did not answer");
  if (const boost::json::value* problem = answer.as_object().if_contains("error"); problem && problem->is_string())
    throw CommandError(std::string(problem->as_string()));
  return answer.as_object();
}

}  // namespace porthole::serve
