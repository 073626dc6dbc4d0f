// Invariants that stay checked in release builds: a broken one means our own bug, and going on could corrupt
// or leak. Never use it on anything that came from the network or the user.
#pragma once

namespace porthole {
[[noreturn]] void assertion_failed(const char* expression, const char* file, int line);
}

#define PORTHOLE_ASSERT(expr) \
  ((expr) ? static_cast<void>(0) : ::porthole::assertion_failed(#expr, __FILE__, __LINE__))
