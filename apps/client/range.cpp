#include "client/range.h"

#include <algorithm>
#include <charconv>

namespace porthole::client {
namespace {

std::string_view trimmed(std::string_view s) {
  while (!s.empty() && (s.front() == ' ' || s.front() == '\t')) s.remove_prefix(1);
  while (!s.empty() && (s.back() == ' ' || s.back() == '\t')) s.remove_suffix(1);
  return s;
}

// Digits only; a number too large for 64 bits counts as the largest.
std::optional<std::uint64_t> number(std::string_view s) {
  if (s.empty() || !std::all_of(s.begin(), s.end(), [](char c) { return c >= '0' && c <= '9'; })) return std::nullopt;
  std::uint64_t out = 0;
  auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), out);
  return error == std::errc{} ? out : UINT64_MAX;
}

bool equal_any_case(std::string_view a, std::string_view lower_case) {
  return a.size() == lower_case.size() &&
         std::equal(a.begin(), a.end(), lower_case.begin(), [](char x, char y) { return (x | 0x20) == y; });
}

}  // namespace

RangeAnswer parse_range(std::string_view header, std::uint64_t size) {
  RangeAnswer whole;
  std::size_t equals = header.find('=');
  if (equals == std::string_view::npos || !equal_any_case(trimmed(header.substr(0, equals)), "bytes")) return whole;
  std::string_view spec = trimmed(header.substr(equals + 1));
  std::size_t dash = spec.find('-');
  if (dash == std::string_view::npos || spec.find(',') != std::string_view::npos) return whole;
  std::string_view first_text = trimmed(spec.substr(0, dash));
  std::string_view last_text = trimmed(spec.substr(dash + 1));
  RangeAnswer none;
  none.verdict = RangeVerdict::kUnsatisfiable;
  if (first_text.empty()) {
    std::optional<std::uint64_t> suffix = number(last_text);
    if (!suffix) return whole;
    if (*suffix == 0 || size == 0) return none;
    std::uint64_t length = std::min(*suffix, size);
    return {RangeVerdict::kPartial, {size - length, length}};
  }
  std::optional<std::uint64_t> first = number(first_text);
  std::optional<std::uint64_t> last = last_text.empty() ? std::optional<std::uint64_t>(UINT64_MAX) : number(last_text);
  if (!first || !last || *last < *first) return whole;
  if (*first >= size) return none;
  return {RangeVerdict::kPartial, {*first, std::min(*last, size - 1) - *first + 1}};
}

}  // namespace porthole::client
