#include "support/vectors.h"

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>

namespace porthole::test {
namespace {
[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "test support: %s\n", what.c_str());
  std::abort();
}
boost::json::value load(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) fail("cannot open " + path);
  std::stringstream text;
  text << in.rdbuf();
  boost::json::error_code ec;
  boost::json::value v = boost::json::parse(text.str(), ec);
  if (ec) fail(path + ": " + ec.message());
  return v;
}
}  // namespace

std::string tests_path(std::string_view relative) {
  return std::string(PORTHOLE_TESTS_DIR) + "/" + std::string(relative);
}
boost::json::value load_vectors(std::string_view file) { return load(tests_path("vectors/" + std::string(file))); }
boost::json::value load_capture(std::string_view file) { return load(tests_path("captures/" + std::string(file))); }

ByteVector unhex(std::string_view hex) {
  std::string compact;
  for (char c : hex)
    if (c != ' ' && c != '\n') compact.push_back(c);
  auto v = from_hex(compact);
  if (!v) fail("bad hex: " + std::string(hex.substr(0, 40)));
  return *v;
}

std::uint64_t u64(const boost::json::value& v) {
  if (v.is_uint64()) return v.get_uint64();
  if (v.is_int64()) return static_cast<std::uint64_t>(v.get_int64());
  fail("not an integer");
}
}  // namespace porthole::test
