// Tests only: the client against a control server made of ts2021's server side, in virtual time.
#pragma once

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

namespace porthole::control::world {

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

}  // namespace porthole::control::world
