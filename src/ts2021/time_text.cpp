#include "ts2021/time_text.h"

#include <array>
#include <limits>

namespace porthole::ts2021 {
namespace {

constexpr std::int64_t kSecond = 1'000'000'000;
constexpr std::int64_t kSecondsMax = std::numeric_limits<std::int64_t>::max() / kSecond - 1;

// Days since 1970-01-01 of a proleptic Gregorian date, by counting from 1 March (the leap day is then the last).
std::int64_t days_from_civil(std::int64_t year, unsigned month, unsigned day) {
  if (month <= 2) --year;
  const std::int64_t era = (year >= 0 ? year : year - 399) / 400;
  const std::int64_t year_of_era = year - era * 400;
  const std::int64_t month_from_march = month > 2 ? month - 3 : month + 9;
  const std::int64_t day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
  const std::int64_t day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
  return era * 146097 + day_of_era - 719468;
}

struct Civil {
  std::int64_t year;
  unsigned month;
  unsigned day;
};

Civil civil_from_days(std::int64_t days) {
  days += 719468;
  const std::int64_t era = (days >= 0 ? days : days - 146096) / 146097;
  const std::int64_t day_of_era = days - era * 146097;
  const std::int64_t year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146096) / 365;
  const std::int64_t day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
  const std::int64_t month_from_march = (5 * day_of_year + 2) / 153;
  Civil c;
  c.day = static_cast<unsigned>(day_of_year - (153 * month_from_march + 2) / 5 + 1);
  c.month = static_cast<unsigned>(month_from_march < 10 ? month_from_march + 3 : month_from_march - 9);
  c.year = year_of_era + era * 400 + (c.month <= 2 ? 1 : 0);
  return c;
}

unsigned days_in_month(std::int64_t year, unsigned month) {
  constexpr std::array<unsigned, 12> kDays{31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
  const bool leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
  return month == 2 && leap ? 29 : kDays[month - 1];
}

// Reads fixed-width fields off a text; like ByteReader, failure latches.
class TextReader {
 public:
  explicit TextReader(std::string_view text) : rest_(text) {}
  bool ok() const { return ok_; }
  bool at_end() const { return rest_.empty(); }

  unsigned number(std::size_t digits) {
    if (rest_.size() < digits) return fail();
    unsigned v = 0;
    for (std::size_t i = 0; i < digits; ++i) {
      if (rest_[i] < '0' || rest_[i] > '9') return fail();
      v = v * 10 + static_cast<unsigned>(rest_[i] - '0');
    }
    rest_.remove_prefix(digits);
    return v;
  }
  void literal(char c) {
    if (!accept(c)) fail();
  }
  bool accept(char c) {
    if (rest_.empty() || rest_[0] != c) return false;
    rest_.remove_prefix(1);
    return true;
  }
  std::string_view take(std::size_t n) {
    if (rest_.size() < n) {
      fail();
      return {};
    }
    std::string_view out = rest_.substr(0, n);
    rest_.remove_prefix(n);
    return out;
  }
  // One digit if there is one.
  std::optional<unsigned> digit() {
    if (rest_.empty() || rest_[0] < '0' || rest_[0] > '9') return std::nullopt;
    return number(1);
  }

 private:
  unsigned fail() {
    ok_ = false;
    rest_ = {};
    return 0;
  }
  std::string_view rest_;
  bool ok_ = true;
};

void put(std::string& out, std::int64_t value, int width) {
  std::array<char, 20> digits{};
  for (int i = width - 1; i >= 0; --i, value /= 10) digits[static_cast<std::size_t>(i)] = static_cast<char>('0' + value % 10);
  out.append(digits.data(), static_cast<std::size_t>(width));
}

}  // namespace

std::optional<WallTime> parse_time(std::string_view text) {
  TextReader r(text);
  const unsigned year = r.number(4);
  r.literal('-');
  const unsigned month = r.number(2);
  r.literal('-');
  const unsigned day = r.number(2);
  if (!r.accept('T') && !r.accept('t')) return std::nullopt;
  const unsigned hour = r.number(2);
  r.literal(':');
  const unsigned minute = r.number(2);
  r.literal(':');
  const unsigned second = r.number(2);
  std::int64_t fraction = 0;
  if (r.accept('.')) {
    std::int64_t unit = kSecond / 10;
    bool any = false;
    while (auto d = r.digit()) {
      fraction += unit * *d;  // digits beyond the ninth add nothing
      unit /= 10;
      any = true;
    }
    if (!any) return std::nullopt;
  }
  std::int64_t offset = 0;
  if (!r.accept('Z') && !r.accept('z')) {
    const bool negative = r.accept('-');
    if (!negative) r.literal('+');
    const unsigned offset_hours = r.number(2);
    r.literal(':');
    const unsigned offset_minutes = r.number(2);
    if (offset_hours > 23 || offset_minutes > 59) return std::nullopt;
    offset = (static_cast<std::int64_t>(offset_hours) * 60 + offset_minutes) * 60;
    if (negative) offset = -offset;
  }
  if (!r.ok() || !r.at_end()) return std::nullopt;
  if (month < 1 || month > 12 || day < 1 || day > days_in_month(year, month)) return std::nullopt;
  if (hour > 23 || minute > 59 || second > 60) return std::nullopt;  // 60: a leap second counts as the next one

  const std::int64_t seconds =
      ((days_from_civil(year, month, day) * 24 + hour) * 60 + minute) * 60 + second - offset;
  if (seconds > kSecondsMax) return WallTime::from_unix_ns(std::numeric_limits<std::int64_t>::max());
  if (seconds < -kSecondsMax) return WallTime::from_unix_ns(std::numeric_limits<std::int64_t>::min());
  return WallTime::from_unix_ns(seconds * kSecond + fraction);
}

bool is_unset_time(std::string_view text) { return text.starts_with("0001-01-01T00:00:00"); }

namespace {

constexpr std::string_view kMonths = "JanFebMarAprMayJunJulAugSepOctNovDec";

// Rounded down, before 1970 as well.
struct Split {
  explicit Split(WallTime time) {
    std::int64_t seconds = time.unix_ns() / kSecond;
    fraction = time.unix_ns() % kSecond;
    if (fraction < 0) {
      fraction += kSecond;
      --seconds;
    }
    days = seconds / 86400;
    second_of_day = seconds % 86400;
    if (second_of_day < 0) {
      second_of_day += 86400;
      --days;
    }
  }
  std::int64_t days = 0, second_of_day = 0, fraction = 0;
};

// "08:49:37"
void put_clock(std::string& out, std::int64_t second_of_day) {
  put(out, second_of_day / 3600, 2);
  out += ':';
  put(out, second_of_day / 60 % 60, 2);
  out += ':';
  put(out, second_of_day % 60, 2);
}

}  // namespace

std::string format_time(WallTime time) {
  auto [days, second_of_day, fraction] = Split(time);
  const Civil c = civil_from_days(days);
  std::string out;
  out.reserve(30);
  put(out, c.year, 4);
  out += '-';
  put(out, c.month, 2);
  out += '-';
  put(out, c.day, 2);
  out += 'T';
  put_clock(out, second_of_day);
  if (fraction != 0) {
    int width = 9;
    while (fraction % 10 == 0) {
      fraction /= 10;
      --width;
    }
    out += '.';
    put(out, fraction, width);
  }
  out += 'Z';
  return out;
}

std::string format_http_date(WallTime time) {
  constexpr std::string_view kDays = "ThuFriSatSunMonTueWed";   // 1970-01-01 was a Thursday
  const Split at(time);
  const Civil c = civil_from_days(at.days);
  std::string out(kDays.substr(static_cast<std::size_t>((at.days % 7 + 7) % 7) * 3, 3));
  out += ", ";
  put(out, c.day, 2);
  out += ' ';
  out += kMonths.substr((c.month - 1) * 3, 3);
  out += ' ';
  put(out, c.year, 4);
  out += ' ';
  put_clock(out, at.second_of_day);
  out += " GMT";
  return out;
}

std::optional<WallTime> parse_http_date(std::string_view text) {
  TextReader r(text);
  r.take(3);
  r.literal(',');
  r.literal(' ');
  const unsigned day = r.number(2);
  r.literal(' ');
  const std::size_t month_at = kMonths.find(r.take(3));
  r.literal(' ');
  const unsigned year = r.number(4);
  r.literal(' ');
  const unsigned hour = r.number(2);
  r.literal(':');
  const unsigned minute = r.number(2);
  r.literal(':');
  const unsigned second = r.number(2);
  if (r.take(4) != " GMT" || !r.ok() || !r.at_end()) return std::nullopt;
  if (month_at == std::string_view::npos || month_at % 3 != 0) return std::nullopt;
  const unsigned month = static_cast<unsigned>(month_at / 3 + 1);
  if (year < 1700 || year > 2261 || day < 1 || day > days_in_month(year, month) || hour > 23 || minute > 59 ||
      second > 60) {
    return std::nullopt;
  }
  return WallTime::from_unix_s(((days_from_civil(year, month, day) * 24 + hour) * 60 + minute) * 60 + second);
}

}  // namespace porthole::ts2021
