#include "scenario.h"

namespace porthole::scenario {

namespace {

void run_transfer(std::uint64_t seed, const LinkConfig& link, std::uint64_t bytes, Duration limit) {
  Tailnet t(seed);
  NodeHost& a = t.add_node({.name = "a"}, t.add_home("one", easy_nat(), link));
  NodeHost& b = t.add_node({.name = "b"}, t.add_home("two", easy_nat(), link));
  ASSERT_IN(t, t.run_until_running(30s));
  t.run_for(2s);
  auto transfer = a.transfer(b, bytes, bytes);
  ASSERT_IN(t, t.run_until_over({transfer}, limit));
  EXPECT_IN(t, transfer->is_done());
}

}  // namespace

TEST(Scenario, ATransferSurvivesThreePercentLoss) {
  LinkConfig link = link_of(10ms);
  link.loss = 0.015;  // two links each way
  link.rate = 2'000'000;
  for (std::uint64_t seed = 1; seed <= 5; ++seed) run_transfer(seed, link, 1'000'000, 90s);
}

TEST(Scenario, ATransferSurvivesBurstsOfLoss) {
  LinkConfig link = link_of(10ms);
  link.burst_enter = 0.005;
  link.rate = 2'000'000;
  for (std::uint64_t seed = 1; seed <= 5; ++seed) run_transfer(seed, link, 500'000, 60s);
}

TEST(Scenario, ATransferSurvivesReorderingAndDuplicates) {
  LinkConfig link = link_of(10ms);
  link.reorder = 0.1;
  link.duplicate = 0.05;
  link.jitter = 4ms;
  for (std::uint64_t seed = 1; seed <= 5; ++seed) run_transfer(seed, link, 500'000, 30s);
}

TEST(Scenario, ATransferFillsASlowLineWithoutLosingMuch) {
  // 8 Mbit/s with a queue of 100 ms.
  LinkConfig link = link_of(15ms);
  link.rate = 1'000'000;
  link.queue_bytes = 100'000;
  Tailnet t(kSeed);
  NodeHost& a = t.add_node({.name = "a"}, t.add_home("one", easy_nat(), link));
  NodeHost& b = t.add_node({.name = "b"}, t.add_home("two", easy_nat(), link));
  ASSERT_IN(t, t.run_until_running(5s));
  t.run_for(2s);
  auto transfer = a.transfer(b, 10'000'000, 0);
  ASSERT_IN(t, t.run_until_over({transfer}, 60s));
  EXPECT_IN(t, transfer->is_done());
  double rate = 10e6 / (static_cast<double>((*transfer->ended - transfer->started).count()) * 1e-9);
  EXPECT_GT(rate, 0.75e6);
}

}  // namespace porthole::scenario
