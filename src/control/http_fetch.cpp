#include "control/http_fetch.h"

#include <algorithm>
#include <charconv>

#include "control/limits.h"
#include "ts2021/json.h"
#include "ts2021/limits.h"

namespace porthole::control {
namespace {

bool looks_like_html(std::string_view body, std::optional<std::string_view> content_type) {
  if (content_type && content_type->starts_with("text/html")) return true;
  const std::size_t at = body.find_first_not_of(" \t\r\n\xef\xbb\xbf");
  return at != std::string_view::npos && body[at] == '<';
}

wire::HttpLimits key_limits() {
  wire::HttpLimits limits;
  limits.body_size_max = ts2021::kKeyAnswerSizeMax;
  return limits;
}

}  // namespace

std::string printable_line(std::string_view text) {
  std::string out;
  for (char c : text.substr(0, kErrorTextSizeMax)) {
    if (c == '\n' && !out.empty()) break;
    const auto u = static_cast<unsigned char>(c);
    if (u >= 0x20 && u < 0x7f) out += c;
    else if (!out.empty() && out.back() != ' ') out += ' ';
  }
  while (!out.empty() && out.back() == ' ') out.pop_back();
  return out;
}

std::string_view FirstBytes::guess() const {
  // TLS record header: alert or handshake, version 3.x (RFC 8446 section 5.1).
  if (bytes_.size() >= 2 && (bytes_[0] == 0x15 || bytes_[0] == 0x16) && bytes_[1] == 0x03) {
    return "it speaks TLS on this port: use https:// in the control URL";
  }
  if (as_text(bytes_).starts_with("SSH-")) return "an SSH server answers on this port";
  return {};
}

Result<ControlUrl> ControlUrl::parse(std::string_view text) {
  const Error invalid{ErrorCode::kInvalid,
                      "it must look like https://control.example.com or http://host:port"};
  ControlUrl url;
  auto scheme = [&](std::string_view name) {   // RFC 3986 3.1: in any case
    const bool is = text.size() >= name.size() && std::equal(name.begin(), name.end(), text.begin(), [](char n, char c) {
                      return n == (c >= 'A' && c <= 'Z' ? static_cast<char>(c + ('a' - 'A')) : c);
                    });
    if (is) text.remove_prefix(name.size());
    return is;
  };
  if (!scheme("https://")) {
    if (!scheme("http://")) return invalid;
    url.tls = false;
  }
  if (text.ends_with('/')) text.remove_suffix(1);
  std::string_view host = text, port;
  if (text.starts_with('[')) {
    const std::size_t end = text.find(']');
    if (end == std::string_view::npos) return invalid;
    host = text.substr(1, end - 1);
    if (!IpAddress::parse(host)) return invalid;
    std::string_view rest = text.substr(end + 1);
    if (!rest.empty() && !rest.starts_with(':')) return invalid;
    if (!rest.empty()) port = rest.substr(1);
    if (!rest.empty() && port.empty()) return invalid;
  } else if (const std::size_t colon = text.find(':'); colon != std::string_view::npos) {
    host = text.substr(0, colon);
    port = text.substr(colon + 1);
    if (port.empty()) return invalid;
  }
  const bool host_ok = !host.empty() && host.size() <= 253 && std::all_of(host.begin(), host.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '-' ||
           c == '_' || c == ':';
  });
  if (!host_ok) return invalid;
  const std::uint16_t scheme_port = url.tls ? 443 : 80;
  url.port = scheme_port;
  if (!port.empty()) {
    auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), url.port);
    if (error != std::errc() || end != port.data() + port.size() || url.port == 0) return invalid;
  }
  url.host = host;
  url.authority = text.starts_with('[') ? "[" + url.host + "]" : url.host;
  if (url.port != scheme_port) url.authority += ":" + std::to_string(url.port);
  return url;
}

OpenStream ControlUrl::open(StreamId id) const {
  OpenStream action;
  action.id = id;
  action.host = host;
  action.port = port;
  if (auto literal = IpAddress::parse(host)) action.addresses.push_back(*literal);
  action.tls = tls ? TlsMode::kVerify : TlsMode::kPlain;
  action.purpose = "control";
  return action;
}

HttpFetch::HttpFetch(StreamId id, std::string_view method, std::string_view target, std::string_view authority)
    : id_(id), parser_(wire::HttpKind::kResponse, key_limits(), method == "HEAD") {
  const wire::HttpHeader headers[] = {
      {"Host", authority}, {"User-Agent", "porthole"}, {"Accept", "application/json"}, {"Connection", "close"}};
  const Status encoded = wire::encode_http_request_head(request_, method, target, headers);
  PORTHOLE_ASSERT(encoded.ok());  // method and target are ours, the authority was checked when the URL was parsed
}

Result<bool> HttpFetch::consume(Bytes bytes) {
  if (parser_.done()) return true;
  first_bytes_.take(bytes);
  if (!first_bytes_.guess().empty()) return Error{ErrorCode::kProtocol, std::string(first_bytes_.guess())};
  auto taken = parser_.consume(bytes);
  if (!taken.ok()) return taken.error();
  return parser_.done();
}

Result<bool> HttpFetch::closed() {
  if (parser_.done()) return true;
  if (first_bytes_.empty()) return Error{ErrorCode::kReset, "it closed the connection without an answer"};
  Status end = parser_.end_of_stream();
  if (!end.ok()) return end.error();
  return parser_.done();
}

std::size_t HttpFetch::produce(MutBytes out) {
  if (!has_output()) return 0;
  const std::size_t n = std::min(out.size(), request_.size() - sent_);
  std::copy_n(request_.begin() + static_cast<std::ptrdiff_t>(sent_), n, out.begin());
  sent_ += n;
  return n;
}

Result<MachinePublic> read_key_answer(const HttpFetch& fetch, const ControlUrl& url) {
  const int status = fetch.status();
  const std::string_view body = fetch.body();
  if (status >= 300 && status < 400) {
    const std::string location = printable_line(fetch.head().header("Location").value_or(""));
    return Error{ErrorCode::kProtocol, "it redirects to " + (location.empty() ? "another place" : location) +
                                           "; either set the control URL to that server, or this network wants a "
                                           "login first (captive portal)"};
  }
  if (looks_like_html(body, fetch.head().header("Content-Type"))) {
    if (status == 200) {
      return Error{ErrorCode::kProtocol,
                   "a web page came instead of the server's key: this network may want a login first (captive "
                   "portal), or " + url.to_string() + " is no control server"};
    }
    return Error{ErrorCode::kProtocol, "it answered " + std::to_string(status) + " with a web page; is " +
                                           url.to_string() + " a control server, and does its proxy pass /key?"};
  }
  if (status == 404) {
    return Error{ErrorCode::kNotFound, "it has no /key: " + url.to_string() + " is no control server"};
  }
  if (status != 200) {
    const std::string line = printable_line(body);
    if (url.tls == false && line.find("HTTPS server") != std::string::npos) {
      return Error{ErrorCode::kProtocol, "it speaks TLS on this port: use https:// in the control URL"};
    }
    const ErrorCode code = status >= 500 ? ErrorCode::kUnavailable : ErrorCode::kRefused;
    return Error{code, "it answered " + std::to_string(status) + (line.empty() ? "" : ": " + line)};
  }
  auto answer = ts2021::parse_key_answer(as_bytes(body));
  if (!answer.ok()) {
    return Error{ErrorCode::kProtocol, "its answer to /key is not understood: " + url.to_string() +
                                           " is no control server, or a very old one"};
  }
  if (answer->public_key.is_zero()) {
    return Error{ErrorCode::kUnsupported, "it has no Noise key: the control server is too old for this node"};
  }
  return answer->public_key;
}

}  // namespace porthole::control
