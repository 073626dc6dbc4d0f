// Bounds of the proxy handshakes, each with its reason.
#pragma once

#include <cstddef>

#include "base/time.h"

namespace porthole::proxy {

// From accept to a complete request: a local program needs milliseconds; a stuck one must not hold a connection for ever.
constexpr Duration kHandshakeTime = 10s;
// CONNECT heads are below 1 KiB, but plain requests bring their cookies, and servers take 8 to 32 KiB of them.
constexpr std::size_t kHttpHeadSizeMax = 32 * 1024;
// RFC 1035 section 2.3.4, without the trailing dot.
constexpr std::size_t kNameSizeMax = 253;
// Targets of one UDP association at a time, each a UDP socket of the netstack. A program talks to a name server, or to the
// devices of a household; one that talks to more still works, but from a new port after a while.
constexpr std::size_t kUdpTargetsMax = 32;
// RFC 4787 REQ-5: a UDP mapping lives for at least 2 minutes, 5 are recommended.
constexpr Duration kUdpTargetIdle = 5min;

}  // namespace porthole::proxy
