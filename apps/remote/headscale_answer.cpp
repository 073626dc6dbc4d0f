#include "remote/headscale_answer.h"

#include <charconv>

#include "support/json_read.h"
#include "ts2021/time_text.h"

namespace porthole::remote {

namespace json = boost::json;
using app::flag_of;
using boost::system::error_code;

namespace {

// "-" and the secret: 64 characters, which may themselves be "-".
constexpr std::size_t kKeySecretSize = 1 + 64;
constexpr std::string_view kMask = "-***";

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

// nullopt: there is no list, or `read` refuses one of its elements. Go writes an empty one as null.
template <typename T>
std::optional<std::vector<T>> list_of(const json::object& o, std::string_view name,
                                      std::optional<T> (*read)(const json::object&)) {
  std::vector<T> out;
  const json::value* list = o.if_contains(name);
  if (list && list->is_null()) return out;
  if (!list || !list->is_array()) return std::nullopt;
  for (const json::value& v : list->as_array()) {
    auto one = v.is_object() ? read(v.as_object()) : std::nullopt;
    if (!one) return std::nullopt;
    out.push_back(std::move(*one));
  }
  return out;
}

std::optional<HeadscaleUser> read_user(const json::object& o) {
  HeadscaleUser user{text_of(o, "id"), text_of(o, "name")};
  if (!is_id(user.id)) return std::nullopt;
  return user;
}

std::optional<HeadscaleKey> read_key(const json::object& o) {
  HeadscaleKey key{text_of(o, "id"), masked_prefix(text_of(o, "key")), user_of(o), flag_of(o, "used"), WallTime()};
  if (!is_id(key.id)) return std::nullopt;
  key.expires = time_of(o, "expiration").value_or(WallTime());
  return key;
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

std::string headscale_words(std::string_view text) {
  constexpr std::size_t kShown = 300;
  std::string out;
  for (char c : text.substr(0, kShown)) out += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? ' ' : c;
  while (!out.empty() && out.back() == ' ') out.pop_back();
  return out;
}

std::optional<json::object> headscale_object(std::string_view body) {
  error_code bad;
  json::value value = json::parse(body, bad);
  if (bad || !value.is_object()) return std::nullopt;
  return std::move(value.as_object());
}

std::string headscale_reason(std::string_view body) {
  auto o = headscale_object(body);
  if (!o) return {};
  std::string text = text_of(*o, "message");
  return headscale_words(text.empty() ? text_of(*o, "detail") : text);
}

bool headscale_is_well(std::string_view body) {
  auto o = headscale_object(body);
  return o && text_of(*o, "status") == "pass";
}

std::string headscale_version(std::string_view body) {
  auto o = headscale_object(body);
  std::string text = o ? headscale_words(text_of(*o, "version")) : std::string();
  if (!text.empty() && flag_of(*o, "dirty")) text += "-dirty";
  return text;
}

std::optional<std::vector<HeadscaleUser>> headscale_users(const json::object& answer) {
  return list_of(answer, "users", read_user);
}

std::optional<HeadscaleUser> headscale_new_user(const json::object& answer) {
  const json::object* o = object_of(answer, "user");
  return o ? read_user(*o) : std::nullopt;
}

std::optional<std::vector<HeadscaleKey>> headscale_keys(const json::object& answer) {
  auto keys = list_of(answer, "preAuthKeys", read_key);
  // Keys of versions long gone have no part that may be seen.
  if (keys) std::erase_if(*keys, [](const HeadscaleKey& k) { return k.prefix.empty(); });
  return keys;
}

std::optional<HeadscaleNewKey> headscale_new_key(const json::object& answer) {
  const json::object* o = object_of(answer, "preAuthKey");
  const json::value* text = o ? o->if_contains("key") : nullptr;
  if (!text || !text->is_string() || headscale_key_prefix(std::string_view(text->as_string())).empty()) return std::nullopt;
  return HeadscaleNewKey{crypto::SecretText(std::string_view(text->as_string())), flag_of(*o, "reusable"),
                         flag_of(*o, "ephemeral"), time_of(*o, "expiration")};
}

std::optional<std::vector<HeadscaleNode>> headscale_nodes(const json::object& answer) {
  return list_of(answer, "nodes", read_node);
}

std::optional<std::string> headscale_policy(std::string_view body) {
  auto o = headscale_object(body);
  if (!o) return std::nullopt;
  return text_of(*o, "policy");
}

}  // namespace porthole::remote
