// links: base wire
#include <cstdint>
#include <cstdlib>

#include "wire/classify.h"
#include "wire/disco.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace porthole;
  const Bytes input(data, size);
  const wire::Classified c = wire::classify(input);
  if (c.geneve && !wire::parse_geneve(input)) std::abort();
  if (size > 0 && data[0] >= 1 && data[0] <= 4 && size >= 4 && data[1] == 0 && data[2] == 0 && data[3] == 0 &&
      c.kind != wire::DatagramKind::kWireGuard)
    std::abort();
  if (const auto h = wire::parse_geneve(input); h && data[0] == 0 && !equal(wire::encode_geneve(*h), input.first(8)) && data[1] < 0x40)
    std::abort();
  return 0;
}
