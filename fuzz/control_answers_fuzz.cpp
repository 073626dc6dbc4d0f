// links: base crypto wire ts2021 control
// What a control server, or whoever answers in its place, says beside the Noise session. First byte: which; second: slices
// and scheme. Keys come with a 200 only, what is said about anything else is a short line, and no pause is beyond its bound.
#include <cstdint>
#include <cstdlib>

#include "control/c2n.h"
#include "control/control_client_impl.h"
#include "ts2021/time_text.h"

using namespace porthole;
using namespace porthole::control;

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

void require_line(std::string_view words, std::size_t size_max) {
  require(words.size() <= size_max);
  for (char c : words) require(static_cast<unsigned char>(c) >= 0x20 && static_cast<unsigned char>(c) < 0x7f);
}

// nullopt: no answer to judge.
std::optional<Result<MachinePublic>> fetch_key(Bytes in, const ControlUrl& url, std::size_t slice) {
  HttpFetch fetch(1, "GET", "/key?v=131", url.authority);
  bool done = false;
  while (!done && !in.empty()) {
    auto taken = fetch.consume(in.first(std::min(slice, in.size())));
    if (!taken) require_line(taken.error().message, 200);
    if (!taken) return std::nullopt;
    done = *taken;
    in = in.subspan(std::min(slice, in.size()));
  }
  if (!done) {
    auto end = fetch.closed();
    if (!end || !*end) return std::nullopt;
  }
  auto key = read_key_answer(fetch, url);
  if (key) require(fetch.status() == 200 && !key->is_zero());
  else require_line(key.error().message, kErrorTextSizeMax + 200);
  return key;
}

void check_key(Bytes in, std::uint8_t mode) {
  auto url = ControlUrl::parse(mode & 1 ? "https://control.example" : "http://control.example:8080");
  auto whole = fetch_key(in, *url, in.size()), sliced = fetch_key(in, *url, 1 + mode / 2 % 23);
  require(whole.has_value() == sliced.has_value());
  if (!whole) return;
  require(whole->ok() == sliced->ok());
  if (whole->ok()) require(**whole == **sliced);
  else require(whole->error().message == sliced->error().message);
}

void check_line(std::string_view text) {
  const std::string line = printable_line(text);
  require_line(line, kErrorTextSizeMax);
  require(printable_line(line) == line);
}

void check_c2n(Bytes request) {
  const ByteVector answer = answer_c2n(request);
  wire::HttpMessageParser parser(wire::HttpKind::kResponse);
  auto taken = parser.consume(answer);
  require(taken.ok() && *taken == answer.size() && parser.done());
  require(parser.head().status() == 400 || (parser.head().status() == 200 && parser.body().size() <= request.size()));
}

void check_pause(std::string_view value, std::uint8_t mode) {
  SeededRng rng(1);
  const WallTime now = WallTime::from_unix_s(mode * std::int64_t{36'000'000});  // 1970 to 2260
  const Duration wait = retry_after(value, now, rng);
  require(wait > Duration::zero() && wait <= kRetryAfterMax);
  auto date = ts2021::parse_http_date(value);
  if (!date) return;
  if (*date <= now) require(wait >= kRetryAfterLow && wait <= kRetryAfterHigh);
  // A leap second at the end of the last year leads out of it.
  if (!value.ends_with(":60 GMT")) require(ts2021::parse_http_date(ts2021::format_http_date(*date)) == date);
}

// An enrolment service may name the control server.
void check_url(std::string_view text) {
  auto url = ControlUrl::parse(text);
  if (!url) return;
  require(url->port != 0);
  require_line(url->to_string(), 300);
  auto again = ControlUrl::parse(url->to_string());
  require(again && again->tls == url->tls && again->host == url->host && again->port == url->port &&
          again->authority == url->authority);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const Bytes in(data + 2, size - 2);
  switch (data[0] % 5) {
    case 0: check_key(in, data[1]); break;
    case 1: check_line(as_text(in)); break;
    case 2: check_c2n(in); break;
    case 3: check_pause(as_text(in), data[1]); break;
    default: check_url(as_text(in)); break;
  }
  return 0;
}
