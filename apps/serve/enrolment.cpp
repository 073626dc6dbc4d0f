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

}  // namespace

EnrolmentClient::EnrolmentClient(const std::string& url, const std::string& token, const std::string& ca_file)
    : url_(url) {
  std::string_view rest = url;
  const bool tls = rest.starts_with("https://");
  if (!tls && !rest.starts_with("http://"))
    throw app::CommandError("the address of the coordination service must start with https:// or http://, not \"" + url + "\"");
  rest.remove_prefix(tls ? 8 : 7);
  while (rest.ends_with('/')) rest.remove_suffix(1);
  while (url_.ends_with('/')) url_.pop_back();
  std::size_t slash = rest.find('/');
  if (slash != std::string_view::npos) prefix_ = rest.substr(slash);
  session::HostPort at = session::parse_server_url(rest.substr(0, slash), tls ? 443 : 80);
  http_ = std::make_unique<session::HttpClient>(tls, at.host, static_cast<std::uint16_t>(at.port), ca_file);
  constexpr std::string_view kKind = "phtoken-";
  std::size_t last = token.rfind('-');
  if (!token.starts_with(kKind) || last <= kKind.size() || token.find_first_of("\r\n \t") != std::string::npos)
    throw app::CommandError("the account token is not one (\"porthole remote account create\" prints it: phtoken-ACCOUNT-...)");
  account_ = token.substr(kKind.size(), last - kKind.size());
  token_ = token;
}

namespace {

[[noreturn]] void refuse(const std::string& url, unsigned status, const std::string& body) {
  boost::json::object problem = parse_object(body);
  std::string detail = text_of(problem, "detail");
  if (detail.empty()) detail = text_of(problem, "title");
  std::string what = detail.empty() ? "answered with HTTP status " + std::to_string(status)
                                    : "refused: " + session::clean_text(detail, 300);
  throw EnrolmentError("the coordination service at " + url + " " + what, status == 429 || status >= 500);
}

}  // namespace

DeviceKey EnrolmentClient::device_key(const std::string& device_id, bool replace,
                                      std::chrono::milliseconds time_max) const {
  std::string path = "/api/v1/accounts/" + session::percent_encoded(account_) + "/devices/" + session::percent_encoded(device_id) + "/key";
  session::HttpCall call{"POST", prefix_ + path, {{"Authorization", "Bearer " + token_}, {"Accept", "application/json, application/problem+json"}},
                         replace ? "{\"replace\":true}" : "{}"};
  session::HttpAnswer answer;
  try {
    answer = http_->call(call, time_max, kEnrolmentAnswerBytesMax);
  } catch (const session::HttpTrouble& e) {
    throw EnrolmentError("the coordination service at " + url_ + " " + e.what(), true);
  }
  if (answer.status != 200 && answer.status != 201) refuse(url_, answer.status, answer.body);
  boost::json::object object = parse_object(answer.body);
  DeviceKey out{text_of(object, "key"), text_of(object, "expires"), text_of(object, "coordination_url")};
  if (out.key.empty()) throw EnrolmentError("the coordination service at " + url_ + " answered without a key", false);
  if (out.coordination_url.empty()) out.coordination_url = url_;
  return out;
}

}  // namespace porthole::serve
