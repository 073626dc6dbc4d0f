// IP addresses, prefixes and UDP/TCP endpoints as values. Text forms follow RFC 4291 / RFC 5952; IPv4-mapped IPv6
// addresses are unmapped on construction from 16 bytes, so that one host has one value.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "base/bytes.h"

namespace porthole {

class IpAddress {
 public:
  // The unspecified "no address"; is_valid() is false.
  constexpr IpAddress() = default;

  static IpAddress v4(std::uint32_t host_order);
  static IpAddress v4(std::uint8_t a, std::uint8_t b, std::uint8_t c, std::uint8_t d);
  // Exactly 4 bytes, network order.
  static IpAddress v4_bytes(const std::uint8_t* p);
  // 16 bytes, network order; ::ffff:a.b.c.d becomes IPv4.
  static IpAddress v6_bytes(const std::uint8_t* p);
  // "192.0.2.1", "2001:db8::1"; no zone, no brackets, no port.
  static std::optional<IpAddress> parse(std::string_view text);

  bool is_valid() const { return family_ != 0; }
  bool is_v4() const { return family_ == 4; }
  bool is_v6() const { return family_ == 6; }
  // IPv4 in host order; 0 for IPv6.
  std::uint32_t v4_value() const;
  // 4 or 16 bytes in network order; empty when invalid.
  Bytes bytes() const;
  // Always 16 bytes; IPv4 as ::ffff:a.b.c.d.
  std::array<std::uint8_t, 16> mapped() const;
  int bit_length() const { return is_v4() ? 32 : 128; }

  bool is_unspecified() const;
  bool is_loopback() const;
  bool is_multicast() const;   // includes IPv4 255.255.255.255
  bool is_link_local() const;  // 169.254/16, fe80::/10
  bool is_private() const;     // RFC 1918, fc00::/7
  bool is_tailnet() const;     // 100.64.0.0/10 or fd7a:115c:a1e0::/48

  std::string to_string() const;
  friend constexpr auto operator<=>(const IpAddress&, const IpAddress&) = default;

 private:
  std::uint8_t family_ = 0;
  std::array<std::uint8_t, 16> b_{};  // IPv4 in the first four bytes
};

struct Endpoint {
  IpAddress address;
  std::uint16_t port = 0;

  bool is_valid() const { return address.is_valid() && port != 0; }
  // "1.2.3.4:80", "[2001:db8::1]:80"
  static std::optional<Endpoint> parse(std::string_view text);
  std::string to_string() const;
  friend constexpr auto operator<=>(const Endpoint&, const Endpoint&) = default;
};

struct Prefix {
  IpAddress address;
  int bits = 0;

  // "100.64.0.0/10"; a bare address is a full-length prefix. Host bits may be set; contains() ignores them.
  static std::optional<Prefix> parse(std::string_view text);
  static Prefix host(IpAddress a) { return {a, a.bit_length()}; }
  bool contains(const IpAddress& a) const;
  // True when no bit behind `bits` is set.
  bool is_canonical() const;
  std::string to_string() const;
  friend constexpr auto operator<=>(const Prefix&, const Prefix&) = default;
};

// 64-bit mix for hash tables keyed by bytes an attacker may choose only within their own allowed addresses.
// Tables that strangers can fill use an ordered container or a keyed hash instead.
std::size_t hash_bytes(Bytes bytes);

}  // namespace porthole

template <>
struct std::hash<porthole::IpAddress> {
  std::size_t operator()(const porthole::IpAddress& a) const { return porthole::hash_bytes(a.bytes()); }
};
template <>
struct std::hash<porthole::Endpoint> {
  std::size_t operator()(const porthole::Endpoint& e) const {
    return porthole::hash_bytes(e.address.bytes()) * 31 + e.port;
  }
};
