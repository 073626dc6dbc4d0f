#include "derp/derp_client.h"

#include <algorithm>

#include "derp/dial.h"
#include "derp/login.h"
#include "derp/meta_cert.h"

namespace porthole::derp {

namespace frames = wire::derp;
using frames::FrameHeader;
using frames::FrameType;

namespace {

// Between two stamps of "last heard from", as fine as the home choice needs it.
constexpr Duration kLastFrameGranularity = 5s;
constexpr Duration kRestartRetry = 1s;
constexpr std::size_t kErrorTextMax = 200;

// Login answered so far. Everything from kLoggedIn on may carry packets.
enum class Stage { kDialling, kHttp, kServerKey, kLoggedIn, kConfirmed };

struct TokenBucket {
  std::uint64_t bytes_per_second = 0;  // 0: no limit
  double burst = 0;
  double tokens = 0;
  Instant filled;

  void set(Instant now, std::uint64_t rate, std::uint64_t wanted_burst) {
    constexpr std::size_t kLargestFrame = frames::kPacketHeadSize + frames::kPacketSizeMax;
    bytes_per_second = rate;
    burst = static_cast<double>(std::max<std::uint64_t>(wanted_burst, kLargestFrame));
    tokens = burst;
    filled = now;
  }
  bool take(Instant now, std::size_t bytes) {
    if (bytes_per_second == 0) return true;
    double elapsed = std::chrono::duration<double>(now - filled).count();
    tokens = std::min(burst, tokens + elapsed * static_cast<double>(bytes_per_second));
    filled = now;
    if (tokens < static_cast<double>(bytes)) return false;
    tokens -= static_cast<double>(bytes);
    return true;
  }
};

// What a stranger wrote, made fit for a one-line message.
std::string printable(std::string_view text) {
  std::string out;
  for (char c : text.substr(0, kErrorTextMax)) out.push_back(c >= 0x20 && c < 0x7f ? c : ' ');
  while (!out.empty() && out.back() == ' ') out.pop_back();
  return out;
}

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

std::string seconds_text(Duration d) {
  return std::to_string(std::chrono::duration_cast<std::chrono::seconds>(d).count()) + " s";
}

}  // namespace

struct DerpClient::Connection {
  StreamId id = 0;
  Stage stage = Stage::kDialling;
  std::string node;
  std::string host_header;
  Endpoint local, remote;
  Instant deadline;    // of the stages before kConfirmed
  Instant last_frame;
  Instant since;
  bool last_chance = true;  // no other node of the region is left in this attempt
  bool fast_start = false;
  NodePublic meta_key;
  std::optional<crypto::BoxKey> box;
  std::optional<wire::HttpMessageParser> http;

  ByteVector partial;    // a frame that a read cut in two, header included
  ByteVector completed;  // the last such frame, kept until consume() returns
  std::size_t skip = 0;  // bytes left of a frame that is of no interest

  ByteVector out;        // HTTP, login, small frames, and the rest of a packet frame that did not fit
  std::size_t out_sent = 0;
  std::optional<Instant> waiting_since;  // output is there and nobody took any
  bool preferred_sent = false;
  std::optional<frames::PingData> ping;
  Instant ping_deadline;
  TokenBucket budget;
  NodePublic last_source;
  std::string health;

  bool logged_in() const { return stage >= Stage::kLoggedIn; }
  std::size_t control_pending() const { return out.size() - out_sent; }
};

struct DerpClient::Region {
  int id = 0;
  ts2021::RelayRegion definition;
  RecordQueue queue{kSendQueuePacketsMax, kSendQueueBytesMax};
  Instant last_write;
  Backoff backoff{kReconnectBackoffMax};
  std::optional<Instant> retry_at;
  Instant budget_end;        // of the attempt under way
  std::size_t node_index = 0;
  std::optional<Error> first_error;
  bool no_fast_start = false;
  std::optional<Connection> connection;
  std::optional<Duration> restart_in;
  std::optional<Instant> restart_until;
  std::optional<Error> last_error;
  std::uint64_t packets_sent = 0, bytes_sent = 0, packets_received = 0, bytes_received = 0;

  std::string name() const {
    return "relay " + (definition.region_code.empty() ? std::to_string(id) : printable(definition.region_code));
  }
  bool has_output() const {
    return connection && (connection->control_pending() > 0 || (connection->logged_in() && !queue.empty()));
  }
  // For one step of connecting: a node must not use up the time of the next one.
  Instant step_deadline(Instant now) const {
    return connection->last_chance ? budget_end : std::min(budget_end, now + kNodeConnectTime);
  }
  void mark_output(Instant now) {
    if (connection && !connection->waiting_since && has_output()) connection->waiting_since = now;
  }
};

DerpClient::DerpClient(DerpClientConfig config, DerpHost& host, Rng& rng, Log& log)
    : config_(config), host_(host), rng_(rng), log_(log), next_stream_id_(config.first_stream_id) {}
DerpClient::~DerpClient() = default;

// ---- commands ---------------------------------------------------------------------------------------------------

void DerpClient::set_key(Instant now, const crypto::NodePrivate& key) {
  NodePublic new_public = key.public_key();
  if (new_public == public_key_) return;
  while (!regions_.empty()) close_region(regions_.begin()->first, {ErrorCode::kCancelled, "the node key changed"});
  key_ = key.duplicate();
  public_key_ = new_public;
  ensure_home(now);
}

void DerpClient::set_map(Instant now, const ts2021::RelayMap& map) {
  map_ = map;
  std::vector<int> changed;
  for (const auto& [id, region] : regions_) {
    auto it = map_.regions.find(id);
    if (it == map_.regions.end() || !(it->second == region->definition)) changed.push_back(id);
  }
  for (int id : changed) close_region(id, {ErrorCode::kCancelled, "the relay map changed"});
  std::erase_if(last_frame_, [&](const auto& entry) { return !map_.regions.contains(entry.first); });
  ensure_home(now);
}

void DerpClient::set_home(Instant now, int region) {
  if (region == home_) return;
  if (auto it = regions_.find(home_); it != regions_.end()) it->second->last_write = now;
  home_ = region;
  ensure_home(now);
  for (auto& [id, r] : regions_) note_preferred(now, *r);
}

void DerpClient::ensure_home(Instant now) {
  if (home_ != 0 && can_connect()) open_region(now, home_);
}

SendResult DerpClient::send(Instant now, int region, const NodePublic& destination, Bytes packet) {
  Region* r = can_connect() ? open_region(now, region) : nullptr;
  if (!r) {
    ++counters_.dropped_no_route;
    return key_.is_zero() ? SendResult::kNoKey : SendResult::kUnknownRegion;
  }
  return enqueue(now, *r, destination, packet);
}

SendResult DerpClient::send_to_peer(Instant now, const NodePublic& peer, int peer_home, Bytes packet) {
  if (peer_home != 0 && is_open(peer_home)) return send(now, peer_home, peer, packet);
  if (auto route = routes_.find(peer); route != routes_.end()) {
    auto it = regions_.find(route->second.region);
    if (it != regions_.end() && it->second->connection && it->second->connection->id == route->second.stream)
      return enqueue(now, *it->second, peer, packet);
  }
  if (peer_home != 0) return send(now, peer_home, peer, packet);
  ++counters_.dropped_no_route;
  return SendResult::kNoRoute;
}

SendResult DerpClient::enqueue(Instant now, Region& region, const NodePublic& destination, Bytes packet) {
  if (packet.size() > frames::kPacketSizeMax) {
    ++counters_.dropped_no_route;
    return SendResult::kTooBig;
  }
  region.last_write = now;
  std::size_t size = frames::kPacketHeadSize + packet.size();
  if (region.connection && !region.connection->budget.take(now, size)) {
    ++counters_.dropped_rate_limited;
    return SendResult::kRateLimited;
  }
  std::size_t dropped = 0;
  MutBytes frame = region.queue.push(size, dropped);
  frames::store_packet_head(frame.data(), FrameType::kSendPacket, destination, packet.size());
  if (!packet.empty()) std::memcpy(frame.data() + frames::kPacketHeadSize, packet.data(), packet.size());
  region.mark_output(now);
  if (dropped == 0) return SendResult::kQueued;
  counters_.dropped_oldest += dropped;
  return SendResult::kDroppedOldest;
}

void DerpClient::network_changed(Instant now, std::span<const IpAddress> local_addresses) {
  network_up_ = !local_addresses.empty();
  if (!network_up_) {
    while (!regions_.empty()) close_region(regions_.begin()->first, {ErrorCode::kUnavailable, "the network is down"});
    return;
  }
  for (auto& [id, region] : regions_) {
    if (region->connection && region->connection->stage == Stage::kConfirmed) {
      Connection& c = *region->connection;
      const IpAddress& local = c.local.address;
      if (!local.is_valid() || std::find(local_addresses.begin(), local_addresses.end(), local) != local_addresses.end()) {
        frames::PingData ping;
        rng_.fill(ping);
        c.ping = ping;
        c.ping_deadline = now + kRebindPingTime;
        frames::encode_ping(c.out, ping);
        region->mark_output(now);
        continue;
      }
    }
    drop_connection(*region, true);
    region->backoff.reset();
    start_attempt(now, *region);
  }
  ensure_home(now);
}

// ---- attempts ---------------------------------------------------------------------------------------------------

DerpClient::Region* DerpClient::open_region(Instant now, int id) {
  if (auto it = regions_.find(id); it != regions_.end()) return it->second.get();
  auto definition = map_.regions.find(id);
  if (definition == map_.regions.end() || id <= 0 || id > 65535 || regions_.size() >= kRegionsOpenMax) return nullptr;
  auto region = std::make_unique<Region>();
  region->id = id;
  region->definition = definition->second;
  region->last_write = now;
  Region& r = *regions_.emplace(id, std::move(region)).first->second;
  start_attempt(now, r);
  return &r;
}

void DerpClient::close_region(int id, const Error& why) {
  auto it = regions_.find(id);
  if (it == regions_.end()) return;
  drop_connection(*it->second, true);
  report_failure(*it->second, why, true);
  regions_.erase(it);
}

void DerpClient::start_attempt(Instant now, Region& region) {
  region.retry_at.reset();
  region.budget_end = now + kConnectBudget;
  region.node_index = 0;
  region.first_error.reset();
  region.no_fast_start = false;
  dial(now, region);
}

void DerpClient::dial(Instant now, Region& region) {
  const auto& nodes = region.definition.nodes;
  for (; region.node_index < nodes.size() && now < region.budget_end; ++region.node_index) {
    const ts2021::RelayNode& node = nodes[region.node_index];
    std::optional<OpenStream> open = relay_stream(node, config_.plain_http);
    if (!open) continue;
    open->id = next_stream_id_++;
    open->purpose = region.name();
    Connection& c = region.connection.emplace();
    c.id = open->id;
    c.node = printable(node.name.empty() ? node.host_name : node.name);
    c.last_chance = std::none_of(nodes.begin() + static_cast<std::ptrdiff_t>(region.node_index) + 1, nodes.end(),
                                 [&](const auto& n) { return relay_stream(n, config_.plain_http).has_value(); });
    c.deadline = region.step_deadline(now);
    c.host_header = host_header(*open);
    actions_.push_back(std::move(*open));
    return;
  }
  Error error = region.first_error.value_or(Error{ErrorCode::kInvalid, "the relay map names no node that can be reached"});
  report_failure(region, error, false);
  wait_to_retry(now, region);
}

void DerpClient::attempt_failed(Instant now, Region& region, const Error& error, bool same_node_again) {
  std::string node = region.connection ? region.connection->node : std::string();
  drop_connection(region, true);
  ++counters_.connections_failed;
  if (!same_node_again) {
    if (!region.first_error) region.first_error = node.empty() ? error : error.with_context("node " + node);
    ++region.node_index;
  }
  dial(now, region);
}

void DerpClient::lost(Instant now, Region& region, const Error& error) {
  drop_connection(region, true);
  ++counters_.connections_failed;
  report_failure(region, error, false);
  wait_to_retry(now, region);
}

void DerpClient::fail(Instant now, Region& region, const Error& error) {
  if (region.connection && region.connection->stage == Stage::kConfirmed) lost(now, region, error);
  else attempt_failed(now, region, error);
}

void DerpClient::drop_connection(Region& region, bool close_stream) {
  if (!region.connection) return;
  StreamId id = region.connection->id;
  if (close_stream) actions_.push_back(CloseStream{id});
  std::erase_if(routes_, [&](const auto& entry) { return entry.second.stream == id; });
  if (!region.connection->completed.empty()) retired_ = std::move(region.connection->completed);
  region.connection.reset();
}

void DerpClient::report_failure(Region& region, const Error& error, bool final) {
  Error described = error.with_context(region.name());
  // The same failure again and again is told once.
  if (!region.last_error || region.last_error->message != described.message)
    log_.write(final ? LogLevel::kDebug : LogLevel::kWarning, "derp", described.message);
  region.last_error = described;
  events_.push_back(Disconnected{region.id, std::move(described), final});
}

void DerpClient::wait_to_retry(Instant now, Region& region) {
  Duration delay = region.backoff.next(rng_);
  if (region.restart_in) {
    delay = *region.restart_in;
    region.restart_in.reset();
    region.backoff.reset();
  } else if (region.restart_until && now < *region.restart_until) {
    delay = rng_.between(kRestartRetry / 2, kRestartRetry * 3 / 2);
    region.backoff.reset();
  }
  region.retry_at = now + delay;
}

DerpClient::Region* DerpClient::region_of(StreamId id) const {
  for (const auto& [number, region] : regions_)
    if (region->connection && region->connection->id == id) return region.get();
  return nullptr;
}

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
  if (Status s = wire::encode_http_request_head(c.out, "GET", "/derp", headers); !s) {
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
  encode_login(c.out, public_key_, *c.box, nonce);
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
  frames::encode_note_preferred(region.connection->out, wanted);
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
      if (c.control_pending() < kControlBytesMax) {
        frames::encode_pong(c.out, *ping);
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
  std::size_t n = 0;
  auto drain_control = [&] {
    std::size_t take = std::min(c.control_pending(), out.size() - n);
    if (take > 0) std::memcpy(out.data() + n, c.out.data() + c.out_sent, take);
    n += take;
    c.out_sent += take;
    if (c.out_sent == c.out.size()) {
      c.out.clear();
      c.out_sent = 0;
    }
  };
  drain_control();
  while (c.logged_in() && c.out.empty() && !region->queue.empty()) {
    MutBytes frame = region->queue.front();
    if (frame.size() > out.size() - n) {
      if (n > 0) break;
      // Larger than the whole buffer: it goes out in parts, and can no longer be dropped.
      append(c.out, frame);
      drain_control();
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

// ---- time -------------------------------------------------------------------------------------------------------

Deadline DerpClient::deadline_of(const Region& region) const {
  Deadline d = Deadline::never();
  if (region.retry_at) d = sooner(d, Deadline::at(*region.retry_at));
  if (region.id != home_) d = sooner(d, Deadline::between(region.last_write + kIdleTime, region.last_write + kIdleTime + kIdleSlack));
  if (!region.connection) return d;
  const Connection& c = *region.connection;
  d = sooner(d, Deadline::at(c.stage == Stage::kConfirmed ? c.last_frame + kReadDeadline : c.deadline));
  if (c.waiting_since) d = sooner(d, Deadline::at(*c.waiting_since + kWriteDeadline));
  if (c.ping) d = sooner(d, Deadline::at(c.ping_deadline));
  return d;
}

Deadline DerpClient::next_timeout() const {
  Deadline d = Deadline::never();
  for (const auto& [id, region] : regions_) d = sooner(d, deadline_of(*region));
  return d;
}

void DerpClient::handle_timeout(Instant now) {
  std::vector<int> idle;
  for (auto& [id, region] : regions_) {
    if (id != home_ && now >= region->last_write + kIdleTime) idle.push_back(id);
    else check_deadlines(now, *region);
  }
  for (int id : idle) close_region(id, {ErrorCode::kCancelled, "closed because nothing was sent for " + seconds_text(kIdleTime)});
}

void DerpClient::check_deadlines(Instant now, Region& region) {
  if (region.retry_at && now >= *region.retry_at) {
    start_attempt(now, region);
    return;
  }
  if (!region.connection) return;
  Connection& c = *region.connection;
  if (c.stage == Stage::kConfirmed && now >= c.last_frame + kReadDeadline)
    lost(now, region, {ErrorCode::kTimeout, "nothing heard from the relay for " + seconds_text(kReadDeadline)});
  else if (c.ping && now >= c.ping_deadline)
    fail(now, region, {ErrorCode::kTimeout, "the relay did not answer after the network changed"});
  else if (c.waiting_since && now >= *c.waiting_since + kWriteDeadline)
    fail(now, region, {ErrorCode::kTimeout, "the relay connection took no data for " + seconds_text(kWriteDeadline)});
  else if (c.stage != Stage::kConfirmed && now >= c.deadline)
    attempt_failed(now, region, {ErrorCode::kTimeout, c.stage == Stage::kDialling ? "no connection in time" : "the relay did not finish the login in time"});
}

// ---- what is known ----------------------------------------------------------------------------------------------

std::optional<DerpEvent> DerpClient::poll_event() {
  if (events_.empty()) return std::nullopt;
  DerpEvent event = std::move(events_.front());
  events_.pop_front();
  return event;
}

bool DerpClient::is_open(int region) const {
  auto it = regions_.find(region);
  return it != regions_.end() && it->second->connection && it->second->connection->logged_in();
}

RegionStatus DerpClient::status(int region) const {
  RegionStatus s;
  s.home = region == home_ && region != 0;
  if (auto stamp = last_frame_.find(region); stamp != last_frame_.end()) s.last_frame = stamp->second;
  auto it = regions_.find(region);
  if (it == regions_.end()) return s;
  const Region& r = *it->second;
  s.state = RegionState::kWaiting;
  s.last_error = r.last_error;
  s.packets_sent = r.packets_sent;
  s.bytes_sent = r.bytes_sent;
  s.packets_received = r.packets_received;
  s.bytes_received = r.bytes_received;
  if (!r.connection) return s;
  const Connection& c = *r.connection;
  s.state = c.stage == Stage::kConfirmed ? RegionState::kConnected : RegionState::kConnecting;
  s.node = c.node;
  s.remote = c.remote;
  s.fast_start = c.fast_start;
  s.health = c.health;
  if (c.stage == Stage::kConfirmed) s.connected_since = c.since;
  return s;
}

}  // namespace porthole::derp
