// Access to tests/vectors/*.json and tests/captures/*.json for unit tests.
#pragma once

#include <boost/json.hpp>
#include <string>
#include <string_view>

#include "base/bytes.h"

namespace porthole::test {

// load_vectors("wireguard.json"); aborts the test program with a message when the file is missing or malformed.
boost::json::value load_vectors(std::string_view file);
boost::json::value load_capture(std::string_view file);
// Absolute path below tests/.
std::string tests_path(std::string_view relative);

// Hex string -> bytes; aborts on bad hex. Whitespace is skipped.
ByteVector unhex(std::string_view hex);
inline ByteVector unhex(const boost::json::value& v) { return unhex(std::string_view(v.as_string())); }
inline std::string_view text(const boost::json::value& v) { return v.as_string(); }
// Any JSON integer as u64 (vectors exceed 2^53 and may be signed or unsigned in the parser's eyes).
std::uint64_t u64(const boost::json::value& v);

}  // namespace porthole::test
