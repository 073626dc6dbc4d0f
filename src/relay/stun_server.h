// Answers STUN binding requests, so that nodes learn the address under which the Internet sees them. Stateless.
#pragma once

#include <array>
#include <cstdint>

#include "base/bytes.h"
#include "base/ip.h"
#include "wire/stun.h"

namespace porthole::relay {

struct StunCounters {
  std::uint64_t answered_v4 = 0;
  std::uint64_t answered_v6 = 0;
  std::uint64_t ignored = 0;  // not a request in the form that the field's nodes send
};

// An answer is at most a tenth larger than its request and goes only to complete requests with a right fingerprint:
// nothing to gain for a reflection attack.
class StunServer {
 public:
  // `any_software`: also answer other programs than tailnet nodes.
  explicit StunServer(bool any_software = false) : any_software_(any_software) {}

  // The answer, or empty: stay silent. Send it from the local address that the request hit. Valid until the next call.
  Bytes answer(const Endpoint& source, Bytes datagram);
  const StunCounters& counters() const { return counters_; }

 private:
  bool any_software_;
  std::array<std::uint8_t, wire::stun::kResponseSizeMax> buffer_{};
  StunCounters counters_;
};

}  // namespace porthole::relay
