// links: base crypto wire paths
#include <cstdint>
#include <cstdlib>

#include "crypto/dh.h"
#include "paths/paths.h"
#include "wire/disco.h"

// A Paths machine driven by the input as a list of operations, with authentic messages of two peers among them.
namespace {

using namespace porthole;

class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : r_(Bytes(data, size)) {}
  bool more() const { return r_.remaining() > 0; }
  std::uint8_t u8() { return r_.u8(); }
  Bytes bytes(std::size_t max) {
    std::size_t n = r_.u8();
    n = std::min({n, max, r_.remaining()});
    return r_.take(n);
  }
  Endpoint endpoint() {
    const std::uint8_t a = u8();
    if ((a & 1) == 0) return {IpAddress::v4(10, 0, 0, a), static_cast<std::uint16_t>(1 + (a >> 4))};
    std::uint8_t raw[16] = {0x20, 1, 0xd, 0xb8};
    raw[15] = a;
    return {IpAddress::v6_bytes(raw), static_cast<std::uint16_t>(1 + (a >> 4))};
  }

 private:
  ByteReader r_;
};

struct Sink final : DatagramSink {
  std::vector<ByteVector> sent;   // lately, to answer
  void keep(Bytes data) {
    if (sent.size() >= 8) sent.erase(sent.begin());
    sent.push_back(to_vector(data));
  }
  void send_udp(const Endpoint& destination, Bytes data, std::size_t) override {
    if (!destination.is_valid() || data.empty()) std::abort();
    keep(data);
  }
  void send_relay(int region, const NodePublic&, Bytes data) override {
    if (region == 0) std::abort();
    keep(data);
  }
};

struct PeerKeys {
  crypto::DiscoPrivate disco;
  NodePublic node;
};

ByteVector seal(Rng& rng, const PeerKeys& from, const DiscoPublic& to, Bytes plain) {
  ByteVector out(wire::disco::kOverhead + plain.size());
  std::uint8_t nonce[24];
  rng.fill(nonce);
  wire::disco::write_envelope(out, from.disco.public_key(), nonce);
  crypto::BoxKey::make(from.disco.reveal(), to.bytes())->seal(nonce, plain, MutBytes(out).subspan(wire::disco::kBoxOffset));
  return out;
}

// The transaction id of a ping that the machine sent to `peer`, if the datagram is one.
std::optional<wire::disco::TxId> ping_in(const PeerKeys& peer, Bytes packet) {
  const auto e = wire::disco::parse_envelope(packet);
  if (!e) return std::nullopt;
  ByteVector plain(e->box.size() - wire::disco::kTagSize);
  const auto key = crypto::BoxKey::make(peer.disco.reveal(), e->sender.bytes());
  if (!key || !key->open(e->nonce, e->box, plain)) return std::nullopt;
  const auto m = wire::disco::parse(plain);
  const auto* ping = m ? std::get_if<wire::disco::Ping>(&*m) : nullptr;
  return ping ? std::optional(ping->tx_id) : std::nullopt;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input in(data, size);
  SeededRng rng(1);
  Sink sink;
  paths::Paths machine(sink, rng, Log::none());
  Instant now = Instant::from_ns(1'000'000'000);
  PeerKeys own, peers[2];
  for (PeerKeys* k : {&own, &peers[0], &peers[1]}) {
    k->disco = crypto::DiscoPrivate::generate(rng);
    k->node = crypto::NodePrivate::generate(rng).public_key();
  }
  int steps = 0;
  while (in.more() && ++steps < 2000) {
    const std::uint8_t op = in.u8();
    PeerKeys& peer = peers[(op >> 7) & 1];
    switch (op & 0x1f) {
      case 0: machine.set_keys(now, own.disco, own.node); break;
      case 1: {
        paths::RelayMap map;
        for (int n = in.u8() % 4; n > 0; --n) {
          paths::RelayRegion r;
          r.id = in.u8();
          r.score = in.u8() / 100.0;
          r.no_measure_no_home = (in.u8() & 1) != 0;
          paths::RelayNode node;
          node.host_name = (in.u8() & 1) != 0 ? "relay.example" : "192.0.2.1";
          node.stun_port = in.u8() - 1;
          r.nodes = {node};
          map.regions.push_back(r);
        }
        machine.set_relay_map(now, map);
        break;
      }
      case 2: {
        std::vector<paths::InterfaceAddress> list;
        for (int n = in.u8() % 4; n > 0; --n) list.push_back({"eth0", in.endpoint().address, 24, true, false});
        machine.set_local_addresses(now, list, in.u8(), in.u8());
        break;
      }
      case 3:
      case 4: {
        paths::PeerConfig c;
        c.key = peer.node;
        c.disco = (op & 0x20) != 0 ? peers[0].disco.public_key() : peer.disco.public_key();
        for (int n = in.u8() % 6; n > 0; --n) c.endpoints.push_back(in.endpoint());
        c.home_region = in.u8() % 8;
        c.expired = in.u8() == 0xff;
        if ((op & 0x1f) == 3) machine.upsert_peer(now, c);
        else machine.set_peers(now, std::vector{c});
        break;
      }
      case 5: machine.remove_peer(now, peer.node); break;
      case 6: machine.set_mode(now, {(op & 0x20) != 0, (op & 0x40) == 0, false}); break;
      case 7: machine.note_relay_connected(now, in.u8() % 8, (op & 0x20) != 0); break;
      case 8: machine.note_peer_gone(now, in.u8() % 8, peer.node); break;
      case 9:
      case 10: {
        const paths::Route r = machine.route(now, peer.node);
        if (r.udp && !r.udp->is_valid()) std::abort();
        break;
      }
      case 11: machine.ping(now, in.u8(), peer.node, in.u8() * 40u); break;
      case 12: machine.handle_rebind(now); break;
      case 13: machine.handle_send_error(now, in.endpoint(), static_cast<paths::SendErrorKind>(in.u8() % 4)); break;
      case 14: {
        ByteVector packet = to_vector(in.bytes(200));
        (void)machine.handle_udp(now, {in.endpoint(), packet});
        break;
      }
      case 15: {
        ByteVector packet = to_vector(in.bytes(200));
        (void)machine.handle_relayed(now, in.u8() % 8, peer.node, packet);
        break;
      }
      case 16:
      case 17: {   // an authentic message with any content
        ByteVector packet = seal(rng, peer, own.disco.public_key(), in.bytes(255));
        if ((op & 0x20) != 0) (void)machine.handle_relayed(now, 1 + in.u8() % 7, peer.node, packet);
        else (void)machine.handle_udp(now, {in.endpoint(), packet});
        break;
      }
      case 18:
      case 19: {   // answer one of its pings
        if (sink.sent.empty()) break;
        const auto id = ping_in(peer, sink.sent[in.u8() % sink.sent.size()]);
        if (!id) break;
        const auto pong = wire::disco::encode_pong(*id, in.endpoint());
        ByteVector packet = seal(rng, peer, own.disco.public_key(), pong);
        (void)machine.handle_udp(now, {in.endpoint(), packet});
        break;
      }
      case 20: machine.resolved(now, "relay.example", std::vector{in.endpoint().address}); break;
      case 21: machine.start_netcheck(now, (op & 0x20) != 0); break;
      case 22: machine.disco_key_learned(now, peer.node, peers[in.u8() & 1].disco.public_key()); break;
      case 23: machine.note_authenticated(now, peer.node, in.endpoint()); break;
      case 24: machine.note_control_connected(now, (op & 0x20) != 0); break;
      case 25:
        machine.relay_measured(now, in.u8() % 8, (op & 0x20) != 0 ? std::optional<Duration>(in.u8() * 1ms) : std::nullopt, (op & 0x40) != 0);
        break;
      default: {   // time passes: to the next deadline, or a bit
        const Deadline d = machine.next_timeout();
        if ((op & 0x20) != 0 && !d.is_never()) now = std::max(now, d.latest);
        else now = now + in.u8() * 20ms;
        machine.handle_timeout(now);
        if (!machine.next_timeout().is_never() && machine.next_timeout().latest <= now) std::abort();   // would spin
      }
    }
    while (machine.poll_event()) {}
    for (const PeerKeys& p : peers) {
      const auto s = machine.status(now, p.node);
      if (s && s->trusted && !s->direct) std::abort();
    }
  }
  return 0;
}
