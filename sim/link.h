// One direction of a link: delay, jitter, loss, rate with a drop-tail queue, reordering, duplication.
#pragma once

#include <array>
#include <cstddef>

#include "base/rng.h"
#include "base/time.h"

namespace porthole::sim {

struct LinkConfig {
  Duration delay = 10ms;
  Duration jitter{};            // 0 to this is added; the order stays
  double loss = 0;              // chance of each datagram by itself
  // Gilbert-Elliott: the chance, per datagram, to enter and to leave a bad spell, and of loss during it.
  double burst_enter = 0;
  double burst_leave = 0.25;
  double burst_loss = 0.7;
  double rate = 0;              // bytes a second; 0: no limit
  std::size_t queue_bytes = 0;  // beyond it datagrams are dropped; 0: what the rate carries in 150 ms
  double reorder = 0;           // chance to be overtaken by those sent up to reorder_delay later
  Duration reorder_delay = 5ms;
  double duplicate = 0;
};

class Link {
 public:
  Link(const LinkConfig& initial, SeededRng rng) : config(initial), rng_(rng) {}

  // May be changed at any time.
  LinkConfig config;
  bool up = true;

  struct Arrivals {
    const char* verdict = "";      // why nothing arrives
    std::array<Instant, 2> at{};
    std::size_t count = 0;
  };
  Arrivals carry(Instant now, std::size_t size_bytes);
  // Whether one packet of a stream would be lost now.
  bool loses();

 private:
  SeededRng rng_;
  bool bad_spell_ = false;
  Instant busy_until_;
  Instant last_arrival_;
};

}  // namespace porthole::sim
