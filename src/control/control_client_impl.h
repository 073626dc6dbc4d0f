// The parts of ControlClient and what they share:
//   control_client.cpp          the connection, its streams and timers; the public face
//   control_registration.cpp    registering, logging out
//   control_map.cpp             the map stream, lite updates
#pragma once

#include <algorithm>
#include <deque>
#include <set>

#include "control/control_client.h"
#include "control/control_session.h"
#include "control/http_fetch.h"
#include "control/limits.h"
#include "ts2021/h2.h"
#include "ts2021/map_framing.h"

namespace porthole::control {

using ts2021::H2Closed;
using ts2021::H2Data;
using ts2021::H2GoAway;
using ts2021::H2Pong;
using ts2021::H2Response;
using ts2021::H2StreamId;

// One request whose answer is small.
struct Call {
  H2StreamId stream = 0;
  int status = 0;
  std::string retry_after;
  ByteVector body;

  void take(const H2Response& response) {
    status = response.status;
    retry_after = ts2021::find_header(response.headers, "retry-after");
  }
  // Keeps up to `size_max` bytes; more is an answer that nobody here can mean.
  void take(const H2Data& data, std::size_t size_max) {
    const std::size_t room = size_max - std::min(size_max, body.size());
    append(body, Bytes(data.bytes).first(std::min(room, data.bytes.size())));
  }
};

enum class RegisterKind { kLogin, kFollowup, kLogout };
struct RegisterCall : Call {
  RegisterKind kind = RegisterKind::kLogin;
  std::string followup;
};

struct MapCall : Call {
  explicit MapCall(bool zstd) : reader(zstd) {}
  ts2021::MapFrameReader reader;
  Instant started;
  bool got_map = false;
};

// How long a Retry-After asks to wait: seconds or an HTTP date; absent, past or beyond an hour: 5 to 10 s (section 5.2 step 1).
Duration retry_after(std::string_view value, WallTime now, Rng& rng);

struct ControlClient::Impl {
  // Every moment at which this machine wants to be woken.
  enum Timer {
    kConnect,        // handshake must be done
    kKey,            // /key must be answered
    kReconnect,      // open the next connection
    kRegister,       // register must be answered
    kRegisterRetry,
    kMapWatchdog,    // a map message must have come
    kMapRetry,
    kMapResume,      // end of a pause that the server asked for
    kMapRefresh,     // ask for the whole map again
    kLite,           // the next lite update may go
    kLiteAnswer,
    kPing,           // send one
    kPong,           // it must be answered
    kPingFetch,      // a plain HTTP ping must be answered
    kLogout,
    kExpiry,         // some key expires
    kTimerCount,
  };

  Impl(ControlConfig c, crypto::MachinePrivate machine_key, crypto::NodePrivate stored_node_key, Rng& r, Log& l)
      : config(std::move(c)), machine(std::move(machine_key)), node_key(std::move(stored_node_key)), rng(r), log(l) {
    PORTHOLE_ASSERT(!machine.is_zero());
    timers.fill(Instant::max());
    next_stream_id = config.first_stream_id;
    control_key = config.cached_control_key;
    registered_key = node_key.public_key();
    expect_registered = config.expect_registered && !node_key.is_zero();
  }

  // ---- configuration and identity ----
  ControlConfig config;
  ControlUrl url;
  crypto::MachinePrivate machine;
  crypto::NodePrivate node_key;
  NodePublic registered_key;        // the last key the server may know us by; zero: none
  bool fresh_key = false;           // node_key was made here and is not registered yet
  bool expect_registered = false;   // ask for the map together with the registration
  bool registered = false;          // accepted in this process: reconnecting needs no registration
  Rng& rng;
  Log& log;

  // ---- what we tell the server ----
  DiscoPublic disco_key;
  std::optional<std::vector<AnnouncedEndpoint>> endpoints;
  std::optional<ts2021::NetInfo> net_info;

  // ---- connection ----
  StreamId next_stream_id = 0;
  std::optional<MachinePublic> control_key;
  bool key_verified = false;        // /key has confirmed control_key in this process
  std::optional<HttpFetch> key_fetch;
  std::optional<HttpFetch> ping_fetch;
  std::unique_ptr<ControlSession> session;
  std::optional<RegisterCall> register_call;
  std::optional<MapCall> map_call;
  std::optional<Call> lite_call;
  std::set<H2StreamId> c2n_calls;
  bool session_was_ready = false;
  std::optional<Instant> steady_from;  // a connection that brought the map and is lost later than this returns at once

  std::string followup_url;         // the login a person is asked to make; empty: none
  bool wants_logout = false;
  bool lite_dirty = false;
  Instant lite_not_before;
  Instant refresh_not_before;
  Instant confirmed;                  // when the server last showed that it knows this node
  int lite_quick_left = 0;
  int not_found = 0;
  bool node_gone = false;           // the map said so and we registered again because of it
  std::string last_ping_url;
  std::string last_browser_url;
  bool told_about_lock = false;
  bool told_about_skew = false;

  Backoff connect_backoff{kBackoffMax};
  Backoff auth_backoff{kBackoffMax};
  Backoff map_backoff{kBackoffMax};
  Backoff lite_backoff{kBackoffMax};

  // ---- output ----
  ControlState state = ControlState::kIdle;
  Netmap netmap;
  std::deque<ControlEvent> events;
  std::deque<StreamAction> actions;
  std::array<Instant, kTimerCount> timers;
  std::deque<std::pair<std::string, Instant>> notices;

  void arm(Timer t, Instant at) { timers[t] = at; }
  void disarm(Timer t) { timers[t] = Instant::max(); }
  bool due(Timer t, Instant now);
  void set_state(ControlState next, std::optional<Error> error = std::nullopt);
  void notice(Instant now, Error error);
  Error from_server(const Error& e) const { return e.with_context("control server " + url.authority); }

  // ---- connecting
  void start(Clock clock);
  void make_node_key();
  void connect(Clock clock);
  bool begin_session(Clock clock);
  void close_stream(StreamId id) { actions.push_back(CloseStream{id}); }
  void end_key_fetch();
  void end_ping_fetch();
  void end_session();
  void end_map_call();
  void end_everything();
  void drop_session(Clock clock, const Error& why);
  void fail(Error why);
  void handle_key(Clock clock, Result<MachinePublic> key);
  void handle_session_ready(Clock clock);

  // ---- registering
  ts2021::Hostinfo full_hostinfo() const;
  void send_register(Clock clock, RegisterKind kind);
  void retry_register(Clock clock, Duration wait) { arm(kRegisterRetry, clock.now + wait); }
  void handle_register_done(Clock clock, std::uint32_t error_code);
  void handle_register_answer(Clock clock, const RegisterCall& call, const ts2021::RegisterResponse& answer);
  void refuse_login(Error why);
  void ask_for_login(Clock clock, const RegisterCall& call, const std::string& auth_url);
  void rotate_key(Clock clock);

  // ---- logging out
  void logout(Clock clock);
  void handle_logout_done(Clock clock, const RegisterCall& call, std::uint32_t error_code);
  void finish_logout();
  void forget_netmap();

  // ---- map stream
  ts2021::MapRequest map_request() const;
  ts2021::Headers map_headers() const { return {{"ts-lb", node_key.public_key().to_string()}}; }
  void start_map(Clock clock);
  void stop_map();
  void retry_map(Clock clock, Duration wait) { arm(kMapRetry, clock.now + wait); }
  void refresh_map(Clock clock);
  void handle_map_data(Clock clock, const H2Data& data);
  void read_map_messages(Clock clock);
  void abandon_map(Clock clock, const Error& why);
  void check_membership(Clock clock, Duration spacing);
  void handle_map_message(Clock clock, ts2021::MapResponse&& message);
  void publish(Clock clock, NetmapChange change);
  void judge_self(Clock clock);
  void arm_expiry(Clock clock);
  static bool unknown_node(const Call& call, const std::string& line);
  void handle_map_done(Clock clock, std::uint32_t error_code);
  void handle_node_unknown(Clock clock, const std::string& line);

  // ---- lite updates
  void changed(Clock clock);
  void schedule_lite(Clock clock);
  void send_lite(Clock clock);
  void handle_lite_done(Clock clock, std::uint32_t error_code);

  // ---- what the server asks of us
  void handle_ping_request(Clock clock, const ts2021::PingRequest& ping);
  void call_back(Clock clock, std::string_view method, const std::string& path, const ByteVector& body);

  // ---- HTTP/2 events
  void handle_h2_events(Clock clock);
  void handle_response(Clock clock, const H2Response& response);
  void handle_data(Clock clock, const H2Data& data);
  void handle_closed(Clock clock, const H2Closed& closed);

  // ---- time
  void handle_timeout(Clock clock);
  Instant next_timer() const { return *std::min_element(timers.begin(), timers.end()); }

  // ---- streams
  bool is_session(StreamId id) const { return session && session->id() == id; }
  bool is_key_fetch(StreamId id) const { return key_fetch && key_fetch->id() == id; }
  bool is_ping_fetch(StreamId id) const { return ping_fetch && ping_fetch->id() == id; }
  void consume(Clock clock, StreamId id, Bytes bytes);
  void lost(Clock clock, StreamId id, const std::optional<Error>& error);
};

}  // namespace porthole::control
