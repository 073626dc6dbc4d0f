#include "remote/headscale_api.h"

#include <sys/stat.h>

#include "remote/limits.h"
#include "remote/public_url.h"
#include "support/support.h"
#include "ts2021/time_text.h"

namespace porthole::remote {

namespace json = boost::json;

namespace {

constexpr std::string_view kApi = "/api/v1/";

bool is_loopback_host(const std::string& host) {
  auto address = IpAddress::parse(host);
  return host == "localhost" || (address && address->is_loopback());
}

}  // namespace

HeadscaleApi::HeadscaleApi(const std::string& url, std::string key_file, std::string ca_file)
    : key_file_(std::move(key_file)) {
  const PublicUrl at = PublicUrl::parse(url, "--headscale-url");
  url_ = at.text();
  if (!at.tls && !is_loopback_host(at.host))
    throw app::CommandError("--headscale-url " + url_ +
                                ": the API key would travel in clear; use https, or plain http on this machine only", 2);
  http_ = std::make_unique<session::HttpClient>(at.tls, at.host, at.port, ca_file);
  if (auto key = read_key(); !key) throw app::CommandError(key.error().message);
}

HeadscaleApi::~HeadscaleApi() = default;

Error HeadscaleApi::trouble(const std::string& what) const {
  return {ErrorCode::kUnavailable, "Headscale at " + url_ + " " + what};
}

Result<crypto::SecretText> HeadscaleApi::read_key() const {
  struct stat info {};
  if (::stat(key_file_.c_str(), &info) == 0 && (info.st_mode & 077) != 0)
    return Error{ErrorCode::kUnavailable, "the API key of Headscale in " + key_file_ +
                                              " can be read by others; run: chmod 600 " + key_file_};
  std::string text;
  try {
    text = app::read_file(key_file_);
  } catch (const app::CommandError& e) {
    return Error{ErrorCode::kUnavailable, std::string("the API key of Headscale: ") + e.what()};
  }
  std::string_view key = text;
  while (!key.empty() && (key.back() == '\n' || key.back() == '\r' || key.back() == ' ')) key.remove_suffix(1);
  bool good = !key.empty() && key.size() <= kHeadscaleKeyMax;
  for (char c : key) good = good && c > 0x20 && c < 0x7f;
  crypto::SecretText out(key);
  crypto::wipe(MutBytes(reinterpret_cast<std::uint8_t*>(text.data()), text.size()));
  if (!good)
    return Error{ErrorCode::kUnavailable, key_file_ + " does not hold an API key of Headscale; make one with: headscale "
                                                      "apikeys create"};
  return out;
}

Result<HeadscaleApi::Reply> HeadscaleApi::exchange(const char* method, const std::string& path, const std::string& body,
                                                   bool with_key) {
  session::HttpCall call{method, path, {{"Accept", "application/json"}}, body};
  if (with_key) {
    auto key = read_key();
    if (!key) return key.error();
    call.headers.emplace_back("Authorization", "Bearer " + std::string(key->reveal()));
  }
  try {
    return http_->call(call, kHeadscaleTimeout, kHeadscaleAnswerMax);
  } catch (const session::HttpTrouble& e) {
    return trouble(e.what());
  }
}

Error HeadscaleApi::refusal(const char* method, const std::string& path, const Reply& reply) const {
  if (reply.status == 401)
    return trouble("refuses the API key in " + key_file_ +
                   "; it may have run out: make a new one with \"headscale apikeys create\" and put it there");
  const std::string reason = headscale_reason(reply.body);
  Error e = trouble("answered " + std::string(method) + " " + path.substr(0, path.find('?')) + " with status " +
                    std::to_string(reply.status) + (reason.empty() ? "" : ": " + reason));
  if (reply.status == 404) e.code = ErrorCode::kNotFound;
  return e;
}

Result<json::object> HeadscaleApi::call(const char* method, const std::string& path, const json::object* body) {
  auto reply = exchange(method, std::string(kApi) + path, body ? json::serialize(*body) : std::string(), true);
  if (!reply) return reply.error();
  if (reply->status != 200) return refusal(method, path, *reply);
  auto object = headscale_object(reply->body);
  if (!object)
    return trouble("answered " + std::string(method) + " " + path.substr(0, path.find('?')) +
                   " with something that is not its API; is the address right?");
  return std::move(*object);
}

Status HeadscaleApi::health() {
  auto reply = exchange("GET", "/health", {}, false);
  if (!reply) return reply.error();
  if (reply->status == 200 && headscale_is_well(reply->body)) return {};
  return trouble("is not well (status " + std::to_string(reply->status) + " from /health); see its log");
}

Result<std::string> HeadscaleApi::version() {
  auto reply = exchange("GET", "/version", {}, false);
  if (!reply) return reply.error();
  if (reply->status != 200) return refusal("GET", "/version", *reply);
  std::string text = headscale_version(reply->body);
  if (text.empty()) return trouble("does not say its version; is the address right?");
  return text;
}

Result<std::vector<HeadscaleUser>> HeadscaleApi::users() {
  auto answer = call("GET", "user");
  if (!answer) return answer.error();
  auto users = headscale_users(*answer);
  if (!users) return trouble("gave a list of users that cannot be understood");
  return std::move(*users);
}

Result<HeadscaleUser> HeadscaleApi::create_user(const std::string& name) {
  json::object body{{"name", name}};
  auto answer = call("POST", "user", &body);
  if (!answer) return answer.error();
  auto user = headscale_new_user(*answer);
  if (!user || user->name != name) return trouble("did not create user " + name + " as it was asked to");
  return *user;
}

Result<std::vector<HeadscaleKey>> HeadscaleApi::keys() {
  auto answer = call("GET", "preauthkey");
  if (!answer) return answer.error();
  auto keys = headscale_keys(*answer);
  if (!keys) return trouble("gave a list of pre-auth keys that cannot be understood");
  return std::move(*keys);
}

Result<crypto::SecretText> HeadscaleApi::create_key(const std::string& user_id, bool reusable, bool ephemeral,
                                                    WallTime expires) {
  json::object body{{"user", user_id}, {"reusable", reusable}, {"ephemeral", ephemeral},
                    {"expiration", ts2021::format_time(expires)}, {"aclTags", json::array()}};
  auto answer = call("POST", "preauthkey", &body);
  if (!answer) return answer.error();
  auto key = headscale_new_key(*answer);
  if (!key) return trouble("did not give the text of a new pre-auth key");
  if (!key->expires || *key->expires < expires + -2s || key->reusable != reusable || key->ephemeral != ephemeral)
    return trouble("made another pre-auth key than it was asked for");
  return std::move(key->text);
}

Status HeadscaleApi::expire_key(const std::string& id) {
  json::object body{{"id", id}};
  auto answer = call("POST", "preauthkey/expire", &body);
  return answer ? Status() : Status(answer.error());
}

Status HeadscaleApi::delete_key(const std::string& id) {
  auto answer = call("DELETE", "preauthkey?id=" + id);
  return answer ? Status() : Status(answer.error());
}

Result<std::vector<HeadscaleNode>> HeadscaleApi::nodes() {
  auto answer = call("GET", "node");
  if (!answer) return answer.error();
  auto nodes = headscale_nodes(*answer);
  if (!nodes) return trouble("gave a list of nodes that cannot be understood");
  return std::move(*nodes);
}

Status HeadscaleApi::expire_node(const std::string& id) {
  json::object body;
  auto answer = call("POST", "node/" + id + "/expire", &body);
  return answer ? Status() : Status(answer.error());
}

Status HeadscaleApi::delete_node(const std::string& id) {
  auto answer = call("DELETE", "node/" + id);
  return answer ? Status() : Status(answer.error());
}

Status HeadscaleApi::register_node(const std::string& user_name, const std::string& id) {
  json::object body;
  auto answer = call("POST", "node/register?user=" + session::percent_encoded(user_name) + "&key=" + session::percent_encoded(id), &body);
  return answer ? Status() : Status(answer.error());
}

Result<std::optional<std::string>> HeadscaleApi::policy() {
  auto reply = exchange("GET", std::string(kApi) + "policy", {}, true);
  if (!reply) return reply.error();
  if (reply->status == 401) return refusal("GET", "policy", *reply);
  if (reply->status != 200) return std::optional<std::string>();  // 500 when none is stored
  auto policy = headscale_policy(reply->body);
  if (!policy) return trouble("gave a policy that cannot be understood");
  return policy;
}

Status HeadscaleApi::set_policy(const std::string& text) {
  json::object body{{"policy", text}};
  auto answer = call("PUT", "policy", &body);
  return answer ? Status() : Status(answer.error());
}

}  // namespace porthole::remote
