// Failed operations as values. Three kinds of trouble are kept apart (docs/architecture.md, "Errors"):
// bad bytes from the network are dropped and counted, failed operations are an Error, broken invariants assert.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "base/assert.h"

namespace porthole {

enum class ErrorCode {
  kInvalid,          // malformed argument, file or message
  kUnavailable,      // cannot be reached now; retrying may help
  kTimeout,
  kRefused,          // the other side said no
  kUnauthorized,     // wrong key, password, token
  kExpired,          // key or node expired
  kNotFound,
  kAlreadyExists,    // also: in use by another process
  kPermission,       // the operating system said no
  kProtocol,         // the other side broke the protocol, or something in between did
  kLimit,            // a named bound was reached
  kCancelled,        // closed or cancelled by ourselves
  kReset,            // the connection was reset
  kIo,               // other operating-system failure
  kUnsupported,      // e.g. a store written by a newer version
  kInternal,
};
std::string_view to_string(ErrorCode code);

// `message` is one plain sentence for a person: what happened, to what, and what can be done. It never contains
// a secret. Example: "relay home: certificate for relay.example expired 3 days ago".
struct Error {
  ErrorCode code = ErrorCode::kInternal;
  std::string message;

  // "context: message"; for callers that know what was being done.
  Error with_context(std::string_view context) const {
    return {code, std::string(context) + ": " + message};
  }
};

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : v_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : v_(std::in_place_index<1>, std::move(error)) {}

  bool ok() const { return v_.index() == 0; }
  explicit operator bool() const { return ok(); }
  T& value() & { PORTHOLE_ASSERT(ok()); return *std::get_if<0>(&v_); }
  const T& value() const& { PORTHOLE_ASSERT(ok()); return *std::get_if<0>(&v_); }
  T&& value() && { PORTHOLE_ASSERT(ok()); return std::move(*std::get_if<0>(&v_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }
  const Error& error() const { PORTHOLE_ASSERT(!ok()); return *std::get_if<1>(&v_); }

 private:
  std::variant<T, Error> v_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)) {}
  bool ok() const { return !error_; }
  explicit operator bool() const { return ok(); }
  const Error& error() const { PORTHOLE_ASSERT(error_.has_value()); return *error_; }

 private:
  std::optional<Error> error_;
};
using Status = Result<void>;

}  // namespace porthole
