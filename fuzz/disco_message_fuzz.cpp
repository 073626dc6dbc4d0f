// links: base wire
#include <cstdint>
#include <cstdlib>

#include "wire/disco.h"

// Plaintexts of disco messages. What parses must encode, and what was encoded must parse to the same message.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace porthole;
  const Bytes input(data, size);
  (void)wire::disco::parse_envelope(input);
  const auto message = wire::disco::parse(input);
  if (!message || std::holds_alternative<wire::disco::Unknown>(*message)) return 0;
  if (const auto* ping = std::get_if<wire::disco::Ping>(&*message); ping != nullptr && ping->node_key.is_zero()) return 0;
  const auto again = wire::disco::parse(wire::disco::encode(*message));
  if (!again || *again != *message) std::abort();
  return 0;
}
