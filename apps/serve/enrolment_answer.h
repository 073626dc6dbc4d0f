// What the answer of the enrolment service means. Whoever stands in the way may have written it (a proxy, a hotel's portal).
// No I/O and no coroutine, so that it can be fuzzed.
#pragma once

#include <string>
#include <variant>

#include "session/http_client.h"

namespace porthole::serve {

struct DeviceKey {
  std::string key;               // not empty
  std::string expires;           // RFC 3339; empty: does not say
  std::string coordination_url;  // empty in an answer: that of the service
};

// An answer without a key.
struct NoDeviceKey {
  std::string meaning;     // to stand behind the service's name; one line
  bool temporary = false;  // see EnrolmentError
};

// `tls`: whether it was asked over https.
std::variant<DeviceKey, NoDeviceKey> read_enrolment_answer(const session::HttpAnswer& answer, bool tls);

}  // namespace porthole::serve
