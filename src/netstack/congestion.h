// What a congestion controller is told and what it answers. Loss detection, retransmission and proportional rate
// reduction belong to the connection; the controller only decides how much may be in flight and how fast.
// Everything counts bytes: receivers acknowledge long stretches at once.
#pragma once

#include <cstdint>
#include <memory>

#include "base/time.h"
#include "netstack/stack.h"

namespace porthole::netstack {

// One acknowledgment that delivered something or showed a loss.
struct AckSample {
  Instant now;
  std::uint64_t delivered = 0;         // bytes newly acknowledged or selectively acknowledged
  std::uint64_t lost = 0;              // bytes newly marked lost
  std::uint64_t prior_in_flight = 0;   // before this acknowledgment
  std::uint64_t in_flight = 0;         // after it
  std::uint64_t segment = 0;           // payload bytes of a full segment
  Duration rtt = Duration::zero();     // of the newest segment delivered; zero: no valid sample
  Duration srtt = Duration::zero();
  Duration min_rtt = Duration::zero();
  std::uint64_t delivery_rate = 0;     // bytes per second; 0: no sample
  bool rate_app_limited = false;       // the sample is a lower bound only
  std::uint64_t in_flight_at_send = 0; // of the newest segment delivered
  std::uint64_t lost_since_send = 0;
  bool round_start = false;            // data sent after the last round began has arrived
  bool cwnd_limited = false;           // the window was really used in this round
  bool in_recovery = false;            // fast recovery: proportional rate reduction is in charge of the window
};

class CongestionController {
 public:
  virtual ~CongestionController() = default;
  virtual void on_sent(Instant now, std::uint64_t bytes, std::uint64_t in_flight) = 0;
  virtual void on_ack(const AckSample& sample) = 0;
  // Fast recovery begins; `in_flight` before anything was marked lost.
  virtual void on_enter_recovery(Instant now, std::uint64_t in_flight) = 0;
  virtual void on_exit_recovery(Instant now) = 0;
  // A retransmission timeout; `first` of a series without progress in between.
  virtual void on_timeout(Instant now, std::uint64_t in_flight, bool first) = 0;
  // The last recovery or timeout was a false alarm: take back what it did.
  virtual void on_spurious(Instant now) = 0;
  virtual void on_idle_restart(Instant now, Duration idle) = 0;
  virtual void on_path_change(Instant now, PathChange kind) = 0;
  virtual void on_segment_size(std::uint64_t segment) = 0;

  virtual std::uint64_t cwnd() const = 0;          // bytes
  virtual std::uint64_t ssthresh() const = 0;      // bytes; UINT64_MAX: none yet
  virtual std::uint64_t pacing_rate() const = 0;   // bytes per second; 0: no idea yet, send unpaced
  // Loss-based: the connection runs proportional rate reduction towards ssthresh() in fast recovery.
  virtual bool uses_rate_reduction() const = 0;
};

std::unique_ptr<CongestionController> make_congestion_controller(CongestionAlgorithm algorithm, std::uint64_t segment);

}  // namespace porthole::netstack
