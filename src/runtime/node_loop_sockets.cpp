// The app's connections: dialling, listening, exposing local services.
#include <sys/eventfd.h>
#include <unistd.h>

#include <boost/json.hpp>

#include "runtime/node_loop.h"
#include "runtime/sockaddr.h"

namespace porthole::runtime {
namespace {
namespace json = boost::json;
constexpr std::size_t kAcceptedWaitingMax = 128;   // connections an app has not yet accepted, per listener
constexpr int kExposedDefaultMax = 1024;

netstack::ConnectOptions forward_options() {
  netstack::ConnectOptions o;
  o.keepalive = true;
  o.keepalive_idle = kForwardKeepaliveIdle;
  o.keepalive_interval = kForwardKeepaliveInterval;
  o.keepalive_probes = kForwardKeepaliveProbes;
  o.user_timeout = kForwardUserTimeout;
  o.half_closed_timeout = kForwardHalfClosed;
  return o;
}
}  // namespace

void NodeRuntime::Loop::when_running(Duration timeout, std::function<void(Status)> action) {
  if (engine_->state() == node::NodeState::kRunning) return action({});
  if (auto why = hopeless()) return action(*why);
  if (when_running_.size() >= kWaitersMax) return action(too_many_wait());  // each ends with its time
  when_running_.push_back({clock_.now + timeout, std::move(action)});
}

Result<IpAddress> NodeRuntime::Loop::device_address(const DialTarget& target) const {
  auto addresses = engine_->resolve_name(target.host);
  if (!addresses) return addresses.error();
  std::erase_if(*addresses, [&](const IpAddress& a) { return (target.family == 4 && !a.is_v4()) || (target.family == 6 && !a.is_v6()); });
  if (addresses->empty())
    return Error{ErrorCode::kNotFound, target.host + " has no IPv" + std::to_string(target.family) + " address on the tailnet"};
  if (!engine_->peer_of(addresses->front()))
    return Error{ErrorCode::kUnavailable, target.host + " is not a device of this tailnet"};
  return addresses->front();
}

void NodeRuntime::Loop::open_tailnet(const DialTarget& target, Duration timeout, std::function<void(Result<SocketId>)> done) {
  Instant deadline = clock_.now + timeout;
  when_running(timeout, [this, target, deadline, done = std::move(done)](Status running) {
    if (!running) return done(running.error());
    auto address = device_address(target);
    if (!address) return done(address.error());
    netstack::ConnectOptions o;
    o.timeout = deadline - clock_.now;
    auto socket = engine_->stack().connect(clock_.now, {*address, target.port}, o);
    if (!socket) return done(socket.error().with_context(target.host));
    SocketId id = *socket;
    dials_[id] = {[this, id, host = target.host, done](Status s) {
      if (s) return done(id);
      engine_->stack().close(clock_.now, id);
      done(s.error().with_context(host));
    }};
  });
}

void NodeRuntime::Loop::splice(SocketId socket, UniqueFd fd, Bytes first, std::function<void()> ended_hook, bool http_answer) {
  tune_local(fd.get());
  engine_->stack().set_options(clock_.now, socket, forward_options());
  auto s = std::make_shared<Splice>(loop_, engine_->stack(), socket, std::move(fd), MutBytes(scratch_.get(), kScratchBytes), clock_.now,
                                    [this, socket, hook = std::move(ended_hook)] {
                                      auto it = splices_.find(socket);
                                      if (it != splices_.end()) {
                                        defer_delete(std::move(it->second));
                                        splices_.erase(it);
                                      }
                                      if (hook) hook();
                                    });
  splices_[socket] = s;
  if (http_answer) s->expect_response_head();
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
  if (auto u = datagram_users_.find(event.id); u != datagram_users_.end()) {
    auto keep = u->second;
    keep->handle_event(event);
    return;
  }
  if (auto f = socks_flows_.find(event.id); f != socks_flows_.end()) return f->second->handle_event(event);
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
    for (auto& [id, l] : listeners_)
      if (std::erase(l.ready, event.id) > 0) tell_listener(l);
    engine_->stack().close(clock_.now, event.id);
  }
}

// ---- dial, listen, accept ----

void NodeRuntime::Loop::dial(const DialTarget& target, Duration timeout, std::shared_ptr<Pending<UniqueFd>> p) {
  if (target.udp) return dial_udp(target, timeout, std::move(p));
  open_tailnet(target, timeout, [this, p](Result<SocketId> r) {
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

Result<NodeRuntime::ListenerRef> NodeRuntime::Loop::listen(std::uint16_t port) {
  UniqueFd fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!fd) return errno_error("cannot make a local socket", errno);
  auto socket = engine_->stack().listen(clock_.now, std::nullopt, port);
  if (!socket) return socket.error();
  std::uint64_t id = next_listener_++;
  AppListener& l = listeners_[id];
  l.socket = *socket;
  l.fd = std::make_shared<UniqueFd>(std::move(fd));
  listener_of_[*socket] = id;
  return ListenerRef{id, l.fd};
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
    tell_listener(l);  // before the caller goes on and asks the descriptor
    Endpoint remote = engine_->stack().remote(socket);
    splice(socket, std::move(pair->first), {});
    waiter->set(Accepted{std::move(pair->second), remote.to_string()});
  }
  tell_listener(l);
}

void NodeRuntime::Loop::tell_listener(AppListener& l) {
  if (l.told != l.ready.empty()) return;
  l.told = !l.told;
  std::uint64_t count = 1;
  [[maybe_unused]] ssize_t n = l.told ? ::write(l.fd->get(), &count, sizeof count) : ::read(l.fd->get(), &count, sizeof count);
}

void NodeRuntime::Loop::accept(std::uint64_t listener, std::shared_ptr<Pending<Accepted>> p) {
  auto it = listeners_.find(listener);
  if (it == listeners_.end()) return p->set(Error{ErrorCode::kCancelled, "the listener was closed"});
  if (!has_room(it->second.waiters, p)) return;
  it->second.waiters.push_back(std::move(p));
  accept_app(it->second);
}

void NodeRuntime::Loop::cancel_accept(std::uint64_t listener, const std::shared_ptr<Pending<Accepted>>& p) {
  if (auto it = listeners_.find(listener); it != listeners_.end()) std::erase(it->second.waiters, p);
}

void NodeRuntime::Loop::close_listener(std::uint64_t listener) {
  auto it = listeners_.find(listener);
  if (it == listeners_.end()) return;
  for (SocketId s : it->second.ready) engine_->stack().abort(clock_.now, s);
  engine_->stack().close(clock_.now, it->second.socket);
  // Whoever waits for it is told when the port refuses already.
  for (auto& w : it->second.waiters) w->set(Error{ErrorCode::kCancelled, "the listener was closed"});
  std::uint64_t one = 1;
  [[maybe_unused]] ssize_t n = ::write(it->second.fd->get(), &one, sizeof one);
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
  return peer_json({it->second.first, it->second.second});
}

Result<std::string> NodeRuntime::Loop::peer_json(const Endpoint& peer) {
  json::object o{{"ip", peer.address.to_string()}, {"port", peer.port}};
  if (auto key = engine_->peer_of(peer.address)) {
    if (auto p = engine_->peer_status(clock_.now, *key)) {
      o["peer"] = p->name;
      o["stable_id"] = p->stable_id;
      o["user"] = p->user;
    }
  }
  return json::serialize(o);
}

}  // namespace porthole::runtime
