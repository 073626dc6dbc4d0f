// links: base crypto wire ts2021
// Every JSON parser of the control protocol. First byte: which. What parses must encode to something that parses.
#include <cstdint>
#include <cstdlib>

#include "ts2021/json.h"

using namespace porthole;
using namespace porthole::ts2021;

namespace {

template <typename Parse, typename Encode>
void round_trip(Bytes json, Parse parse, Encode encode) {
  auto first = parse(json);
  if (!first.ok()) return;
  auto text = encode(*first);
  if (!parse(as_bytes(text)).ok()) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  Bytes json(data + 1, size - 1);
  switch (data[0] % 8) {
    case 0: round_trip(json, parse_map_response, encode_map_response); break;
    case 1: round_trip(json, parse_map_request, encode_map_request); break;
    case 2: round_trip(json, parse_register_response, encode_register_response); break;
    case 3:
      round_trip(json, parse_register_request, [](const RegisterRequest& r) {
        return std::string(encode_register_request(r).reveal());
      });
      break;
    case 4: round_trip(json, parse_key_answer, encode_key_answer); break;
    case 5: round_trip(json, parse_relay_map, encode_relay_map); break;
    case 6: round_trip(json, parse_filter_rules, encode_filter_rules); break;
    default: round_trip(json, parse_node, encode_node); break;
  }
  return 0;
}
