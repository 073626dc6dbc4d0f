// What Headscale's answers say. No I/O and no coroutine, so that it can be fuzzed. Members that are missing or of another kind
// than expected are empty; what cannot be done without makes the whole answer one that cannot be understood.
#pragma once

#include <boost/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/ip.h"
#include "base/key.h"
#include "base/time.h"
#include "crypto/secret.h"

namespace porthole::remote {

// Each `id` is decimal digits, fit for a path.
struct HeadscaleUser {
  std::string id;
  std::string name;
};

struct HeadscaleKey {
  std::string id;
  std::string prefix;  // what may be seen of its text: "hskey-auth-Qm4tZp0LwXe2"
  std::string user;    // name; empty for a tagged key
  bool used = false;
  WallTime expires;
};

// One that was just made.
struct HeadscaleNewKey {
  crypto::SecretText text;
  bool reusable = false;
  bool ephemeral = false;
  std::optional<WallTime> expires;
};

struct HeadscaleNode {
  std::string id;
  MachinePublic machine;
  NodePublic node_key;
  DiscoPublic disco_key;
  std::vector<IpAddress> addresses;
  std::string hostname;    // as the device calls itself
  std::string name;        // the unique label in MagicDNS
  std::string user;        // name; empty or a pseudo user for a tagged node
  std::string key_id;      // of the pre-auth key it registered with; may be missing or of an earlier registration
  std::string key_prefix;
  bool online = false;
  bool ephemeral = false;
  std::vector<std::string> tags;
  WallTime created;
  std::optional<WallTime> expiry;  // absent: never
  std::optional<WallTime> last_seen;
};

struct HeadscaleVersion {
  std::string text;  // "0.29.3"
  int major = 0, minor = 0, patch = 0;
};

// Reads "v0.29.3", "0.28.0-beta.1". nullopt: no release ("dev", a pseudo-version, anything else).
std::optional<HeadscaleVersion> parse_headscale_version(std::string_view text);

// The part of a pre-auth key's text that may be seen. Empty: not a key.
std::string headscale_key_prefix(std::string_view text);

// Texts of another program, fit for one line: at most 300 bytes, without control characters.
std::string headscale_words(std::string_view text);

// nullopt: the body is no JSON object.
std::optional<boost::json::object> headscale_object(std::string_view body);
// Why it refused, in headscale_words(); empty: it does not say.
std::string headscale_reason(std::string_view body);
// Of /health.
bool headscale_is_well(std::string_view body);
// Of /version: as it says itself, e.g. "v0.29.3", and "-dirty" behind it where it was built from changed sources. Empty:
// does not say.
std::string headscale_version(std::string_view body);

// nullopt, for all of these: cannot be understood.
std::optional<std::vector<HeadscaleUser>> headscale_users(const boost::json::object& answer);
std::optional<HeadscaleUser> headscale_new_user(const boost::json::object& answer);
std::optional<std::vector<HeadscaleKey>> headscale_keys(const boost::json::object& answer);
std::optional<HeadscaleNewKey> headscale_new_key(const boost::json::object& answer);
std::optional<std::vector<HeadscaleNode>> headscale_nodes(const boost::json::object& answer);
std::optional<std::string> headscale_policy(std::string_view body);

}  // namespace porthole::remote
