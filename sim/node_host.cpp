#include "sim/node_host.h"

#include <algorithm>

namespace porthole::sim {
namespace {
constexpr std::size_t kBatchMax = 64;
constexpr int kRoundsPerTurn = 64;
}  // namespace

class NodeHost::EngineStream final : public StreamUser {
 public:
  EngineStream(NodeHost& node, StreamId id) : node_(node), id_(id) {}
  void stream_opened(const StreamInfo& info) override {
    node_.engine_->stream_opened(node_.clock(), id_, info);
    node_.poke();
  }
  void stream_failed(const Error& error) override {
    NodeHost& node = node_;
    StreamId id = id_;
    bury();
    node.engine_->stream_failed(node.clock(), id, error);
    node.poke();
  }
  void stream_bytes(MutBytes bytes) override {
    auto taken = node_.engine_->consume(node_.clock(), id_, bytes);
    if (!taken)
      node_.world_.fail("a machine refused bytes of a stream: " + taken.error().message);
    else if (*taken != bytes.size())
      node_.world_.fail("a machine left bytes of a stream");
    node_.poke();
  }
  void stream_writable() override { node_.poke(); }
  void stream_closed(const std::optional<Error>& error) override {
    NodeHost& node = node_;
    StreamId id = id_;
    bury();
    node.engine_->stream_closed(node.clock(), id, error);
    node.poke();
  }
  void bury() {
    auto it = node_.streams_.find(id_);
    node_.graveyard_.push_back(std::move(it->second));
    node_.streams_.erase(it);
  }

  StreamRef stream;

 private:
  NodeHost& node_;
  StreamId id_;
};

NodeHost::NodeHost(Network& network, Streams& streams, Ledger& ledger, Host& host, NodeConfig config)
    : network_(network), streams_net_(streams), ledger_(ledger), world_(network.world()), host_(host), config_(std::move(config)),
      rng_(world_.rng("node " + config_.name)), log_(world_, config_.name), machine_key_(crypto::MachinePrivate::generate(rng_)),
      scratch_(kStreamBlock), alarm_(world_, [this] { turn(); }) {}

NodeHost::~NodeHost() {
  for (auto& [id, s] : streams_) s->stream->vanish();
}

// ---- life ----

void NodeHost::start() {
  PORTHOLE_ASSERT(!engine_);
  host_.up = true;
  suspended_ = false;
  notices_.clear();
  world_.note(config_.name, "starts");
  node::EngineConfig config;
  config.control.url = config_.control_url;
  config.control.auth_key = auth_key_.duplicate();
  config.control.ephemeral = config_.ephemeral;
  config.control.hostinfo.hostname = config_.name;
  config.control.hostinfo.os = "linux";
  config.control.hostinfo.ipn_version = "0.1.0-sim";
  config.control.cached_control_key = control_key_;
  config.control.expect_registered = registered_;
  config.saved_map = saved_map_;
  config.relay_only = config_.relay_only;
  config.udp_enabled = config_.udp_enabled;
  config.stack = config_.stack;
  config.last_disco_key = disco_key_.duplicate();
  config.last_udp_port = udp_port_;
  const wg::StampLease stamps = node::lease_stamps(stored_stamp_, clock().wall);
  stored_stamp_ = stamps.until;
  engine_ = std::make_unique<node::Engine>(std::move(config), machine_key_.duplicate(), node_key_.duplicate(),
                                           stamps, static_cast<DatagramSink&>(*this), rng_, log_, clock());
  app_ = std::make_unique<App>(world_, ledger_, engine_->stack(), config_.account);
  app_->serve(kAppPort);
  if (config_.udp_enabled) bind_udp(udp_port_ != 0 && !host_.is_bound(udp_port_) ? udp_port_ : std::uint16_t{0});
  announce_addresses();
  engine_->start(clock());
  poke();
}

void NodeHost::bind_udp(std::uint16_t port) {
  while (port == 0 || host_.is_bound(port)) port = static_cast<std::uint16_t>(20000 + rng_.below(40000));
  udp_port_ = port;
  host_.bind(port, [this](const Endpoint& source, const Endpoint&, MutBytes data) {
    if (!engine_ || suspended_) return;
    inbox_.push_back({source, to_vector(data)});
    poke();
  });
}

void NodeHost::announce_addresses() {
  std::vector<paths::InterfaceAddress> list;
  for (const IpAddress& a : host_.addresses()) list.push_back({"eth0", a, a.is_v4() ? 24 : 64, true, false});
  bool v4 = config_.udp_enabled && host_.address(false).is_valid();
  bool v6 = config_.udp_enabled && host_.address(true).is_valid();
  engine_->set_local_addresses(clock(), list, v4 ? udp_port_ : std::uint16_t{0}, v6 ? udp_port_ : std::uint16_t{0});
}

void NodeHost::end_process(const Error& why) {
  if (app_) app_->lose_everything(why);
  app_.reset();
  engine_.reset();
  streams_.clear();
  graveyard_.clear();
  inbox_.clear();
  unreachable_.clear();
  host_.unbind(udp_port_);
  alarm_.cancel();
  suspended_ = false;
}

void NodeHost::stop() {
  if (!engine_) return;
  world_.note(config_.name, "stops");
  saved_map_ = engine_->saved_map();
  engine_->settle(clock());
  persist();
  stored_stamp_ = engine_->persistent().stamps.used;
  pump_streams();
  for (auto& [id, s] : streams_) s->stream->close();
  end_process({ErrorCode::kCancelled, "the node was stopped"});
}

void NodeHost::kill() {
  if (!engine_) return;
  world_.note(config_.name, "is killed");
  saved_map_ = engine_->saved_map();   // a moment ago
  for (auto& [id, s] : streams_) s->stream->abort();
  end_process({ErrorCode::kCancelled, "the node was killed"});
}

void NodeHost::power_off() {
  if (!engine_) return;
  world_.note(config_.name, "loses power");
  host_.up = false;
  for (auto& [id, s] : streams_) s->stream->vanish();
  end_process({ErrorCode::kCancelled, "the machine lost power"});
}

void NodeHost::wipe() {
  PORTHOLE_ASSERT(!engine_);
  machine_key_ = crypto::MachinePrivate::generate(rng_);
  node_key_ = {};
  disco_key_ = {};
  auth_key_ = {};
  control_key_.reset();
  registered_ = false;
  saved_map_.clear();
  stored_stamp_ = {};
  addresses_.clear();
}

void NodeHost::suspend(Duration time) {
  if (!engine_) return;
  world_.note(config_.name, "sleeps for " + std::to_string(time.count() / 1'000'000) + " ms");
  suspended_ = true;
  host_.up = false;
  alarm_.cancel();
  world_.after(time, [this] { wake(); });
}

void NodeHost::wake() {
  if (!suspended_) return;
  world_.note(config_.name, "wakes");
  suspended_ = false;
  host_.up = true;
  poke();
}

void NodeHost::change_udp_port() {
  if (!engine_ || !config_.udp_enabled) return;
  host_.unbind(udp_port_);
  bind_udp(0);
  world_.note(config_.name, "UDP port is now " + std::to_string(udp_port_));
  announce_addresses();
  engine_->handle_rebind(clock());
  poke();
}

void NodeHost::move(Site& site, std::vector<IpAddress> addresses) {
  host_.move(site, std::move(addresses));
  if (!engine_) return;
  announce_addresses();
  engine_->network_changed(clock());
  poke();
}

void NodeHost::logout() {
  if (!engine_) return;
  engine_->logout(clock());
  poke();
}

void NodeHost::persist() {
  node::Persistent p = engine_->persistent();
  node_key_ = engine_->node_key().duplicate();
  disco_key_ = engine_->disco_key().duplicate();
  if (p.control_key) control_key_ = p.control_key;
  registered_ = p.registered;
  if (!p.addresses.empty()) addresses_ = p.addresses;
  stored_stamp_ = p.stamps.until;
}

// ---- state ----

std::string NodeHost::fqdn() const {
  if (!engine_ || !engine_->netmap().self()) return {};
  std::string name = engine_->netmap().self()->name;
  if (!name.empty() && name.back() == '.') name.pop_back();
  return name;
}

std::vector<IpAddress> NodeHost::addresses() const {
  if (engine_) {
    auto now = engine_->own_addresses();
    if (!now.empty()) return now;
  }
  return addresses_;
}

bool NodeHost::sees(const NodeHost& peer) const {
  return engine_ && !peer.node_key_.is_zero() && engine_->netmap().peer_by_key(peer.key()) != nullptr;
}

bool NodeHost::is_direct(const NodeHost& peer) const {
  if (!engine_) return false;
  auto status = engine_->peer_status(world_.now(), peer.key());
  return status && status->path && status->path->direct && status->path->trusted;
}

// ---- app ----

TransferRef NodeHost::transfer(NodeHost& to, std::uint64_t up_bytes, std::uint64_t down_bytes, Duration timeout) {
  auto t = ledger_.open(config_.name, to.name(), up_bytes, down_bytes);
  auto addresses = to.addresses();
  if (!engine_)
    ledger_.note_end(*t, Error{ErrorCode::kCancelled, "the node is not up"});
  else if (addresses.empty())
    ledger_.note_end(*t, Error{ErrorCode::kNotFound, "the peer has no address"});
  else
    app_->start(t, {addresses.front(), kAppPort}, timeout);
  poke();
  return t;
}

TransferRef NodeHost::transfer_to(const IpAddress& address, std::uint64_t up_bytes, std::uint64_t down_bytes, Duration timeout) {
  auto t = ledger_.open(config_.name, address.to_string(), up_bytes, down_bytes);
  app_->start(t, {address, kAppPort}, timeout);
  poke();
  return t;
}

void NodeHost::cancel(const TransferRef& transfer) {
  if (!app_) return;
  app_->cancel(transfer);
  poke();
}

// ---- moving things ----

void NodeHost::send_udp(const Endpoint& destination, Bytes data, std::size_t segment_size) {
  if (data.empty() || segment_size == 0 || data.size() > 65507 || (data.size() + segment_size - 1) / segment_size > 64)
    return world_.fail(config_.name + " sends a run of " + std::to_string(data.size()) + " bytes in segments of " +
                       std::to_string(segment_size));
  while (!data.empty()) {
    std::size_t n = std::min(segment_size, data.size());
    if (!host_.send(udp_port_, destination, data.first(n))) {
      unreachable_.push_back(destination);
      poke();
      return;
    }
    data = data.subspan(n);
  }
}

void NodeHost::send_relay(int, const NodePublic&, Bytes) { world_.fail("the engine sends relay packets itself"); }

void NodeHost::take_inbox() {
  std::vector<Received> received;
  received.swap(inbox_);
  std::vector<RecvDatagram> batch;
  for (std::size_t at = 0; at < received.size(); at += kBatchMax) {
    batch.clear();
    for (std::size_t i = at; i < std::min(received.size(), at + kBatchMax); ++i) batch.push_back({received[i].source, received[i].data});
    engine_->handle_datagrams(clock(), batch);
  }
}

void NodeHost::turn() {
  graveyard_.clear();
  if (!engine_ || suspended_) return;
  take_inbox();
  std::vector<Endpoint> unreachable;
  unreachable.swap(unreachable_);
  for (const Endpoint& e : unreachable) engine_->handle_send_error(clock(), e, paths::SendErrorKind::kHostUnreachable);
  if (engine_->next_timeout().earliest <= world_.now()) engine_->handle_timeout(clock());
  bool again = false;
  for (int round = 0; round < kRoundsPerTurn; ++round) {
    again = false;
    engine_->settle(clock());
    while (auto e = engine_->poll_event()) {
      handle_event(*e);
      again = true;
    }
    while (auto e = engine_->stack().poll_event()) {
      app_->handle_event(*e);
      again = true;
    }
    while (auto a = engine_->poll_action()) {
      handle_action(*a);
      again = true;
    }
    pump_streams();
    again = again || engine_->wants_settle();
    if (!again) break;
  }
  alarm_.set(again || !unreachable_.empty() ? world_.now() : engine_->next_timeout().latest);
}

void NodeHost::handle_action(StreamAction& action) {
  if (auto* open = std::get_if<OpenStream>(&action)) {
    auto s = std::make_unique<EngineStream>(*this, open->id);
    s->stream = streams_net_.open(host_, *open, *s);
    if (!streams_.emplace(open->id, std::move(s)).second) world_.fail("stream id used twice");
    return;
  }
  auto it = streams_.find(std::get<CloseStream>(action).id);
  if (it == streams_.end()) return;
  it->second->stream->close();
  it->second->bury();
}

bool NodeHost::pump_streams() {
  bool moved = false;
  for (auto& [id, s] : streams_) {
    while (s->stream->room() > 0 && engine_->has_output(id)) {
      std::size_t n = engine_->produce(clock(), id, scratch_);
      if (n == 0) break;
      s->stream->send(Bytes(scratch_).first(n));
      moved = true;
    }
  }
  return moved;
}

void NodeHost::handle_event(node::Event& event) {
  if (auto* state = std::get_if<node::StateEvent>(&event)) {
    world_.note(config_.name, std::string(node::to_string(state->state)) + (state->error ? ": " + state->error->message : std::string()));
  } else if (auto* path = std::get_if<node::PathEvent>(&event)) {
    world_.note(config_.name, "path to " + path->peer + ": " +
                                  (path->direct ? path->direct->to_string()
                                                : path->relay_region ? "relay " + std::to_string(*path->relay_region) : std::string("none")));
  } else if (std::get_if<node::PersistEvent>(&event)) {
    persist();
  } else if (auto* resolve = std::get_if<node::ResolveEvent>(&event)) {
    engine_->resolved(clock(), resolve->host, streams_net_.resolve(resolve->host));
  } else if (auto* rebind = std::get_if<node::RebindEvent>(&event)) {
    world_.note(config_.name, "rebinds: " + rebind->reason);
    change_udp_port();
  } else if (auto* notice = std::get_if<node::NoticeEvent>(&event)) {
    world_.note(config_.name, "notice: " + notice->error.message);
    notices_.push_back(notice->error);
  }
}

}  // namespace porthole::sim
