// links: base crypto wire ts2021 derp
// A hostile relay against the client: HTTP answer, frames, closes and passing time in any order. Whatever happens, the
// client must stay inside its memory, keep at most one stream per region, and know when it wants to be woken.
#include <cstdlib>
#include <set>

#include "derp/derp_client.h"

using namespace porthole;

namespace {

struct Host final : derp::DerpHost {
  std::size_t bytes = 0;
  void relay_packet(Instant, int, const NodePublic&, MutBytes data) override {
    for (std::uint8_t b : data) bytes += b;  // every byte must be readable
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  ByteReader in(Bytes(data, size));
  Host host;
  SeededRng rng(1);
  derp::DerpClient client({1, false}, host, rng, Log::none());
  Instant now = Instant::from_ns(1'000'000'000);
  SeededRng key_rng(2);
  client.set_key(now, crypto::NodePrivate::generate(key_rng));
  ts2021::RelayMap map;
  map.regions[1].region_id = 1;
  for (const char* host_name : {"a.example", "b.example"}) {
    ts2021::RelayNode node;
    node.host_name = host_name;
    map.regions[1].nodes.push_back(node);
  }
  client.set_map(now, map);
  client.set_home(now, 1);
  std::set<StreamId> streams;
  StreamId current = 0;
  // Most inputs should get behind the HTTP head: a first byte below 128 plays it.
  std::uint8_t mode = in.u8();
  auto drain = [&] {
    while (auto action = client.poll_action()) {
      if (auto* open = std::get_if<OpenStream>(&*action)) {
        streams.insert(open->id);
        current = open->id;
      } else {
        streams.erase(std::get<CloseStream>(*action).id);
      }
    }
    if (streams.size() > 1) std::abort();
    while (client.poll_event()) {
    }
  };
  auto open = [&] {
    StreamInfo info;
    client.stream_opened(now, current, info);
    if (mode < 128) {
      ByteVector head = to_vector(as_bytes("HTTP/1.1 101 Switching Protocols\r\n\r\n"));
      (void)client.consume(now, current, head);
    }
  };
  drain();
  open();
  for (int step = 0; step < 64 && in.ok() && in.remaining() > 0; ++step) {
    std::uint8_t op = in.u8();
    switch (op & 7) {
      case 0: case 1: case 2: {
        std::size_t n = in.u8() | static_cast<std::size_t>(op >> 3) << 8;
        ByteVector bytes = to_vector(in.take(n < in.remaining() ? n : in.remaining()));
        (void)client.consume(now, current, bytes);
        break;
      }
      case 3: {
        ByteVector out(1 + static_cast<std::size_t>(op) * 16);
        client.produce(now, current, out);
        break;
      }
      case 4: {
        ByteVector packet(static_cast<std::size_t>(op) * 300);
        client.send_to_peer(now, NodePublic::from_bytes(ByteVector(32, op)), op & 8 ? 1 : 0, packet);
        break;
      }
      case 5:
        streams.erase(current);
        client.stream_closed(now, current, nullptr);
        break;
      case 6:
        now = client.next_timeout().latest;
        if (now == Instant::max()) std::abort();  // home is set: there is always something to wait for
        client.handle_timeout(now);
        break;
      default: open(); break;
    }
    drain();
  }
  return host.bytes == ~std::size_t{0};
}
