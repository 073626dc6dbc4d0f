#include "paths/home.h"

#include <gtest/gtest.h>

namespace porthole::paths {
namespace {

constexpr Instant kStart = Instant::from_ns(1'000'000'000'000);

struct Case {
  RegionLatencies current;
  HomeHistory history;
  std::map<int, double> scores;
  std::map<int, Instant> heard;
  int previous = 0;

  int choose(Instant now = kStart + 1s) {
    history.add(now, current);
    return choose_home({current, history, scores, heard, previous, kStart, now});
  }
};

TEST(Home, TableOfHolderAgainstChallenger) {
  struct Row {
    std::optional<Duration> holder;
    Duration challenger;
    std::optional<Duration> holder_heard_ago;
    bool switches;
  };
  const Row rows[] = {
      {40ms, 31ms, {}, false},   // gain 9 ms < 10 ms
      {40ms, 27ms, {}, false},   // 27 > 26.67
      {40ms, 26ms, {}, true},
      {15ms, 4ms, {}, true},
      {std::nullopt, 20ms, 3s, false},
      {std::nullopt, 20ms, {}, true},
      {std::nullopt, 20ms, 10s, true},
  };
  for (const Row& r : rows) {
    Case c;
    c.previous = 1;
    if (r.holder) c.current[1] = *r.holder;
    c.current[2] = r.challenger;
    const Instant now = kStart + 1s;
    if (r.holder_heard_ago) c.heard[1] = now - *r.holder_heard_ago;
    EXPECT_EQ(c.choose(now), r.switches ? 2 : 1) << r.challenger.count();
  }
}

TEST(Home, ChallengerIsJudgedByItsBestOfFiveMinutes) {
  Case c;
  c.previous = 1;
  c.current = {{1, 40ms}, {2, 35ms}};
  c.history.add(kStart - 60s, {{2, 10ms}});
  EXPECT_EQ(c.choose(), 2);
  Case late;
  late.previous = 1;
  late.current = {{1, 40ms}, {2, 35ms}};
  late.history.add(kStart - 306s, {{2, 10ms}});
  EXPECT_EQ(late.choose(), 1);
}

TEST(Home, ScoresMultiplyAndBadOnesAreIgnored) {
  Case c;
  c.current = {{1, 30ms}, {2, 40ms}};
  c.scores = {{1, 2.0}, {2, 0.0}};
  EXPECT_EQ(c.choose(), 2);
  Case d;
  d.current = {{1, 30ms}, {2, 40ms}};
  d.scores = {{1, -1.0}};
  EXPECT_EQ(d.choose(), 1);
}

TEST(Home, FirstChoiceTiesGoToTheLowerId) {
  Case c;
  c.current = {{9, 30ms}, {4, 30ms}};
  EXPECT_EQ(c.choose(), 4);
}

TEST(Home, WithoutAnswersTheOldHomeStaysWhileItIsHeard) {
  Case c;
  c.previous = 3;
  c.heard[3] = kStart - 100s;
  EXPECT_EQ(c.choose(), 3);
  c.heard[3] = kStart - 200s;
  EXPECT_EQ(c.choose(), 0);
}

}  // namespace
}  // namespace porthole::paths
