#include "serve/enrolment_answer.h"

#include <boost/json.hpp>

#include "session/names.h"
#include "support/json_read.h"

namespace porthole::serve {
namespace {

using app::parse_object;
using app::text_of;

constexpr const char* kPortal = "this network may want a login first (captive portal), or ";

bool is_web_page(const session::HttpAnswer& answer) {
  const std::size_t begin = answer.body.find_first_not_of(" \t\r\n");
  return answer.content_type.starts_with("text/html") || (begin != std::string::npos && answer.body[begin] == '<');
}

// See NoDeviceKey.
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
      return "answered with HTTP status " + status +
             " and a web page: is it a coordination service, and does a proxy before it pass /api?";
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

std::variant<DeviceKey, NoDeviceKey> read_enrolment_answer(const session::HttpAnswer& answer, bool tls) {
  if (answer.status == 200 || answer.status == 201) {
    boost::json::object object = parse_object(answer.body);
    DeviceKey key{text_of(object, "key"), text_of(object, "expires"), text_of(object, "coordination_url")};
    if (!key.key.empty()) return key;
  }
  NoDeviceKey out;
  out.meaning = meaning_of(answer, tls, out.temporary);
  return out;
}

}  // namespace porthole::serve
