#include "remote/headscale_api.h"

#include <sys/stat.h>

#include <algorithm>
#include <charconv>

#include "remote/limits.h"
#include "remote/public_url.h"
#include "support/json_read.h"
#include "support/support.h"
#include "ts2021/time_text.h"

namespace porthole::remote {

namespace json = boost::json;
using app::flag_of;
using boost::system::error_code;

namespace {

constexpr std::string_view kApi = "/api/v1/";
// "-" and the secret: 64 characters, which may themselves be "-".
constexpr std::size_t kKeySecretSize = 1 + 64;
constexpr std::string_view kMask = "-***";

bool is_loopback_host(const std::string& host) {
  auto address = IpAddress::parse(host);
  return host == "localhost" || (address && address->is_loopback());
}

// Texts of another program, fit for one line.
std::string clean(std::string_view text) {
  constexpr std::size_t kShown = 300;
  std::string out;
  for (char c : text.substr(0, kShown)) out += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? ' ' : c;
  while (!out.empty() && out.back() == ' ') out.pop_back();
  return out;
}

// ---- members of answers: what is missing or of another kind is empty -------------------------------------------------

std::string text_of(const json::object& o, std::string_view name) {
  const json::value* v = o.if_contains(name);
  if (v && v->is_string()) return std::string(std::string_view(v->as_string()));
  if (v && v->is_int64()) return std::to_string(v->as_int64());  // ids
  if (v && v->is_uint64()) return std::to_string(v->as_uint64());
  return {};
}
const json::object* object_of(const json::object& o, std::string_view name) {
  const json::value* v = o.if_contains(name);
  return v && v->is_object() ? &v->as_object() : nullptr;
}
std::optional<WallTime> time_of(const json::object& o, std::string_view name) {
  std::string text = text_of(o, name);
  if (text.empty() || ts2021::is_unset_time(text)) return std::nullopt;
  return ts2021::parse_time(text);
}
std::string user_of(const json::object& o) {
  const json::object* user = object_of(o, "user");
  return user ? text_of(*user, "name") : std::string();
}
std::string masked_prefix(std::string_view text) {
  if (text.ends_with(kMask)) return std::string(text.substr(0, text.size() - kMask.size()));
  return headscale_key_prefix(text);
}

bool is_id(std::string_view text) {
  return !text.empty() && text.size() < 20 && text.find_first_not_of("0123456789") == std::string_view::npos;
}

}  // namespace

std::optional<HeadscaleVersion> parse_headscale_version(std::string_view text) {
  HeadscaleVersion v;
  if (text.starts_with('v')) text.remove_prefix(1);
  v.text = text;
  const char* at = text.data();
  const char* end = at + text.size();
  for (int* part : {&v.major, &v.minor, &v.patch}) {
    if (part != &v.major) {
      if (at == end || *at != '.') return std::nullopt;
      ++at;
    }
    auto [next, problem] = std::from_chars(at, end, *part);
    if (problem != std::errc() || *part < 0) return std::nullopt;
    at = next;
  }
  if (at != end && *at != '-' && *at != '+') return std::nullopt;
  if (v.major == 0 && v.minor == 0) return std::nullopt;  // v0.0.0-DATE-HASH: built from a work tree
  if (text.find("dirty") != std::string_view::npos || v.text.size() > 64) return std::nullopt;
  return v;
}

std::string headscale_key_prefix(std::string_view text) {
  if (text.size() <= kKeySecretSize || text[text.size() - kKeySecretSize] != '-') return {};
  return std::string(text.substr(0, text.size() - kKeySecretSize));
}

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
  std::string text;
  error_code bad;
  json::value value = json::parse(reply.body, bad);
  if (!bad && value.is_object()) {
    text = text_of(value.as_object(), "message");
    if (text.empty()) text = text_of(value.as_object(), "detail");
  }
  Error e = trouble("answered " + std::string(method) + " " + path.substr(0, path.find('?')) + " with status " +
                    std::to_string(reply.status) + (text.empty() ? "" : ": " + clean(text)));
  if (reply.status == 404) e.code = ErrorCode::kNotFound;
  return e;
}

Result<json::object> HeadscaleApi::call(const char* method, const std::string& path, const json::object* body) {
  auto reply = exchange(method, std::string(kApi) + path, body ? json::serialize(*body) : std::string(), true);
  if (!reply) return reply.error();
  if (reply->status != 200) return refusal(method, path, *reply);
  error_code bad;
  json::value value = json::parse(reply->body, bad);
  if (bad || !value.is_object())
    return trouble("answered " + std::string(method) + " " + path.substr(0, path.find('?')) +
                   " with something that is not its API; is the address right?");
  return std::move(value.as_object());
}

Status HeadscaleApi::health() {
  auto reply = exchange("GET", "/health", {}, false);
  if (!reply) return reply.error();
  error_code bad;
  json::value value = json::parse(reply->body, bad);
  if (reply->status == 200 && !bad && value.is_object() && text_of(value.as_object(), "status") == "pass") return {};
  return trouble("is not well (status " + std::to_string(reply->status) + " from /health); see its log");
}

Result<std::string> HeadscaleApi::version() {
  auto reply = exchange("GET", "/version", {}, false);
  if (!reply) return reply.error();
  if (reply->status != 200) return refusal("GET", "/version", *reply);
  error_code bad;
  json::value value = json::parse(reply->body, bad);
  std::string text = !bad && value.is_object() ? clean(text_of(value.as_object(), "version")) : std::string();
  if (text.empty()) return trouble("does not say its version; is the address right?");
  if (flag_of(value.as_object(), "dirty")) text += "-dirty";
  return text;
}

namespace {

// Calls `each` for every object in the list; false when there is no list or `each` refuses one.
template <typename Each>
bool each_of(const json::object& o, std::string_view name, Each each) {
  const json::value* list = o.if_contains(name);
  if (list && list->is_null()) return true;
  if (!list || !list->is_array()) return false;
  for (const json::value& v : list->as_array())
    if (!v.is_object() || !each(v.as_object())) return false;
  return true;
}

std::optional<HeadscaleUser> read_user(const json::object& o) {
  HeadscaleUser user{text_of(o, "id"), text_of(o, "name")};
  if (!is_id(user.id)) return std::nullopt;
  return user;
}

std::optional<HeadscaleNode> read_node(const json::object& o) {
  HeadscaleNode n;
  n.id = text_of(o, "id");
  auto machine = MachinePublic::parse(text_of(o, "machineKey"));
  auto node_key = NodePublic::parse(text_of(o, "nodeKey"));
  if (!is_id(n.id) || !machine || !node_key) return std::nullopt;
  n.machine = *machine;
  n.node_key = *node_key;
  if (auto disco = DiscoPublic::parse(text_of(o, "discoKey"))) n.disco_key = *disco;
  if (const json::value* list = o.if_contains("ipAddresses"); list && list->is_array())
    for (const json::value& v : list->as_array())
      if (v.is_string())
        if (auto address = IpAddress::parse(std::string_view(v.as_string()))) n.addresses.push_back(*address);
  n.hostname = text_of(o, "name");
  n.name = text_of(o, "givenName");
  n.user = user_of(o);
  if (const json::object* key = object_of(o, "preAuthKey")) {
    n.key_id = text_of(*key, "id");
    n.key_prefix = masked_prefix(text_of(*key, "key"));
    n.ephemeral = flag_of(*key, "ephemeral");
  }
  n.online = flag_of(o, "online");
  if (const json::value* tags = o.if_contains("tags"); tags && tags->is_array())
    for (const json::value& v : tags->as_array())
      if (v.is_string()) n.tags.emplace_back(std::string_view(v.as_string()));
  n.created = time_of(o, "createdAt").value_or(WallTime());
  n.expiry = time_of(o, "expiry");
  n.last_seen = time_of(o, "lastSeen");
  return n;
}

}  // namespace

Result<std::vector<HeadscaleUser>> HeadscaleApi::users() {
  auto answer = call("GET", "user");
  if (!answer) return answer.error();
  std::vector<HeadscaleUser> out;
  bool good = each_of(*answer, "users", [&](const json::object& o) {
    auto user = read_user(o);
    if (user) out.push_back(std::move(*user));
    return user.has_value();
  });
  if (!good) return trouble("gave a list of users that cannot be understood");
  return out;
}

Result<HeadscaleUser> HeadscaleApi::create_user(const std::string& name) {
  json::object body{{"name", name}};
  auto answer = call("POST", "user", &body);
  if (!answer) return answer.error();
  const json::object* o = object_of(*answer, "user");
  auto user = o ? read_user(*o) : std::nullopt;
  if (!user || user->name != name) return trouble("did not create user " + name + " as it was asked to");
  return *user;
}

Result<std::vector<HeadscaleKey>> HeadscaleApi::keys() {
  auto answer = call("GET", "preauthkey");
  if (!answer) return answer.error();
  std::vector<HeadscaleKey> out;
  bool good = each_of(*answer, "preAuthKeys", [&](const json::object& o) {
    HeadscaleKey key{text_of(o, "id"), masked_prefix(text_of(o, "key")), user_of(o), flag_of(o, "used"), WallTime()};
    key.expires = time_of(o, "expiration").value_or(WallTime());
    bool fine = is_id(key.id);
    if (fine && !key.prefix.empty()) out.push_back(std::move(key));  // keys of versions long gone have no such part
    return fine;
  });
  if (!good) return trouble("gave a list of pre-auth keys that cannot be understood");
  return out;
}

Result<crypto::SecretText> HeadscaleApi::create_key(const std::string& user_id, bool reusable, bool ephemeral,
                                                    WallTime expires) {
  json::object body{{"user", user_id}, {"reusable", reusable}, {"ephemeral", ephemeral},
                    {"expiration", ts2021::format_time(expires)}, {"aclTags", json::array()}};
  auto answer = call("POST", "preauthkey", &body);
  if (!answer) return answer.error();
  const json::object* o = object_of(*answer, "preAuthKey");
  const json::value* text = o ? o->if_contains("key") : nullptr;
  if (!text || !text->is_string() || headscale_key_prefix(std::string_view(text->as_string())).empty())
    return trouble("did not give the text of a new pre-auth key");
  auto until = time_of(*o, "expiration");
  if (!until || *until < expires + -2s || flag_of(*o, "reusable") != reusable || flag_of(*o, "ephemeral") != ephemeral)
    return trouble("made another pre-auth key than it was asked for");
  return crypto::SecretText(std::string_view(text->as_string()));
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
  std::vector<HeadscaleNode> out;
  bool good = each_of(*answer, "nodes", [&](const json::object& o) {
    auto node = read_node(o);
    if (node) out.push_back(std::move(*node));
    return node.has_value();
  });
  if (!good) return trouble("gave a list of nodes that cannot be understood");
  return out;
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
  error_code bad;
  json::value value = json::parse(reply->body, bad);
  if (bad || !value.is_object()) return trouble("gave a policy that cannot be understood");
  return std::optional<std::string>(text_of(value.as_object(), "policy"));
}

Status HeadscaleApi::set_policy(const std::string& text) {
  json::object body{{"policy", text}};
  auto answer = call("PUT", "policy", &body);
  return answer ? Status() : Status(answer.error());
}

}  // namespace porthole::remote
