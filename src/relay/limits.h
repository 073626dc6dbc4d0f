// Bounds and timers of the relay server, each with its reason.
#pragma once

#include <cstddef>

#include "base/time.h"
#include "wire/derp.h"

namespace porthole::relay {

// ---- values that the field's relays use ----
constexpr Duration kLoginTime = 10s;            // from the connection to a complete ClientInfo
constexpr Duration kWriteDeadline = 2s;         // output is there and the connection takes none: a dead or stuck reader
constexpr int kPeerGoneBurst = 3;               // PeerGone "not here" per sender, then one a second
constexpr Duration kPeerGoneInterval = 1s;

// ---- our own ----
// The field's relays speak every 60 to 65 s, and a reverse proxy that gives up after 60 s without a byte (nginx, unless told
// otherwise) cuts an idle connection between two of them, for ever. Clients wait for 120 s.
constexpr Duration kKeepAlivePeriod = 50s;      // plus 0..5 s, fixed per connection
constexpr Duration kKeepAliveSpread = 5s;

// Data packets waiting for one connection. The reference keeps 32 and has a writer thread that drains them meanwhile; here
// one 64 KiB read can bring 48 full tailnet packets for one receiver before anything is written.
constexpr std::size_t kDataQueuePacketsMax = 256;
// 256 full tailnet packets (1,312 bytes and head) are 345 KB; at 8 Mbit/s a third of a second.
constexpr std::size_t kDataQueueBytesMax = 384 * 1024;
// Disco messages are below 300 bytes but for the largest CallMeMaybe; one frame of the largest size still fits.
constexpr std::size_t kDiscoQueuePacketsMax = 64;
constexpr std::size_t kDiscoQueueBytesMax = 128 * 1024;
// Together the promised 512 KiB per slow reader.
static_assert(kDataQueueBytesMax + kDiscoQueueBytesMax == 512 * 1024);
static_assert(kDiscoQueueBytesMax >= wire::derp::kPacketHeadSize + wire::derp::kPacketSizeMax);

// PeerGone and Pong frames waiting; hints beyond it are left out (420 of them).
constexpr std::size_t kControlBytesMax = 16 * 1024;
// A ClientInfo is below 300 bytes; a mesh key and a long AppName make it 400.
constexpr std::size_t kClientInfoKeptMax = 8 * 1024;
// Reassembly memory above this is given back once the frame is done.
constexpr std::size_t kReassemblyKeep = 4 * 1024;
// A household is tens, a company thousands; every connection may cost 0.6 MiB when its reader is slow.
constexpr std::size_t kConnectionsMax = 16 * 1024;
// Not logged in: each may cost one X25519 (60 us) and 8 KiB for 10 s.
constexpr std::size_t kLoginsPendingMax = 1024;
// Connections of one source address, which may be a carrier's NAT. Loopback (a reverse proxy) is exempt.
constexpr std::size_t kConnectionsPerAddressMax = 512;
// Connections of one key: two processes by mistake, and the half-dead ones of a roaming phone.
constexpr std::size_t kConnectionsPerKeyMax = 16;
// Sources whose leaving one connection is told about; the oldest is forgotten.
constexpr std::size_t kSubscriptionsMax = 10'000;
// Admission is asked again this often for everybody, in case nobody told us about a removal.
constexpr Duration kRecheckPeriod = 10min;

}  // namespace porthole::relay
