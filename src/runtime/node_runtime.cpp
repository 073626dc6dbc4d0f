#include "runtime/node_runtime.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/eventfd.h>

#include <charconv>

#include "control/http_fetch.h"
#include "runtime/node_loop.h"

namespace porthole::runtime {
namespace {
constexpr int kDialDefaultMs = static_cast<int>(kDialDefault / std::chrono::milliseconds(1));
// A loop that does not answer within this time is stuck: our bug, and better a message than a hang.
constexpr int kAnswerMs = 30000;

Error closed_error() { return {ErrorCode::kCancelled, "the node was closed"}; }
Error timeout_error(const std::string& what, int timeout_ms) {
  return {ErrorCode::kTimeout, what + " within " + std::to_string(timeout_ms) + " ms"};
}

// A thread started meanwhile takes no signals: the program's are for its own threads, and a log descriptor whose reader
// is gone must not end the program.
struct SignalsBlocked {
  SignalsBlocked() {
    sigset_t all;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_BLOCK, &all, &before);
  }
  ~SignalsBlocked() { ::pthread_sigmask(SIG_SETMASK, &before, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;
  sigset_t before;
};

// Puts work on the loop, or says why it cannot be done.
Status post(const std::shared_ptr<NodeRuntime::Loop>& loop, std::function<void()> work) {
  switch (loop->post(std::move(work))) {
    case EventLoop::Posted::kPosted: return {};
    case EventLoop::Posted::kClosed: return closed_error();
    case EventLoop::Posted::kFull: break;
  }
  return Error{ErrorCode::kLimit, std::to_string(kPostedMax) + " calls wait for the node already; try again when some have returned"};
}

// Runs `work` on the loop and waits for its return value.
template <typename T>
Result<T> ask(const std::shared_ptr<NodeRuntime::Loop>& loop, std::function<Result<T>()> work) {
  auto p = std::make_shared<Pending<T>>();
  if (Status s = post(loop, [p, work = std::move(work)] { p->set(work()); }); !s) return s.error();
  auto r = p->wait(kAnswerMs);
  if (!r) return Error{ErrorCode::kInternal, "the node does not answer"};
  return std::move(*r);
}

// A DNS label from whatever the user called the machine.
std::string clean_hostname(const std::string& name) {
  std::string out;
  for (char c : name) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    bool keep = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
    if (keep) out.push_back(c);
    else if (!out.empty() && out.back() != '-') out.push_back('-');
  }
  if (out.size() > 63) out.resize(63);
  while (!out.empty() && out.back() == '-') out.pop_back();
  return out.empty() ? "porthole" : out;
}

}  // namespace

Result<DialTarget> DialTarget::parse(const std::string& network, const std::string& address) {
  DialTarget out;
  std::string kind = network.substr(0, 3), family = network.size() > 3 ? network.substr(3) : "";
  if ((kind != "tcp" && kind != "udp") || (!family.empty() && family != "4" && family != "6"))
    return Error{ErrorCode::kUnsupported, "network '" + network + "' is not supported; use tcp or udp (tcp4, tcp6, udp4, udp6)"};
  out.udp = kind == "udp";
  out.family = family.empty() ? 0 : family[0] - '0';
  Error bad{ErrorCode::kInvalid, "'" + address + "' is not host:port"};
  std::size_t colon = address.rfind(':');
  if (colon == std::string::npos || colon == 0) return bad;
  out.host = address.substr(0, colon);
  if (out.host.size() > 2 && out.host.front() == '[' && out.host.back() == ']') out.host = out.host.substr(1, out.host.size() - 2);
  else if (out.host.find_first_of(":[]") != std::string::npos) return bad;
  const char* end = address.data() + address.size();
  auto [stopped, error] = std::from_chars(address.data() + colon + 1, end, out.port);
  if (error != std::errc() || stopped != end || out.port == 0) return bad;
  return out;
}

Result<std::unique_ptr<NodeRuntime>> NodeRuntime::start(NodeOptions options) {
  if (options.state_dir.empty()) return Error{ErrorCode::kInvalid, "no state directory was given"};
  if (!options.control_url.empty()) {
    auto url = control::ControlUrl::parse(options.control_url);
    if (!url) return Error{ErrorCode::kInvalid, "'" + options.control_url + "' is not a coordination server's URL: " + url.error().message};
    options.control_url = url->to_string();   // two ways of writing it are one server
  }
  auto dir = StateDir::open(options.state_dir);
  if (!dir) return dir.error();
  StateStore store(*dir);
  auto loaded = store.load();
  if (!loaded) return loaded.error();
  NodeState state;
  if (*loaded) {
    state = std::move(**loaded);
    if (auto url = control::ControlUrl::parse(state.control_url); url) state.control_url = url->to_string();
    if (!options.control_url.empty() && !state.control_url.empty() && options.control_url != state.control_url) {
      if (state.registered)
        return Error{ErrorCode::kInvalid, "the state directory " + options.state_dir + " belongs to a node of " + state.control_url +
                                              ", not of " + options.control_url + "; use another directory, or log out first"};
      state.control_key = {};
    }
  } else {
    SystemRng rng;
    state.machine_key = crypto::MachinePrivate::generate(rng);
  }
  if (!options.control_url.empty()) state.control_url = options.control_url;
  if (state.control_url.empty())
    return Error{ErrorCode::kInvalid, "no coordination server: give its URL once, it is remembered in " + options.state_dir};
  if (!options.hostname.empty()) state.hostname = clean_hostname(options.hostname);
  if (state.hostname.empty()) state.hostname = clean_hostname(host_name());
  if (options.ephemeral) state.ephemeral = true;
  const wg::StampLease stamps = node::lease_stamps(state.last_tai64n, clock_now().wall);
  state.last_tai64n = stamps.until;
  // The machine key exists before anybody hears of it, and so does the lease of handshake stamps. What is in store already does
  // without: a full disk keeps no device out of its tailnet (saving is tried again, and reported, once the node runs).
  if (Status s = store.save(state); !s && !*loaded) return s.error();

  std::unique_ptr<NodeRuntime> node(new NodeRuntime);
  node->event_fd_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  auto loop = std::make_shared<Loop>(std::move(options), std::move(*dir), store, std::move(state), stamps, node->event_fd_.get());
  if (Status s = loop->open(); !s) return s.error();
  node->loop_ = loop;
  SignalsBlocked quiet;
  node->thread_ = std::thread([loop] { loop->run(); });
  return node;
}

NodeRuntime::~NodeRuntime() { close(); }

void NodeRuntime::close() {
  std::lock_guard lock(close_mutex_);
  if (!loop_) return;  // the start failed
  loop_->request_stop();
  if (thread_.joinable()) thread_.join();
}

Status NodeRuntime::wait_running(int timeout_ms) {
  auto p = std::make_shared<Pending<bool>>();
  if (Status s = post(loop_, [l = loop_, p] { l->wait_running(p); }); !s) return s.error();
  auto r = p->wait(timeout_ms);
  if (!r) {
    // As an error in any case: the reason, or that the node was closed meanwhile.
    return ask<bool>(loop_, [l = loop_]() -> Result<bool> { return l->why_not_running(); }).error();
  }
  return *r ? Status() : Status(r->error());
}

Status NodeRuntime::wait_peer(const std::string& peer, int timeout_ms) {
  auto p = std::make_shared<Pending<bool>>();
  if (Status s = post(loop_, [l = loop_, p, peer] { l->wait_peer(peer, p); }); !s) return s.error();
  auto r = p->wait(timeout_ms);
  if (!r) return timeout_error(peer + " could not be reached", timeout_ms);
  return *r ? Status() : Status(r->error());
}

Status NodeRuntime::logout(int timeout_ms) {
  auto p = std::make_shared<Pending<bool>>();
  if (Status s = post(loop_, [l = loop_, p] { l->logout(p); }); !s) return s.error();
  auto r = p->wait(timeout_ms);
  if (!r) return timeout_error("the coordination server did not confirm the logout", timeout_ms);
  return *r ? Status() : Status(r->error());
}

Result<std::optional<std::string>> NodeRuntime::next_event(int timeout_ms) { return loop_->events().next(timeout_ms); }

Result<std::string> NodeRuntime::status_json() {
  return ask<std::string>(loop_, [l = loop_]() -> Result<std::string> { return l->status_json(); });
}

Result<ProxyAccess> NodeRuntime::loopback(const std::string& address) {
  return ask<ProxyAccess>(loop_, [l = loop_, address] { return l->loopback(address); });
}

Result<UniqueFd> NodeRuntime::dial(const std::string& network, const std::string& address, int timeout_ms) {
  auto target = DialTarget::parse(network, address);
  if (!target) return target.error();
  if (timeout_ms < 0) timeout_ms = kDialDefaultMs;
  auto p = std::make_shared<Pending<UniqueFd>>();
  if (Status s = post(loop_, [l = loop_, p, to = *target, timeout_ms] { l->dial(to, std::chrono::milliseconds(timeout_ms), p); }); !s)
    return s.error();
  auto r = p->wait(timeout_ms + 1000);  // the connect has its own limit
  if (!r) return timeout_error("no connection to " + address, timeout_ms);
  return std::move(*r);
}

Result<UniqueFd> NodeRuntime::begin_dial(const std::string& network, const std::string& address, int timeout_ms) {
  auto target = DialTarget::parse(network, address);
  if (!target) return target.error();
  auto pair = datagram_pair();
  if (!pair) return pair.error();
  if (timeout_ms < 0) timeout_ms = kDialDefaultMs;
  auto p = std::make_shared<Pending<UniqueFd>>();
  p->on_set([ours = std::make_shared<UniqueFd>(std::move(pair->first))](const Result<UniqueFd>& r) { tell_dialled(ours->get(), r); });
  if (Status s = post(loop_, [l = loop_, p, to = *target, timeout_ms] { l->dial(to, std::chrono::milliseconds(timeout_ms), p); }); !s)
    return s.error();
  return std::move(pair->second);
}

Result<NodeRuntime::ListenerRef> NodeRuntime::listen(std::uint16_t port) {
  return ask<ListenerRef>(loop_, [l = loop_, port] { return l->listen(port); });
}

Result<NodeRuntime::Accepted> NodeRuntime::accept(std::uint64_t listener, int timeout_ms) {
  auto p = std::make_shared<Pending<Accepted>>();
  if (Status s = post(loop_, [l = loop_, p, listener] { l->accept(listener, p); }); !s) return s.error();
  auto r = p->wait(timeout_ms);
  if (!r) {
    // A connection that was given at this very moment is not lost.
    auto cancelled = std::make_shared<Pending<bool>>();
    if (loop_->post_always([l = loop_, p, listener, cancelled] {
          l->cancel_accept(listener, p);
          cancelled->set(true);
        }))
      cancelled->wait(kAnswerMs);
    r = p->wait(0);
  }
  if (!r) return timeout_error("nobody connected", timeout_ms);
  return std::move(*r);
}

void NodeRuntime::close_listener(std::uint64_t listener) {
  auto p = std::make_shared<Pending<bool>>();
  auto close = [l = loop_, listener, p] {
    l->close_listener(listener);
    p->set(true);
  };
  if (loop_->post_always(std::move(close))) (void)p->wait(kAnswerMs);   // always: once a listener
}

Status NodeRuntime::expose(std::uint16_t port, const std::string& local_address, int max_connections) {
  auto r = ask<bool>(loop_, [l = loop_, port, local_address, max_connections]() -> Result<bool> {
    Status s = l->expose(port, local_address, max_connections);
    if (!s) return s.error();
    return true;
  });
  return r ? Status() : Status(r.error());
}

Result<std::string> NodeRuntime::exposed_peer(std::uint16_t local_port) {
  return ask<std::string>(loop_, [l = loop_, local_port] { return l->exposed_peer(local_port); });
}

Result<UniqueFd> NodeRuntime::listen_packet(std::uint16_t port) {
  return ask<UniqueFd>(loop_, [l = loop_, port] { return l->listen_packet(port); });
}

Status NodeRuntime::expose_udp(std::uint16_t port, const std::string& local_address, int max_sources) {
  auto r = ask<bool>(loop_, [l = loop_, port, local_address, max_sources]() -> Result<bool> {
    Status s = l->expose_udp(port, local_address, max_sources);
    if (!s) return s.error();
    return true;
  });
  return r ? Status() : Status(r.error());
}

Result<std::string> NodeRuntime::exposed_udp_peer(std::uint16_t local_port) {
  return ask<std::string>(loop_, [l = loop_, local_port] { return l->exposed_udp_peer(local_port); });
}

Result<std::string> NodeRuntime::ping(const std::string& peer, int timeout_ms) {
  auto p = std::make_shared<Pending<std::string>>();
  if (Status s = post(loop_, [l = loop_, p, peer] { l->ping(peer, Loop::PingKind::kDisco, p); }); !s) return s.error();
  auto r = p->wait(timeout_ms);
  if (!r) return timeout_error(peer + " did not answer", timeout_ms);
  return std::move(*r);
}

Result<std::string> NodeRuntime::netcheck(int timeout_ms) {
  auto p = std::make_shared<Pending<std::string>>();
  if (Status s = post(loop_, [l = loop_, p] { l->netcheck(p); }); !s) return s.error();
  auto r = p->wait(timeout_ms);
  if (!r) return timeout_error("the network check did not finish", timeout_ms);
  return std::move(*r);
}

Status NodeRuntime::set_log_fd(int fd) {
  UniqueFd copy;
  if (fd >= 0) {
    copy.reset(::fcntl(fd, F_DUPFD_CLOEXEC, 3));
    if (!copy) return errno_error("cannot log to descriptor " + std::to_string(fd), errno);
  }
  loop_->log().set_fd(std::move(copy));
  return {};
}

}  // namespace porthole::runtime
