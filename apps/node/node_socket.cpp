#include "node/node_socket.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstring>

#include "support/support.h"
#include "support/unix_socket.h"

namespace porthole::app {
namespace {
namespace json = boost::json;
constexpr std::size_t kAnswerMax = 64 << 20;   // status of a 10,000-peer tailnet is below 10 MB

struct Answer {
  json::value result;
  OwnedFd passed;
};

Answer ask(const std::string& state_dir, const json::object& question, int timeout_ms, int stop_fd) {
  std::string path = state_dir + "/node.sock";
  OwnedFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (connect_unix(fd.get(), path) != 0) {
    if (errno == ENOENT || errno == ECONNREFUSED)
      throw CommandError("no node is running with the state directory " + state_dir + " (start it with: porthole node run --statedir " + state_dir + " ...)");
    throw CommandError("cannot talk to the node in " + state_dir + ": " + std::strerror(errno));
  }
  std::string line = json::serialize(question) + "\n";
  if (::send(fd.get(), line.data(), line.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(line.size())) throw CommandError("the node hung up");
  Answer out;
  std::string text;
  std::string block(64 * 1024, '\0');
  auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
  while (text.empty() || text.back() != '\n') {
    auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - std::chrono::steady_clock::now()).count();
    pollfd p[2] = {{fd.get(), POLLIN, 0}, {stop_fd, POLLIN, 0}};
    int ready = left <= 0 ? 0 : ::poll(p, 2, static_cast<int>(left));
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) throw NoAnswer("the node in " + state_dir + " did not answer within " + std::to_string(timeout_ms) + " ms");
    if (stop_fd >= 0 && p[1].revents) throw Stopped();
    iovec data{block.data(), block.size()};
    alignas(cmsghdr) char space[CMSG_SPACE(sizeof(int))] = {};
    msghdr m{};
    m.msg_iov = &data;
    m.msg_iovlen = 1;
    m.msg_control = space;
    m.msg_controllen = sizeof space;
    ssize_t n = ::recvmsg(fd.get(), &m, MSG_CMSG_CLOEXEC);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) throw CommandError("the node hung up");
    for (cmsghdr* c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
      if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS || c->cmsg_len != CMSG_LEN(sizeof(int))) continue;
      int passed = -1;
      std::memcpy(&passed, CMSG_DATA(c), sizeof passed);
      out.passed = OwnedFd(passed);
    }
    text.append(block.data(), static_cast<std::size_t>(n));
    if (text.size() > kAnswerMax) throw CommandError("the node's answer is too long");
  }
  json::error_code ec;
  json::value v = json::parse(text, ec);
  if (ec || !v.is_object() || !v.get_object().if_contains("ok")) throw CommandError("the node's answer is not understood: is it another version of porthole?");
  json::object& o = v.get_object();
  if (!o.at("ok").as_bool()) throw AnswerError(member(o, "error"), member(o, "code"));
  out.result = std::move(o.at("result"));
  return out;
}

}  // namespace

OwnedFd::~OwnedFd() {
  if (fd_ >= 0) ::close(fd_);
}

json::value ask_node(const std::string& state_dir, const json::object& question, int timeout_ms, int stop_fd) {
  return ask(state_dir, question, timeout_ms, stop_fd).result;
}

OwnedFd dial_by_node(const std::string& state_dir, const std::string& address, int timeout_ms, int stop_fd) {
  // The node gives up by itself after this time and says why; a little more for its answer.
  Answer a = ask(state_dir, {{"command", "dial"}, {"address", address}, {"timeout_ms", timeout_ms}}, timeout_ms + 2000, stop_fd);
  if (!a.passed) throw CommandError("the node connected to " + address + " but did not hand the connection over");
  return std::move(a.passed);
}

int parse_duration_ms(const std::string& text, const std::string& option) {
  double value = 0;
  auto [end, bad] = std::from_chars(text.data(), text.data() + text.size(), value);
  std::string_view unit(end, static_cast<std::size_t>(text.data() + text.size() - end));
  double factor = unit == "ms" ? 1 : unit == "s" || unit.empty() ? 1000 : unit == "m" ? 60'000 : 0;
  double ms = value * factor;
  if (bad != std::errc() || !(ms >= 1 && ms <= 3'600'000))
    throw CommandError(option + " " + text + ": expected a time such as 500ms, 5s or 2m (at most an hour)", 2);
  return static_cast<int>(ms);
}

std::string member(const json::object& o, std::string_view key) {
  const json::value* v = o.if_contains(key);
  if (!v || v->is_null()) return {};
  return v->is_string() ? std::string(v->get_string()) : json::serialize(*v);
}

std::string members(const json::object& o, std::string_view key, std::string_view between) {
  std::string out;
  if (const json::value* v = o.if_contains(key); v && v->is_array())
    for (const auto& e : v->get_array())
      out += std::string(out.empty() ? "" : between) + (e.is_string() ? std::string(e.get_string()) : json::serialize(e));
  return out;
}

std::string ms_text(const json::object& o, std::string_view key) {
  const json::value* v = o.if_contains(key);
  if (!v || !v->is_number()) return {};
  double ms = v->to_number<double>();
  char text[32];
  std::snprintf(text, sizeof text, ms < 10 ? "%.1fms" : "%.0fms", ms);
  return text;
}

void print_line(const std::string& text) { print_answer_line(text); }

}  // namespace porthole::app
