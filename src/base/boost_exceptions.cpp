// Boost's hook for code built without exceptions: whatever would throw there (running out of memory, mostly) ends the
// program. Every call that can fail on input uses the error_code form and never gets here.
#include <exception>

#include "base/assert.h"

namespace boost {
struct source_location;

[[noreturn]] void throw_exception(const std::exception& e);
[[noreturn]] void throw_exception(const std::exception& e, const source_location& where);

void throw_exception(const std::exception& e) { porthole::assertion_failed(e.what(), "boost", 0); }
void throw_exception(const std::exception& e, const source_location&) { throw_exception(e); }
}  // namespace boost
