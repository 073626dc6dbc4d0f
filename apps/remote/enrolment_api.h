// The enrolment API (docs/openapi.yaml): a household's server creates its account's device keys, lists and revokes its
// devices; an administrator manages accounts. HTTP and JSON, no I/O: a request in, an answer out.
//
// Authorisation is "Authorization: Bearer TOKEN". The admin token may do everything, an account's token everything below
// its own account. Everything that is refused is a problem document (RFC 9457) that says what is wrong.
#pragma once

#include <boost/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "base/ip.h"
#include "coordinator/service.h"
#include "remote/rate_limit.h"

namespace porthole::remote {

struct ApiRequest {
  std::string_view method;
  std::string_view target;         // path and query
  std::string_view authorization;  // header value; empty when absent
  std::string_view body;
  IpAddress remote;
};

struct ApiAnswer {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;
};

class EnrolmentApi {
 public:
  EnrolmentApi(coordinator::Service& service, crypto::SecretText admin_token, std::string coordination_url);

  static constexpr std::string_view kPrefix = "/api/v1/";
  // For targets that begin with kPrefix.
  ApiAnswer handle(Clock clock, const ApiRequest& request);

  // "GET /api/v1/accounts/{account}/devices" and so on, for the test that holds the document to the routes.
  static std::vector<std::string> routes();

 private:
  struct Route;
  struct Caller {
    bool admin = false;
    std::string account;  // of an account's token
    std::string id;       // for rate limits
  };
  struct Call {
    Clock clock;
    const Caller& caller;
    std::vector<std::string> arguments;  // the {...} parts of the path, decoded
    boost::json::object body;
  };
  static const std::vector<Route>& table();

  ApiAnswer health(const Call& call);
  ApiAnswer list_accounts(const Call& call);
  ApiAnswer create_account(const Call& call);
  ApiAnswer replace_token(const Call& call);
  ApiAnswer create_key(const Call& call);
  ApiAnswer device_key(const Call& call);
  ApiAnswer list_devices(const Call& call);
  ApiAnswer revoke(const Call& call);
  ApiAnswer approve(const Call& call);

  coordinator::Service& service_;
  crypto::SecretText admin_token_;
  std::string coordination_url_;
  RateLimit by_token_;
  RateLimit failures_;
};

// The answer for an Error of the service, and for anything else that is refused.
ApiAnswer problem(int status, std::string_view detail);

}  // namespace porthole::remote
