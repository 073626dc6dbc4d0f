#include "runtime/node_loop.h"

#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cstdlib>

#include "runtime/json_text.h"
#include "runtime/limits.h"
#include "runtime/memory.h"
#include "runtime/sockaddr.h"
#include "runtime/tcp_accept.h"

namespace porthole::runtime {
namespace {
namespace json = boost::json;

constexpr Duration kAddressDebounce = 1s;       // a link change comes as a burst of messages
constexpr Duration kRebindEvery = 5s;           // at most, on send errors
constexpr int kRoundsPerTurn = 64;
constexpr Duration kTrimAfter = 2s;             // of silence
constexpr Duration kLeaveTimeout = 1500ms;      // within the 2 s in which a node ends
constexpr std::string_view kMapFile = "netmap.json";
constexpr std::size_t kMapBytesMax = 8 << 20;   // some 10,000 peers
constexpr Duration kSaveMapAfter = 30s;         // of a change; and at the end

}  // namespace

NodeRuntime::Loop::Loop(NodeOptions options, StateDir dir, StateStore store, NodeState state, const wg::StampLease& stamps,
                        int event_wake_fd)
    : options_(std::move(options)), dir_(std::move(dir)), store_(std::move(store)), persistent_(std::move(state)), stamps_(stamps),
      events_(event_wake_fd), udp_buffers_(UdpSocket::make_buffers()), scratch_(new std::uint8_t[kScratchBytes]) {}

NodeRuntime::Loop::~Loop() = default;

// ---- start and stop ----

Status NodeRuntime::Loop::open() {
  clock_ = clock_now();
  started_at_ = clock_.now;
  auto streams = Streams::make(loop_, *this, options_.ca_file);
  if (!streams) return streams.error();
  streams_ = std::move(*streams);
  resolver_ = std::make_unique<Resolver>(loop_);
  const std::uint16_t last_port = persistent_.udp_port;
  if (Status s = open_sockets(); !s) return s;
  auto control = listen_unix(dir_.file("node.sock"));
  if (!control) return control.error();
  control_acceptor_ = std::make_unique<AcceptHandler>(loop_, std::move(*control), [this](UniqueFd fd) { add_control(std::move(fd)); });
  monitor_ = std::make_unique<NetworkMonitor>(loop_, [this] {
    if (!recheck_addresses_at_) recheck_addresses_at_ = clock_.now + kAddressDebounce;
  });

  node::EngineConfig config;
  config.control.url = persistent_.control_url;
  config.control.auth_key = options_.auth_key.duplicate();
  config.control.ephemeral = persistent_.ephemeral;
  config.control.hostinfo.hostname = persistent_.hostname;
  config.control.hostinfo.os = "linux";
  config.control.hostinfo.ipn_version = PORTHOLE_VERSION "-porthole";
  config.control.hostinfo.app = "porthole";
  config.control.hostinfo.userspace = true;
  if (!persistent_.control_key.is_zero()) config.control.cached_control_key = persistent_.control_key;
  config.control.expect_registered = persistent_.registered;
  // Worth a slow first contact when damaged, not an error.
  if (auto map = read_file(dir_.file(kMapFile), kMapBytesMax); map && *map) config.saved_map = std::move(**map);
  config.last_disco_key = persistent_.disco_key.duplicate();
  config.last_udp_port = last_port;
  config.relay_only = options_.relay_only;
  // A switch for laboratories, as Tailscale's clients have one: not among the options, so that nobody chooses it for a tailnet.
  config.plain_relays = std::getenv("PORTHOLE_PLAIN_RELAYS") != nullptr;
  config.fixed_port = options_.udp_port != 0;
  config.stack.memory_max = static_cast<std::size_t>(
      std::clamp<std::uint64_t>(usable_memory() / kStackMemoryShare, kStackMemoryMin, config.stack.memory_max));
  engine_ = std::make_unique<node::Engine>(std::move(config), persistent_.machine_key.duplicate(),
                                           persistent_.node_key.duplicate(), stamps_,
                                           static_cast<DatagramSink&>(*this), rng_, log_, clock_);
  return {};
}

Status NodeRuntime::Loop::open_sockets() {
  auto on_error = [this](const Endpoint& to, UdpSocket::SendError kind) {
    if (!engine_) return;
    switch (kind) {
      case UdpSocket::SendError::kUnreachable:
        engine_->handle_send_error(clock_, to, paths::SendErrorKind::kHostUnreachable);
        break;
      case UdpSocket::SendError::kRebind:
        engine_->handle_send_error(clock_, to, paths::SendErrorKind::kSocketBroken);
        break;
      case UdpSocket::SendError::kOther: engine_->handle_send_error(clock_, to, paths::SendErrorKind::kOther); break;
    }
  };
  udp4_.reset();
  udp6_.reset();
  // In this order: the configured port, the one of the last run (peers may still know it), any.
  std::vector<std::uint16_t> ports;
  if (options_.udp_port != 0) ports.push_back(options_.udp_port);
  if (persistent_.udp_port != 0 && persistent_.udp_port != options_.udp_port) ports.push_back(persistent_.udp_port);
  ports.push_back(0);
  std::optional<Error> error;
  for (std::uint16_t port : ports) {
    auto v4 = UdpSocket::open(loop_, false, port, {}, udp_buffers_, *this, on_error);
    if (!v4) {
      error = v4.error();
      if (port == options_.udp_port && port != 0 && error->code == ErrorCode::kAlreadyExists) {
        error->message += "; another program uses this port: choose another with --port";
        return *error;
      }
      continue;
    }
    udp4_ = std::move(*v4);
    break;
  }
  if (!udp4_) return *error;
  persistent_.udp_port = udp4_->port();
  for (std::uint16_t port : {udp4_->port(), std::uint16_t{0}}) {
    auto v6 = UdpSocket::open(loop_, true, port, {}, udp_buffers_, *this, on_error);
    if (!v6) continue;  // a host without IPv6 is fine
    udp6_ = std::move(*v6);
    break;
  }
  return {};
}

void NodeRuntime::Loop::announce_addresses() {
  addresses_ = host_addresses();
  std::vector<paths::InterfaceAddress> list;
  for (const HostAddress& a : addresses_) list.push_back({a.interface_name, a.address, a.prefix_bits, a.up, a.loopback});
  engine_->set_local_addresses(clock_, list, udp4_ ? udp4_->port() : std::uint16_t{0}, udp6_ ? udp6_->port() : std::uint16_t{0});
}

void NodeRuntime::Loop::run() {
  clock_ = clock_now();
  announce_addresses();
  engine_->start(clock_);
  drive();
  std::optional<Instant> leave_by;   // an ephemeral node that ends tells its coordinator, which forgets it at once
  for (;;) {
    if (stop_) {
      if (!leave_by && persistent_.ephemeral && engine_->state() == node::NodeState::kRunning) {
        leave_by = clock_.now + kLeaveTimeout;
        engine_->logout(clock_);
        drive();
      }
      if (!leave_by || clock_.now >= *leave_by || engine_->state() == node::NodeState::kLoggedOut) break;
    }
    Deadline d = engine_->next_timeout();
    Instant until = std::min(d.latest, streams_->next_timeout());
    if (recheck_addresses_at_) until = std::min(until, *recheck_addresses_at_);
    if (trim_at_) until = std::min(until, *trim_at_);
    if (save_map_at_) until = std::min(until, *save_map_at_);
    if (leave_by) until = std::min(until, *leave_by);
    until = std::min({until, next_proxy_timeout(), next_datagram_timeout()});
    for (const WhenRunning& w : when_running_) until = std::min(until, w.deadline);
    if (engine_->wants_settle()) until = clock_.now;
    loop_.wait(clock_.now, until);
    clock_ = clock_now();
    loop_.dispatch();
    if (trim_at_ && *trim_at_ <= clock_.now) trim_memory();
    if (save_map_at_ && *save_map_at_ <= clock_.now) save_map();
    if (engine_->next_timeout().earliest <= clock_.now) engine_->handle_timeout(clock_);
    if (streams_->next_timeout() <= clock_.now) streams_->handle_timeout(clock_.now);
    if (recheck_addresses_at_ && *recheck_addresses_at_ <= clock_.now) network_may_have_changed();
    expire_when_running();
    expire_proxies();
    expire_datagrams();
    drive();
    if (engine_->map_version() != saved_map_version_ && !save_map_at_) save_map_at_ = clock_.now + kSaveMapAfter;
    graveyard_.clear();
  }
  stop_now();
}

void NodeRuntime::Loop::request_stop() {
  stop_ = true;
  loop_.post_always([] {});
}

void NodeRuntime::Loop::stop_now() {
  clock_ = clock_now();
  // Peers hear resets now instead of finding out by time-outs.
  auto splices = splices_;
  for (auto& [id, s] : splices) s->abort();
  engine_->settle(clock_);
  streams_->pump(clock_.now);
  persist(true);
  save_map();
  loop_.close();  // first, so that no question comes in behind the last answer
  Error closed{ErrorCode::kCancelled, "the node was closed"};
  fail_waiters(closed);
  splices_.clear();
  datagram_users_.clear();
  forwarders_.clear();
  proxy_connections_.clear();
  control_connections_.clear();
  exposed_dials_.clear();
  loopback_.reset();
  control_acceptor_.reset();
  monitor_.reset();
  graveyard_.clear();
  streams_.reset();
  resolver_.reset();
  udp4_.reset();
  udp6_.reset();
  engine_.reset();
  ::unlink(dir_.file("node.sock").c_str());
  dir_.unlock();  // whoever still holds a listener of ours keeps the object, but not the directory
  events_.close();
}

void NodeRuntime::Loop::fail_waiters(const Error& error) {
  for (auto& p : running_waiters_) p->set(error);
  for (auto& w : peer_waits_) w.pending->set(error);
  for (auto& p : logout_waiters_) p->set(error);
  for (auto& [token, p] : pings_) p.pending->set(error);
  for (auto& p : netchecks_) p->set(error);
  for (auto& [id, l] : listeners_) {
    for (auto& p : l.waiters) p->set(error);
    std::uint64_t one = 1;  // whoever waits for it is told
    [[maybe_unused]] ssize_t n = ::write(l.fd->get(), &one, sizeof one);
  }
  auto opens = std::move(when_running_);
  when_running_.clear();
  for (auto& w : opens) w.action(error);
  auto dials = std::move(dials_);
  dials_.clear();
  for (auto& [id, d] : dials) d.done(error);
  running_waiters_.clear();
  peer_waits_.clear();
  logout_waiters_.clear();
  pings_.clear();
  icmp_pings_.clear();
  netchecks_.clear();
  listeners_.clear();
}

// ---- moving things ----

void NodeRuntime::Loop::drive() {
  if (driving_) return;
  driving_ = true;
  for (int round = 0; round < kRoundsPerTurn; ++round) {
    bool moved = false;
    engine_->settle(clock_);
    while (auto e = engine_->poll_event()) {
      handle_engine_event(*e);
      moved = true;
    }
    while (auto e = engine_->stack().poll_event()) {
      handle_socket_event(*e);
      moved = true;
    }
    while (auto action = engine_->poll_action()) {
      if (auto* o = std::get_if<OpenStream>(&*action))
        streams_->open(clock_.now, std::move(*o));
      else
        streams_->close(std::get<CloseStream>(*action).id);
      moved = true;
    }
    streams_->pump(clock_.now);
    if (!moved && !engine_->wants_settle()) break;
  }
  driving_ = false;
}

void NodeRuntime::Loop::stream_opened(StreamId id, const StreamInfo& info) { engine_->stream_opened(clock_, id, info); }
void NodeRuntime::Loop::stream_failed(StreamId id, const Error& error) { engine_->stream_failed(clock_, id, error); }
void NodeRuntime::Loop::stream_closed(StreamId id, const Error* error) {
  engine_->stream_closed(clock_, id, error ? std::optional<Error>(*error) : std::nullopt);
}
Result<std::size_t> NodeRuntime::Loop::stream_consume(StreamId id, MutBytes bytes) { return engine_->consume(clock_, id, bytes); }
std::size_t NodeRuntime::Loop::stream_produce(StreamId id, MutBytes out) { return engine_->produce(clock_, id, out); }
bool NodeRuntime::Loop::stream_has_output(StreamId id) { return engine_->has_output(id); }

void NodeRuntime::Loop::datagrams_received(std::span<const RecvDatagram> batch) {
  engine_->handle_datagrams(clock_, batch);
  last_traffic_ = clock_.now;
  if (!trim_at_) trim_at_ = clock_.now + kTrimAfter;
}

// Gives back what a busy time needed. A quiet node wakes for it once.
void NodeRuntime::Loop::trim_memory() {
  if (clock_.now - last_traffic_ < kTrimAfter) {
    trim_at_ = last_traffic_ + kTrimAfter;
    return;
  }
  trim_at_.reset();
  engine_->stack().release_memory();
#ifdef __GLIBC__
  ::malloc_trim(0);
#endif
}

void NodeRuntime::Loop::send_udp(const Endpoint& destination, Bytes data, std::size_t segment_size) {
  UdpSocket* s = destination.address.is_v6() ? udp6_.get() : udp4_.get();
  if (s) s->send(destination, data, segment_size);
}

void NodeRuntime::Loop::network_may_have_changed() {
  recheck_addresses_at_.reset();
  auto now = host_addresses();
  if (now == addresses_) return;
  bool lost = lost_addresses(addresses_, now);
  announce_addresses();
  if (lost) engine_->network_changed(clock_);
}

void NodeRuntime::Loop::rebind(const std::string& reason) {
  if (clock_.now - last_rebind_ < kRebindEvery) return;
  last_rebind_ = clock_.now;
  log_.write(LogLevel::kInfo, "runtime", "opening new UDP sockets: " + reason);
  if (Status s = open_sockets(); !s) {
    log_.write(LogLevel::kError, "runtime", s.error().message);
    return;
  }
  announce_addresses();
  engine_->handle_rebind(clock_);
}

void NodeRuntime::Loop::persist(bool last) {
  node::Persistent p = engine_->persistent();
  persistent_.node_key = engine_->node_key().duplicate();
  persistent_.disco_key = engine_->disco_key().duplicate();
  if (p.control_key) persistent_.control_key = *p.control_key;
  persistent_.registered = p.registered;
  if (!p.login_name.empty()) persistent_.login_name = p.login_name;
  if (!p.addresses.empty()) persistent_.addresses = p.addresses;
  persistent_.last_tai64n = last ? p.stamps.used : p.stamps.until;
  if (Status s = store_.save(persistent_); !s) {
    log_.write(LogLevel::kError, "state", s.error().message);
    json::object o{{"event", "notice"}, {"code", to_string(s.error().code)}, {"message", s.error().message}};
    emit(json::serialize(o));
  }
}

void NodeRuntime::Loop::save_map() {
  save_map_at_.reset();
  if (engine_->map_version() == saved_map_version_) return;
  saved_map_version_ = engine_->map_version();
  std::string map = engine_->saved_map();
  const std::string path = dir_.file(kMapFile);
  if (map.empty() || map.size() > kMapBytesMax) {
    ::unlink(path.c_str());
  } else if (Status s = write_file_atomic(path, map); !s) {
    log_.write(LogLevel::kWarning, "state", s.error().message);
  }
}

// ---- what the engine says ----

void NodeRuntime::Loop::emit_state() {
  json::object o{{"event", "state"}, {"state", node::to_string(engine_->state())}};
  if (auto e = engine_->state_error()) o["reason"] = e->message;
  emit(json::serialize(o));
}

void NodeRuntime::Loop::handle_engine_event(node::Event& event) {
  if (std::get_if<node::StateEvent>(&event)) {
    emit_state();
    if (auto e = engine_->state_error()) log_.write(LogLevel::kWarning, "node", e->message);
    resolve_waiters();
  } else if (auto* running = std::get_if<node::RunningEvent>(&event)) {
    json::object o{{"event", "running"},
                   {"ips", texts(running->addresses)},
                   {"ms", (clock_.now - started_at_).count() / 1'000'000}};
    emit(json::serialize(o));
    resolve_waiters();
  } else if (auto* url = std::get_if<node::LoginUrlEvent>(&event)) {
    emit(json::serialize(json::object{{"event", "login_url"}, {"url", url->url}}));
  } else if (auto* path = std::get_if<node::PathEvent>(&event)) {
    json::object o{{"event", "peer_path"}, {"peer", path->peer}};
    if (path->direct) {
      o["path"] = "direct";
      o["endpoint"] = path->direct->to_string();
      o["latency_ms"] = to_ms(path->latency);
    } else if (path->relay_region) {
      o["path"] = "relay";
      o["relay"] = *path->relay_region;
    } else {
      o["path"] = "none";
    }
    emit(json::serialize(o), true);
  } else if (std::get_if<node::PersistEvent>(&event)) {
    persist();
  } else if (auto* peers = std::get_if<node::PeersEvent>(&event)) {
    json::array added, removed;
    for (auto& n : peers->added) added.emplace_back(n);
    for (auto& n : peers->removed) removed.emplace_back(n);
    emit(json::serialize(json::object{{"event", "peers"}, {"added", std::move(added)}, {"removed", std::move(removed)}}));
    resolve_waiters();
  } else if (auto* ready = std::get_if<node::PeerReadyEvent>(&event)) {
    std::erase_if(peer_waits_, [&](PeerWait& w) {
      if (w.key != ready->key) return false;
      w.pending->set(true);
      return true;
    });
  } else if (auto* ping = std::get_if<node::PingEvent>(&event)) {
    handle_ping(ping->result);
  } else if (auto* check = std::get_if<node::NetcheckEvent>(&event)) {
    answer_netchecks(check->report);
  } else if (auto* resolve = std::get_if<node::ResolveEvent>(&event)) {
    resolver_->resolve(resolve->host, [this, host = resolve->host](Result<std::vector<IpAddress>> r) {
      engine_->resolved(clock_, host, r ? std::span<const IpAddress>(*r) : std::span<const IpAddress>());
    });
  } else if (auto* again = std::get_if<node::RebindEvent>(&event)) {
    rebind(again->reason);
  } else if (auto* notice = std::get_if<node::NoticeEvent>(&event)) {
    last_notice_ = notice->error.message;
    log_.write(LogLevel::kWarning, "node", notice->error.message);
    json::object o{{"event", "notice"}, {"code", to_string(notice->error.code)}, {"message", notice->error.message}};
    emit(json::serialize(o), true);
  } else if (std::get_if<node::LoggedOutEvent>(&event)) {
    for (auto& p : logout_waiters_) p->set(true);
    logout_waiters_.clear();
  }
}

std::optional<Error> NodeRuntime::Loop::hopeless() const {
  auto error = engine_->state_error();
  switch (engine_->state()) {
    case node::NodeState::kNeedsLogin:
      // Without a reason a person may still visit the login URL.
      if (error) return Error{ErrorCode::kUnauthorized, error->message};
      return std::nullopt;
    case node::NodeState::kLoggedOut:
      return Error{ErrorCode::kUnauthorized,
                   error ? error->message : std::string("this node is logged out; it needs a new key or a login")};
    case node::NodeState::kFailed:
      return error ? *error : Error{ErrorCode::kInternal, "the node cannot start"};
    default: return std::nullopt;
  }
}

void NodeRuntime::Loop::resolve_waiters() {
  bool running = engine_->state() == node::NodeState::kRunning;
  std::optional<Error> why = hopeless();
  std::erase_if(running_waiters_, [&](auto& p) {
    if (running) p->set(true);
    else if (why) p->set(*why);
    return running || why || p.use_count() == 1;
  });
  if (running || why) {
    auto waiting = std::move(when_running_);
    when_running_.clear();
    for (auto& w : waiting) w.action(running ? Status() : Status(*why));
  }
  for (PeerWait& w : peer_waits_) {
    if (why) w.pending->set(*why);
    if (why) continue;
    auto addresses = engine_->resolve_name(w.name);
    if (!addresses) continue;
    auto key = engine_->peer_of(addresses->front());
    if (!key || *key == w.key) continue;  // unknown so far, or asked already
    w.key = *key;
    engine_->probe_peer(clock_, *key);
  }
  std::erase_if(peer_waits_, [&](PeerWait& w) { return why || w.pending.use_count() == 1; });
}

void NodeRuntime::Loop::expire_when_running() {
  std::vector<WhenRunning> late;
  std::erase_if(when_running_, [&](WhenRunning& w) {
    if (w.deadline > clock_.now) return false;
    late.push_back(std::move(w));
    return true;
  });
  for (auto& w : late) w.action(why_not_running());
}

Error NodeRuntime::Loop::why_not_running() const {
  return {ErrorCode::kTimeout, "the node is not connected yet (" + std::string(node::to_string(engine_->state())) + ")" +
                                   (last_notice_.empty() ? "" : ": " + last_notice_)};
}

// ---- blocking calls of the app ----

void NodeRuntime::Loop::wait_running(std::shared_ptr<Pending<bool>> p) {
  if (!has_room(running_waiters_, p)) return;
  running_waiters_.push_back(std::move(p));
  resolve_waiters();
}

void NodeRuntime::Loop::wait_peer(const std::string& name, std::shared_ptr<Pending<bool>> p) {
  if (!has_room(peer_waits_, p, [](const PeerWait& w) -> const auto& { return w.pending; })) return;
  peer_waits_.push_back({name, {}, std::move(p)});
  resolve_waiters();
}

void NodeRuntime::Loop::logout(std::shared_ptr<Pending<bool>> p) {
  if (!has_room(logout_waiters_, p)) return;
  logout_waiters_.push_back(std::move(p));
  engine_->logout(clock_);
}

}  // namespace porthole::runtime
