#include "derp/derp_client_impl.h"
#include "derp/login.h"
#include "derp/meta_cert.h"

namespace porthole::derp {
namespace {

// Between two stamps of "last heard from", as fine as the home choice needs it.
constexpr Duration kLastFrameGranularity = 5s;

// The answer to GET /derp that is no 101. A relay refuses an upgrade only when it does not see one.
Error refused_upgrade(const wire::HttpMessageParser& answer) {
  const int status = answer.head().status();
  const std::string server = printable(answer.head().header("Server").value_or(""));
  std::string line = printable(answer.body().substr(0, answer.body().find('\n')));
  if (line.ends_with('.')) line.pop_back();
  std::string text = "the relay refused the upgrade with HTTP status " + std::to_string(status);
  if (!server.empty()) text += " by " + server;
  if (!line.empty() && !line.starts_with('<')) text += ": " + line;
  if (status >= 502 && status <= 504) return {ErrorCode::kUnavailable, text + "; the relay behind that proxy does not run"};
  if (status == 400 || status == 405 || status == 426 || status < 300)
    text += "; a proxy in front of it does not pass the upgrade (nginx: proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection \"upgrade\";)";
  return {ErrorCode::kRefused, text};
}

}  // namespace

// ---- streams ----------------------------------------------------------------------------------------------------

std::optional<StreamAction> DerpClient::poll_action() {
  if (actions_.empty()) return std::nullopt;
  StreamAction action = std::move(actions_.front());
  actions_.pop_front();
  return action;
}

void DerpClient::stream_opened(Instant now, StreamId id, const StreamInfo& info) {
  Region* region = region_of(id);
  if (!region || region->connection->stage != Stage::kDialling) return;
  region->connection->local = info.local;
  region->connection->remote = info.remote;
  region->connection->deadline = region->step_deadline(now);
  start_http(now, *region, info);
}

void DerpClient::start_http(Instant now, Region& region, const StreamInfo& info) {
  Connection& c = *region.connection;
  std::optional<NodePublic> meta_key;
  if (info.tls13 && !region.no_fast_start) meta_key = find_meta_cert(info.certificates);
  // A low-order key cannot log in here, so it is not worth a round trip to find out.
  c.fast_start = meta_key.has_value();

  std::vector<wire::HttpHeader> headers = {{"Host", c.host_header}, {"User-Agent", "porthole"}, {"Connection", "Upgrade"}, {"Upgrade", "DERP"}};
  if (c.fast_start) headers.push_back({"Derp-Fast-Start", "1"});
  // Statistics for the relay's owner: which node we would rather use.
  if (region.node_index > 0 && !region.definition.nodes.front().name.empty())
    headers.push_back({"Ideal-Node", region.definition.nodes.front().name});
  if (Status s = wire::encode_http_request_head(c.out.end(), "GET", "/derp", headers); !s) {
    attempt_failed(now, region, s.error());
    return;
  }
  if (c.fast_start) {
    c.meta_key = *meta_key;
    if (!start_login(now, region, *meta_key)) return;
  } else {
    wire::HttpLimits limits;
    limits.body_size_max = kHttpErrorBodyMax;
    c.http.emplace(wire::HttpKind::kResponse, limits);
    c.stage = Stage::kHttp;
  }
  region.mark_output(now);
}

bool DerpClient::start_login(Instant now, Region& region, const NodePublic& relay_key) {
  Connection& c = *region.connection;
  c.box = relay_key.is_zero() ? std::nullopt : crypto::BoxKey::make(key_.reveal(), relay_key.bytes());
  if (!c.box) {
    attempt_failed(now, region, {ErrorCode::kProtocol, "the relay announced an unusable key"});
    return false;
  }
  std::uint8_t nonce[frames::kNonceSize];
  rng_.fill(nonce);
  encode_login(c.out.end(), public_key_, *c.box, nonce);
  c.stage = Stage::kLoggedIn;
  c.deadline = now + kLoginConfirmTime;
  region.budget_end = c.deadline + kNodeConnectTime;  // so that a silent relay does not keep us from the next node
  c.last_frame = now;
  note_preferred(now, region);
  region.mark_output(now);
  return true;
}

void DerpClient::note_preferred(Instant now, Region& region) {
  if (!region.connection || !region.connection->logged_in()) return;
  bool wanted = region.id == home_;
  if (wanted == region.connection->preferred_sent) return;
  region.connection->preferred_sent = wanted;
  frames::encode_note_preferred(region.connection->out.end(), wanted);
  region.mark_output(now);
}

void DerpClient::stream_failed(Instant now, StreamId id, const Error& error) {
  Region* region = region_of(id);
  if (!region) return;
  std::string node = region->connection->node;
  // Nothing to close: the stream never came to be.
  ++counters_.connections_failed;
  drop_connection(*region, false);
  if (!region->first_error) region->first_error = error.with_context("node " + node);
  ++region->node_index;
  dial(now, *region);
}

void DerpClient::stream_closed(Instant now, StreamId id, const Error* error) {
  Region* region = region_of(id);
  if (!region) return;
  Connection& c = *region->connection;
  Error why = error ? *error : Error{ErrorCode::kReset, "the relay closed the connection"};
  if (c.stage == Stage::kHttp && c.http->head_done())
    why = refused_upgrade(*c.http);
  else if (c.stage == Stage::kLoggedIn)
    why = {ErrorCode::kRefused, "the relay closed the connection during the login; it may not admit this node"};
  bool confirmed = c.stage == Stage::kConfirmed;
  std::string node = c.node;
  drop_connection(*region, false);
  ++counters_.connections_failed;
  if (confirmed) {
    report_failure(*region, why, false);
    wait_to_retry(now, *region);
  } else {
    if (!region->first_error) region->first_error = why.with_context("node " + node);
    ++region->node_index;
    dial(now, *region);
  }
}

Result<std::size_t> DerpClient::consume(Instant now, StreamId id, MutBytes bytes) {
  retired_.clear();
  Region* region = region_of(id);
  if (!region || region->connection->stage == Stage::kDialling) return bytes.size();
  MutBytes in = bytes;
  region->bytes_received += in.size();
  if (region->connection->stage == Stage::kHttp && !handle_http(now, *region, in)) return bytes.size();
  if (!in.empty()) handle_frames(now, *region, in);
  return bytes.size();
}

bool DerpClient::handle_http(Instant now, Region& region, MutBytes& in) {
  Connection& c = *region.connection;
  Result<std::size_t> taken = c.http->consume(in);
  if (!taken && !c.http->head_done()) {
    attempt_failed(now, region, taken.error());
    return false;
  }
  if (c.http->head_done() && c.http->head().status() != 101) {
    // Wait for the end of the explanation, but not for more than is kept of it.
    if (!taken || c.http->done()) {
      attempt_failed(now, region, refused_upgrade(*c.http));
      return false;
    }
  }
  in = in.subspan(taken ? *taken : in.size());
  if (!c.http->done()) return true;
  c.http.reset();
  c.stage = Stage::kServerKey;
  return true;
}

// Judges a frame by its header; false: the connection is dropped.
bool DerpClient::handle_header(Instant now, Region& region, const FrameHeader& header) {
  Connection& c = *region.connection;
  if (c.stage == Stage::kServerKey) {
    if (header.is(FrameType::kServerKey) && header.size >= frames::kServerKeySizeMin && header.size <= frames::kServerKeySizeMax) return true;
    attempt_failed(now, region, {ErrorCode::kProtocol, "the relay did not begin with its key; this may be no DERP relay"});
    return false;
  }
  if (frames::client_accepts(header)) return true;
  // "HTTP/" read as a header: the far end, or a proxy before it, does not know the fast start.
  if (c.stage == Stage::kLoggedIn && c.fast_start && header.type == 'H') {
    region.no_fast_start = true;
    attempt_failed(now, region, {ErrorCode::kProtocol, "the relay refused the fast start"}, true);
    return false;
  }
  fail(now, region, {ErrorCode::kProtocol, "the relay sent a frame larger than the protocol allows"});
  return false;
}

namespace {
bool is_of_interest(const FrameHeader& header) {
  switch (static_cast<FrameType>(header.type)) {
    case FrameType::kServerKey:
    case FrameType::kServerInfo:
    case FrameType::kRecvPacket:
    case FrameType::kKeepAlive:
    case FrameType::kPeerGone:
    case FrameType::kPing:
    case FrameType::kPong:
    case FrameType::kHealth:
    case FrameType::kRestarting: return true;
    default: return false;
  }
}
}  // namespace

bool DerpClient::handle_frames(Instant now, Region& region, MutBytes in) {
  while (!in.empty()) {
    Connection& c = *region.connection;
    if (c.skip > 0) {
      std::size_t n = std::min(c.skip, in.size());
      c.skip -= n;
      in = in.subspan(n);
      continue;
    }
    if (!c.partial.empty()) {
      // Complete the header first: only then the size is known, and checked before anything is kept for it.
      if (c.partial.size() < frames::kHeaderSize) {
        std::size_t n = std::min(frames::kHeaderSize - c.partial.size(), in.size());
        append(c.partial, in.first(n));
        in = in.subspan(n);
        if (c.partial.size() < frames::kHeaderSize) return true;
        FrameHeader header = frames::load_frame_header(c.partial.data());
        if (!handle_header(now, region, header)) return false;
        if (!is_of_interest(header)) {
          ++counters_.frames_skipped;
          c.partial.clear();
          c.skip = header.size;
          c.last_frame = now;
          continue;
        }
      }
      FrameHeader header = frames::load_frame_header(c.partial.data());
      std::size_t whole = frames::kHeaderSize + header.size;
      std::size_t n = std::min(whole - c.partial.size(), in.size());
      append(c.partial, in.first(n));
      in = in.subspan(n);
      if (c.partial.size() < whole) return true;
      std::swap(c.partial, c.completed);
      c.partial.clear();
      if (c.partial.capacity() > kReassemblyKeep) ByteVector().swap(c.partial);
      if (!handle_frame(now, region, header, MutBytes(c.completed).subspan(frames::kHeaderSize))) return false;
      continue;
    }
    if (in.size() < frames::kHeaderSize) {
      c.partial.assign(in.begin(), in.end());
      return true;
    }
    FrameHeader header = frames::load_frame_header(in.data());
    if (!handle_header(now, region, header)) return false;
    if (!is_of_interest(header)) {
      ++counters_.frames_skipped;
      c.skip = header.size;
      c.last_frame = now;
      in = in.subspan(frames::kHeaderSize);
      continue;
    }
    std::size_t whole = frames::kHeaderSize + header.size;
    if (in.size() < whole) {
      c.partial.assign(in.begin(), in.end());
      return true;
    }
    MutBytes payload = in.subspan(frames::kHeaderSize, header.size);
    in = in.subspan(whole);
    if (!handle_frame(now, region, header, payload)) return false;
  }
  return true;
}

bool DerpClient::handle_frame(Instant now, Region& region, const FrameHeader& header, MutBytes payload) {
  Connection& c = *region.connection;
  c.last_frame = now;
  bool understood = true;
  // The key frame comes before our login could be judged, and the login answer has to be opened first.
  if (!header.is(FrameType::kServerKey) && !header.is(FrameType::kServerInfo)) confirm(now, region);
  switch (static_cast<FrameType>(header.type)) {
    case FrameType::kServerKey: {
      auto key = frames::parse_server_key(payload);
      if (c.stage == Stage::kServerKey) {
        if (!key) {
          attempt_failed(now, region, {ErrorCode::kProtocol, "the relay's key frame is malformed"});
          return false;
        }
        return start_login(now, region, *key);
      }
      if (c.fast_start && c.stage == Stage::kLoggedIn && key != c.meta_key) {
        attempt_failed(now, region, {ErrorCode::kProtocol, "the relay's key differs from the one in its certificate"});
        return false;
      }
      return true;
    }
    case FrameType::kServerInfo: {
      Result<ServerInfo> info = open_server_info(payload, *c.box);
      if (!info) {
        fail(now, region, info.error());
        return false;
      }
      if (info->version != frames::kProtocolVersion)
        log_.write(LogLevel::kInfo, "derp", region.name() + " speaks version " + std::to_string(info->version));
      c.budget.set(now, info->bytes_per_second, info->bytes_burst);
      c.health.clear();
      confirm(now, region);
      break;
    }
    case FrameType::kRecvPacket: {
      auto packet = frames::parse_packet(payload);
      understood = packet.has_value();
      if (!packet) break;
      ++region.packets_received;
      if (!(packet->key == c.last_source)) learn_route(region, packet->key);
      host_.relay_packet(now, region.id, packet->key, packet->data);
      return true;
    }
    case FrameType::kPing: {
      auto ping = frames::parse_ping(payload);
      understood = ping.has_value();
      if (!ping) break;
      if (c.out.size() < kControlBytesMax) {
        frames::encode_pong(c.out.end(), *ping);
        region.mark_output(now);
      } else {
        ++counters_.pongs_dropped;
      }
      break;
    }
    case FrameType::kPong: {
      auto pong = frames::parse_ping(payload);
      understood = pong.has_value();
      if (pong && c.ping == pong) c.ping.reset();
      break;
    }
    case FrameType::kPeerGone: {
      auto gone = frames::parse_peer_gone(payload);
      understood = gone.has_value();
      if (!gone) break;
      if (auto it = routes_.find(gone->key); it != routes_.end() && it->second.stream == c.id) routes_.erase(it);
      // So that the next packet of the peer teaches the route again.
      if (c.last_source == gone->key) c.last_source = {};
      push_hint(PeerGone{region.id, gone->key});
      break;
    }
    case FrameType::kHealth: {
      std::string text = printable(as_text(payload.first(std::min(payload.size(), kHealthTextMax))));
      if (text == c.health) break;
      c.health = text;
      push_hint(Health{region.id, std::move(text)});
      break;
    }
    case FrameType::kRestarting: {
      auto restarting = frames::parse_restarting(payload);
      understood = restarting.has_value();
      if (!restarting) break;
      Duration in = std::min<Duration>(std::chrono::milliseconds(restarting->reconnect_in_ms), kRestartWaitMax);
      region.restart_in = in;
      region.restart_until = now + in + std::min<Duration>(std::chrono::milliseconds(restarting->try_for_ms), kRestartTryMax);
      push_hint(Restarting{region.id, in});
      break;
    }
    default: break;  // KeepAlive: being heard is all it says
  }
  if (!understood) ++counters_.frames_skipped;
  return true;
}

void DerpClient::confirm(Instant now, Region& region) {
  Connection& c = *region.connection;
  auto [stamp, first] = last_frame_.try_emplace(region.id, now);
  if (first || now - stamp->second >= kLastFrameGranularity) {
    stamp->second = now;
    host_.relay_heard(now, region.id);
  }
  if (c.stage == Stage::kConfirmed) return;
  c.stage = Stage::kConfirmed;
  c.since = now;
  region.backoff.reset();
  region.restart_in.reset();
  region.restart_until.reset();
  region.last_error.reset();
  events_.push_back(Connected{region.id});
  log_.write(LogLevel::kInfo, "derp", region.name() + ": connected to node " + c.node);
}

void DerpClient::learn_route(Region& region, const NodePublic& source) {
  Connection& c = *region.connection;
  auto it = routes_.find(source);
  if (it == routes_.end()) {
    if (routes_.size() >= kRoutesMax) {
      ++counters_.hints_dropped;
      return;
    }
    it = routes_.emplace(source, Route{}).first;
  }
  it->second = {region.id, c.id};
  c.last_source = source;
}

void DerpClient::push_hint(DerpEvent event) {
  if (events_.size() < kHintEventsMax) events_.push_back(std::move(event));
  else ++counters_.hints_dropped;
}

std::size_t DerpClient::produce(Instant now, StreamId id, MutBytes out) {
  Region* region = region_of(id);
  if (!region) return 0;
  Connection& c = *region->connection;
  std::size_t n = c.out.take(out);
  while (c.logged_in() && c.out.empty() && !region->queue.empty()) {
    MutBytes frame = region->queue.front();
    if (frame.size() > out.size() - n) {
      if (n > 0) break;
      // Larger than the whole buffer: it goes out in parts, and can no longer be dropped.
      append(c.out.end(), frame);
      n += c.out.take(out.subspan(n));
    } else {
      std::memcpy(out.data() + n, frame.data(), frame.size());
      n += frame.size();
    }
    ++region->packets_sent;
    region->queue.pop();
  }
  region->bytes_sent += n;
  if (!region->has_output()) c.waiting_since.reset();
  else if (n > 0) c.waiting_since = now;
  return n;
}

bool DerpClient::has_output(StreamId id) const {
  Region* region = region_of(id);
  return region && region->has_output();
}

bool DerpClient::congested(Instant now) const {
  for (const auto& [id, region] : regions_) {
    if (!region->connection || !region->connection->logged_in() || region->queue.count() < kSendQueueCongested) continue;
    const auto& since = region->connection->waiting_since;
    if (since && now - *since < kStallIgnored) return true;
  }
  return false;
}

}  // namespace porthole::derp
