// Headscale's admin API (REST, JSON, bearer key) as far as enrolment needs it: users, pre-auth keys, nodes, policy.
// Written for 0.28 and 0.29; what is sent is what later versions take, too: camelCase, ids as texts, known members only,
// always an expiration (left out, a key is born expired), an empty object where nothing is to be said.
//
// Blocking, one request at a time on a connection of its own: Headscale checks the key with bcrypt, next to which a
// connection is nothing. One thread.
//
// Errors are sentences that begin with "Headscale at URL": kUnavailable for everything that may be mended without us (not
// reachable, TLS, key refused, an answer that cannot be understood, an error of its own), kNotFound for what it does not
// have. The API key is in none of them.
#pragma once

#include <boost/json.hpp>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/time.h"
#include "crypto/secret.h"
#include "remote/headscale_answer.h"
#include "session/http_client.h"

namespace porthole::remote {

class HeadscaleApi {
 public:
  // `key_file` is read at every request, so that a new key needs no restart. CommandError: URL or CA file unusable, plain
  // http to another machine (the key would travel in clear), key file missing, empty or readable by others.
  HeadscaleApi(const std::string& url, std::string key_file, std::string ca_file);
  ~HeadscaleApi();

  const std::string& url() const { return url_; }

  // Without a key. health(): ok when it says "pass".
  Status health();
  // As it says itself, e.g. "v0.29.3"; kNotFound before 0.27, which has no such answer.
  Result<std::string> version();

  Result<std::vector<HeadscaleUser>> users();
  Result<HeadscaleUser> create_user(const std::string& name);
  Result<std::vector<HeadscaleKey>> keys();
  // One-time unless `reusable`, untagged. The text is shown this once.
  Result<crypto::SecretText> create_key(const std::string& user_id, bool reusable, bool ephemeral, WallTime expires);
  Status expire_key(const std::string& id);
  Status delete_key(const std::string& id);
  Result<std::vector<HeadscaleNode>> nodes();
  // kNotFound: it is gone already.
  Status expire_node(const std::string& id);
  Status delete_node(const std::string& id);
  // What stands at the end of a login page's address, into the user with this name.
  Status register_node(const std::string& user_name, const std::string& id);

  // nullopt: Headscale has none that it could show.
  Result<std::optional<std::string>> policy();
  Status set_policy(const std::string& text);

 private:
  using Reply = session::HttpAnswer;
  Result<Reply> exchange(const char* method, const std::string& path, const std::string& body, bool with_key);
  // As exchange() with the key; Error for any status but 200.
  Result<boost::json::object> call(const char* method, const std::string& path, const boost::json::object* body = nullptr);
  Error trouble(const std::string& what) const;
  Error refusal(const char* method, const std::string& path, const Reply& reply) const;
  Result<crypto::SecretText> read_key() const;

  std::string url_;
  std::string key_file_;
  std::unique_ptr<session::HttpClient> http_;
};

}  // namespace porthole::remote
