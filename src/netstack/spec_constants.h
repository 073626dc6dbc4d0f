// Constants that a standard names, with its section.
#pragma once

#include "base/time.h"

namespace porthole::netstack {

inline constexpr Duration kInitialRto = 1s;                 // RFC 6298 2.1
inline constexpr Duration kInitialRtoAfterSynResend = 3s;   // RFC 6298 5.7
inline constexpr Duration kMaxRto = 60s;                    // RFC 6298 2.5
inline constexpr Duration kMsl = 30s;                       // RFC 9293 3.4.2 allows an engineering choice
inline constexpr Duration kTimeWaitTime = 2 * kMsl;             // RFC 9293 3.4.2
inline constexpr int kInitialWindowSegments = 10;           // RFC 6928 2
inline constexpr int kDefaultMssV4 = 536;                   // RFC 9293 3.7.1
inline constexpr int kDefaultMssV6 = 1220;                  // RFC 9293 3.7.1
inline constexpr Duration kPawsIdle = std::chrono::hours(24 * 24);  // RFC 7323 5.5
inline constexpr Duration kTlpMaxAckDelay = 200ms;          // RFC 8985 7.2 (WCDelAckT)
inline constexpr int kRackReorderingThreshold = 3;          // RFC 8985 6.2 (DupThresh)
inline constexpr int kRackReoWndPersist = 16;               // RFC 8985 6.2 step 4, in recoveries
inline constexpr Duration kReassemblyTimeoutV4 = 30s;       // RFC 791 3.2 allows; RFC 1122 asks 60..120
inline constexpr Duration kReassemblyTimeoutV6 = 60s;       // RFC 8200 4.5
inline constexpr int kMinIpv6Mtu = 1280;                    // RFC 8200 5
inline constexpr int kMinIpv4Mtu = 552;                     // smallest path MTU believed
inline constexpr Duration kPathMtuLifetime = 10min;         // RFC 1191 6.3, RFC 8201 4

}  // namespace porthole::netstack
