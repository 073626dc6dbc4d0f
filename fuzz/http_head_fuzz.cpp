// links: base wire
// HTTP heads and bodies: slicing must not change the outcome, and whatever parses must encode back.
#include <cstdlib>

#include "wire/http.h"

using namespace porthole;
using namespace porthole::wire;

namespace {

struct Outcome {
  bool failed = false;
  bool done = false;
  std::size_t consumed = 0;
  std::string body;
};

Outcome run(HttpKind kind, Bytes in, std::size_t slice) {
  HttpMessageParser p(kind);
  Outcome o;
  while (o.consumed < in.size() && !p.done()) {
    Bytes part = in.subspan(o.consumed);
    if (part.size() > slice) part = part.first(slice);
    auto n = p.consume(part);
    if (!n) {
      o.failed = true;
      return o;
    }
    if (*n > part.size()) std::abort();
    o.consumed += *n;
  }
  o.done = p.done();
  o.body = p.body();
  if (o.done) {
    std::vector<HttpHeader> headers;
    for (std::size_t i = 0; i < p.head().header_count(); ++i) headers.push_back(p.head().header_at(i));
    ByteVector out;
    Status s = kind == HttpKind::kRequest ? encode_http_request_head(out, p.head().method(), p.head().target(), headers)
                                          : encode_http_response_head(out, p.head().status(), p.head().reason(), headers);
    if (!s.ok()) std::abort();
    HttpHeadParser again(kind);
    auto n = again.consume(out);
    // Only the size limit may differ: blanks around values are normalised.
    if (n && !again.done()) std::abort();
  }
  return o;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  HttpKind kind = data[0] & 1 ? HttpKind::kRequest : HttpKind::kResponse;
  Bytes in(data + 2, size - 2);
  Outcome whole = run(kind, in, in.size() + 1);
  Outcome sliced = run(kind, in, 1 + data[1] % 13);
  if (whole.done != sliced.done) std::abort();
  if (whole.done && (whole.consumed != sliced.consumed || whole.body != sliced.body)) std::abort();
  return 0;
}
