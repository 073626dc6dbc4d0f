// links: base wire
#include <cstdint>
#include <cstdlib>

#include "wire/stun.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace porthole;
  const Bytes input(data, size);
  (void)wire::stun::parse_request(input, true);
  if (const auto id = wire::stun::parse_request(input)) {
    // The only accepted form beside unknown attributes is our own request.
    if (size == wire::stun::kRequestSize && !equal(input, wire::stun::encode_request(*id))) std::abort();
  }
  if (const auto r = wire::stun::parse_response(input)) {
    std::uint8_t out[wire::stun::kResponseSizeMax];
    const std::size_t n = wire::stun::encode_response(r->id, r->mapped, out);
    const auto again = wire::stun::parse_response(Bytes(out, n));
    if (!again || again->mapped != r->mapped || again->id != r->id) std::abort();
  }
  return 0;
}
