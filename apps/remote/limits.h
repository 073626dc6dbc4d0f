// Bounds of the service around the coordinator, each with its derivation.
#pragma once

#include <chrono>
#include <cstddef>

#include "base/time.h"

namespace porthole::remote {

// ---- connections ----
// A node holds one control and one relay connection; descriptors are the real limit (raised to the hard one at start).
constexpr std::size_t kConnectionsMax = 60'000;
// Of one address, which may be a carrier's NAT. Loopback (a reverse proxy) is exempt.
constexpr std::size_t kConnectionsPerAddressMax = 1024;
// From the connection to a complete request, TLS handshake included.
constexpr Duration kRequestTimeout = 15s;
// Between two requests of one connection.
constexpr Duration kIdleTimeout = 60s;
// What a client still sends after the answer that ends its connection: for so long, and so much.
constexpr Duration kLingerTimeout = 2s;
constexpr std::size_t kLingerMax = 8 << 20;
constexpr Duration kSweepPeriod = 2s;
// One read and one write: a full TLS record.
constexpr std::size_t kReadSize = 16 * 1024;
constexpr std::size_t kWriteSize = 16 * 1024;
// While more than this of its answers waits for a slow reader, a connection's next request is not looked at: four reads'
// worth. So at most this and one answer wait, of which the largest is a list of 5,000 devices (4 MiB).
constexpr std::size_t kHttpPendingMax = 64 * 1024;
// STUN datagrams per wake-up, so that a flood cannot starve the streams.
constexpr int kStunBatch = 64;
// How long a stop waits for streams to take what they were promised.
constexpr Duration kStopGrace = 200ms;

// ---- enrolment API ----
constexpr std::size_t kApiBodyMax = 16 * 1024;  // the largest document has five short members
constexpr std::size_t kApiPathMax = 512;
// A household's server asks once per login; a restart of a service with a thousand devices asks for all at once.
constexpr double kTokenBurst = 2000;
constexpr double kTokenPerSecond = 50;
// Wrong tokens of one address: guessing is hopeless anyway (256 bits), this keeps it from costing anything.
constexpr double kFailuresBurst = 20;
constexpr double kFailuresPerSecond = 0.5;
constexpr std::size_t kCallersMax = 20'000;

// ---- control socket ----
constexpr std::size_t kCommandSizeMax = 64 * 1024;
constexpr std::size_t kCommandClientsMax = 32;

// ---- Headscale ----
// One request. bcrypt costs it 50 to 100 ms; a household's server waits 6 s for the whole of an enrolment.
constexpr std::chrono::seconds kHeadscaleTimeout{5};
// The largest answer is the list of nodes: 2 KiB each, a few thousand.
constexpr std::size_t kHeadscaleAnswerMax = 16u << 20;
constexpr std::size_t kHeadscaleKeyMax = 256;  // theirs have about 90 characters
// What it said about nodes and keys is good for this long: a thousand questions at once cost it two answers.
constexpr Duration kHeadscaleFresh = 2s;
// After a request that found nobody, the next ones are told so without trying.
constexpr Duration kHeadscaleRetry = 1s;
// How often the service looks whether it is well, and whether its policy still isolates.
constexpr std::chrono::seconds kHeadscaleWatch{5};
constexpr Duration kHeadscalePolicyFresh = 10s;
// Between expiring a node and deleting it: Headscale tells the node that it has expired with its next batch of changes,
// 0.8 s later; deleted before that, it would never hear of it.
constexpr std::chrono::milliseconds kHeadscaleExpiryGrace{2000};
// The proof of isolation: until the devices of one user see each other (a join takes about a second), and how long
// after that they must not have seen the other user's, which is two batches of changes and more.
constexpr std::chrono::seconds kProofJoinMax{30};
constexpr std::chrono::milliseconds kProofSettle{2500};
// Calls waiting for the thread that talks to Headscale: a thousand devices at once, and room.
constexpr std::size_t kWorkWaitingMax = 4096;

}  // namespace porthole::remote
