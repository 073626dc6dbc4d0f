#include "base/ip.h"

#include <charconv>

namespace porthole {
namespace {

bool parse_decimal(std::string_view text, unsigned max, unsigned& out) {
  if (text.empty() || text.size() > 5) return false;
  if (text.size() > 1 && text[0] == '0') return false;
  auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), out);
  return ec == std::errc() && end == text.data() + text.size() && out <= max;
}

bool parse_v4(std::string_view text, std::uint8_t* out) {
  for (int i = 0; i < 4; ++i) {
    std::size_t dot = i < 3 ? text.find('.') : text.size();
    if (dot == std::string_view::npos) return false;
    unsigned v;
    if (!parse_decimal(text.substr(0, dot), 255, v)) return false;
    out[i] = static_cast<std::uint8_t>(v);
    text.remove_prefix(i < 3 ? dot + 1 : dot);
  }
  return text.empty();
}

bool parse_v6(std::string_view text, std::uint8_t* out) {
  std::uint16_t groups[8] = {};
  int count = 0, gap = -1;
  std::size_t i = 0;
  if (text.starts_with("::")) {
    gap = 0;
    i = 2;
  } else if (text.starts_with(':')) {
    return false;
  }
  while (i < text.size()) {
    if (count == 8) return false;
    std::size_t end = text.find(':', i);
    if (end == std::string_view::npos) end = text.size();
    std::string_view group = text.substr(i, end - i);
    if (group.find('.') != std::string_view::npos) {
      std::uint8_t v4[4];
      if (end != text.size() || count > 6 || !parse_v4(group, v4)) return false;
      groups[count++] = load_be<std::uint16_t>(v4);
      groups[count++] = load_be<std::uint16_t>(v4 + 2);
      i = end;
      break;
    }
    unsigned v = 0;
    if (group.empty() || group.size() > 4) return false;
    auto [p, ec] = std::from_chars(group.data(), group.data() + group.size(), v, 16);
    if (ec != std::errc() || p != group.data() + group.size()) return false;
    groups[count++] = static_cast<std::uint16_t>(v);
    i = end;
    if (i == text.size()) break;
    ++i;  // ':'
    if (i < text.size() && text[i] == ':') {
      if (gap >= 0) return false;
      gap = count;
      ++i;
    } else if (i == text.size()) {
      return false;  // trailing single colon
    }
  }
  if (gap < 0 && count != 8) return false;
  if (gap >= 0 && count == 8) return false;
  std::uint16_t full[8] = {};
  if (gap < 0) gap = count;
  for (int k = 0; k < gap; ++k) full[k] = groups[k];
  for (int k = gap; k < count; ++k) full[8 - count + k] = groups[k];
  for (int k = 0; k < 8; ++k) store_be(out + 2 * k, full[k]);
  return true;
}

}  // namespace

IpAddress IpAddress::v4(std::uint32_t host_order) {
  IpAddress a;
  a.family_ = 4;
  store_be(a.b_.data(), host_order);
  return a;
}
IpAddress IpAddress::v4(std::uint8_t a, std::uint8_t b, std::uint8_t c, std::uint8_t d) {
  return v4(static_cast<std::uint32_t>(a) << 24 | static_cast<std::uint32_t>(b) << 16 |
            static_cast<std::uint32_t>(c) << 8 | d);
}
IpAddress IpAddress::v4_bytes(const std::uint8_t* p) { return v4(load_be<std::uint32_t>(p)); }
IpAddress IpAddress::v6_bytes(const std::uint8_t* p) {
  static constexpr std::uint8_t kMapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  if (std::memcmp(p, kMapped, 12) == 0) return v4_bytes(p + 12);
  IpAddress a;
  a.family_ = 6;
  std::memcpy(a.b_.data(), p, 16);
  return a;
}

std::optional<IpAddress> IpAddress::parse(std::string_view text) {
  std::uint8_t b[16];
  if (text.find(':') == std::string_view::npos) {
    if (!parse_v4(text, b)) return std::nullopt;
    return v4_bytes(b);
  }
  if (!parse_v6(text, b)) return std::nullopt;
  return v6_bytes(b);
}

std::uint32_t IpAddress::v4_value() const { return is_v4() ? load_be<std::uint32_t>(b_.data()) : 0; }

Bytes IpAddress::bytes() const {
  return Bytes(b_).first(is_v4() ? 4 : is_v6() ? 16 : 0);
}

std::array<std::uint8_t, 16> IpAddress::mapped() const {
  if (!is_v4()) return b_;
  std::array<std::uint8_t, 16> out{};
  out[10] = out[11] = 0xff;
  std::memcpy(out.data() + 12, b_.data(), 4);
  return out;
}

bool IpAddress::is_unspecified() const {
  if (!is_valid()) return false;
  for (std::uint8_t b : bytes())
    if (b != 0) return false;
  return true;
}
bool IpAddress::is_loopback() const {
  if (is_v4()) return b_[0] == 127;
  if (!is_v6() || b_[15] != 1) return false;
  for (int i = 0; i < 15; ++i)
    if (b_[static_cast<std::size_t>(i)] != 0) return false;
  return true;
}
bool IpAddress::is_multicast() const {
  if (is_v4()) return b_[0] >= 224 && (b_[0] < 240 || v4_value() == 0xffffffffu);
  return is_v6() && b_[0] == 0xff;
}
bool IpAddress::is_link_local() const {
  if (is_v4()) return b_[0] == 169 && b_[1] == 254;
  return is_v6() && b_[0] == 0xfe && (b_[1] & 0xc0) == 0x80;
}
bool IpAddress::is_private() const {
  if (is_v4())
    return b_[0] == 10 || (b_[0] == 172 && (b_[1] & 0xf0) == 16) || (b_[0] == 192 && b_[1] == 168);
  return is_v6() && (b_[0] & 0xfe) == 0xfc;
}
bool IpAddress::is_tailnet() const {
  if (is_v4()) return b_[0] == 100 && (b_[1] & 0xc0) == 64;
  static constexpr std::uint8_t kUla[6] = {0xfd, 0x7a, 0x11, 0x5c, 0xa1, 0xe0};
  return is_v6() && std::memcmp(b_.data(), kUla, 6) == 0;
}

std::string IpAddress::to_string() const {
  if (is_v4()) {
    return std::to_string(b_[0]) + "." + std::to_string(b_[1]) + "." + std::to_string(b_[2]) + "." +
           std::to_string(b_[3]);
  }
  if (!is_v6()) return "invalid";
  std::uint16_t g[8];
  for (std::size_t i = 0; i < 8; ++i) g[i] = load_be<std::uint16_t>(b_.data() + 2 * i);
  int best = -1, best_length = 1;
  for (int i = 0; i < 8;) {
    int k = i;
    while (k < 8 && g[k] == 0) ++k;
    if (k - i > best_length) {
      best = i;
      best_length = k - i;
    }
    i = k == i ? i + 1 : k;
  }
  std::string out;
  for (int i = 0; i < 8;) {
    if (i == best) {
      out += "::";
      i += best_length;
      continue;
    }
    if (!out.empty() && out.back() != ':') out += ':';
    char tmp[8];
    auto r = std::to_chars(tmp, tmp + sizeof tmp, g[i], 16);
    out.append(tmp, r.ptr);
    ++i;
  }
  return out;
}

std::optional<Endpoint> Endpoint::parse(std::string_view text) {
  std::string_view host, port;
  if (text.starts_with('[')) {
    std::size_t close = text.find("]:");
    if (close == std::string_view::npos) return std::nullopt;
    host = text.substr(1, close - 1);
    port = text.substr(close + 2);
    if (host.find(':') == std::string_view::npos) return std::nullopt;
  } else {
    std::size_t colon = text.rfind(':');
    if (colon == std::string_view::npos) return std::nullopt;
    host = text.substr(0, colon);
    port = text.substr(colon + 1);
    if (host.find(':') != std::string_view::npos) return std::nullopt;
  }
  unsigned p;
  auto a = IpAddress::parse(host);
  if (!a || !parse_decimal(port, 65535, p)) return std::nullopt;
  return Endpoint{*a, static_cast<std::uint16_t>(p)};
}

std::string Endpoint::to_string() const {
  std::string host = address.to_string();
  return (address.is_v6() ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

std::optional<Prefix> Prefix::parse(std::string_view text) {
  std::size_t slash = text.find('/');
  auto a = IpAddress::parse(text.substr(0, slash));
  if (!a) return std::nullopt;
  if (slash == std::string_view::npos) return host(*a);
  unsigned bits;
  if (!parse_decimal(text.substr(slash + 1), static_cast<unsigned>(a->bit_length()), bits)) return std::nullopt;
  return Prefix{*a, static_cast<int>(bits)};
}

bool Prefix::contains(const IpAddress& a) const {
  if (!a.is_valid() || a.is_v4() != address.is_v4() || !address.is_valid()) return false;
  Bytes x = address.bytes(), y = a.bytes();
  std::size_t whole = static_cast<std::size_t>(bits) / 8;
  if (std::memcmp(x.data(), y.data(), whole) != 0) return false;
  int rest = bits % 8;
  if (rest == 0) return true;
  std::uint8_t mask = static_cast<std::uint8_t>(0xff << (8 - rest));
  return (x[whole] & mask) == (y[whole] & mask);
}

bool Prefix::is_canonical() const {
  Bytes x = address.bytes();
  for (int i = bits; i < address.bit_length(); ++i)
    if (x[static_cast<std::size_t>(i) / 8] & (0x80 >> (i % 8))) return false;
  return true;
}

std::string Prefix::to_string() const { return address.to_string() + "/" + std::to_string(bits); }

std::size_t hash_bytes(Bytes bytes) {
  std::uint64_t h = 0x9e3779b97f4a7c15ull ^ bytes.size();
  for (std::uint8_t b : bytes) h = (h ^ b) * 0x100000001b3ull;
  h ^= h >> 32;
  h *= 0xd6e8feb86659fd93ull;
  h ^= h >> 32;
  return static_cast<std::size_t>(h);
}

}  // namespace porthole
