#include "remote/headscale_policy.h"

#include <algorithm>
#include <boost/json.hpp>
#include <vector>

#include "remote/headscale_answer.h"

namespace porthole::remote {

namespace json = boost::json;
using boost::system::error_code;

namespace {

constexpr std::string_view kMember = "autogroup:member";
constexpr std::string_view kSelf = "autogroup:self";

// "bob@" and nothing more: a single user who is not ours. Groups, tags, hosts, addresses and e-mail addresses are not.
bool is_named_stranger(std::string_view text) {
  if (text.size() < 2 || !text.ends_with('@')) return false;
  text.remove_suffix(1);
  return text.find_first_of("@:*/ ") == std::string_view::npos && !is_our_user(text);
}

std::optional<std::vector<std::string>> texts_of(const json::object& o, std::string_view name) {
  const json::value* list = o.if_contains(name);
  if (!list || !list->is_array()) return std::nullopt;
  std::vector<std::string> out;
  for (const json::value& v : list->as_array()) {
    if (!v.is_string()) return std::nullopt;
    out.emplace_back(std::string_view(v.as_string()));
  }
  return out;
}

// Without the ports of an ACL's destination.
std::string_view without_ports(std::string_view text) {
  std::size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return text;
  std::string_view ports = text.substr(colon + 1);
  bool is_ports = !ports.empty() && ports.find_first_not_of("0123456789,-*") == std::string_view::npos;
  return is_ports ? text.substr(0, colon) : text;
}

// For the sentence that goes to a terminal.
std::string shown(std::string_view text) {
  constexpr std::size_t kShown = 200;
  return headscale_words(text.substr(0, kShown)) + (text.size() > kShown ? "..." : "");
}

std::optional<std::string> why_not_rule(const json::value& rule, bool acl) {
  std::string what = std::string(acl ? "its rule " : "its grant ") + shown(json::serialize(rule));
  if (!rule.is_object()) return what + " is not understood";
  const json::object& o = rule.as_object();
  for (const auto& member : o) {
    std::string_view name = member.key();
    bool known = name == "src" || name == "dst" || name == "#" || name == "comment" ||
                 (acl ? name == "action" || name == "proto" : name == "ip");
    if (!known) return what + " has \"" + shown(name) + "\", which is not understood here";
  }
  auto src = texts_of(o, "src");
  auto dst = texts_of(o, "dst");
  if (!src || !dst) return what + " is not understood";
  bool to_self = std::all_of(dst->begin(), dst->end(), [&](std::string_view d) { return (acl ? without_ports(d) : d) == kSelf; });
  bool from_members = std::all_of(src->begin(), src->end(), [](std::string_view s) { return s == kMember || is_named_stranger(s); });
  if (to_self && from_members) return std::nullopt;
  bool strangers = std::all_of(src->begin(), src->end(), is_named_stranger) &&
                   std::all_of(dst->begin(), dst->end(), [&](std::string_view d) { return is_named_stranger(acl ? without_ports(d) : d); });
  if (strangers) return std::nullopt;
  return what + " may join devices of different users";
}

}  // namespace

std::optional<std::string> why_not_this_policy(std::string_view text) {
  json::parse_options options;
  options.allow_comments = true;
  options.allow_trailing_commas = true;
  options.max_depth = 16;
  error_code bad;
  json::value value = json::parse(json::string_view(text.data(), text.size()), bad, {}, options);
  if (bad || !value.is_object()) return "it is not understood (" + (bad ? bad.message() : std::string("no JSON object")) + ")";
  const json::object& o = value.as_object();
  bool members_reach_themselves = false;
  bool has_rules = false;
  for (const auto& member : o) {
    std::string_view name = member.key();
    if (name == "tests" || name == "#" || name == "comment") continue;
    bool acl = name == "acls";
    if (!acl && name != "grants") return "it has \"" + shown(name) + "\", which can change who reaches whom";
    if (!member.value().is_array()) return "its \"" + std::string(name) + "\" is not understood";
    has_rules = has_rules || acl || !member.value().as_array().empty();
    for (const json::value& rule : member.value().as_array()) {
      if (auto why = why_not_rule(rule, acl)) return why;
      auto src = texts_of(rule.as_object(), "src");
      members_reach_themselves = members_reach_themselves || std::find(src->begin(), src->end(), kMember) != src->end();
    }
  }
  // Neither rules nor an empty list of ACLs is no policy at all, and everything is open.
  if (!has_rules) return "it has no rules, which Headscale takes for \"everything is allowed\"";
  if (!members_reach_themselves) return "it has no rule that lets the devices of one account reach each other";
  return std::nullopt;
}

}  // namespace porthole::remote
