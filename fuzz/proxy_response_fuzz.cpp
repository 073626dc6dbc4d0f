// links: base crypto wire proxy
// The head of a server's answer on its way through the proxy: nothing is lost, slicing must not change the outcome.
#include <cstdlib>

#include "proxy/response_head.h"

using namespace porthole;

namespace {

ByteVector through(Bytes in, std::size_t slice) {
  proxy::ResponseHead head;
  ByteVector out;
  std::size_t at = 0;
  while (!head.done() && at < in.size()) {
    Bytes part = in.subspan(at);
    if (part.size() > slice) part = part.first(slice);
    std::size_t n = head.consume(part);
    if (n > part.size() || (n == 0 && !head.done())) std::abort();
    at += n;
    append(out, head.output());
    head.sent(head.output().size());
  }
  head.end();
  append(out, head.output());
  append(out, in.subspan(at));
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 1) return 0;
  Bytes in(data + 1, size - 1);
  if (through(in, in.size() + 1) != through(in, 1 + data[0] % 23)) std::abort();
  return 0;
}
