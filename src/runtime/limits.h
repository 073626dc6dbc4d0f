// Our own bounds of what the runtime does for the app, each with its reason.
#pragma once

#include <cstddef>

#include "base/time.h"

namespace porthole::runtime {

// A dial whose caller names no time.
constexpr Duration kDialDefault = 30s;

// Calls that wait for the same thing (the node to run, a peer, a connection, an answer): a thread each, or a connection of
// the proxy's, which has fewer.
constexpr std::size_t kWaitersMax = 1024;

// What fits into one packet of the tailnet (MTU 1280) behind the IP and UDP headers.
constexpr std::size_t kDatagramMaxV4 = 1280 - 20 - 8, kDatagramMaxV6 = 1280 - 40 - 8;

// Sources of one exposed UDP port that are known at once, unless the app says otherwise: each is a descriptor, and a
// household's devices have a few each.
constexpr int kUdpSourcesDefault = 1024;
// One address may hold this share of them: 1 / kUdpSourcesPeerShare.
constexpr int kUdpSourcesPeerShare = 4;
// RFC 4787 REQ-5: a mapping lives for at least 2 minutes, 5 are recommended.
constexpr Duration kUdpSourceIdle = 5min;
// Datagrams read from one local socket before others get their turn.
constexpr int kUdpReadsPerTurn = 64;
// The same when the app has closed its end: what it sent before still leaves. More than its buffer holds.
constexpr int kUdpReadsAtEnd = 4096;
// A datagram of the app that finds the way to the tunnel full waits; longer than this and it is stale, or there is no
// way at all.
constexpr Duration kUdpSendPatience = 1s;
// What the app has not read yet, besides the netstack's own queue: kernel memory, of which a full-size datagram takes
// about 2.3 KB. The kernel may allow less (net.core.wmem_max).
constexpr int kUdpLocalBuffer = 1 << 20;

}  // namespace porthole::runtime
