// links: wg crypto base
//
// A tunnel with one peer, fed with arbitrary datagrams. Input: repeated (mode, 16-bit length, bytes). Mode bit 0 repairs
// mac1, bit 1 comes from a relay, bit 2 lets time pass first, bit 3 makes it a transport message under the live index.
#include <algorithm>
#include <cstdlib>

#include "wg/noise.h"
#include "wg/tunnel.h"

namespace {

using namespace porthole;

struct Sink final : wg::Host {
  ByteVector last;
  bool admit(const NodePublic&) override { return false; }
  void transmit(wg::PeerId, Bytes run, std::size_t) override { last = to_vector(run); }
  void reply(const wg::Source&, Bytes datagram) override {
    if (datagram.size() != wg::kCookieReplySize) std::abort();
  }
  void deliver(wg::PeerId, std::span<const MutBytes> packets) override {
    for (MutBytes p : packets) {
      if (p.size() < 20) std::abort();
    }
  }
  void authenticated(wg::PeerId, const wg::Source&) override {}
  void stray(const wg::Source&) override {}
  void session(wg::PeerId, wg::SessionState) override {}
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Sink host, other_host;
  SeededRng rng(1);
  wg::Tunnel tunnel(host, rng), other(other_host, rng);
  Clock clock{Instant::from_ns(1'000'000'000'000), WallTime::from_unix_s(1'800'000'000)};
  tunnel.set_private_key(clock, crypto::NodePrivate::generate(rng));
  other.set_private_key(clock, crypto::NodePrivate::generate(rng));
  const Prefix all[] = {*Prefix::parse("0.0.0.0/0"), *Prefix::parse("::/0")};
  tunnel.add_peer(clock, other.public_key(), all);
  const wg::PeerId id = other.add_peer(clock, tunnel.public_key(), all);
  const Endpoint source{IpAddress::v4(192, 0, 2, 1), 41641};
  auto feed = [&](wg::Tunnel& to, ByteVector datagram) {
    const RecvDatagram d{source, MutBytes(datagram)};
    to.handle_datagrams(clock, std::span(&d, 1));
  };
  other.start_handshake(clock, id);
  feed(tunnel, other_host.last);
  const std::uint32_t index = load_le<std::uint32_t>(host.last.data() + 4);  // of the response
  feed(other, host.last);
  feed(tunnel, other_host.last);
  if (tunnel.state(0) != wg::SessionState::kEstablished) std::abort();

  ByteReader in(Bytes(data, size));
  for (int steps = 0; steps < 64 && in.remaining() >= 3; ++steps) {
    const std::uint8_t mode = in.u8();
    const std::size_t length = std::min<std::size_t>(in.be16() % 2048, in.remaining());
    ByteVector datagram = to_vector(in.take(length));
    if ((mode & 4) != 0) {
      clock.now = clock.now + 7s;
      clock.wall = clock.wall + 7s;
      tunnel.handle_timeout(clock);
    }
    if ((mode & 8) != 0 && datagram.size() >= 8) {
      store_le(datagram.data(), std::uint32_t{wg::kTypeTransport});
      store_le(datagram.data() + 4, index);
    }
    if ((mode & 1) != 0 && datagram.size() >= 32) wg::write_mac1(wg::mac1_key_of(tunnel.public_key()), datagram);
    if ((mode & 2) != 0) tunnel.handle_relayed(clock, 1, other.public_key(), datagram);
    else feed(tunnel, datagram);
    if (tunnel.next_timeout().latest < clock.now) tunnel.handle_timeout(clock);
  }
  return 0;
}
