// Why something the client was asked for did not happen. What() is the sentence people see.
#pragma once

#include <string>

#include "support/support.h"

namespace porthole::client {

enum class Failure {
  kUnreachable,     // nobody answers there, or not in time
  kNotPorthole,     // somebody answers, but not a Porthole media server
  kPinChanged,      // the server's certificate is not the one that was pinned
  kWrongPassword,
  kRefused,         // the server says no for now (attempts, load)
  kLost,            // the connection ended in between
  kRevoked,         // this device is no longer welcome
  kKeyInvalid,      // the tailnet does not take the stored login or the key
  kNoRemote,        // there are no remote details for this server
  kNotFound,        // no such item or saved server
  kProtocol,        // the other side broke the rules of the session
  kFailed,          // anything else
};

class ClientError : public app::CommandError {
 public:
  ClientError(Failure failure, const std::string& message) : CommandError(message), failure_(failure) {}
  Failure failure() const { return failure_; }

 private:
  Failure failure_;
};

}  // namespace porthole::client
