#include "paths/score.h"

#include <gtest/gtest.h>

#include "support/vectors.h"

namespace porthole::paths {
namespace {

PathAddress from(const boost::json::value& v) {
  const auto& o = v.as_object();
  PathAddress a;
  if (!test::text(o.at("addr")).empty()) a.endpoint = *Endpoint::parse(test::text(o.at("addr")));
  a.latency = Duration(static_cast<std::int64_t>(test::u64(o.at("ns"))));
  if (o.contains("vni")) a.vni = static_cast<std::uint32_t>(test::u64(o.at("vni")));
  if (o.contains("mtu")) a.wire_mtu = static_cast<int>(test::u64(o.at("mtu")));
  return a;
}

TEST(Score, Vectors) {
  const auto all = test::load_vectors("disco.json");
  const auto& cases = all.at("better_addr").as_array();
  ASSERT_EQ(cases.size(), 33u);
  for (const auto& c : cases) {
    EXPECT_EQ(better(from(c.at("a")), from(c.at("b"))), c.at("better").as_bool()) << c;
    EXPECT_EQ(better(from(c.at("b")), from(c.at("a"))), c.at("reverse").as_bool()) << c;
  }
}

// Whatever the latencies: never better in both directions, or two nodes could flap.
TEST(Score, NeverBothWays) {
  const char* addresses[] = {"1.2.3.4:1", "10.0.0.1:1", "169.254.0.1:1", "127.0.0.1:1", "[2001::5]:1", "[fd00::1]:1", "[::1]:1"};
  const std::int64_t latencies[] = {0, 1, 999'999, 5'000'000, 5'050'000, 100'000'000, 101'000'000, 4'000'000'000};
  for (const char* a : addresses)
    for (const char* b : addresses)
      for (std::int64_t la : latencies)
        for (std::int64_t lb : latencies) {
          const PathAddress x{*Endpoint::parse(a), {}, Duration(la), 0}, y{*Endpoint::parse(b), {}, Duration(lb), 0};
          EXPECT_FALSE(better(x, y) && better(y, x)) << a << " " << la << " " << b << " " << lb;
        }
}

}  // namespace
}  // namespace porthole::paths
