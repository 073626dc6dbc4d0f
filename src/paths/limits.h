// Bounds of the path layer, each with its reason.
#pragma once

#include <cstddef>

#include "base/time.h"

namespace porthole::paths {

// Peers come from the control server. 10,000 is the largest map the project aims at; twice that is a server gone wrong.
constexpr std::size_t kPeersMax = 20'000;

// Endpoints taken from one CallMeMaybe or one map entry. Real nodes announce fewer than 20; port-guessing peers up to 64.
constexpr std::size_t kEndpointsTakenMax = 256;
// Above this, candidates learned from pings and expired since are pruned on every addition (Tailscale's number).
constexpr std::size_t kCandidatesPruneAbove = 100;
// Hard bound per peer: one map entry, one CallMeMaybe and some learned addresses. Beyond it the oldest learned one goes.
constexpr std::size_t kCandidatesMax = 2 * kEndpointsTakenMax + 64;
// Outstanding pings per peer: each candidate is pinged at most four times within the ping timeout (round and three quick
// repeats), the heartbeats and extra pings add a handful.
constexpr std::size_t kSentPingsMax = 4 * kCandidatesMax + 64;
// Source addresses remembered per peer for peer_at(): both families of a few networks, and a NAT that changes ports.
constexpr std::size_t kReceiveIndexPerPeerMax = 32;

// Quick repeats of the first pings to a peer that has not answered yet, after the first one. Three datagrams within 0.3 s
// survive a lost datagram and a filter that the other side opens a moment later.
constexpr Duration kBurstSteps[] = {100ms, 300ms};
// Candidates repeated in that way; the rest waits for the next round.
constexpr std::size_t kBurstCandidatesMax = 32;
// A CallMeMaybe starts quick repeats only this long after the last ones: peers without a path send one every 5 s.
constexpr Duration kBurstAgain = 30s;
// Ping-backs to new source addresses of one peer per second. A recorded ping replayed from forged sources makes us send
// one pong and one ping each; this keeps the second part small.
constexpr int kPingBacksPerSecondMax = 8;
// A candidate that was pinged this recently, or answered within kDiscoPingInterval, gets no ping-back.
constexpr Duration kPingBackSpacing = 1s;
// Two pings in a row unanswered for this long (or 4 round trips): the relay carries a copy.
constexpr Duration kDoubtAfterMin = 300ms;

// Pings of people waiting for an answer.
constexpr std::size_t kCliPingsMax = 64;
// Largest padded ping: the largest MTU that is probed anywhere.
constexpr std::size_t kPingWireSizeMax = 9000;
// Announced endpoints. More than receivers take at once would only be cut there.
constexpr std::size_t kAnnouncedEndpointsMax = 128;
// IPv6 global addresses per interface and prefix (privacy addresses multiply).
constexpr int kGlobalV6PerPrefixMax = 2;

// Relay map: regions beyond this are ignored (the public map has about 30).
constexpr std::size_t kRegionsMax = 1024;
// Requests in flight of one netcheck: regions * families * tries of a full run.
constexpr std::size_t kStunInFlightMax = kRegionsMax * 2 * 4;
// Different mapped addresses counted in one netcheck.
constexpr std::size_t kMappingsMax = 64;
// How long names of STUN servers stay resolved, and how long a failed name is left alone.
constexpr Duration kResolvedFor = 10min;
constexpr Duration kResolveRetry = 20s;
// With fewer regions than kEnoughRegions, a run ends when all have answered; a slow or lost answer of the other family
// gets this long.
constexpr Duration kSettleMin = 300ms;

}  // namespace porthole::paths
