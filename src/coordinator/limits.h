// Bounds and tunables of the coordinator, each with its derivation.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/time.h"

namespace porthole::coordinator {

// Oldest client served. From 81 on clients know PacketFilters, patches and lite updates, so one form of every message
// serves all of them (control protocol, section 7.2).
constexpr std::uint16_t kClientVersionMin = 81;

// ---- tables ----
// A household has tens of devices; 5,000 leaves room for a school. The full map is linear in it (1 KiB a peer).
constexpr std::size_t kNodesPerAccountMax = 5000;
constexpr std::size_t kAccountsMax = 100'000;
// Live pre-auth keys of one account: one per device and some by hand.
constexpr std::size_t kKeysPerAccountMax = 10'000;
// Interactive logins waiting for a person: what Headscale allows.
constexpr std::size_t kPendingMax = 1024;
constexpr Duration kPendingLifetime = 15min;
// Open control connections. A node needs one and a dial race makes two or three for a moment; each costs about 20 KiB.
constexpr std::size_t kSessionsMax = 50'000;
// Text of a registration. Go clients send 1 to 2 KiB; Hostinfo's list of listening services is what can make it longer,
// at some 60 bytes a service.
constexpr std::size_t kRegisterSizeMax = 64u << 10;
// Sessions that wait for the same login: the client's, and those it lost without a word and that the keep-alives have not
// found dead yet. Only the machine that began a login may wait for it, so kPendingMax times this wait in all.
constexpr std::size_t kWaitersPerLoginMax = 4;
// Endpoints kept of one node: real ones announce below 20.
constexpr std::size_t kEndpointsPerNodeMax = 64;
// Text of one Hostinfo field; names and versions are below 100 bytes.
constexpr std::size_t kHostinfoTextMax = 256;
constexpr std::size_t kServicesPerNodeMax = 32;

// ---- distribution ----
// Changes of one account within this time of its last message travel together. The first goes out at once, so a change
// reaches its peers within this time at the latest.
constexpr Duration kFlushSpacing = 10ms;
// Sealed bytes made ahead of the socket, per session: a few records, so that back-pressure reaches the queue with a
// bound, which is the map stream's.
constexpr std::size_t kSealedAheadMax = 4 * 4096;
// Answers queued for one session beyond which it gets no further whole map: one of the largest account. A client reads a
// map before it asks for the next; one that asks on all its HTTP/2 streams and reads none would cost a map each.
constexpr std::size_t kAnswersQueuedMax = kNodesPerAccountMax * 1024;
// How far a map stream may lag behind, on top of its own first map, before it is reset (the next one starts with a full
// map, which is cheaper than a longer queue). 256 KiB are some 2,000 patches.
constexpr std::size_t kStreamBacklogMax = 256u << 10;

// ---- time (control protocol, sections 6.10 and 9.4) ----
constexpr Duration kKeepAliveMin = 50s;
constexpr Duration kKeepAliveMax = 58s;
constexpr Duration kOfflineGrace = 10s;
constexpr Duration kPrefaceTimeout = 10s;
// A session without an open request: the client may come back with an update; its next request costs a new handshake.
constexpr Duration kIdleSessionTimeout = 3min;
// A new node is told to its peers when it has a home relay, by which they can reach it, or after this long.
constexpr Duration kHoldBack = 1s;
// An ephemeral node that stopped polling; Headscale's built-in value.
constexpr Duration kEphemeralTimeout = 120s;
// Soft state (endpoints, home relay, Hostinfo, last seen) is written this late at most, many nodes in one transaction.
constexpr Duration kPersistDelay = 1s;
constexpr Duration kPersistRetry = 5s;
// Wall-clock deadlines are looked at again this often, in case the wall clock was set.
constexpr Duration kExpiryRecheck = 1h;

// ---- enrolment ----
constexpr Duration kDeviceKeyLifetime = 30 * 24h;
constexpr Duration kKeyLifetimeDefault = 24h;
constexpr Duration kKeyLifetimeMax = 10 * 365 * 24h;
constexpr std::size_t kAccountNameMax = 40;
constexpr std::size_t kDeviceIdMax = 64;
constexpr std::size_t kDnsLabelMax = 63;

}  // namespace porthole::coordinator
