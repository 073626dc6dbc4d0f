// Bounds and timers of our own choice in the relay client, each with its reason.
#pragma once

#include <cstddef>

#include "base/time.h"
#include "wire/derp.h"

namespace porthole::derp {

// Packets waiting for one relay connection. The reference keeps 32 and has a thread that drains them meanwhile; here a
// whole burst (49 segments of one UDP_SEGMENT send, twice) is queued before the stream is written.
constexpr std::size_t kSendQueuePacketsMax = 128;
// The same bound in bytes: 128 full tailnet packets (1,312 bytes and head) with room for one of the largest. At 8 Mbit/s
// it is a quarter of a second.
constexpr std::size_t kSendQueueBytesMax = 256 * 1024;
static_assert(kSendQueueBytesMax >= wire::derp::kPacketHeadSize + wire::derp::kPacketSizeMax);
// From here on senders that can wait should: one more burst of 64 still fits.
constexpr std::size_t kSendQueueCongested = 48;
// A relay connection that took nothing for this long is in trouble; traffic over other ways no longer waits for it.
constexpr Duration kStallIgnored = 200ms;

// Bytes that are neither droppable nor packets: HTTP head, login, pongs. Pongs beyond it are left out.
constexpr std::size_t kControlBytesMax = 16 * 1024;
// Error text of a relay's HTTP answer kept for the message.
constexpr std::size_t kHttpErrorBodyMax = 4 * 1024;
// Health text kept for display.
constexpr std::size_t kHealthTextMax = 1024;
// Reassembly memory above this is given back once the big frame is done (largest packet frame, rounded up).
constexpr std::size_t kReassemblyKeep = 72 * 1024;

// Regions with an open or wanted connection: a tailnet spreads over few; each costs a TLS connection.
constexpr std::size_t kRegionsOpenMax = 64;
// Learned routes (peer heard on a connection): one per peer of a very large tailnet.
constexpr std::size_t kRoutesMax = 16 * 1024;
// Events that may be dropped (PeerGone, Health) are, beyond this many unread ones.
constexpr std::size_t kHintEventsMax = 1024;

// DNS, TCP and TLS of one node, and then its HTTP answer, while another node of the region could be tried instead. The
// reference allows 1.5 s for DNS and TCP alone; TLS takes two more round trips.
constexpr Duration kNodeConnectTime = 3s;
// From the sent ClientInfo to the first frame: the relay may ask somebody whether to admit us (5 s) before it answers.
constexpr Duration kLoginConfirmTime = 20s;
// Bytes are waiting and the stream takes none.
constexpr Duration kWriteDeadline = 10s;
// Longest wait a Restarting frame can impose, and how long its promise of a quick return holds at most.
constexpr Duration kRestartWaitMax = 30s;
constexpr Duration kRestartTryMax = 10min;
// Regions measured at once by LatencyProbe, each with a TLS connection; the public map has about 30.
constexpr std::size_t kLatencyProbesMax = 64;
// All of it, and one node of a region: TCP, TLS and the request are four round trips, at 300 ms for the farthest.
constexpr Duration kLatencyProbeTime = 2s;
constexpr Duration kLatencyProbeNodeTime = 1500ms;
// How far the idle check may be late.
constexpr Duration kIdleSlack = 15s;

}  // namespace porthole::derp
