// Our own bounds, each with its derivation.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/time.h"

namespace porthole::netstack {

// Buffers. A chunk holds 26 full segments: few boundaries for copies, little waste for a quiet connection.
inline constexpr std::size_t kChunkSize = 32u << 10;
// Free chunks kept while busy: one window at 1 Gbit/s and 100 ms; the trim below returns what a second did not need.
inline constexpr std::size_t kPooledChunksMax = (16u << 20) / kChunkSize;
inline constexpr Duration kPoolTrimInterval = 1s;
// Share of all buffers that only handshakes, ACKs and in-order data of nearly empty connections may use.
inline constexpr std::size_t kMemoryReservePercent = 5;
// Of the memory limit, for what one peer's connections hold: while others hold something, and alone. The rest stays for
// those who come next: it is more than what the levels below refuse a new one.
inline constexpr std::size_t kPeerSharePercent = 50, kLonePeerSharePercent = 75;
// Pressure levels in percent of the memory limit.
inline constexpr std::size_t kPressureNoGrowth = 60, kPressureNoHandshake = 80, kPressureRenege = 90,
                             kPressureEvict = 95;
inline constexpr std::size_t kPressureReceiveBuffer = 64u << 10;  // new connections above kPressureNoGrowth
inline constexpr std::size_t kPressureUdpBuffer = 32u << 10;      // UDP queues above kPressureNoHandshake

// Connections: 16,384 idle ones take about 20 MB; one peer gets a quarter.
inline constexpr std::size_t kConnectionsMax = 16384, kConnectionsPerPeerMax = 4096;
inline constexpr std::size_t kTimeWaitMax = 16384, kTimeWaitPerPeerMax = 4096;
inline constexpr std::size_t kHalfOpenMax = 4096, kHalfOpenPerListenerMax = 256, kHalfOpenPerPeerMax = 64;
inline constexpr std::size_t kListenersMax = 1024, kUdpSocketsMax = 4096, kPingsMax = 256;
inline constexpr int kBacklogMax = 4096;
// Addresses with state of their own (rates, counts). Peers are authenticated; 4 times the connections covers a
// subnet router's clients.
inline constexpr std::size_t kPeersMax = 65536;

// Resends.
inline constexpr int kSynResendsMax = 6;        // with doubling from 1 s: 127 s
inline constexpr int kSynAckResendsMax = 4;     // 31 s
inline constexpr int kDataResendsMax = 15;
inline constexpr Duration kMinGiveUp = 100s;          // RFC 9293 3.8.3, R2
inline constexpr Duration kUnreachableGiveUp = 15min; // what 15 doubled resends take, too
inline constexpr Duration kMinRtoVariance = 200ms;  // RTO is at least SRTT + this
inline constexpr std::size_t kUnansweredMax = 64;      // peers told at once as not answering; the others resend again
inline constexpr Duration kSynRtoMin = 100ms;          // of a SYN whose round trip is known from the tunnel's handshake
inline constexpr Duration kLossFreezeMax = 1s;        // no loss marks after a change of path: one round trip, at most this
// Rules that let us in may reach the peer a moment after it has heard of us: SYNs go on until a refusal has lasted this long,
// which is the third one's time.
inline constexpr Duration kRefusalPatience = 2500ms;
inline constexpr Duration kUnreachableRtoMax = 5s;  // while the path layer has no path
inline constexpr Duration kOrphanLinger = 60s;      // closed by the app and no progress
inline constexpr Duration kZeroWindowReset = 60s;   // closed window without a read, only under pressure
// Data came and then nothing more: after this long, and twice this long, the peer is asked whether it still knows the
// connection. Who only receives would otherwise hear of a peer's restart after the keepalive's idle time. A pair of small
// packets for each time data stopped: connections that are merely idle send nothing.
inline constexpr Duration kQuietProbe = 3s;
inline constexpr int kQuietProbes = 2;

// Acknowledgments.
inline constexpr Duration kDelayedAck = 25ms;
inline constexpr Duration kFinAckDelay = 40ms;   // Linux answers a FIN that late when nothing else is due; most others at once
inline constexpr int kQuickAcks = 16;
inline constexpr std::size_t kSegmentsPerAckMax = 16;   // a longer stretch starves a peer that counts ACKs
inline constexpr std::size_t kDuplicateAcksPerEpisode = 8;  // three bare ones make any sender resend; eight survive loss
inline constexpr Duration kCompressedAck = 1ms;
inline constexpr Duration kChallengeAckInterval = 500ms;

// Receive side.
inline constexpr std::size_t kOutOfOrderPercent = 75;    // of the receive buffer
inline constexpr std::size_t kOutOfOrderIntervalsMax = 1024;
inline constexpr std::uint8_t kWindowShift = 8;          // 65535 << 8 = 16 MiB, above the largest buffer
inline constexpr std::size_t kReceiveBufferLimit = 16u << 20;

// Send side.
inline constexpr std::size_t kMinMss = 48;               // smaller values of a peer count as this
inline constexpr std::size_t kNotSentLowWaterMin = 128u << 10;
inline constexpr Duration kNotSentTime = 100ms;
inline constexpr Duration kSendOverride = 200ms;         // sender's silly-window override
inline constexpr std::size_t kBurstBytesMax = 60u << 10;  // 49 full packets, one UDP_SEGMENT run
inline constexpr std::size_t kRelayBurstSegments = 16;   // a relay queues 32 packets per client
inline constexpr Duration kPacingGranularity = 250us;    // how far pacing wake-ups may be merged
inline constexpr Duration kPacingCredit = 1ms;           // lateness of a wake-up that is made up for
inline constexpr std::size_t kBlackHoleSegment = 1024;   // after two timeouts of a full segment (RFC 4821 style)

// Reassembly: 64 KiB datagrams of 1280-byte pieces, as many as a household ever has in flight.
inline constexpr std::size_t kFragmentDatagramsMax = 64, kFragmentDatagramsPerPeerMax = 16;
inline constexpr std::size_t kFragmentBytesMax = 1u << 20, kFragmentBytesPerPeerMax = 256u << 10;
inline constexpr std::size_t kFragmentPiecesMax = 53;    // 64 KiB in pieces of 1240
inline constexpr std::size_t kDatagramMax = 65535;

// Rates of what we originate (packets per second) and their bursts.
inline constexpr double kIcmpRate = 1000, kIcmpBurst = 50;
inline constexpr double kIcmpErrorPeerRate = 10, kIcmpErrorPeerBurst = 10;
inline constexpr double kResetPeerRate = 100, kResetPeerBurst = 100;
inline constexpr double kSynAckRate = 1000, kSynAckBurst = 1000;
inline constexpr double kSynAckPeerRate = 100, kSynAckPeerBurst = 100;

// Output that is ready but the sink was full.
inline constexpr std::size_t kControlQueueMax = 1024;        // resets, handshake replies
inline constexpr std::size_t kEgressBytesMax = 512u << 10;   // datagrams and echo replies: 400 full packets
inline constexpr std::size_t kUdpBatchMax = 64;

inline constexpr std::uint16_t kEphemeralFirst = 32768, kEphemeralLast = 60999;
inline constexpr int kEphemeralTries = 64;
// Once around in 113 s: longer than TIME-WAIT, here and in gVisor 60 s, for nodes that open fewer than 250 connections a second.
inline constexpr Duration kEphemeralEvery = 4ms;

}  // namespace porthole::netstack
