#include "sim/server_host.h"

#include <algorithm>

#include "relay/http_front.h"
#include "ts2021/json.h"
#include "ts2021/spec_constants.h"
#include "wire/http.h"

namespace porthole::sim {
namespace {
// How long an announced restart takes.
constexpr Duration kRestartIn = 500ms;
constexpr Duration kRestartTryFor = 10s;
}  // namespace

class ServerHost::Connection final : public StreamUser {
 public:
  Connection(ServerHost& server, StreamRef s) : stream(std::move(s)), server_(server) {}

  void stream_bytes(MutBytes bytes) override {
    Clock clock = server_.clock();
    if (part == Part::kFront) {
      auto taken = head.consume(bytes);
      if (!taken) return server_.drop(*this, false);
      bytes = bytes.subspan(*taken);
      if (!head.done()) return;
      server_.handle_request(*this);
    }
    if (bytes.empty()) return;
    if (part == Part::kCoordinator) server_.coordinator_->consume(clock, session, bytes);
    if (part == Part::kRelay) server_.relay_->consume(clock.now, relayed, bytes);
    server_.poke();
  }
  void stream_writable() override { server_.pump(*this); }
  void stream_closed(const std::optional<Error>&) override {
    if (part == Part::kCoordinator) server_.coordinator_->close(server_.clock(), session);
    if (part == Part::kRelay) server_.relay_->on_close(server_.clock().now, relayed);
    server_.drop(*this, false);
  }

  StreamRef stream;
  wire::HttpHeadParser head{wire::HttpKind::kRequest};
  Part part = Part::kFront;
  coordinator::SessionId session = 0;
  relay::ConnId relayed = 0;

 private:
  ServerHost& server_;
};

ServerHost::ServerHost(Network& network, Streams& streams, Host& host, Config config)
    : network_(network), streams_(streams), world_(network.world()), host_(host), config_(std::move(config)),
      rng_(world_.rng("server " + config_.name)), log_(world_, config_.name), noise_key_(crypto::MachinePrivate::generate(rng_)),
      relay_key_(crypto::NodePrivate::generate(rng_)), server_secret_(32), authority_(config_.coordinator ? this : nullptr),
      scratch_(kStreamBlock), alarm_(world_, [this] { turn(); }) {
  rng_.fill(server_secret_);
  streams_.add_name(config_.name, host_.addresses());
  streams_.listen(host_, kHttpsPort, [this](const StreamRef& stream) -> StreamUser* {
    auto c = std::make_unique<Connection>(*this, stream);
    Connection* raw = c.get();
    connections_.emplace(raw, std::move(c));
    return raw;
  });
  if (config_.coordinator) dependants_.push_back(this);
  if (config_.region != 0) {
    host_.bind(wire::stun::kDefaultPort, [this](const Endpoint& source, const Endpoint& destination, MutBytes data) {
      if (!relay_) return;
      Bytes answer = stun_.answer(source, data);
      if (!answer.empty()) host_.send_from(destination, source, answer);
    });
  }
}

ServerHost::~ServerHost() {
  for (auto& [c, owner] : connections_) c->stream->vanish();
}

void ServerHost::set_authority(ServerHost& coordinator) {
  authority_ = &coordinator;
  if (&coordinator != this) coordinator.dependants_.push_back(this);
}

ts2021::RelayRegion ServerHost::region() const {
  ts2021::RelayRegion r;
  r.region_id = config_.region;
  r.region_code = "r" + std::to_string(config_.region);
  r.region_name = config_.name;
  ts2021::RelayNode n;
  n.name = std::to_string(config_.region) + "a";
  n.region_id = config_.region;
  n.host_name = config_.name;
  IpAddress v4 = host_.address(false), v6 = host_.address(true);
  n.ipv4 = v4.is_valid() ? v4.to_string() : "none";
  n.ipv6 = v6.is_valid() ? v6.to_string() : "none";
  r.nodes.push_back(n);
  return r;
}

// ---- parts ----

void ServerHost::start_coordinator(ts2021::RelayMap relays) {
  coordinator::DirectoryConfig config;
  config.base_domain = "porthole.internal";
  config.public_url = url();
  config.server_secret = crypto::SecretBytes<32>(server_secret_);
  auto directory = coordinator::Directory::open(std::move(config), store_, rng_, log_);
  PORTHOLE_ASSERT(directory.ok());
  directory_ = std::move(*directory);
  coordinator_ = std::make_unique<coordinator::Coordinator>(noise_key_.duplicate(), std::move(relays), *directory_, rng_, log_);
  coordinator_->start(clock());
  world_.note(config_.name, "coordinator started");
  recheck();
  poke();
}

void ServerHost::stop_coordinator() {
  if (!coordinator_) return;
  drop_all(Part::kCoordinator);
  world_.note(config_.name, "coordinator stopped");
  coordinator_.reset();
  directory_.reset();
}

void ServerHost::start_relay() {
  relay_ = std::make_unique<relay::RelayServer>(relay_key_, static_cast<relay::Admission&>(*this), rng_, log_);
  world_.note(config_.name, "relay started");
  poke();
}

void ServerHost::stop_relay() {
  if (!relay_) return;
  drop_all(Part::kRelay);
  world_.note(config_.name, "relay stopped");
  relay_.reset();
}

void ServerHost::announce_relay_restart() {
  if (!relay_) return;
  relay_->announce_restart(world_.now(), kRestartIn, kRestartTryFor);
  poke();
  world_.after(100ms, [this] { stop_relay(); });
}

void ServerHost::drop_all(Part part) {
  std::vector<Connection*> theirs;
  for (auto& [c, owner] : connections_)
    if (c->part == part) theirs.push_back(c);
  // The map is ordered by address, which no run may depend on.
  std::sort(theirs.begin(), theirs.end(), [](const Connection* a, const Connection* b) {
    return std::pair(a->session, a->relayed) < std::pair(b->session, b->relayed);
  });
  for (Connection* c : theirs) drop(*c, true);
}

bool ServerHost::admit(const NodePublic& key, const Endpoint&) {
  // A coordinator that does not answer locks nobody out; it is asked again when it is back.
  if (!authority_ || !authority_->coordinator_) return true;
  return authority_->coordinator_->admits(world_.wall(), key);
}

void ServerHost::recheck() {
  for (ServerHost* server : dependants_) {
    if (!server->relay_) continue;
    server->relay_->recheck(world_.now());
    server->poke();
  }
}

// ---- connections ----

void ServerHost::handle_request(Connection& c) {
  auto answer = [&](int status, std::string_view reason, std::string_view type, std::string_view body) {
    std::string length = std::to_string(body.size());
    const wire::HttpHeader headers[] = {{"Content-Type", type}, {"Content-Length", length}, {"Connection", "close"}};
    ByteVector out;
    if (auto s = wire::encode_http_response_head(out, status, reason, headers); !s) PORTHOLE_ASSERT(false);
    append(out, as_bytes(body));
    c.stream->send(out);
    drop(c, false);
  };
  std::string_view path = c.head.target().substr(0, c.head.target().find('?'));
  if (coordinator_ && path == "/key") {
    ts2021::KeyAnswer key;
    key.public_key = coordinator_->noise_public();
    return answer(200, "OK", "application/json", ts2021::encode_key_answer(key));
  }
  if (coordinator_ && path == ts2021::kUpgradePath && c.head.method() == "POST") {
    auto text = c.head.header("X-Tailscale-Handshake");
    auto initiation = text ? from_base64(*text) : std::nullopt;
    if (!initiation) return answer(400, "Bad Request", "text/plain", "no handshake");
    const wire::HttpHeader headers[] = {{"Upgrade", ts2021::kUpgradeProtocol}, {"Connection", "upgrade"}};
    ByteVector out;
    if (auto s = wire::encode_http_response_head(out, 101, "Switching Protocols", headers); !s) PORTHOLE_ASSERT(false);
    c.stream->send(out);
    c.part = Part::kCoordinator;
    c.session = coordinator_->on_upgrade(clock(), c.stream->remote(), *initiation);
    sessions_[c.session] = &c;
    return poke();
  }
  if (relay_) {
    if (auto reply = relay::answer_relay_request(c.head, relay_->public_key())) {
      if (!reply->bytes.empty()) c.stream->send(reply->bytes);
      if (!reply->upgrade) return drop(c, false);
      c.part = Part::kRelay;
      c.relayed = relay_->on_connect(world_.now(), c.stream->remote());
      if (c.relayed == 0) return drop(c, true);
      relayed_[c.relayed] = &c;
      return poke();
    }
  }
  answer(502, "Bad Gateway", "text/plain", "nobody is there");
}

void ServerHost::drop(Connection& c, bool reset) {
  auto it = connections_.find(&c);
  if (it == connections_.end()) return;
  if (reset)
    c.stream->abort();
  else
    c.stream->close();
  if (c.session != 0) sessions_.erase(c.session);
  if (c.relayed != 0) relayed_.erase(c.relayed);
  c.part = Part::kFront;
  graveyard_.push_back(std::move(it->second));
  connections_.erase(it);
  poke();
}

void ServerHost::pump(Connection& c) {
  while (c.part != Part::kFront && c.stream->room() > 0) {
    std::size_t n = 0;
    if (c.part == Part::kCoordinator && coordinator_->has_output(c.session))
      n = coordinator_->produce(clock(), c.session, scratch_);
    else if (c.part == Part::kRelay && relay_->has_output(c.relayed))
      n = relay_->produce(world_.now(), c.relayed, scratch_);
    if (n == 0) break;
    c.stream->send(Bytes(scratch_).first(n));
  }
  if (c.part == Part::kCoordinator && coordinator_->is_over(c.session) && !coordinator_->has_output(c.session)) {
    coordinator_->close(clock(), c.session);
    drop(c, false);
  }
}

void ServerHost::turn() {
  graveyard_.clear();
  Instant now = world_.now();
  Instant next = Instant::max();
  if (coordinator_) {
    if (coordinator_->next_timeout().earliest <= now) coordinator_->handle_timeout(clock());
    while (auto id = coordinator_->next_ready())
      if (auto it = sessions_.find(*id); it != sessions_.end()) pump(*it->second);
    bool retired = false;
    while (coordinator_->poll_event()) retired = true;
    if (retired) recheck();
    next = std::min(next, coordinator_->next_timeout().latest);
  }
  if (relay_) {
    if (relay_->next_timeout().earliest <= now) relay_->handle_timeout(now);
    while (auto id = relay_->poll_ready())
      if (auto it = relayed_.find(*id); it != relayed_.end()) pump(*it->second);
    while (auto closed = relay_->poll_close())
      if (auto it = relayed_.find(closed->id); it != relayed_.end()) {
        world_.note(config_.name, "relay closes a connection: " + closed->why.message);
        drop(*it->second, false);
      }
    next = std::min(next, relay_->next_timeout().latest);
  }
  alarm_.set(next);
}

}  // namespace porthole::sim
