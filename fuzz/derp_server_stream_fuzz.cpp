// links: base crypto wire ts2021 derp relay
// Hostile clients against the relay server: one that logs in properly and then sends anything, one that sends anything
// from the start, and an honest third whose packets must still get through in the end.
#include <cstdlib>
#include <map>

#include "derp/login.h"
#include "relay/relay_server.h"

using namespace porthole;
namespace frames = wire::derp;

namespace {

struct Everybody final : relay::Admission {
  bool admit(const NodePublic&, const Endpoint&) override { return true; }
};

crypto::NodePrivate key_of(std::uint64_t seed) {
  SeededRng rng(seed);
  return crypto::NodePrivate::generate(rng);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const crypto::NodePrivate relay_key = key_of(1), first = key_of(2), honest = key_of(3);
  ByteReader in(Bytes(data, size));
  Everybody admission;
  SeededRng rng(9);
  relay::RelayServer server(relay_key, admission, rng, Log::none());
  Instant now = Instant::from_ns(1'000'000'000);
  auto login = [&](const crypto::NodePrivate& key) {
    relay::ConnId id = server.on_connect(now, {IpAddress::v4(192, 0, 2, 1), 9});
    auto box = crypto::BoxKey::make(key.reveal(), server.public_key().bytes());
    ByteVector frame, nonce(24);
    derp::encode_login(frame, key.public_key(), *box, nonce);
    server.consume(now, id, frame);
    return id;
  };
  relay::ConnId conns[3] = {login(first), server.on_connect(now, {IpAddress::v4(192, 0, 2, 2), 9}), login(first)};
  auto drain = [&] {
    while (server.poll_ready()) {
    }
    while (server.poll_close()) {
    }
  };
  for (int step = 0; step < 64 && in.ok() && in.remaining() > 0; ++step) {
    std::uint8_t op = in.u8();
    relay::ConnId& id = conns[(op >> 3) % 3];
    switch (op & 7) {
      case 0: case 1: case 2: case 3: {
        std::size_t n = in.u8();
        ByteVector bytes = to_vector(in.take(n < in.remaining() ? n : in.remaining()));
        server.consume(now, id, bytes);
        break;
      }
      case 4: {
        ByteVector out(1 + static_cast<std::size_t>(op) * 8);
        server.produce(now, id, out);
        break;
      }
      case 5: server.on_close(now, id); break;
      case 6:
        now = server.next_timeout().latest == Instant::max() ? now : server.next_timeout().latest;
        server.handle_timeout(now);
        break;
      default: id = login(first); break;
    }
    drain();
  }
  relay::ConnId friendly = login(honest);
  ByteVector frame(frames::kPacketHeadSize);
  frames::store_packet_head(frame.data(), frames::FrameType::kSendPacket, honest.public_key(), 0);
  server.consume(now, friendly, frame);
  ByteVector out(4096);
  std::size_t n = server.produce(now, friendly, out);
  if (n < frames::kPacketHeadSize || !frames::load_frame_header(out.data() + n - frames::kPacketHeadSize).is(frames::FrameType::kRecvPacket)) std::abort();
  if (server.gauges().connections > 4 + 64) std::abort();
  return 0;
}
