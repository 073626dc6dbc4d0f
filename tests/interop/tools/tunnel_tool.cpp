// The netstack between us and somebody else's IP stack, for the interop cases.
//
//   tunnel_tool tun=NAME addresses=A,B [mtu=N] [loss=P delay=MS jitter=MS duplicate=P corrupt=P seed=N]
//       netstack <-> TUN device: the other end is this namespace's kernel. Packets suffer on the way, both ways.
//   tunnel_tool private=HEX peer=HEX allowed=PREFIX,... addresses=A,B port=N [endpoint=A:P] [psk=HEX] [keepalive=S]
//       netstack <-> WireGuard engine <-> UDP socket: the other end is another implementation of WireGuard.
//
// Commands come on stdin, one a line, events leave on stdout as JSON lines:
//
//   listen PORT ROLE...            a listener whose connections play a role of apps.h, or `to ADDRESS:PORT`: joined to a
//                                  local service
//   connect ADDRESS:PORT ROLE... [local=PORT] [timeout=MS] [keepalive=S]
//   door ADDRESS:PORT REMOTE:PORT  local listener whose connections go out through the netstack
//   udp PORT                       echoes datagrams
//   ping ADDRESS SIZE
//   pause|resume|fin|close|abort ID
//   doze MS                        nothing happens for so long
//   info [ID]      counters      link loss=... (as above)
//   handshake | retry | reset | rebind | again in|out TYPE | keepalive SECONDS | wireguard         WireGuard
//   quit
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <optional>
#include <unordered_map>

#include "apps.h"
#include "line.h"
#include "link.h"
#include "runtime/clock.h"
#include "runtime/event_loop.h"
#include "runtime/local_socket.h"
#include "runtime/splice.h"
#include "runtime/tcp_accept.h"
#include "runtime/udp_socket.h"
#include "wg/tunnel.h"

namespace {

using namespace porthole;
using namespace porthole::interop;
using namespace porthole::netstack;
using runtime::UniqueFd;

[[noreturn]] void die(const std::string& what) {
  std::fprintf(stderr, "tunnel_tool: %s\n", what.c_str());
  std::exit(2);
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> out;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, ',');) out.push_back(part);
  return out;
}

template <typename T>
T need(std::optional<T> value, const std::string& what) {
  if (!value) die("not " + what);
  return std::move(*value);
}

Endpoint endpoint_of(const std::string& text) { return need(Endpoint::parse(text), "an endpoint: " + text); }

void configure(LinkConfig& link, const Command& c) {
  auto ms = [&](const char* key, Duration otherwise) {
    return c.has(key) ? Duration(static_cast<std::int64_t>(c.real(key, 0) * 1e6)) : otherwise;
  };
  link.loss = c.real("loss", link.loss);
  link.duplicate = c.real("duplicate", link.duplicate);
  link.corrupt = c.real("corrupt", link.corrupt);
  link.delay = ms("delay", link.delay);
  link.jitter = ms("jitter", link.jitter);
}

// Where packets go, and come from.
class Carrier {
 public:
  virtual ~Carrier() = default;
  virtual PacketSink& sink(Clock clock) = 0;
  virtual void flush(Clock clock) = 0;  // after producing
  virtual void handle_timeout(Clock clock) = 0;
  virtual Instant next() const = 0;
  virtual bool command(Clock clock, const Command& c) = 0;
};

// ---- the kernel, through a TUN device

class TunCarrier final : public Carrier, public PacketSink, public runtime::FdHandler {
 public:
  TunCarrier(runtime::EventLoop& loop, Stack& stack, const Command& c)
      : stack_(stack), in_(c.number("seed", 1) * 2), out_(c.number("seed", 1) * 2 + 1), arena_(kStride * kBatch),
        read_(kStride * kBatch) {
    fd_ = UniqueFd(::open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK));
    ifreq request{};
    request.ifr_flags = IFF_TUN | IFF_NO_PI;
    c.text("tun").copy(request.ifr_name, IFNAMSIZ - 1);
    if (!fd_ || ::ioctl(fd_.get(), TUNSETIFF, &request) != 0) die(std::string("cannot open a TUN device: ") + std::strerror(errno));
    configure(in_.config, c);
    configure(out_.config, c);
    loop.add(fd_.get(), *this, true, false);
  }
  PacketSink& sink(Clock clock) override {
    now_ = clock.now;
    return *this;
  }
  MutBytes begin(std::size_t size_max) override {
    if (count_ == kBatch || size_max > kStride) return {};
    return {arena_.data() + count_ * kStride, size_max};
  }
  void commit(std::size_t size) override { sizes_[count_++] = size; }
  void flush(Clock) override {
    for (std::size_t i = 0; i < count_; ++i) {
      Bytes packet(arena_.data() + i * kStride, sizes_[i]);
      if (out_.perfect()) write(packet);
      else out_.push(now_, packet);
    }
    count_ = 0;
    for (const ByteVector& packet : out_.take(now_)) write(packet);
  }
  void on_ready(bool, bool, bool) override {
    Instant now = runtime::clock_now().now;
    std::vector<MutBytes> batch;
    for (std::size_t i = 0; i < kBatch; ++i) {
      MutBytes room(read_.data() + i * kStride, kStride);
      ssize_t n = ::read(fd_.get(), room.data(), room.size());
      if (n <= 0) break;
      MutBytes packet = room.first(static_cast<std::size_t>(n));
      if (in_.perfect()) batch.push_back(packet);
      else in_.push(now, packet);
    }
    if (!batch.empty()) stack_.handle_packets(now, batch);
  }
  void handle_timeout(Clock clock) override {
    std::vector<ByteVector> arrived = in_.take(clock.now);
    std::vector<MutBytes> batch(arrived.begin(), arrived.end());
    if (!batch.empty()) stack_.handle_packets(clock.now, batch);
    for (const ByteVector& packet : out_.take(clock.now)) write(packet);
  }
  Instant next() const override { return std::min(in_.next(), out_.next()); }
  bool command(Clock, const Command& c) override {
    if (c.word(0) == "link") {
      if (c.word(1) != "in") configure(out_.config, c);
      if (c.word(1) != "out") configure(in_.config, c);
    }
    Line("link").add("in_passed", in_.passed).add("in_lost", in_.lost).add("in_full", in_.queue_full)
        .add("out_passed", out_.passed).add("out_lost", out_.lost).add("out_full", out_.queue_full).add("write_errors", write_errors_);
    return true;
  }

 private:
  static constexpr std::size_t kStride = 9216, kBatch = 128;
  void write(Bytes packet) {
    if (::write(fd_.get(), packet.data(), packet.size()) < 0) ++write_errors_;
  }
  Stack& stack_;
  UniqueFd fd_;
  BadLink in_, out_;
  ByteVector arena_, read_;
  std::size_t sizes_[kBatch] = {};
  std::size_t count_ = 0;
  std::uint64_t write_errors_ = 0;
  Instant now_;
};

// ---- another WireGuard, through UDP

class WireGuardCarrier final : public Carrier, public PacketSink, public wg::Host, public runtime::UdpSocket::Receiver {
 public:
  WireGuardCarrier(runtime::EventLoop& loop, Stack& stack, Rng& rng, Clock clock, const Command& c)
      : loop_(loop), stack_(stack), clock_(clock), tunnel_(*this, rng), buffers_(runtime::UdpSocket::make_buffers()) {
    ByteVector key = need(from_hex(c.text("private")), "a key");
    ByteVector peer = need(from_hex(c.text("peer")), "a key");
    tunnel_.set_private_key(clock, crypto::NodePrivate::from_bytes(key));
    std::vector<Prefix> allowed;
    for (const std::string& text : split(c.text("allowed"))) {
      allowed.push_back(need(Prefix::parse(text), "a prefix: " + text));
      inner_.push_back(allowed.back().address);
    }
    crypto::SecretBytes<32> psk;
    if (c.has("psk")) psk = crypto::SecretBytes<32>(Bytes(need(from_hex(c.text("psk")), "a key")));
    peer_ = tunnel_.add_peer(clock, NodePublic::from_bytes(peer), allowed, c.has("psk") ? &psk : nullptr);
    if (c.has("endpoint")) remote_ = endpoint_of(c.text("endpoint"));
    if (c.has("keepalive")) tunnel_.set_persistent_keepalive(clock, peer_, std::chrono::seconds(c.number("keepalive", 0)));
    bind(static_cast<std::uint16_t>(c.number("port", 0)));
  }

  // Host
  bool admit(const NodePublic&) override { return false; }
  void transmit(wg::PeerId, Bytes run, std::size_t segment_size) override {
    remember(sent_, run.first(std::min(segment_size, run.size())));
    if (remote_.is_valid()) socket(remote_).send(remote_, run, segment_size);
  }
  void reply(const wg::Source& to, Bytes datagram) override {
    const Endpoint& at = std::get<Endpoint>(to);
    socket(at).send(at, datagram, datagram.size());
  }
  void deliver(wg::PeerId, std::span<const MutBytes> packets) override { stack_.handle_packets(clock_.now, packets); }
  void authenticated(wg::PeerId, const wg::Source& source) override {
    const Endpoint& from = std::get<Endpoint>(source);
    if (from == remote_) return;
    remote_ = from;  // roaming as plain WireGuard does it
    Line("roamed").add("to", remote_.to_string());
  }
  void stray(const wg::Source&) override {}
  void session(wg::PeerId, wg::SessionState state) override {
    Line("session").add("state", static_cast<std::uint64_t>(state));
    // As node::Engine has it: what went to a session that the other end forgot is resent now, not when TCP's timer says so.
    if (state == wg::SessionState::kEstablished)
      for (const IpAddress& a : inner_) stack_.path_changed(clock_.now, a, PathChange::kReachable);
  }

  // UDP
  void datagrams_received(std::span<const RecvDatagram> batch) override {
    clock_ = runtime::clock_now();
    for (const RecvDatagram& d : batch) {
      if (d.data.empty()) continue;
      if (d.data[0] != 4 || d.data.size() > 32) remember(received_, d.data);
    }
    tunnel_.handle_datagrams(clock_, batch);
  }

  // PacketSink
  MutBytes begin(std::size_t size_max) override { return tunnel_.begin(size_max); }
  void commit(std::size_t size) override { tunnel_.commit(clock_, size); }

  PacketSink& sink(Clock clock) override {
    clock_ = clock;
    return *this;
  }
  void flush(Clock clock) override { tunnel_.flush(clock); }
  void handle_timeout(Clock clock) override {
    clock_ = clock;
    if (tunnel_.next_timeout().earliest <= clock.now) tunnel_.handle_timeout(clock);
  }
  Instant next() const override { return tunnel_.next_timeout().earliest; }

  bool command(Clock clock, const Command& c) override {
    clock_ = clock;
    const std::string verb = c.word(0);
    if (verb == "handshake") {
      tunnel_.start_handshake(clock, peer_);
    } else if (verb == "retry") {
      tunnel_.retry_handshake(clock, peer_);
    } else if (verb == "reset") {
      tunnel_.reset_session(clock, peer_);
      tunnel_.start_handshake(clock, peer_);
    } else if (verb == "rebind") {
      bind(static_cast<std::uint16_t>(c.number(1)));
    } else if (verb == "keepalive") {
      tunnel_.set_persistent_keepalive(clock, peer_, std::chrono::seconds(c.number(1)));
    } else if (verb == "again") {
      again(c.word(1) == "in", static_cast<std::uint8_t>(c.number(2)));
    } else if (verb != "wireguard") {
      return false;
    }
    report();
    return true;
  }

 private:
  void bind(std::uint16_t port) {
    runtime::UdpSocket::Options options;
    v4_.reset();
    v6_.reset();
    auto ignore = [](const Endpoint&, runtime::UdpSocket::SendError) {};
    auto v4 = runtime::UdpSocket::open(loop_, false, port, options, buffers_, *this, ignore);
    if (!v4) die(v4.error().message);
    v4_ = std::move(*v4);
    auto v6 = runtime::UdpSocket::open(loop_, true, v4_->port(), options, buffers_, *this, ignore);
    if (!v6) die(v6.error().message);
    v6_ = std::move(*v6);
    Line("bound").add("port", std::uint64_t{v4_->port()});
  }
  runtime::UdpSocket& socket(const Endpoint& to) { return to.address.is_v6() ? *v6_ : *v4_; }

  // The last datagram of each type, to be repeated by `again`.
  void remember(std::map<std::uint8_t, ByteVector>& where, Bytes datagram) {
    if (datagram[0] == 4) {
      if (last_of_type4_++ % 64 != 0 && datagram.size() > 200) return;  // not every packet of a bulk transfer
    }
    where[datagram[0]].assign(datagram.begin(), datagram.end());
  }
  void again(bool in, std::uint8_t type) {
    auto& held = in ? received_ : sent_;
    auto it = held.find(type);
    if (it == held.end()) die("nothing to repeat");
    if (!in) return socket(remote_).send(remote_, it->second, it->second.size());
    ByteVector copy = it->second;  // opening happens in place
    RecvDatagram datagram{remote_, MutBytes(copy)};
    tunnel_.handle_datagrams(clock_, std::span(&datagram, 1));
  }

  void report() {
    const wg::PeerStats s = tunnel_.stats(peer_);
    const wg::Counters& n = tunnel_.counters();
    auto drop = [&](wg::Drop d) { return n.drops[static_cast<std::size_t>(d)]; };
    std::uint64_t drops = 0;
    for (std::uint64_t d : n.drops) drops += d;
    Line("wireguard").add("state", static_cast<std::uint64_t>(s.state)).add("rx_bytes", s.rx_bytes).add("tx_bytes", s.tx_bytes)
        .add("rx_packets", s.rx_packets).add("tx_packets", s.tx_packets).add("initiations_sent", n.initiations_sent)
        .add("initiations_accepted", n.initiations_accepted).add("handshakes", n.handshakes_completed)
        .add("cookie_replies_sent", n.cookie_replies_sent).add("cookies_received", n.cookies_received)
        .add("replayed", drop(wg::Drop::kReplayed)).add("replayed_stamp", drop(wg::Drop::kReplayedStamp))
        .add("under_load", drop(wg::Drop::kUnderLoad)).add("rate_limited", drop(wg::Drop::kRateLimited))
        .add("bad_handshake", drop(wg::Drop::kBadHandshake)).add("unknown_index", drop(wg::Drop::kUnknownIndex))
        .add("bad_tag", drop(wg::Drop::kBadTag)).add("disallowed", drop(wg::Drop::kDisallowedSource))
        .add("bad_packet", drop(wg::Drop::kBadPacket)).add("drops", drops)
        .add("age", s.last_handshake ? clock_.now - *s.last_handshake : Duration(0)).add("remote", remote_.to_string())
        .add("udp_dropped", v4_->counters().dropped_out + v6_->counters().dropped_out);
  }

  runtime::EventLoop& loop_;
  Stack& stack_;
  Clock clock_;
  wg::Tunnel tunnel_;
  std::shared_ptr<runtime::UdpSocket::ReceiveBuffers> buffers_;
  std::unique_ptr<runtime::UdpSocket> v4_, v6_;
  wg::PeerId peer_ = wg::kNoPeer;
  Endpoint remote_;
  std::vector<IpAddress> inner_;  // the addresses behind it
  std::map<std::uint8_t, ByteVector> sent_, received_;
  std::uint64_t last_of_type4_ = 0;
};

// ---- the tool

class Tool final : public runtime::FdHandler {
 public:
  explicit Tool(const Command& c) : stack_(config(c), rng_), scratch_(64 * 1024) {
    clock_ = runtime::clock_now();
    std::vector<IpAddress> addresses;
    for (const std::string& text : split(c.text("addresses"))) addresses.push_back(need(IpAddress::parse(text), "an address: " + text));
    stack_.set_addresses(addresses);
    if (c.has("tun")) carrier_ = std::make_unique<TunCarrier>(loop_, stack_, c);
    else carrier_ = std::make_unique<WireGuardCarrier>(loop_, stack_, rng_, clock_, c);
    ::fcntl(STDIN_FILENO, F_SETFL, ::fcntl(STDIN_FILENO, F_GETFL) | O_NONBLOCK);
    loop_.add(STDIN_FILENO, *this, true, false);
    Line("ready");
  }

  void run() {
    while (!quit_) {
      turn();
      Instant until = std::min(stack_.next_timeout().earliest, carrier_->next());
      for (const auto& [id, app] : apps_) until = std::min(until, app->next());
      loop_.wait(clock_.now, sink_full_ ? clock_.now : until);
      clock_ = runtime::clock_now();
      loop_.dispatch();
    }
  }

  void on_ready(bool, bool, bool) override {
    char block[4096];
    ssize_t n = ::read(STDIN_FILENO, block, sizeof block);
    if (n == 0) quit_ = true;
    if (n <= 0) return;
    input_.append(block, static_cast<std::size_t>(n));
    for (std::size_t end; (end = input_.find('\n')) != std::string::npos; input_.erase(0, end + 1)) command(Command(input_.substr(0, end)));
  }

 private:
  struct Listening {
    Command command;
    std::optional<Endpoint> to;
  };

  static StackConfig config(const Command& c) {
    StackConfig out;
    out.mtu = static_cast<int>(c.number("mtu", 1280));
    if (c.has("receive_buffer")) out.receive_buffer_start = out.receive_buffer_max = c.number("receive_buffer", 0);
    return out;
  }

  void turn() {
    carrier_->handle_timeout(clock_);
    if (stack_.next_timeout().earliest <= clock_.now) stack_.handle_timeout(clock_.now);
    for (auto& [id, app] : apps_)
      if (app->next() <= clock_.now) app->pump(clock_.now);
    while (auto e = stack_.poll_event()) handle(*e);
    sink_full_ = stack_.produce(clock_.now, carrier_->sink(clock_));
    carrier_->flush(clock_);
    while (auto e = stack_.poll_event()) handle(*e);
    std::erase_if(apps_, [](const auto& held) { return held.second->over(); });
    ended_.clear();
  }

  void handle(const SocketEvent& e) {
    if (auto it = listeners_.find(e.id); it != listeners_.end()) {
      while (auto id = stack_.accept(e.id)) accepted(it->second, *id);
    } else if (auto app = apps_.find(e.id); app != apps_.end()) {
      app->second->handle(clock_.now, e);
    } else if (auto splice = splices_.find(e.id); splice != splices_.end()) {
      splice->second->handle_event(e);
    } else if (auto waiting = waiting_.find(e.id); waiting != waiting_.end()) {
      UniqueFd fd = std::move(waiting->second);
      waiting_.erase(waiting);
      if (e.kind == SocketEventKind::kConnected) return join(e.id, std::move(fd));
      runtime::reset_on_close(fd.get());
      stack_.close(clock_.now, e.id);
    } else if (udp_ == e.id) {
      while (auto datagram = stack_.udp_receive(e.id))
        (void)stack_.udp_send_from(clock_.now, e.id, datagram->destination, datagram->source, datagram->data);
    } else if (e.kind == SocketEventKind::kPong) {
      Line("pong").add("rtt", e.rtt);
    } else if (e.kind == SocketEventKind::kConnectFailed) {
      Line("failed").add("id", e.id).add("error", e.error.message);
    }
  }

  void accepted(const Listening& listening, SocketId id) {
    if (listening.to) {
      auto fd = runtime::connect_tcp(*listening.to);
      if (!fd) return stack_.abort(clock_.now, id);
      return join(id, std::move(*fd));
    }
    Line("accepted").add("id", id).add("remote", stack_.remote(id).to_string());
    auto app = std::make_unique<App>(stack_, id, listening.command, 2);
    app->start(clock_.now);
    app->pump(clock_.now);
    apps_[id] = std::move(app);
  }

  void join(SocketId id, UniqueFd fd) {
    auto s = std::make_unique<runtime::Splice>(loop_, stack_, id, std::move(fd), MutBytes(scratch_), clock_.now, [this, id] {
      auto it = splices_.find(id);
      if (it == splices_.end()) return;
      ended_.push_back(std::move(it->second));
      splices_.erase(it);
    });
    runtime::Splice& splice = *s;
    splices_[id] = std::move(s);
    splice.handle_event({id, SocketEventKind::kReadable, {}, {}});
  }

  void command(const Command& c) {
    const std::string verb = c.word(0);
    if (verb == "quit") {
      quit_ = true;
    } else if (verb == "doze") {
      ::usleep(static_cast<useconds_t>(c.number(1) * 1000));
      clock_ = runtime::clock_now();
    } else if (verb == "listen") {
      auto id = stack_.listen(clock_.now, std::nullopt, static_cast<std::uint16_t>(c.number(1)), 1024);
      if (!id) return fail(id.error());
      Listening l{c, {}};
      if (c.word(2) == "to") l.to = endpoint_of(c.word(3));
      listeners_.emplace(*id, l);
      Line("listening").add("id", *id).add("port", std::uint64_t{stack_.local(*id).port});
    } else if (verb == "connect") {
      ConnectOptions o;
      o.timeout = std::chrono::milliseconds(c.number("timeout", 30000));
      o.local_port = static_cast<std::uint16_t>(c.number("local", 0));
      o.keepalive = c.has("keepalive");
      o.keepalive_idle = o.keepalive_interval = std::chrono::milliseconds(static_cast<std::int64_t>(c.real("keepalive", 1) * 1000));
      o.keepalive_probes = 3;
      auto id = stack_.connect(clock_.now, endpoint_of(c.word(1)), o);
      if (!id) return fail(id.error());
      Line("connecting").add("id", *id);
      apps_[*id] = std::make_unique<App>(stack_, *id, c, 2);
    } else if (verb == "door") {
      auto fd = runtime::listen_tcp(endpoint_of(c.word(1)), 1024);
      if (!fd) return fail(fd.error());
      Endpoint remote = endpoint_of(c.word(2));
      doors_.push_back(std::make_unique<runtime::AcceptHandler>(loop_, std::move(*fd), [this, remote](UniqueFd accepted) {
        auto id = stack_.connect(clock_.now, remote);
        if (id) waiting_[*id] = std::move(accepted);
      }));
    } else if (verb == "udp") {
      auto id = stack_.udp_bind(std::nullopt, static_cast<std::uint16_t>(c.number(1)));
      if (!id) return fail(id.error());
      udp_ = *id;
    } else if (verb == "ping") {
      auto id = stack_.ping(clock_.now, need(IpAddress::parse(c.word(1)), "an address"), c.number(2));
      if (!id) return fail(id.error());
    } else if (verb == "pause" || verb == "resume") {
      if (auto app = apps_.find(c.number(1)); app != apps_.end()) {
        app->second->pause(verb == "pause");
        app->second->pump(clock_.now);
      }
    } else if (verb == "fin") {
      stack_.shutdown_write(clock_.now, c.number(1));
    } else if (verb == "close") {
      stack_.close(clock_.now, c.number(1));
      apps_.erase(c.number(1));
    } else if (verb == "abort") {
      stack_.abort(clock_.now, c.number(1));
      apps_.erase(c.number(1));
    } else if (verb == "info") {
      for (const auto& [id, app] : apps_)
        if (c.word(1).empty() || c.number(1) == id) info(id, app->role());
      Line("info_end");
    } else if (verb == "counters") {
      counters();
    } else if (!carrier_->command(clock_, c)) {
      Line("error").add("error", "unknown command: " + verb);
    }
  }

  void fail(const Error& error) { Line("error").add("error", error.message); }

  void info(SocketId id, const std::string& role) {
    TcpInfo i = stack_.info(id);
    Line("info").add("id", id).add("role", role).add("state", static_cast<std::uint64_t>(i.state)).add("local", i.local.to_string())
        .add("remote", i.remote.to_string()).add("srtt", i.srtt).add("rttvar", i.rttvar).add("min_rtt", i.min_rtt).add("rto", i.rto)
        .add("cwnd", i.cwnd).add("pacing_rate", i.pacing_rate).add("in_flight", i.in_flight).add("unsent", i.unsent)
        .add("unacked", i.unacked).add("unread", i.unread).add("send_window", i.send_window).add("receive_window", i.receive_window)
        .add("receive_buffer", i.receive_buffer).add("bytes_sent", i.bytes_sent).add("bytes_resent", i.bytes_resent)
        .add("bytes_acked", i.bytes_acked).add("bytes_received", i.bytes_received).add("segments_sent", i.segments_sent)
        .add("segments_resent", i.segments_resent).add("segments_received", i.segments_received)
        .add("recoveries", std::uint64_t{i.recoveries}).add("timeouts", std::uint64_t{i.timeouts})
        .add("tail_probes", std::uint64_t{i.tail_probes}).add("undone", std::uint64_t{i.undone}).add("dsacks", std::uint64_t{i.dsacks})
        .add("max_segment", std::uint64_t{i.max_segment}).add("timestamps", i.timestamps).add("sack", i.sack)
        .add("window_scaling", i.window_scaling);
  }

  void counters() {
    const Counters& n = stack_.counters();
    MemoryUse m = stack_.memory();
    static constexpr const char* kDrops[] = {
        "ip_header", "ip_checksum", "ip_length", "ip_source", "ip_destination", "ip_options", "ip_protocol", "fragment",
        "fragment_overlap", "fragment_limit", "fragment_timeout", "icmp", "udp", "udp_checksum", "udp_no_port", "udp_queue_full",
        "tcp_header", "tcp_checksum", "tcp_no_connection", "tcp_paws", "tcp_sequence", "tcp_ack", "tcp_syn", "tcp_reset",
        "tcp_memory", "syn_limit", "accept_queue_full", "rate_limit"};
    static_assert(std::size(kDrops) == static_cast<std::size_t>(Drop::kCount));
    Line line("counters");
    for (std::size_t i = 0; i < std::size(kDrops); ++i)
      if (n.drops[i] != 0) line.add(std::string("drop_") + kDrops[i], n.drops[i]);
    line.add("packets_in", n.packets_in).add("packets_out", n.packets_out).add("resent", n.tcp_resent).add("timeouts", n.tcp_timeouts)
        .add("recoveries", n.tcp_recoveries).add("undone", n.tcp_undone).add("tail_probes", n.tcp_tail_probes)
        .add("challenge_acks", n.tcp_challenge_acks).add("resets_sent", n.tcp_resets_sent).add("bad_sack", n.tcp_bad_sack)
        .add("connects", n.tcp_connects).add("accepts", n.tcp_accepts).add("buffers", std::uint64_t{m.buffers})
        .add("connections", std::uint64_t{m.connections}).add("half_open", std::uint64_t{m.half_open})
        .add("time_wait", std::uint64_t{m.time_wait});
  }

  runtime::SystemRng rng_;
  runtime::EventLoop loop_;
  Clock clock_;
  Stack stack_;
  std::unique_ptr<Carrier> carrier_;
  ByteVector scratch_;
  std::string input_;
  std::map<SocketId, Listening> listeners_;
  std::unordered_map<SocketId, std::unique_ptr<App>> apps_;
  std::unordered_map<SocketId, std::unique_ptr<runtime::Splice>> splices_;
  std::vector<std::unique_ptr<runtime::Splice>> ended_;
  std::unordered_map<SocketId, UniqueFd> waiting_;
  std::vector<std::unique_ptr<runtime::AcceptHandler>> doors_;
  SocketId udp_ = 0;
  bool sink_full_ = false, quit_ = false;
};

}  // namespace

int main(int argc, char** argv) {
  std::string line;
  for (int i = 1; i < argc; ++i) line.append(argv[i]).append(" ");
  Command command(line);
  if (command.text("addresses").empty() || (!command.has("tun") && !command.has("private"))) die("see the comment at the top of tunnel_tool.cpp");
  Tool(command).run();
  return 0;
}
