// CUBIC (RFC 9438) with HyStart++ (RFC 9406).
#pragma once

#include <limits>

#include "netstack/congestion.h"

namespace porthole::netstack {

class Cubic final : public CongestionController {
 public:
  explicit Cubic(std::uint64_t segment);

  void on_sent(Instant now, std::uint64_t bytes, std::uint64_t in_flight) override;
  void on_ack(const AckSample& sample) override;
  void on_enter_recovery(Instant now, std::uint64_t in_flight) override;
  void on_exit_recovery(Instant now) override;
  void on_timeout(Instant now, std::uint64_t in_flight, bool first) override;
  void on_spurious(Instant now) override;
  void on_idle_restart(Instant now, Duration idle) override;
  void on_path_change(Instant now, PathChange kind) override;
  void on_segment_size(std::uint64_t segment) override;
  std::uint64_t cwnd() const override;
  std::uint64_t ssthresh() const override;
  std::uint64_t pacing_rate() const override;
  bool uses_rate_reduction() const override { return true; }

 private:
  static constexpr double kNoThreshold = std::numeric_limits<double>::infinity();

  // All windows in segments.
  struct Window {
    double cwnd = 10;
    double ssthresh = kNoThreshold;
    double w_max = 0;
    double cwnd_prior = 0;    // before the last reduction
    bool epoch_running = false;
    bool after_timeout = false;  // the next epoch starts with K = 0
    Instant epoch_start;
    double k_seconds = 0;
    double w_est = 0;
  };

  void slow_start(const AckSample& sample, double acked);
  void avoid_congestion(const AckSample& sample, double acked);
  void reduce(double in_flight);
  bool in_slow_start() const { return w_.cwnd < w_.ssthresh; }

  double segment_;
  Window w_;
  Window saved_;               // before the last reduction, for on_spurious()
  bool can_undo_ = false;
  Duration srtt_{};
  Instant last_ack_;

  // HyStart++ (RFC 9406 4.2)
  Duration round_min_rtt_ = Duration::max();
  Duration last_round_min_rtt_ = Duration::max();
  Duration css_baseline_ = Duration::max();
  int round_samples_ = 0;
  int css_rounds_ = 0;
  bool in_css_ = false;
};

}  // namespace porthole::netstack
