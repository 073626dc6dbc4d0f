#include "remote/public_url.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <charconv>

#include "support/support.h"

namespace porthole::remote {
namespace {

// The source address that the kernel would use towards the Internet; no packet is sent.
std::optional<IpAddress> outbound_address() {
  int fd = ::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return std::nullopt;
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(9);
  to.sin_addr.s_addr = htonl(0xc0000201);  // 192.0.2.1, documentation range
  std::optional<IpAddress> out;
  sockaddr_in from{};
  socklen_t size = sizeof from;
  if (::connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to) == 0 &&
      ::getsockname(fd, reinterpret_cast<sockaddr*>(&from), &size) == 0)
    out = IpAddress::v4(ntohl(from.sin_addr.s_addr));
  ::close(fd);
  return out;
}

}  // namespace

PublicUrl PublicUrl::parse(const std::string& text, std::string_view option) {
  auto bad = [&](const std::string& why) { return app::CommandError(std::string(option) + " " + text + ": " + why, 2); };
  PublicUrl url;
  std::string_view rest = text;
  if (rest.starts_with("https://")) {
    url.tls = true;
    rest.remove_prefix(8);
  } else if (rest.starts_with("http://")) {
    rest.remove_prefix(7);
  } else {
    throw bad("it must begin with https:// or http://");
  }
  if (rest.ends_with('/')) rest.remove_suffix(1);
  if (rest.find_first_of("/?#@ ") != std::string_view::npos) throw bad("only scheme, host and port are possible");
  url.port = url.tls ? 443 : 80;
  std::string_view host = rest, port;
  if (rest.starts_with('[')) {
    std::size_t end = rest.find(']');
    if (end == std::string_view::npos) throw bad("the bracket is not closed");
    host = rest.substr(1, end - 1);
    port = rest.substr(end + 1);
    if (!port.empty() && port.front() != ':') throw bad("what follows the bracket is not a port");
  } else if (std::size_t colon = rest.rfind(':'); colon != std::string_view::npos) {
    host = rest.substr(0, colon);
    port = rest.substr(colon);
  }
  if (host.empty()) throw bad("there is no host");
  if (!port.empty()) {
    port.remove_prefix(1);
    auto [end, problem] = std::from_chars(port.data(), port.data() + port.size(), url.port);
    if (problem != std::errc() || end != port.data() + port.size() || url.port == 0) throw bad("the port is not a number");
  }
  url.host = host;
  return url;
}

PublicUrl PublicUrl::from_listen(const Endpoint& listen, bool tls) {
  IpAddress address = listen.address;
  if (address.is_unspecified()) address = outbound_address().value_or(IpAddress::v4(127, 0, 0, 1));
  return {tls, address.to_string(), listen.port};
}

std::string PublicUrl::text() const {
  std::string out = tls ? "https://" : "http://";
  bool literal_v6 = host.find(':') != std::string::npos;
  out += literal_v6 ? "[" + host + "]" : host;
  if (port != (tls ? 443 : 80)) out += ":" + std::to_string(port);
  return out;
}

ts2021::RelayMap own_relay_map(const PublicUrl& url, std::uint16_t stun_port) {
  ts2021::RelayNode node;
  node.name = std::to_string(kOwnRegion) + "a";
  node.region_id = kOwnRegion;
  node.host_name = url.host;
  if (auto literal = IpAddress::parse(url.host)) (literal->is_v4() ? node.ipv4 : node.ipv6) = url.host;
  node.stun_port = stun_port == 0 ? -1 : stun_port;
  node.derp_port = url.port;
  if (!url.tls) {
    node.plain_http = true;
    node.insecure_for_tests = true;
  }
  ts2021::RelayRegion region;
  region.region_id = kOwnRegion;
  region.region_code = "porthole";
  region.region_name = "Porthole";
  region.nodes.push_back(std::move(node));
  ts2021::RelayMap map;
  map.regions[kOwnRegion] = std::move(region);
  map.omit_default_regions = true;
  return map;
}

}  // namespace porthole::remote
