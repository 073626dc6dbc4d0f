#include "paths/home.h"

#include <algorithm>

#include "paths/spec_constants.h"

namespace porthole::paths {
namespace {

Duration scaled(Duration latency, const std::map<int, double>& scores, int region) {
  auto it = scores.find(region);
  if (it == scores.end() || !(it->second > 0)) return latency;
  return Duration(static_cast<std::int64_t>(static_cast<double>(latency.count()) * it->second));
}

}  // namespace

void HomeHistory::add(Instant now, RegionLatencies run) {
  std::erase_if(runs_, [&](const Run& r) { return now - r.at > kHomeHistory; });
  // Forced runs may follow each other quickly; the oldest of many tells least.
  constexpr std::size_t kRunsMax = 64;
  if (runs_.size() >= kRunsMax) runs_.pop_front();
  runs_.push_back({now, std::move(run)});
}

std::optional<Duration> HomeHistory::lowest(int region) const {
  std::optional<Duration> out;
  for (const Run& r : runs_) {
    auto it = r.latencies.find(region);
    if (it != r.latencies.end() && (!out || it->second < *out)) out = it->second;
  }
  return out;
}

int choose_home(const HomeInput& in) {
  int home = 0;
  Duration best{};
  for (const auto& [region, latency] : in.current) {
    const Duration d = scaled(in.history.lowest(region).value_or(latency), in.scores, region);
    if (home == 0 || d < best) {
      home = region;
      best = d;
    }
  }
  const int previous = in.previous;
  if (previous == 0) return home;

  auto current = in.current.find(previous);
  auto heard = in.heard.find(previous);
  const bool was_heard = heard != in.heard.end();
  const bool accessible = current != in.current.end() ||
                          (was_heard && (heard->second > in.run_started || in.now - heard->second <= kHomeHeardRecently));
  if (home != 0 && home != previous && accessible) {
    const Duration old = current != in.current.end() ? scaled(current->second, in.scores, previous) : Duration(0);
    if (old - best < kPreferredDerpAbsoluteDiff || best > old / 3 * 2) home = previous;
  }
  if (home == 0 && was_heard && in.now - heard->second <= kHomeHeardFallback) home = previous;
  return home;
}

}  // namespace porthole::paths
