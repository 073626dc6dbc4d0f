// Names as people write them, and as networks want them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace porthole::session {

// Device name -> tailnet hostname (C11): lower case, every character (not byte) outside a-z 0-9 - becomes -, runs of -
// collapse, - trimmed at both ends, at most 63 characters; nothing left: `fallback`.
std::string tailnet_hostname(std::string_view device_name, std::string_view fallback = "porthole-device");

// This machine's own name, or "this device".
std::string machine_name();

// The longest prefix of `text` of at most `size_max` bytes that ends at a UTF-8 character; control characters and
// invalid bytes become '?' so that the text is safe to print and valid in a protobuf string.
std::string clean_text(std::string_view text, std::size_t size_max);

struct HostPort {
  std::string host;
  std::uint16_t port = 0;
};
// "192.168.1.4:8443", "[::1]:8443", "home.lan", "wss://home.lan:8443/...": CommandError with a sentence when it is
// none of these. `default_port` where none is given.
HostPort parse_server_url(std::string_view url, std::uint16_t default_port);
// "ADDR:PORT" of a listener; CommandError otherwise. Port 0 is allowed.
HostPort parse_listen_address(std::string_view text);
// "[::1]:8443" or "host:8443".
std::string join_host_port(std::string_view host, std::uint16_t port);

}  // namespace porthole::session
