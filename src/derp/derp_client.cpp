#include "derp/derp_client.h"

#include "derp/derp_client_impl.h"
#include "derp/dial.h"

namespace porthole::derp {

namespace {

constexpr Duration kRestartRetry = 1s;
constexpr std::size_t kErrorTextMax = 200;

std::string seconds_text(Duration d) {
  return std::to_string(std::chrono::duration_cast<std::chrono::seconds>(d).count()) + " s";
}

}  // namespace

std::string printable(std::string_view text) {
  std::string out;
  for (char c : text.substr(0, kErrorTextMax)) out.push_back(c >= 0x20 && c < 0x7f ? c : ' ');
  while (!out.empty() && out.back() == ' ') out.pop_back();
  return out;
}

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
        frames::encode_ping(c.out.end(), ping);
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
