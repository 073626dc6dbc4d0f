#include "relay/login.h"

#include <boost/json.hpp>

#include "wire/http.h"

namespace porthole::relay {
namespace {

constexpr std::string_view kServerInfo = R"({"version":2})";

boost::json::value parse_json(std::string_view text, bool& ok) {
  boost::json::error_code failed;
  boost::json::parse_options options;
  options.max_depth = 8;
  boost::json::value value = boost::json::parse(text, failed, {}, options);
  ok = !failed && value.is_object();
  return value;
}

Error refused(std::string_view what) { return {ErrorCode::kProtocol, "the client's login " + std::string(what)}; }

}  // namespace

Result<ClientLogin> open_client_info(Bytes payload, const crypto::NodePrivate& relay_key, std::optional<crypto::BoxKey>& box) {
  auto info = wire::derp::parse_client_info(payload);
  if (!info || info->box.size() < crypto::BoxKey::kTagSize) return refused("is too short");
  if (info->key.is_zero()) return refused("has no key");
  box = crypto::BoxKey::make(relay_key.reveal(), info->key.bytes());
  if (!box) return refused("has an unusable key");
  ByteVector text(info->box.size() - crypto::BoxKey::kTagSize);
  if (!box->open(info->nonce, info->box, text)) return refused("cannot be opened; it was sealed for another relay key, or by somebody else");

  bool ok = false;
  boost::json::value value = parse_json(as_text(text), ok);
  if (!ok) return refused("is not readable");
  ClientLogin login;
  login.key = info->key;
  for (const auto& member : value.get_object()) {
    std::string_view name(member.key().data(), member.key().size());
    const boost::json::value& v = member.value();
    if (wire::equal_ignore_case(name, "meshKey")) {
      std::uint8_t mesh_key[32];
      const boost::json::string* s = v.if_string();
      if (!s || !from_hex_exact({s->data(), s->size()}, mesh_key)) return refused("has a malformed mesh key");
      login.has_mesh_key = true;
    } else if (v.is_null()) {
      continue;
    } else if (wire::equal_ignore_case(name, "version")) {
      if (const std::int64_t* n = v.if_int64()) login.version = *n;
      else return refused("has a version that is no number");
    } else if (wire::equal_ignore_case(name, "CanAckPings") || wire::equal_ignore_case(name, "IsProber")) {
      const bool* b = v.if_bool();
      if (!b) return refused("has a flag that is neither true nor false");
      (wire::equal_ignore_case(name, "IsProber") ? login.is_prober : login.can_ack_pings) = *b;
    } else if (wire::equal_ignore_case(name, "AppName")) {
      const boost::json::string* s = v.if_string();
      if (!s) return refused("has a name that is no text");
      login.app_name.assign(s->data(), s->size());
    }
  }
  return login;
}

void encode_server_info(ByteVector& out, const crypto::BoxKey& box, Bytes nonce24) {
  ByteVector sealed(kServerInfo.size() + crypto::BoxKey::kTagSize);
  box.seal(nonce24, as_bytes(kServerInfo), sealed);
  wire::derp::encode_server_info(out, {nonce24, sealed});
}

std::string encode_admission_request(const NodePublic& key, const IpAddress& source) {
  return R"({"NodePublic":")" + key.to_string() + R"(","Source":")" + source.to_string() + R"("})";
}

std::optional<bool> parse_admission_answer(std::string_view body) {
  bool ok = false;
  boost::json::value value = parse_json(body, ok);
  if (!ok) return std::nullopt;
  const boost::json::value* allow = value.get_object().if_contains("Allow");
  if (!allow || !allow->is_bool()) return std::nullopt;
  return allow->get_bool();
}

}  // namespace porthole::relay
