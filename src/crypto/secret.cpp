#include "crypto/secret.h"

#include <sodium.h>

namespace porthole::crypto {

void wipe(MutBytes bytes) {
  if (!bytes.empty()) sodium_memzero(bytes.data(), bytes.size());
}

bool equal_secret(Bytes a, Bytes b) {
  if (a.size() != b.size()) return false;
  return a.empty() || sodium_memcmp(a.data(), b.data(), a.size()) == 0;
}

}  // namespace porthole::crypto
