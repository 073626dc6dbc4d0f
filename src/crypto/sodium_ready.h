// Private to this folder: libsodium picks its fast implementations when it is initialised.
#pragma once

#include <sodium.h>

#include "base/assert.h"

namespace porthole::crypto {

// Cheap after the first call; safe from any thread.
inline void ensure_sodium() {
  static const bool ready = sodium_init() >= 0;
  PORTHOLE_ASSERT(ready);
}

}  // namespace porthole::crypto
