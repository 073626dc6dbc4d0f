#include "sim/app.h"

#include <algorithm>

namespace porthole::sim {
namespace {

constexpr std::uint64_t kMagic = 0x706f7274686f6c65;
constexpr std::size_t kHeadSize = 40;
constexpr std::size_t kReceiptSize = 8;
constexpr std::size_t kBlock = 16 * 1024;
constexpr std::size_t kSpansPerPeek = 8;

// A peer that lost power while we only wait for it is found out within half a minute.
netstack::ConnectOptions options_with(Duration timeout) {
  netstack::ConnectOptions options;
  options.timeout = timeout;
  options.keepalive = true;
  options.keepalive_idle = 60s;
  options.keepalive_interval = 15s;
  options.keepalive_probes = 4;
  return options;
}

std::uint64_t tag_of(const std::string& account) { return hash_bytes(as_bytes(account)); }

std::uint64_t receipt_of(const Transfer& t) { return t.id * 0x9e3779b97f4a7c15 + t.up_bytes; }

}  // namespace

App::App(World& world, Ledger& ledger, netstack::Stack& stack, std::string account)
    : world_(world), ledger_(ledger), stack_(stack), account_(std::move(account)) {}

void App::serve(std::uint16_t port) {
  auto id = stack_.listen(world_.now(), std::nullopt, port);
  if (!id) return world_.fail("cannot listen: " + id.error().message);
  listeners_.insert(*id);
}

void App::start(const TransferRef& transfer, const Endpoint& server, Duration timeout) {
  auto id = stack_.connect(world_.now(), server, options_with(timeout));
  if (!id) return ledger_.note_end(*transfer, id.error());
  Connection& c = connections_[*id];
  c.is_client = true;
  c.transfer = transfer;
  ByteWriter w(c.own_head);
  w.le64(kMagic);
  w.le64(tag_of(account_));
  w.le64(transfer->id);
  w.le64(transfer->up_bytes);
  w.le64(transfer->down_bytes);
}

void App::cancel(const TransferRef& transfer) {
  for (auto& [id, c] : connections_) {
    if (!c.is_client || c.transfer != transfer) continue;
    stack_.abort(world_.now(), id);
    connections_.erase(id);
    break;
  }
  ledger_.note_end(*transfer, Error{ErrorCode::kCancelled, "cancelled by the app"});
}

void App::lose_everything(const Error& why) {
  for (auto& [id, c] : connections_)
    if (c.is_client) ledger_.note_end(*c.transfer, why);
  connections_.clear();
  listeners_.clear();
}

void App::end(netstack::SocketId id, std::optional<Error> error) {
  auto it = connections_.find(id);
  if (it == connections_.end()) return;
  Connection c = std::move(it->second);
  connections_.erase(it);
  stack_.close(world_.now(), id);
  if (c.is_client) ledger_.note_end(*c.transfer, std::move(error));
}

void App::handle_event(const netstack::SocketEvent& event) {
  using Kind = netstack::SocketEventKind;
  if (event.kind == Kind::kAcceptable) {
    while (auto id = stack_.accept(event.id)) {
      connections_[*id];
      stack_.set_options(world_.now(), *id, options_with(30s));
      read(*id, connections_[*id]);
    }
    return;
  }
  auto it = connections_.find(event.id);
  if (it == connections_.end()) return;
  Connection& c = it->second;
  switch (event.kind) {
    case Kind::kConnected:
      c.transfer->state = Transfer::State::kRunning;
      ledger_.note_progress(*c.transfer, 0, 0);
      write(event.id, c);
      break;
    case Kind::kWritable: write(event.id, c); break;
    case Kind::kReadable:
    case Kind::kPeerClosed: read(event.id, c); break;
    case Kind::kConnectFailed:
    case Kind::kReset: end(event.id, event.error); break;
    case Kind::kClosed:
      end(event.id, Error{ErrorCode::kProtocol, "the connection was closed before the receipt"});
      break;
    default: break;
  }
}

// False: the connection is of no use.
bool App::accept_head(Connection& c) {
  ByteReader r(c.head);
  if (r.le64() != kMagic) {
    world_.fail("a server got a head that no client sent");
    return false;
  }
  if (r.le64() != tag_of(account_)) {
    world_.fail("a server of account " + account_ + " got bytes of another account");
    return false;
  }
  c.transfer = ledger_.find(r.le64());
  // Its client has given up meanwhile.
  if (!c.transfer) return false;
  if (r.le64() != c.transfer->up_bytes || r.le64() != c.transfer->down_bytes) {
    world_.fail("a server got a wrong head: " + c.transfer->describe());
    return false;
  }
  ByteWriter(c.own_head).le32(static_cast<std::uint32_t>(receipt_of(*c.transfer)));
  ByteWriter(c.own_head).le32(static_cast<std::uint32_t>(receipt_of(*c.transfer) >> 32));
  return true;
}

void App::read(netstack::SocketId id, Connection& c) {
  Instant now = world_.now();
  Bytes spans[kSpansPerPeek];
  bool got_head = false;
  while (std::size_t n = stack_.peek(id, spans)) {
    std::size_t consumed = 0;
    for (std::size_t i = 0; i < n; ++i) {
      Bytes b = spans[i];
      consumed += b.size();
      if (!c.is_client && c.head.size() < kHeadSize) {
        std::size_t take = std::min(b.size(), kHeadSize - c.head.size());
        append(c.head, b.first(take));
        b = b.subspan(take);
        if (c.head.size() < kHeadSize) continue;
        if (!accept_head(c)) {
          connections_.erase(id);
          stack_.abort(now, id);
          return;
        }
        got_head = true;
      }
      Transfer& t = *c.transfer;
      if (c.is_client) {
        if (!t.first_byte && !b.empty()) t.first_byte = now;
        std::size_t data = static_cast<std::size_t>(std::min<std::uint64_t>(b.size(), t.down_bytes - t.down_received));
        if (!ledger_.check(t, Ledger::Direction::kDown, t.down_received, b.first(data))) return;
        ledger_.note_progress(t, 0, data);
        append(c.head, b.subspan(data));
        if (c.head.size() > kReceiptSize) return world_.fail("bytes behind the receipt of " + t.describe());
      } else {
        if (t.up_received + b.size() > t.up_bytes) return world_.fail("more bytes than were sent: " + t.describe());
        if (!ledger_.check(t, Ledger::Direction::kUp, t.up_received, b)) return;
        ledger_.note_progress(t, b.size(), 0);
      }
    }
    stack_.consume(now, id, consumed);
  }
  if (c.is_client && stack_.read_eof(id)) {
    ByteReader receipt(c.head);
    bool right = receipt.le64() == receipt_of(*c.transfer) && receipt.ok();
    bool complete = c.transfer->down_received == c.transfer->down_bytes && c.transfer->up_received == c.transfer->up_bytes;
    if (right && !complete) return world_.fail("a receipt for what did not arrive: " + c.transfer->describe());
    std::optional<Error> error;
    if (!right) error = Error{ErrorCode::kProtocol, "the answer ended too early"};
    return end(id, error);
  }
  // The client has its receipt, or has given up.
  if (!c.is_client && stack_.read_eof(id)) return end(id, std::nullopt);
  if (got_head || (!c.is_client && c.transfer && !c.finished_writing)) write(id, c);
}

void App::write(netstack::SocketId id, Connection& c) {
  if (!c.transfer || c.finished_writing) return;
  Instant now = world_.now();
  Transfer& t = *c.transfer;
  auto write_head = [&] {
    c.own_head_at += stack_.write(now, id, Bytes(c.own_head).subspan(c.own_head_at));
    return c.own_head_at == c.own_head.size();
  };
  if (c.is_client && !write_head()) return;
  std::uint64_t size = c.is_client ? t.up_bytes : t.down_bytes;
  auto direction = c.is_client ? Ledger::Direction::kUp : Ledger::Direction::kDown;
  std::uint8_t block[kBlock];
  while (c.written < size) {
    std::size_t n = static_cast<std::size_t>(std::min<std::uint64_t>(sizeof block, size - c.written));
    Ledger::fill(t.id, direction, c.written, MutBytes(block, n));
    std::size_t taken = stack_.write(now, id, Bytes(block, n));
    c.written += taken;
    if (taken < n) return;
  }
  if (c.is_client) {
    c.finished_writing = true;
  } else if (t.up_received == t.up_bytes && write_head()) {
    c.finished_writing = true;
    stack_.shutdown_write(now, id);
  }
}

}  // namespace porthole::sim
