// links: coordinator ts2021 crypto wire base
// sources: remote/enrolment_api.cpp remote/service_json.cpp
// Bytes of an HTTP connection into the enrolment API, with a good token in reach.
#include <cstdlib>
#include <memory>

#include "coordinator/directory.h"
#include "coordinator/memory_store.h"
#include "remote/enrolment_api.h"
#include "wire/http.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace porthole;
  SeededRng rng(1);
  coordinator::MemoryStore store;
  Clock clock{Instant::from_ns(1'000'000'000), WallTime::from_unix_s(1'790'000'000)};
  auto directory = coordinator::Directory::open({}, store, rng, Log::none());
  if (!directory) std::abort();
  (void)(*directory)->create_account(clock, "a");
  remote::EnrolmentApi api(**directory, crypto::SecretText("t"), "https://x");
  Bytes rest(data, size);
  for (int i = 0; i < 16 && !rest.empty(); ++i) {
    wire::HttpMessageParser parser(wire::HttpKind::kRequest);
    auto taken = parser.consume(rest);
    if (!taken || !parser.done()) break;
    rest = rest.subspan(*taken);
    const auto& head = parser.head();
    if (!head.target().starts_with(remote::EnrolmentApi::kPrefix)) continue;
    auto answer = api.handle(clock, {head.method(), head.target(), head.header("authorization").value_or(""), parser.body(),
                                     IpAddress::v4(192, 0, 2, 1)});
    if (answer.status < 200 || answer.status > 599) std::abort();
  }
  return 0;
}
