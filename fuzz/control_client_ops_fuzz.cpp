// links: base crypto wire ts2021 control
// The control client under any sequence of commands, stream events, bytes and time. A real handshake is not reachable
// for random bytes, so one stream is served honestly up to HTTP/2 and then fed what the input says.
#include <cstdint>
#include <cstdlib>
#include <map>

#include "control/control_client.h"
#include "ts2021/h2.h"
#include "ts2021/json.h"
#include "ts2021/map_framing.h"
#include "ts2021/noise.h"

using namespace porthole;
using namespace porthole::control;

namespace {

struct Peer {
  std::string head;
  std::optional<ts2021::NoiseSession> noise;
  std::optional<ts2021::H2Server> h2;
  ts2021::H2StreamId map = 0;
};

struct World {
  SeededRng rng{7};
  crypto::MachinePrivate server = crypto::MachinePrivate::generate(rng);
  ControlClient client;
  Clock clock{Instant::from_ns(1'000'000'000), WallTime::from_unix_s(1'795'000'000)};
  std::map<StreamId, Peer> peers;

  World() : client(make_config(server.public_key()), crypto::MachinePrivate::generate(rng), {}, rng, Log::none()) {}
  static ControlConfig make_config(const MachinePublic& key) {
    ControlConfig c;
    c.url = "http://h";
    c.cached_control_key = key;
    c.zstd = false;
    return c;
  }

  void settle() {
    for (int i = 0; i < 200; ++i) {
      bool moved = false;
      while (client.poll_event()) moved = true;
      while (auto action = client.poll_action()) {
        moved = true;
        if (auto* open = std::get_if<OpenStream>(&*action)) {
          peers[open->id];
          client.stream_opened(clock, open->id, {});
        } else {
          peers.erase(std::get<CloseStream>(*action).id);
        }
      }
      std::vector<StreamId> ids;
      for (auto& [id, peer] : peers) ids.push_back(id);
      for (StreamId id : ids) moved = pump(id) || moved;
      if (!moved) return;
    }
  }
  bool pump(StreamId id) {
    auto it = peers.find(id);
    if (it == peers.end()) return false;
    Peer& peer = it->second;
    std::uint8_t buffer[4096];
    const std::size_t n = client.produce(clock, id, buffer);
    ByteVector out;
    if (!peer.h2) {
      peer.head += as_text(Bytes(buffer, n));
      const std::size_t at = peer.head.find("Handshake: ");
      if (at != std::string::npos && peer.head.ends_with("\r\n\r\n")) {
        auto initiation = from_base64(std::string_view(peer.head).substr(at + 11, 136));
        auto response = initiation ? ts2021::respond_noise(*initiation, server, rng) : Result<ts2021::NoiseResponse>(Error{});
        if (!response.ok()) std::abort();
        out = to_vector(as_bytes("HTTP/1.1 101 X\r\nUpgrade: tailscale-control-protocol\r\n\r\n"));
        append(out, response->response);
        peer.noise.emplace(std::move(response->session));
        peer.h2.emplace();
      }
    } else if (n != 0) {
      ByteVector plain;
      if (!peer.noise->records.open(Bytes(buffer, n), plain).ok()) std::abort();
      (void)peer.h2->consume(plain).ok();
      while (auto event = peer.h2->poll_event()) {
        auto* request = std::get_if<ts2021::H2Request>(&*event);
        if (request == nullptr) continue;
        if (request->path == "/machine/register") {
          ts2021::RegisterResponse answer;
          answer.machine_authorized = true;
          peer.h2->respond(request->stream, 200, {}, as_bytes(ts2021::encode_register_response(answer)));
        } else if (auto map = ts2021::parse_map_request(request->body); map.ok() && map->stream) {
          peer.map = request->stream;
          peer.h2->respond_streaming(request->stream, 200, {});
        } else {
          peer.h2->respond(request->stream, 200, {}, {});
        }
      }
    }
    if (peer.h2) {
      std::uint8_t plain[4077];
      const std::size_t m = peer.h2->produce(plain);
      if (m != 0) (void)peer.noise->records.seal(Bytes(plain, m), out).ok();
    }
    if (!out.empty()) (void)client.consume(clock, id, out).ok();
    return n != 0 || !out.empty();
  }
  StreamId some(std::uint8_t pick) {
    if (peers.empty()) return pick;
    auto it = peers.begin();
    std::advance(it, pick % peers.size());
    return it->first;
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  World w;
  w.client.start(w.clock);
  w.settle();
  ByteReader in(Bytes(data, size));
  for (int steps = 0; in.remaining() > 0 && steps < 64; ++steps) {
    const std::uint8_t op = in.u8();
    const std::uint8_t arg = in.u8();
    switch (op % 12) {
      case 0: w.client.set_endpoints(w.clock, {{Endpoint{IpAddress::v4(arg), 1}, {}}}); break;
      case 1: w.client.login(w.clock, crypto::SecretText("k")); break;
      case 2: w.client.logout(w.clock); break;
      case 3: w.client.network_changed(w.clock); break;
      case 4: w.client.stream_closed(w.clock, w.some(arg), std::nullopt); break;
      case 5: w.client.stream_failed(w.clock, w.some(arg), Error{ErrorCode::kReset, "x"}); break;
      case 6: (void)w.client.consume(w.clock, w.some(arg), in.take(std::min<std::size_t>(arg, in.remaining()))).ok(); break;
      case 7:
      case 8: {  // a map message
        const std::size_t length = in.be16();
        Bytes json = in.take(std::min(length, in.remaining()));
        for (auto& [id, peer] : w.peers) {
          if (peer.h2 && peer.map != 0) peer.h2->send_data(peer.map, ts2021::frame_map_message(as_text(json), false));
        }
        break;
      }
      case 9:
        for (auto& [id, peer] : w.peers) {
          if (peer.h2 && peer.map != 0) peer.h2->end(peer.map);
        }
        break;
      default: {
        const Duration d = std::chrono::milliseconds(std::int64_t{arg} * 500);
        w.clock.now = w.clock.now + d;
        w.clock.wall = w.clock.wall + d;
        w.client.handle_timeout(w.clock);
      }
    }
    w.settle();
  }
  return 0;
}
