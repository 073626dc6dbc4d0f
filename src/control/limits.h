// Bounds of the control client, each with its derivation.
#pragma once

#include <chrono>
#include <cstddef>

#include "base/time.h"

namespace porthole::control {

// Rules and entries of the packet filter kept after expansion; a household has tens, Headscale sends one set per node.
constexpr std::size_t kFilterEntriesMax = 200'000;
// UDP and SCTP flows remembered for their answers; the Go client's number.
constexpr std::size_t kFlowsMax = 512;

// From opening the stream to the end of the handshake; the Go client allows 10 s without a dial plan.
constexpr Duration kConnectTimeout = std::chrono::seconds(10);
// GET /key, whole.
constexpr Duration kKeyTimeout = std::chrono::seconds(10);
// A register request that does not wait for a person. Headscale batches writes for up to a second.
constexpr Duration kRegisterTimeout = std::chrono::seconds(30);
// The map stream without headers or a message (section 6.10: watchdogTimeout).
constexpr Duration kMapSilenceMax = std::chrono::seconds(120);
// An answer to a lite update; it is tried again on the next connection otherwise.
constexpr Duration kLiteTimeout = std::chrono::seconds(30);
// HTTP/2 PING to notice dead paths; two unanswered ones end the connection.
constexpr Duration kPingInterval = std::chrono::seconds(25);
constexpr Duration kPingTimeout = std::chrono::seconds(15);
// Lite updates are at least this far apart ...
constexpr Duration kLiteSpacing = std::chrono::seconds(1);
// ... but the first few of a map stream, which follow each other as they are answered: home relay and endpoints become known
// one after the other within a fraction of a second, and until peers have them they cannot reach this node.
constexpr int kLiteQuickCount = 6;
// Backoff of every kind of retry (section 6.10).
constexpr Duration kBackoffMax = std::chrono::seconds(30);
// A connection that lived this long with a map is replaced at once. One that something in between cuts sooner, again and
// again, costs a handshake and a whole map each time: those come ever more slowly.
constexpr Duration kSteadyAfter = std::chrono::seconds(2);
// Logout must not hang a program that wants to end.
constexpr Duration kLogoutTimeout = std::chrono::seconds(10);
// Some servers say nothing to a node that was deleted and leave its stream open: an update that changes nothing asks. At a
// keep-alive without another word for this long (they come every 50 to 60 s), and when the data plane wonders, at most this
// often.
constexpr Duration kMembershipAsk = std::chrono::seconds(45);
constexpr Duration kMembershipAskMin = std::chrono::seconds(10);
// Whole maps that the data plane asked for are at least this far apart.
constexpr Duration kMapRefreshSpacing = std::chrono::seconds(5);
// 404 answers to the map request before the node registers again.
constexpr int kNotFoundMax = 3;
// Debug.SleepSeconds: longest pause that is honoured.
constexpr Duration kSleepMax = std::chrono::minutes(5);
// 429 without a usable Retry-After waits 5 to 10 s; one beyond an hour is not believed.
constexpr Duration kRetryAfterMax = std::chrono::hours(1);
constexpr Duration kRetryAfterLow = std::chrono::seconds(5);
constexpr Duration kRetryAfterHigh = std::chrono::seconds(10);
// The same notice is not repeated sooner.
constexpr Duration kNoticeSpacing = std::chrono::minutes(1);
constexpr std::size_t kNoticesRemembered = 16;
// c2n: requests that may be in flight, and the largest request to answer (it came in a map message).
constexpr std::size_t kC2nRunningMax = 8;
constexpr std::size_t kC2nPayloadSizeMax = 64u << 10;
// Error texts of servers shown to people.
constexpr std::size_t kErrorTextSizeMax = 300;
// A clock difference beyond this is worth acting on (section 6.4, ControlTime).
constexpr Duration kClockSkewMin = std::chrono::minutes(1);

}  // namespace porthole::control
