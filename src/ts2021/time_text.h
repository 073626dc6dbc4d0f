// RFC 3339 times without locale or operating system.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/time.h"

namespace porthole::ts2021 {

// "2026-11-24T01:14:49.853685936Z", offsets "+02:00", 0 to 9 fraction digits. Years outside what WallTime can hold
// (1678 to 2261) clamp to its ends, except year 1 ("0001-01-01T00:00:00Z"), which means "unset": is_unset_time() tells.
std::optional<WallTime> parse_time(std::string_view text);
bool is_unset_time(std::string_view text);
// UTC with the fewest fraction digits that lose nothing.
std::string format_time(WallTime time);
// What Go prints for a time that was never set.
constexpr std::string_view kUnsetTime = "0001-01-01T00:00:00Z";

// HTTP-date of RFC 9110 section 5.6.7, fixed form only ("Sun, 06 Nov 1994 08:49:37 GMT").
std::optional<WallTime> parse_http_date(std::string_view text);
std::string format_http_date(WallTime time);

}  // namespace porthole::ts2021
