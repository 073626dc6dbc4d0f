// links: base wire
#include <cstdint>
#include <cstdlib>

#include "wire/tsmp.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace porthole;
  const Bytes input(data, size);
  const auto packet = wire::tsmp::parse(input);
  if (!packet) return 0;
  if (!wire::tsmp::is_tsmp(input)) std::abort();
  if (packet->source.is_v4() != packet->destination.is_v4()) return 0;   // one of them is v4-in-v6
  const auto again = wire::tsmp::parse(wire::tsmp::encode(*packet));
  if (!again || again->source != packet->source || again->message.index() != packet->message.index()) std::abort();
  return 0;
}
