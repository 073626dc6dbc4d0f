// Client of the enrolment API: asks the coordination service for a device's own pre-auth key (S3). The same device
// always gets the same key for as long as it is valid.
#pragma once

#include <chrono>
#include <memory>
#include <stdexcept>
#include <stop_token>
#include <string>

#include "serve/enrolment_answer.h"
#include "session/http_client.h"

namespace porthole::serve {

// The sentence names the service and its reason (the `detail` of its problem+json where it gives one).
class EnrolmentError : public std::runtime_error {
 public:
  EnrolmentError(const std::string& message, bool temporary) : std::runtime_error(message), temporary_(temporary) {}
  // Trying again later may help: nobody answered, or the service was busy.
  bool temporary() const { return temporary_; }

 private:
  bool temporary_;
};

class EnrolmentClient {
 public:
  // `url`: http(s)://host[:port][/prefix]; `token`: of an account ("phtoken-ACCOUNT-SECRET"). CommandError for an unusable
  // address, token or CA file.
  static void check_url(const std::string& url);  // CommandError
  EnrolmentClient(const std::string& url, const std::string& token, const std::string& ca_file);

  // Blocks for at most `time_max`, and not beyond `stop`; any thread. Throws EnrolmentError. `replace`: for a device that has
  // lost its state or was refused; what it had is revoked, and the key is new.
  DeviceKey device_key(const std::string& device_id, bool replace, std::chrono::milliseconds time_max,
                       std::stop_token stop = {}) const;
  const std::string& url() const { return url_; }

 private:
  std::string url_, prefix_, account_, token_;
  std::unique_ptr<session::HttpClient> http_;
};

}  // namespace porthole::serve
