#include "sim/ledger.h"

#include <algorithm>

namespace porthole::sim {
namespace {

// A pause that a failure's report should show.
constexpr Duration kWorthNoting = 500ms;

std::uint64_t block(std::uint64_t key, std::uint64_t index) {
  std::uint64_t x = key + (index + 1) * 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

std::uint64_t key_of(std::uint64_t id, Ledger::Direction direction) {
  return id * 2 + (direction == Ledger::Direction::kUp ? 0 : 1);
}

}  // namespace

std::string Transfer::describe() const {
  static constexpr const char* kStates[] = {"connecting", "running", "done", "failed"};
  return "transfer " + std::to_string(id) + " " + from + " > " + to + ": " + kStates[static_cast<int>(state)] + ", up " +
         std::to_string(up_received) + "/" + std::to_string(up_bytes) + ", down " + std::to_string(down_received) + "/" +
         std::to_string(down_bytes) + ", longest pause " + std::to_string(longest_pause.count() / 1'000'000) + " ms" +
         (error ? ", " + error->message : std::string());
}

TransferRef Ledger::open(std::string from, std::string to, std::uint64_t up_bytes, std::uint64_t down_bytes) {
  auto t = std::make_shared<Transfer>();
  t->id = next_id_++;
  t->from = std::move(from);
  t->to = std::move(to);
  t->up_bytes = up_bytes;
  t->down_bytes = down_bytes;
  t->started = t->last_progress = world_.now();
  open_[t->id] = t;
  world_.note("ledger", t->describe());
  return t;
}

TransferRef Ledger::find(std::uint64_t id) const {
  auto it = open_.find(id);
  return it == open_.end() ? nullptr : it->second;
}

void Ledger::note_progress(Transfer& t, std::uint64_t up, std::uint64_t down) {
  t.up_received += up;
  t.down_received += down;
  if (world_.now() - t.last_progress > kWorthNoting) world_.note("ledger", "after " + std::to_string((world_.now() - t.last_progress).count() / 1'000'000) + " ms: " + t.describe());
  t.longest_pause = std::max(t.longest_pause, world_.now() - t.last_progress);
  t.last_progress = world_.now();
}

void Ledger::note_end(Transfer& t, std::optional<Error> error) {
  if (t.is_over()) return;
  t.state = error ? Transfer::State::kFailed : Transfer::State::kDone;
  ++(error ? failed_ : done_);
  t.error = std::move(error);
  t.ended = world_.now();
  world_.note("ledger", t.describe());
  open_.erase(t.id);
}

void Ledger::fill(std::uint64_t id, Direction direction, std::uint64_t offset, MutBytes out) {
  std::uint64_t key = key_of(id, direction);
  std::size_t i = 0;
  while (i < out.size()) {
    std::uint8_t bytes[8];
    store_le(bytes, block(key, (offset + i) / 8));
    std::size_t at = (offset + i) % 8;
    std::size_t n = std::min<std::size_t>(8 - at, out.size() - i);
    std::memcpy(&out[i], bytes + at, n);
    i += n;
  }
}

bool Ledger::check(const Transfer& t, Direction direction, std::uint64_t offset, Bytes bytes) {
  std::uint8_t expected[1024];
  while (!bytes.empty()) {
    std::size_t n = std::min(bytes.size(), sizeof expected);
    fill(t.id, direction, offset, MutBytes(expected, n));
    if (!equal(bytes.first(n), Bytes(expected, n))) {
      world_.fail("wrong bytes arrived behind offset " + std::to_string(offset) + " of " + t.describe());
      return false;
    }
    offset += n;
    bytes = bytes.subspan(n);
  }
  return true;
}

}  // namespace porthole::sim
