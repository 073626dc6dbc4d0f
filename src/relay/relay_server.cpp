#include "relay/relay_server.h"

#include <algorithm>

#include "base/out_bytes.h"
#include "base/record_queue.h"
#include "relay/login.h"

namespace porthole::relay {

namespace frames = wire::derp;
using frames::FrameHeader;
using frames::FrameType;

struct RelayServer::Connection {
  ConnId id = 0;
  Endpoint remote;
  Peer* peer = nullptr;       // set by the login
  Instant login_deadline;
  Instant next_keepalive;
  Duration keepalive_period{};
  Instant logged_in_at;
  std::optional<Instant> timer;

  // Input: a frame that a read cut in two, or the rest of one that is of no interest.
  ByteVector partial;
  std::size_t skip = 0;

  // Output.
  OutBytes out;               // everything but packets, and the rest of a packet frame that did not fit
  RecordQueue data{kDataQueuePacketsMax, kDataQueueBytesMax};
  RecordQueue disco{kDiscoQueuePacketsMax, kDiscoQueueBytesMax};
  bool disco_turn = true;
  bool in_ready = false;
  std::optional<Instant> waiting_since;

  // Sending side: where the last packet went, valid while no peer has left since.
  NodePublic last_destination;
  Peer* last_destination_peer = nullptr;
  std::uint64_t last_destination_at = 0;  // value of peers_left_ then
  int gone_tokens = kPeerGoneBurst;
  Instant gone_filled;
  bool home = false;
  bool home_known = false;

  // Receiving side: serials of the peers whose leaving must be told.
  std::set<std::uint64_t> heard;
  std::uint64_t last_heard = 0;

  bool has_output() const { return !out.empty() || !data.empty() || !disco.empty(); }
  bool room_for_hint() const { return out.size() < kControlBytesMax; }
  bool take_gone_token(Instant now) {
    while (gone_tokens < kPeerGoneBurst && now - gone_filled >= kPeerGoneInterval) {
      ++gone_tokens;
      gone_filled = gone_filled + kPeerGoneInterval;
    }
    if (gone_tokens == kPeerGoneBurst) gone_filled = now;
    if (gone_tokens == 0) return false;
    --gone_tokens;
    return true;
  }
};

// One key and its connections, the most recent sender last: that one gets the packets.
struct RelayServer::Peer {
  NodePublic key;
  std::uint64_t serial = 0;
  std::vector<Connection*> connections;
  std::set<ConnId> listeners;  // connections that received from it

  Connection& active() { return *connections.back(); }
};

RelayServer::RelayServer(const crypto::NodePrivate& key, Admission& admission, Rng& rng, Log& log)
    : key_(key.duplicate()),
      public_key_(key.public_key()),
      admission_(admission),
      rng_(rng),
      log_(log),
      peers_(16, KeyHash{crypto::SipKey::generate(rng)}) {
  PORTHOLE_ASSERT(!key_.is_zero());
}
RelayServer::~RelayServer() = default;

RelayServer::Connection* RelayServer::find(ConnId id) const {
  auto it = connections_.find(id);
  return it == connections_.end() ? nullptr : it->second.get();
}

// ---- life of a connection ---------------------------------------------------------------------------------------

ConnId RelayServer::on_connect(Instant now, const Endpoint& remote) {
  ++counters_.accepts;
  bool counted = !remote.address.is_loopback();
  auto same_address = counted ? per_address_.find(remote.address) : per_address_.end();
  if (connections_.size() >= kConnectionsMax || logging_in_ >= kLoginsPendingMax ||
      (same_address != per_address_.end() && same_address->second >= kConnectionsPerAddressMax)) {
    ++counters_.refused_limit;
    return 0;
  }
  if (counted) ++per_address_[remote.address];
  auto connection = std::make_unique<Connection>();
  Connection& c = *connection;
  c.id = next_id_++;
  c.remote = remote;
  c.login_deadline = now + kLoginTime;
  connections_.emplace(c.id, std::move(connection));
  ++logging_in_;
  if (next_recheck_ == Instant::max()) next_recheck_ = now + kRecheckPeriod;
  frames::encode_server_key(c.out.end(), public_key_);
  set_timer(c, c.login_deadline);
  output_added(now, c);
  return c.id;
}

void RelayServer::on_close(Instant now, ConnId id) {
  if (Connection* c = find(id)) drop(now, *c, {}, false);
}

void RelayServer::drop(Instant now, Connection& c, const Error& why, bool tell_app) {
  if (c.peer) leave(now, c);
  else --logging_in_;
  counters_.dropped_gone += c.data.count() + c.disco.count();
  if (c.timer) timers_.erase({*c.timer, c.id});
  if (c.in_ready) std::erase(ready_, c.id);
  if (auto it = per_address_.find(c.remote.address); it != per_address_.end() && --it->second == 0) per_address_.erase(it);
  if (tell_app) {
    log_.write(LogLevel::kDebug, "relay", "connection from " + c.remote.to_string() + " closed: " + why.message);
    closed_.push_back({c.id, why});
  }
  connections_.erase(c.id);
}

// Takes the connection out of its key, and the key out of the relay with its last connection.
void RelayServer::leave(Instant now, Connection& c) {
  for (std::uint64_t serial : c.heard)
    if (auto it = peers_by_serial_.find(serial); it != peers_by_serial_.end()) it->second->listeners.erase(c.id);
  Peer& peer = *c.peer;
  std::erase(peer.connections, &c);
  if (!peer.connections.empty()) return;
  for (ConnId listener : peer.listeners) {
    Connection* l = find(listener);
    if (!l || l == &c) continue;
    l->heard.erase(peer.serial);
    if (l->last_heard == peer.serial) l->last_heard = 0;
    if (!l->room_for_hint()) {
      ++counters_.dropped_hints;
      continue;
    }
    ++counters_.peer_gone_disconnected;
    frames::encode_peer_gone(l->out.end(), peer.key, frames::GoneReason::kDisconnected);
    output_added(now, *l);
  }
  ++peers_left_;
  peers_by_serial_.erase(peer.serial);
  NodePublic key = peer.key;
  peers_.erase(key);
}

void RelayServer::recheck(Instant now) {
  next_recheck_ = now + kRecheckPeriod;
  std::vector<ConnId> unwelcome;
  for (const auto& [serial, peer] : peers_by_serial_)
    for (Connection* c : peer->connections)
      if (!admission_.admit(peer->key, c->remote)) unwelcome.push_back(c->id);
  for (ConnId id : unwelcome) {
    ++counters_.revoked;
    drop(now, *find(id), {ErrorCode::kUnauthorized, "the node may no longer use this relay"}, true);
  }
}

void RelayServer::announce_restart(Instant now, Duration reconnect_in, Duration try_for) {
  auto ms = [](Duration d) { return static_cast<std::uint32_t>(std::clamp<std::int64_t>(d / 1ms, 0, 0xffffffff)); };
  for (const auto& [serial, peer] : peers_by_serial_)
    for (Connection* c : peer->connections) {
      frames::encode_restarting(c->out.end(), {ms(reconnect_in), ms(try_for)});
      output_added(now, *c);
    }
}

// ---- input ------------------------------------------------------------------------------------------------------

void RelayServer::consume(Instant now, ConnId id, MutBytes bytes) {
  Connection* c = find(id);
  if (!c) return;
  if (std::optional<Error> why = handle_bytes(now, *c, bytes)) drop(now, *c, *why, true);
}

std::optional<Error> RelayServer::judge_header(const Connection& c, const FrameHeader& header) const {
  bool fine = c.peer ? frames::server_accepts(header)
                     : header.is(FrameType::kClientInfo) && header.size >= frames::kClientInfoSizeMin && header.size <= kClientInfoKeptMax;
  if (fine) return std::nullopt;
  return Error{ErrorCode::kProtocol, c.peer ? "a frame that breaks the protocol (type " + std::to_string(header.type) + ", " + std::to_string(header.size) + " bytes)"
                                            : "no login where one was due"};
}

namespace {
bool is_of_interest(const FrameHeader& header) {
  switch (static_cast<FrameType>(header.type)) {
    case FrameType::kClientInfo:
    case FrameType::kSendPacket:
    case FrameType::kNotePreferred:
    case FrameType::kPing: return true;
    default: return false;
  }
}
}  // namespace

std::optional<Error> RelayServer::handle_bytes(Instant now, Connection& c, MutBytes in) {
  while (!in.empty()) {
    if (c.skip > 0) {
      std::size_t n = std::min(c.skip, in.size());
      c.skip -= n;
      in = in.subspan(n);
      continue;
    }
    bool split = !c.partial.empty();
    if (split && c.partial.size() < frames::kHeaderSize) {
      std::size_t n = std::min(frames::kHeaderSize - c.partial.size(), in.size());
      append(c.partial, in.first(n));
      in = in.subspan(n);
    } else if (!split && in.size() < frames::kHeaderSize) {
      c.partial.assign(in.begin(), in.end());
      return std::nullopt;
    }
    if (split && c.partial.size() < frames::kHeaderSize) return std::nullopt;
    // The header is judged again with every slice of a split frame, which costs nothing and keeps one path.
    FrameHeader header = frames::load_frame_header(split ? c.partial.data() : in.data());
    if (auto why = judge_header(c, header)) {
      ++counters_.protocol_errors;
      return why;
    }
    std::size_t whole = frames::kHeaderSize + header.size;
    if (!is_of_interest(header) || (c.peer && header.is(FrameType::kClientInfo))) {
      ++counters_.frames_unknown;
      c.skip = split ? header.size : whole;
      c.partial.clear();
      continue;
    }
    MutBytes payload;
    if (split) {
      std::size_t n = std::min(whole - c.partial.size(), in.size());
      append(c.partial, in.first(n));
      in = in.subspan(n);
      if (c.partial.size() < whole) return std::nullopt;
      payload = MutBytes(c.partial).subspan(frames::kHeaderSize);
    } else {
      if (in.size() < whole) {
        c.partial.assign(in.begin(), in.end());
        return std::nullopt;
      }
      payload = in.subspan(frames::kHeaderSize, header.size);
      in = in.subspan(whole);
    }
    if (auto why = handle_frame(now, c, header, payload)) return why;
    if (split) {
      c.partial.clear();
      if (c.partial.capacity() > kReassemblyKeep && in.empty()) ByteVector().swap(c.partial);
    }
  }
  return std::nullopt;
}

std::optional<Error> RelayServer::handle_frame(Instant now, Connection& c, const FrameHeader& header, MutBytes payload) {
  if (!c.peer) return handle_login(now, c, payload);
  // Any frame makes its connection the one that gets the key's packets.
  std::vector<Connection*>& members = c.peer->connections;
  if (members.size() > 1 && members.back() != &c) {
    std::erase(members, &c);
    members.push_back(&c);
  }
  switch (static_cast<FrameType>(header.type)) {
    case FrameType::kSendPacket: handle_send(now, c, payload); break;
    case FrameType::kPing: {
      ++counters_.pings;
      if (c.room_for_hint()) {
        frames::encode_pong(c.out.end(), *frames::parse_ping(payload));
        output_added(now, c);
      } else {
        ++counters_.dropped_hints;
      }
      break;
    }
    case FrameType::kNotePreferred: {
      bool home = payload[0] != 0;
      // A change within the first seconds is the login saying where it stands, a later one a move.
      if (c.home_known && home != c.home && now - c.logged_in_at > 5s) ++counters_.home_moves;
      c.home = home;
      c.home_known = true;
      break;
    }
    default: break;
  }
  return std::nullopt;
}

std::optional<Error> RelayServer::handle_login(Instant now, Connection& c, MutBytes payload) {
  std::optional<crypto::BoxKey> box;
  Result<ClientLogin> login = open_client_info(payload, key_, box);
  if (!login) {
    ++counters_.logins_failed;
    return login.error();
  }
  if (!admission_.admit(login->key, c.remote)) {
    ++counters_.logins_not_admitted;
    return Error{ErrorCode::kUnauthorized, "the node " + login->key.short_string() + " may not use this relay"};
  }
  auto it = peers_.find(login->key);
  if (it != peers_.end() && it->second->connections.size() >= kConnectionsPerKeyMax) {
    ++counters_.refused_limit;
    return Error{ErrorCode::kLimit, "the node " + login->key.short_string() + " has too many connections already"};
  }
  if (it == peers_.end()) {
    it = peers_.emplace(login->key, std::make_unique<Peer>()).first;
    it->second->key = login->key;
    it->second->serial = next_peer_serial_++;
    peers_by_serial_.emplace(it->second->serial, it->second.get());
  } else {
    ++counters_.duplicate_logins;
  }
  ++counters_.logins;
  --logging_in_;
  c.peer = it->second.get();
  c.peer->connections.push_back(&c);
  c.logged_in_at = now;
  c.gone_filled = now;
  c.keepalive_period = kKeepAlivePeriod + rng_.between(Duration(0), kKeepAliveSpread);
  c.next_keepalive = now + c.keepalive_period;
  std::uint8_t nonce[frames::kNonceSize];
  rng_.fill(nonce);
  encode_server_info(c.out.end(), *box, nonce);
  output_added(now, c);
  return std::nullopt;
}

void RelayServer::handle_send(Instant now, Connection& c, MutBytes payload) {
  frames::Packet packet = *frames::parse_packet(payload);
  ++counters_.packets_in;
  counters_.bytes_in += packet.data.size();
  bool disco = frames::looks_like_disco(packet.data);
  if (disco) ++counters_.disco_in;
  if (!c.last_destination_peer || c.last_destination_at != peers_left_ || !(c.last_destination == packet.key)) {
    auto it = peers_.find(packet.key);
    if (it == peers_.end()) {
      ++counters_.dropped_unknown_destination;
      if (disco && c.room_for_hint() && c.take_gone_token(now)) {
        ++counters_.peer_gone_not_here;
        frames::encode_peer_gone(c.out.end(), packet.key, frames::GoneReason::kNotHere);
        output_added(now, c);
      }
      return;
    }
    c.last_destination = packet.key;
    c.last_destination_peer = it->second.get();
    c.last_destination_at = peers_left_;
  }
  deliver(now, c.last_destination_peer->active(), *c.peer, packet.data, disco);
}

void RelayServer::deliver(Instant now, Connection& to, Peer& from, MutBytes packet, bool disco) {
  if (to.last_heard != from.serial) {
    to.last_heard = from.serial;
    if (to.heard.insert(from.serial).second) {
      from.listeners.insert(to.id);
      if (to.heard.size() > kSubscriptionsMax) {
        auto oldest = to.heard.begin();
        if (*oldest == from.serial) ++oldest;
        if (auto it = peers_by_serial_.find(*oldest); it != peers_by_serial_.end()) it->second->listeners.erase(to.id);
        to.heard.erase(oldest);
      }
    }
  }
  std::size_t dropped = 0;
  MutBytes frame = (disco ? to.disco : to.data).push(frames::kPacketHeadSize + packet.size(), dropped);
  counters_.dropped_queue_full += dropped;
  frames::store_packet_head(frame.data(), FrameType::kRecvPacket, from.key, packet.size());
  if (!packet.empty()) std::memcpy(frame.data() + frames::kPacketHeadSize, packet.data(), packet.size());
  output_added(now, to);
}

// ---- output -----------------------------------------------------------------------------------------------------

void RelayServer::output_added(Instant now, Connection& c) {
  if (!c.in_ready) {
    c.in_ready = true;
    ready_.push_back(c.id);
  }
  if (c.waiting_since) return;
  c.waiting_since = now;
  set_timer(c, now + kWriteDeadline);
}

std::optional<ConnId> RelayServer::poll_ready() {
  if (ready_.empty()) return std::nullopt;
  ConnId id = ready_.front();
  ready_.pop_front();
  find(id)->in_ready = false;
  return id;
}

std::optional<ClosedConnection> RelayServer::poll_close() {
  if (closed_.empty()) return std::nullopt;
  ClosedConnection closed = std::move(closed_.front());
  closed_.pop_front();
  return closed;
}

bool RelayServer::has_output(ConnId id) const {
  Connection* c = find(id);
  return c && c->has_output();
}

std::size_t RelayServer::produce(Instant now, ConnId id, MutBytes out) {
  Connection* found = find(id);
  if (!found) return 0;
  Connection& c = *found;
  std::size_t n = c.out.take(out);
  while (c.out.empty() && (!c.data.empty() || !c.disco.empty())) {
    // In turn: disco keeps its share under load and cannot starve data either.
    bool disco = c.data.empty() || (!c.disco.empty() && c.disco_turn);
    RecordQueue& queue = disco ? c.disco : c.data;
    MutBytes frame = queue.front();
    if (frame.size() > out.size() - n) {
      if (n > 0) break;
      append(c.out.end(), frame);
      n += c.out.take(out.subspan(n));
    } else {
      std::memcpy(out.data() + n, frame.data(), frame.size());
      n += frame.size();
    }
    ++counters_.packets_out;
    counters_.bytes_out += frame.size() - frames::kPacketHeadSize;
    queue.pop();
    c.disco_turn = !disco;
  }
  if (!c.has_output()) c.waiting_since.reset();
  else if (n > 0) c.waiting_since = now;
  return n;
}

// ---- time -------------------------------------------------------------------------------------------------------

// Each connection has one entry in timers_, which may be early: what is due is looked up when it fires.
void RelayServer::set_timer(Connection& c, Instant at) {
  if (c.timer && *c.timer <= at) return;
  if (c.timer) timers_.erase({*c.timer, c.id});
  c.timer = at;
  timers_.emplace(at, c.id);
}

void RelayServer::check_timer(Instant now, Connection& c) {
  if (c.waiting_since && now >= *c.waiting_since + kWriteDeadline) {
    ++counters_.write_timeouts;
    drop(now, c, {ErrorCode::kTimeout, "the client takes no data"}, true);
    return;
  }
  if (!c.peer) {
    if (now >= c.login_deadline) {
      ++counters_.login_timeouts;
      drop(now, c, {ErrorCode::kTimeout, "no login in time"}, true);
      return;
    }
    set_timer(c, c.login_deadline);
  } else {
    if (now >= c.next_keepalive) {
      ++counters_.keepalives;
      frames::encode_frame(c.out.end(), FrameType::kKeepAlive, {});
      c.next_keepalive = now + c.keepalive_period;
      // Once a minute is a good moment to give idle memory back.
      c.data.release();
      c.disco.release();
      if (c.partial.empty()) ByteVector().swap(c.partial);
      output_added(now, c);
    }
    set_timer(c, c.next_keepalive);
  }
  if (c.waiting_since) set_timer(c, *c.waiting_since + kWriteDeadline);
}

Deadline RelayServer::next_timeout() const {
  Deadline d = peers_.empty() ? Deadline::never() : Deadline::between(next_recheck_, next_recheck_ + 1min);
  if (!timers_.empty()) d = sooner(d, Deadline::at(timers_.begin()->first));
  return d;
}

void RelayServer::handle_timeout(Instant now) {
  while (!timers_.empty() && timers_.begin()->first <= now) {
    Connection& c = *find(timers_.begin()->second);
    timers_.erase(timers_.begin());
    c.timer.reset();
    check_timer(now, c);
  }
  if (now >= next_recheck_) recheck(now);
}

RelayGauges RelayServer::gauges() const {
  RelayGauges g;
  g.connections = connections_.size();
  g.logging_in = logging_in_;
  g.keys = peers_.size();
  for (const auto& [serial, peer] : peers_by_serial_) {
    if (peer->connections.size() > 1) ++g.duplicate_keys;
    for (const Connection* c : peer->connections)
      if (c->home) ++g.home_connections;
  }
  return g;
}

}  // namespace porthole::relay
