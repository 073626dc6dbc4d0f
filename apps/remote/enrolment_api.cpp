#include "remote/enrolment_api.h"

#include <charconv>

#include "remote/limits.h"
#include "remote/service_json.h"
#include "ts2021/time_text.h"

namespace porthole::remote {

namespace json = boost::json;

namespace {

std::string_view title_of(int status) {
  switch (status) {
    case 400: return "Bad Request";
    case 401: return "Unauthorized";
    case 403: return "Forbidden";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 409: return "Conflict";
    case 413: return "Content Too Large";
    case 429: return "Too Many Requests";
    case 503: return "Service Unavailable";
    case 507: return "Insufficient Storage";
    default: return "Internal Server Error";
  }
}

int status_of(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalid: return 400;
    case ErrorCode::kNotFound: return 404;
    case ErrorCode::kAlreadyExists:
    case ErrorCode::kLimit: return 409;
    case ErrorCode::kUnavailable: return 503;
    case ErrorCode::kIo: return 507;
    default: return 500;
  }
}

ApiAnswer problem(const Error& error) { return remote::problem(status_of(error.code), error.message); }

ApiAnswer document(int status, const json::object& body) { return {status, "application/json", json::serialize(body), {}}; }

ApiAnswer too_many(Duration wait) {
  ApiAnswer a = remote::problem(429, "too many requests; wait as long as Retry-After says");
  std::int64_t seconds = (wait.count() + 999'999'999) / 1'000'000'000;
  a.headers.emplace_back("Retry-After", std::to_string(std::max<std::int64_t>(seconds, 1)));
  return a;
}

std::vector<std::string_view> split(std::string_view path) {
  std::vector<std::string_view> out;
  for (;;) {
    std::size_t end = path.find('/');
    out.push_back(path.substr(0, end));
    if (end == std::string_view::npos) return out;
    path.remove_prefix(end + 1);
  }
}

// RFC 3986 percent-decoding; nullopt for a broken escape or a control character.
std::optional<std::string> percent_decode(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    if (c == '%') {
      std::uint8_t byte[1];
      if (i + 2 >= text.size() || !from_hex_exact(text.substr(i + 1, 2), byte)) return std::nullopt;
      c = static_cast<char>(byte[0]);
      i += 2;
    }
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) return std::nullopt;
    out.push_back(c);
  }
  return out;
}

// Members that a document may have; anything else is a mistake worth telling.
std::optional<std::string> unknown_member(const json::object& body, std::initializer_list<std::string_view> known) {
  for (const auto& member : body) {
    bool found = false;
    for (std::string_view k : known) found = found || member.key() == json::string_view(k.data(), k.size());
    if (!found) return "unknown member \"" + std::string(member.key()).substr(0, 64) + "\"";
  }
  return std::nullopt;
}

struct BadMember {
  std::string what;
};
std::optional<BadMember> read_flag(const json::object& body, std::string_view name, bool& out) {
  const json::value* v = body.if_contains(name);
  if (!v) return std::nullopt;
  if (!v->is_bool()) return BadMember{"\"" + std::string(name) + "\" must be true or false"};
  out = v->as_bool();
  return std::nullopt;
}

}  // namespace

ApiAnswer problem(int status, std::string_view detail) {
  json::object body{{"type", "about:blank"}, {"title", title_of(status)}, {"status", status}, {"detail", detail}};
  return {status, "application/problem+json", json::serialize(body), {}};
}

struct EnrolmentApi::Route {
  enum class Who { kAnyone, kAccount, kAdmin };  // kAccount: the account in the path, or the administrator
  std::string_view method;
  std::string_view path;  // behind the prefix
  Who who;
  ApiAnswer (EnrolmentApi::*handler)(const Call&);
};

const std::vector<EnrolmentApi::Route>& EnrolmentApi::table() {
  using Who = Route::Who;
  static const std::vector<Route> routes = {
      {"GET", "health", Who::kAnyone, &EnrolmentApi::health},
      {"GET", "accounts", Who::kAdmin, &EnrolmentApi::list_accounts},
      {"POST", "accounts", Who::kAdmin, &EnrolmentApi::create_account},
      {"POST", "accounts/{account}/token", Who::kAdmin, &EnrolmentApi::replace_token},
      {"POST", "accounts/{account}/keys", Who::kAccount, &EnrolmentApi::create_key},
      {"GET", "accounts/{account}/devices", Who::kAccount, &EnrolmentApi::list_devices},
      {"POST", "accounts/{account}/devices/{device_id}/key", Who::kAccount, &EnrolmentApi::device_key},
      {"DELETE", "accounts/{account}/devices/{device_id}", Who::kAccount, &EnrolmentApi::revoke},
      {"POST", "accounts/{account}/approvals/{login_id}", Who::kAccount, &EnrolmentApi::approve},
  };
  return routes;
}

std::vector<std::string> EnrolmentApi::routes() {
  std::vector<std::string> out;
  for (const Route& r : table()) out.push_back(std::string(r.method) + " " + std::string(kPrefix) + std::string(r.path));
  return out;
}

EnrolmentApi::EnrolmentApi(coordinator::Service& service, crypto::SecretText admin_token, std::string coordination_url)
    : service_(service),
      admin_token_(std::move(admin_token)),
      coordination_url_(std::move(coordination_url)),
      by_token_(kTokenBurst, kTokenPerSecond, kCallersMax),
      failures_(kFailuresBurst, kFailuresPerSecond, kCallersMax) {}

ApiAnswer EnrolmentApi::handle(Clock clock, const ApiRequest& request) {
  std::string_view path = request.target.substr(0, request.target.find('?'));
  if (path.size() > kApiPathMax) return problem(404, "no such path");
  path.remove_prefix(std::min(path.size(), kPrefix.size()));
  std::vector<std::string_view> parts = split(path);

  const Route* route = nullptr;
  std::vector<std::string> arguments;
  std::string allowed;
  for (const Route& r : table()) {
    std::vector<std::string_view> pattern = split(r.path);
    if (pattern.size() != parts.size()) continue;
    std::vector<std::string> found;
    bool matches = true;
    for (std::size_t i = 0; i < parts.size() && matches; ++i) {
      if (!pattern[i].starts_with('{')) {
        matches = pattern[i] == parts[i];
      } else if (auto decoded = percent_decode(parts[i]); decoded && !decoded->empty()) {
        found.push_back(std::move(*decoded));
      } else {
        matches = false;
      }
    }
    if (!matches) continue;
    allowed += (allowed.empty() ? "" : ", ") + std::string(r.method);
    if (r.method == request.method) {
      route = &r;
      arguments = std::move(found);
    }
  }
  if (!route) {
    if (allowed.empty()) return problem(404, "no such path");
    ApiAnswer a = problem(405, "this path takes " + allowed);
    a.headers.emplace_back("Allow", allowed);
    return a;
  }

  Caller caller;
  std::string address = request.remote.is_valid() ? request.remote.to_string() : "local";
  std::string_view token;
  if (constexpr std::string_view kBearer = "Bearer "; request.authorization.size() > kBearer.size()) {
    bool bearer = true;
    for (std::size_t i = 0; i < kBearer.size(); ++i)
      bearer = bearer && (request.authorization[i] | 0x20) == (kBearer[i] | 0x20);
    if (bearer) token = request.authorization.substr(kBearer.size());
  }
  if (!token.empty() || route->who != Route::Who::kAnyone) {
    if (auto wait = failures_.check(clock.now, address)) return too_many(*wait);
    if (crypto::equal_secret(as_bytes(token), as_bytes(admin_token_.reveal()))) {
      caller.admin = true;
      caller.id = "admin";
    } else if (auto account = service_.account_of_token(token)) {
      caller.account = *account;
      caller.id = "account " + *account;
    } else {
      (void)failures_.take(clock.now, address);
      ApiAnswer a = problem(401, token.empty() ? "a token is needed: Authorization: Bearer TOKEN" : "this token is not known");
      a.headers.emplace_back("WWW-Authenticate", "Bearer");
      return a;
    }
    if (auto wait = by_token_.take(clock.now, caller.id)) return too_many(*wait);
  }
  if (route->who == Route::Who::kAdmin && !caller.admin) return problem(403, "only the admin token may do this");
  if (route->who == Route::Who::kAccount && !caller.admin && caller.account != arguments.front())
    return problem(403, "this token belongs to another account");

  Call call{clock, caller, std::move(arguments), {}};
  if (request.body.size() > kApiBodyMax)
    return problem(413, "the body is larger than " + std::to_string(kApiBodyMax) + " bytes");
  if (!request.body.empty()) {
    boost::system::error_code bad;
    json::parse_options options;
    options.max_depth = 8;
    json::value value = json::parse(json::string_view(request.body.data(), request.body.size()), bad, {}, options);
    if (bad) return problem(400, "the body is not JSON: " + bad.message());
    if (!value.is_object()) return problem(400, "the body must be a JSON object");
    call.body = std::move(value.as_object());
  }
  return (this->*route->handler)(call);
}

ApiAnswer EnrolmentApi::health(const Call& call) {
  coordinator::Health h = service_.health();
  json::object body{{"status", h.ok ? "ok" : "degraded"}};
  if (call.caller.admin) {
    body["accounts"] = h.accounts;
    body["nodes"] = h.nodes;
    body["online"] = h.online;
    if (!h.ok) body["problem"] = h.problem;
  }
  return document(h.ok ? 200 : 503, body);
}

ApiAnswer EnrolmentApi::list_accounts(const Call& call) {
  auto list = service_.list_accounts(call.clock);
  if (!list) return problem(list.error());
  json::array accounts;
  for (const auto& a : *list) accounts.push_back(to_json(a));
  return document(200, {{"accounts", std::move(accounts)}});
}

ApiAnswer EnrolmentApi::create_account(const Call& call) {
  if (auto unknown = unknown_member(call.body, {"name"})) return problem(400, *unknown);
  const json::value* name = call.body.if_contains("name");
  if (!name || !name->is_string()) return problem(400, "\"name\" is missing: a text like \"smith\"");
  auto made = service_.create_account(call.clock, std::string_view(name->as_string()));
  if (!made) return remote::problem(status_of(made.error().code), made.error().message);
  return document(201, {{"account", made->name}, {"token", made->token.reveal()}});
}

ApiAnswer EnrolmentApi::replace_token(const Call& call) {
  auto made = service_.replace_token(call.clock, call.arguments[0]);
  if (!made) return problem(made.error());
  return document(200, {{"account", made->name}, {"token", made->token.reveal()}});
}

ApiAnswer EnrolmentApi::create_key(const Call& call) {
  if (auto unknown = unknown_member(call.body, {"reusable", "ephemeral", "expires_in"})) return problem(400, *unknown);
  coordinator::KeyOptions options;
  if (auto bad = read_flag(call.body, "reusable", options.reusable)) return problem(400, bad->what);
  if (auto bad = read_flag(call.body, "ephemeral", options.ephemeral)) return problem(400, bad->what);
  if (const json::value* seconds = call.body.if_contains("expires_in")) {
    if (!seconds->is_int64() || seconds->as_int64() <= 0 || seconds->as_int64() > 1'000'000'000)
      return problem(400, "\"expires_in\" must be a number of seconds");
    options.lifetime = std::chrono::seconds(seconds->as_int64());
  }
  auto key = service_.key_create(call.clock, call.arguments[0], options);
  if (!key) return problem(key.error());
  json::object body{{"key", key->key.reveal()}, {"coordination_url", coordination_url_}};
  body["expires"] = key->expires ? json::value(ts2021::format_time(*key->expires)) : json::value(nullptr);
  return document(201, body);
}

ApiAnswer EnrolmentApi::device_key(const Call& call) {
  if (auto unknown = unknown_member(call.body, {"replace"})) return problem(400, *unknown);
  bool replace = false;
  if (auto bad = read_flag(call.body, "replace", replace)) return problem(400, bad->what);
  auto key = service_.device_key(call.clock, call.arguments[0], call.arguments[1], replace);
  if (!key) return problem(key.error());
  json::object body{{"key", key->key.reveal()},
                    {"device", to_json(key->device)},
                    {"coordination_url", coordination_url_}};
  body["expires"] = key->expires ? json::value(ts2021::format_time(*key->expires)) : json::value(nullptr);
  return document(key->created ? 201 : 200, body);
}

ApiAnswer EnrolmentApi::list_devices(const Call& call) {
  auto devices = service_.devices_list(call.clock, call.arguments[0]);
  if (!devices) return problem(devices.error());
  json::array list;
  for (const auto& d : *devices) list.push_back(to_json(d));
  return document(200, {{"devices", std::move(list)}});
}

ApiAnswer EnrolmentApi::revoke(const Call& call) {
  auto done = service_.revoke(call.clock, call.arguments[0], call.arguments[1]);
  if (!done) return problem(done.error());
  return {204, "", "", {}};
}

ApiAnswer EnrolmentApi::approve(const Call& call) {
  auto device = service_.approve(call.clock, call.arguments[0], call.arguments[1]);
  if (!device) return problem(device.error());
  return document(200, {{"device", to_json(*device)}});
}

}  // namespace porthole::remote
