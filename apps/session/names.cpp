#include "session/names.h"

#include <unistd.h>

#include <charconv>

#include "support/support.h"

namespace porthole::session {
namespace {

constexpr std::size_t kDnsLabelMax = 63;  // RFC 1035 section 2.3.4

using app::CommandError;

// Length of the UTF-8 character at the front, 0 when the bytes there are none (RFC 3629 section 4).
std::size_t utf8_length(std::string_view s) {
  auto byte = [&](std::size_t i) { return i < s.size() ? static_cast<unsigned char>(s[i]) : 0u; };
  auto tail = [&](std::size_t i, unsigned low = 0x80, unsigned high = 0xbf) { return byte(i) >= low && byte(i) <= high; };
  unsigned first = byte(0);
  if (first < 0x80) return 1;
  if (first >= 0xc2 && first <= 0xdf) return tail(1) ? 2 : 0;
  if (first >= 0xe0 && first <= 0xef) {
    unsigned low = first == 0xe0 ? 0xa0 : 0x80;
    unsigned high = first == 0xed ? 0x9f : 0xbf;
    return tail(1, low, high) && tail(2) ? 3 : 0;
  }
  if (first >= 0xf0 && first <= 0xf4) {
    unsigned low = first == 0xf0 ? 0x90 : 0x80;
    unsigned high = first == 0xf4 ? 0x8f : 0xbf;
    return tail(1, low, high) && tail(2) && tail(3) ? 4 : 0;
  }
  return 0;
}

std::uint16_t parse_port(std::string_view text, std::string_view whole) {
  unsigned port = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
  if (text.empty() || error != std::errc{} || end != text.data() + text.size() || port > 65535)
    throw CommandError("\"" + std::string(whole) + "\" has no usable port (1 to 65535)");
  return static_cast<std::uint16_t>(port);
}

// Splits at the port; nullopt-like empty second part when there is none.
HostPort split(std::string_view text, std::string_view whole, int default_port) {
  HostPort out;
  std::string_view port;
  bool has_port = false;
  if (text.starts_with('[')) {
    std::size_t end = text.find(']');
    if (end == std::string_view::npos) throw CommandError("\"" + std::string(whole) + "\" lacks the closing bracket");
    out.host = text.substr(1, end - 1);
    std::string_view rest = text.substr(end + 1);
    if (!rest.empty()) {
      if (!rest.starts_with(':')) throw CommandError("\"" + std::string(whole) + "\" is not an address");
      port = rest.substr(1);
      has_port = true;
    }
  } else if (std::size_t colon = text.rfind(':'); colon != std::string_view::npos) {
    if (text.find(':') != colon)
      throw CommandError("write an IPv6 address in brackets: [" + std::string(text) + "]");
    out.host = text.substr(0, colon);
    port = text.substr(colon + 1);
    has_port = true;
  } else {
    out.host = text;
  }
  if (out.host.empty() || out.host.size() > 255 || out.host.find_first_of(" \t\r\n@\\\"<>") != std::string::npos)
    throw CommandError("\"" + std::string(whole) + "\" has no usable host name");
  if (has_port) {
    out.port = parse_port(port, whole);
  } else if (default_port >= 0) {
    out.port = static_cast<std::uint16_t>(default_port);
  } else {
    throw CommandError("\"" + std::string(whole) + "\" needs a port: ADDRESS:PORT");
  }
  return out;
}

}  // namespace

std::string tailnet_hostname(std::string_view name, std::string_view fallback) {
  std::string out;
  while (!name.empty() && out.size() <= kDnsLabelMax) {
    std::size_t length = utf8_length(name);
    char c = name[0];
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    bool kept = length == 1 && ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'));
    if (kept) {
      out += c;
    } else if (!out.empty() && out.back() != '-') {
      out += '-';
    }
    name.remove_prefix(length == 0 ? 1 : length);
  }
  if (out.size() > kDnsLabelMax) out.resize(kDnsLabelMax);
  while (!out.empty() && out.back() == '-') out.pop_back();
  return out.empty() ? std::string(fallback) : out;
}

std::string machine_name() {
  char name[256] = "";
  if (::gethostname(name, sizeof name - 1) != 0 || name[0] == '\0') return "this device";
  return clean_text(name, 64);
}

std::string clean_text(std::string_view text, std::size_t size_max) {
  std::string out;
  while (!text.empty()) {
    std::size_t length = utf8_length(text);
    bool printable = length > 1 || (length == 1 && static_cast<unsigned char>(text[0]) >= 0x20 && text[0] != 0x7f);
    std::size_t taken = printable ? length : 1;
    if (out.size() + taken > size_max) break;
    if (printable)
      out.append(text.substr(0, length));
    else
      out += '?';
    text.remove_prefix(taken);
  }
  return out;
}

HostPort parse_server_url(std::string_view url, std::uint16_t default_port) {
  std::string_view rest = url;
  if (std::size_t scheme = rest.find("://"); scheme != std::string_view::npos) {
    std::string_view name = rest.substr(0, scheme);
    if (name != "wss" && name != "https" && name != "porthole")
      throw CommandError("\"" + std::string(url) + "\": the address of a server starts with wss:// (or is just HOST:PORT)");
    rest.remove_prefix(scheme + 3);
  }
  if (std::size_t slash = rest.find_first_of("/?#"); slash != std::string_view::npos) rest = rest.substr(0, slash);
  HostPort out = split(rest, url, default_port);
  if (out.port == 0) throw CommandError("\"" + std::string(url) + "\" has no usable port (1 to 65535)");
  return out;
}

HostPort parse_listen_address(std::string_view text) { return split(text, text, -1); }

std::string join_host_port(std::string_view host, std::uint16_t port) {
  bool brackets = host.find(':') != std::string_view::npos;
  return (brackets ? "[" + std::string(host) + "]" : std::string(host)) + ":" + std::to_string(port);
}

}  // namespace porthole::session
