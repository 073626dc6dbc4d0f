// The sender's scoreboard: one record per segment sent and not yet cumulatively acknowledged, in sequence order, and
// through it a list in order of (last) transmission of those believed to be in the network.
//
//   sequence order   [ 0 | 1 | 2 | 3 | 4 | 5 ]      ring of records, ids count up and never repeat
//   in the network     0 -> 3 -> 5 -> 2             2 was sent again; 1 is lost and waits, 4 arrived (SACK)
//
// The sum of the lengths in that list is the pipe of RFC 6675. RACK (RFC 8985) walks the list from its old end.
#pragma once

#include <cstdint>
#include <vector>

#include "base/time.h"

namespace porthole::netstack {

struct SentSegment {
  enum Flag : std::uint8_t {
    kSacked = 1,
    kLost = 2,          // marked lost and not sent again since
    kResent = 4,        // sent more than once
    kAppLimited = 8,    // the application had no more when this was sent
    kFin = 16,
    kInNetwork = 32,    // member of the transmission list
    kRestamped = 64,    // back in the network after a false alarm: `sent` only gives it a place, it measures nothing
  };
  std::uint64_t sequence = 0;
  std::uint32_t size = 0;        // sequence space, FIN included
  std::uint8_t flags = 0;
  std::uint32_t ts_value = 0;    // timestamp option of the latest transmission
  Instant sent;                  // latest transmission
  // State when it was (last) sent, for the delivery rate.
  Instant first_sent;            // start of the sending phase it belongs to
  Instant delivered_time;
  std::uint64_t delivered = 0;
  std::uint64_t lost = 0;
  std::uint32_t in_flight = 0;
  std::uint64_t older = 0, newer = 0;  // transmission list, by id

  std::uint64_t end() const { return sequence + size; }
  bool has(std::uint8_t f) const { return (flags & f) != 0; }
};

class SentSegments {
 public:
  using Id = std::uint64_t;
  static constexpr Id kNone = 0;

  bool empty() const { return head_ == tail_; }
  std::size_t size() const { return static_cast<std::size_t>(tail_ - head_); }
  Id first() const { return head_; }
  Id end() const { return tail_; }   // one past the last
  SentSegment& operator[](Id id) { return records_[id & mask_]; }
  const SentSegment& operator[](Id id) const { return records_[id & mask_]; }

  // Appends a record (its sequence is the end of the last one) and returns its id.
  Id append(const SentSegment& segment);
  void pop_front();
  // First record whose end is beyond `sequence`.
  Id find(std::uint64_t sequence) const;

  // The transmission list.
  Id oldest() const { return oldest_; }
  Id newest() const { return newest_; }
  void link_newest(Id id);
  void unlink(Id id);
  std::uint64_t pipe() const { return pipe_; }

  // A record shrinks from the front (partial acknowledgment).
  void trim_front(Id id, std::uint32_t bytes);

  void clear();
  std::uint64_t recount_pipe() const;

 private:
  void grow();
  std::vector<SentSegment> records_;
  std::uint64_t mask_ = 0;
  Id head_ = 1, tail_ = 1;   // ids start at 1 so that 0 means none
  Id oldest_ = kNone, newest_ = kNone;
  std::uint64_t pipe_ = 0;
};

}  // namespace porthole::netstack
