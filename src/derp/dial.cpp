#include "derp/dial.h"

#include "base/bytes.h"
#include "derp/spec_constants.h"

namespace porthole::derp {
namespace {

// What a node's address field allows (relay map): a literal of the family, DNS, or nothing.
struct Family {
  std::optional<IpAddress> literal;
  bool off = false;
};
Family family_of(std::string_view field, bool v4) {
  if (field.empty()) return {};
  auto address = IpAddress::parse(field);
  if (address && address->is_v4() == v4) return {address, false};
  return {std::nullopt, true};
}

}  // namespace

std::optional<OpenStream> relay_stream(const ts2021::RelayNode& node, bool all_plain) {
  bool plain_http = all_plain || node.plain_http;
  if (node.stun_only || node.host_name.empty()) return std::nullopt;
  OpenStream open;
  open.host = node.host_name;
  std::uint16_t standard_port = plain_http ? kDefaultPlainPort : kDefaultPort;
  if (node.derp_port < 0 || node.derp_port > 65535) return std::nullopt;
  open.port = node.derp_port == 0 ? standard_port : static_cast<std::uint16_t>(node.derp_port);

  Family v4 = family_of(node.ipv4, true), v6 = family_of(node.ipv6, false);
  if (auto literal = IpAddress::parse(node.host_name)) {
    Family& own = literal->is_v4() ? v4 : v6;
    if (own.off) return std::nullopt;
    open.addresses.push_back(own.literal ? *own.literal : *literal);
  } else {
    if (v4.off && v6.off) return std::nullopt;
    for (const Family& f : {v4, v6})
      if (f.literal) open.addresses.push_back(*f.literal);
  }

  constexpr std::string_view kPinPrefix = "sha256-raw:";
  std::string_view cert = node.cert_name;
  if (plain_http) {
    open.tls = TlsMode::kPlain;
  } else if (cert.starts_with(kPinPrefix)) {
    open.tls = TlsMode::kPinned;
    open.pin.resize(32);
    if (!from_hex_exact(cert.substr(kPinPrefix.size()), open.pin)) return std::nullopt;
  } else if (!cert.empty() && cert != node.host_name) {
    open.tls = TlsMode::kVerify;
    open.certificate_name = cert;
  } else {
    open.tls = node.insecure_for_tests ? TlsMode::kInsecure : TlsMode::kVerify;
  }
  return open;
}

std::string host_header(const OpenStream& stream) {
  bool bracket = stream.host.find(':') != std::string::npos;
  std::string header = bracket ? "[" + stream.host + "]" : stream.host;
  if (stream.port != (stream.tls == TlsMode::kPlain ? 80 : kDefaultPort)) header += ":" + std::to_string(stream.port);
  return header;
}

}  // namespace porthole::derp
