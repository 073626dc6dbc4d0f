// links: base crypto wire proxy
// A UDP association of the loopback proxy, between a local program and a tailnet that both send what they like: flows stay
// within their bound, none leaks, only one port of the client counts, and answers lead back to a target that was asked for.
#include <cstdlib>
#include <set>

#include "proxy/limits.h"
#include "proxy/udp_association.h"

using namespace porthole;
using namespace porthole::proxy;

namespace {

const IpAddress kLoopback = IpAddress::v4(127, 0, 0, 1);

struct Tailnet final : UdpHost {
  // Names have an address by their length; a third of everything is not there.
  Result<Endpoint> locate(const wire::socks5::Host& host, std::uint16_t port) override {
    const auto* address = std::get_if<IpAddress>(&host);
    IpAddress at = address ? *address : IpAddress::v4(100, 64, 0, static_cast<std::uint8_t>(std::get<std::string_view>(host).size()));
    if (port == 0) std::abort();
    if (at.bytes().back() % 3 == 0) return Error{ErrorCode::kNotFound, ""};
    return Endpoint{at, port};
  }
  Result<FlowId> open_flow() override {
    if (++opened % 7 == 0) return Error{ErrorCode::kLimit, ""};
    open.insert(opened);
    return opened;
  }
  void close_flow(FlowId flow) override {
    if (open.erase(flow) != 1) std::abort();
  }
  Status send_to_target(FlowId flow, const Endpoint& to, Bytes data) override {
    if (!open.contains(flow)) std::abort();
    if (data.size() > 8) return Error{ErrorCode::kLimit, ""};
    last = to;
    last_flow = flow;
    return {};
  }
  bool send_to_client(const Endpoint& client, Bytes head, Bytes) override {
    auto d = wire::socks5::parse_datagram(head);
    if (!d || d->fragment != 0 || !d->data.empty() || d->port != source.port) std::abort();
    if (client.address != kLoopback || client.port == 0 || (known != 0 && client.port != known)) std::abort();
    known = client.port;
    return client.port % 2 == 0;
  }

  std::set<FlowId> open;
  FlowId opened = 0, last_flow = 0;
  Endpoint last, source;
  std::uint16_t known = 0;
};

}  // namespace

// One byte says what happens and how long the datagram is; the datagram follows.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Tailnet tailnet;
  AssociationCounters counters;
  UdpAssociation machine(kLoopback, tailnet, counters);
  Instant now = Instant::from_ns(1);
  ByteReader in({data, size});
  while (in.remaining() > 1) {
    std::uint8_t what = in.u8();
    switch (what % 8) {
      case 0: now = now + Duration(1s) * (what / 2); machine.handle_timeout(now); break;
      case 1: tailnet.source = tailnet.last; machine.handle_target(now, tailnet.last_flow, tailnet.source, {}); break;
      case 2: tailnet.source = {IpAddress::v4(100, 64, 0, 1), what}; machine.handle_target(now, what / 8, tailnet.source, {}); break;
      default: {
        std::size_t n = std::min<std::size_t>(what / 8, in.remaining());
        machine.handle_client(now, {kLoopback, static_cast<std::uint16_t>(4000 + what % 3)}, in.take(n));
      }
    }
    if (machine.flows() > kUdpTargetsMax || machine.flows() != tailnet.open.size()) std::abort();
  }
  machine.close();
  if (!tailnet.open.empty()) std::abort();
  return 0;
}
