// The engine alone; what it does with others is in tests/scenario.
#include "node/engine.h"

#include <gtest/gtest.h>

#include "node/limits.h"

namespace porthole::node {
namespace {

struct Nowhere final : DatagramSink {
  void send_udp(const Endpoint&, Bytes, std::size_t) override {}
  void send_relay(int, const NodePublic&, Bytes) override {}
};

TEST(Engine, EventsThatNobodyTakesAreBoundedAndTheLastOneSaysSo) {
  SeededRng rng(1);
  Clock clock;
  clock.now = Instant::from_ns(1'000'000'000);
  clock.wall = WallTime::from_unix_s(1'790'000'000);
  Nowhere nowhere;
  EngineConfig config;
  config.control.url = "https://control.example";
  Engine engine(std::move(config), crypto::MachinePrivate::generate(rng), crypto::NodePrivate::generate(rng), {}, nowhere, rng,
                Log::none(), clock);
  const NodePublic nobody = crypto::NodePrivate::generate(rng).public_key();
  for (std::size_t i = 0; i < kEventsMax + 10; ++i) engine.tsmp_ping(clock, i, nobody, IpAddress::v4(100, 64, 0, 9));
  std::size_t events = 0, notices = 0;
  while (auto event = engine.poll_event()) {
    ++events;
    if (auto* notice = std::get_if<NoticeEvent>(&*event)) {
      ++notices;
      EXPECT_EQ(notice->error.code, ErrorCode::kLimit);
    } else {
      EXPECT_EQ(notices, 0u) << "behind the last";
    }
  }
  EXPECT_EQ(events, kEventsMax);
  EXPECT_EQ(notices, 1u);
  engine.tsmp_ping(clock, 1, nobody, IpAddress::v4(100, 64, 0, 9));
  EXPECT_TRUE(engine.poll_event());
}

}  // namespace
}  // namespace porthole::node
