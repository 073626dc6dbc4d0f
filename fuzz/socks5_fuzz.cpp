// links: base wire
// SOCKS5 messages: parsers must stay inside the buffer and be stable under truncation; an answer's datagram head
// leads back to the target.
#include <cstdlib>

#include "wire/socks5.h"

using namespace porthole;
using namespace porthole::wire::socks5;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Bytes in(data, size);
  std::size_t taken = 0;
  Greeting greeting;
  if (parse_greeting(in, greeting, taken) == Parsed::kDone && (taken > size || taken > kGreetingSizeMax)) std::abort();
  Login login;
  if (parse_login(in, login, taken) == Parsed::kDone && (taken > size || taken > kLoginSizeMax)) std::abort();
  Request request;
  Parsed whole = parse_request(in, request, taken);
  if (whole == Parsed::kDone) {
    if (taken > size || taken > kRequestSizeMax) std::abort();
    std::size_t again = 0;
    if (parse_request(in.first(taken), request, again) != Parsed::kDone || again != taken) std::abort();
    if (parse_request(in.first(taken - 1), request, again) != Parsed::kMore) std::abort();
  }
  if (auto datagram = parse_datagram(in)) {
    if (3 + datagram->target.size() + datagram->data.size() != size || 3 + datagram->target.size() > kDatagramHeadMax) std::abort();
    ByteVector answer;
    encode_datagram_head(answer, datagram->target);
    auto again = parse_datagram(answer);
    if (!again || again->fragment != 0 || again->host != datagram->host || again->port != datagram->port || !again->data.empty()) std::abort();
    if (parse_datagram(Bytes(answer).first(answer.size() - 1))) std::abort();
  }
  return 0;
}
