#include "coordinator/coordinator.h"

#include <algorithm>

#include "base/assert.h"
#include "coordinator/limits.h"
#include "ts2021/h2.h"
#include "ts2021/json.h"
#include "ts2021/map_framing.h"
#include "ts2021/noise.h"
#include "wire/ts2021.h"

namespace porthole::coordinator {
namespace {

constexpr std::string_view kJson = "application/json";
constexpr std::string_view kText = "text/plain; charset=utf-8";

std::string_view without_query(std::string_view path) { return path.substr(0, path.find('?')); }

}  // namespace

struct Coordinator::Session {
  Endpoint remote;
  MachinePublic machine;
  std::uint16_t version = 0;
  std::optional<ts2021::RecordStream> records;  // absent: the handshake failed
  std::optional<ts2021::H2Server> h2;
  ByteVector sealed;  // ready for the socket
  std::size_t sealed_at = 0;
  ByteVector plain;   // scratch of consume()
  bool over = false;  // nothing more is read; closed once `sealed` is out
  bool ready = false; // in the ready list
  bool heard = false; // the preface is in
  bool told_void = false;  // that a node key of its machine is of no node (any more)
  std::map<std::int32_t, NodeId> maps;  // its map streams
  std::size_t open_requests = 0;
  std::string waits_for;  // pending id of its entry in waiters_, empty: none
};

// The plain and the compressed form of one message, each made when the first viewer wants it.
struct Coordinator::Message {
  std::string json;
  ByteVector plain;
  ByteVector zstd;

  explicit Message(std::string text) : json(std::move(text)) {}
  const ByteVector& framed(bool compressed) {
    ByteVector& form = compressed ? zstd : plain;
    if (form.empty()) form = ts2021::frame_map_message(json, compressed);
    return form;
  }
};

Coordinator::Coordinator(crypto::MachinePrivate noise_key, ts2021::RelayMap relays, Directory& directory, Rng& rng,
                         Log& log)
    : noise_key_(std::move(noise_key)),
      noise_public_(noise_key_.public_key()),
      relays_(std::move(relays)),
      directory_(directory),
      rng_(rng),
      log_(log),
      text_(directory),
      scratch_(kSealedAheadMax) {
  directory_.set_listener(this);
}

Coordinator::~Coordinator() { directory_.set_listener(nullptr); }

void Coordinator::start(Clock clock) {
  for (const auto& [account_id, account] : directory_.accounts())
    for (const auto& [id, member] : account.members) {
      arm_expiry(clock, *member);
      // Nobody is connected yet: ephemeral nodes get their time to come back.
      if (member->record.ephemeral) set_timer(TimerKind::kEphemeral, id, clock.now + kEphemeralTimeout);
    }
}

void Coordinator::set_relays(Clock clock, ts2021::RelayMap relays) {
  if (relays == relays_) return;
  relays_ = std::move(relays);
  Message message(MapText::relay_map(clock, relays_));
  std::vector<NodeId> viewers;
  for (const auto& [id, stream] : streams_) viewers.push_back(id);
  std::sort(viewers.begin(), viewers.end());
  for (NodeId id : viewers)
    if (auto it = streams_.find(id); it != streams_.end()) send(clock, id, it->second, message);
}

// ---- timers ----------------------------------------------------------------------------------------------------------

void Coordinator::set_timer(TimerKind kind, std::int64_t id, Instant at) {
  cancel_timer(kind, id);
  timers_.insert({at, kind, id});
  armed_[{kind, id}] = at;
}

void Coordinator::cancel_timer(TimerKind kind, std::int64_t id) {
  auto it = armed_.find({kind, id});
  if (it == armed_.end()) return;
  timers_.erase({it->second, kind, id});
  armed_.erase(it);
}

Deadline Coordinator::next_timeout() const {
  return timers_.empty() ? Deadline::never() : Deadline::at(timers_.begin()->at);
}

void Coordinator::handle_timeout(Clock clock) {
  // What fires now may set new timers; those that are due again wait for the next call, so that this loop ends.
  std::vector<Timer> due;
  for (const Timer& t : timers_) {
    if (t.at > clock.now) break;
    due.push_back(t);
  }
  for (const Timer& t : due) {
    auto it = armed_.find({t.kind, t.id});
    if (it == armed_.end() || it->second != t.at) continue;
    cancel_timer(t.kind, t.id);
    fire(clock, t);
  }
}

void Coordinator::fire(Clock clock, const Timer& timer) {
  switch (timer.kind) {
    case TimerKind::kFlush: flush(clock, timer.id); break;
    case TimerKind::kKeepAlive: {
      auto it = streams_.find(timer.id);
      if (it == streams_.end()) break;
      Stream& stream = it->second;
      Instant due = stream.last_message + stream.keep_alive_after;
      if (due > clock.now) {
        set_timer(TimerKind::kKeepAlive, timer.id, due);
        break;
      }
      Message message(MapText::keep_alive());
      ++counters_.keep_alives;
      stream.keep_alive_after = rng_.between(kKeepAliveMin, kKeepAliveMax);
      if (send(clock, timer.id, stream, message))
        set_timer(TimerKind::kKeepAlive, timer.id, clock.now + stream.keep_alive_after);
      break;
    }
    case TimerKind::kOffline:
      if (Member* m = directory_.find(timer.id); m && !streams_.contains(timer.id)) {
        directory_.set_connected(clock, *m, false);
        arm_save(clock);
      }
      break;
    case TimerKind::kEphemeral:
      if (Member* m = directory_.find(timer.id); m && m->record.ephemeral && !streams_.contains(timer.id)) {
        if (!directory_.remove(clock, timer.id)) set_timer(TimerKind::kEphemeral, timer.id, clock.now + kPersistRetry);
      }
      break;
    case TimerKind::kExpiry:
      if (Member* m = directory_.find(timer.id)) {
        if (m->expired(clock.wall)) directory_.expiry_reached(clock, *m);
        else arm_expiry(clock, *m);
        arm_save(clock);
      }
      break;
    case TimerKind::kReveal:
      if (Member* m = directory_.find(timer.id); m && m->held_back) {
        m->held_back = false;
        node_changed(clock, *m, kNodeChanged);
      }
      break;
    case TimerKind::kSession: {
      auto id = static_cast<SessionId>(timer.id);
      Session* s = find(id);
      if (s && !s->over && (!s->heard || s->open_requests == 0)) fail_session(clock, id);
      break;
    }
    case TimerKind::kSave:
      if (!directory_.save()) set_timer(TimerKind::kSave, 0, clock.now + kPersistRetry);
      break;
    case TimerKind::kPendingLogins:
      directory_.expire_pending(clock);
      arm_pending_logins(clock);
      break;
  }
}

void Coordinator::arm_expiry(Clock clock, const Member& member) {
  const auto& expiry = member.record.key_expiry;
  if (!expiry || *expiry <= clock.wall) return;
  set_timer(TimerKind::kExpiry, member.record.id, clock.now + std::min<Duration>(*expiry - clock.wall, kExpiryRecheck));
}

void Coordinator::arm_save(Clock clock) {
  if (directory_.has_unsaved() && !armed_.contains({TimerKind::kSave, 0}))
    set_timer(TimerKind::kSave, 0, clock.now + kPersistDelay);
}

void Coordinator::arm_pending_logins(Clock clock) {
  if (auto at = directory_.next_pending_expiry())
    set_timer(TimerKind::kPendingLogins, 0, clock.now + std::max<Duration>(*at - clock.wall, 1s));
}

// ---- sessions --------------------------------------------------------------------------------------------------------

Coordinator::Session* Coordinator::find(SessionId id) const {
  auto it = sessions_.find(id);
  return it == sessions_.end() ? nullptr : it->second.get();
}

void Coordinator::mark_ready(SessionId id) {
  Session* s = find(id);
  if (!s || s->ready) return;
  s->ready = true;
  ready_.push_back(id);
}

std::optional<SessionId> Coordinator::next_ready() {
  while (ready_at_ < ready_.size()) {
    SessionId id = ready_[ready_at_++];
    if (Session* s = find(id)) {
      s->ready = false;
      return id;
    }
  }
  ready_.clear();
  ready_at_ = 0;
  return std::nullopt;
}

SessionId Coordinator::on_upgrade(Clock clock, const Endpoint& remote, Bytes initiation) {
  SessionId id = next_session_++;
  auto owned = std::make_unique<Session>();
  Session& s = *owned;
  s.remote = remote;
  sessions_[id] = std::move(owned);

  if (sessions_.size() > kSessionsMax) {
    ++counters_.sessions_refused;
    s.over = true;
  } else if (auto fault = wire::check_ts2021_initiation(initiation)) {
    ++counters_.handshakes_failed;
    s.over = true;
    switch (*fault) {
      case wire::Ts2021InitiationFault::kSize: s.sealed = ts2021::encode_noise_error("wrong handshake initiation size"); break;
      case wire::Ts2021InitiationFault::kType: s.sealed = ts2021::encode_noise_error("unexpected handshake message type"); break;
      case wire::Ts2021InitiationFault::kLength: s.sealed = ts2021::encode_noise_error("wrong handshake initiation length"); break;
    }
  } else if (auto response = ts2021::respond_noise(initiation, noise_key_, rng_);
             !response || response->session.version < kClientVersionMin) {
    // Closed without a word: the client tells "wrong key or version" from that (section 3.4).
    ++counters_.handshakes_failed;
    s.over = true;
  } else {
    ++counters_.sessions;
    s.machine = response->session.peer;
    s.version = response->session.version;
    s.sealed = to_vector(response->response);
    s.records.emplace(std::move(response->session.records));
    s.h2.emplace();
    set_timer(TimerKind::kSession, static_cast<std::int64_t>(id), clock.now + kPrefaceTimeout);
  }
  mark_ready(id);
  return id;
}

void Coordinator::consume(Clock clock, SessionId id, Bytes bytes) {
  Session* s = find(id);
  if (!s || s->over) return;
  s->plain.clear();
  if (!s->records->open(bytes, s->plain) || !s->h2->consume(s->plain)) {
    ++counters_.protocol_errors;
    fail_session(clock, id);
    return;
  }
  if (!s->plain.empty()) s->heard = true;
  while (auto event = s->h2->poll_event()) {
    if (auto* request = std::get_if<ts2021::H2Request>(&*event)) {
      ++counters_.requests;
      ++s->open_requests;
      handle_request(clock, id, request->stream, request->method, request->path, request->body);
      crypto::wipe(request->body);  // may hold a pre-auth key
    } else if (auto* ended = std::get_if<ts2021::H2StreamEnded>(&*event)) {
      if (s->open_requests > 0) --s->open_requests;
      if (auto it = s->maps.find(ended->stream); it != s->maps.end()) {
        NodeId node = it->second;
        s->maps.erase(it);
        auto stream = streams_.find(node);
        if (stream != streams_.end() && stream->second.session == id && stream->second.h2_stream == ended->stream)
          drop_stream(clock, node, true);
      }
      if (auto it = waiters_.find({s->waits_for, id}); it != waiters_.end() && it->second.h2_stream == ended->stream)
        stop_waiting(id);
    }
    s = find(id);
    if (!s || s->over) return;
  }
  if (s->open_requests == 0)
    set_timer(TimerKind::kSession, static_cast<std::int64_t>(id),
              clock.now + (s->heard ? kIdleSessionTimeout : kPrefaceTimeout));
  else if (s->heard) cancel_timer(TimerKind::kSession, static_cast<std::int64_t>(id));
  if (has_output(id)) mark_ready(id);
}

std::size_t Coordinator::produce(Clock, SessionId id, MutBytes out) {
  Session* s = find(id);
  if (!s) return 0;
  std::size_t written = 0;
  while (written < out.size()) {
    if (s->sealed_at == s->sealed.size()) {
      s->sealed.clear();
      s->sealed_at = 0;
      if (s->over || !s->h2) break;
      std::size_t n = s->h2->produce(scratch_);
      if (n == 0) break;
      if (!s->records->seal(Bytes(scratch_).first(n), s->sealed)) {
        s->over = true;  // its counter ran out
        break;
      }
    }
    std::size_t n = std::min(out.size() - written, s->sealed.size() - s->sealed_at);
    std::copy_n(s->sealed.begin() + static_cast<std::ptrdiff_t>(s->sealed_at), n,
                out.begin() + static_cast<std::ptrdiff_t>(written));
    s->sealed_at += n;
    written += n;
  }
  if (s->sealed_at == s->sealed.size() && s->sealed.capacity() > 0) {
    s->sealed = ByteVector();  // idle sessions keep no buffer
    s->sealed_at = 0;
  }
  return written;
}

bool Coordinator::has_output(SessionId id) const {
  const Session* s = find(id);
  if (!s) return false;
  return s->sealed_at < s->sealed.size() || (!s->over && s->h2 && s->h2->has_output());
}

bool Coordinator::is_over(SessionId id) const {
  const Session* s = find(id);
  return !s || s->over;
}

void Coordinator::fail_session(Clock clock, SessionId id) {
  Session* s = find(id);
  if (!s || s->over) return;
  s->over = true;
  auto maps = std::move(s->maps);
  s->maps.clear();
  for (const auto& [h2_stream, node] : maps) {
    auto stream = streams_.find(node);
    if (stream != streams_.end() && stream->second.session == id && stream->second.h2_stream == h2_stream)
      drop_stream(clock, node, true);
  }
  stop_waiting(id);
  cancel_timer(TimerKind::kSession, static_cast<std::int64_t>(id));
  s->h2.reset();
  mark_ready(id);
}

void Coordinator::close(Clock clock, SessionId id) {
  fail_session(clock, id);
  sessions_.erase(id);
}

// ---- requests --------------------------------------------------------------------------------------------------------

void Coordinator::answer(SessionId id, std::int32_t stream, int status, std::string_view content_type,
                         std::string_view body) {
  Session* s = find(id);
  if (!s || s->over) return;
  if (status >= 400) ++counters_.requests_refused;
  s->h2->respond(stream, status, {{"content-type", std::string(content_type)}}, as_bytes(body));
  mark_ready(id);
}

void Coordinator::handle_request(Clock clock, SessionId id, std::int32_t stream, std::string_view method,
                                 std::string_view path, Bytes body) {
  path = without_query(path);
  if (path == ts2021::kRegisterPath || path == ts2021::kMapPath) {
    if (method != "POST") return answer(id, stream, 405, kText, "method not allowed\n");
    return path == ts2021::kMapPath ? handle_map(clock, id, stream, body) : handle_register(clock, id, stream, body);
  }
  // Calls that clients may make and that nothing here depends on (section 8.2).
  if (path == "/machine/update-health") return answer(id, stream, 204, kText, "");
  if (path == "/machine/set-dns" || path == "/machine/id-token" || path == "/machine/set-device-attr" ||
      path == "/machine/audit-log" || path == "/machine/feature/query" || path == "/machine/whoami" ||
      path == "/machine/c2n")
    return answer(id, stream, 501, kText, "not implemented\n");
  answer(id, stream, 404, kText, "404 page not found\n");
}

void Coordinator::answer_register(SessionId id, std::int32_t stream, const RegisterOutcome& outcome) {
  if (outcome.status != 200) return answer(id, stream, outcome.status, kText, outcome.text);
  answer(id, stream, 200, kJson, ts2021::encode_register_response(outcome.response));
}

void Coordinator::handle_register(Clock clock, SessionId id, std::int32_t stream, Bytes body) {
  Session& s = *find(id);
  if (body.size() > kRegisterSizeMax) return answer(id, stream, 413, kText, "the registration is too large\n");
  auto request = ts2021::parse_register_request(body);
  if (!request) return answer(id, stream, 400, kText, request.error().message + "\n");
  RegisterOutcome outcome = directory_.register_node(clock, s.machine, *request);
  arm_save(clock);
  arm_pending_logins(clock);
  if (outcome.wait_for.empty()) return answer_register(id, stream, outcome);
  wait_for_login(id, outcome.wait_for, {stream, needed_later(*request)});
}

void Coordinator::wait_for_login(SessionId id, const std::string& pending_id, Waiter waiter) {
  Session& s = *find(id);
  if (!s.waits_for.empty())
    return answer(id, waiter.h2_stream, 429, kText, "this connection waits for a login already\n");
  auto first = waiters_.lower_bound({pending_id, 0}), last = waiters_.upper_bound({pending_id, ~SessionId(0)});
  if (static_cast<std::size_t>(std::distance(first, last)) >= kWaitersPerLoginMax) {
    // Session ids grow: the oldest is the one that is most likely dead.
    SessionId oldest = first->first.second;
    answer(oldest, first->second.h2_stream, 429, kText, "newer connections wait for this login\n");
    stop_waiting(oldest);
  }
  s.waits_for = pending_id;
  waiters_.emplace(std::pair(pending_id, id), std::move(waiter));
}

void Coordinator::stop_waiting(SessionId id) {
  Session* s = find(id);
  if (s->waits_for.empty()) return;
  waiters_.erase({s->waits_for, id});
  s->waits_for.clear();
}

void Coordinator::handle_map(Clock clock, SessionId id, std::int32_t stream, Bytes body) {
  Session& s = *find(id);
  auto request = ts2021::parse_map_request(body);
  if (!request) return answer(id, stream, 400, kText, request.error().message + "\n");
  if (request->version < kClientVersionMin)
    return answer(id, stream, 400, kText, "unsupported client version:  (" + std::to_string(request->version) + ")\n");
  Member* member = directory_.find_by_node_key(request->node_key);
  if (!member) return answer_unknown(clock, id, stream, *request);
  if (member->record.machine != s.machine)
    return answer(id, stream, 404, kText,
                  "node key in request does not match the one associated with this machine key\n");
  if ((request->stream || !request->omit_peers) && s.h2->queued() > kAnswersQueuedMax)
    return answer(id, stream, 429, kText, "answers of this connection have not been read yet\n");
  bool zstd = request->compress == "zstd";
  if (request->stream) {
    directory_.adopt_disco_key(clock, *member, request->disco_key, request->version);
    open_stream(clock, id, stream, *member, zstd);
  } else {
    directory_.update(clock, *member, *request);
    if (request->omit_peers) {
      answer(id, stream, 200, kJson, "");
    } else {  // one-shot: the whole map, then the end
      Message message(text_.full(clock, *member, relays_));
      answer(id, stream, 200, kJson, as_text(message.framed(zstd)));
    }
  }
  arm_save(clock);
}

// A node that was removed while it was away, or whose stream broke before it was told. Go clients take a 404 for a
// passing fault and go on as if they were connected; a map in which their own key has expired makes them ask for a
// login. Once in a session: each map makes them come back at once, each refusal ever later.
void Coordinator::answer_unknown(Clock clock, SessionId id, std::int32_t stream, const ts2021::MapRequest& request) {
  Session& s = *find(id);
  if (!request.stream || s.told_void) return answer(id, stream, 404, kText, "node not found\n");
  s.told_void = true;
  Message message(MapText::unknown(clock, request.node_key, s.machine, relays_));
  answer(id, stream, 200, kJson, as_text(message.framed(request.compress == "zstd")));
}

// ---- map streams -----------------------------------------------------------------------------------------------------

void Coordinator::open_stream(Clock clock, SessionId id, std::int32_t h2_stream, Member& member, bool zstd) {
  NodeId node = member.record.id;
  if (streams_.contains(node)) drop_stream(clock, node, false);
  cancel_timer(TimerKind::kOffline, node);
  cancel_timer(TimerKind::kEphemeral, node);

  // What the account waits to tell is in the full map already, and a delta that comes later is newer than it.
  Message message(text_.full(clock, member, relays_));
  const ByteVector& frame = message.framed(zstd);
  Session& s = *find(id);
  if (!s.h2->respond_streaming(h2_stream, 200, {{"content-type", std::string(kJson)}}) ||
      !s.h2->send_data(h2_stream, frame))
    return;
  ++counters_.full_maps;
  s.maps[h2_stream] = node;
  Stream stream;
  stream.session = id;
  stream.h2_stream = h2_stream;
  stream.zstd = zstd;
  stream.backlog_max = frame.size() + kStreamBacklogMax;
  stream.last_message = clock.now;
  stream.keep_alive_after = rng_.between(kKeepAliveMin, kKeepAliveMax);
  set_timer(TimerKind::kKeepAlive, node, clock.now + stream.keep_alive_after);
  streams_[node] = stream;
  mark_ready(id);
  directory_.set_connected(clock, member, true);
}

void Coordinator::drop_stream(Clock clock, NodeId node, bool ended_by_client) {
  auto it = streams_.find(node);
  if (it == streams_.end()) return;
  Stream stream = it->second;
  streams_.erase(it);
  cancel_timer(TimerKind::kKeepAlive, node);
  if (Session* s = find(stream.session); s && !s->over && !ended_by_client) {
    s->maps.erase(stream.h2_stream);
    s->h2->end(stream.h2_stream);
    mark_ready(stream.session);
  }
  if (Member* member = directory_.find(node)) {
    set_timer(TimerKind::kOffline, node, clock.now + kOfflineGrace);
    if (member->record.ephemeral) set_timer(TimerKind::kEphemeral, node, clock.now + kEphemeralTimeout);
  }
}

bool Coordinator::send(Clock clock, NodeId node, Stream& stream, Message& message) {
  Session* s = find(stream.session);
  PORTHOLE_ASSERT(s != nullptr && s->h2.has_value());
  const ByteVector& frame = message.framed(stream.zstd);
  bool fits = s->h2->queued(stream.h2_stream) + frame.size() <= stream.backlog_max;
  if (fits && s->h2->send_data(stream.h2_stream, frame)) {
    stream.last_message = clock.now;
    mark_ready(stream.session);
    return true;
  }
  ++counters_.slow_readers;
  log_.write(LogLevel::kInfo, "coordinator", "node " + std::to_string(node) + " does not read its map stream; it was reset");
  s->maps.erase(stream.h2_stream);
  s->h2->reset(stream.h2_stream, ts2021::kH2EnhanceYourCalm);
  mark_ready(stream.session);
  drop_stream(clock, node, true);
  return false;
}

// ---- distribution ----------------------------------------------------------------------------------------------------

void Coordinator::note_change(Clock clock, AccountId account) {
  Pending& p = pending_[account];
  if (p.scheduled) return;
  p.scheduled = true;
  bool recent = p.last_flush != Instant() && clock.now - p.last_flush < kFlushSpacing;
  set_timer(TimerKind::kFlush, account, recent ? p.last_flush + kFlushSpacing : clock.now);
}

void Coordinator::node_added(Clock clock, Member& member) {
  arm_expiry(clock, member);
  // Until its first poll an ephemeral node counts as gone silent.
  if (member.record.ephemeral) set_timer(TimerKind::kEphemeral, member.record.id, clock.now + kEphemeralTimeout);
  if (member.record.home_relay == 0) {
    // Whoever dialled it now would send into the void, and try again after WireGuard's 5 s.
    member.held_back = true;
    set_timer(TimerKind::kReveal, member.record.id, clock.now + kHoldBack);
    return;
  }
  pending_[member.record.account].changes[member.record.id] |= kNodeChanged;
  note_change(clock, member.record.account);
}

void Coordinator::node_changed(Clock clock, Member& member, NodeChanges changes) {
  if (changes & kNodeChanged) arm_expiry(clock, member);
  if (member.held_back && member.record.home_relay != 0) {
    cancel_timer(TimerKind::kReveal, member.record.id);
    member.held_back = false;
    changes |= kNodeChanged;
  }
  if (member.held_back) changes &= kSelfChanged;
  if (changes == 0) return;
  pending_[member.record.account].changes[member.record.id] |= changes;
  note_change(clock, member.record.account);
}

void Coordinator::node_removed(Clock clock, const NodeRecord& record) {
  if (auto it = streams_.find(record.id); it != streams_.end()) {
    Message message(text_.removed(clock, record));
    SessionId session = it->second.session;
    if (send(clock, record.id, it->second, message)) find(session)->told_void = true;
  }
  drop_stream(clock, record.id, false);
  for (TimerKind kind : {TimerKind::kOffline, TimerKind::kEphemeral, TimerKind::kExpiry, TimerKind::kReveal}) cancel_timer(kind, record.id);
  Pending& p = pending_[record.account];
  p.changes.erase(record.id);
  p.removed.push_back(record.id);
  note_change(clock, record.account);
}

void Coordinator::node_key_retired(const NodePublic& key) { events_.push_back(NodeKeyRetired{key}); }

void Coordinator::pending_decided(Clock clock, const std::string& pending_id) {
  std::vector<std::pair<SessionId, Waiter>> decided;
  for (auto it = waiters_.lower_bound({pending_id, 0}); it != waiters_.end() && it->first.first == pending_id;) {
    find(it->first.second)->waits_for.clear();
    decided.emplace_back(it->first.second, std::move(it->second));
    it = waiters_.erase(it);
  }
  for (const auto& [id, w] : decided) {
    Session* s = find(id);
    if (!s || s->over) continue;
    answer_register(id, w.h2_stream, directory_.decided(clock, s->machine, w.request));
  }
}

void Coordinator::flush(Clock clock, AccountId account_id) {
  Pending& p = pending_[account_id];
  p.scheduled = false;
  p.last_flush = clock.now;
  auto changes = std::move(p.changes);
  auto removed = std::move(p.removed);
  p.changes.clear();
  p.removed.clear();
  auto account = directory_.accounts().find(account_id);
  if (account == directory_.accounts().end()) return;

  auto delta_without = [&](NodeId left_out) {
    MapText::Delta delta;
    for (const auto& [id, what] : changes) {
      Member* member = directory_.find(id);
      if (!member || id == left_out) continue;
      if (what & kNodeChanged) delta.changed.push_back(member);
      else if (NodeChanges patch = what & ~kSelfChanged) delta.patches.push_back(patch_of(*member, patch));
    }
    delta.removed = removed;
    return delta;
  };

  std::optional<Message> common;  // for the viewers that did not change themselves
  for (const auto& [id, member] : account->second.members) {
    auto stream = streams_.find(id);
    if (stream == streams_.end()) continue;
    auto own = changes.find(id);
    if (own == changes.end()) {
      if (!common) {
        auto delta = delta_without(0);
        if (delta.empty()) continue;
        common.emplace(text_.delta(clock, delta, nullptr));
      }
      if (send(clock, id, stream->second, *common)) ++counters_.deltas;
      continue;
    }
    auto delta = delta_without(id);
    Member* self = own->second & kSelfChanged ? member : nullptr;
    if (delta.empty() && !self) continue;
    Message message(text_.delta(clock, delta, self));
    if (send(clock, id, stream->second, message)) ++counters_.deltas;
  }
}

std::optional<CoordinatorEvent> Coordinator::poll_event() {
  if (events_.empty()) return std::nullopt;
  CoordinatorEvent event = events_.front();
  events_.pop_front();
  return event;
}

bool Coordinator::admits(WallTime wall, const NodePublic& key) {
  Member* member = directory_.find_by_node_key(key);
  return member && !member->expired(wall);
}

}  // namespace porthole::coordinator
