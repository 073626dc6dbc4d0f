// Our own bounds and periods of the node, each with its reason.
#pragma once

#include <cstddef>

#include "base/stream.h"
#include "base/time.h"

namespace porthole::node {

// Stream ids: the control client's from 1, the relays' and those that measure relays from here; none can reach another's
// in a lifetime.
constexpr StreamId kRelayStreamFirst = StreamId{1} << 40;
constexpr StreamId kLatencyStreamFirst = StreamId{1} << 41;

// A first initiation can be lost to a path that is just opening or to a peer that has not heard of us yet. Waiting
// WireGuard's 5 s for the second would be the whole start-up budget several times over; a peer accepts one every 20 ms.
constexpr Duration kHurryInterval = 80ms;       // the first; each is twice the one before ...
constexpr Duration kHurryIntervalMax = 500ms;  // ... up to this, so that a far peer's answer still finds its question
constexpr Duration kHurryFor = 3s;

// Nothing authentic from a peer for this long, and WireGuard starts a handshake: the path is taken for dead. WireGuard
// itself starts one 15 s after data that nothing answered.
constexpr Duration kSilence = 10s;
// After a pause this long the next authentic message says that the path works (again).
constexpr Duration kPause = 2s;

// A peer that restarted, or was told by its coordinator to forget us, drops what our session seals without a word, and
// WireGuard would wait 15 s before it asks. When TCP resends and nothing authentic came for so long, ask for a new session:
// soon and often while the session is new (a first answer is due, and coordinators' news about a restart come late),
// later at WireGuard's own pace.
constexpr Duration kFreshFor = 3s;
constexpr Duration kUnansweredFresh = 50ms;
constexpr Duration kRenewFresh = 100ms;
constexpr Duration kUnanswered = 1s;
constexpr Duration kAssumedRoundTrip = 40ms;
constexpr Duration kRenew = 5s;

// Datagrams for sessions that do not exist cost one look at the peers this often, whoever sends them.
constexpr Duration kStrayEvery = 20ms;

// Headscale 0.28, where its policy lets devices reach those of their own user only, now and then names a device that has just
// joined but not the rules that let it in; the whole map has them. Asked for when a peer that joined within this time is refused ...
constexpr Duration kJoinedLately = 60s;
// ... and its rules did not come within this time of its name: they may be in a message of their own.
constexpr Duration kRulesLate = 200ms;

// Handshake stamps that may be sent before the store is written again: a busy node writes twice in this time, and after a
// crash its stamps are this much ahead of its clock at most.
constexpr std::uint64_t kStampLeaseSeconds = 600;

// A timer that comes this late: the machine slept. Less, and connections are as they were.
constexpr Duration kSlept = 10s;

// "Running" means that peers can reach us: through the home relay. Without an answer from it after this long, direct
// paths may still work.
constexpr Duration kRelayPatience = 3s;

// Events that wait for the runtime; it drains them every turn, so this bounds one turn. A 10,000-peer map gives one
// PeersEvent, not 10,000 events. The last one says that others were lost.
constexpr std::size_t kEventsMax = 65536;

// Pings through the tunnel that wait for an answer, and for how long: as with disco pings (paths).
constexpr std::size_t kTsmpPingsMax = 64;
constexpr Duration kTsmpPingTimeout = 5s;

// Bursts written to the tunnel in one settle(); other work gets its turn afterwards.
constexpr int kBurstsPerSettle = 64;

}  // namespace porthole::node
