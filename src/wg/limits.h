// Bounds of our own, each with where it comes from.
#pragma once

#include <cstddef>

#include "base/time.h"
#include "wg/spec_constants.h"

namespace porthole::wg {

// The tunnel MTU of the tailnet: the largest inner packet we send.
constexpr std::size_t kPacketSizeMax = 1280;
constexpr std::size_t kDatagramSizeMax = kPacketSizeMax + kTransportOverhead;

// UDP_SEGMENT takes at most 64 segments; a UDP/IPv4 payload is at most 65,507 bytes, and a peer relay adds 8 per segment.
constexpr std::size_t kRunSegmentsMax = 64;
constexpr std::size_t kRunBytesMax = 65'507 - kRunSegmentsMax * 8;
// Full packets that fit one run: the arena is one run of them (64,288 bytes).
constexpr std::size_t kArenaBytes = kRunBytesMax / kDatagramSizeMax * kDatagramSizeMax;

// Transport messages opened in one call: a full GRO block.
constexpr std::size_t kOpenBatchMax = 64;

// As the reference implementations.
constexpr std::size_t kPeersMax = 65'536;
// Packets that wait for a session: per peer as the kernel has it; over all peers 5 MB of full packets.
constexpr std::size_t kStagedPerPeerMax = 128;
constexpr std::size_t kStagedTotalMax = 4096;

// Initiations of ours that a late response may still answer: at four a second, a round trip of one second.
constexpr std::size_t kPendingInitiationsMax = 4;

// Stamps of removed peers, 44 bytes each: more removals than a tailnet sees between two starts.
constexpr std::size_t kRememberedStampsMax = 16'384;

// Under load means: more handshake messages than this within one interval. 1280/s cost about a quarter of a core.
constexpr int kHandshakesPerInterval = 128;
constexpr Duration kLoadInterval = 100ms;
// Stays under load this long after the last interval that was.
constexpr Duration kLoadHold = 1s;
// Handshakes of one proven source while under load.
constexpr int kSourceRatePerSecond = 20;
constexpr int kSourceBurst = 5;
constexpr Duration kSourceForgetTime = 1s;
constexpr std::size_t kSourcesMax = 4096;

// Distinct (peer, source) pairs remembered during one batch so that each is reported once.
constexpr std::size_t kReportedSourcesMax = 8;

// Pairs that were replaced this young may still be in use by the other side: one handshake attempt (kRekeyTimeout) with its
// quick repetitions, and the second one. Four repetitions are answerable at most.
constexpr Duration kRetiredAgeMax = std::chrono::seconds(10);
constexpr std::size_t kRetiredPairsMax = 4;

}  // namespace porthole::wg
