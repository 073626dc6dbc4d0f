#include "wire/socks5.h"

#include <algorithm>

namespace porthole::wire::socks5 {
namespace {

enum : std::uint8_t { kAddressV4 = 1, kAddressName = 3, kAddressV6 = 4 };

bool is_name(std::string_view name) {
  return !name.empty() && std::all_of(name.begin(), name.end(), [](char c) { return c > 0x20 && c < 0x7f; });
}

// ATYP, address and port, in requests and in datagrams.
Parsed parse_target(Bytes in, Host& host, std::uint16_t& port, std::size_t& size) {
  if (in.empty()) return Parsed::kMore;
  std::size_t at = 1;
  switch (in[0]) {
    case kAddressV4:
      if (in.size() < at + 6) return Parsed::kMore;
      host = IpAddress::v4_bytes(in.data() + at);
      at += 4;
      break;
    case kAddressV6:
      if (in.size() < at + 18) return Parsed::kMore;
      host = IpAddress::v6_bytes(in.data() + at);
      at += 16;
      break;
    case kAddressName: {
      if (in.size() < at + 1 || in.size() < at + 1 + in[at] + 2) return Parsed::kMore;
      std::string_view name = as_text(in.subspan(at + 1, in[at]));
      if (!is_name(name)) return Parsed::kBad;
      std::string_view literal = name;
      if (literal.size() > 2 && literal.front() == '[' && literal.back() == ']') literal = literal.substr(1, literal.size() - 2);
      if (auto address = IpAddress::parse(literal)) host = *address;
      else host = name;
      at += 1 + name.size();
      break;
    }
    default: return Parsed::kBadAddressType;
  }
  port = load_be<std::uint16_t>(in.data() + at);
  size = at + 2;
  return Parsed::kDone;
}

}  // namespace

bool Greeting::offers(Method m) const {
  return std::find(methods.begin(), methods.end(), static_cast<std::uint8_t>(m)) != methods.end();
}

Parsed parse_greeting(Bytes in, Greeting& out, std::size_t& size) {
  if (!in.empty() && in[0] != kVersion) return Parsed::kBad;
  if (in.size() < 2 || in.size() < 2u + in[1]) return Parsed::kMore;
  out.methods = in.subspan(2, in[1]);
  size = 2u + in[1];
  return Parsed::kDone;
}

Parsed parse_login(Bytes in, Login& out, std::size_t& size) {
  if (!in.empty() && in[0] != kLoginVersion) return Parsed::kBad;
  if (in.size() < 2) return Parsed::kMore;
  std::size_t user_size = in[1];
  if (in.size() < 3 + user_size) return Parsed::kMore;
  std::size_t password_size = in[2 + user_size];
  if (in.size() < 3 + user_size + password_size) return Parsed::kMore;
  out.user = as_text(in.subspan(2, user_size));
  out.password = in.subspan(3 + user_size, password_size);
  size = 3 + user_size + password_size;
  return Parsed::kDone;
}

Parsed parse_request(Bytes in, Request& out, std::size_t& size) {
  if (!in.empty() && in[0] != kVersion) return Parsed::kBad;
  if (in.size() < 3) return Parsed::kMore;
  out.command = in[1];
  std::size_t target_size = 0;
  Parsed parsed = parse_target(in.subspan(3), out.host, out.port, target_size);
  if (parsed == Parsed::kDone) size = 3 + target_size;
  return parsed;
}

std::optional<Datagram> parse_datagram(Bytes in) {
  if (in.size() < 3) return std::nullopt;
  Datagram out;
  out.fragment = in[2];
  std::size_t target_size = 0;
  if (parse_target(in.subspan(3), out.host, out.port, target_size) != Parsed::kDone) return std::nullopt;
  out.target = in.subspan(3, target_size);
  out.data = in.subspan(3 + target_size);
  return out;
}

void encode_method(ByteVector& out, Method method) {
  out.push_back(kVersion);
  out.push_back(static_cast<std::uint8_t>(method));
}

void encode_login_result(ByteVector& out, bool accepted) {
  out.push_back(kLoginVersion);
  out.push_back(accepted ? 0 : 1);
}

void encode_reply(ByteVector& out, Reply reply, const Endpoint& bound) {
  ByteWriter w(out);
  w.u8(kVersion);
  w.u8(static_cast<std::uint8_t>(reply));
  w.u8(0);
  if (bound.address.is_valid()) {
    w.u8(bound.address.is_v4() ? kAddressV4 : kAddressV6);
    w.bytes(bound.address.bytes());
    w.be16(bound.port);
  } else {
    w.u8(kAddressV4);
    w.zeros(6);
  }
}

void encode_datagram_head(ByteVector& out, Bytes target) {
  ByteWriter w(out);
  w.zeros(3);
  w.bytes(target);
}

}  // namespace porthole::wire::socks5
