// links: app_support
// sources: serve/enrolment_answer.cpp session/names.cpp
// Answers to the question for a device's key, as anybody on the way may write them. First byte: whether TLS was used; two for
// the status; then Location and Content-Type, a line each, and the body. There is a key, or a short line of words without one.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "serve/enrolment_answer.h"

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

std::string take_line(std::string_view& rest) {
  std::string line(rest.substr(0, rest.find('\n')));
  rest.remove_prefix(line.size() < rest.size() ? line.size() + 1 : line.size());
  return line;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace porthole::serve;
  if (size < 3) return 0;
  porthole::session::HttpAnswer answer;
  answer.status = (data[1] * 256u + data[2]) % 1000;
  std::string_view rest(reinterpret_cast<const char*>(data) + 3, size - 3);
  answer.location = take_line(rest);
  answer.content_type = take_line(rest);
  answer.body = rest;
  auto read = read_enrolment_answer(answer, data[0] & 1);
  if (const auto* key = std::get_if<DeviceKey>(&read)) {
    require(answer.status == 200 || answer.status == 201);
    require(!key->key.empty());
    require(key->key.size() + key->expires.size() + key->coordination_url.size() <= answer.body.size());
    return 0;
  }
  const auto& none = std::get<NoDeviceKey>(read);
  require(!none.meaning.empty() && none.meaning.size() <= 512);
  for (char c : none.meaning) require(static_cast<unsigned char>(c) >= 0x20 && c != 0x7f);
  if (answer.status == 429 || answer.status >= 500) require(none.temporary);
  return 0;
}
