// links: wg crypto base
//
// Two tunnels and a wire that the input controls: each byte pair is an operation. What must always hold: no packet comes
// out that did not go in on the other side, and handling the timers leaves no deadline that is due.
#include <cstdlib>
#include <set>

#include "wg/tunnel.h"

namespace {

using namespace porthole;

struct World;
struct Side final : wg::Host {
  World* world = nullptr;
  int number = 0;
  std::unique_ptr<SeededRng> rng;
  std::unique_ptr<wg::Tunnel> tunnel;
  crypto::NodePrivate key;
  wg::PeerId peer = wg::kNoPeer;
  std::set<std::uint64_t> sent, received;
  bool admit(const NodePublic& k) override;
  void transmit(wg::PeerId, Bytes run, std::size_t segment) override;
  void reply(const wg::Source&, Bytes) override {}
  void deliver(wg::PeerId, std::span<const MutBytes> packets) override;
  void authenticated(wg::PeerId, const wg::Source&) override {}
  void stray(const wg::Source&) override {}
  void session(wg::PeerId, wg::SessionState) override {}
};

struct World {
  Side side[2];
  std::vector<ByteVector> wire[2];  // towards side i
  Clock clock{Instant::from_ns(1'000'000'000'000), WallTime::from_unix_s(1'800'000'000)};
  std::uint64_t next_id = 1;
  static constexpr std::size_t kWireMax = 256;

  static Prefix address(int i) { return Prefix::host(IpAddress::v4(100, 64, 0, static_cast<std::uint8_t>(i + 1))); }
  void add(int i) {
    const Prefix p = address(1 - i);
    side[i].peer = side[i].tunnel->add_peer(clock, side[1 - i].key.public_key(), std::span(&p, 1));
  }
  void start(int i) {
    side[i].tunnel = std::make_unique<wg::Tunnel>(side[i], *side[i].rng);
    side[i].tunnel->set_private_key(clock, side[i].key);
    const wg::Tai64n used = wg::Tai64n::from_wall(clock.wall).plus_seconds(60);
    side[i].tunnel->set_stamps({used, used.plus_seconds(60)});
    side[i].peer = wg::kNoPeer;
  }
  void deliver_one(int to, std::size_t which, bool keep, bool corrupt) {
    if (wire[to].empty()) return;
    which %= wire[to].size();
    ByteVector d = wire[to][which];
    if (!keep) wire[to].erase(wire[to].begin() + static_cast<std::ptrdiff_t>(which));
    if (corrupt) d[which % d.size()] ^= 0x10;
    const RecvDatagram r{Endpoint{IpAddress::v4(192, 0, 2, 1), 1}, MutBytes(d)};
    side[to].tunnel->handle_datagrams(clock, std::span(&r, 1));
    side[to].tunnel->flush(clock);
  }
};

bool Side::admit(const NodePublic& k) {
  if (k != world->side[1 - number].key.public_key()) return false;
  world->add(number);
  return true;
}
void Side::transmit(wg::PeerId, Bytes run, std::size_t segment) {
  for (std::size_t at = 0; at < run.size(); at += segment) {
    if (world->wire[1 - number].size() >= World::kWireMax) return;
    world->wire[1 - number].push_back(to_vector(run.subspan(at, std::min(segment, run.size() - at))));
  }
}
void Side::deliver(wg::PeerId, std::span<const MutBytes> packets) {
  for (MutBytes p : packets) {
    const std::uint64_t id = load_be<std::uint64_t>(p.data() + 20);
    if (!world->side[1 - number].sent.contains(id)) std::abort();
    received.insert(id);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  World w;
  for (int i = 0; i < 2; ++i) {
    w.side[i].world = &w;
    w.side[i].number = i;
    w.side[i].rng = std::make_unique<SeededRng>(static_cast<std::uint64_t>(i) + 1);
    w.side[i].key = crypto::NodePrivate::generate(*w.side[i].rng);
  }
  for (int i = 0; i < 2; ++i) {
    w.start(i);
    w.add(i);
  }
  for (std::size_t at = 0; at + 1 < size && at < 1000; at += 2) {
    const int i = data[at] & 1;
    const std::uint8_t value = data[at + 1];
    Side& s = w.side[i];
    wg::Tunnel& t = *s.tunnel;
    const bool known = t.contains(s.peer);
    switch (data[at] >> 1 & 15) {
      case 0: case 1: case 2: {  // send packets
        for (int k = 0; k < 1 + value % 4; ++k) {
          const std::size_t n = 28 + value * 4u;
          MutBytes room = t.begin(n);
          std::fill(room.begin(), room.end(), std::uint8_t{0});
          room[0] = 0x45;
          store_be(room.data() + 2, static_cast<std::uint16_t>(n));
          const auto from = World::address(i).address, to = World::address(1 - i).address;
          std::copy(from.bytes().begin(), from.bytes().end(), room.begin() + 12);
          std::copy(to.bytes().begin(), to.bytes().end(), room.begin() + 16);
          store_be(room.data() + 20, w.next_id);
          s.sent.insert(w.next_id++);
          t.commit(w.clock, n);
        }
        if (value % 3 != 0) t.flush(w.clock);
        break;
      }
      case 3: case 4: case 5: w.deliver_one(i, 0, false, false); break;
      case 6: w.deliver_one(i, value, false, false); break;           // reorder
      case 7: w.deliver_one(i, value, true, false); break;            // duplicate
      case 8: w.deliver_one(i, value, true, true); break;             // corrupt
      case 9: if (!w.wire[i].empty()) w.wire[i].erase(w.wire[i].begin()); break;  // lose
      case 10:  // time passes: milliseconds or many seconds
        w.clock.now = w.clock.now + (value < 128 ? Duration(1ms) * value : Duration(1s) * (value - 127) * 2);
        w.clock.wall = w.clock.wall + (Duration(1s) * (value % 5) - 1s);
        break;
      case 11: if (known) t.retry_handshake(w.clock, s.peer); break;
      case 12: if (known) t.reset_session(w.clock, s.peer); break;
      case 13: if (known) t.set_persistent_keepalive(w.clock, s.peer, Duration(1s) * (value % 30)); break;
      case 14:
        if (known && value < 40) t.remove_peer(w.clock, s.peer);
        else w.add(i);
        break;
      case 15:
        if (value < 20) w.start(i);
        else if (known) t.start_handshake(w.clock, s.peer);
        break;
    }
    for (Side& each : w.side) {
      each.tunnel->handle_timeout(w.clock);
      if (each.tunnel->next_timeout().latest <= w.clock.now) std::abort();
    }
  }
  return 0;
}
