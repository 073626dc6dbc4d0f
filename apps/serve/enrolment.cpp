#include "serve/enrolment.h"

#include "serve/limits.h"
#include "session/names.h"
#include "support/support.h"

namespace porthole::serve {
namespace {

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
  auto read = read_enrolment_answer(answer, url_.starts_with("https:"));
  if (const auto* none = std::get_if<NoDeviceKey>(&read))
    throw EnrolmentError("the coordination service at " + url_ + " " + none->meaning, none->temporary);
  DeviceKey out = std::get<DeviceKey>(std::move(read));
  if (out.coordination_url.empty()) out.coordination_url = url_;
  return out;
}

}  // namespace porthole::serve
