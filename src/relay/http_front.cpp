#include "relay/http_front.h"

#include <algorithm>

#include "wire/derp.h"

namespace porthole::relay {
namespace {

constexpr std::size_t kChallengeSizeMax = 64;

bool is_challenge(std::string_view text) {
  return !text.empty() && text.size() <= kChallengeSizeMax && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == ':' || c == '-';
  });
}

ByteVector head(int status, std::string_view reason, std::span<const wire::HttpHeader> headers) {
  ByteVector out;
  Status s = wire::encode_http_response_head(out, status, reason, headers);
  PORTHOLE_ASSERT(s.ok());
  return out;
}

RelayHttpAnswer refuse(const wire::HttpHeadParser& request, int status, std::string_view reason, std::string_view text,
                       std::span<const wire::HttpHeader> headers = {}) {
  ByteVector bytes = wire::http_text_response(status, reason, text, headers);
  if (request.method() == "HEAD") bytes.resize(bytes.size() - text.size());  // RFC 9110 section 9.3.2
  return {std::move(bytes), false, true};
}

RelayHttpAnswer upgrade(const wire::HttpHeadParser& request, const NodePublic& relay_key) {
  std::string_view wanted = request.header("upgrade").value_or("");
  // Old clients say "websocket" and mean plain frames; those that mean it name the subprotocol.
  bool plain_frames = wire::equal_ignore_case(wanted, "derp") ||
                      (wire::equal_ignore_case(wanted, "websocket") && !request.header_has_token("sec-websocket-protocol", "derp"));
  if (!plain_frames) {
    wire::HttpHeader upgrade_header[] = {{"Upgrade", "DERP"}};
    return refuse(request, 426, "Upgrade Required",
                  "This is a DERP relay. If a reverse proxy stands before it, it must pass the header \"Upgrade: DERP\" on.\n",
                  upgrade_header);
  }
  if (request.header("derp-fast-start") == "1") return {{}, true, false};
  std::string version = std::to_string(wire::derp::kProtocolVersion);
  std::string key = to_hex(relay_key.bytes());
  wire::HttpHeader headers[] = {{"Upgrade", "DERP"}, {"Connection", "Upgrade"}, {"Derp-Version", version}, {"Derp-Public-Key", key}};
  return {head(101, "Switching Protocols", headers), true, false};
}

RelayHttpAnswer probe(const wire::HttpHeadParser& request) {
  if (request.method() != "GET" && request.method() != "HEAD")
    return refuse(request, 405, "Method Not Allowed", "GET or HEAD only.\n");
  wire::HttpHeader headers[] = {{"Access-Control-Allow-Origin", "*"}, {"Content-Length", "0"}};
  return {head(200, "OK", headers), false, false};
}

RelayHttpAnswer no_content(const wire::HttpHeadParser& request) {
  std::vector<wire::HttpHeader> headers = {{"Cache-Control", "no-cache, no-store, must-revalidate, no-transform, max-age=0"}};
  std::string response;
  if (auto challenge = request.header("x-tailscale-challenge"); challenge && is_challenge(*challenge)) {
    response = "response " + std::string(*challenge);
    headers.push_back({"X-Tailscale-Response", response});
  }
  return {head(204, "No Content", headers), false, false};
}

}  // namespace

std::optional<RelayHttpAnswer> answer_relay_request(const wire::HttpHeadParser& request, const NodePublic& relay_key) {
  std::string_view path = request.path_and_query();
  path = path.substr(0, path.find('?'));
  if (path == "/derp") return upgrade(request, relay_key);
  if (path == "/derp/probe" || path == "/derp/latency-check") return probe(request);
  if (path == "/generate_204") return no_content(request);
  return std::nullopt;
}

}  // namespace porthole::relay
