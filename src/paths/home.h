// Home region: where peers find us when there is no direct path. Kept steady on purpose, since every change costs all
// peers an update.
#pragma once

#include <deque>
#include <map>
#include <optional>

#include "base/time.h"
#include "paths/paths.h"

namespace porthole::paths {

using RegionLatencies = std::map<int, Duration>;   // region -> lower of both families

class HomeHistory {
 public:
  // Adds a finished run and forgets those that are too old.
  void add(Instant now, RegionLatencies run);
  // Lowest latency of a region over the remembered runs.
  std::optional<Duration> lowest(int region) const;
  void clear() { runs_.clear(); }

 private:
  struct Run {
    Instant at;
    RegionLatencies latencies;
  };
  std::deque<Run> runs_;
};

struct HomeInput {
  const RegionLatencies& current;            // this run
  const HomeHistory& history;                // this run included
  const std::map<int, double>& scores;       // missing: 1
  const std::map<int, Instant>& heard;       // last relay frame per region
  int previous = 0;
  Instant run_started;
  Instant now;
};
// 0 when nothing answered and the previous home was not heard lately either.
int choose_home(const HomeInput& in);

}  // namespace porthole::paths
