#include "netstack/cubic.h"

#include <algorithm>
#include <cmath>

#include "netstack/spec_constants.h"

namespace porthole::netstack {
namespace {

constexpr double kC = 0.4;                                   // RFC 9438 5
constexpr double kBeta = 0.7;                                // RFC 9438 4.6
constexpr double kAlpha = 3 * (1 - kBeta) / (1 + kBeta);     // RFC 9438 4.3
constexpr double kMinCwnd = 2;
constexpr int kHystartSamples = 8;                           // RFC 9406 4.3, N_RTT_SAMPLE
constexpr Duration kMinRttThresh = 4ms, kMaxRttThresh = 16ms;
constexpr double kCssGrowthDivisor = 4;
constexpr int kCssRounds = 5;
// Linux's ratios: in slow start the window doubles within the round that is being paced.
constexpr double kPaceSlowStart = 2.0, kPaceAvoidance = 1.2;

double seconds(Duration d) { return std::chrono::duration<double>(d).count(); }

}  // namespace

std::unique_ptr<CongestionController> make_congestion_controller(CongestionAlgorithm algorithm, std::uint64_t segment) {
  switch (algorithm) {
    case CongestionAlgorithm::kCubic: break;
  }
  return std::make_unique<Cubic>(segment);
}

Cubic::Cubic(std::uint64_t segment) : segment_(static_cast<double>(segment)) { w_.cwnd = kInitialWindowSegments; }

void Cubic::on_sent(Instant, std::uint64_t, std::uint64_t) {}

void Cubic::on_ack(const AckSample& sample) {
  srtt_ = sample.srtt;
  if (sample.round_start) {
    // A round has ended: HyStart++ judges whole rounds only.
    if (in_css_ && ++css_rounds_ >= kCssRounds) {
      w_.ssthresh = w_.cwnd;
      in_css_ = false;
    }
    last_round_min_rtt_ = round_min_rtt_;
    round_min_rtt_ = Duration::max();
    round_samples_ = 0;
  }
  if (sample.rtt > Duration::zero()) {
    round_min_rtt_ = std::min(round_min_rtt_, sample.rtt);
    ++round_samples_;
  }
  Instant previous = last_ack_;
  last_ack_ = sample.now;
  if (sample.in_recovery || sample.delivered == 0) return;
  if (!sample.cwnd_limited) {
    // Time without use of the window must not count as growth (RFC 9438 4.2).
    if (w_.epoch_running) w_.epoch_start = std::min(w_.epoch_start + (sample.now - previous), sample.now);
    return;
  }
  double acked = static_cast<double>(sample.delivered) / segment_;
  if (in_slow_start()) slow_start(sample, acked);
  else avoid_congestion(sample, acked);
}

void Cubic::slow_start(const AckSample&, double acked) {
  if (w_.ssthresh == kNoThreshold && round_samples_ >= kHystartSamples && last_round_min_rtt_ != Duration::max()) {
    if (!in_css_) {
      Duration threshold = std::clamp(last_round_min_rtt_ / 8, kMinRttThresh, kMaxRttThresh);
      if (round_min_rtt_ >= last_round_min_rtt_ + threshold) {
        in_css_ = true;
        css_rounds_ = 0;
        css_baseline_ = round_min_rtt_;
      }
    } else if (round_min_rtt_ < css_baseline_) {
      in_css_ = false;
    }
  }
  w_.cwnd = std::min(w_.cwnd + (in_css_ ? acked / kCssGrowthDivisor : acked), std::max(w_.ssthresh, w_.cwnd));
}

void Cubic::avoid_congestion(const AckSample& sample, double acked) {
  if (!w_.epoch_running) {
    w_.epoch_running = true;
    w_.epoch_start = sample.now;
    if (w_.after_timeout || w_.w_max <= w_.cwnd) {
      w_.w_max = w_.cwnd;
      w_.k_seconds = 0;
    } else {
      w_.k_seconds = std::cbrt((w_.w_max - w_.cwnd) / kC);
    }
    w_.after_timeout = false;
    w_.w_est = w_.cwnd;
  }
  double t = seconds(sample.now - w_.epoch_start);
  auto w_cubic = [&](double at) { return kC * std::pow(at - w_.k_seconds, 3) + w_.w_max; };
  double alpha = w_.w_est >= w_.cwnd_prior ? 1.0 : kAlpha;
  w_.w_est += alpha * acked / w_.cwnd;
  double target = std::clamp(w_cubic(t + seconds(sample.srtt)), w_.cwnd, 1.5 * w_.cwnd);
  if (w_cubic(t) < w_.w_est) {
    w_.cwnd = std::max(w_.cwnd, w_.w_est);
  } else {
    w_.cwnd += (target - w_.cwnd) / w_.cwnd * acked;
  }
}

void Cubic::reduce(double in_flight) {
  saved_ = w_;
  can_undo_ = true;
  w_.cwnd_prior = w_.cwnd;
  w_.w_max = w_.cwnd < w_.w_max ? w_.cwnd * (1 + kBeta) / 2 : w_.cwnd;
  w_.ssthresh = std::max(kMinCwnd, kBeta * std::min(in_flight, w_.cwnd));
  w_.epoch_running = false;
  in_css_ = false;
}

void Cubic::on_enter_recovery(Instant, std::uint64_t in_flight) {
  reduce(static_cast<double>(in_flight) / segment_);
  w_.cwnd = std::max(w_.ssthresh, kMinCwnd);
}

void Cubic::on_exit_recovery(Instant) { w_.cwnd = std::max(w_.ssthresh, kMinCwnd); }

void Cubic::on_timeout(Instant, std::uint64_t in_flight, bool first) {
  if (first) reduce(static_cast<double>(in_flight) / segment_);
  w_.cwnd = 1;
  w_.after_timeout = true;
}

void Cubic::on_spurious(Instant) {
  if (!can_undo_) return;
  double grown = w_.cwnd;
  w_ = saved_;
  w_.cwnd = std::max(w_.cwnd, grown);
  can_undo_ = false;
}

void Cubic::on_idle_restart(Instant, Duration) {
  // RFC 7661 4.4.3: what was not validated for a while is halved, never below the initial window.
  w_.ssthresh = std::max(w_.ssthresh, 0.75 * w_.cwnd);
  w_.cwnd = std::max(w_.cwnd / 2, std::min(w_.cwnd, static_cast<double>(kInitialWindowSegments)));
  w_.epoch_running = false;
}

void Cubic::on_path_change(Instant, PathChange kind) {
  if (kind != PathChange::kDirect && kind != PathChange::kRelayed) return;
  // Round trip times of two paths cannot be compared.
  round_min_rtt_ = last_round_min_rtt_ = css_baseline_ = Duration::max();
  round_samples_ = 0;
  in_css_ = false;
}

void Cubic::on_segment_size(std::uint64_t segment) {
  double ratio = segment_ / static_cast<double>(segment);
  for (Window* w : {&w_, &saved_}) {
    w->cwnd *= ratio;
    w->ssthresh *= ratio;
    w->w_max *= ratio;
    w->cwnd_prior *= ratio;
    w->w_est *= ratio;
    w->epoch_running = false;
  }
  segment_ = static_cast<double>(segment);
}

std::uint64_t Cubic::cwnd() const { return static_cast<std::uint64_t>(std::max(w_.cwnd, 1.0) * segment_); }
std::uint64_t Cubic::ssthresh() const {
  return w_.ssthresh == kNoThreshold ? std::numeric_limits<std::uint64_t>::max()
                                     : static_cast<std::uint64_t>(w_.ssthresh * segment_);
}
std::uint64_t Cubic::pacing_rate() const {
  if (srtt_ <= Duration::zero()) return 0;
  double factor = w_.cwnd < w_.ssthresh / 2 ? kPaceSlowStart : kPaceAvoidance;
  return static_cast<std::uint64_t>(factor * std::max(w_.cwnd, 1.0) * segment_ / seconds(srtt_));
}

}  // namespace porthole::netstack
