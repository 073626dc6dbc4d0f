// What has arrived beyond the first gap, as intervals, and what to tell the sender about it.
// Exists only while there is a gap.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "netstack/limits.h"
#include "wire/tcp.h"

namespace porthole::netstack {

class OutOfOrder {
 public:
  struct Interval {
    std::uint64_t start = 0, end = 0;
    std::uint64_t changed = 0;  // counts up: the newest change has the highest
  };
  // An acknowledgment as it must look for one particular arrival.
  struct Snapshot {
    std::uint32_t acknowledgment = 0;
    std::uint8_t sack_count = 0;
    wire::SackBlock sack[wire::kSackBlocksMax];
  };

  bool empty() const { return intervals_.empty(); }
  const std::vector<Interval>& intervals() const { return intervals_; }
  std::uint64_t bytes() const { return bytes_; }
  std::uint64_t last_end() const { return intervals_.empty() ? 0 : intervals_.back().end; }

  // Adds [start, end). False: all of it was already here.
  bool add(std::uint64_t start, std::uint64_t end);
  // Removes and returns the end of the interval that reaches `at`, if one does; drops what lies wholly before.
  std::optional<std::uint64_t> take_contiguous(std::uint64_t at);
  // Drops the interval furthest to the right.
  Interval drop_last();

  // Up to `max` blocks behind an optional duplicate report: the latest change first (RFC 2018 4, RFC 2883 4).
  std::uint8_t fill_blocks(std::optional<wire::SackBlock> duplicate, std::size_t max,
                           wire::SackBlock (&out)[wire::kSackBlocksMax]) const;

  std::vector<Snapshot> pending;       // duplicate ACKs to send, one per segment at the start of an episode
  std::size_t acks_in_episode = 0;
  bool newer_than_pending = false;     // something came that none of them tells

 private:
  std::vector<Interval> intervals_;    // sorted, disjoint, not adjacent
  std::uint64_t bytes_ = 0;
  std::uint64_t clock_ = 0;
};

}  // namespace porthole::netstack
