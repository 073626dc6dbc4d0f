#include "derp/login.h"

#include <boost/json.hpp>

#include "wire/derp.h"

namespace porthole::derp {
namespace {

std::uint64_t positive(const boost::json::object& object, std::string_view name) {
  const boost::json::value* v = object.if_contains(name);
  if (!v) return 0;
  if (const std::int64_t* i = v->if_int64()) return *i > 0 ? static_cast<std::uint64_t>(*i) : 0;
  if (const std::uint64_t* u = v->if_uint64()) return *u;
  return 0;
}

}  // namespace

void encode_login(ByteVector& out, const NodePublic& key, const crypto::BoxKey& box, Bytes nonce24) {
  constexpr std::string_view kInfo = R"({"version":2,"CanAckPings":true})";
  ByteVector sealed(kInfo.size() + crypto::BoxKey::kTagSize);
  box.seal(nonce24, as_bytes(kInfo), sealed);
  wire::derp::encode_client_info(out, {key, nonce24, sealed});
}

Result<ServerInfo> open_server_info(Bytes payload, const crypto::BoxKey& box) {
  auto info = wire::derp::parse_server_info(payload);
  if (!info || info->box.size() < crypto::BoxKey::kTagSize) return Error{ErrorCode::kProtocol, "the relay's login answer is too short"};
  ByteVector text(info->box.size() - crypto::BoxKey::kTagSize);
  if (!box.open(info->nonce, info->box, text))
    return Error{ErrorCode::kProtocol, "the relay does not own the key it announced (its login answer cannot be opened)"};
  boost::json::error_code failed;
  boost::json::parse_options options;
  options.max_depth = 8;
  boost::json::value value = boost::json::parse(as_text(text), failed, {}, options);
  if (failed || !value.is_object()) return Error{ErrorCode::kProtocol, "the relay's login answer is not readable"};
  const boost::json::object& object = value.get_object();
  ServerInfo out;
  out.version = positive(object, "version");
  out.bytes_per_second = positive(object, "TokenBucketBytesPerSecond");
  out.bytes_burst = positive(object, "TokenBucketBytesBurst");
  return out;
}

}  // namespace porthole::derp
