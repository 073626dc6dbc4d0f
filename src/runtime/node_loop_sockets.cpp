// The app's connections: dialling, listening, exposing local services.
#include <boost/json.hpp>
#include <charconv>

#include "runtime/node_loop.h"
#include "runtime/sockaddr.h"

namespace porthole::runtime {
namespace {
namespace json = boost::json;
constexpr std::size_t kAcceptedWaitingMax = 128;   // connections an app has not yet accepted, per listener
constexpr int kExposedDefaultMax = 1024;

// "host:port" or "[v6]:port"
bool split_host_port(const std::string& text, std::string& host, std::uint16_t& port) {
  std::size_t colon = text.rfind(':');
  if (colon == std::string::npos || colon == 0) return false;
  host = text.substr(0, colon);
  if (host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  else if (host.find(':') != std::string::npos) return false;
  const char* begin = text.data() + colon + 1;
  const char* end = text.data() + text.size();
  unsigned value = 0;
  auto [p, ec] = std::from_chars(begin, end, value);
  if (ec != std::errc() || p != end || value == 0 || value > 65535 || host.empty()) return false;
  port = static_cast<std::uint16_t>(value);
  return true;
}
}  // namespace

void NodeRuntime::Loop::open_tailnet(const std::string& host, std::uint16_t port, Duration timeout,
                                     std::function<void(Result<SocketId>)> done) {
  if (engine_->state() != node::NodeState::kRunning) {
    if (auto why = hopeless()) return done(*why);
    Instant deadline = clock_.now + timeout;
    when_running_.push_back({deadline, [this, host, port, deadline, done = std::move(done)](Status s) mutable {
                               if (!s) return done(s.error());
                               open_tailnet(host, port, deadline - clock_.now, std::move(done));
                             }});
    return;
  }
  auto addresses = engine_->resolve_name(host);
  if (!addresses) return done(addresses.error());
  if (!engine_->peer_of(addresses->front()))
    return done(Error{ErrorCode::kUnavailable, host + " is not a device of this tailnet"});
  netstack::ConnectOptions o;
  o.timeout = timeout;
  auto socket = engine_->stack().connect(clock_.now, {addresses->front(), port}, o);
  if (!socket) return done(socket.error().with_context(host));
  SocketId id = *socket;
  dials_[id] = {[this, id, host, done = std::move(done)](Status s) {
    if (s) return done(id);
    engine_->stack().close(clock_.now, id);
    done(s.error().with_context(host));
  }};
}

void NodeRuntime::Loop::splice(SocketId socket, UniqueFd fd, Bytes first, std::function<void()> ended_hook) {
  tune_local(fd.get());
  auto s = std::make_shared<Splice>(loop_, engine_->stack(), socket, std::move(fd), MutBytes(scratch_.get(), 64 * 1024), clock_.now,
                                    [this, socket, hook = std::move(ended_hook)] {
                                      auto it = splices_.find(socket);
                                      if (it != splices_.end()) {
                                        defer_delete(std::move(it->second));
                                        splices_.erase(it);
                                      }
                                      if (hook) hook();
                                    });
  splices_[socket] = s;
  if (engine_->stack().info(socket).state == netstack::TcpState::kClosed) return s->abort();  // reset meanwhile
  if (!first.empty()) s->send_first(first);
  // What arrived before the splice existed has had its event.
  s->handle_event({socket, netstack::SocketEventKind::kReadable, {}, {}});
}

void NodeRuntime::Loop::handle_socket_event(const netstack::SocketEvent& event) {
  using Kind = netstack::SocketEventKind;
  if (auto ping = icmp_pings_.find(event.id); ping != icmp_pings_.end()) {
    std::uint64_t token = ping->second;
    auto asked = pings_.find(token);
    std::string name = asked == pings_.end() ? std::string() : asked->second.name;
    if (event.kind == Kind::kPong) answer_ping(token, event.rtt);
    else answer_ping(token, event.error.with_context(name));
    if (event.kind != Kind::kSoftError) icmp_pings_.erase(event.id);
    return;
  }
  if (auto d = dials_.find(event.id); d != dials_.end()) {
    if (event.kind != Kind::kConnected && event.kind != Kind::kConnectFailed && event.kind != Kind::kReset) return;
    auto done = std::move(d->second.done);
    dials_.erase(d);
    done(event.kind == Kind::kConnected ? Status() : Status(event.error));
    return;
  }
  if (auto s = splices_.find(event.id); s != splices_.end()) {
    auto keep = s->second;
    keep->handle_event(event);
    return;
  }
  if (event.kind == Kind::kAcceptable) {
    if (auto e = exposed_ports_.find(event.id); e != exposed_ports_.end()) {
      while (auto socket = engine_->stack().accept(event.id)) accept_exposed(*socket, e->second);
    } else if (auto l = listener_of_.find(event.id); l != listener_of_.end()) {
      auto it = listeners_.find(l->second);
      if (it != listeners_.end()) accept_app(it->second);
    }
    return;
  }
  if (event.kind == Kind::kReset) {
    // A connection nobody has taken yet.
    for (auto& [id, l] : listeners_) std::erase(l.ready, event.id);
    engine_->stack().close(clock_.now, event.id);
  }
}

// ---- dial, listen, accept ----

void NodeRuntime::Loop::dial(const std::string& address, int timeout_ms, std::shared_ptr<Pending<UniqueFd>> p) {
  std::string host;
  std::uint16_t port = 0;
  if (!split_host_port(address, host, port))
    return p->set(Error{ErrorCode::kInvalid, "'" + address + "' is not host:port"});
  Duration timeout = timeout_ms < 0 ? 30s : std::chrono::milliseconds(timeout_ms);
  open_tailnet(host, port, timeout, [this, p](Result<SocketId> r) {
    if (!r) return p->set(r.error());
    auto pair = connected_pair();
    if (!pair) {
      engine_->stack().abort(clock_.now, *r);
      return p->set(pair.error());
    }
    splice(*r, std::move(pair->first), {});
    p->set(std::move(pair->second));
  });
}

Result<std::uint64_t> NodeRuntime::Loop::listen(std::uint16_t port) {
  auto socket = engine_->stack().listen(clock_.now, std::nullopt, port);
  if (!socket) return socket.error();
  std::uint64_t id = next_listener_++;
  listeners_[id].socket = *socket;
  listener_of_[*socket] = id;
  return id;
}

void NodeRuntime::Loop::accept_app(AppListener& l) {
  while (l.ready.size() < kAcceptedWaitingMax) {
    auto socket = engine_->stack().accept(l.socket);
    if (!socket) break;
    l.ready.push_back(*socket);
  }
  give_accepted(l);
}

void NodeRuntime::Loop::give_accepted(AppListener& l) {
  while (!l.ready.empty() && !l.waiters.empty()) {
    auto waiter = std::move(l.waiters.front());
    l.waiters.pop_front();
    if (waiter.use_count() == 1) continue;  // the caller gave up
    SocketId socket = l.ready.front();
    auto pair = connected_pair();
    if (!pair) {
      waiter->set(pair.error());
      continue;
    }
    l.ready.pop_front();
    Endpoint remote = engine_->stack().remote(socket);
    splice(socket, std::move(pair->first), {});
    waiter->set(Accepted{std::move(pair->second), remote.to_string()});
  }
}

void NodeRuntime::Loop::accept(std::uint64_t listener, std::shared_ptr<Pending<Accepted>> p) {
  auto it = listeners_.find(listener);
  if (it == listeners_.end()) return p->set(Error{ErrorCode::kCancelled, "the listener was closed"});
  it->second.waiters.push_back(std::move(p));
  accept_app(it->second);
}

void NodeRuntime::Loop::close_listener(std::uint64_t listener) {
  auto it = listeners_.find(listener);
  if (it == listeners_.end()) return;
  for (auto& w : it->second.waiters) w->set(Error{ErrorCode::kCancelled, "the listener was closed"});
  for (SocketId s : it->second.ready) engine_->stack().abort(clock_.now, s);
  engine_->stack().close(clock_.now, it->second.socket);
  listener_of_.erase(it->second.socket);
  listeners_.erase(it);
}

// ---- exposing local services ----

// A local connect under way for a tailnet connection.
class NodeRuntime::Loop::ExposedDial final : public FdHandler {
 public:
  ExposedDial(Loop& loop, UniqueFd local, SocketId socket, std::uint16_t port, Endpoint remote)
      : loop_(loop), fd_(std::move(local)), socket_(socket), port_(port), remote_(remote) {
    token_ = loop_.loop_.add(fd_.get(), *this, false, true);
  }
  ~ExposedDial() override {
    if (token_) loop_.loop_.remove(token_);
  }
  void on_ready(bool, bool, bool) override {
    int error = 0;
    socklen_t size = sizeof error;
    ::getsockopt(fd_.get(), SOL_SOCKET, SO_ERROR, &error, &size);
    loop_.loop_.remove(token_);
    token_ = 0;
    auto self = loop_.exposed_dials_.extract(fd_.get());
    loop_.defer_delete(std::move(self.mapped()));
    auto release = [&loop = loop_, port = port_, who = remote_.address] {
      auto e = loop.exposed_.find(port);
      if (e == loop.exposed_.end()) return;
      --e->second.connections;
      if (--e->second.per_peer[who] <= 0) e->second.per_peer.erase(who);
    };
    if (error != 0) {
      loop_.log_.write(LogLevel::kWarning, "expose",
                       errno_error("port " + std::to_string(port_) + ": the local service " +
                                       loop_.exposed_[port_].local.to_string() + " does not answer", error).message);
      loop_.engine_->stack().abort(loop_.clock_.now, socket_);
      return release();
    }
    std::uint16_t local_port = local_endpoint(fd_.get()).port;
    loop_.exposed_peers_[local_port] = {remote_.address, remote_.port};
    loop_.splice(socket_, std::move(fd_), {}, [&loop = loop_, local_port, release] {
      loop.exposed_peers_.erase(local_port);
      release();
    });
  }

 private:
  Loop& loop_;
  UniqueFd fd_;
  EventLoop::Token token_ = 0;
  SocketId socket_;
  std::uint16_t port_;
  Endpoint remote_;
};

Status NodeRuntime::Loop::expose(std::uint16_t port, const std::string& local_address, int max_connections) {
  auto local = Endpoint::parse(local_address);
  if (!local || !local->is_valid())
    return Error{ErrorCode::kInvalid, "'" + local_address + "' is not an ADDRESS:PORT of this host"};
  if (port == 0 || max_connections < 0) return Error{ErrorCode::kInvalid, "the exposed port must be 1 to 65535"};
  auto socket = engine_->stack().listen(clock_.now, std::nullopt, port, 256);
  if (!socket) return socket.error();
  exposed_ports_[*socket] = port;
  exposed_[port] = {*local, max_connections == 0 ? kExposedDefaultMax : max_connections, 0, {}};
  return {};
}

void NodeRuntime::Loop::accept_exposed(SocketId socket, std::uint16_t port) {
  Exposed& e = exposed_[port];
  Endpoint remote = engine_->stack().remote(socket);
  int per_peer = std::max(1, e.connections_max / 4);
  if (e.connections >= e.connections_max || e.per_peer[remote.address] >= per_peer) {
    log_.write(LogLevel::kWarning, "expose", "port " + std::to_string(port) + ": too many connections, one from " +
                                                 remote.address.to_string() + " was refused");
    engine_->stack().abort(clock_.now, socket);
    return;
  }
  auto local = connect_tcp(e.local);
  if (!local) {
    log_.write(LogLevel::kWarning, "expose", local.error().message);
    engine_->stack().abort(clock_.now, socket);
    return;
  }
  ++e.connections;
  ++e.per_peer[remote.address];
  int fd = local->get();
  exposed_dials_[fd] = std::make_shared<ExposedDial>(*this, std::move(*local), socket, port, remote);
}

Result<std::string> NodeRuntime::Loop::exposed_peer(std::uint16_t local_port) {
  auto it = exposed_peers_.find(local_port);
  if (it == exposed_peers_.end())
    return Error{ErrorCode::kNotFound, "no tailnet connection comes from local port " + std::to_string(local_port)};
  json::object o{{"ip", it->second.first.to_string()}, {"port", it->second.second}};
  if (auto key = engine_->peer_of(it->second.first)) {
    if (auto p = engine_->peer_status(clock_.now, *key)) {
      o["peer"] = p->name;
      o["stable_id"] = p->stable_id;
      o["user"] = p->user;
    }
  }
  return json::serialize(o);
}

}  // namespace porthole::runtime
