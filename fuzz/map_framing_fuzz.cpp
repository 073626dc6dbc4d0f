// links: base crypto wire ts2021
// The map stream's framing and its zstd, in pieces of any size.
#include <cstdint>
#include <cstdlib>

#include "ts2021/map_framing.h"

using namespace porthole;
using namespace porthole::ts2021;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const bool zstd = data[0] % 2 == 0;
  const std::size_t slice = 1u + data[1];
  Bytes input(data + 2, size - 2);

  MapFrameReader hostile(zstd);
  for (Bytes rest = input; !rest.empty();) {
    Bytes piece = rest.first(std::min(rest.size(), slice));
    rest = rest.subspan(piece.size());
    if (!hostile.consume(piece).ok()) break;
    bool alive = true;
    while (alive) {
      auto message = hostile.next();
      if (!message) break;
      alive = message->ok();
    }
    if (!alive) break;
  }

  // The same bytes as an honest message come back unchanged.
  MapFrameReader honest(zstd);
  if (!honest.consume(frame_map_message(as_text(input), zstd)).ok()) std::abort();
  auto back = honest.next();
  if (!back || !back->ok() || !equal(**back, input)) std::abort();
  return 0;
}
