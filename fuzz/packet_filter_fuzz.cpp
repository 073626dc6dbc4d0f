// links: base crypto wire ts2021 control
// Rules out of JSON, then packets in and out. Length-prefixed: rules, then packets.
#include <cstdint>
#include <cstdlib>

#include "control/packet_filter.h"
#include "ts2021/json.h"

using namespace porthole;
using namespace porthole::control;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  ByteReader in(Bytes(data, size));
  Bytes json = in.take(in.be16());
  if (!in.ok()) return 0;
  PacketFilter filter;
  filter.set_local({*Prefix::parse("100.64.0.1/32"), *Prefix::parse("fd7a:115c:a1e0::1/128"), *Prefix::parse("10.0.0.0/8")});
  auto rules = ts2021::parse_filter_rules(json);
  const bool has_rules = rules.ok();
  if (has_rules) filter.set_rules(CompiledFilter::compile(*rules));
  while (in.remaining() > 1) {
    const std::uint8_t what = in.u8();
    Bytes packet = in.take(std::min<std::size_t>(in.remaining(), in.u8()));
    if (what % 4 == 0) {
      filter.note_outbound(packet);
    } else {
      const Verdict verdict = filter.check(packet, what % 4 == 1);
      // A cached answer is the answer.
      if (!(filter.check(packet, what % 4 == 1) == verdict)) std::abort();
    }
  }
  return 0;
}
