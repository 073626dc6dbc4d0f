#include "support/support.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <mutex>
#include <sstream>

#include "support/output.h"

namespace porthole::app {
namespace {

// A signal handler can reach nothing but globals.
std::atomic<bool> g_stopped{false};
int g_stop_fd = -1;

// Readable once a signal asked for the end, whoever installs the handlers and when.
int stop_descriptor() {
  static std::once_flag once;
  std::call_once(once, [] { g_stop_fd = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); });
  return g_stop_fd;
}

void on_signal(int) {
  int saved = errno;
  g_stopped = true;
  std::uint64_t one = 1;
  [[maybe_unused]] ssize_t n = ::write(g_stop_fd, &one, sizeof one);
  errno = saved;
}

std::string reason() { return std::strerror(errno); }

Output& standard_output() {
  static Output& out = *new Output(STDOUT_FILENO, stop_descriptor());
  return out;
}

// Lines for both are one queue when both are one terminal, pipe or file: their order is what the reader sees.
Output& standard_error() {
  static Output& output = []() -> Output& {
    struct stat out {}, err {};
    const bool same = ::fstat(STDOUT_FILENO, &out) == 0 && ::fstat(STDERR_FILENO, &err) == 0 && out.st_dev == err.st_dev &&
                      out.st_ino == err.st_ino;
    return same ? standard_output() : *new Output(STDERR_FILENO, stop_descriptor());
  }();
  return output;
}

}  // namespace

void print_event(const boost::json::object& event) {
  standard_output().put(boost::json::serialize(event) + "\n", Output::Kind::kJson);
}
void print_answer(const boost::json::object& answer) {
  standard_output().put_answer(boost::json::serialize(answer) + "\n", Output::Kind::kJson);
}
void print_answer_line(const std::string& line) { standard_output().put_answer(line + "\n", Output::Kind::kText); }
void print_text(const std::string& line) { standard_output().put(line + "\n", Output::Kind::kText); }
void print_log(const std::string& line) { standard_error().put(line + "\n", Output::Kind::kText); }

void flush_output() {
  const auto begin = std::chrono::steady_clock::now();
  int failure = std::fflush(stdout) != 0 && errno != EPIPE ? errno : 0;
  standard_output().flush(begin);
  standard_error().flush(begin);
  if (failure == 0) failure = standard_output().failure();
  if (failure != 0) throw CommandError(std::string("cannot write to standard output: ") + std::strerror(failure));
}

StopSignal::StopSignal() {
  static std::once_flag once;
  std::call_once(once, [] {
    stop_descriptor();
    struct sigaction action {};
    action.sa_handler = on_signal;
    ::sigaction(SIGINT, &action, nullptr);
    ::sigaction(SIGTERM, &action, nullptr);
    ::signal(SIGPIPE, SIG_IGN);
    ::signal(SIGXFSZ, SIG_IGN);  // under a file size limit, writes fail like on a full disk
  });
}
bool StopSignal::stopped() const { return g_stopped; }
int StopSignal::fd() const { return g_stop_fd; }
bool StopSignal::wait(int timeout_ms) const {
  pollfd p{g_stop_fd, POLLIN, 0};
  while (!g_stopped && ::poll(&p, 1, timeout_ms) < 0 && errno == EINTR) {
  }
  return g_stopped;
}

std::string read_file(const std::string& path) {
  struct stat s {};
  if (::stat(path.c_str(), &s) == 0 && S_ISDIR(s.st_mode)) throw CommandError("cannot read " + path + ": it is a folder");
  std::ifstream in(path, std::ios::binary);
  if (!in) throw CommandError("cannot read " + path + ": " + reason());
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

void write_file_atomic(const std::string& path, std::string_view content, unsigned mode) {
  std::string temporary = path + ".new." + std::to_string(::getpid());
  int fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
  auto fail = [&](const char* what) {
    std::string why = reason();
    if (fd >= 0) ::close(fd);
    ::unlink(temporary.c_str());
    throw CommandError(std::string("cannot ") + what + " " + path + ": " + why + " (the old content is kept)");
  };
  if (fd < 0) fail("write");
  if (::fchmod(fd, mode) != 0) fail("set the mode of");
  std::string_view rest = content;
  while (!rest.empty()) {
    ssize_t n = ::write(fd, rest.data(), rest.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) fail("write");
    rest.remove_prefix(static_cast<std::size_t>(n));
  }
  if (::fsync(fd) != 0) fail("write");
  int closing = fd;
  fd = -1;
  if (::close(closing) != 0) fail("write");
  if (::rename(temporary.c_str(), path.c_str()) != 0) fail("replace");
  std::size_t slash = path.rfind('/');
  std::string directory = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  int dir = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (dir >= 0) {
    ::fsync(dir);
    ::close(dir);
  }
}

void ensure_state_dir(const std::string& path) {
  std::string partial;
  std::istringstream parts(path);
  if (path.starts_with('/')) partial = "/";
  for (std::string part; std::getline(parts, part, '/');) {
    if (part.empty()) continue;
    partial += part + "/";
    if (::mkdir(partial.c_str(), 0700) != 0 && errno != EEXIST)
      throw CommandError("cannot create the state directory " + path + ": " + reason());
  }
  struct stat s {};
  if (::stat(path.c_str(), &s) != 0 || !S_ISDIR(s.st_mode))
    throw CommandError("the state directory " + path + " is not a directory");
  if (::access(path.c_str(), W_OK | X_OK) != 0)
    throw CommandError("the state directory " + path + " is not writable: " + reason());
}

std::string secret_argument(const std::string& value) {
  if (!value.starts_with("file:")) return value;
  std::string text = read_file(value.substr(5));
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) text.pop_back();
  if (text.empty()) throw CommandError("the file " + value.substr(5) + " is empty");
  return text;
}

std::string prompt_secret(const std::string& prompt) {
  int tty = ::open("/dev/tty", O_RDWR | O_CLOEXEC);
  if (tty < 0) throw CommandError("no terminal to ask for the password: use --password-file");
  StopSignal stop;
  termios old{};
  ::tcgetattr(tty, &old);
  termios quiet = old;
  quiet.c_lflag &= ~static_cast<tcflag_t>(ECHO);
  // Two keys that would stop or end the process with the echo off.
  quiet.c_cc[VSUSP] = quiet.c_cc[VQUIT] = _POSIX_VDISABLE;
  ::tcsetattr(tty, TCSAFLUSH, &quiet);
  [[maybe_unused]] ssize_t w = ::write(tty, prompt.data(), prompt.size());
  std::string line;
  bool complete = false;
  while (!complete && !stop.stopped()) {
    pollfd p[2] = {{tty, POLLIN, 0}, {stop.fd(), POLLIN, 0}};
    if (::poll(p, 2, -1) < 0) continue;
    char c;
    if (p[1].revents != 0 || ::read(tty, &c, 1) != 1) break;
    complete = c == '\n';
    if (!complete) line.push_back(c);
  }
  ::tcsetattr(tty, TCSAFLUSH, &old);
  w = ::write(tty, "\n", 1);
  ::close(tty);
  if (!complete) throw CommandError(stop.stopped() ? "interrupted; nothing was changed" : "no password was given; nothing was changed");
  return line;
}

void random_bytes(void* out, std::size_t size) {
  char* p = static_cast<char*>(out);
  while (size > 0) {
    ssize_t n = ::getrandom(p, size, 0);
    if (n <= 0) continue;  // only EINTR is possible here
    p += n;
    size -= static_cast<std::size_t>(n);
  }
}

std::string random_hex(std::size_t bytes) {
  std::string raw(bytes, '\0'), out;
  random_bytes(raw.data(), raw.size());
  for (char c : raw) {
    out += "0123456789abcdef"[(c >> 4) & 15];
    out += "0123456789abcdef"[c & 15];
  }
  return out;
}

std::string random_uuid() {
  std::string h = random_hex(16);
  h[12] = '4';
  h[16] = "89ab"[h[16] & 3];
  return h.substr(0, 8) + "-" + h.substr(8, 4) + "-" + h.substr(12, 4) + "-" + h.substr(16, 4) + "-" + h.substr(20);
}

}  // namespace porthole::app
