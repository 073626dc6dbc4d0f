#include "ts2021/time_text.h"

#include <gtest/gtest.h>

#include <limits>

namespace porthole::ts2021 {
namespace {

std::int64_t ns(std::string_view text) {
  auto t = parse_time(text);
  EXPECT_TRUE(t.has_value()) << text;
  return t ? t->unix_ns() : 0;
}

TEST(TimeText, KnownMoments) {
  EXPECT_EQ(ns("1970-01-01T00:00:00Z"), 0);
  EXPECT_EQ(ns("1970-01-01T00:02:03Z"), 123'000'000'000);
  EXPECT_EQ(ns("1970-01-01T02:02:03+02:00"), 123'000'000'000);
  EXPECT_EQ(ns("1969-12-31T23:59:59.5Z"), -500'000'000);
  EXPECT_EQ(ns("2026-11-24T01:14:49.853685936Z"), 1795482889'853685936);
  EXPECT_EQ(ns("2000-02-29T12:00:00Z"), 951825600'000000000);
  EXPECT_EQ(ns("2016-12-31T23:59:60Z"), ns("2017-01-01T00:00:00Z"));
  EXPECT_EQ(ns("2026-01-02T03:04:05.123456789999Z"), ns("2026-01-02T03:04:05.123456789Z"));
  EXPECT_TRUE(is_unset_time(kUnsetTime));
  EXPECT_EQ(ns("9999-12-31T23:59:59Z"), std::numeric_limits<std::int64_t>::max());
  EXPECT_EQ(ns(kUnsetTime), std::numeric_limits<std::int64_t>::min());
}

TEST(TimeText, RejectsWhatIsNoTime) {
  for (std::string_view bad :
       {"", "2026", "2026-01-02", "2026-01-02T03:04:05", "2026-13-02T03:04:05Z", "2026-02-29T03:04:05Z",
        "2026-01-02T24:04:05Z", "2026-01-02T03:60:05Z", "2026-01-02T03:04:61Z", "2026-01-02T03:04:05.Z",
        "2026-01-02T03:04:05Zx", "2026-01-02 03:04:05Z", "2026-01-02T03:04:05+0200", "2026-01-02T03:04:05+24:00",
        "+026-01-02T03:04:05Z", "2026-00-02T03:04:05Z", "2026-01-00T03:04:05Z", "2026-1-2T3:4:5Z"}) {
    EXPECT_FALSE(parse_time(bad).has_value()) << bad;
  }
}

TEST(TimeText, RoundTripOverFourCenturies) {
  std::uint64_t x = 88172645463325252u;
  for (int i = 0; i < 20000; ++i) {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    WallTime t = WallTime::from_unix_ns(static_cast<std::int64_t>(x) / 2);  // 1824 to 2116
    std::string text = format_time(t);
    auto back = parse_time(text);
    ASSERT_TRUE(back.has_value()) << text;
    ASSERT_EQ(*back, t) << text;
  }
  EXPECT_EQ(format_time(WallTime::from_unix_s(1767323045)), "2026-01-02T03:04:05Z");
  EXPECT_EQ(format_time(WallTime::from_unix_ns(1767323045'100000000)), "2026-01-02T03:04:05.1Z");
  EXPECT_EQ(format_time(WallTime::from_unix_ns(-1)), "1969-12-31T23:59:59.999999999Z");
}

TEST(TimeText, HttpDate) {
  EXPECT_EQ(parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT")->unix_s(), 784111777);
  EXPECT_EQ(format_http_date(WallTime::from_unix_s(784111777)), "Sun, 06 Nov 1994 08:49:37 GMT");
  for (std::int64_t s : {std::int64_t{0}, std::int64_t{-1}, std::int64_t{951782400}, std::int64_t{1709164799}, std::int64_t{4102444800}})
    EXPECT_EQ(parse_http_date(format_http_date(WallTime::from_unix_s(s)))->unix_s(), s);
  EXPECT_EQ(format_http_date(WallTime::from_unix_s(951782400)), "Tue, 29 Feb 2000 00:00:00 GMT");
  EXPECT_EQ(format_http_date(WallTime::from_unix_s(-1)), "Wed, 31 Dec 1969 23:59:59 GMT");
  for (std::string_view bad : {"", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:37", "Sun, 06 Xxx 1994 08:49:37 GMT",
                               "Sun, 06 anF 1994 08:49:37 GMT", "Sun, 31 Feb 1994 08:49:37 GMT"}) {
    EXPECT_FALSE(parse_http_date(bad).has_value()) << bad;
  }
}

}  // namespace
}  // namespace porthole::ts2021
