// Bounds that both ends of a media session keep, each with its reason.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>

namespace porthole::session {

// The contract of proto/session.proto as built here.
inline constexpr std::uint32_t kProtocolVersion = 1;
// Path of the WebSocket; anything else is not this service.
inline constexpr const char* kSessionPath = "/porthole/v1/session";
// Port of the service on the tailnet, and on the LAN where nothing else is asked for.
inline constexpr std::uint16_t kServicePort = 8443;

// One Data message: large enough that framing costs nothing, small enough that a seek waits for at most one.
inline constexpr std::size_t kChunkBytes = 256 * 1024;
// Requests are a password, names and numbers; 16 KiB is ten times the largest legitimate one.
inline constexpr std::size_t kRequestBytesMax = 16 * 1024;
// Answers: a poster (at most kPosterBytesMax), a page of the list or a chunk, plus the envelope.
inline constexpr std::size_t kPosterBytesMax = 1024 * 1024;
inline constexpr std::size_t kAnswerBytesMax = kPosterBytesMax + 64 * 1024;
// Items in one ListResponse: 250 * (4 strings of at most kTextBytesMax + numbers) stays below kAnswerBytesMax.
inline constexpr std::uint32_t kListPageMax = 250;
// Titles, names and sentences are cut to this.
inline constexpr std::size_t kTextBytesMax = 512;
inline constexpr std::size_t kPasswordBytesMax = 1024;

// Credit a client may have open on one stream. 16 MiB feed 1 Gbit/s at 130 ms.
inline constexpr std::uint64_t kCreditBytesMax = 16 * 1024 * 1024;
// Streams of one session: a player uses two or three, a seek overlaps for a moment.
inline constexpr std::size_t kStreamsMax = 16;

inline constexpr std::chrono::seconds kHandshakeTimeout{10};
inline constexpr std::chrono::seconds kLoginTimeout{30};
// A session with nothing to say is pinged at half of this and ended when nothing comes back.
inline constexpr std::chrono::seconds kIdleTimeout{60};

}  // namespace porthole::session
