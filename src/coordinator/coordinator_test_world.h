// A coordinator with scripted clients in virtual time: the whole way through Noise and HTTP/2, no sockets.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/coordinator.h"
#include "coordinator/limits.h"
#include "coordinator/memory_store.h"
#include "ts2021/h2.h"
#include "ts2021/json.h"
#include "ts2021/map_framing.h"
#include "ts2021/noise.h"

namespace porthole::coordinator::test {

inline ts2021::RelayMap test_relays() {
  ts2021::RelayMap map;
  ts2021::RelayRegion region;
  region.region_id = 900;
  region.region_code = "test";
  region.region_name = "Test";
  ts2021::RelayNode node;
  node.name = "900a";
  node.region_id = 900;
  node.host_name = "relay.example";
  region.nodes.push_back(node);
  map.regions[900] = region;
  return map;
}

struct World {
  explicit World(std::uint64_t seed = 1) : rng(seed) {
    clock.now = Instant::from_ns(1'000'000'000);
    clock.wall = WallTime::from_unix_s(1'790'000'000);
    open();
  }
  // Also: a restart over the same store.
  void open() {
    coordinator.reset();
    directory.reset();
    DirectoryConfig config;
    config.base_domain = "tail.example";
    config.public_url = "https://remote.example";
    std::uint8_t secret[32] = {1, 2, 3};
    config.server_secret = crypto::SecretBytes<32>(secret);
    auto opened = Directory::open(std::move(config), store, rng, Log::none());
    ASSERT_TRUE(opened.ok()) << opened.error().message;
    directory = std::move(*opened);
    if (noise.is_zero()) noise = crypto::MachinePrivate::generate(rng);
    coordinator = std::make_unique<Coordinator>(noise.duplicate(), test_relays(), *directory, rng, Log::none());
    coordinator->start(clock);
  }
  std::string key(const std::string& account, KeyOptions options = {}) {
    auto k = directory->key_create(clock, account, options);
    EXPECT_TRUE(k.ok()) << (k.ok() ? "" : k.error().message);
    return k.ok() ? std::string(k->key.reveal()) : std::string();
  }
  void account(const std::string& name) { ASSERT_TRUE(directory->create_account(clock, name).ok()); }
  void step(Duration d) {
    clock.now = clock.now + d;
    clock.wall = clock.wall + d;
  }

  SeededRng rng;
  MemoryStore store;
  Clock clock;
  crypto::MachinePrivate noise;
  std::unique_ptr<Directory> directory;
  std::unique_ptr<Coordinator> coordinator;
};

// A client whose every request is the test's.
class Client {
 public:
  struct Answer {
    int status = 0;
    std::string body;
    bool closed = false;
    std::uint32_t error_code = 0;
  };

  explicit Client(World& world, std::string hostname = "host")
      : world_(world),
        machine(crypto::MachinePrivate::generate(world.rng)),
        node(crypto::NodePrivate::generate(world.rng)),
        disco(crypto::DiscoPrivate::generate(world.rng).public_key()) {
    hostinfo.hostname = std::move(hostname);
    hostinfo.os = "linux";
  }

  bool connect(std::uint16_t version = ts2021::kCapabilityVersion) {
    auto initiator = ts2021::NoiseInitiator::start(version, world_.noise.public_key(), machine, world_.rng);
    if (!initiator) return false;
    session = world_.coordinator->on_upgrade(world_.clock, {IpAddress::v4(192, 0, 2, 1), 1000}, initiator->initiation());
    std::uint8_t response[51];
    if (world_.coordinator->produce(world_.clock, session, response) != sizeof response) return false;
    auto finished = initiator->finish(response);
    if (!finished) return false;
    records.emplace(std::move(finished->records));
    h2.emplace("remote.example");
    answers.clear();
    early_ = {};
    return true;
  }

  ts2021::H2StreamId post(std::string_view path, Bytes body, std::string_view method = "POST") {
    auto stream = h2->submit(method, path, {}, body);
    EXPECT_TRUE(stream.ok());
    return stream.ok() ? *stream : 0;
  }

  ts2021::RegisterRequest register_request(const std::string& auth_key) const {
    ts2021::RegisterRequest r;
    r.version = ts2021::kCapabilityVersion;
    r.node_key = node.public_key();
    r.auth_key = crypto::SecretText(auth_key);
    r.hostinfo = hostinfo;
    return r;
  }
  ts2021::H2StreamId post_register(const ts2021::RegisterRequest& r) {
    return post(ts2021::kRegisterPath, as_bytes(ts2021::encode_register_request(r).reveal()));
  }
  // Registers and gives the answer; an HTTP failure comes back as its status in `error`.
  ts2021::RegisterResponse join(const std::string& auth_key) { return enrol(register_request(auth_key)); }
  ts2021::RegisterResponse enrol(const ts2021::RegisterRequest& r) {
    auto stream = post_register(r);
    pump();
    const Answer& a = answers[stream];
    ts2021::RegisterResponse out;
    if (a.status != 200) {
      out.error = "HTTP " + std::to_string(a.status) + " " + a.body;
      return out;
    }
    auto parsed = ts2021::parse_register_response(as_bytes(a.body));
    EXPECT_TRUE(parsed.ok()) << a.body;
    return parsed.ok() ? *parsed : out;
  }

  ts2021::MapRequest map_request() const {
    ts2021::MapRequest r;
    r.version = ts2021::kCapabilityVersion;
    r.keep_alive = true;
    r.node_key = node.public_key();
    r.disco_key = disco;
    r.hostinfo = hostinfo;
    if (zstd) r.compress = "zstd";
    return r;
  }
  void poll() {
    auto r = map_request();
    r.stream = true;
    watch(post(ts2021::kMapPath, as_bytes(ts2021::encode_map_request(r))), zstd);
    pump();
  }
  // The answer to this request is a map stream.
  void watch(ts2021::H2StreamId stream, bool compressed) {
    maps.clear();
    keep_alives = 0;
    reader_.emplace(compressed);
    poll_stream = stream;
  }
  Answer lite(ts2021::MapRequest r) {
    r.omit_peers = true;
    auto stream = post(ts2021::kMapPath, as_bytes(ts2021::encode_map_request(r)));
    pump();
    return answers[stream];
  }
  void report_home(int region) {
    hostinfo.net_info.emplace();
    hostinfo.net_info->preferred_derp = region;
    EXPECT_EQ(lite(map_request()).status, 200);
  }
  bool polling() { return answers.contains(poll_stream) && answers[poll_stream].status == 200 && !answers[poll_stream].closed; }

  // Moves bytes both ways until nothing moves.
  void pump() {
    send();
    settle(world_);
    receive();
    send();
    receive();
  }
  void send() {
    std::uint8_t buffer[16 * 1024];
    while (std::size_t n = h2->produce(buffer)) {
      ByteVector sealed;
      ASSERT_TRUE(records->seal(Bytes(buffer).first(n), sealed).ok());
      world_.coordinator->consume(world_.clock, session, sealed);
    }
  }
  void receive() {
    std::uint8_t buffer[3000];  // cuts records anywhere
    ByteVector plain;
    while (std::size_t n = world_.coordinator->produce(world_.clock, session, buffer)) {
      ASSERT_TRUE(records->open(Bytes(buffer).first(n), plain).ok());
    }
    ByteVector rest;
    ASSERT_TRUE(early_.consume(plain, rest).ok());
    ASSERT_TRUE(h2->consume(rest).ok() || world_.coordinator->is_over(session));
    while (auto event = h2->poll_event()) {
      if (auto* r = std::get_if<ts2021::H2Response>(&*event)) {
        answers[r->stream].status = r->status;
      } else if (auto* d = std::get_if<ts2021::H2Data>(&*event)) {
        if (d->stream == poll_stream && answers[d->stream].status == 200) take_map(d->bytes);
        else answers[d->stream].body += as_text(d->bytes);
      } else if (auto* c = std::get_if<ts2021::H2Closed>(&*event)) {
        answers[c->stream].closed = true;
        answers[c->stream].error_code = c->error_code;
      }
    }
  }
  // What the coordinator wants to do now.
  static void settle(World& world) {
    for (int i = 0; i < 10 && world.coordinator->next_timeout().earliest <= world.clock.now; ++i)
      world.coordinator->handle_timeout(world.clock);
  }

  // Names of the peers, as the messages so far make them.
  std::map<NodeId, ts2021::Node> peers() const {
    std::map<NodeId, ts2021::Node> out;
    for (const auto& m : maps) {
      if (!m.peers.empty()) {
        out.clear();
        for (const auto& p : m.peers) out[p.id] = p;
        continue;
      }
      for (NodeId id : m.peers_removed) out.erase(id);
      for (const auto& p : m.peers_changed) out[p.id] = p;
      for (const auto& c : m.peers_changed_patch) {
        auto it = out.find(c.node_id);
        if (it == out.end()) continue;
        if (c.endpoints) it->second.endpoints = *c.endpoints;
        if (c.derp_region) it->second.home_derp = c.derp_region;
        if (c.disco_key) it->second.disco_key = *c.disco_key;
        if (c.online) it->second.online = *c.online;
      }
    }
    return out;
  }
  std::vector<std::string> peer_names() const {
    std::vector<std::string> out;
    for (const auto& [id, p] : peers()) out.push_back(p.name);
    return out;
  }

 private:
  World& world_;
  ts2021::EarlyPayloadReader early_;
  std::optional<ts2021::MapFrameReader> reader_;

  void take_map(Bytes bytes) {
    ASSERT_TRUE(reader_->consume(bytes).ok());
    while (auto message = reader_->next()) {
      ASSERT_TRUE(message->ok());
      auto parsed = ts2021::parse_map_response(**message);
      ASSERT_TRUE(parsed.ok()) << parsed.error().message;
      if (parsed->keep_alive) ++keep_alives;
      else maps.push_back(std::move(*parsed));
    }
  }

 public:
  crypto::MachinePrivate machine;
  crypto::NodePrivate node;
  DiscoPublic disco;
  ts2021::Hostinfo hostinfo;
  bool zstd = false;
  SessionId session = 0;
  std::optional<ts2021::RecordStream> records;
  std::optional<ts2021::H2Client> h2;
  std::map<ts2021::H2StreamId, Answer> answers;
  ts2021::H2StreamId poll_stream = 0;
  std::vector<ts2021::MapResponse> maps;
  int keep_alives = 0;
};

}  // namespace porthole::coordinator::test
