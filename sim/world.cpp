#include "sim/world.h"

#include <algorithm>

namespace porthole::sim {

World::World(std::uint64_t seed) : seed_(seed) {}

SeededRng World::rng(std::string_view purpose) const {
  std::uint64_t x = seed_ * 0x9e3779b97f4a7c15 + hash_bytes(as_bytes(purpose));
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  return SeededRng(x ^ (x >> 27));
}

void World::at(Instant when, std::function<void()> action) {
  heap_.push_back({std::max(when, now_), next_sequence_++, std::move(action)});
  std::push_heap(heap_.begin(), heap_.end(), Later());
}

bool World::step() {
  if (failed() || heap_.empty()) return false;
  std::pop_heap(heap_.begin(), heap_.end(), Later());
  Event event = std::move(heap_.back());
  heap_.pop_back();
  if (event.at > now_) at_this_instant_ = 0;
  if (++at_this_instant_ > kEventsPerInstantMax) {
    fail("time stands still: a timer fires again and again");
    return false;
  }
  now_ = event.at;
  event.action();
  return !failed();
}

bool World::run_until(const std::function<bool()>& done, Duration limit) {
  Instant end = now_ + limit;
  if (done()) return true;
  while (!failed() && !heap_.empty() && heap_.front().at <= end) {
    if (!step()) return false;
    if (done()) return true;
  }
  if (!failed()) now_ = end;
  return false;
}

bool World::run_for(Duration time) {
  run_until([] { return false; }, time);
  return !failed();
}

void World::fail(std::string what) {
  note("world", what);
  if (failure_.empty()) failure_ = std::move(what);
}

std::string World::report() const {
  std::string out = "\n---- seed " + std::to_string(seed_) + ", " + std::to_string(elapsed().count() / 1'000'000) + " ms simulated\n";
  out += trace_.text(kStart);
  if (failed()) out += "broken: " + failure_ + "\n";
  return out;
}

Alarm::Alarm(World& world, std::function<void()> action)
    : world_(world), action_(std::move(action)), generation_(std::make_shared<std::uint64_t>(1)) {}

void Alarm::set(Instant at) {
  at = std::max(at, world_.now());
  if (at >= armed_ || at == Instant::max()) return;
  armed_ = at;
  *generation_ = ++last_;
  world_.at(at, [this, generation = generation_, mine = last_] {
    if (*generation != mine) return;
    armed_ = Instant::max();
    action_();
  });
}

void Alarm::cancel() {
  armed_ = Instant::max();
  *generation_ = ++last_;
}

}  // namespace porthole::sim
