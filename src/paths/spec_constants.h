// Timing and sizes of the Tailscale path protocol, under the names its own clients use.
#pragma once

#include "base/time.h"

namespace porthole::paths {

// ---- per peer ----
constexpr Duration kHeartbeatInterval = 3s;             // while traffic goes to the peer
constexpr Duration kSessionActiveTimeout = 45s;         // after the last send; also the life of a learned candidate
constexpr Duration kTrustUdpAddrDuration = 6500ms;      // after each pong of the best address
constexpr Duration kPingTimeoutDuration = 5s;
constexpr Duration kDiscoPingInterval = 5s;             // per candidate, in full rounds
constexpr Duration kUpgradeUdpDirectInterval = 60s;     // full round although the best address is trusted
constexpr Duration kGoodEnoughLatency = 5ms;            // no upgrade rounds at or below
constexpr Duration kEndpointsFreshEnoughDuration = 27s; // a CallMeMaybe may carry them
constexpr int kSafeWireMtu = 1360;                      // what an unpadded ping confirms

// ---- gathering ----
constexpr Duration kRestunIntervalMin = 20s, kRestunIntervalMax = 26s;
constexpr Duration kEndpointTrackerLifetime = 5min + 10s;
constexpr std::size_t kEndpointTrackerMaxPerAddress = 6;
constexpr Duration kRebindOnErrorInterval = 5s;

// ---- netcheck ----
constexpr Duration kFullReportInterval = 5min;
constexpr Duration kStunProbeTimeout = 3s;
constexpr Duration kReportTimeout = 5s;                 // the whole run; what STUN leaves of it is for HTTP
constexpr Duration kFullProbeSpacing = 100ms;
constexpr int kFullProbeTries = 3;
constexpr Duration kDefaultActiveRetransmitTime = 200ms;
constexpr Duration kLateTryExtra = 50ms;                // times the number of the try, from the third try on
constexpr int kNumIncrementalRegions = 3;
constexpr int kEnoughRegions = 3;
constexpr int kHomeTries = 4;
constexpr int kFastestTries = 2;

// ---- home region ----
constexpr Duration kHomeHistory = 5min + 5s;
constexpr Duration kHomeHeardRecently = 8s;
constexpr Duration kHomeHeardFallback = 120s;
constexpr Duration kPreferredDerpAbsoluteDiff = 10ms;

}  // namespace porthole::paths
