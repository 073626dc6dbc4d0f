#include "proxy/proxy_machine.h"

#include <algorithm>

namespace porthole::proxy {

namespace socks = wire::socks5;

std::string Connect::to_string() const {
  if (const IpAddress* address = std::get_if<IpAddress>(&host)) return Endpoint{*address, port}.to_string();
  return std::get<std::string>(host) + ":" + std::to_string(port);
}

ConnectFailure connect_failure(ErrorCode code) {
  switch (code) {
    case ErrorCode::kRefused:
    case ErrorCode::kReset: return ConnectFailure::kRefused;
    case ErrorCode::kNotFound: return ConnectFailure::kUnknownHost;
    case ErrorCode::kUnavailable: return ConnectFailure::kUnreachable;
    case ErrorCode::kTimeout: return ConnectFailure::kTimeout;
    case ErrorCode::kPermission:
    case ErrorCode::kUnauthorized: return ConnectFailure::kNotAllowed;
    default: return ConnectFailure::kGeneral;
  }
}

std::optional<ProxyEvent> ProxyHandshake::poll_event() {
  std::optional<ProxyEvent> event = std::move(event_);
  event_.reset();
  return event;
}

bool ProxyHandshake::credential_matches(std::string_view user, Bytes password) const {
  if (!config_.credential) return true;
  // Both are always compared, so that the time does not tell which one was wrong.
  bool user_fits = crypto::equal_secret(as_bytes(user), as_bytes(config_.credential->user));
  bool password_fits = crypto::equal_secret(password, as_bytes(config_.credential->password.reveal()));
  return user_fits & password_fits;
}

// ---- SOCKS5 -----------------------------------------------------------------------------------------------------

std::size_t Socks5Machine::consume(Bytes in) {
  std::size_t taken = 0;
  while (state_ == ProxyState::kHandshake && taken < in.size()) {
    std::size_t size_max = step_ == Step::kGreeting ? socks::kGreetingSizeMax : step_ == Step::kLogin ? socks::kLoginSizeMax : socks::kRequestSizeMax;
    std::size_t before = buffer_.size();
    std::size_t offered = std::min(in.size() - taken, size_max - before);
    append(buffer_, in.subspan(taken, offered));
    std::size_t size = 0;
    socks::Parsed parsed = step_ == Step::kGreeting ? handle_greeting(buffer_, size)
                           : step_ == Step::kLogin  ? handle_login(buffer_, size)
                                                    : handle_request(buffer_, size);
    if (parsed == socks::Parsed::kMore) {
      taken += offered;
      continue;
    }
    crypto::wipe(buffer_);
    buffer_.clear();
    if (parsed != socks::Parsed::kDone) break;
    taken += size - before;
  }
  return state_ == ProxyState::kClosing ? in.size() : taken;
}

socks::Parsed Socks5Machine::handle_greeting(Bytes in, std::size_t& size) {
  socks::Greeting greeting;
  socks::Parsed parsed = socks::parse_greeting(in, greeting, size);
  if (parsed == socks::Parsed::kBad) state_ = ProxyState::kClosing;
  if (parsed != socks::Parsed::kDone) return parsed;
  // Other methods offered besides are ignored; without a credential the method without one will do.
  if (!config_.credential && greeting.offers(socks::Method::kNone)) {
    socks::encode_method(out_.end(), socks::Method::kNone);
    step_ = Step::kRequest;
  } else if (greeting.offers(socks::Method::kPassword)) {
    socks::encode_method(out_.end(), socks::Method::kPassword);
    step_ = Step::kLogin;
  } else {
    socks::encode_method(out_.end(), socks::Method::kNoneAcceptable);
    state_ = ProxyState::kClosing;
  }
  return parsed;
}

socks::Parsed Socks5Machine::handle_login(Bytes in, std::size_t& size) {
  socks::Login login;
  socks::Parsed parsed = socks::parse_login(in, login, size);
  if (parsed == socks::Parsed::kBad) state_ = ProxyState::kClosing;
  if (parsed != socks::Parsed::kDone) return parsed;
  bool accepted = credential_matches(login.user, login.password);
  socks::encode_login_result(out_.end(), accepted);
  if (accepted) step_ = Step::kRequest;
  else state_ = ProxyState::kClosing;
  return parsed;
}

socks::Parsed Socks5Machine::handle_request(Bytes in, std::size_t& size) {
  socks::Request request;
  socks::Parsed parsed = socks::parse_request(in, request, size);
  if (parsed == socks::Parsed::kBad) refuse(socks::Reply::kGeneralFailure);
  if (parsed == socks::Parsed::kBadAddressType) refuse(socks::Reply::kAddressTypeNotSupported);
  if (parsed != socks::Parsed::kDone) return parsed;
  if (request.command == static_cast<std::uint8_t>(socks::Command::kUdpAssociate)) {
    ask(Associate{});
    return parsed;
  }
  if (request.command != static_cast<std::uint8_t>(socks::Command::kConnect)) {
    refuse(socks::Reply::kCommandNotSupported);
    return parsed;
  }
  Connect connect;
  connect.port = request.port;
  if (const IpAddress* address = std::get_if<IpAddress>(&request.host)) connect.host = *address;
  else connect.host = std::string(std::get<std::string_view>(request.host));
  ask(std::move(connect));
  return parsed;
}

void Socks5Machine::refuse(socks::Reply reply) {
  socks::encode_reply(out_.end(), reply, {});
  state_ = ProxyState::kClosing;
}

void Socks5Machine::connected(const Endpoint& local) {
  socks::encode_reply(out_.end(), socks::Reply::kSucceeded, local);
  state_ = ProxyState::kOpen;
}

void Socks5Machine::failed(ConnectFailure failure, std::string_view) {
  switch (failure) {
    case ConnectFailure::kGeneral: return refuse(socks::Reply::kGeneralFailure);
    case ConnectFailure::kNotAllowed: return refuse(socks::Reply::kNotAllowed);
    case ConnectFailure::kUnknownHost: return refuse(socks::Reply::kHostUnreachable);
    case ConnectFailure::kUnreachable: return refuse(socks::Reply::kNetworkUnreachable);
    case ConnectFailure::kRefused: return refuse(socks::Reply::kConnectionRefused);
    // 6 means an expired TTL and would be shown as such.
    case ConnectFailure::kTimeout: return refuse(socks::Reply::kHostUnreachable);
  }
}

// ---- HTTP -------------------------------------------------------------------------------------------------------

namespace {

wire::HttpLimits http_limits() {
  wire::HttpLimits limits;
  limits.head_size_max = kHttpHeadSizeMax;
  return limits;
}

// "host:port", "[v6]:port" (RFC 9112 section 3.2.3); with `default_port`, ":port" may be missing or be empty.
std::optional<Connect> parse_authority(std::string_view target, unsigned default_port = 0) {
  std::size_t colon = target.rfind(':');
  if (colon != std::string_view::npos && colon < target.rfind(']') && target.ends_with(']')) colon = std::string_view::npos;
  std::string_view host = target.substr(0, colon);
  std::string_view port = colon == std::string_view::npos ? std::string_view() : target.substr(colon + 1);
  if (host.empty() || port.size() > 5) return std::nullopt;
  unsigned number = 0;
  for (char c : port) {
    if (c < '0' || c > '9') return std::nullopt;
    number = number * 10 + static_cast<unsigned>(c - '0');
  }
  if (port.empty()) number = default_port;
  if (number == 0 || number > 65535) return std::nullopt;
  Connect connect;
  connect.port = static_cast<std::uint16_t>(number);
  bool bracketed = host.size() > 2 && host.front() == '[' && host.back() == ']';
  if (bracketed) host = host.substr(1, host.size() - 2);
  if (auto address = IpAddress::parse(host)) {
    if (address->is_v6() && !bracketed) return std::nullopt;
    connect.host = *address;
    return connect;
  }
  if (bracketed || host.size() > kNameSizeMax + 1 || host.find_first_of(":/@?#[]") != std::string_view::npos) return std::nullopt;
  if (!std::all_of(host.begin(), host.end(), [](char c) { return c > 0x20 && c < 0x7f; })) return std::nullopt;
  connect.host = std::string(host);
  return connect;
}

// Between the client and this proxy only (RFC 9110 section 7.6.1), or written anew.
bool stays_here(std::string_view name, const wire::HttpHeadParser& head) {
  for (std::string_view own : {"host", "connection", "proxy-connection", "proxy-authorization", "keep-alive", "te", "upgrade"})
    if (wire::equal_ignore_case(name, own)) return true;
  // Framing stays whatever the client calls it.
  if (wire::equal_ignore_case(name, "content-length") || wire::equal_ignore_case(name, "transfer-encoding")) return false;
  return head.header_has_token("connection", name);
}

constexpr std::string_view kHttpScheme = "http://";

}  // namespace

HttpProxyMachine::HttpProxyMachine(const ProxyConfig& config) : ProxyHandshake(config), head_(wire::HttpKind::kRequest, http_limits()) {}

std::size_t HttpProxyMachine::consume(Bytes in) {
  if (state_ != ProxyState::kHandshake) return state_ == ProxyState::kClosing ? in.size() : 0;
  Result<std::size_t> taken = head_.consume(in);
  if (!taken) {
    bool too_big = taken.error().code == ErrorCode::kLimit;
    refuse(too_big ? 431 : 400, too_big ? "Request Header Fields Too Large" : "Bad Request", taken.error().message);
    return in.size();
  }
  if (config_.hand_over_http) append(raw_, in.first(*taken));
  if (head_.done()) handle_head();
  return *taken;
}

// SOCKS4 or TLS would make the HTTP parser wait for a line end that never comes.
void HttpProxyMachine::check_first_byte(std::uint8_t c) {
  if ((c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z')) return;
  refuse(400, "Bad Request", "This port speaks SOCKS5 and HTTP, not SOCKS4 and not TLS.");
}

void HttpProxyMachine::handle_head() {
  tunnel_ = head_.method() == "CONNECT";
  if (!tunnel_ && config_.hand_over_http && head_.target().starts_with('/')) {
    ask(PlainHttp{std::move(raw_)});
    state_ = ProxyState::kOpen;
    return;
  }
  if (!authorized()) {
    wire::HttpHeader challenge[] = {{"Proxy-Authenticate", "Basic realm=\"porthole\""}};
    refuse(407, "Proxy Authentication Required",
           head_.header("proxy-authorization") ? "The proxy's user name or password is wrong; both change with every start of the node."
                                               : "This proxy needs the user name and password that the node gave out at its start.",
           challenge);
    return;
  }
  tunnel_ ? handle_connect() : handle_plain();
}

void HttpProxyMachine::handle_connect() {
  auto connect = parse_authority(head_.target());
  if (!connect) return refuse(400, "Bad Request", "CONNECT needs a target in the form host:port.");
  if (head_.body() != wire::HttpBody::kNone && head_.content_length() != 0)
    return refuse(400, "Bad Request", "A CONNECT request has no body.");
  ask(std::move(*connect));
}

void HttpProxyMachine::handle_plain() {
  std::string_view target = head_.target();
  if (target.size() <= kHttpScheme.size() || !wire::equal_ignore_case(target.substr(0, kHttpScheme.size()), kHttpScheme))
    return refuse(400, "Bad Request", "This is a proxy: it wants a whole http:// URL, or CONNECT host:port for everything else.");
  target.remove_prefix(kHttpScheme.size());
  std::string_view authority = target.substr(0, target.find_first_of("/?#"));
  std::string path(target.substr(authority.size()));
  path.resize(std::min(path.size(), path.find('#')));
  if (!path.starts_with('/')) path.insert(0, "/");
  if (path == "/" && authority.size() == target.size() && head_.method() == "OPTIONS") path = "*";
  auto connect = parse_authority(authority, 80);
  if (!connect) return refuse(400, "Bad Request", "The URL's host or port cannot be understood; user names do not belong there.");
  // One request is one connection, unless it turns into another protocol.
  bool upgrade = head_.header_has_token("connection", "upgrade") && head_.header("upgrade");
  std::vector<wire::HttpHeader> headers = {{"Host", authority}, {"Connection", upgrade ? "Upgrade" : "close"}};
  if (upgrade) headers.push_back({"Upgrade", *head_.header("upgrade")});
  for (std::size_t i = 0; i < head_.header_count(); ++i)
    if (wire::HttpHeader h = head_.header_at(i); !stays_here(h.name, head_)) headers.push_back(h);
  if (Status s = wire::encode_http_request_head(connect->first, head_.method(), path, headers); !s)
    return refuse(400, "Bad Request", s.error().message);
  ask(std::move(*connect));
}

bool HttpProxyMachine::authorized() const {
  if (!config_.credential) return true;
  constexpr std::string_view kScheme = "basic ";
  std::string_view value = head_.header("proxy-authorization").value_or("");
  if (value.size() < kScheme.size() || !wire::equal_ignore_case(value.substr(0, kScheme.size()), kScheme)) return false;
  value.remove_prefix(kScheme.size());
  while (value.starts_with(' ')) value.remove_prefix(1);
  auto decoded = from_base64(value);
  if (!decoded) return false;
  std::size_t colon = as_text(*decoded).find(':');
  bool fits = colon != std::string_view::npos && credential_matches(as_text(Bytes(*decoded).first(colon)), Bytes(*decoded).subspan(colon + 1));
  crypto::wipe(*decoded);
  return fits;
}

void HttpProxyMachine::refuse(int status, std::string_view reason, std::string_view sentence, std::span<const wire::HttpHeader> headers) {
  append(out_.end(), wire::http_text_response(status, reason, std::string(sentence) + "\n", headers));
  state_ = ProxyState::kClosing;
}

void HttpProxyMachine::connected(const Endpoint&) {
  if (tunnel_) append(out_.end(), as_bytes("HTTP/1.1 200 Connection established\r\n\r\n"));
  state_ = ProxyState::kOpen;
}

void HttpProxyMachine::failed(ConnectFailure failure, std::string_view sentence) {
  switch (failure) {
    case ConnectFailure::kNotAllowed: return refuse(403, "Forbidden", sentence);
    case ConnectFailure::kTimeout: return refuse(504, "Gateway Timeout", sentence);
    case ConnectFailure::kUnreachable: return refuse(503, "Service Unavailable", sentence);
    default: return refuse(502, "Bad Gateway", sentence);
  }
}

void HttpProxyMachine::timed_out() { refuse(408, "Request Timeout", "The request did not come in time."); }

// ---- both -------------------------------------------------------------------------------------------------------

const ProxyHandshake* ProxyMachine::handshake() const {
  if (const auto* s = std::get_if<Socks5Machine>(&machine_)) return s;
  return std::get_if<HttpProxyMachine>(&machine_);
}
ProxyHandshake* ProxyMachine::handshake() { return const_cast<ProxyHandshake*>(std::as_const(*this).handshake()); }

std::size_t ProxyMachine::consume(Bytes in) {
  if (in.empty()) return 0;
  if (gave_up_) return in.size();
  if (std::holds_alternative<std::monostate>(machine_)) {
    if (in[0] == socks::kVersion) machine_.emplace<Socks5Machine>(config_);
    else machine_.emplace<HttpProxyMachine>(config_).check_first_byte(in[0]);
  }
  if (auto* s = std::get_if<Socks5Machine>(&machine_)) return s->consume(in);
  return std::get<HttpProxyMachine>(machine_).consume(in);
}

std::size_t ProxyMachine::produce(MutBytes out) {
  ProxyHandshake* h = handshake();
  if (!h) return 0;
  return h->out_.take(out);
}

bool ProxyMachine::has_output() const {
  const ProxyHandshake* h = handshake();
  return h && !h->out_.empty();
}

std::optional<ProxyEvent> ProxyMachine::poll_event() {
  ProxyHandshake* h = handshake();
  return h ? h->poll_event() : std::nullopt;
}

ProxyState ProxyMachine::state() const {
  const ProxyHandshake* h = handshake();
  if (gave_up_) return ProxyState::kClosing;
  return h ? h->state() : ProxyState::kHandshake;
}

void ProxyMachine::connected(const Endpoint& local) {
  if (state() != ProxyState::kConnecting) return;
  if (auto* s = std::get_if<Socks5Machine>(&machine_)) s->connected(local);
  else std::get<HttpProxyMachine>(machine_).connected(local);
}

void ProxyMachine::failed(ConnectFailure failure, std::string_view sentence) {
  if (state() != ProxyState::kConnecting) return;
  if (auto* s = std::get_if<Socks5Machine>(&machine_)) s->failed(failure, sentence);
  else std::get<HttpProxyMachine>(machine_).failed(failure, sentence);
}

void ProxyMachine::handle_timeout(Instant now) {
  if (gave_up_ || now < deadline_ || state() != ProxyState::kHandshake) return;
  if (auto* h = std::get_if<HttpProxyMachine>(&machine_)) h->timed_out();
  else if (auto* s = std::get_if<Socks5Machine>(&machine_)) s->timed_out();
  else gave_up_ = true;
}

Deadline ProxyMachine::next_timeout() const {
  return state() == ProxyState::kHandshake ? Deadline::at(deadline_) : Deadline::never();
}

}  // namespace porthole::proxy
