// The last things that happened in a simulated world, for the report of a failure, and a digest of everything that
// ever happened, for the proof that a seed decides all of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/ip.h"
#include "base/time.h"

namespace porthole::sim {

class Trace {
 public:
  // What somebody did or said.
  void note(Instant at, std::string_view who, std::string_view what);
  // A datagram and what became of it. `verdict` must live for ever.
  void datagram(Instant at, const char* verdict, const Endpoint& source, const Endpoint& destination, Bytes data);

  // Of all that was recorded so far.
  std::uint64_t digest() const { return digest_; }
  // The last lines, oldest first. Times count from `origin`.
  std::string text(Instant origin) const;

 private:
  struct Line {
    Instant at;
    const char* verdict = nullptr;  // set: a datagram
    Endpoint source, destination;
    std::size_t size = 0;
    std::string text;
  };
  // Enough to see the cause of a failure, short enough to read: notes and datagrams are kept apart, since thousands of
  // datagrams may lie between two notes.
  static constexpr std::size_t kNotesKept = 200;
  static constexpr std::size_t kDatagramsKept = 120;

  struct Ring {
    std::vector<Line> lines;
    std::size_t next = 0;
    Line& put(std::size_t kept);
  };
  void mix(std::uint64_t value);

  Ring notes_;
  Ring datagrams_;
  std::uint64_t digest_ = 0x9e3779b97f4a7c15;
};

}  // namespace porthole::sim
