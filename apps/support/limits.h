// Bounds of what every verb shares, each with its reason.
#pragma once

#include <chrono>
#include <cstddef>

namespace porthole::app {

// Lines waiting for whoever reads stdout or stderr, each: some 5,000 events, hours of a busy server. Beyond, the oldest go.
inline constexpr std::size_t kOutputBytesMax = 1024 * 1024;
// How long the end of a process waits for a reader that takes nothing; one that takes something gets everything.
inline constexpr std::chrono::milliseconds kOutputPatience{1000};
// What a writable pipe takes without waiting: poll() promises room for one page (pipe(7)).
inline constexpr std::size_t kOutputWriteMax = 4096;

}  // namespace porthole::app
