// What simulated apps send each other, and what must be true of it. A transfer is one TCP connection on the tailnet:
//
//   client -> server   magic, account, id, sizes (40 bytes), then `up` bytes
//   server -> client   `down` bytes at the same time, then, once all of `up` has come, an 8-byte receipt, FIN
//
// Every byte is a function of transfer, direction and offset; both sides compare each one with what it must be. The
// server also sees that the client belongs to its own account. Whatever differs breaks the world (World::fail).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "base/result.h"
#include "sim/world.h"

namespace porthole::sim {

struct Transfer {
  enum class State { kConnecting, kRunning, kDone, kFailed };

  std::uint64_t id = 0;
  std::string from, to;
  std::uint64_t up_bytes = 0, down_bytes = 0;
  State state = State::kConnecting;
  std::optional<Error> error;

  Instant started;
  std::optional<Instant> first_byte;   // of the answer, at the client
  std::optional<Instant> ended;
  Instant last_progress;               // bytes reached either app
  Duration longest_pause{};            // between two of them, from `started`
  std::uint64_t up_received = 0, down_received = 0;

  bool is_over() const { return state == State::kDone || state == State::kFailed; }
  bool is_done() const { return state == State::kDone; }
  Duration until_first_byte() const { return first_byte ? *first_byte - started : Duration::max(); }
  std::string describe() const;
};
using TransferRef = std::shared_ptr<Transfer>;

class Ledger {
 public:
  explicit Ledger(World& world) : world_(world) {}

  TransferRef open(std::string from, std::string to, std::uint64_t up_bytes, std::uint64_t down_bytes);
  TransferRef find(std::uint64_t id) const;
  void note_progress(Transfer& transfer, std::uint64_t up, std::uint64_t down);
  void note_end(Transfer& transfer, std::optional<Error> error);

  enum class Direction { kUp, kDown };
  static void fill(std::uint64_t id, Direction direction, std::uint64_t offset, MutBytes out);
  // False, and the world is broken, where a byte is not what it must be.
  bool check(const Transfer& transfer, Direction direction, std::uint64_t offset, Bytes bytes);

  std::uint64_t done() const { return done_; }
  std::uint64_t failed() const { return failed_; }

 private:
  World& world_;
  std::uint64_t next_id_ = 1;
  std::map<std::uint64_t, TransferRef> open_;
  std::uint64_t done_ = 0, failed_ = 0;
};

}  // namespace porthole::sim
