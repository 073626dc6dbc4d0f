#include "sim/streams.h"

#include <algorithm>

namespace porthole::sim {
namespace {

// As the runtime's TCP_USER_TIMEOUT.
constexpr Duration kSilenceMax = 15s;
// How soon a stream goes on after silence: resends back off, so not at once.
constexpr Duration kResendAfter = 250ms;

Duration delay_of(const std::vector<Link*>& links) {
  Duration sum{};
  for (const Link* l : links) sum += l->config.delay;
  return sum + 100us;
}

}  // namespace

// ---- one side ----

void Stream::send(Bytes bytes) {
  if (!is_open_ || bytes.empty()) return;
  queue(Chunk::Kind::kBytes, bytes);
  if (room() == 0) writer_waits_ = true;
}

void Stream::close() {
  if (!user_ && !is_open_) return;
  user_ = nullptr;
  if (is_open_) queue(Chunk::Kind::kEnd, {});
  is_open_ = false;
}

void Stream::abort() {
  user_ = nullptr;
  if (!is_open_) return;
  for (const Chunk& c : chunks_) queued_ -= c.bytes.size();
  chunks_.clear();
  queue(Chunk::Kind::kReset, {});
  is_open_ = false;
}

void Stream::vanish() {
  user_ = nullptr;
  is_open_ = false;
  chunks_.clear();
  queued_ = 0;
}

bool Stream::way_is_open(const Stream* other) const {
  if (!other || !host_->up || !other->host_->up) return false;
  if (!host_->has(own_address_) || !other->host_->has(other->own_address_)) return false;
  // Acknowledgements must come back too.
  return std::all_of(links_.begin(), links_.end(), [](const Link* l) { return l->up; }) &&
         std::all_of(other->links_.begin(), other->links_.end(), [](const Link* l) { return l->up; });
}

void Stream::arm(Instant when, const StreamRef& other) {
  if (moving_) return;
  moving_ = true;
  world_->at(when, [self = shared_from_this(), other] {
    self->moving_ = false;
    self->move_chunks(other);
  });
}

void Stream::queue(Chunk::Kind kind, Bytes bytes) {
  double rate = 0;
  Duration delay = delay_of(links_);
  Duration late{};
  for (Link* l : links_) {
    if (l->config.rate > 0) rate = rate == 0 ? l->config.rate : std::min(rate, l->config.rate);
    // One resend, and what it takes to notice.
    if (l->loses()) late = std::max(late, delay * 2 + 50ms);
  }
  Instant start = std::max(world_->now(), busy_until_);
  if (rate > 0) start = start + Duration(static_cast<std::int64_t>(static_cast<double>(bytes.size()) / rate * 1e9));
  busy_until_ = start;
  last_arrival_ = std::max(last_arrival_, start + delay + late);
  queued_ += bytes.size();
  chunks_.push_back({last_arrival_, to_vector(bytes), kind});
  arm(last_arrival_, other_.lock());
}

void Stream::move_chunks(const StreamRef& other) {
  if (chunks_.empty()) return;
  if (!way_is_open(other.get())) {
    if (!silent_since_) silent_since_ = world_->now();
    if (world_->now() - *silent_since_ >= kSilenceMax) {
      chunks_.clear();
      queued_ = 0;
      end(Error{ErrorCode::kTimeout, "the connection to " + info_.remote.to_string() + " went silent"});
      return;
    }
    arm(world_->now() + kResendAfter, other);
    return;
  }
  silent_since_.reset();
  while (!chunks_.empty() && chunks_.front().arrives <= world_->now()) {
    Chunk chunk = std::move(chunks_.front());
    chunks_.pop_front();
    queued_ -= chunk.bytes.size();
    switch (chunk.kind) {
      case Chunk::Kind::kBytes:
        if (other->user_) other->user_->stream_bytes(chunk.bytes);
        break;
      case Chunk::Kind::kEnd: other->end(std::nullopt); break;
      case Chunk::Kind::kReset: other->end(Error{ErrorCode::kReset, "the connection was reset"}); break;
    }
  }
  if (writer_waits_ && queued_ <= kBufferMax / 2) {
    writer_waits_ = false;
    if (user_) user_->stream_writable();
  }
  if (!chunks_.empty()) arm(chunks_.front().arrives, other);
}

void Stream::end(const std::optional<Error>& error) {
  is_open_ = false;
  StreamUser* user = user_;
  user_ = nullptr;
  if (user) user->stream_closed(error);
}

// ---- all of them ----

void Streams::listen(Host& host, std::uint16_t port, Acceptor acceptor) { listeners_[{&host, port}] = std::move(acceptor); }
void Streams::stop_listening(Host& host, std::uint16_t port) { listeners_.erase({&host, port}); }

std::vector<IpAddress> Streams::resolve(const std::string& name) const {
  if (auto literal = IpAddress::parse(name)) return {*literal};
  auto it = names_.find(name);
  return it == names_.end() ? std::vector<IpAddress>() : it->second;
}

StreamRef Streams::open(Host& from, const OpenStream& request, StreamUser& user) {
  auto client = std::make_shared<Stream>();
  client->world_ = &world_;
  client->host_ = &from;
  client->user_ = &user;
  std::vector<Endpoint> targets;
  for (const IpAddress& a : request.addresses.empty() ? resolve(request.host) : request.addresses) targets.push_back({a, request.port});
  std::string where = request.host + ":" + std::to_string(request.port);
  bool tls = request.tls != TlsMode::kPlain;
  // A look-up takes no time here; the dialling begins with the next event.
  world_.after(Duration::zero(), [this, client, targets, tls, where] {
    dial(client, targets, tls, world_.now() + kConnectTimeout, where);
  });
  return client;
}

void Streams::dial(const StreamRef& client, std::vector<Endpoint> targets, bool tls, Instant deadline, std::string where) {
  if (!client->user_) return;
  auto fail = [client, where](ErrorCode code, const std::string& why) {
    StreamUser* user = client->user_;
    client->user_ = nullptr;
    if (user) user->stream_failed({code, where + " " + why});
  };
  std::optional<Network::Way> way;
  Endpoint to;
  for (const Endpoint& t : targets) {
    way = network_.way(*client->host_, t.address);
    to = t;
    if (way) break;
  }
  if (!way) return fail(ErrorCode::kUnavailable, "cannot be reached: no route to it");

  auto server = std::make_shared<Stream>();
  client->own_address_ = client->host_->address(to.address.is_v6());
  client->info_.local = {client->own_address_, 40000};
  client->info_.remote = to;
  client->info_.tls13 = tls;
  client->links_ = way->there;
  client->other_ = server;
  server->world_ = &world_;
  server->host_ = way->host;
  server->own_address_ = to.address;
  server->info_.local = to;
  server->info_.remote = {way->seen_as, 40000};
  server->links_ = way->back;
  server->other_ = client;

  if (!client->way_is_open(server.get())) {
    if (world_.now() >= deadline) return fail(ErrorCode::kTimeout, "did not answer within 10 s");
    world_.after(kResendAfter, [this, client, targets = std::move(targets), tls, deadline, where] { dial(client, targets, tls, deadline, where); });
    return;
  }
  // SYN and SYN-ACK, and one round trip more for TLS 1.3; a lost one costs a second.
  Duration round = delay_of(client->links_) + delay_of(server->links_);
  Duration took = round * (tls ? 2 : 1);
  for (const auto* links : {&client->links_, &server->links_})
    for (Link* l : *links)
      if (l->loses()) took += 1s;
  world_.after(took, [this, client, server, fail, port = to.port, host = way->host] {
    if (!client->user_) return;
    auto listener = listeners_.find({host, port});
    if (!host->up || !client->host_->up) return fail(ErrorCode::kTimeout, "did not answer");
    if (listener == listeners_.end()) return fail(ErrorCode::kRefused, "refused the connection");
    server->is_open_ = true;
    server->user_ = listener->second(server);
    if (!server->user_) {
      server->is_open_ = false;
      return fail(ErrorCode::kReset, "reset the connection");
    }
    client->is_open_ = true;
    client->user_->stream_opened(client->info_);
  });
}

}  // namespace porthole::sim
