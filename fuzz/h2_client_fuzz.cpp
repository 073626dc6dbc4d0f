// links: base crypto wire ts2021
// HTTP/2 bytes from a hostile peer against both session classes, with the operations their users make in between.
#include <cstdint>

#include "ts2021/h2.h"

using namespace porthole;
using namespace porthole::ts2021;

namespace {

template <typename Session>
void drain(Session& session) {
  std::uint8_t out[4096];
  for (int i = 0; i < 64 && session.produce(out) != 0; ++i) {
  }
}

void client(std::uint8_t slice, Bytes input) {
  H2Client session("control.example");
  auto map = session.submit("POST", "/machine/map", {}, as_bytes("{}"));
  auto other = session.submit("POST", "/machine/register", {}, as_bytes("{}"));
  drain(session);
  while (!input.empty()) {
    Bytes piece = input.first(std::min<std::size_t>(input.size(), 1u + slice));
    input = input.subspan(piece.size());
    const bool ok = session.consume(piece).ok();
    while (session.poll_event()) {
    }
    if (!ok || session.finished()) return;
    if (input.size() % 7 == 0 && other.ok()) session.cancel(*other);
    if (input.size() % 11 == 0) session.ping();
    if (input.size() % 13 == 0) (void)session.submit("GET", "/x", {}, {}).ok();
    drain(session);
  }
  if (map.ok()) session.cancel(*map);
  drain(session);
}

void server(std::uint8_t slice, Bytes input) {
  H2Server session;
  drain(session);
  if (!session.consume(as_bytes("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")).ok()) return;
  while (!input.empty()) {
    Bytes piece = input.first(std::min<std::size_t>(input.size(), 1u + slice));
    input = input.subspan(piece.size());
    const bool ok = session.consume(piece).ok();
    while (auto event = session.poll_event()) {
      if (auto* request = std::get_if<H2Request>(&*event)) {
        if (request->body.size() % 2 == 0) {
          session.respond(request->stream, 200, {}, as_bytes("answer"));
        } else {
          session.respond_streaming(request->stream, 200, {});
          session.send_data(request->stream, as_bytes("piece"));
          if (request->path.size() % 2 == 0) session.end(request->stream);
          else session.reset(request->stream, kH2Cancel);
        }
      }
    }
    if (!ok || session.finished()) return;
    drain(session);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  if (data[0] % 2 == 0) client(data[1], Bytes(data + 2, size - 2));
  else server(data[1], Bytes(data + 2, size - 2));
  return 0;
}
