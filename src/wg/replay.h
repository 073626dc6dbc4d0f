// Which counters of one receiving key were seen (paper 5.4.6, RFC 6479): a ring of 128 words of 64 bits. The newest
// counter's word and the 127 before it are remembered, so everything at most 8128 behind the newest is judged exactly
// and everything older is refused:
//
//     ... refused | w w w ... 127 words ... w | newest word, partly filled | not seen yet
//
// Large on purpose: a path switch from a slow relay to a fast direct path reorders by more than a thousand packets.
#pragma once

#include <array>
#include <cstdint>

namespace porthole::wg {

class ReplayWindow {
 public:
  static constexpr std::uint64_t kWindow = 8128;

  // Would accept() say yes? For a look before the expensive decryption.
  bool fresh(std::uint64_t counter) const;
  // Call only for a message that authenticated. True once per counter.
  bool accept(std::uint64_t counter);

 private:
  static constexpr std::uint64_t kWords = 128;
  std::uint64_t newest_ = 0;
  std::array<std::uint64_t, kWords> seen_{};
};

}  // namespace porthole::wg
