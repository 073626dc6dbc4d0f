// The loopback proxy's connections: handshake with the local program, dial into the tailnet, then a splice; or a UDP
// association, which lasts as long as its connection.
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "runtime/node_loop.h"
#include "runtime/sockaddr.h"

namespace porthole::runtime {
namespace {
constexpr std::size_t kHandshakesMax = 1024;     // programs in the handshake or waiting for their connection, and associations
// Each is two descriptors. With proxy::kUdpTargetsMax each they leave half of the netstack's UDP sockets (kUdpSocketsMax) to
// the app, whatever programs do.
constexpr std::ptrdiff_t kAssociationsMax = 64;
}  // namespace

class NodeRuntime::Loop::ProxyConnection final : public FdHandler,
                                                 public std::enable_shared_from_this<NodeRuntime::Loop::ProxyConnection> {
 public:
  ProxyConnection(Loop& loop, UniqueFd fd, const proxy::ProxyCredential& credential)
      : loop_(loop), fd_(std::move(fd)), machine_(loop.clock_.now, {&credential, false}) {
    token_ = loop_.loop_.add(fd_.get(), *this, true, false);
  }
  ~ProxyConnection() override {
    if (token_) loop_.loop_.remove(token_);
  }

  Deadline next_timeout() const { return udp_ ? udp_->next_timeout() : machine_.next_timeout(); }
  void handle_timeout() {
    machine_.handle_timeout(loop_.clock_.now);
    if (udp_) udp_->handle_timeout();
    advance();
  }

  void on_ready(bool readable, bool, bool hangup) override {
    auto keep = shared_from_this();
    if (readable && machine_.state() == proxy::ProxyState::kHandshake && !read()) return close();
    // The program went away while its connection was being made.
    if (hangup && machine_.state() != proxy::ProxyState::kHandshake) return close();
    if (udp_ && readable && !lasts()) return close();
    advance();
  }

  bool is_association() const { return udp_ != nullptr; }

 private:
  bool read() {
    std::uint8_t block[2048];
    while (machine_.state() == proxy::ProxyState::kHandshake) {
      ssize_t n = ::recv(fd_.get(), block, sizeof block, MSG_DONTWAIT);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && errno == EAGAIN) return true;
      if (n <= 0) return false;
      Bytes got(block, static_cast<std::size_t>(n));
      std::size_t taken = machine_.consume(got);
      append(early_, got.subspan(taken));
    }
    return true;
  }

  // Whether an association's connection is still there. RFC 1928 has no messages on it any more: what comes is ignored.
  bool lasts() {
    std::uint8_t block[2048];
    ssize_t n = ::recv(fd_.get(), block, sizeof block, MSG_DONTWAIT);
    return n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR));
  }

  void advance() {
    while (auto event = machine_.poll_event()) {
      if (auto* c = std::get_if<proxy::Connect>(&*event)) dial(*c);
      else if (std::holds_alternative<proxy::Associate>(*event)) associate();
    }
    if (!flush()) return close();
    if (machine_.has_output()) return;
    if (machine_.state() == proxy::ProxyState::kClosing) return close();
    if (machine_.state() == proxy::ProxyState::kOpen && socket_) hand_over();
  }

  bool flush() {
    std::uint8_t block[2048];
    while (at_ < out_.size() || machine_.has_output()) {
      if (at_ == out_.size()) {
        std::size_t n = machine_.produce(block);
        out_.assign(block, block + n);
        at_ = 0;
      }
      ssize_t n = ::send(fd_.get(), out_.data() + at_, out_.size() - at_, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && errno == EAGAIN) break;
      if (n <= 0) return false;
      at_ += static_cast<std::size_t>(n);
    }
    bool reading = machine_.state() == proxy::ProxyState::kHandshake || udp_;
    if (token_) loop_.loop_.change(token_, reading, at_ < out_.size());
    return true;
  }

  void dial(const proxy::Connect& c) {
    DialTarget target;
    if (const auto* a = std::get_if<IpAddress>(&c.host)) target.host = a->to_string();
    else target.host = std::get<std::string>(c.host);
    target.port = c.port;
    plain_http_ = !c.first.empty();
    early_.insert(early_.begin(), c.first.begin(), c.first.end());
    loop_.open_tailnet(target, kDialDefault, [self = weak_from_this(), &loop = loop_](Result<SocketId> r) {
      auto me = self.lock();
      if (!me || !me->token_) {
        if (r) loop.engine_->stack().abort(loop.clock_.now, *r);
        return;
      }
      if (r) {
        me->socket_ = *r;
        me->machine_.connected(loop.engine_->stack().local(*r));
      } else {
        loop.log_.write(LogLevel::kInfo, "proxy", r.error().message);
        me->machine_.failed(proxy::connect_failure(r.error().code), r.error().message);
      }
      me->advance();
    });
  }

  void associate() {
    loop_.when_running(kDialDefault, [self = weak_from_this(), &loop = loop_](Status running) {
      auto me = self.lock();
      if (!me || !me->token_) return;
      Status s = running ? me->open_udp() : running;
      if (s) {
        me->machine_.connected(me->udp_->local());
      } else {
        loop.log_.write(LogLevel::kInfo, "proxy", s.error().message);
        me->machine_.failed(proxy::connect_failure(s.error().code), s.error().message);
      }
      me->advance();
    });
  }

  Status open_udp() {
    const auto& all = loop_.proxy_connections_;
    if (std::count_if(all.begin(), all.end(), [](const auto& c) { return c.second->is_association(); }) >= kAssociationsMax)
      return Error{ErrorCode::kLimit, "too many UDP associations at a time: at most " + std::to_string(kAssociationsMax)};
    SocksUdp::Hooks hooks;
    hooks.find = [&loop = loop_](const std::string& host) {
      DialTarget target;
      target.host = host;
      return loop.device_address(target);
    };
    hooks.opened = [this](SocketId id) { loop_.socks_flows_[id] = udp_.get(); };
    hooks.closed = [&loop = loop_](SocketId id) { loop.socks_flows_.erase(id); };
    auto udp = SocksUdp::open(loop_.loop_, loop_.engine_->stack(), local_endpoint(fd_.get()).address, remote_endpoint(fd_.get()).address,
                              std::move(hooks), MutBytes(loop_.scratch_.get(), kScratchBytes), loop_.clock_.now, loop_.association_counters_);
    if (!udp) return udp.error();
    udp_ = std::move(*udp);
    return {};
  }

  void hand_over() {
    auto keep = shared_from_this();
    SocketId socket = *socket_;
    socket_.reset();
    loop_.loop_.remove(token_);
    token_ = 0;
    loop_.proxy_connections_.erase(fd_.get());
    loop_.splice(socket, std::move(fd_), early_, {}, plain_http_);
    loop_.defer_delete(std::move(keep));
  }

  void close() {
    if (!token_) return;
    auto keep = shared_from_this();
    if (socket_) loop_.engine_->stack().abort(loop_.clock_.now, *socket_);
    udp_.reset();
    loop_.loop_.remove(token_);
    token_ = 0;
    loop_.proxy_connections_.erase(fd_.get());
    loop_.defer_delete(std::move(keep));
  }

  Loop& loop_;
  UniqueFd fd_;
  EventLoop::Token token_ = 0;
  proxy::ProxyMachine machine_;
  std::optional<SocketId> socket_;   // connected, not yet handed over
  std::unique_ptr<SocksUdp> udp_;    // of an association
  bool plain_http_ = false;
  ByteVector early_;                 // what the tunnel gets first
  ByteVector out_;
  std::size_t at_ = 0;
};

void NodeRuntime::Loop::add_proxy(UniqueFd fd) {
  if (proxy_connections_.size() >= kHandshakesMax) return;
  int number = fd.get();
  proxy_connections_[number] = std::make_shared<ProxyConnection>(*this, std::move(fd), loopback_->credential);
}

Instant NodeRuntime::Loop::next_proxy_timeout() const {
  Instant t = Instant::max();
  for (const auto& [fd, c] : proxy_connections_) t = std::min(t, c->next_timeout().latest);
  return t;
}

void NodeRuntime::Loop::expire_proxies() {
  std::vector<std::shared_ptr<ProxyConnection>> due;
  for (const auto& [fd, c] : proxy_connections_)
    if (c->next_timeout().earliest <= clock_.now) due.push_back(c);
  for (auto& c : due) c->handle_timeout();
}

Result<ProxyAccess> NodeRuntime::Loop::loopback(const std::string& address) {
  if (loopback_) {
    if (!address.empty() && address != loopback_->wanted)
      return Error{ErrorCode::kAlreadyExists, "the loopback proxy already runs on " + loopback_->access.address};
    return loopback_->access;
  }
  Endpoint at{IpAddress::v4(127, 0, 0, 1), 0};
  if (!address.empty()) {
    auto parsed = Endpoint::parse(address);
    if (!parsed) return Error{ErrorCode::kInvalid, "'" + address + "' is not an ADDRESS:PORT for the loopback proxy"};
    if (!parsed->address.is_loopback())
      return Error{ErrorCode::kInvalid, "the proxy listens on loopback addresses only (127.0.0.1 or [::1]), not on " + parsed->address.to_string()};
    at = *parsed;
  }
  auto listener = listen_tcp(at);
  if (!listener) return listener.error();
  std::uint8_t secret[16];
  rng_.fill(secret);
  std::string password = to_hex(secret);
  std::string name = local_endpoint(listener->get()).to_string();
  loopback_.emplace();
  loopback_->wanted = address;
  loopback_->access = {name, loopback_->credential.user, password};
  loopback_->credential.password = crypto::SecretText(password);
  loopback_->acceptor = std::make_unique<AcceptHandler>(loop_, std::move(*listener), [this](UniqueFd fd) { add_proxy(std::move(fd)); });
  return loopback_->access;
}

}  // namespace porthole::runtime
