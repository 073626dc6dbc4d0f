// SOCKS5 messages (RFC 1928) and its user/password login (RFC 1929), as a server reads and writes them.
//
// Parsers look at a buffer that may hold less than one message or more than one: they return kMore, or how many bytes
// the message took, so that nothing behind it is lost.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>

#include "base/bytes.h"
#include "base/ip.h"

namespace porthole::wire::socks5 {

constexpr std::uint8_t kVersion = 5;
constexpr std::uint8_t kLoginVersion = 1;
constexpr std::size_t kGreetingSizeMax = 2 + 255;
constexpr std::size_t kLoginSizeMax = 3 + 255 + 255;
constexpr std::size_t kRequestSizeMax = 4 + 1 + 255 + 2;
constexpr std::size_t kDatagramHeadMax = 2 + 1 + 1 + 1 + 255 + 2;

enum class Method : std::uint8_t { kNone = 0, kGssapi = 1, kPassword = 2, kNoneAcceptable = 0xff };
enum class Command : std::uint8_t { kConnect = 1, kBind = 2, kUdpAssociate = 3 };

enum class Reply : std::uint8_t {
  kSucceeded = 0,
  kGeneralFailure = 1,
  kNotAllowed = 2,
  kNetworkUnreachable = 3,
  kHostUnreachable = 4,
  kConnectionRefused = 5,
  kTtlExpired = 6,
  kCommandNotSupported = 7,
  kAddressTypeNotSupported = 8,
};

enum class Parsed { kMore, kDone, kBad, kBadAddressType };

struct Greeting {
  Bytes methods;
  bool offers(Method m) const;
};
// `size`: bytes of the message when kDone. kBad: not version 5.
Parsed parse_greeting(Bytes in, Greeting& out, std::size_t& size);

struct Login {
  std::string_view user;
  Bytes password;
};
Parsed parse_login(Bytes in, Login& out, std::size_t& size);

// A name that is an address literal (also "[v6]") is given as an address.
using Host = std::variant<IpAddress, std::string_view>;

// Where to connect to.
struct Request {
  std::uint8_t command = 0;  // any value
  Host host;
  std::uint16_t port = 0;
};
// The reserved byte is ignored. Names must be 1..255 printable ASCII bytes without blanks: kBad otherwise.
Parsed parse_request(Bytes in, Request& out, std::size_t& size);

// A UDP datagram between client and server (RFC 1928 section 7).
struct Datagram {
  std::uint8_t fragment = 0;  // 0: whole
  Host host;
  std::uint16_t port = 0;
  Bytes target;               // address type, address and port, as they were written
  Bytes data;                 // may be empty
};
// A datagram has one message, so there is no kMore: nullopt for what is short or not as for parse_request().
std::optional<Datagram> parse_datagram(Bytes in);

void encode_method(ByteVector& out, Method method);
void encode_login_result(ByteVector& out, bool accepted);
// An invalid address is written as 0.0.0.0:0.
void encode_reply(ByteVector& out, Reply reply, const Endpoint& bound);
// What stands before the data of a whole datagram. `target`: as in Datagram.
void encode_datagram_head(ByteVector& out, Bytes target);

}  // namespace porthole::wire::socks5
