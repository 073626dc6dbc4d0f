// HTTP byte ranges (RFC 9110 section 14), as far as players need them: one range of bytes.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace porthole::client {

struct ByteRange {
  std::uint64_t offset = 0;
  std::uint64_t length = 0;  // never 0
};

enum class RangeVerdict {
  kWhole,          // no range, or one that is to be ignored: answer 200 with everything
  kPartial,        // answer 206 with `range`
  kUnsatisfiable,  // answer 416
};

struct RangeAnswer {
  RangeVerdict verdict = RangeVerdict::kWhole;
  ByteRange range;
};

// `header`: the value of Range ("bytes=0-499", "bytes=500-", "bytes=-500"); empty: absent. Several ranges, other units and
// what is no valid range are ignored, as the RFC allows.
RangeAnswer parse_range(std::string_view header, std::uint64_t size_bytes);

}  // namespace porthole::client
