#include "control/c2n.h"

#include <string>

#include "control/limits.h"
#include "wire/http.h"

namespace porthole::control {
namespace {

ByteVector answer(int status, std::string_view reason, std::string_view body) {
  const std::string length = std::to_string(body.size());
  const wire::HttpHeader headers[] = {{"Content-Length", length}};
  ByteVector out;
  const Status encoded = wire::encode_http_response_head(out, status, reason, headers);
  PORTHOLE_ASSERT(encoded.ok());
  append(out, as_bytes(body));
  return out;
}

}  // namespace

ByteVector answer_c2n(Bytes request) {
  wire::HttpLimits limits;
  limits.body_size_max = kC2nPayloadSizeMax;
  wire::HttpMessageParser parser(wire::HttpKind::kRequest, limits);
  auto taken = parser.consume(request);
  if (!taken.ok() || !parser.done()) return answer(400, "Bad Request", "malformed c2n request\n");
  std::string_view path = parser.head().target();
  path = path.substr(0, path.find('?'));
  if (path == "/echo") return answer(200, "OK", parser.body());
  return answer(400, "Bad Request", "unknown c2n path\n");
}

}  // namespace porthole::control
