#include "control/control_client_impl.h"
#include "ts2021/json.h"

namespace porthole::control {
namespace {

// What the Go client sends to log out: any time in the past does.
constexpr WallTime kLogoutExpiry = WallTime::from_unix_s(123);

// A pre-auth key may carry a tailnet-lock suffix that is not the server's business (section 5.4).
std::string_view without_lock_suffix(std::string_view key) { return key.substr(0, key.find("--TL")); }

}  // namespace

// ---- registering ----------------------------------------------------------------------------------------------------

ts2021::Hostinfo ControlClient::Impl::full_hostinfo() const {
  ts2021::Hostinfo info = config.hostinfo;
  info.net_info = net_info;
  return info;
}

void ControlClient::Impl::send_register(Clock clock, RegisterKind kind) {
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

void ControlClient::Impl::handle_register_done(Clock clock, std::uint32_t error_code) {
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
void ControlClient::Impl::handle_register_answer(Clock clock, const RegisterCall& call, const ts2021::RegisterResponse& answer) {
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

void ControlClient::Impl::refuse_login(Error why) {
  end_everything();
  forget_netmap();
  set_state(ControlState::kNeedsLogin, std::move(why));
}

void ControlClient::Impl::ask_for_login(Clock clock, const RegisterCall& call, const std::string& auth_url) {
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
void ControlClient::Impl::rotate_key(Clock clock) {
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

// ---- logging out ----------------------------------------------------------------------------------------------------

void ControlClient::Impl::logout(Clock clock) {
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

void ControlClient::Impl::handle_logout_done(Clock clock, const RegisterCall& call, std::uint32_t error_code) {
  if (error_code != ts2021::kH2NoError || call.status != 200) {
    // The overall timer bounds the tries.
    return retry_register(clock, auth_backoff.next(rng));
  }
  finish_logout();
}

void ControlClient::Impl::finish_logout() {
  end_everything();
  wants_logout = false;
  registered = false;
  expect_registered = false;
  followup_url.clear();
  forget_netmap();
  set_state(ControlState::kLoggedOut);
  events.push_back(LoggedOut{});
}

void ControlClient::Impl::forget_netmap() {
  disarm(kExpiry);
  if (!netmap.has_map()) return;
  NetmapChange change;
  change.full = change.self = change.filter = change.relay_map = change.dns = true;
  for (const auto& [id, peer] : netmap.peers()) change.peers_removed.push_back(id);
  netmap.clear();
  events.push_back(NetmapChanged{std::move(change)});
}

}  // namespace porthole::control
