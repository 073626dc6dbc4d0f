#include "serve/control_socket.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <chrono>
#include <cstring>
#include <deque>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "support/support.h"

namespace porthole::serve {
namespace {

using app::CommandError;

using Clock = std::chrono::steady_clock;

// A request has a dozen bytes, an answer up to 1 KiB for each of kSessionsMax sessions.
constexpr std::size_t kLineMax = 256 * 1024;
// From the connection to the end of the answer: both ends are on this machine, and status waits for the server's loop.
constexpr std::chrono::seconds kTimeout{5};
// Commands of one user at a time; whoever comes then takes the place of the one that has been there longest.
constexpr std::size_t kAskersMax = 16;

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

int ms_until(Clock::time_point end) {
  auto left = std::chrono::ceil<std::chrono::milliseconds>(end - Clock::now());
  return static_cast<int>(std::max<std::chrono::milliseconds::rep>(0, left.count()));
}

// One command that asks: its line comes in, the answer goes out, neither may hold up anybody else.
struct Asker {
  Descriptor fd;
  Clock::time_point until;
  std::string in, out;
  bool done = false;

  // What is there, once the line is complete or the other side has said all it will.
  std::optional<std::string> read() {
    char part[4096];
    for (;;) {
      ssize_t n = ::recv(fd.get(), part, sizeof part, MSG_DONTWAIT);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && errno == EAGAIN) return std::nullopt;
      if (n > 0) in.append(part, static_cast<std::size_t>(n));
      if (n <= 0 || in.back() == '\n' || in.size() >= kLineMax) return std::move(in);
    }
  }
  void write() {
    while (!out.empty()) {
      ssize_t n = ::send(fd.get(), out.data(), out.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && errno == EAGAIN) return;
      if (n <= 0) break;  // the asker went away
      out.erase(0, static_cast<std::size_t>(n));
    }
    done = true;
  }
};

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
      std::vector<pollfd> p{{stop_.get(), POLLIN, 0}, {listener_.get(), POLLIN, 0}};
      for (const Asker& a : askers_) p.push_back({a.fd.get(), static_cast<short>(a.out.empty() ? POLLIN : POLLOUT), 0});
      if (::poll(p.data(), p.size(), askers_.empty() ? -1 : ms_until(askers_.front().until)) < 0 && errno != EINTR) return;
      if (p[0].revents != 0) return;
      std::size_t i = 2;
      for (Asker& a : askers_)
        if (p[i++].revents != 0) serve(a);
      std::erase_if(askers_, [now = Clock::now()](const Asker& a) { return a.done || a.until <= now; });
      if ((p[1].revents & POLLIN) == 0) continue;
      Descriptor fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (fd.get() < 0) continue;
      if (askers_.size() >= kAskersMax) askers_.pop_front();
      askers_.push_back({std::move(fd), Clock::now() + kTimeout, {}, {}});
    }
  }

  void serve(Asker& a) {
    if (a.out.empty()) {
      std::optional<std::string> line = a.read();
      if (!line) return;
      boost::system::error_code error;
      boost::json::value request = boost::json::parse(*line, error);
      boost::json::object answer;
      if (error || !request.is_object())
        answer["error"] = "not a JSON object";
      else
        answer = handler_(request.as_object());
      a.out = boost::json::serialize(answer) + "\n";
    }
    a.write();
  }

  Handler handler_;
  Descriptor directory_, lock_, listener_, stop_;
  std::deque<Asker> askers_;  // oldest first
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
  Asker self{std::move(fd), Clock::now() + kTimeout, {}, boost::json::serialize(request) + "\n"};
  self.write();  // a line fits into the socket's buffer
  std::optional<std::string> line;
  for (pollfd p{self.fd.get(), POLLIN, 0}; !line && ms_until(self.until) > 0; line = self.read())
    if (::poll(&p, 1, ms_until(self.until)) == 0) break;
  boost::system::error_code error;
  boost::json::value answer = boost::json::parse(line.value_or(""), error);
  if (error || !answer.is_object()) throw CommandError("the server with the state directory " + state_dir + " did not answer within " +
                                                   std::to_string(kTimeout.count()) + " s");
  if (const boost::json::value* problem = answer.as_object().if_contains("error"); problem && problem->is_string())
    throw CommandError(std::string(problem->as_string()));
  return answer.as_object();
}

}  // namespace porthole::serve
