#include "control/control_client_impl.h"
#include "ts2021/json.h"
#include "ts2021/limits.h"

namespace porthole::control {

// ---- map stream -----------------------------------------------------------------------------------------------------

ts2021::MapRequest ControlClient::Impl::map_request() const {
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

// Opens the stream, and sends the lite update that makes servers of the present take our state (section 6.1).
void ControlClient::Impl::start_map(Clock clock) {
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

void ControlClient::Impl::stop_map() {
  disarm(kMapRetry);
  if (!map_call) return;
  if (session && session->ready()) session->h2().cancel(map_call->stream);
  end_map_call();
}

void ControlClient::Impl::refresh_map(Clock clock) {
  if (!map_call || !map_call->got_map) return;
  arm(kMapRefresh, std::max(clock.now, refresh_not_before));
}

void ControlClient::Impl::handle_map_data(Clock clock, const H2Data& data) {
  if (map_call->status != 200) return map_call->take(data, kErrorTextSizeMax);
  Status taken = map_call->reader.consume(data.bytes);
  if (!taken.ok()) return abandon_map(clock, taken.error());
  if (map_call->reader.buffered() > ts2021::kMapFrameSizeMax + (1u << 20)) {
    return abandon_map(clock, {ErrorCode::kLimit, "it sends map messages faster than it lets us read them"});
  }
  arm(kMapWatchdog, clock.now + kMapSilenceMax);
  read_map_messages(clock);
}

void ControlClient::Impl::read_map_messages(Clock clock) {
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
void ControlClient::Impl::abandon_map(Clock clock, const Error& why) {
  notice(clock.now, from_server(why));
  stop_map();
  retry_map(clock, map_backoff.next(rng));
  if (state == ControlState::kRunning) set_state(ControlState::kReconnecting, from_server(why));
}

void ControlClient::Impl::check_membership(Clock clock, Duration spacing) {
  if (map_call && map_call->got_map && clock.now - confirmed > spacing) changed(clock);
}

void ControlClient::Impl::handle_map_message(Clock clock, ts2021::MapResponse&& message) {
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

void ControlClient::Impl::publish(Clock clock, NetmapChange change) {
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

void ControlClient::Impl::judge_self(Clock clock) {
  if (!netmap.has_map() || wants_logout) return;
  if (netmap.self()->key != node_key.public_key()) return;  // still about the key that was replaced
  if (netmap.self()->expired) return rotate_key(clock);
  if (!map_call || !map_call->got_map) return;
  auth_backoff.reset();
  set_state(netmap.self()->machine_authorized ? ControlState::kRunning : ControlState::kNeedsApproval);
}

void ControlClient::Impl::arm_expiry(Clock clock) {
  disarm(kExpiry);
  const auto next = netmap.next_expiry(clock.wall);
  if (!next) return;
  // The wall clock may be set meanwhile: look again every hour.
  arm(kExpiry, clock.now + std::clamp<Duration>(*next - clock.wall, Duration::zero(), std::chrono::hours(1)));
}

// 404 from Headscale and Tailscale, 400 with these words from the test server.
bool ControlClient::Impl::unknown_node(const Call& call, const std::string& line) {
  return call.status == 404 || (call.status == 400 && (line.find("node not found") != std::string::npos ||
                                                       line.find("match machine key") != std::string::npos));
}

void ControlClient::Impl::handle_map_done(Clock clock, std::uint32_t error_code) {
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
void ControlClient::Impl::handle_node_unknown(Clock clock, const std::string& line) {
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

// ---- lite updates ---------------------------------------------------------------------------------------------------

void ControlClient::Impl::changed(Clock clock) {
  lite_dirty = true;
  if (!lite_call) schedule_lite(clock);
}

void ControlClient::Impl::schedule_lite(Clock clock) {
  if (!registered || !map_call) return;  // goes with the next map request
  if (timers[kLite] == Instant::max()) arm(kLite, std::max(clock.now, lite_not_before));
}

void ControlClient::Impl::send_lite(Clock clock) {
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
  lite_not_before = lite_quick_left > 0 ? clock.now : clock.now + kLiteSpacing;
  if (lite_quick_left > 0) --lite_quick_left;
  arm(kLiteAnswer, clock.now + kLiteTimeout);
}

void ControlClient::Impl::handle_lite_done(Clock clock, std::uint32_t error_code) {
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

}  // namespace porthole::control
