// Bounds of the media server, each with its reason. What both ends share is in session/limits.h.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>

namespace porthole::serve {

// Connections that have not logged in. A household has a handful at once; 256 keep a flood of half-open ones from
// eating descriptors (each costs about 40 KiB with its TLS state) while leaving room for honest ones in between.
inline constexpr std::size_t kUnauthenticatedMax = 256;
// Of these from one address; a single misbehaving host cannot take all places. The bridge counts per tailnet peer.
inline constexpr std::size_t kUnauthenticatedPerAddressMax = 32;
// Sessions that are logged in: 64 devices of a large household, with room for their overlaps.
inline constexpr std::size_t kSessionsMax = 128;
// The kernel's queue of connections not yet accepted.
inline constexpr int kListenBacklog = 1024;

// Bytes waiting in one session's outbox before no more file data is read and no more requests are taken: two chunks, one
// being sent and one ready.
inline constexpr std::size_t kOutboxBytesMax = 512 * 1024;
// Bytes the kernel may hold for a connection of the bridge: what is there already cannot be taken back at a seek.
inline constexpr int kBridgeSendBufferBytes = 256 * 1024;
// Answers being worked on beside the streams (posters).
inline constexpr std::size_t kPostersInWorkMax = 4;
// A session that takes nothing of what waits for it for this long is ended.
inline constexpr std::chrono::seconds kWriteTimeout{60};

// Wrong passwords on one connection before it is closed.
inline constexpr int kAttemptsPerConnection = 3;
// Free attempts per address; from then on each failure doubles the wait, from 2 s up to 15 minutes.
inline constexpr int kFreeAttempts = 5;
inline constexpr std::chrono::seconds kAddressWaitFirst{2};
inline constexpr std::chrono::seconds kAddressWaitMax{900};
// Without failures for this long an address starts afresh.
inline constexpr std::chrono::seconds kAddressForget{3600};
// Failures from all addresses within a minute before everybody waits: 60 guesses a minute are 86,000 a day, too few to
// guess a password, and no household types that many.
inline constexpr int kGlobalFailuresPerMinute = 60;
// Addresses remembered; the oldest is forgotten first, and the global limit holds for whoever tries to use that.
inline constexpr std::size_t kAddressesMax = 4096;
// Passwords being hashed or waiting for it (64 MiB and about 0.1 s each, one at a time).
inline constexpr std::size_t kPasswordChecksMax = 16;

// How long a login waits for the enrolment service before it answers without remote details.
inline constexpr std::chrono::milliseconds kEnrolmentTimeout{6000};
inline constexpr std::size_t kEnrolmentAnswerBytesMax = 64 * 1024;

// How long another thread waits for the server's, which answers in microseconds: less than the control socket's own limit, so
// that "it does not answer" still arrives.
inline constexpr std::chrono::seconds kLoopAnswerTimeout{3};

// Library: files beyond are left out with a log line.
inline constexpr std::size_t kItemsMax = 20'000;
inline constexpr int kFolderDepthMax = 32;
// Sentences about the library's folders; they stand in every status.
inline constexpr std::size_t kProblemsMax = 8;
// Time one file may take to be probed or to give its poster.
inline constexpr std::chrono::seconds kProbeTimeout{20};
// At first every file gets only this, twenty times what a good one on a slow disk needs; those that take longer come after all
// others, so that a damaged or huge index does not hold them up.
inline constexpr std::chrono::milliseconds kFirstProbeTimeout{1000};
// While a scan goes on, what it has found is listed this often: a client's question at the start need not wait for the end, and
// nobody is told of changes every moment.
inline constexpr std::chrono::seconds kListInterval{2};
inline constexpr std::chrono::seconds kRescanInterval{15};
inline constexpr int kPosterWidth = 400;
// Frames larger than 8K are not decoded for a poster.
inline constexpr int kPosterSourcePixelsMax = 7680 * 4320;

}  // namespace porthole::serve
