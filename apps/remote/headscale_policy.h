// Which policies of a Headscale keep accounts apart. No I/O and no coroutine, so that it can be fuzzed.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace porthole::remote {

// Names of Headscale users: an account's, and the proof's. Everybody else's users are left alone.
constexpr std::string_view kAccountUserPrefix = "acct-";
constexpr std::string_view kProofUserPrefix = "porthole-proof-";
inline bool is_our_user(std::string_view name) {
  return name.starts_with(kAccountUserPrefix) || name.starts_with(kProofUserPrefix);
}

// The policy that is set where there is none: a device reaches the devices of its own user, nothing else.
constexpr std::string_view kIsolatingPolicy =
    R"({"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}]})";

// nullopt: this policy (HuJSON) lets devices of the service's accounts reach those of their own user and nothing else. Rules
// between users that are named one by one, and are not the service's, are allowed. Otherwise what is wrong with it; what
// is not understood counts as wrong.
std::optional<std::string> why_not_this_policy(std::string_view text);

}  // namespace porthole::remote
