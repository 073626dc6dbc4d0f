#include "serve/enrolment.h"

#include <boost/json.hpp>

#include "serve/limits.h"
#include "session/names.h"
#include "support/json_read.h"
#include "support/support.h"

namespace porthole::serve {
namespace {

using app::parse_object;
using app::text_of;

struct ServiceUrl {
  explicit ServiceUrl(std::string_view url) : tls(url.starts_with("https://")) {
    if (!tls && !url.starts_with("http://"))
      throw app::CommandError("the address of the coordination service (--remote) must start with https:// or http://, not \"" +
                              std::string(url) + "\"");
    url.remove_prefix(tls ? 8 : 7);
    while (url.ends_with('/')) url.remove_suffix(1);
    std::size_t slash = url.find('/');
    if (slash != std::string_view::npos) path = url.substr(slash);
    if (url.substr(0, slash).empty())
      throw app::CommandError("the address of the coordination service (--remote) names no host: " + std::string(tls ? "https://" : "http://"));
    at = session::parse_server_url(url.substr(0, slash), tls ? 443 : 80);
  }
  bool tls;
  session::HostPort at;
  std::string path;
};

}  // namespace

void EnrolmentClient::check_url(const std::string& url) { ServiceUrl{url}; }

EnrolmentClient::EnrolmentClient(const std::string& url, const std::string& token, const std::string& ca_file)
    : url_(url) {
  while (url_.ends_with('/')) url_.pop_back();
  ServiceUrl service(url);
  prefix_ = service.path;
  http_ = std::make_unique<session::HttpClient>(service.tls, service.at.host, static_cast<std::uint16_t>(service.at.port), ca_file);
  constexpr std::string_view kKind = "phtoken-";
  std::size_t last = token.rfind('-');
  if (!token.starts_with(kKind) || last <= kKind.size() || token.find_first_of("\r\n \t") != std::string::npos)
    throw app::CommandError("the account token is not one (\"porthole remote account create\" prints it: phtoken-ACCOUNT-...)");
  account_ = token.substr(kKind.size(), last - kKind.size());
  token_ = token;
}

namespace {

constexpr const char* kPortal = "this network may want a login first (captive portal), or ";

bool is_web_page(const session::HttpAnswer& answer) {
  const std::size_t begin = answer.body.find_first_not_of(" \t\r\n");
  return answer.content_type.starts_with("text/html") || (begin != std::string::npos && answer.body[begin] == '<');
}

// What an answer without a key means, to stand behind the service's name; `temporary`: see EnrolmentError.
std::string meaning_of(const session::HttpAnswer& answer, bool tls, bool& temporary) {
  const std::string status = std::to_string(answer.status);
  temporary = answer.status == 429 || answer.status >= 500;
  if (answer.status >= 300 && answer.status < 400) {
    temporary = true;
    const std::string where = session::clean_text(answer.location, 200);
    return "redirects to " + (where.empty() ? "another place" : where) + ": " + kPortal + "--remote should name that address";
  }
  if (is_web_page(answer)) {
    if (answer.status >= 400)
      return "answered with HTTP status " + status + " and a web page: is it a coordination service, and does a proxy before it pass /api?";
    temporary = true;
    return std::string("answered with a web page instead of a key: ") + kPortal + "it is no coordination service";
  }
  const boost::json::object object = parse_object(answer.body);
  std::string detail = text_of(object, "detail");
  if (detail.empty()) detail = text_of(object, "title");
  if (!detail.empty()) return "refused: " + session::clean_text(detail, 300);
  if (!tls && answer.body.find("HTTPS server") != std::string::npos)
    return "answers with TLS: is its address meant to begin with https://?";
  if (answer.status != 200 && answer.status != 201) return "answered with HTTP status " + status;
  return object.empty() ? "answered with something that is no key: is it a coordination service?" : "answered without a key";
}

}  // namespace

DeviceKey EnrolmentClient::device_key(const std::string& device_id, bool replace,
                                      std::chrono::milliseconds time_max, std::stop_token stop) const {
  std::string path = "/api/v1/accounts/" + session::percent_encoded(account_) + "/devices/" + session::percent_encoded(device_id) + "/key";
  session::HttpCall call{"POST", prefix_ + path, {{"Authorization", "Bearer " + token_}, {"Accept", "application/json, application/problem+json"}},
                         replace ? "{\"replace\":true}" : "{}"};
  session::HttpAnswer answer;
  try {
    answer = http_->call(call, time_max, kEnrolmentAnswerBytesMax, std::move(stop));
  } catch (const session::HttpTrouble& e) {
    throw EnrolmentError("the coordination service at " + url_ + " " + e.what(), true);
  }
  DeviceKey out;
  if (answer.status == 200 || answer.status == 201) {
    boost::json::object object = parse_object(answer.body);
    out = {text_of(object, "key"), text_of(object, "expires"), text_of(object, "coordination_url")};
  }
  if (out.key.empty()) {
    bool temporary = false;
    const std::string meaning = meaning_of(answer, url_.starts_with("https:"), temporary);
    throw EnrolmentError("the coordination service at " + url_ + " " + meaning, temporary);
  }
  if (out.coordination_url.empty()) out.coordination_url = url_;
  return out;
}

}  // namespace porthole::serve
