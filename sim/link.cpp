#include "sim/link.h"

#include <algorithm>

namespace porthole::sim {
namespace {
// Ten full packets: what even the slowest line queues.
constexpr double kQueueMin = 15'000;
}  // namespace

bool Link::loses() {
  if (config.burst_enter > 0) {
    bad_spell_ = bad_spell_ ? rng_.unit() >= config.burst_leave : rng_.unit() < config.burst_enter;
    if (bad_spell_ && rng_.unit() < config.burst_loss) return true;
  }
  return config.loss > 0 && rng_.unit() < config.loss;
}

Link::Arrivals Link::carry(Instant now, std::size_t size_bytes) {
  Arrivals out;
  if (!up) {
    out.verdict = "lost: link down";
    return out;
  }
  if (loses()) {
    out.verdict = "lost";
    return out;
  }
  Instant leaves = now;
  if (config.rate > 0) {
    Instant start = std::max(now, busy_until_);
    double waiting = static_cast<double>((start - now).count()) * 1e-9 * config.rate;
    double room = config.queue_bytes != 0 ? static_cast<double>(config.queue_bytes) : std::max(config.rate * 0.15, kQueueMin);
    if (waiting > room) {
      out.verdict = "lost: queue full";
      return out;
    }
    leaves = start + Duration(static_cast<std::int64_t>(static_cast<double>(size_bytes) / config.rate * 1e9));
    busy_until_ = leaves;
  }
  Instant arrives = leaves + config.delay;
  if (config.jitter > Duration::zero()) arrives = arrives + rng_.between(Duration::zero(), config.jitter);
  if (config.reorder > 0 && rng_.unit() < config.reorder) {
    arrives = arrives + rng_.between(Duration(1), config.reorder_delay);
  } else {
    arrives = std::max(arrives, last_arrival_);
    last_arrival_ = arrives;
  }
  out.at[out.count++] = arrives;
  if (config.duplicate > 0 && rng_.unit() < config.duplicate) out.at[out.count++] = arrives + rng_.between(Duration(0), config.reorder_delay);
  return out;
}

}  // namespace porthole::sim
