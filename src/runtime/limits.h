// Our own bounds of what the runtime does for the app, each with its reason.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/time.h"

namespace porthole::runtime {

// A dial whose caller names no time.
constexpr Duration kDialDefault = 30s;

// A connection that is joined with a socket of this host: that socket's own keepalive is answered by this host's kernel, so
// that only these tell it of a peer that is gone.
constexpr Duration kForwardKeepaliveIdle = 300s, kForwardKeepaliveInterval = 60s;
constexpr int kForwardKeepaliveProbes = 5;
// Data that the peer acknowledged nothing of for so long: as keepalive takes to find a silent one dead, and long enough for a
// lid that is closed for a moment.
constexpr Duration kForwardUserTimeout = 10min;
// A program that closed its side and forgot the other would hold both for ever.
constexpr Duration kForwardHalfClosed = 10min;

// The netstack's share of the memory there is, at most what StackConfig says; less than the floor would not hold one fast
// connection.
constexpr std::uint64_t kStackMemoryShare = 8, kStackMemoryMin = 8u << 20;

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
