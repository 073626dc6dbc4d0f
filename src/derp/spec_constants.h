// Values that the field's relays and clients agree on.
#pragma once

#include "base/time.h"

namespace porthole::derp {

constexpr Duration kConnectBudget = 10s;      // DNS, TCP, TLS, HTTP and the written ClientInfo, over all nodes
constexpr Duration kReadDeadline = 120s;      // renewed by every frame; a relay sends a KeepAlive every 60..65 s
constexpr Duration kReconnectBackoffMax = 5s; // n^2 * 10 ms, capped, times 0.5..1.5
constexpr Duration kIdleTime = 60s;           // connections other than home, without a packet to send
constexpr Duration kRebindPingTime = 3s;      // a connection that survived a network change must answer within
constexpr std::uint16_t kDefaultPort = 443;
constexpr std::uint16_t kDefaultPlainPort = 3340;

}  // namespace porthole::derp
