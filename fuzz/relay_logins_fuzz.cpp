// links: base crypto wire ts2021 derp relay
// What both ends of a relay's login read. First byte: which. Logins are JSON in boxes that no input can forge: the input is
// sealed first, and must be refused as it is.
#include <cmath>
#include <cstdint>
#include <cstdlib>

#include "derp/derp_client_impl.h"
#include "derp/login.h"
#include "relay/http_front.h"
#include "relay/login.h"

using namespace porthole;

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

crypto::NodePrivate key_of(std::uint64_t seed) {
  SeededRng rng(seed);
  return crypto::NodePrivate::generate(rng);
}

const crypto::NodePrivate& relay_key() {
  static const crypto::NodePrivate key = key_of(1);
  return key;
}
const crypto::NodePrivate& client_key() {
  static const crypto::NodePrivate key = key_of(2);
  return key;
}
const crypto::BoxKey& box() {
  static const crypto::BoxKey key = *crypto::BoxKey::make(client_key().reveal(), relay_key().public_key().bytes());
  return key;
}

// nonce || box
ByteVector sealed(Bytes text) {
  ByteVector nonce(crypto::BoxKey::kNonceSize), out(text.size() + crypto::BoxKey::kTagSize);
  box().seal(nonce, text, out);
  append(nonce, out);
  return nonce;
}

void check_server_info(Bytes json) {
  require(!derp::open_server_info(json, box()));
  auto info = derp::open_server_info(sealed(json), box());
  if (!info) return;
  // Whatever rate a relay asks for, a packet goes at once when nothing was sent for a while, and time may stand still.
  constexpr std::size_t kLargest = wire::derp::kPacketHeadSize + wire::derp::kPacketSizeMax;
  Instant now = Instant::from_ns(1'000'000'000);
  derp::TokenBucket budget;
  budget.set(now, info->bytes_per_second, info->bytes_burst);
  for (Duration pause : {Duration::zero(), Duration(87'600h)}) {
    now = now + pause;
    require(budget.take(now, kLargest));
    (void)budget.take(now, kLargest);
    require(std::isfinite(budget.tokens) && budget.tokens >= 0 && budget.tokens <= budget.burst);
  }
}

void check_client_info(Bytes json) {
  std::optional<crypto::BoxKey> opened;
  require(!relay::open_client_info(json, relay_key(), opened));
  ByteVector payload = to_vector(client_key().public_key().bytes());
  append(payload, sealed(json));
  auto login = relay::open_client_info(payload, relay_key(), opened);
  if (!login) return;
  require(login->key == client_key().public_key() && login->app_name.size() <= json.size());
  ByteVector frame, nonce(crypto::BoxKey::kNonceSize);
  relay::encode_server_info(frame, *opened, nonce);
  require(derp::open_server_info(Bytes(frame).subspan(wire::derp::kHeaderSize), box()).ok());
}

void check_admission(std::string_view body) {
  auto allow = relay::parse_admission_answer(body);
  if (allow) require(body.find(*allow ? "true" : "false") != std::string_view::npos);
}

void check_request(Bytes in) {
  wire::HttpHeadParser request(wire::HttpKind::kRequest);
  auto taken = request.consume(in);
  if (!taken || !request.done()) return;
  auto answer = relay::answer_relay_request(request, relay_key().public_key());
  if (!answer) return;
  if (answer->bytes.empty()) return require(answer->upgrade);  // the client did not wait for a head
  wire::HttpMessageParser head(wire::HttpKind::kResponse, {}, request.method() == "HEAD");
  auto read = head.consume(answer->bytes);
  require(read.ok() && *read == answer->bytes.size() && head.head_done());
  require(answer->upgrade == (head.head().status() == 101));
  require(answer->close == head.head().header_has_token("Connection", "close"));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 1) return 0;
  const Bytes in(data + 1, size - 1);
  switch (data[0] % 4) {
    case 0: check_server_info(in); break;
    case 1: check_client_info(in); break;
    case 2: check_admission(as_text(in)); break;
    default: check_request(in); break;
  }
  return 0;
}
