// links: coordinator ts2021 crypto base
// What a client may send behind a good Noise handshake: arbitrary plaintext in good records, requests with arbitrary
// bodies, broken records, time that passes, connections that end. Two clients of one account, so that what one does is
// distributed to the other.
#include <cstdlib>
#include <memory>
#include <optional>

#include "coordinator/coordinator.h"
#include "coordinator/memory_store.h"
#include "ts2021/h2.h"
#include "ts2021/json.h"
#include "ts2021/noise.h"

namespace {

using namespace porthole;
using namespace porthole::coordinator;

struct FuzzClient {
  crypto::MachinePrivate machine;
  crypto::NodePrivate node;
  SessionId session = 0;
  std::optional<ts2021::RecordStream> records;
  std::optional<ts2021::H2Client> h2;
};

void connect(Coordinator& c, Clock clock, const MachinePublic& server, FuzzClient& client, Rng& rng) {
  auto initiator = ts2021::NoiseInitiator::start(131, server, client.machine, rng);
  if (!initiator) std::abort();
  client.session = c.on_upgrade(clock, {}, initiator->initiation());
  std::uint8_t response[51];
  if (c.produce(clock, client.session, response) != sizeof response) std::abort();
  auto finished = initiator->finish(response);
  if (!finished) std::abort();
  client.records.emplace(std::move(finished->records));
  client.h2.emplace("x");
}

void send_plain(Coordinator& c, Clock clock, FuzzClient& client, Bytes plain) {
  ByteVector sealed;
  if (!client.records->seal(plain, sealed)) return;
  c.consume(clock, client.session, sealed);
}

void flush(Coordinator& c, Clock clock, FuzzClient& client) {
  std::uint8_t out[16 * 1024];
  while (std::size_t n = client.h2->produce(out)) send_plain(c, clock, client, Bytes(out).first(n));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  SeededRng rng(1);
  MemoryStore store;
  Clock clock{Instant::from_ns(1'000'000'000), WallTime::from_unix_s(1'790'000'000)};
  auto directory = Directory::open({}, store, rng, Log::none());
  if (!directory) std::abort();
  (void)(*directory)->create_account(clock, "a");
  KeyOptions reusable;
  reusable.reusable = true;
  auto key = (*directory)->key_create(clock, "a", reusable);
  auto noise = crypto::MachinePrivate::generate(rng);
  MachinePublic server = noise.public_key();
  Coordinator c(std::move(noise), {}, **directory, rng, Log::none());
  c.start(clock);

  FuzzClient clients[2];
  for (auto& client : clients) {
    client.machine = crypto::MachinePrivate::generate(rng);
    client.node = crypto::NodePrivate::generate(rng);
    connect(c, clock, server, client, rng);
    ts2021::RegisterRequest r;
    r.version = 131;
    r.node_key = client.node.public_key();
    r.auth_key = key->key.duplicate();
    (void)client.h2->submit("POST", "/machine/register", {}, as_bytes(ts2021::encode_register_request(r).reveal()));
    ts2021::MapRequest m;
    m.version = 131;
    m.node_key = client.node.public_key();
    m.stream = true;
    (void)client.h2->submit("POST", "/machine/map", {}, as_bytes(ts2021::encode_map_request(m)));
    flush(c, clock, client);
  }

  ByteReader in(Bytes(data, size));
  for (int i = 0; i < 64 && in.remaining() > 2; ++i) {
    std::uint8_t op = in.u8();
    FuzzClient& client = clients[op >> 7];
    Bytes chunk = in.take(std::min<std::size_t>(in.u8(), in.remaining()));
    switch (op & 7) {
      case 0: send_plain(c, clock, client, chunk); break;
      case 1: c.consume(clock, client.session, chunk); break;
      case 2: (void)client.h2->submit("POST", "/machine/register", {}, chunk); flush(c, clock, client); break;
      case 3: (void)client.h2->submit("POST", "/machine/map", {}, chunk); flush(c, clock, client); break;
      case 4: {  // a well-formed update with fuzzed fields
        ts2021::MapRequest m;
        m.version = 131;
        m.node_key = client.node.public_key();
        m.omit_peers = (op & 8) == 0;
        m.stream = (op & 16) != 0;
        m.hostinfo.emplace();
        m.hostinfo->hostname = as_text(chunk);
        (void)client.h2->submit("POST", "/machine/map", {}, as_bytes(ts2021::encode_map_request(m)));
        flush(c, clock, client);
        break;
      }
      case 5: {
        Duration d = std::chrono::milliseconds(1 << (op >> 3 & 15));
        clock.now = clock.now + d;
        clock.wall = clock.wall + d;
        c.handle_timeout(clock);
        break;
      }
      case 6: {
        std::uint8_t out[999];
        while (auto id = c.next_ready())
          while (c.produce(clock, *id, out) > 0) {
          }
        break;
      }
      case 7:
        c.close(clock, client.session);
        connect(c, clock, server, client, rng);
        break;
    }
    while (c.poll_event()) {
    }
  }
  for (auto& client : clients) c.close(clock, client.session);
  if (c.session_count() != 0 || c.stream_count() != 0) std::abort();
  if (!c.save()) std::abort();
  if (!Directory::open({}, store, rng, Log::none())) std::abort();  // whatever was stored can be read again
  return 0;
}
