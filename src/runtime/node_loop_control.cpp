// The control socket in the state directory: `porthole node status` and friends talk to the running node through it.
// One JSON object a line: {"command":"status"} -> {"ok":true,"result":{...}} or {"ok":false,"code":"..","error":"..."}.
// The socket's mode (0600) is the access control.
//
//   status, netcheck, logout        no arguments
//   ping     peer, type             "disco" (default), "TSMP" or "ICMP"
//   whois    address                IP or IP:PORT
//   dial     address, timeout_ms    host:port on the tailnet. The connected socket itself comes with the answer (SCM_RIGHTS):
//                                   a TCP socket, so that a reset differs from an end, and no credential is needed
#include <sys/socket.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cerrno>

#include "runtime/node_loop.h"

namespace porthole::runtime {
namespace {
namespace json = boost::json;
constexpr std::size_t kLineMax = 4096;
constexpr std::size_t kConnectionsMax = 32;
// While more than this of its answers has not been read, a connection's next command waits. An answer is a few KiB, or
// 0.5 KiB a peer.
constexpr std::size_t kUnreadMax = 64 * 1024;
// Commands of one connection that wait for their answers; our own programs ask one at a time.
constexpr std::size_t kWaitingMax = 16;
constexpr std::int64_t kDialMsMax = 600'000;

std::string failure(const Error& e) {
  return json::serialize(json::object{{"ok", false}, {"code", to_string(e.code)}, {"error", e.message}}) + "\n";
}
// `result` is JSON text already.
std::string success(const std::string& result) { return "{\"ok\":true,\"result\":" + result + "}\n"; }
}  // namespace

class NodeRuntime::Loop::ControlConnection final : public FdHandler,
                                                   public std::enable_shared_from_this<NodeRuntime::Loop::ControlConnection> {
 public:
  ControlConnection(Loop& loop, UniqueFd fd) : loop_(loop), fd_(std::move(fd)) {
    token_ = loop_.loop_.add(fd_.get(), *this, true, false);
  }
  ~ControlConnection() override {
    if (token_) loop_.loop_.remove(token_);
  }

  void on_ready(bool, bool, bool) override {
    auto keep = shared_from_this();
    if (!flush() || !read() || !flush()) close();
  }

 private:
  bool full() const { return out_.size() > kUnreadMax; }

  // What was read before first: it may have waited for its predecessors' answers to be taken.
  bool read() {
    char block[1024];
    for (;;) {
      for (std::size_t end; !full() && (end = in_.find('\n')) != std::string::npos;) {
        std::string line = in_.substr(0, end);
        in_.erase(0, end + 1);
        handle(line);
      }
      if (full() || !token_) return true;
      ssize_t n = ::recv(fd_.get(), block, sizeof block, MSG_DONTWAIT);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && errno == EAGAIN) return true;
      if (n <= 0) return false;
      in_.append(block, static_cast<std::size_t>(n));
      if (in_.size() > kLineMax) return false;
    }
  }

  void handle(const std::string& line) {
    json::error_code ec;
    json::value v = json::parse(line, ec);
    auto text = [&](std::string_view key) -> std::string {
      if (ec || !v.is_object()) return {};
      const json::value* e = v.get_object().if_contains(key);
      return e && e->is_string() ? std::string(e->get_string()) : std::string();
    };
    std::string command = text("command");
    if (command == "status") return answer(success(loop_.status_json()));
    if (command == "whois") return answer(loop_.whois(text("address")));
    if (command == "ping") {
      std::string type = text("type");
      PingKind kind = type == "TSMP" ? PingKind::kTsmp : type == "ICMP" ? PingKind::kIcmp : PingKind::kDisco;
      return later<std::string>([&](auto p) { loop_.ping(text("peer"), kind, p); });
    }
    if (command == "netcheck") return later<std::string>([&](auto p) { loop_.netcheck(p); });
    if (command == "logout") return later<bool>([&](auto p) { loop_.logout(p); });
    if (command == "dial") {
      std::int64_t ms = -1;
      if (const json::value* t = v.get_object().if_contains("timeout_ms"); t && t->is_int64()) ms = t->get_int64();
      auto target = DialTarget::parse("tcp", text("address"));
      if (!target) return answer(failure(target.error()));
      const Duration timeout = ms < 0 ? kDialDefault : std::chrono::milliseconds(std::min(ms, kDialMsMax));
      return later<UniqueFd>([&](auto p) { loop_.dial(*target, timeout, p); });
    }
    answer(failure({ErrorCode::kInvalid, "unknown command; known are status, whois, ping, netcheck, dial, logout"}));
  }

  // An answer that comes when the loop has it. The connection may be gone by then.
  template <typename T, typename F>
  void later(F&& start) {
    if (waiting_.size() >= kWaitingMax)
      return answer(failure({ErrorCode::kLimit, std::to_string(kWaitingMax) + " commands of this connection wait for their answers already"}));
    auto p = std::make_shared<Pending<T>>();
    const std::uint64_t number = next_waiting_++;
    p->on_set([self = weak_from_this(), number](const Result<T>& r) {
      auto me = self.lock();
      if (!me) return;
      me->waiting_.erase(number);
      if (!r) return me->answer(failure(r.error()));
      if constexpr (std::is_same_v<T, std::string>) me->answer(success(*r));
      else if constexpr (std::is_same_v<T, UniqueFd>) me->answer_with(r->get());
      else me->answer(success("{}"));
    });
    waiting_[number] = p;
    start(p);
  }

  // The descriptor travels with the answer; whoever does not read is dropped.
  void answer_with(int fd) {
    const std::string line = success("{}");
    if (!out_.empty() || send_with_descriptor(fd_.get(), line, fd) != static_cast<ssize_t>(line.size())) close();
  }

  void answer(const Result<std::string>& r) { answer(r ? success(*r) : failure(r.error())); }
  void answer(const std::string& line) {
    out_ += line;
    if (!flush()) close();
  }

  bool flush() {
    while (!out_.empty()) {
      ssize_t n = ::send(fd_.get(), out_.data(), out_.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && errno == EAGAIN) break;
      if (n <= 0) return false;
      out_.erase(0, static_cast<std::size_t>(n));
    }
    // A command that was read and had to wait goes on as soon as the socket takes more.
    bool goes_on = !full() && in_.find('\n') != std::string::npos;
    if (token_) loop_.loop_.change(token_, !full(), !out_.empty() || goes_on);
    return true;
  }

  void close() {
    if (!token_) return;
    auto keep = shared_from_this();
    loop_.loop_.remove(token_);
    token_ = 0;
    loop_.control_connections_.erase(fd_.get());
    loop_.defer_delete(std::move(keep));
  }

  Loop& loop_;
  UniqueFd fd_;
  EventLoop::Token token_ = 0;
  std::string in_, out_;
  std::map<std::uint64_t, std::shared_ptr<void>> waiting_;   // keeps the loop from treating the question as abandoned
  std::uint64_t next_waiting_ = 0;
};

void NodeRuntime::Loop::add_control(UniqueFd fd) {
  if (control_connections_.size() >= kConnectionsMax) return;
  int number = fd.get();
  control_connections_[number] = std::make_shared<ControlConnection>(*this, std::move(fd));
}

}  // namespace porthole::runtime
