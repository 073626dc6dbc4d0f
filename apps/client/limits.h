// Bounds of the media client, each with its reason. What both ends share is in session/limits.h.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>

namespace porthole::client {

// A server on the LAN answers in milliseconds; after this the local attempt has failed and the tailnet is offered.
inline constexpr std::chrono::milliseconds kLocalConnectTimeout{2000};
// A connection by the address that was given, or through the proxy, which waits for the peer's answer: over a relay on
// another continent too. TLS and WebSocket have session::kHandshakeTimeout for themselves.
inline constexpr std::chrono::milliseconds kConnectTimeout{10'000};
// An answer to a request. A login may take the server's 3 s of enrolment and a queue of password checks.
inline constexpr std::chrono::milliseconds kAnswerTimeout{30'000};
// C8.
inline constexpr int kRemoteAttemptsMax = 5;
inline constexpr std::chrono::milliseconds kRemoteBackoffFirst{500};
// All of them together: a minute is what a person waits for, with the reason on the screen, where the way may still open.
inline constexpr std::chrono::milliseconds kRemoteTimeMax{60'000};
// A problem that waiting does not mend ends a join after this: the node has tried again five times by then, so that a proxy
// that was just restarted, or a server key that was just replaced, is no reason to give up.
inline constexpr std::chrono::milliseconds kLastingTroubleGrace{3'000};
// The node repeats what is still wrong after a minute and its longest backoff (45 s) and dial (10 s); what is older has passed.
inline constexpr std::chrono::milliseconds kTroubleCounts{120'000};
// Until the node is running again from stored state, and until the server is reachable on the tailnet.
inline constexpr std::chrono::milliseconds kTailnetReadyTimeout{30'000};
inline constexpr std::chrono::milliseconds kPeerReadyTimeout{20'000};
// At the address of the last login, when the name is known as well: a server that had to join anew has another one.
inline constexpr std::chrono::milliseconds kPeerAddressTimeout{3'000};
// How long `login` waits for the join to be persisted.
inline constexpr std::chrono::milliseconds kJoinTimeout{60'000};

// Bytes a stream may have under way and unread: 4 MiB keep 250 Mbit/s flowing at 130 ms.
inline constexpr std::uint64_t kWindowBytes = 4 * 1024 * 1024;

// Players open a few connections, browsers up to six per host.
inline constexpr std::size_t kPlaybackConnectionsMax = 16;
inline constexpr std::size_t kPlaybackHeaderBytesMax = 16 * 1024;
// A player that pauses keeps its request open for long; one that never asks anything is let go.
inline constexpr std::chrono::seconds kPlaybackIdle{60};

// Losses of one answer in a row, without a byte in between: the session that is at hand may turn out to be dead only when it
// is asked, and the next one may meet a server that is still starting. More than that is no accident.
inline constexpr int kStreamLossesMax = 3;

inline constexpr std::size_t kServersMax = 64;
inline constexpr std::size_t kDeviceNameBytesMax = 128;
inline constexpr std::size_t kStoreBytesMax = 1024 * 1024;
inline constexpr std::size_t kListItemsMax = 100'000;
// A listing begins again when the library changes between two pages; one that changes this often is being filled.
inline constexpr int kListStartsMax = 20;

}  // namespace porthole::client
