// The client against a control server made of ts2021's server side, in virtual time.
#include "control/control_client.h"

#include <gtest/gtest.h>

#include <functional>
#include <set>

#include "control/c2n.h"
#include "control/control_session.h"
#include "control/http_fetch.h"
#include "control/limits.h"
#include "ts2021/h2.h"
#include "ts2021/json.h"
#include "ts2021/map_framing.h"
#include "ts2021/noise.h"
#include "ts2021/time_text.h"

namespace porthole::control {
namespace {

using std::string_literals::operator""s;

using ts2021::H2Server;
using ts2021::H2StreamId;
using ts2021::MapRequest;
using ts2021::MapResponse;
using ts2021::RegisterRequest;
using ts2021::RegisterResponse;

struct Conn {
  OpenStream how;
  bool ended = false;
  wire::HttpMessageParser head{wire::HttpKind::kRequest};
  std::optional<ts2021::NoiseSession> noise;
  std::optional<H2Server> h2;
  ByteVector out;
};

struct MapStream {
  StreamId conn = 0;
  H2StreamId stream = 0;
  bool zstd = false;
  MapRequest request;
};

class World : public ::testing::Test {
 protected:
  World() {
    clock.now = Instant::from_ns(1'000'000'000'000);
    clock.wall = *ts2021::parse_time("2026-11-24T08:00:00Z");
    server_key = crypto::MachinePrivate::generate(rng);
    on_register = [](const RegisterRequest&) { return accepted(); };
  }

  static RegisterResponse accepted() {
    RegisterResponse r;
    r.machine_authorized = true;
    r.user.id = r.login.id = 1;
    r.login.login_name = "alice";
    return r;
  }

  ControlConfig config() {
    ControlConfig c;
    c.url = "https://control.example";
    c.auth_key = crypto::SecretText("hskey-auth-abc--TLxyz");
    c.hostinfo.hostname = "alpha";
    c.hostinfo.os = "linux";
    return c;
  }
  void start(ControlConfig c, crypto::NodePrivate key = {}) {
    client = std::make_unique<ControlClient>(std::move(c), crypto::MachinePrivate::generate(rng), std::move(key), rng, Log::none());
    client->set_disco_key(clock, DiscoPublic::from_bytes(ByteVector(32, 7)));
    client->start(clock);
    run();
  }

  // ---- the world's wheels ----

  // Until nobody has anything to say, without time passing.
  void run() {
    for (int i = 0; i < 100000; ++i) {
      bool moved = false;
      while (auto e = client->poll_event()) {
        if (auto* s = std::get_if<StateChanged>(&*e)) states.push_back(s->state);
        events.push_back(std::move(*e));
        moved = true;
      }
      while (auto a = client->poll_action()) {
        moved = true;
        if (auto* open = std::get_if<OpenStream>(&*a)) dial(*open);
        else conns.erase(std::get<CloseStream>(*a).id);
      }
      std::vector<StreamId> ids;
      for (auto& [id, conn] : conns) ids.push_back(id);
      for (StreamId id : ids) moved = pump(id) || moved;
      if (!moved) return;
    }
    FAIL() << "the world never comes to rest";
  }
  void dial(const OpenStream& open) {
    ++dials;
    if (auto error = refuse_dial(open)) return client->stream_failed(clock, open.id, *error);
    Conn& conn = conns[open.id];
    conn.how = open;
    client->stream_opened(clock, open.id, {});
  }
  bool pump(StreamId id) {
    if (!conns.contains(id)) return false;
    bool moved = false;
    ByteVector buffer(slice);
    if (client->has_output(id) && !blackhole) {
      const std::size_t n = client->produce(clock, id, buffer);
      if (n != 0) {
        moved = true;
        serve(conns[id], id, Bytes(buffer).first(n));
      }
    }
    Conn& conn = conns[id];
    if (conn.h2 && !blackhole) {
      ByteVector plain(4077);
      const std::size_t n = conn.h2->produce(plain);
      if (n != 0) {
        EXPECT_TRUE(conn.noise->records.seal(Bytes(plain).first(n), conn.out).ok());
      }
    }
    if (!conn.out.empty() && !blackhole) {
      const std::size_t n = std::min(slice, conn.out.size());
      ByteVector piece(conn.out.begin(), conn.out.begin() + static_cast<std::ptrdiff_t>(n));
      conn.out.erase(conn.out.begin(), conn.out.begin() + static_cast<std::ptrdiff_t>(n));
      EXPECT_TRUE(client->consume(clock, id, piece).ok());
      return true;
    }
    if (conn.ended) {
      conns.erase(id);
      client->stream_closed(clock, id, std::nullopt);
      return true;
    }
    return moved;
  }
  // Lets time pass; the client is woken when it asked to be.
  void advance(Duration d) {
    const Instant end = clock.now + d;
    for (int i = 0; i < 100000; ++i) {
      const Deadline next = client->next_timeout();
      if (next.latest > end) break;
      const Instant at = std::max(next.latest, clock.now);
      clock.wall = clock.wall + (at - clock.now);
      clock.now = at;
      client->handle_timeout(clock);
      run();
    }
    clock.wall = clock.wall + (end - clock.now);
    clock.now = end;
    run();
  }

  // ---- the server ----

  void serve(Conn& conn, StreamId id, Bytes bytes) {
    if (!conn.h2) {
      auto taken = conn.head.consume(bytes);
      ASSERT_TRUE(taken.ok());
      ASSERT_EQ(*taken, bytes.size()) << "nothing may follow the upgrade before its answer";
      if (conn.head.done()) serve_http(conn, id);
      return;
    }
    ByteVector plain;
    ASSERT_TRUE(conn.noise->records.open(bytes, plain).ok());
    (void)conn.h2->consume(plain).ok();
    while (auto event = conn.h2->poll_event()) {
      if (auto* request = std::get_if<ts2021::H2Request>(&*event)) serve_request(conn, id, *request);
      else if (auto* ended = std::get_if<ts2021::H2StreamEnded>(&*event)) {
        std::erase_if(maps, [&](const MapStream& m) { return m.conn == id && m.stream == ended->stream; });
      }
    }
  }
  void serve_http(Conn& conn, StreamId id) {
    const std::string_view target = conn.head.head().target();
    if (target.starts_with("/key")) {
      ++key_fetches;
      EXPECT_EQ(target, "/key?v=131");
      conn.out = key_answer ? key_answer() : http(200, "application/json", ts2021::encode_key_answer({server_key.public_key(), {}}));
      conn.ended = true;
      return;
    }
    if (conn.head.head().method() == "HEAD") {
      pings.push_back(std::string(target));
      conn.out = http(200, "text/plain", "");
      conn.ended = true;
      return;
    }
    EXPECT_EQ(target, "/ts2021");
    if (upgrade_answer) {
      conn.out = upgrade_answer();
      conn.ended = true;
      return;
    }
    conn.out = to_vector(as_bytes("HTTP/1.1 101 Switching Protocols\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n\r\n"));
    auto initiation = from_base64(*conn.head.head().header("X-Tailscale-Handshake"));
    ASSERT_TRUE(initiation.has_value());
    auto response = ts2021::respond_noise(*initiation, server_key, rng);
    if (!response.ok()) {
      conn.ended = true;
      return;
    }
    append(conn.out, response->response);
    conn.noise.emplace(std::move(response->session));
    conn.h2.emplace();
    ++sessions;
    if (early_payload) {
      EXPECT_TRUE(conn.noise->records.seal(ts2021::encode_early_payload(ChallengePublic::from_bytes(ByteVector(32, 9))), conn.out).ok());
    }
    (void)id;
  }
  static ByteVector http(int status, std::string_view type, std::string_view body) {
    return to_vector(as_bytes("HTTP/1.1 " + std::to_string(status) + " X\r\nContent-Type: " + std::string(type) +
                              "\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + std::string(body)));
  }
  void serve_request(Conn& conn, StreamId id, const ts2021::H2Request& request) {
    if (request.path == "/machine/register") {
      auto parsed = ts2021::parse_register_request(request.body);
      ASSERT_TRUE(parsed.ok());
      registers.push_back(std::move(*parsed));
      if (register_status != 200) {
        conn.h2->respond(request.stream, register_status, register_headers, as_bytes("no\n"));
      } else if (auto answer = on_register(registers.back())) {
        conn.h2->respond(request.stream, 200, {}, as_bytes(ts2021::encode_register_response(*answer)));
      } else {
        waiting_register = {id, request.stream};
      }
    } else if (request.path == "/machine/map") {
      auto parsed = ts2021::parse_map_request(request.body);
      ASSERT_TRUE(parsed.ok());
      if (map_status != 200) {
        ++(parsed->stream ? map_refusals : lite_refusals);
        conn.h2->respond(request.stream, map_status, {}, as_bytes("node not found\n"));
        return;
      }
      if (!parsed->stream) {
        EXPECT_TRUE(parsed->omit_peers);
        lites.push_back({clock.now, *parsed});
        conn.h2->respond(request.stream, lite_status, {}, {});
        return;
      }
      conn.h2->respond_streaming(request.stream, 200, {});
      maps.push_back({id, request.stream, parsed->compress == "zstd", *parsed});
      if (send_first_map) send_map(first_map(*parsed));
    } else {
      callbacks.push_back(request.method + " " + request.path + " " + std::string(as_text(request.body)));
      conn.h2->respond(request.stream, 200, {}, {});
    }
  }
  MapResponse first_map(const MapRequest& request) {
    MapResponse m;
    m.node = self_node;
    m.node->key = request.node_key;
    m.peers = peers;
    m.domain = "tail.example";
    m.control_time = clock.wall;
    return m;
  }
  // On the newest stream.
  void send_map(const MapResponse& m) { send_raw(ts2021::encode_map_response(m)); }
  void send_raw(std::string_view json) {
    ASSERT_FALSE(maps.empty());
    const MapStream& s = maps.back();
    ASSERT_TRUE(conns.at(s.conn).h2->send_data(s.stream, ts2021::frame_map_message(json, s.zstd)));
  }
  static ts2021::Node node(ts2021::NodeId id) {
    ts2021::Node n;
    n.id = id;
    n.stable_id = std::to_string(id);
    n.name = "n" + std::to_string(id) + ".tail.example.";
    n.key = NodePublic::from_bytes(ByteVector(32, static_cast<std::uint8_t>(id)));
    n.addresses = {Prefix::host(IpAddress::v4(100, 64, 0, static_cast<std::uint8_t>(id)))};
    n.machine_authorized = true;
    return n;
  }

  // ---- what happened ----

  template <typename E>
  std::vector<E> take() {
    std::vector<E> out;
    for (auto& e : events) {
      if (auto* x = std::get_if<E>(&e)) out.push_back(std::move(*x));
    }
    std::erase_if(events, [](const ControlEvent& e) { return std::holds_alternative<E>(e); });
    return out;
  }
  std::string notices() {
    std::string out;
    for (auto& n : take<ControlNotice>()) out += n.error.message + "\n";
    return out;
  }
  // The last error that came with a state.
  std::string state_error() {
    std::string out;
    for (auto& s : take<StateChanged>()) {
      if (s.error) out = s.error->message;
    }
    return out;
  }

  SeededRng rng{42};
  Clock clock;
  crypto::MachinePrivate server_key;
  std::unique_ptr<ControlClient> client;
  std::map<StreamId, Conn> conns;
  std::vector<ControlEvent> events;
  std::vector<ControlState> states;
  std::size_t slice = 1500;
  bool blackhole = false;
  bool early_payload = true;
  bool send_first_map = true;
  int dials = 0, key_fetches = 0, sessions = 0, map_refusals = 0, lite_refusals = 0;
  int register_status = 200, map_status = 200, lite_status = 200;
  ts2021::Headers register_headers;
  std::function<std::optional<Error>(const OpenStream&)> refuse_dial = [](const OpenStream&) { return std::nullopt; };
  std::function<ByteVector()> key_answer, upgrade_answer;
  std::function<std::optional<RegisterResponse>(const RegisterRequest&)> on_register;
  std::pair<StreamId, H2StreamId> waiting_register{};
  std::vector<RegisterRequest> registers;
  std::vector<MapStream> maps;
  std::vector<std::pair<Instant, MapRequest>> lites;
  std::vector<std::string> callbacks, pings;
  ts2021::Node self_node = node(1);
  std::vector<ts2021::Node> peers{node(2), node(3)};
};
using ControlClientTest = World;

TEST_F(ControlClientTest, JoinsWithAPreAuthKeyWithoutTimePassing) {
  start(config());
  EXPECT_EQ(client->state(), ControlState::kRunning);
  EXPECT_EQ(states, (std::vector{ControlState::kConnecting, ControlState::kRunning}));
  EXPECT_EQ(dials, 2);  // key and session at once
  ASSERT_EQ(registers.size(), 1u);
  EXPECT_EQ(registers[0].auth_key.reveal(), "hskey-auth-abc");  // the lock suffix is not the server's business
  EXPECT_EQ(registers[0].version, 131);
  EXPECT_EQ(registers[0].hostinfo->hostname, "alpha");
  EXPECT_TRUE(registers[0].old_node_key.is_zero());
  EXPECT_FALSE(registers[0].expiry.has_value());
  ASSERT_EQ(take<NodeKeyChanged>().size(), 1u);
  ASSERT_EQ(take<Registered>().size(), 1u);
  auto learned = take<ControlKeyLearned>();
  ASSERT_EQ(learned.size(), 1u);
  EXPECT_EQ(learned[0].key, server_key.public_key());
  auto changed = take<NetmapChanged>();
  ASSERT_EQ(changed.size(), 1u);
  EXPECT_TRUE(changed[0].change.full);
  EXPECT_EQ(changed[0].change.peers_upserted.size(), 2u);
  EXPECT_EQ(client->netmap().peers().size(), 2u);
  // Stream and lite update both carry everything.
  ASSERT_EQ(maps.size(), 1u);
  EXPECT_FALSE(maps[0].request.disco_key.is_zero());
  ASSERT_EQ(lites.size(), 1u);
  EXPECT_FALSE(lites[0].second.disco_key.is_zero());
  EXPECT_EQ(lites[0].second.hostinfo->hostname, "alpha");
}

TEST_F(ControlClientTest, AnySliceOfBytesWillDo) {
  slice = 1;
  early_payload = false;
  start(config());
  EXPECT_EQ(client->state(), ControlState::kRunning);
}

TEST_F(ControlClientTest, PlainHttpAndUncompressed) {
  ControlConfig c = config();
  c.url = "http://127.0.0.1:8080/";
  c.zstd = false;
  start(std::move(c));
  EXPECT_EQ(client->state(), ControlState::kRunning);
  EXPECT_EQ(conns.begin()->second.how.tls, TlsMode::kPlain);
  EXPECT_EQ(conns.begin()->second.how.port, 8080);
  EXPECT_EQ(maps[0].request.compress, "");
}

TEST_F(ControlClientTest, WarmStartAsksForEverythingAtOnce) {
  ControlConfig c = config();
  c.cached_control_key = server_key.public_key();
  c.expect_registered = true;
  on_register = [](const RegisterRequest&) { return std::nullopt; };  // slow server: the map does not wait for it
  auto key = crypto::NodePrivate::generate(rng);
  const NodePublic public_key = key.public_key();
  start(std::move(c), std::move(key));
  EXPECT_EQ(client->state(), ControlState::kRunning);
  EXPECT_EQ(key_fetches, 1);  // confirmed beside it
  EXPECT_TRUE(take<NodeKeyChanged>().empty());
  EXPECT_EQ(maps[0].request.node_key, public_key);
  conns.at(waiting_register.first).h2->respond(waiting_register.second, 200, {}, as_bytes(ts2021::encode_register_response(accepted())));
  run();
  EXPECT_EQ(maps.size(), 1u);
  EXPECT_EQ(take<Registered>().size(), 1u);
}

TEST_F(ControlClientTest, TheMapOfTheLastRunHoldsUntilTheServerSendsItsOwn) {
  start(config());
  const std::string saved = client->saved_map();
  const Netmap before = client->netmap();
  ASSERT_FALSE(before.peers().empty());
  auto fresh = [&](const crypto::NodePrivate& key, bool expect) {
    ControlConfig c = config();
    c.expect_registered = expect;
    client = std::make_unique<ControlClient>(std::move(c), crypto::MachinePrivate::generate(rng), key.duplicate(), rng, Log::none());
  };
  const auto key = client->node_key().duplicate();
  fresh(key, true);
  ASSERT_TRUE(client->restore_map(clock, as_bytes(saved)));
  EXPECT_EQ(client->netmap().peers(), before.peers());
  EXPECT_EQ(client->netmap().self(), before.self());
  EXPECT_EQ(client->netmap().filter_chunks(), before.filter_chunks());
  EXPECT_EQ(client->netmap().relay_map(), before.relay_map());
  EXPECT_EQ(client->netmap().users(), before.users());
  EXPECT_EQ(client->netmap().dns(), before.dns());
  EXPECT_EQ(client->netmap().domain(), before.domain());
  EXPECT_EQ(client->saved_map(), saved);
  // Not for another key, nor for a node that is not registered, nor when it is damaged.
  fresh(crypto::NodePrivate::generate(rng), true);
  EXPECT_FALSE(client->restore_map(clock, as_bytes(saved)));
  fresh(key, false);
  EXPECT_FALSE(client->restore_map(clock, as_bytes(saved)));
  fresh(key, true);
  for (std::size_t n : {std::size_t{0}, std::size_t{1}, saved.size() / 2, saved.size() - 1})
    EXPECT_FALSE(client->restore_map(clock, as_bytes(saved).first(n)));
  EXPECT_FALSE(client->netmap().has_map());
  EXPECT_FALSE(client->poll_event());
}

TEST_F(ControlClientTest, WarmStartThatCameTooEarlyTriesAgainAfterRegistering) {
  ControlConfig c = config();
  c.cached_control_key = server_key.public_key();
  c.expect_registered = true;
  map_status = 404;
  on_register = [](const RegisterRequest&) { return std::nullopt; };
  start(std::move(c), crypto::NodePrivate::generate(rng));
  EXPECT_EQ(client->state(), ControlState::kConnecting);
  map_status = 200;
  conns.at(waiting_register.first).h2->respond(waiting_register.second, 200, {}, as_bytes(ts2021::encode_register_response(accepted())));
  run();
  EXPECT_EQ(client->state(), ControlState::kRunning);
}

TEST_F(ControlClientTest, AnotherServerKeyThanTheKnownOneIsFatal) {
  ControlConfig c = config();
  c.cached_control_key = crypto::MachinePrivate::generate(rng).public_key();
  start(std::move(c));
  EXPECT_EQ(client->state(), ControlState::kFailed);
  EXPECT_NE(state_error().find("its key is not the one this node knows"), std::string::npos);
  EXPECT_TRUE(client->next_timeout().is_never());
  EXPECT_TRUE(registers.empty());
}

TEST_F(ControlClientTest, InteractiveLoginWithFollowup) {
  ControlConfig c = config();
  c.auth_key = {};
  const std::string url = "https://control.example/register/hskey-authreq-x";
  on_register = [&](const RegisterRequest& r) -> std::optional<RegisterResponse> {
    if (!r.followup.empty()) return std::nullopt;  // waits for the person
    RegisterResponse answer;
    answer.auth_url = url;
    return answer;
  };
  start(std::move(c));
  EXPECT_EQ(client->state(), ControlState::kNeedsLogin);
  auto logins = take<LoginUrl>();
  ASSERT_EQ(logins.size(), 1u);
  EXPECT_EQ(logins[0].url, url);
  ASSERT_EQ(registers.size(), 2u);
  EXPECT_EQ(registers[1].followup, url);
  EXPECT_EQ(registers[1].node_key, registers[0].node_key);
  advance(std::chrono::hours(2));  // people take their time; PING keeps the connection
  EXPECT_EQ(sessions, 1);
  EXPECT_EQ(registers.size(), 2u);
  EXPECT_TRUE(maps.empty());
  conns.at(waiting_register.first).h2->respond(waiting_register.second, 200, {}, as_bytes(ts2021::encode_register_response(accepted())));
  run();
  EXPECT_EQ(client->state(), ControlState::kRunning);
}

TEST_F(ControlClientTest, ANewLoginUrlReplacesTheOldOneAndTheSameOneBacksOff) {
  ControlConfig c = config();
  c.auth_key = {};
  int n = 0;
  on_register = [&](const RegisterRequest&) {
    RegisterResponse answer;
    answer.auth_url = "https://x/" + std::to_string(std::min(++n, 3));
    return answer;
  };
  start(std::move(c));
  EXPECT_EQ(take<LoginUrl>().size(), 3u);
  const std::size_t before = registers.size();
  advance(std::chrono::seconds(1));
  EXPECT_LT(registers.size(), before + 20);
  advance(std::chrono::minutes(10));
  EXPECT_LT(registers.size(), before + 80);
}

TEST_F(ControlClientTest, FollowupIsContinuedOnANewConnection) {
  ControlConfig c = config();
  c.auth_key = {};
  on_register = [&](const RegisterRequest& r) -> std::optional<RegisterResponse> {
    if (!r.followup.empty()) return std::nullopt;
    RegisterResponse answer;
    answer.auth_url = "https://x/1";
    return answer;
  };
  start(std::move(c));
  conns.begin()->second.ended = true;
  run();
  advance(std::chrono::seconds(1));
  EXPECT_EQ(client->state(), ControlState::kNeedsLogin);
  EXPECT_EQ(registers.back().followup, "https://x/1");
  EXPECT_EQ(take<LoginUrl>().size(), 1u);  // not shown twice
}

TEST_F(ControlClientTest, ARefusedKeyNeedsAPersonAndANewKeyHelps) {
  on_register = [](const RegisterRequest& r) -> std::optional<RegisterResponse> {
    if (r.auth_key.reveal() == "good") return accepted();
    RegisterResponse answer;
    answer.error = "authkey expired";
    return answer;
  };
  start(config());
  EXPECT_EQ(client->state(), ControlState::kNeedsLogin);
  const std::string error = state_error();
  EXPECT_NE(error.find("authkey expired"), std::string::npos) << error;
  EXPECT_EQ(error.find("hskey"), std::string::npos);
  advance(std::chrono::hours(1));
  EXPECT_EQ(registers.size(), 1u);  // no hammering
  client->login(clock, crypto::SecretText("good"));
  run();
  EXPECT_EQ(client->state(), ControlState::kRunning);
}

TEST_F(ControlClientTest, RegisterRateLimitIsHonoured) {
  register_status = 429;
  register_headers = {{"retry-after", "40"}};
  start(config());
  EXPECT_EQ(registers.size(), 1u);
  advance(std::chrono::seconds(39));
  EXPECT_EQ(registers.size(), 1u);
  register_headers = {{"retry-after", "Tue, 24 Nov 2026 08:01:40 GMT"}};  // 60 s after the second try
  advance(std::chrono::seconds(2));
  EXPECT_EQ(registers.size(), 2u);
  advance(std::chrono::seconds(57));
  EXPECT_EQ(registers.size(), 2u);
  register_headers = {{"retry-after", "never"}};  // 5 to 10 s
  advance(std::chrono::seconds(3));
  EXPECT_EQ(registers.size(), 3u);
  register_status = 200;
  advance(std::chrono::seconds(10));
  EXPECT_EQ(client->state(), ControlState::kRunning);
}

TEST_F(ControlClientTest, ServerErrorsAreRetriedWithGrowingPauses) {
  register_status = 500;
  start(config());
  advance(std::chrono::minutes(5));
  EXPECT_GT(registers.size(), 20u);
  EXPECT_LT(registers.size(), 60u);
  EXPECT_EQ(client->state(), ControlState::kConnecting);
  EXPECT_NE(notices().find("answered the register request with 500: no"), std::string::npos);
  register_status = 200;
  advance(std::chrono::minutes(1));
  EXPECT_EQ(client->state(), ControlState::kRunning);
}

TEST_F(ControlClientTest, DeltasReachTheNetmap) {
  start(config());
  take<NetmapChanged>();
  MapResponse delta;
  delta.peers_removed = {3};
  delta.peers_changed = {node(4)};
  send_map(delta);
  send_raw(R"({"KeepAlive":true})");
  send_raw(R"({"ControlTime":"2026-11-24T08:00:00Z"})");
  send_raw(R"({"PeersChangedPatch":[{"NodeID":2,"Online":true}]})");
  run();
  auto changes = take<NetmapChanged>();
  ASSERT_EQ(changes.size(), 2u);
  EXPECT_EQ(changes[0].change.peers_removed, std::vector<ts2021::NodeId>{3});
  EXPECT_EQ(changes[0].change.peers_upserted, std::vector<ts2021::NodeId>{4});
  EXPECT_EQ(changes[1].change.peers_upserted, std::vector<ts2021::NodeId>{2});
}

TEST_F(ControlClientTest, SilenceEndsInTheWatchdog) {
  start(config());
  for (int i = 0; i < 10; ++i) {
    advance(std::chrono::seconds(55));
    send_raw(R"({"KeepAlive":true})");
    run();
  }
  EXPECT_EQ(sessions, 1);
  advance(std::chrono::seconds(119));
  EXPECT_EQ(sessions, 1);
  advance(std::chrono::seconds(3));
  EXPECT_EQ(sessions, 2);
  EXPECT_EQ(client->state(), ControlState::kRunning);
  EXPECT_EQ(registers.size(), 1u);  // reconnecting needs no registration
  EXPECT_NE(notices().find("two minutes"), std::string::npos);
  // The start of each stream, and with nothing but keep-alives every other one of them is followed by a question.
  EXPECT_EQ(lites.size(), 2u + 5u);
}

TEST_F(ControlClientTest, ADeadPathIsNoticedByPing) {
  start(config());
  blackhole = true;
  advance(kPingInterval + kPingTimeout + std::chrono::seconds(1));
  EXPECT_EQ(client->state(), ControlState::kReconnecting);
  EXPECT_TRUE(client->netmap().has_map());
  advance(std::chrono::minutes(3));
  blackhole = false;
  advance(std::chrono::minutes(1));
  EXPECT_EQ(client->state(), ControlState::kRunning);
}

TEST_F(ControlClientTest, BrokenConnectionsComeBackAndUnchangedPeersStay) {
  start(config());
  take<NetmapChanged>();
  conns.begin()->second.ended = true;
  run();
  EXPECT_EQ(client->state(), ControlState::kReconnecting);
  peers = {node(2)};
  advance(std::chrono::seconds(1));
  EXPECT_EQ(client->state(), ControlState::kRunning);
  EXPECT_EQ(key_fetches, 1);
  auto changes = take<NetmapChanged>();
  ASSERT_EQ(changes.size(), 1u);
  EXPECT_TRUE(changes[0].change.peers_upserted.empty());
  EXPECT_EQ(changes[0].change.peers_removed, std::vector<ts2021::NodeId>{3});
}

TEST_F(ControlClientTest, UnreachableServerIsTriedWithBackoffForEver) {
  refuse_dial = [](const OpenStream&) { return Error{ErrorCode::kRefused, "connection refused"}; };
  start(config());
  advance(std::chrono::minutes(10));
  EXPECT_LT(dials, 200);
  EXPECT_EQ(client->state(), ControlState::kConnecting);
  EXPECT_NE(notices().find("control server control.example: connection refused"), std::string::npos);
  refuse_dial = [](const OpenStream&) { return std::nullopt; };
  advance(std::chrono::minutes(1));
  EXPECT_EQ(client->state(), ControlState::kRunning);
}

TEST_F(ControlClientTest, NetworkChangeReconnectsAtOnce) {
  start(config());
  client->network_changed(clock);
  run();
  EXPECT_EQ(sessions, 2);
  EXPECT_EQ(client->state(), ControlState::kRunning);
}

TEST_F(ControlClientTest, StreamsEndedByTheServerReturnWithoutRegistering) {
  start(config());
  for (int i = 0; i < 5; ++i) {
    conns.at(maps.back().conn).h2->end(maps.back().stream);
    run();
    advance(std::chrono::seconds(1));
    EXPECT_EQ(client->state(), ControlState::kRunning);
  }
  EXPECT_EQ(registers.size(), 1u);
  EXPECT_EQ(sessions, 1);
}

TEST_F(ControlClientTest, GoAwayMovesToANewConnection) {
  start(config());
  conns.begin()->second.h2->go_away();
  run();
  advance(std::chrono::seconds(1));
  EXPECT_EQ(sessions, 2);
  EXPECT_EQ(client->state(), ControlState::kRunning);
}

// A proxy with a short time-out ends the connection again and again.
TEST_F(ControlClientTest, ConnectionsThatAreCutReturnAtOnceUnlessTheyWereCutAtOnce) {
  auto cut_every = [&](Duration lifetime, int times) {
    int cuts = 0;
    for (int i = 0; i < times; ++i) {
      advance(lifetime);
      for (auto& [id, conn] : conns) {
        if (!conn.h2) continue;
        conn.ended = true;
        ++cuts;
      }
      run();
    }
    return cuts;
  };
  start(config());
  EXPECT_GE(cut_every(std::chrono::seconds(5), 40), 39) << "one that lived is replaced within milliseconds, however often";
  const int before = sessions;
  cut_every(std::chrono::milliseconds(500), 1200);
  EXPECT_LT(sessions - before, 100) << "ten minutes of connections that die at birth";
  EXPECT_EQ(registers.size(), 1u);
  advance(std::chrono::minutes(1));
  EXPECT_EQ(client->state(), ControlState::kRunning);
}

TEST_F(ControlClientTest, ExpiryRotatesTheNodeKey) {
  start(config());
  const NodePublic first = client->node_key().public_key();
  take<NodeKeyChanged>();
  MapResponse expired;
  expired.node = self_node;
  expired.node->key = first;
  expired.node->expired = true;
  send_map(expired);
  run();
  ASSERT_EQ(registers.size(), 2u);
  EXPECT_EQ(registers[1].old_node_key, first);
  EXPECT_NE(registers[1].node_key, first);
  EXPECT_EQ(registers[1].auth_key.reveal(), "hskey-auth-abc");
  auto changed = take<NodeKeyChanged>();
  ASSERT_EQ(changed.size(), 1u);
  EXPECT_EQ(changed[0].previous, first);
  EXPECT_EQ(changed[0].key, registers[1].node_key);
  EXPECT_EQ(client->state(), ControlState::kRunning);
  EXPECT_EQ(maps.back().request.node_key, registers[1].node_key);
  EXPECT_EQ(maps.size(), 1u);  // the old stream was cancelled
  EXPECT_NE(std::find(states.begin(), states.end(), ControlState::kExpired), states.end());
}

TEST_F(ControlClientTest, ExpiredAndItsKeyIsSpent) {
  start(config());
  on_register = [](const RegisterRequest&) {
    RegisterResponse answer;
    answer.error = "authkey already used";
    return answer;
  };
  MapResponse expired;
  expired.node = self_node;
  expired.node->key = registers[0].node_key;
  expired.node->key_expiry = WallTime::from_unix_s(1);
  send_map(expired);
  run();
  EXPECT_EQ(client->state(), ControlState::kNeedsLogin);
  const std::string why = state_error();
  EXPECT_NE(why.find("this node's login has ended there, and its key is refused: authkey already used"), std::string::npos) << why;
  EXPECT_FALSE(client->netmap().has_map());
}

TEST_F(ControlClientTest, KeyExpiryByTheClock) {
  self_node.key_expiry = clock.wall + std::chrono::hours(3);
  peers[0].key_expiry = clock.wall + std::chrono::hours(2);
  start(config());
  take<NetmapChanged>();
  auto keep_alive = [&] { send_raw(R"({"KeepAlive":true})"); };
  for (int minute = 0; minute < 2 * 60 + 1; ++minute) {
    keep_alive();
    advance(std::chrono::minutes(1));
  }
  auto changes = take<NetmapChanged>();
  ASSERT_EQ(changes.size(), 1u);
  EXPECT_EQ(changes[0].change.peers_upserted, std::vector<ts2021::NodeId>{2});
  EXPECT_TRUE(client->netmap().peer(2)->expired);
  EXPECT_EQ(registers.size(), 1u);
  for (int minute = 0; minute < 60; ++minute) {
    keep_alive();
    advance(std::chrono::minutes(1));
    self_node.key_expiry.reset();
  }
  EXPECT_EQ(registers.size(), 2u);
  EXPECT_EQ(client->state(), ControlState::kRunning);
}

TEST_F(ControlClientTest, NodeKeyExpiredAtRegistration) {
  auto key = crypto::NodePrivate::generate(rng);
  const NodePublic stored = key.public_key();
  on_register = [&](const RegisterRequest& r) -> std::optional<RegisterResponse> {
    if (r.node_key != stored) return accepted();
    RegisterResponse answer;
    answer.node_key_expired = true;
    return answer;
  };
  start(config(), std::move(key));
  EXPECT_EQ(client->state(), ControlState::kRunning);
  ASSERT_EQ(registers.size(), 2u);
  EXPECT_EQ(registers[1].old_node_key, stored);
}

TEST_F(ControlClientTest, AServerThatCallsEveryKeyExpiredIsNotHammered) {
  on_register = [](const RegisterRequest&) {
    RegisterResponse answer;
    answer.node_key_expired = true;
    return answer;
  };
  start(config());
  EXPECT_EQ(client->state(), ControlState::kNeedsLogin);
  EXPECT_EQ(registers.size(), 1u);
  // The same, told by the map.
  on_register = [](const RegisterRequest&) { return accepted(); };
  self_node.expired = true;
  client->login(clock, crypto::SecretText("k"));
  run();
  advance(std::chrono::minutes(5));
  EXPECT_LT(registers.size(), 60u);
}

TEST_F(ControlClientTest, LogoutTellsTheServer) {
  start(config());
  client->logout(clock);
  run();
  ASSERT_EQ(registers.size(), 2u);
  EXPECT_EQ(registers[1].expiry, WallTime::from_unix_s(123));
  EXPECT_TRUE(registers[1].auth_key.empty());
  EXPECT_EQ(client->state(), ControlState::kLoggedOut);
  EXPECT_EQ(take<LoggedOut>().size(), 1u);
  EXPECT_FALSE(client->netmap().has_map());
  EXPECT_EQ(take<NetmapChanged>().back().change.peers_removed.size(), 2u);
  EXPECT_TRUE(client->next_timeout().is_never());
  const NodePublic old = client->node_key().public_key();
  client->login(clock, crypto::SecretText("again"));
  run();
  EXPECT_EQ(client->state(), ControlState::kRunning);
  EXPECT_NE(client->node_key().public_key(), old);
  EXPECT_TRUE(registers.back().old_node_key.is_zero());
}

TEST_F(ControlClientTest, LogoutWithoutAServerEndsAfterTenSeconds) {
  start(config());
  blackhole = true;
  client->logout(clock);
  run();
  advance(std::chrono::seconds(9));
  EXPECT_NE(client->state(), ControlState::kLoggedOut);
  advance(std::chrono::seconds(2));
  EXPECT_EQ(client->state(), ControlState::kLoggedOut);
  EXPECT_EQ(take<LoggedOut>().size(), 1u);
}

TEST_F(ControlClientTest, DeletedNodeRegistersAgainThenReportsIt) {
  start(config());
  map_status = 404;
  conns.at(maps.back().conn).h2->end(maps.back().stream);
  run();
  advance(std::chrono::seconds(5));
  EXPECT_EQ(client->state(), ControlState::kLoggedOut);
  EXPECT_EQ(registers.size(), 2u);  // one more try
  EXPECT_EQ(map_refusals, 2 * kNotFoundMax);
  EXPECT_NE(state_error().find("removed"), std::string::npos);
  EXPECT_FALSE(client->netmap().has_map());
  advance(std::chrono::hours(1));
  EXPECT_EQ(map_refusals, 2 * kNotFoundMax);
}

// Headscale leaves the stream of a deleted node open and says nothing.
TEST_F(ControlClientTest, ANodeThatWasDeletedInSilenceFindsOut) {
  for (bool asked : {true, false}) {
    SCOPED_TRACE(asked);
    start(config());
    advance(std::chrono::seconds(20));
    map_status = 404;
    lite_refusals = 0;
    if (asked) {
      client->check_membership(clock);
      client->check_membership(clock);
    }
    for (int i = 0; i < 3; ++i) {
      if (!asked) send_raw(R"({"KeepAlive":true})");
      run();
      advance(std::chrono::seconds(30));
      if (maps.empty() || client->state() == ControlState::kLoggedOut) break;
    }
    EXPECT_GE(lite_refusals, 1);
    EXPECT_EQ(client->state(), ControlState::kLoggedOut);
    EXPECT_NE(state_error().find("removed"), std::string::npos);
    map_status = 200;
    conns.clear();
    maps.clear();
  }
}

TEST_F(ControlClientTest, DeletedNodeWithoutAKeyIsAskedToLogIn) {
  start(config());
  map_status = 404;
  on_register = [](const RegisterRequest& r) -> std::optional<RegisterResponse> {
    if (!r.followup.empty()) return std::nullopt;
    RegisterResponse answer;
    answer.auth_url = "https://x/login";
    return answer;
  };
  conns.at(maps.back().conn).h2->end(maps.back().stream);
  run();
  advance(std::chrono::seconds(5));
  EXPECT_EQ(client->state(), ControlState::kNeedsLogin);
  EXPECT_EQ(take<LoginUrl>().size(), 1u);
  EXPECT_FALSE(client->netmap().has_map());
}

TEST_F(ControlClientTest, ApprovalByAnAdmin) {
  self_node.machine_authorized = false;
  start(config());
  EXPECT_EQ(client->state(), ControlState::kNeedsApproval);
  MapResponse approved;
  approved.node = self_node;
  approved.node->key = client->node_key().public_key();
  approved.node->machine_authorized = true;
  send_map(approved);
  run();
  EXPECT_EQ(client->state(), ControlState::kRunning);
}

TEST_F(ControlClientTest, UpdatesAreCoalesced) {
  start(config());
  ASSERT_EQ(lites.size(), 1u);
  ts2021::NetInfo info;
  for (int i = 0; i < 20; ++i) {
    info.preferred_derp = i + 1;
    client->set_net_info(clock, info);
    client->set_endpoints(clock, {{*Endpoint::parse("192.0.2.1:41641"), ts2021::EndpointType::kStun}});
    run();
    advance(std::chrono::milliseconds(100));
  }
  ASSERT_GE(lites.size(), 2u);
  EXPECT_LE(lites.size(), 4u + kLiteQuickCount);
  advance(std::chrono::seconds(2));
  ASSERT_GT(lites.size(), std::size_t{kLiteQuickCount} + 1);
  EXPECT_LT(lites[kLiteQuickCount].first - lites[0].first, kLiteSpacing);   // each as soon as there is something to say
  for (std::size_t i = kLiteQuickCount + 1; i < lites.size(); ++i) EXPECT_GE(lites[i].first - lites[i - 1].first, kLiteSpacing);
  const MapRequest& last = lites.back().second;
  EXPECT_EQ(last.hostinfo->net_info->preferred_derp, 20);
  EXPECT_EQ(last.endpoints->size(), 1u);
  EXPECT_EQ(last.endpoint_types, std::vector<int>{2});
  // Latencies alone are not news, nor is the same again.
  const std::size_t count = lites.size();
  info.derp_latency["1-v4"] = 0.25;
  client->set_net_info(clock, info);
  client->set_endpoints(clock, {{*Endpoint::parse("192.0.2.1:41641"), ts2021::EndpointType::kStun}});
  advance(std::chrono::seconds(5));
  EXPECT_EQ(lites.size(), count);
  client->set_endpoints(clock, {});
  advance(Duration::zero());
  ASSERT_EQ(lites.size(), count + 1);
  EXPECT_TRUE(lites.back().second.endpoints->empty());
}

// Whatever the refusal is, unless it says that the node is unknown: the map stream goes on.
TEST_F(ControlClientTest, RefusedUpdatesAreTriedAgain) {
  for (int status : {503, 400}) {
    SCOPED_TRACE(status);
    lite_status = status;
    lites.clear();
    start(config());
    const std::size_t streams = maps.size();
    advance(std::chrono::seconds(10));
    EXPECT_GT(lites.size(), 3u);
    EXPECT_LT(lites.size(), 15u);
    EXPECT_EQ(maps.size(), streams);
    EXPECT_EQ(client->state(), ControlState::kRunning);
    lite_status = 200;
    advance(std::chrono::seconds(40));
    const std::size_t count = lites.size();
    advance(std::chrono::seconds(40));
    EXPECT_EQ(lites.size(), count);
    conns.clear();
    maps.clear();
  }
}

TEST_F(ControlClientTest, SleepSecondsPausesReading) {
  start(config());
  take<NetmapChanged>();
  send_raw(R"({"Debug":{"SleepSeconds":60,"Exit":1}})");
  send_raw(R"({"Domain":"later.example"})");
  run();
  EXPECT_EQ(client->netmap().domain(), "tail.example");
  advance(std::chrono::seconds(59));
  EXPECT_EQ(client->netmap().domain(), "tail.example");
  advance(std::chrono::seconds(2));
  EXPECT_EQ(client->netmap().domain(), "later.example");
}

TEST_F(ControlClientTest, AnswersC2nOverNoise) {
  start(config());
  MapResponse m;
  m.ping_request = ts2021::PingRequest{"https://unused/c2n/77", true, false, "c2n", std::nullopt,
                                       to_vector(as_bytes("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nping=hello"))};
  m.keep_alive = true;  // pings ride on anything
  send_map(m);
  send_map(m);  // a repetition is ignored
  m.ping_request->url = "https://unused/c2n/78";
  m.ping_request->payload = to_vector(as_bytes("GET /debug HTTP/1.1\r\nHost: x\r\n\r\n"));
  send_map(m);
  run();
  ASSERT_EQ(callbacks.size(), 2u);
  EXPECT_EQ(callbacks[0], "POST /c2n/77 HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nping=hello");
  EXPECT_TRUE(callbacks[1].starts_with("POST /c2n/78 HTTP/1.1 400 ")) << callbacks[1];
  EXPECT_NE(callbacks[1].find("unknown c2n path"), std::string::npos);
}

TEST_F(ControlClientTest, HeadPingsGoToTheControlServerOnly) {
  start(config());
  MapResponse m;
  m.ping_request = ts2021::PingRequest{"https://control.example/machine/ping-response?id=5", false, false, "", std::nullopt, {}};
  send_map(m);
  m.ping_request->url = "https://elsewhere.example/x";
  send_map(m);
  m.ping_request->url = "https://unused/noise";
  m.ping_request->url_is_noise = true;
  send_map(m);
  run();
  EXPECT_EQ(pings, std::vector<std::string>{"/machine/ping-response?id=5"});
  EXPECT_EQ(callbacks, std::vector<std::string>{"HEAD /noise "});
  EXPECT_EQ(client->state(), ControlState::kRunning);
}

TEST_F(ControlClientTest, ClockSkewIsToldOnceAndUrlsOpenOnce) {
  start(config());
  notices();
  send_raw(R"({"ControlTime":"2026-11-24T10:00:00Z","PopBrowserURL":"https://x/y"})");
  send_raw(R"({"ControlTime":"2026-11-24T10:00:01Z","PopBrowserURL":"https://x/y"})");
  run();
  EXPECT_NE(notices().find("differs from the control server's by 120 minutes"), std::string::npos);
  EXPECT_EQ(take<OpenUrl>().size(), 1u);
}

TEST_F(ControlClientTest, HealthAndTailnetLockAreReported) {
  start(config());
  send_raw(R"({"Health":["router unhealthy"],"TKAInfo":{"Head":"abc"}})");
  run();
  auto health = take<HealthChanged>();
  ASSERT_EQ(health.size(), 1u);
  EXPECT_EQ(health[0].messages, std::vector<std::string>{"router unhealthy"});
  EXPECT_NE(notices().find("tailnet lock"), std::string::npos);
}

// ---- diagnosis in words ----

TEST_F(ControlClientTest, CaptivePortal) {
  key_answer = [] { return http(200, "text/html", "<html>Welcome to Hotel WiFi</html>"); };
  start(config());
  EXPECT_NE(notices().find("captive portal"), std::string::npos);
  key_answer = nullptr;
  advance(std::chrono::minutes(1));
  EXPECT_EQ(client->state(), ControlState::kRunning);
}

TEST_F(ControlClientTest, WhatIsWrongWithTheKeyAnswer) {
  struct Case {
    ByteVector answer;
    std::string_view words;
  };
  auto raw = [](std::string_view s) { return to_vector(as_bytes(s)); };
  for (const Case& c : {Case{raw("HTTP/1.1 302 Found\r\nLocation: http://login.wifi/\r\nContent-Length: 0\r\n\r\n"), "redirects to http://login.wifi/"},
                        Case{http(404, "text/plain", "not found"), "no control server"},
                        Case{http(400, "text/plain", "unsupported client version\n"), "400: unsupported client version"},
                        Case{http(502, "text/html", "<html>Bad gateway"), "502 with a web page"},
                        Case{http(200, "application/json", "{\"publicKey\":\"mkey:" + std::string(64, '0') + "\"}"), "no Noise key"},
                        Case{http(200, "text/plain", std::string(64, 'a')), "not understood"},
                        Case{raw("\x15\x03\x01\x02\x02\x46"), "speaks TLS"},
                        Case{raw("SSH-2.0-OpenSSH\r\n"), "SSH"},
                        Case{raw(""), "without an answer"},
                        Case{raw("HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort"), ""}}) {
    key_answer = [&] { return c.answer; };
    start(config());
    const std::string said = notices();
    EXPECT_FALSE(said.empty());
    EXPECT_NE(said.find(c.words), std::string::npos) << said;
    EXPECT_EQ(client->state(), ControlState::kConnecting);
    conns.clear();
  }
}

TEST_F(ControlClientTest, WhatIsWrongWithTheUpgrade) {
  struct Case {
    ByteVector answer;
    std::string_view words;
  };
  auto raw = [](std::string_view s) { return to_vector(as_bytes(s)); };
  for (const Case& c : {Case{http(426, "text/plain", ""), "does not pass the upgrade"}, Case{http(400, "text/plain", "x"), "does not pass the upgrade"},
                        Case{http(200, "text/html", "<html>"), "does not pass the upgrade"}, Case{http(500, "text/plain", "Internal error"), "does not pass the upgrade"},
                        Case{raw("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\r\n"), "does not pass the upgrade"},
                        Case{raw("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"), "does not pass the upgrade"},
                        Case{raw("HTTP/1.1 400 Bad Request\r\nServer: nginx/1.22.1\r\nContent-Length: 0\r\n\r\n"), "nginx/1.22.1 answered the upgrade with 400: a proxy"},
                        Case{http(426, "text/plain", ""), "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection"},
                        Case{http(502, "text/html", "<html>Bad gateway"), "502: the control server behind it does not run"},
                        Case{http(504, "text/html", "<html>"), "504: the control server behind it does not run"},
                        Case{raw("HTTP/1.1 301 Moved\r\nLocation: https://other/\r\nContent-Length: 0\r\n\r\n"), "redirect to https://other/"},
                        Case{raw(""), "closed the connection instead of answering the upgrade"},
                        Case{http(404, "text/plain", ""), "hides /ts2021"}, Case{http(503, "text/plain", "busy"), "503: busy"},
                        Case{raw("HTTP/1.1 101 X\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n\r\n"), "its key has changed"},
                        Case{raw("HTTP/1.1 101 X\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n\r\n"s + "\x03\x00\x05nope!"s), "refused the handshake: nope!"},
                        Case{raw("HTTP/1.1 101 X\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n\r\nHTTP/1.1 200 OK"), "handshake answer is not one"}}) {
    upgrade_answer = [&] { return c.answer; };
    start(config());
    const std::string said = notices();
    EXPECT_NE(said.find(c.words), std::string::npos) << c.words << " in " << said;
    EXPECT_EQ(client->state(), ControlState::kConnecting);
    conns.clear();
  }
}

TEST_F(ControlClientTest, BadUrls) {
  for (std::string_view url : {"", "control.example", "ftp://x", "https://", "https://x:0", "https://x:99999", "https://x/path", "https://[::1",
                               "https://a b", "https://x:", "https://user@x", "https://x\r\nHost: y"}) {
    ControlConfig c = config();
    c.url = url;
    start(std::move(c));
    EXPECT_EQ(client->state(), ControlState::kFailed) << url;
    EXPECT_FALSE(state_error().empty());
  }
  EXPECT_EQ(ControlUrl::parse("http://[::1]:8080/")->authority, "[::1]:8080");
  EXPECT_EQ(ControlUrl::parse("https://h:443")->authority, "h");
}

TEST_F(ControlClientTest, TailnetLockRequestsAreFatal) {
  on_register = [](const RegisterRequest&) {
    RegisterResponse r = accepted();
    r.node_key_signature = "AAAA";
    return r;
  };
  start(config());
  EXPECT_EQ(client->state(), ControlState::kFailed);
}

// ---- hostile servers ----

TEST_F(ControlClientTest, BadMapMessagesNeverStopTheClient) {
  start(config());
  for (std::string_view bad : {"{", "[]", R"({"Peers":[1]})", "\xff\xfe", R"({"Node":{"ID":"x"}})"}) {
    if (maps.empty()) break;
    send_raw(bad);
    run();
    EXPECT_EQ(client->state(), ControlState::kReconnecting);
    advance(std::chrono::seconds(5));
    EXPECT_EQ(client->state(), ControlState::kRunning) << bad;
  }
  // A length that nobody can mean.
  conns.at(maps.back().conn).h2->send_data(maps.back().stream, ByteVector{0xff, 0xff, 0xff, 0x7f});
  run();
  advance(std::chrono::seconds(5));
  EXPECT_EQ(client->state(), ControlState::kRunning);
  // First message of a stream without a node.
  send_first_map = false;
  client->network_changed(clock);
  run();
  send_raw(R"({"Domain":"x"})");
  run();
  EXPECT_EQ(client->state(), ControlState::kReconnecting);
}

TEST_F(ControlClientTest, DamagedBytesAnywhere) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    SeededRng damage(seed);
    start(config());
    for (int i = 0; i < 30 && !conns.empty(); ++i) {
      ByteVector junk(1 + damage.below(200));
      damage.fill(junk);
      auto it = conns.begin();
      std::advance(it, static_cast<std::ptrdiff_t>(damage.below(conns.size())));
      if (damage.below(2) == 0 && !maps.empty() && conns.contains(maps.back().conn)) {
        send_raw(std::string_view(as_text(junk)));
      } else {
        append(it->second.out, junk);
      }
      run();
      advance(std::chrono::milliseconds(static_cast<std::int64_t>(damage.below(3000))));
    }
    advance(std::chrono::minutes(2));
    EXPECT_EQ(client->state(), ControlState::kRunning) << seed;
    conns.clear();
    maps.clear();
  }
}

TEST_F(ControlClientTest, StopIsQuiet) {
  start(config());
  client->stop();
  int closes = 0;
  while (auto a = client->poll_action()) closes += std::holds_alternative<CloseStream>(*a) ? 1 : 0;
  EXPECT_GE(closes, 1);
  EXPECT_FALSE(client->poll_event().has_value());
  EXPECT_TRUE(client->next_timeout().is_never());
}

TEST(C2n, EchoChunkedAndGarbage) {
  auto text = [](std::string_view request) { return std::string(as_text(answer_c2n(as_bytes(request)))); };
  EXPECT_EQ(text("POST /echo?x=1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
  EXPECT_TRUE(text("GET /echo").starts_with("HTTP/1.1 400 "));
  EXPECT_TRUE(text("").starts_with("HTTP/1.1 400 "));
}

}  // namespace
}  // namespace porthole::control
