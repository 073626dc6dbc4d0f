#include "control/control_client.h"

#include <charconv>

#include "control/c2n.h"
#include "control/control_client_impl.h"
#include "ts2021/json.h"
#include "ts2021/limits.h"
#include "ts2021/time_text.h"

namespace porthole::control {

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

Duration retry_after(std::string_view value, WallTime now, Rng& rng) {
  Duration wait{};
  std::int64_t seconds = 0;
  auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), seconds);
  if (!value.empty() && error == std::errc() && end == value.data() + value.size()) {
    if (seconds > 0 && seconds <= 3600) wait = std::chrono::seconds(seconds);
  } else if (auto date = ts2021::parse_http_date(value); date && *date > now && *date <= now + kRetryAfterMax) {
    wait = *date - now;  // of centuries it would not fit
  }
  if (wait <= Duration::zero()) return rng.between(kRetryAfterLow, kRetryAfterHigh);
  return wait;
}

bool ControlClient::Impl::due(Timer t, Instant now) {
  if (timers[t] > now) return false;
  disarm(t);
  return true;
}

void ControlClient::Impl::set_state(ControlState next, std::optional<Error> error) {
  if (state == next && !error) return;
  state = next;
  log.write(LogLevel::kInfo, "control",
            std::string(to_string(next)) + (error ? ": " + error->message : std::string()));
  events.push_back(StateChanged{next, std::move(error)});
}

void ControlClient::Impl::notice(Instant now, Error error) {
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

// ---- connecting -----------------------------------------------------------------------------------------------------

void ControlClient::Impl::start(Clock clock) {
  auto parsed = ControlUrl::parse(config.url);
  if (!parsed.ok()) return set_state(ControlState::kFailed, parsed.error());
  url = std::move(*parsed);
  if (node_key.is_zero()) make_node_key();
  set_state(ControlState::kConnecting);
  connect(clock);
}

void ControlClient::Impl::make_node_key() {
  const NodePublic previous = node_key.public_key();
  node_key = crypto::NodePrivate::generate(rng);
  fresh_key = true;
  registered = false;
  expect_registered = false;
  events.push_back(NodeKeyChanged{node_key.public_key(), previous});
}

// Opens the control connection, and beside it the key fetch when the key is not confirmed yet: the handshake starts
// as soon as both a connection and a key are there.
void ControlClient::Impl::connect(Clock clock) {
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

bool ControlClient::Impl::begin_session(Clock clock) {
  Status begun = session->begin(config.capability_version, *control_key, machine, rng);
  if (begun.ok()) return true;
  drop_session(clock, begun.error());
  return false;
}

void ControlClient::Impl::end_key_fetch() {
  if (!key_fetch) return;
  close_stream(key_fetch->id());
  key_fetch.reset();
  disarm(kKey);
}

void ControlClient::Impl::end_ping_fetch() {
  if (!ping_fetch) return;
  close_stream(ping_fetch->id());
  ping_fetch.reset();
  disarm(kPingFetch);
}

// Forgets the connection and everything that ran on it.
void ControlClient::Impl::end_session() {
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

void ControlClient::Impl::end_map_call() {
  map_call.reset();
  disarm(kMapWatchdog);
  disarm(kMapResume);
  disarm(kMapRefresh);
}

void ControlClient::Impl::end_everything() {
  end_session();
  end_key_fetch();
  end_ping_fetch();
  timers.fill(Instant::max());
}

void ControlClient::Impl::drop_session(Clock clock, const Error& why) {
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

void ControlClient::Impl::fail(Error why) {
  end_everything();
  set_state(ControlState::kFailed, std::move(why));
}

void ControlClient::Impl::handle_key(Clock clock, Result<MachinePublic> key) {
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

void ControlClient::Impl::handle_session_ready(Clock clock) {
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

// ---- what the server asks of us -------------------------------------------------------------------------------------

void ControlClient::Impl::handle_ping_request(Clock clock, const ts2021::PingRequest& ping) {
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

void ControlClient::Impl::call_back(Clock clock, std::string_view method, const std::string& path, const ByteVector& body) {
  if (c2n_calls.size() >= kC2nRunningMax || !session || !session->ready()) return;
  auto stream = session->h2().submit(method, path, {}, body);
  if (!stream.ok()) return drop_session(clock, stream.error());
  c2n_calls.insert(*stream);
}

// ---- HTTP/2 events --------------------------------------------------------------------------------------------------

void ControlClient::Impl::handle_h2_events(Clock clock) {
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

void ControlClient::Impl::handle_response(Clock clock, const H2Response& response) {
  if (register_call && register_call->stream == response.stream) register_call->take(response);
  else if (lite_call && lite_call->stream == response.stream) lite_call->take(response);
  else if (map_call && map_call->stream == response.stream) {
    map_call->take(response);
    arm(kMapWatchdog, clock.now + kMapSilenceMax);
  }
}

void ControlClient::Impl::handle_data(Clock clock, const H2Data& data) {
  if (register_call && register_call->stream == data.stream) {
    register_call->take(data, ts2021::kRegisterResponseSizeMax);
  } else if (lite_call && lite_call->stream == data.stream) {
    lite_call->take(data, kErrorTextSizeMax);
  } else if (map_call && map_call->stream == data.stream) {
    handle_map_data(clock, data);
  }
}

void ControlClient::Impl::handle_closed(Clock clock, const H2Closed& closed) {
  if (register_call && register_call->stream == closed.stream) handle_register_done(clock, closed.error_code);
  else if (map_call && map_call->stream == closed.stream) handle_map_done(clock, closed.error_code);
  else if (lite_call && lite_call->stream == closed.stream) handle_lite_done(clock, closed.error_code);
  else c2n_calls.erase(closed.stream);
}

// ---- time -----------------------------------------------------------------------------------------------------------

void ControlClient::Impl::handle_timeout(Clock clock) {
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
  if (due(kMapRefresh, now)) {
    refresh_not_before = now + kMapRefreshSpacing;
    stop_map();
    start_map(clock);
  }
  if (due(kMapRetry, now)) start_map(clock);
  if (due(kLite, now)) send_lite(clock);
  if (due(kPing, now) && session && session->ready()) {
    session->h2().ping();
    arm(kPing, now + kPingInterval);
    if (timers[kPong] == Instant::max()) arm(kPong, now + kPingTimeout);
  }
}

// ---- streams --------------------------------------------------------------------------------------------------------

void ControlClient::Impl::consume(Clock clock, StreamId id, Bytes bytes) {
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
void ControlClient::Impl::lost(Clock clock, StreamId id, const std::optional<Error>& error) {
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
  i.arm_expiry(clock);   // keys end without the server's word
  return true;
}

void ControlClient::check_membership(Clock clock) { impl_->check_membership(clock, kMembershipAskMin); }
void ControlClient::refresh_map(Clock clock) { impl_->refresh_map(clock); }

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
