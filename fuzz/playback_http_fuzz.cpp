// links: base
// sources: client/range.cpp
// Range headers of players against items of any size. First eight bytes: the size.
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "client/range.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 8) return 0;
  std::uint64_t item = 0;
  std::memcpy(&item, data, 8);
  using namespace porthole::client;
  RangeAnswer answer = parse_range({reinterpret_cast<const char*>(data + 8), size - 8}, item);
  if (answer.verdict == RangeVerdict::kPartial) {
    const ByteRange& r = answer.range;
    if (r.length == 0 || r.offset >= item || r.length > item - r.offset) std::abort();
  }
  return 0;
}
