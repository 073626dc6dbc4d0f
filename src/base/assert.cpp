#include "base/assert.h"

#include <cstdio>
#include <cstdlib>

namespace porthole {
void assertion_failed(const char* expression, const char* file, int line) {
  std::fprintf(stderr, "porthole: internal error: %s (%s:%d)\n", expression, file, line);
  std::abort();
}
}  // namespace porthole
