#include "control/control_client.h"

#include <algorithm>
#include <charconv>
#include <deque>
#include <set>

#include "control/c2n.h"
#include "control/control_session.h"
#include "control/http_fetch.h"
#include "control/limits.h"
#include "ts2021/h2.h"
#include "ts2021/json.h"
#include "ts2021/limits.h"
#include "ts2021/map_framing.h"
#include "ts2021/time_text.h"

namespace porthole::control {

using ts2021::H2Closed;
using ts2021::H2Data;
using ts2021::H2GoAway;
using ts2021::H2Pong;
using ts2021::H2Response;
using ts2021::H2StreamId;

std::string_view to_string(ControlState state) {
  switch (state) {
    case ControlState::kIdle: return "idle";
    case ControlState::kConnecting: return "connecting";
    case ControlState::kNeedsLogin: return "needs login";
    case ControlState::kNeedsApproval: return "needs approval";
    case ControlState::kRunning: return "running";
    case ControlState::kReconnecting: return "reconnecting";
    case ControlState::kExpired: return "expired";
    case ControlState::kLoggedOut: return "logged out";
    case ControlState::kFailed: return "failed";
  }
  return "unknown";
}

namespace {

// What the Go client sends to log out: any time in the past does.
constexpr WallTime kLogoutExpiry = WallTime::from_unix_s(123);

// A pre-auth key may carry a tailnet-lock suffix that is not the server's business (section 5.4).
std::string_view without_lock_suffix(std::string_view key) { return key.substr(0, key.find("--TL")); }

// Seconds or an HTTP date; absent, past or beyond an hour: 5 to 10 s (section 5.2 step 1).
Duration retry_after(std::string_view value, WallTime now, Rng& rng) {
  Duration wait{};
  std::int64_t seconds = 0;
  auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), seconds);
  if (!value.empty() && error == std::errc() && end == value.data() + value.size()) {
    if (seconds > 0 && seconds <= 3600) wait = std::chrono::seconds(seconds);
  } else if (auto date = ts2021::parse_http_date(value)) {
    wait = *date - now;
  }
  if (wait <= Duration::zero() || wait > kRetryAfterMax) return rng.between(kRetryAfterLow, kRetryAfterHigh);
  return wait;
}

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

}  // namespace

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

  // ================================================================================================================

  void arm(Timer t, Instant at) { timers[t] = at; }
  void disarm(Timer t) { timers[t] = Instant::max(); }
  bool due(Timer t, Instant now) {
    if (timers[t] > now) return false;
    disarm(t);
    return true;
  }

  void set_state(ControlState next, std::optional<Error> error = std::nullopt) {
    if (state == next && !error) return;
    state = next;
    log.write(LogLevel::kInfo, "control",
              std::string(to_string(next)) + (error ? ": " + error->message : std::string()));
    events.push_back(StateChanged{next, std::move(error)});
  }

  void notice(Instant now, Error error) {
    auto known = std::find_if(notices.begin(), notices.end(), [&](const auto& n) { return n.first == error.message; });
    if (known != notices.end()) {
      if (now - known->second < kNoticeSpacing) return;
      known->second = now;
    } else {
      if (notices.size() >= kNoticesRemembered) notices.pop_front();
      notices.emplace_back(error.message, now);
    }
    log.write(LogLevel::kWarning, "control", error.message);
    events.push_back(ControlNotice{std::move(error)});
  }
  Error from_server(const Error& e) const { return e.with_context("control server " + url.authority); }

  // ---- connecting ------------------------------------------------------------------------------------------------

  void start(Clock clock) {
    auto parsed = ControlUrl::parse(config.url);
    if (!parsed.ok()) return set_state(ControlState::kFailed, parsed.error());
    url = std::move(*parsed);
    if (node_key.is_zero()) make_node_key();
    set_state(ControlState::kConnecting);
    connect(clock);
  }

  void make_node_key() {
    const NodePublic previous = node_key.public_key();
    node_key = crypto::NodePrivate::generate(rng);
    fresh_key = true;
    registered = false;
    expect_registered = false;
    events.push_back(NodeKeyChanged{node_key.public_key(), previous});
  }

  // Opens the control connection, and beside it the key fetch when the key is not confirmed yet: the handshake starts
  // as soon as both a connection and a key are there.
  void connect(Clock clock) {
    disarm(kReconnect);
    if (session) return;
    session = std::make_unique<ControlSession>(next_stream_id++, url.authority, url.tls);
    session_was_ready = false;
    actions.push_back(url.open(session->id()));
    arm(kConnect, clock.now + kConnectTimeout);
    if (control_key && !begin_session(clock)) return;
    if (!key_verified && !key_fetch) {
      const std::string target = std::string(ts2021::kKeyPath) + "?v=" + std::to_string(config.capability_version);
      key_fetch.emplace(next_stream_id++, "GET", target, url.authority);
      actions.push_back(url.open(key_fetch->id()));
      arm(kKey, clock.now + kKeyTimeout);
    }
  }

  bool begin_session(Clock clock) {
    Status begun = session->begin(config.capability_version, *control_key, machine, rng);
    if (begun.ok()) return true;
    drop_session(clock, begun.error());
    return false;
  }

  void close_stream(StreamId id) { actions.push_back(CloseStream{id}); }

  void end_key_fetch() {
    if (!key_fetch) return;
    close_stream(key_fetch->id());
    key_fetch.reset();
    disarm(kKey);
  }
  void end_ping_fetch() {
    if (!ping_fetch) return;
    close_stream(ping_fetch->id());
    ping_fetch.reset();
    disarm(kPingFetch);
  }

  // Forgets the connection and everything that ran on it.
  void end_session() {
    if (!session) return;
    close_stream(session->id());
    session.reset();
    steady_from.reset();
    register_call.reset();
    if (map_call) end_map_call();
    lite_call.reset();
    c2n_calls.clear();
    for (Timer t : {kConnect, kRegister, kRegisterRetry, kMapRetry, kLite, kLiteAnswer, kPing, kPong}) disarm(t);
  }
  void end_map_call() {
    map_call.reset();
    disarm(kMapWatchdog);
    disarm(kMapResume);
  }
  void end_everything() {
    end_session();
    end_key_fetch();
    end_ping_fetch();
    timers.fill(Instant::max());
  }

  void drop_session(Clock clock, const Error& why) {
    const bool handshake = session && session->failed_in_handshake();
    if (steady_from && clock.now >= *steady_from) connect_backoff.reset();
    end_session();
    if (handshake) key_verified = false;  // perhaps the server has another key now
    notice(clock.now, from_server(why));
    // A person who is asked to log in keeps seeing that; everyone else learns that we are trying.
    if (state == ControlState::kRunning || state == ControlState::kNeedsApproval) {
      set_state(ControlState::kReconnecting, from_server(why));
    }
    arm(kReconnect, clock.now + connect_backoff.next(rng));
  }

  void fail(Error why) {
    end_everything();
    set_state(ControlState::kFailed, std::move(why));
  }

  void handle_key(Clock clock, Result<MachinePublic> key) {
    end_key_fetch();
    if (!key.ok()) {
      if (control_key) {
        // The connection itself is authenticated by the key we have; this only could not be confirmed.
        log.write(LogLevel::kInfo, "control", "the server's key could not be confirmed: " + key.error().message);
        return;
      }
      if (session) drop_session(clock, key.error());
      return;
    }
    if (control_key && *control_key != *key) {
      return fail(from_server({ErrorCode::kUnauthorized,
                               "its key is not the one this node knows. If the server was set up anew, remove this "
                               "node's stored state and log in again; else someone may be posing as the server"}));
    }
    key_verified = true;
    if (!control_key) {
      control_key = *key;
      events.push_back(ControlKeyLearned{*key});
      if (session && !session->begun()) begin_session(clock);
    }
  }

  void handle_session_ready(Clock clock) {
    session_was_ready = true;
    disarm(kConnect);
    arm(kPing, clock.now + kPingInterval);
    if (wants_logout) return send_register(clock, RegisterKind::kLogout);
    if (!registered) {
      send_register(clock, followup_url.empty() ? RegisterKind::kLogin : RegisterKind::kFollowup);
      if (!session || !expect_registered) return;
    }
    start_map(clock);
  }

  // ---- registering -----------------------------------------------------------------------------------------------

  ts2021::Hostinfo full_hostinfo() const {
    ts2021::Hostinfo info = config.hostinfo;
    info.net_info = net_info;
    return info;
  }

  void send_register(Clock clock, RegisterKind kind) {
    disarm(kRegisterRetry);
    if (!session || !session->ready()) return;
    if (register_call) session->h2().cancel(register_call->stream);
    register_call.reset();

    ts2021::RegisterRequest request;
    request.version = config.capability_version;
    request.node_key = node_key.public_key();
    if (fresh_key && registered_key != request.node_key) request.old_node_key = registered_key;
    request.hostinfo = full_hostinfo();
    request.ephemeral = config.ephemeral;
    if (kind == RegisterKind::kLogin) {
      request.auth_key = crypto::SecretText(without_lock_suffix(config.auth_key.reveal()));
    }
    if (kind == RegisterKind::kFollowup) request.followup = followup_url;
    if (kind == RegisterKind::kLogout) request.expiry = kLogoutExpiry;

    ts2021::Headers headers;
    if (!request.old_node_key.is_zero()) headers.push_back({"ts-lb", request.old_node_key.to_string()});
    headers.push_back({"ts-lb", request.node_key.to_string()});
    const crypto::SecretText body = encode_register_request(request);
    auto stream = session->h2().submit("POST", ts2021::kRegisterPath, headers, as_bytes(body.reveal()));
    if (!stream.ok()) return drop_session(clock, stream.error());
    register_call.emplace();
    register_call->stream = *stream;
    register_call->kind = kind;
    register_call->followup = request.followup;
    // A Followup waits for a person: no limit. The connection's own health is watched by PING.
    if (kind != RegisterKind::kFollowup) arm(kRegister, clock.now + kRegisterTimeout);
  }

  void retry_register(Clock clock, Duration wait) { arm(kRegisterRetry, clock.now + wait); }

  void handle_register_done(Clock clock, std::uint32_t error_code) {
    const RegisterCall call = std::move(*register_call);
    register_call.reset();
    disarm(kRegister);
    if (call.kind == RegisterKind::kLogout) return handle_logout_done(clock, call, error_code);

    if (call.status == 429) {
      notice(clock.now, from_server({ErrorCode::kLimit, "it asks to register less often; waiting"}));
      return retry_register(clock, retry_after(call.retry_after, clock.wall, rng));
    }
    if (error_code != ts2021::kH2NoError || call.status != 200) {
      const std::string line = printable_line(as_text(call.body));
      const std::string what = call.status == 0 ? "the register request was cut off"
                                                : "it answered the register request with " + std::to_string(call.status);
      notice(clock.now, from_server({ErrorCode::kUnavailable, what + (line.empty() ? "" : ": " + line)}));
      return retry_register(clock, auth_backoff.next(rng));
    }
    auto answer = ts2021::parse_register_response(call.body);
    if (!answer.ok()) {
      notice(clock.now, from_server(answer.error()));
      return retry_register(clock, auth_backoff.next(rng));
    }
    handle_register_answer(clock, call, *answer);
  }

  // The client's decisions in their order (section 5.2).
  void handle_register_answer(Clock clock, const RegisterCall& call, const ts2021::RegisterResponse& answer) {
    connect_backoff.reset();
    if (!answer.error.empty()) {
      const ErrorCode code = config.auth_key.empty() ? ErrorCode::kRefused : ErrorCode::kUnauthorized;
      const bool in_place_of_another = fresh_key && !registered_key.is_zero();
      const char* what = node_gone             ? "this node was removed there, and its key is refused: "
                         : in_place_of_another ? "this node's login has ended there, and its key is refused: "
                                               : "it refused this node: ";
      return refuse_login(from_server({code, what + printable_line(answer.error)}));
    }
    if (!answer.node_key_signature.empty()) {
      return fail(from_server({ErrorCode::kUnsupported, "tailnet lock is on, which this node does not support"}));
    }
    if (answer.node_key_expired) {
      if (fresh_key) {
        return refuse_login(from_server({ErrorCode::kExpired, "it calls a node key expired that was just made"}));
      }
      return rotate_key(clock);
    }
    if (!answer.auth_url.empty()) return ask_for_login(clock, call, answer.auth_url);

    registered = true;
    fresh_key = false;
    expect_registered = true;
    registered_key = node_key.public_key();
    followup_url.clear();
    events.push_back(Registered{answer.user, answer.login});
    if (!map_call && timers[kMapRetry] == Instant::max()) {
      if (state == ControlState::kNeedsLogin) set_state(ControlState::kConnecting);
      start_map(clock);
    } else if (lite_dirty) {
      schedule_lite(clock);
    }
  }

  void refuse_login(Error why) {
    end_everything();
    forget_netmap();
    set_state(ControlState::kNeedsLogin, std::move(why));
  }

  void ask_for_login(Clock clock, const RegisterCall& call, const std::string& auth_url) {
    stop_map();
    const bool had_identity = node_gone || expect_registered;
    registered = false;
    expect_registered = false;
    if (netmap.has_map()) forget_netmap();
    if (auth_url != followup_url) {
      followup_url = auth_url;
      std::optional<Error> why;
      if (had_identity && state != ControlState::kNeedsLogin) {
        why = Error{ErrorCode::kNotFound, "the control server does not know this node any more; log in again"};
      }
      set_state(ControlState::kNeedsLogin, std::move(why));
      events.push_back(LoginUrl{auth_url});
    }
    // The same URL as an answer to its own Followup: the server does not wait, so we do.
    if (call.followup == auth_url) retry_register(clock, auth_backoff.next(rng));
    else send_register(clock, RegisterKind::kFollowup);
  }

  // The node key has expired: stop, make another, register it in place of the old one.
  void rotate_key(Clock clock) {
    stop_map();
    set_state(ControlState::kExpired);
    make_node_key();
    followup_url.clear();
    if (!session || !session->ready()) return;  // registers when the connection is back
    // At once the first time; a server that keeps calling fresh keys expired is asked ever more slowly.
    const bool again = auth_backoff.failures() > 0;
    const Duration wait = auth_backoff.next(rng);
    if (again) retry_register(clock, wait);
    else send_register(clock, RegisterKind::kLogin);
  }

  // ---- logging out -----------------------------------------------------------------------------------------------

  void logout(Clock clock) {
    if (state == ControlState::kLoggedOut) return;
    wants_logout = true;
    if (registered_key.is_zero() || state == ControlState::kIdle || state == ControlState::kFailed) {
      return finish_logout();
    }
    arm(kLogout, clock.now + kLogoutTimeout);
    stop_map();  // the Go client cancels its stream first, too
    if (lite_call && session) session->h2().cancel(lite_call->stream);
    lite_call.reset();
    disarm(kLite);
    if (session && session->ready()) send_register(clock, RegisterKind::kLogout);
    else connect(clock);
  }

  void handle_logout_done(Clock clock, const RegisterCall& call, std::uint32_t error_code) {
    if (error_code != ts2021::kH2NoError || call.status != 200) {
      // The overall timer bounds the tries.
      return retry_register(clock, auth_backoff.next(rng));
    }
    finish_logout();
  }

  void finish_logout() {
    end_everything();
    wants_logout = false;
    registered = false;
    expect_registered = false;
    followup_url.clear();
    forget_netmap();
    set_state(ControlState::kLoggedOut);
    events.push_back(LoggedOut{});
  }

  void forget_netmap() {
    disarm(kExpiry);
    if (!netmap.has_map()) return;
    NetmapChange change;
    change.full = change.self = change.filter = change.relay_map = change.dns = true;
    for (const auto& [id, peer] : netmap.peers()) change.peers_removed.push_back(id);
    netmap.clear();
    events.push_back(NetmapChanged{std::move(change)});
  }

  // ---- map stream ------------------------------------------------------------------------------------------------

  ts2021::MapRequest map_request() const {
    ts2021::MapRequest request;
    request.version = config.capability_version;
    request.compress = config.zstd ? "zstd" : "";
    request.keep_alive = true;
    request.node_key = node_key.public_key();
    request.disco_key = disco_key;
    request.hostinfo = full_hostinfo();
    if (endpoints) {
      request.endpoints.emplace();
      for (const AnnouncedEndpoint& e : *endpoints) {
        request.endpoints->push_back(e.endpoint);
        request.endpoint_types.push_back(static_cast<int>(e.type));
      }
    }
    return request;
  }
  ts2021::Headers map_headers() const { return {{"ts-lb", node_key.public_key().to_string()}}; }

  // Opens the stream, and sends the lite update that makes servers of the present take our state (section 6.1).
  void start_map(Clock clock) {
    disarm(kMapRetry);
    if (!session || !session->ready() || map_call) return;
    ts2021::MapRequest request = map_request();
    request.stream = true;
    const std::string body = encode_map_request(request);
    auto stream = session->h2().submit("POST", ts2021::kMapPath, map_headers(), as_bytes(body));
    if (!stream.ok()) return drop_session(clock, stream.error());
    map_call.emplace(config.zstd);
    lite_quick_left = kLiteQuickCount;
    map_call->stream = *stream;
    map_call->started = clock.now;
    netmap.begin_stream();
    arm(kMapWatchdog, clock.now + kMapSilenceMax);
    send_lite(clock);
  }

  void stop_map() {
    disarm(kMapRetry);
    if (!map_call) return;
    if (session && session->ready()) session->h2().cancel(map_call->stream);
    end_map_call();
  }

  void retry_map(Clock clock, Duration wait) { arm(kMapRetry, clock.now + wait); }

  void handle_map_data(Clock clock, const H2Data& data) {
    if (map_call->status != 200) return map_call->take(data, kErrorTextSizeMax);
    Status taken = map_call->reader.consume(data.bytes);
    if (!taken.ok()) return abandon_map(clock, taken.error());
    if (map_call->reader.buffered() > ts2021::kMapFrameSizeMax + (1u << 20)) {
      return abandon_map(clock, {ErrorCode::kLimit, "it sends map messages faster than it lets us read them"});
    }
    arm(kMapWatchdog, clock.now + kMapSilenceMax);
    read_map_messages(clock);
  }

  void read_map_messages(Clock clock) {
    while (map_call && timers[kMapResume] == Instant::max()) {
      auto message = map_call->reader.next();
      if (!message) return;
      if (!message->ok()) return abandon_map(clock, message->error());
      auto parsed = ts2021::parse_map_response(**message);
      if (!parsed.ok()) return abandon_map(clock, parsed.error());
      handle_map_message(clock, std::move(*parsed));
    }
  }

  // The stream makes no sense any more: cancel it and ask for a new one.
  void abandon_map(Clock clock, const Error& why) {
    notice(clock.now, from_server(why));
    stop_map();
    retry_map(clock, map_backoff.next(rng));
    if (state == ControlState::kRunning) set_state(ControlState::kReconnecting, from_server(why));
  }

  void check_membership(Clock clock, Duration spacing) {
    if (map_call && map_call->got_map && clock.now - confirmed > spacing) changed(clock);
  }

  void handle_map_message(Clock clock, ts2021::MapResponse&& message) {
    if (message.keep_alive) check_membership(clock, kMembershipAsk);
    else confirmed = clock.now;
    if (message.ping_request) handle_ping_request(clock, *message.ping_request);
    if (!session || !map_call) return;
    if (!message.pop_browser_url.empty() && message.pop_browser_url != last_browser_url) {
      last_browser_url = message.pop_browser_url;
      events.push_back(OpenUrl{message.pop_browser_url});
    }
    if (!message.keep_alive && message.tka_info && !message.tka_info->disabled && !message.tka_info->head.empty() &&
        !told_about_lock) {
      told_about_lock = true;
      notice(clock.now, {ErrorCode::kUnsupported,
                         "tailnet lock is on in this tailnet; this node does not check key signatures"});
    }
    if (!message.keep_alive && message.debug && message.debug->sleep_seconds > 0) {
      const double seconds = std::min(message.debug->sleep_seconds, std::chrono::duration<double>(kSleepMax).count());
      const Instant until = clock.now + std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds));
      arm(kMapResume, until);
      arm(kMapWatchdog, until + kMapSilenceMax);
    }

    auto change = netmap.apply(std::move(message), clock.wall);
    if (!change.ok()) return abandon_map(clock, change.error());
    if (netmap.clock_offset() != Duration::zero() && !told_about_skew) {
      told_about_skew = true;
      const auto minutes = std::chrono::duration_cast<std::chrono::minutes>(netmap.clock_offset()).count();
      notice(clock.now, {ErrorCode::kInvalid, "this machine's clock differs from the control server's by " +
                                                  std::to_string(minutes < 0 ? -minutes : minutes) + " minutes"});
    }
    if (change->any()) publish(clock, std::move(*change));
  }

  void publish(Clock clock, NetmapChange change) {
    if (change.full && map_call) {
      map_call->got_map = true;
      not_found = 0;
      node_gone = false;
      if (!steady_from) steady_from = clock.now + kSteadyAfter;
    }
    const bool health = change.health && !(change.full && netmap.health().empty() && netmap.display_messages().empty());
    events.push_back(NetmapChanged{std::move(change)});
    if (health) {
      HealthChanged h{netmap.health()};
      for (const auto& [id, text] : netmap.display_messages()) {
        h.messages.push_back(text.text.empty() ? text.title : text.title + ": " + text.text);
      }
      events.push_back(std::move(h));
    }
    arm_expiry(clock);
    judge_self(clock);
  }

  void judge_self(Clock clock) {
    if (!netmap.has_map() || wants_logout) return;
    if (netmap.self()->key != node_key.public_key()) return;  // still about the key that was replaced
    if (netmap.self()->expired) return rotate_key(clock);
    if (!map_call || !map_call->got_map) return;
    auth_backoff.reset();
    set_state(netmap.self()->machine_authorized ? ControlState::kRunning : ControlState::kNeedsApproval);
  }

  void arm_expiry(Clock clock) {
    disarm(kExpiry);
    const auto next = netmap.next_expiry(clock.wall);
    if (!next) return;
    // The wall clock may be set meanwhile: look again every hour.
    arm(kExpiry, clock.now + std::clamp<Duration>(*next - clock.wall, Duration::zero(), std::chrono::hours(1)));
  }

  // 404 from Headscale and Tailscale, 400 with these words from the test server.
  static bool unknown_node(const Call& call, const std::string& line) {
    return call.status == 404 || (call.status == 400 && (line.find("node not found") != std::string::npos ||
                                                         line.find("match machine key") != std::string::npos));
  }

  void handle_map_done(Clock clock, std::uint32_t error_code) {
    const MapCall call = std::move(*map_call);
    end_map_call();
    if (call.status == 200) {
      // The server may end a stream for good reasons (a newer one, a restart). One that lived earns a quick return.
      if (call.got_map && clock.now - call.started > std::chrono::seconds(10)) map_backoff.reset();
      if (!call.got_map && error_code != ts2021::kH2NoError) {
        notice(clock.now, from_server({ErrorCode::kReset, "it broke off the map stream"}));
      }
      return retry_map(clock, map_backoff.next(rng));
    }
    const std::string line = printable_line(as_text(call.body));
    const bool unknown = unknown_node(call, line);
    if (unknown && !registered) return;  // asked too early: the registration starts it again
    if (unknown) return handle_node_unknown(clock, line);
    const std::string what = call.status == 0 ? "it broke off the map request"
                                              : "it answered the map request with " + std::to_string(call.status);
    const Error why = from_server({ErrorCode::kUnavailable, what + (line.empty() ? "" : ": " + line)});
    notice(clock.now, why);
    if (state == ControlState::kRunning) set_state(ControlState::kReconnecting, why);
    retry_map(clock, call.status == 429 || call.status == 503 ? retry_after(call.retry_after, clock.wall, rng)
                                                              : map_backoff.next(rng));
  }

  // The server does not know this node key (section 6.10). It may be a hiccup; then it may help to register again; a
  // node that is unknown after that has been deleted for good.
  void handle_node_unknown(Clock clock, const std::string& line) {
    if (++not_found < kNotFoundMax) return retry_map(clock, map_backoff.next(rng));
    not_found = 0;
    const Error why = from_server({ErrorCode::kNotFound, "this node was removed there" + (line.empty() ? "" : " (" + line + ")")});
    if (node_gone) {
      end_everything();
      registered = false;
      expect_registered = false;
      forget_netmap();
      return set_state(ControlState::kLoggedOut, why);
    }
    node_gone = true;
    registered = false;
    notice(clock.now, why);
    if (state == ControlState::kRunning) set_state(ControlState::kReconnecting, why);
    send_register(clock, RegisterKind::kLogin);
  }

  // ---- lite updates ----------------------------------------------------------------------------------------------

  void changed(Clock clock) {
    lite_dirty = true;
    if (!lite_call) schedule_lite(clock);
  }
  void schedule_lite(Clock clock) {
    if (!registered || !map_call) return;  // goes with the next map request
    if (timers[kLite] == Instant::max()) arm(kLite, std::max(clock.now, lite_not_before));
  }

  void send_lite(Clock clock) {
    disarm(kLite);
    if (!session || !session->ready() || !map_call) return;
    if (lite_call) {
      lite_dirty = true;
      return;
    }
    ts2021::MapRequest request = map_request();
    request.omit_peers = true;
    const std::string body = encode_map_request(request);
    auto stream = session->h2().submit("POST", ts2021::kMapPath, map_headers(), as_bytes(body));
    if (!stream.ok()) return drop_session(clock, stream.error());
    lite_call.emplace();
    lite_call->stream = *stream;
    lite_dirty = false;
    lite_not_before = clock.now + (lite_quick_left > 0 ? kLiteQuickSpacing : kLiteSpacing);
    if (lite_quick_left > 0) --lite_quick_left;
    arm(kLiteAnswer, clock.now + kLiteTimeout);
  }

  void handle_lite_done(Clock clock, std::uint32_t error_code) {
    const Call call = std::move(*lite_call);
    lite_call.reset();
    disarm(kLiteAnswer);
    if (error_code == ts2021::kH2NoError && call.status == 200) {
      lite_backoff.reset();
      confirmed = clock.now;
    } else if (registered && unknown_node(call, printable_line(as_text(call.body)))) {
      // Unknown there, it seems, and perhaps the stream is a relic: a new one's answer decides.
      confirmed = clock.now;
      stop_map();
      return retry_map(clock, map_backoff.next(rng));
    } else if (registered) {
      notice(clock.now, from_server({ErrorCode::kUnavailable,
                                     "it did not take an update of this node's addresses (" +
                                         std::to_string(call.status) + "); trying again"}));
      lite_dirty = true;
      const Duration wait = call.status == 429 ? retry_after(call.retry_after, clock.wall, rng) : lite_backoff.next(rng);
      lite_not_before = std::max(lite_not_before, clock.now + wait);
    } else {
      lite_dirty = true;  // asked too early
    }
    if (lite_dirty) schedule_lite(clock);
  }

  // ---- what the server asks of us --------------------------------------------------------------------------------

  void handle_ping_request(Clock clock, const ts2021::PingRequest& ping) {
    if (ping.url.empty() || ping.url == last_ping_url) return;
    last_ping_url = ping.url;
    // Scheme and host are dummies when the answer goes over Noise; then only the path counts.
    const std::size_t scheme = ping.url.find("://");
    if (scheme == std::string::npos) return;
    const std::size_t slash = ping.url.find('/', scheme + 3);
    const std::string path = slash == std::string::npos ? "/" : ping.url.substr(slash);
    const bool printable = std::all_of(path.begin(), path.end(), [](char c) { return c > 0x20 && c < 0x7f; });
    if (!printable || path.size() > 2048) return;

    if (ping.types == "c2n") {
      if (ping.payload.size() > kC2nPayloadSizeMax) return;
      return call_back(clock, "POST", path, answer_c2n(ping.payload));
    }
    if (!ping.types.empty()) return;  // pings of peers: optional, and the path layer's business
    if (ping.url_is_noise) return call_back(clock, "HEAD", path, {});
    // Plain HTTP only to the control server itself: nobody may use this node to knock on other doors.
    const auto target = ControlUrl::parse(std::string_view(ping.url).substr(0, slash));
    if (!target.ok() || target->host != url.host || target->port != url.port || target->tls != url.tls || ping_fetch) return;
    ping_fetch.emplace(next_stream_id++, "HEAD", path, url.authority);
    actions.push_back(url.open(ping_fetch->id()));
    arm(kPingFetch, clock.now + kPingTimeout);
  }

  void call_back(Clock clock, std::string_view method, const std::string& path, const ByteVector& body) {
    if (c2n_calls.size() >= kC2nRunningMax || !session || !session->ready()) return;
    auto stream = session->h2().submit(method, path, {}, body);
    if (!stream.ok()) return drop_session(clock, stream.error());
    c2n_calls.insert(*stream);
  }

  // ---- HTTP/2 events ---------------------------------------------------------------------------------------------

  void handle_h2_events(Clock clock) {
    while (session && session->ready()) {
      auto event = session->h2().poll_event();
      if (!event) return;
      if (auto* response = std::get_if<H2Response>(&*event)) handle_response(clock, *response);
      else if (auto* data = std::get_if<H2Data>(&*event)) handle_data(clock, *data);
      else if (auto* closed = std::get_if<H2Closed>(&*event)) handle_closed(clock, *closed);
      else if (std::holds_alternative<H2GoAway>(*event)) {
        return drop_session(clock, {ErrorCode::kReset, "it is closing this connection"});
      }
      // H2Pong: any byte that arrives disarms the timer.
    }
  }

  void handle_response(Clock clock, const H2Response& response) {
    if (register_call && register_call->stream == response.stream) register_call->take(response);
    else if (lite_call && lite_call->stream == response.stream) lite_call->take(response);
    else if (map_call && map_call->stream == response.stream) {
      map_call->take(response);
      arm(kMapWatchdog, clock.now + kMapSilenceMax);
    }
  }

  void handle_data(Clock clock, const H2Data& data) {
    if (register_call && register_call->stream == data.stream) {
      register_call->take(data, ts2021::kRegisterResponseSizeMax);
    } else if (lite_call && lite_call->stream == data.stream) {
      lite_call->take(data, kErrorTextSizeMax);
    } else if (map_call && map_call->stream == data.stream) {
      handle_map_data(clock, data);
    }
  }

  void handle_closed(Clock clock, const H2Closed& closed) {
    if (register_call && register_call->stream == closed.stream) handle_register_done(clock, closed.error_code);
    else if (map_call && map_call->stream == closed.stream) handle_map_done(clock, closed.error_code);
    else if (lite_call && lite_call->stream == closed.stream) handle_lite_done(clock, closed.error_code);
    else c2n_calls.erase(closed.stream);
  }

  // ---- time ------------------------------------------------------------------------------------------------------

  void handle_timeout(Clock clock) {
    const Instant now = clock.now;
    const Error silent{ErrorCode::kTimeout, "it does not answer"};
    if (due(kLogout, now)) {
      notice(now, from_server({ErrorCode::kTimeout, "it could not be told that this node logged out"}));
      finish_logout();
    }
    if (due(kKey, now)) handle_key(clock, silent);
    if (due(kPingFetch, now)) end_ping_fetch();
    if (due(kConnect, now) && session) {
      drop_session(clock, session->is_open() ? silent
                                             : Error{ErrorCode::kTimeout, "no connection within 10 seconds"});
    }
    if (due(kPong, now)) drop_session(clock, silent);
    if (due(kMapWatchdog, now)) {
      drop_session(clock, {ErrorCode::kTimeout, "no map message came for two minutes"});
    }
    if (due(kRegister, now)) drop_session(clock, {ErrorCode::kTimeout, "the register request was not answered"});
    if (due(kLiteAnswer, now) && lite_call && session) {
      session->h2().cancel(lite_call->stream);
      handle_lite_done(clock, ts2021::kH2Cancel);
    }
    if (due(kExpiry, now)) {
      NetmapChange change = netmap.expire(clock.wall);
      if (change.any()) publish(clock, std::move(change));
      else arm_expiry(clock);
    }
    if (due(kReconnect, now)) connect(clock);
    if (due(kRegisterRetry, now)) {
      send_register(clock, wants_logout            ? RegisterKind::kLogout
                           : followup_url.empty() ? RegisterKind::kLogin
                                                  : RegisterKind::kFollowup);
    }
    if (due(kMapResume, now)) read_map_messages(clock);
    if (due(kMapRetry, now)) start_map(clock);
    if (due(kLite, now)) send_lite(clock);
    if (due(kPing, now) && session && session->ready()) {
      session->h2().ping();
      arm(kPing, now + kPingInterval);
      if (timers[kPong] == Instant::max()) arm(kPong, now + kPingTimeout);
    }
  }

  Instant next_timer() const { return *std::min_element(timers.begin(), timers.end()); }

  // ---- streams ---------------------------------------------------------------------------------------------------

  bool is_session(StreamId id) const { return session && session->id() == id; }
  bool is_key_fetch(StreamId id) const { return key_fetch && key_fetch->id() == id; }
  bool is_ping_fetch(StreamId id) const { return ping_fetch && ping_fetch->id() == id; }

  void consume(Clock clock, StreamId id, Bytes bytes) {
    if (is_key_fetch(id)) {
      auto done = key_fetch->consume(bytes);
      if (!done.ok()) handle_key(clock, done.error());
      else if (*done) handle_key(clock, read_key_answer(*key_fetch, url));
    } else if (is_ping_fetch(id)) {
      auto done = ping_fetch->consume(bytes);
      if (!done.ok() || *done) end_ping_fetch();
    } else if (is_session(id)) {
      disarm(kPong);
      Status taken = session->consume(bytes);
      if (session->ready()) {
        if (!session_was_ready) handle_session_ready(clock);
        handle_h2_events(clock);
      }
      if (!taken.ok() && is_session(id)) drop_session(clock, taken.error());
    }
  }

  // `error` absent: an orderly end.
  void lost(Clock clock, StreamId id, const std::optional<Error>& error) {
    if (is_key_fetch(id)) {
      auto done = error ? Result<bool>(*error) : key_fetch->closed();
      if (done.ok() && *done) handle_key(clock, read_key_answer(*key_fetch, url));
      else handle_key(clock, done.ok() ? Error{ErrorCode::kReset, "its answer to /key was cut short"} : done.error());
    } else if (is_ping_fetch(id)) {
      end_ping_fetch();
    } else if (is_session(id)) {
      drop_session(clock, session->explain_close(error));
    }
  }
};

// ---- public face -----------------------------------------------------------------------------------------------------

ControlClient::ControlClient(ControlConfig config, crypto::MachinePrivate machine_key, crypto::NodePrivate node_key,
                             Rng& rng, Log& log)
    : impl_(std::make_unique<Impl>(std::move(config), std::move(machine_key), std::move(node_key), rng, log)) {}
ControlClient::~ControlClient() = default;

void ControlClient::start(Clock clock) {
  if (impl_->state == ControlState::kIdle || impl_->state == ControlState::kFailed) impl_->start(clock);
}

void ControlClient::login(Clock clock, crypto::SecretText auth_key) {
  Impl& i = *impl_;
  const bool was_logged_out = i.state == ControlState::kLoggedOut;
  i.end_everything();
  i.config.auth_key = std::move(auth_key);
  i.followup_url.clear();
  i.wants_logout = false;
  i.node_gone = false;
  i.not_found = 0;
  i.auth_backoff.reset();
  i.connect_backoff.reset();
  i.registered = false;
  if (was_logged_out) {
    i.registered_key = {};
    i.make_node_key();
  }
  i.start(clock);
}

void ControlClient::logout(Clock clock) { impl_->logout(clock); }

bool ControlClient::restore_map(Clock clock, Bytes saved) {
  Impl& i = *impl_;
  if (i.state != ControlState::kIdle || !i.config.expect_registered) return false;
  auto message = ts2021::parse_map_response(saved);
  if (!message.ok() || !message->node || message->node->key != i.node_key.public_key()) return false;
  Netmap map;
  auto change = map.apply(std::move(*message), clock.wall);
  if (!change.ok() || map.self()->expired || !map.self()->machine_authorized) return false;
  i.netmap = std::move(map);
  i.events.push_back(NetmapChanged{std::move(*change)});
  return true;
}

void ControlClient::check_membership(Clock clock) { impl_->check_membership(clock, kMembershipAskMin); }

std::string ControlClient::saved_map() const {
  if (!impl_->netmap.has_map()) return {};
  ts2021::MapResponse map = impl_->netmap.snapshot();
  // Where peers look for us is what we announced; servers need not tell us.
  if (impl_->net_info && impl_->net_info->preferred_derp != 0) map.node->home_derp = impl_->net_info->preferred_derp;
  return ts2021::encode_map_response(map);
}

void ControlClient::network_changed(Clock clock) {
  Impl& i = *impl_;
  const bool connected = i.session != nullptr || i.timers[Impl::kReconnect] != Instant::max();
  if (!connected) return;
  const Instant logout_at = i.timers[Impl::kLogout], expiry_at = i.timers[Impl::kExpiry];
  i.end_everything();
  i.arm(Impl::kLogout, logout_at);
  i.arm(Impl::kExpiry, expiry_at);
  i.connect_backoff.reset();
  i.map_backoff.reset();
  if (i.state == ControlState::kRunning) i.set_state(ControlState::kReconnecting);
  i.connect(clock);
}

void ControlClient::stop() {
  impl_->end_everything();
  impl_->events.clear();
  impl_->state = ControlState::kIdle;
}

void ControlClient::set_disco_key(Clock clock, const DiscoPublic& key) {
  if (impl_->disco_key == key) return;
  impl_->disco_key = key;
  impl_->changed(clock);
}

void ControlClient::set_endpoints(Clock clock, std::vector<AnnouncedEndpoint> endpoints) {
  if (impl_->endpoints == endpoints) return;
  impl_->endpoints = std::move(endpoints);
  impl_->changed(clock);
}

void ControlClient::set_net_info(Clock clock, ts2021::NetInfo net_info) {
  // New latencies alone are not news; they go along with the next real change (section 7.1).
  std::optional<ts2021::NetInfo> old = impl_->net_info;
  if (old) old->derp_latency = net_info.derp_latency;
  const bool news = !old || *old != net_info;
  impl_->net_info = std::move(net_info);
  if (news) impl_->changed(clock);
}

void ControlClient::set_hostinfo(Clock clock, ts2021::Hostinfo hostinfo) {
  hostinfo.net_info.reset();
  if (impl_->config.hostinfo == hostinfo) return;
  impl_->config.hostinfo = std::move(hostinfo);
  impl_->changed(clock);
}

std::optional<StreamAction> ControlClient::poll_action() {
  if (impl_->actions.empty()) return std::nullopt;
  StreamAction action = std::move(impl_->actions.front());
  impl_->actions.pop_front();
  return action;
}

void ControlClient::stream_opened(Clock, StreamId id, const StreamInfo&) {
  if (impl_->is_session(id)) impl_->session->opened();
  else if (impl_->is_key_fetch(id)) impl_->key_fetch->opened();
  else if (impl_->is_ping_fetch(id)) impl_->ping_fetch->opened();
}

void ControlClient::stream_failed(Clock clock, StreamId id, const Error& error) { impl_->lost(clock, id, error); }

void ControlClient::stream_closed(Clock clock, StreamId id, const std::optional<Error>& error) {
  impl_->lost(clock, id, error);
}

Result<std::size_t> ControlClient::consume(Clock clock, StreamId id, Bytes bytes) {
  impl_->consume(clock, id, bytes);
  return bytes.size();
}

std::size_t ControlClient::produce(Clock, StreamId id, MutBytes out) {
  if (impl_->is_session(id)) return impl_->session->produce(out);
  if (impl_->is_key_fetch(id)) return impl_->key_fetch->produce(out);
  if (impl_->is_ping_fetch(id)) return impl_->ping_fetch->produce(out);
  return 0;
}

bool ControlClient::has_output(StreamId id) const {
  if (impl_->is_session(id)) return impl_->session->has_output();
  if (impl_->is_key_fetch(id)) return impl_->key_fetch->has_output();
  if (impl_->is_ping_fetch(id)) return impl_->ping_fetch->has_output();
  return false;
}

void ControlClient::handle_timeout(Clock clock) { impl_->handle_timeout(clock); }

Deadline ControlClient::next_timeout() const {
  const Instant next = impl_->next_timer();
  return next == Instant::max() ? Deadline::never() : Deadline::at(next);
}

std::optional<ControlEvent> ControlClient::poll_event() {
  if (impl_->events.empty()) return std::nullopt;
  ControlEvent event = std::move(impl_->events.front());
  impl_->events.pop_front();
  return event;
}

ControlState ControlClient::state() const { return impl_->state; }
const Netmap& ControlClient::netmap() const { return impl_->netmap; }
const crypto::NodePrivate& ControlClient::node_key() const { return impl_->node_key; }
std::optional<MachinePublic> ControlClient::control_key() const { return impl_->control_key; }

}  // namespace porthole::control
