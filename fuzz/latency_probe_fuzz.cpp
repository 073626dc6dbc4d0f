// links: base crypto wire ts2021 derp
// Relays, and whoever answers in their place, against the latency measurement: answers, ends and time in any order. Every
// region gets one result in time, none without a good answer, and no stream stays behind.
#include <cstdlib>
#include <set>

#include "derp/latency_probe.h"
#include "derp/limits.h"

using namespace porthole;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  auto require = [](bool holds) {
    if (!holds) std::abort();
  };
  ByteReader in(Bytes(data, size));
  derp::LatencyProbe probe(1, false);
  ts2021::RelayMap map;
  for (int id = 1; id <= 3; ++id) {
    map.regions[id].region_id = id;
    for (const char* host : {"a.example", "b.example", "192.0.2.1"}) {
      ts2021::RelayNode node;
      node.host_name = host;
      map.regions[id].nodes.push_back(node);
    }
  }
  probe.set_map(map);
  Instant now = Instant::from_ns(1'000'000'000);
  const Instant end = now + derp::kLatencyProbeTime;
  std::set<StreamId> streams;
  std::set<int> waiting{1, 2, 3, 4};  // 4: not in the map
  probe.start(now, std::vector<int>{1, 2, 3, 4});
  auto drain = [&](bool good) {
    while (auto action = probe.poll_action()) {
      if (auto* open = std::get_if<OpenStream>(&*action)) require(streams.insert(open->id).second);
      else require(streams.erase(std::get<CloseStream>(*action).id) == 1);
    }
    while (auto result = probe.poll_result()) {
      require(waiting.erase(result->region) == 1);
      require(!result->took || (good && *result->took >= Duration::zero() && *result->took <= derp::kLatencyProbeTime));
    }
    require(streams.size() <= waiting.size());
    require(probe.next_timeout().is_never() == waiting.empty());
  };
  drain(false);
  // The n-th stream that is open, or one that is not any more.
  auto pick = [&](std::size_t n) {
    for (StreamId id : streams)
      if (n-- == 0) return id;
    return StreamId{1};
  };
  std::uint8_t block[512];
  for (int step = 0; step < 128 && in.ok() && in.remaining() > 0; ++step) {
    const std::uint8_t op = in.u8();
    const StreamId id = pick(op >> 3 & 3);
    bool good = false;
    switch (op & 7) {
      case 0: case 1: {
        ByteVector bytes = to_vector(in.take(std::min<std::size_t>(in.u8(), in.remaining())));
        auto taken = probe.consume(now, id, bytes);
        require(taken.ok() && *taken == bytes.size());
        good = true;
        break;
      }
      case 2: probe.stream_opened(now, id, {}); break;
      case 3: probe.produce(now, id, MutBytes(block).first(op >> 5 == 0 ? sizeof block : op)); break;
      case 4:
        streams.erase(id);
        if (op & 32) probe.stream_failed(now, id);
        else probe.stream_closed(now, id);
        break;
      case 5: now = std::min(end, now + std::chrono::milliseconds(op)); break;
      case 6: probe.handle_timeout(now); break;
      default: require(!probe.has_output(id) || streams.contains(id)); break;
    }
    drain(good);
  }
  now = end;
  probe.handle_timeout(now);
  drain(false);
  require(waiting.empty() && streams.empty());
  return 0;
}
