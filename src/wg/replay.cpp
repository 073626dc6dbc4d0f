#include "wg/replay.h"

#include <algorithm>

#include "wg/spec_constants.h"

namespace porthole::wg {

bool ReplayWindow::fresh(std::uint64_t counter) const {
  if (counter >= kRejectAfterMessages) return false;
  if (counter > newest_) return true;
  if (newest_ - counter > kWindow) return false;
  return (seen_[(counter >> 6) % kWords] >> (counter & 63) & 1) == 0;
}

bool ReplayWindow::accept(std::uint64_t counter) {
  if (!fresh(counter)) return false;
  if (counter > newest_) {
    const std::uint64_t from = newest_ >> 6;
    const std::uint64_t steps = std::min((counter >> 6) - from, kWords);
    for (std::uint64_t i = 1; i <= steps; ++i) seen_[(from + i) % kWords] = 0;
    newest_ = counter;
  }
  seen_[(counter >> 6) % kWords] |= std::uint64_t{1} << (counter & 63);
  return true;
}

}  // namespace porthole::wg
