// links: base crypto wire proxy
// The loopback proxy: no input without the credential may lead to a Connect or an Associate, and slicing must not change the outcome.
#include <cstdlib>

#include "proxy/proxy_machine.h"

using namespace porthole;
using namespace porthole::proxy;

namespace {

struct Outcome {
  ProxyState state;
  std::string output;
  std::string target, first;
  std::size_t consumed = 0;
  bool operator==(const Outcome&) const = default;
};

Outcome run(Bytes in, std::size_t slice, const ProxyCredential* credential) {
  ProxyMachine machine(Instant{}, {credential, false});
  Outcome o{};
  while (o.consumed < in.size()) {
    Bytes part = in.subspan(o.consumed);
    if (part.size() > slice) part = part.first(slice);
    std::size_t n = machine.consume(part);
    if (n > part.size()) std::abort();
    o.consumed += n;
    if (n < part.size()) break;
  }
  ByteVector out(4096);
  out.resize(machine.produce(out));
  o.output = as_text(out);
  o.state = machine.state();
  if (auto event = machine.poll_event()) {
    if (const auto* c = std::get_if<Connect>(&*event)) {
      o.target = c->to_string();
      o.first = as_text(c->first);
    } else if (std::holds_alternative<Associate>(*event)) {
      o.target = "UDP";
    } else {
      std::abort();
    }
    // What goes to the server is one head and keeps no secret of the proxy.
    if (!o.first.empty()) {
      wire::HttpHeadParser head(wire::HttpKind::kRequest, {64 * 1024, 128, 0});
      auto taken = head.consume(as_bytes(o.first));
      if (!taken || *taken != o.first.size() || !head.done() || head.header("proxy-authorization")) std::abort();
    }
  }
  // Bytes fed to a machine that is closing are swallowed, however they are cut.
  if (o.state == ProxyState::kClosing) o.consumed = in.size();
  return o;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 1) return 0;
  static const ProxyCredential credential{"tsnet", crypto::SecretText("correct horse battery")};
  Bytes in(data + 1, size - 1);
  Outcome whole = run(in, in.size() + 1, nullptr);
  Outcome sliced = run(in, 1 + data[0] % 17, nullptr);
  if (!(whole == sliced)) std::abort();
  Outcome guarded = run(in, 1 + data[0] % 17, &credential);
  bool knows = as_text(in).find("correct horse battery") != std::string_view::npos ||
               as_text(in).find(to_base64(as_bytes("tsnet:correct horse battery"))) != std::string_view::npos;
  if (!guarded.target.empty() && !knows) std::abort();
  return 0;
}
