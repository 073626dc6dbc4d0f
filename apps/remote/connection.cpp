#include "remote/connection.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/sslerr.h>

#include "relay/http_front.h"
#include "remote/limits.h"
#include "support/support.h"
#include "ts2021/json.h"
#include "ts2021/spec_constants.h"
#include "ts2021/time_text.h"

namespace porthole::remote {

namespace asio = boost::asio;
using boost::system::error_code;

namespace {

constexpr std::string_view kHtml = "text/html; charset=utf-8";
constexpr std::string_view kPlainText = "text/plain; charset=utf-8";
constexpr std::string_view kRegisterPage = "/register/";
constexpr std::string_view kHealth = "/api/v1/health";

wire::HttpLimits request_limits() {
  wire::HttpLimits limits;
  limits.body_size_max = kApiBodyMax;
  return limits;
}

std::string_view reason_of(int status) {
  switch (status) {
    case 200: return "OK";
    case 201: return "Created";
    case 204: return "No Content";
    case 400: return "Bad Request";
    case 401: return "Unauthorized";
    case 403: return "Forbidden";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 409: return "Conflict";
    case 413: return "Content Too Large";
    case 426: return "Upgrade Required";
    case 429: return "Too Many Requests";
    case 431: return "Request Header Fields Too Large";
    case 503: return "Service Unavailable";
    case 507: return "Insufficient Storage";
    default: return "Internal Server Error";
  }
}

std::string escape_html(std::string_view text) {
  std::string out;
  for (char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      default: out += c;
    }
  }
  return out;
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

}  // namespace

Connection::Connection(Server& server, Tcp socket, const Endpoint& remote)
    : server_(server),
      stream_(server.options_.tls ? std::variant<Tcp, Tls>(std::in_place_type<Tls>, std::move(socket), *server.options_.tls)
                                  : std::variant<Tcp, Tls>(std::in_place_type<Tcp>, std::move(socket))),
      remote_(remote),
      client_(remote.address),
      parser_(wire::HttpKind::kRequest, request_limits()) {}

Connection::Tcp& Connection::socket() {
  if (auto* tls = std::get_if<Tls>(&stream_)) return tls->next_layer();
  return std::get<Tcp>(stream_);
}

void Connection::start() {
  deadline_ = read_clock().now + kRequestTimeout;
  error_code ignored;
  socket().set_option(asio::ip::tcp::no_delay(true), ignored);
  socket().non_blocking(true, ignored);
  if (auto* tls = std::get_if<Tls>(&stream_)) {
    tls->async_handshake(asio::ssl::stream_base::server, [self = shared_from_this()](error_code e) {
      if (e) return self->refuse_handshake(e);
      self->read();
    });
    return;
  }
  read();
}

void Connection::refuse_handshake(const error_code& e) {
  bool http = e.category() == asio::error::get_ssl_category() && ERR_GET_REASON(static_cast<unsigned long>(e.value())) == SSL_R_HTTP_REQUEST;
  if (http) {
    // The words that clients of other servers know, too.
    static constexpr std::string_view kAnswer =
        "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
        "Client sent an HTTP request to an HTTPS server.\n";
    error_code ignored;
    socket().write_some(asio::buffer(kAnswer), ignored);
  }
  close();
}

void Connection::close() {
  if (phase_ == Phase::kClosed) return;
  auto keep = shared_from_this();
  phase_ = Phase::kClosed;
  error_code ignored;
  socket().shutdown(Tcp::shutdown_both, ignored);
  socket().close(ignored);
  Clock clock = read_clock();
  if (session_ != 0) {
    server_.by_session_.erase(session_);
    server_.coordinator_->close(clock, session_);
    session_ = 0;
  }
  if (relay_id_ != 0) {
    server_.by_relay_.erase(relay_id_);
    server_.relay_->on_close(clock.now, relay_id_);
    relay_id_ = 0;
  }
  if (auto it = server_.per_address_.find(remote_.address); it != server_.per_address_.end() && --it->second == 0)
    server_.per_address_.erase(it);
  server_.connections_.erase(this);
}

void Connection::read() {
  if (reading_ || asking_ || full() || phase_ == Phase::kClosed || phase_ == Phase::kClosing) return;
  reading_ = true;
  auto done = [self = shared_from_this()](error_code e) {
    self->reading_ = false;
    if (e) self->close();
    self->read();
    self->server_.settle();
  };
  if (auto* tls = std::get_if<Tls>(&stream_)) {
    in_.resize(phase_ == Phase::kRelay ? kReadSize : kReadSize / 4);
    tls->async_read_some(asio::buffer(in_), [this, done](error_code e, std::size_t n) {
      if (!e) handle_bytes(MutBytes(in_).first(n));
      done(e);
    });
    return;
  }
  // Without TLS no buffer waits with the connection: it is told that there is something, and reads into a shared one.
  socket().async_wait(Tcp::wait_read, [this, done](error_code e) {
    if (!e && phase_ != Phase::kClosed) {
      std::size_t n = socket().read_some(asio::buffer(server_.read_buffer_), e);
      if (e == asio::error::would_block) e.clear();
      else if (!e) handle_bytes(MutBytes(server_.read_buffer_).first(n));
    }
    done(e);
  });
}

void Connection::go_on() {
  if (phase_ == Phase::kHttp && !asking_ && !full()) {
    ByteVector behind = std::exchange(behind_, {});
    if (!behind.empty()) handle_bytes(behind);
  }
  read();
}

void Connection::handle_bytes(MutBytes bytes) {
  Clock clock = read_clock();
  while (!bytes.empty() && phase_ == Phase::kHttp) {
    auto taken = parser_.consume(bytes);
    if (!taken) {
      bool size = taken.error().code == ErrorCode::kLimit;
      close_when_sent_ = true;
      ApiAnswer what = problem(!size ? 400 : parser_.head_done() ? 413 : 431, taken.error().message);
      answer(what.status, what.content_type, what.body, what.headers);
      return;
    }
    bytes = bytes.subspan(*taken);
    if (!parser_.done()) {
      if (*taken == 0) break;
      continue;
    }
    in_request_ = true;
    handle_request(bytes);
    in_request_ = false;
    if (phase_ != Phase::kHttp) return;  // upgraded, and `bytes` passed on; or closing
    if (!asking_) next_request();
    if (asking_ || full()) {
      behind_.assign(bytes.begin(), bytes.end());
      return;
    }
  }
  if (phase_ == Phase::kControl) server_.coordinator_->consume(clock, session_, bytes);
  else if (phase_ == Phase::kRelay) server_.relay_->consume(clock.now, relay_id_, bytes);
}

void Connection::handle_request(MutBytes rest) {
  const wire::HttpHeadParser& head = parser_.head();
  std::string_view target = head.path_and_query();
  std::string_view path = target.substr(0, target.find('?'));
  close_when_sent_ = !head.keep_alive();
  bool get = head.method() == "GET" || head.method() == "HEAD";
  client_ = remote_.address;
  if (remote_.address.is_loopback())
    if (auto forwarded = head.header("x-forwarded-for")) {
      std::size_t comma = forwarded->rfind(',');
      auto last = IpAddress::parse(trim(comma == std::string_view::npos ? *forwarded : forwarded->substr(comma + 1)));
      if (last) client_ = *last;
    }

  if (path.starts_with(EnrolmentApi::kPrefix))
    return ask_api({head.method(), target, head.header("authorization").value_or(""), parser_.body(), client_});
  if (path == "/health" && get) return ask_api({"GET", kHealth, "", "", client_});
  if (path == "/" && get) return answer_text(200, "This is a porthole coordination service.\n");
  if (!server_.coordinator_) return answer_text(404, "404 page not found\n");  // devices log in elsewhere

  if (path == ts2021::kUpgradePath) {
    if (head.method() != "POST") return answer_text(405, "this is the control connection's door: POST with an Upgrade header\n");
    std::string_view upgrade = head.header("upgrade").value_or("");
    if (upgrade.empty()) {
      close_when_sent_ = true;
      return answer_text(400,
                         "missing next protocol\n"
                         "The request arrived without its Upgrade header. If a reverse proxy stands before this server, it "
                         "drops the header: it must pass \"Upgrade: tailscale-control-protocol\" and \"Connection: upgrade\" "
                         "on with HTTP/1.1 (nginx: proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; "
                         "proxy_set_header Connection \"upgrade\";).\n");
    }
    if (!wire::equal_ignore_case(upgrade, ts2021::kUpgradeProtocol)) {
      close_when_sent_ = true;
      return answer_text(400,
                         "unknown next protocol\n"
                         "The Upgrade header asks for another protocol than tailscale-control-protocol. If a reverse proxy "
                         "stands before this server, it must not set the header to a fixed value such as \"websocket\".\n");
    }
    auto handshake = head.header(ts2021::kHandshakeHeader);
    close_when_sent_ = !handshake;
    if (!handshake) return answer_text(400, "missing Tailscale handshake header\n");
    return upgrade_control(*handshake, rest);
  }
  if (path == ts2021::kKeyPath && get) {
    std::string_view version;
    if (std::size_t at = target.find("?v="); at != std::string_view::npos) version = target.substr(at + 3);
    version = version.substr(0, version.find('&'));
    if (version.empty()) return answer_text(400, "capability version must be set\n");
    for (char c : version)
      if (c < '0' || c > '9' || version.size() > 6) return answer_text(400, "invalid capability version\n");
    ts2021::KeyAnswer key;
    key.public_key = server_.coordinator_->noise_public();
    return answer(200, "application/json", ts2021::encode_key_answer(key));
  }
  if (auto relay = relay::answer_relay_request(head, server_.relay_->public_key())) {
    append(pending_.end(), relay->bytes);
    if (!relay->upgrade) {
      if (close_when_sent_ || relay->close || !parser_.body().empty()) phase_ = Phase::kClosing;
      return write();
    }
    relay_id_ = server_.relay_->on_connect(read_clock().now, remote_);
    if (relay_id_ == 0) return close();
    phase_ = Phase::kRelay;
    server_.by_relay_[relay_id_] = this;
    if (!rest.empty()) server_.relay_->consume(read_clock().now, relay_id_, rest);
    return pump();
  }
  if (path.starts_with(kRegisterPage) && get) {
    auto pending = server_.directory_->pending(read_clock(), path.substr(kRegisterPage.size()));
    if (!pending)
      return answer_page(404, "Nothing waits here",
                         "<p>This login is too old or was approved already. Start it again on the device.</p>");
    return answer_page(200, "A device wants to join",
                       "<p>Device <b>" + escape_html(pending->hostname) + "</b> (" + escape_html(pending->os) +
                           ") waits for approval. To let it in, run this where the service runs, with the name of the "
                           "account that it belongs to:</p><pre>porthole remote register approve " +
                           escape_html(pending->id) +
                           " --account NAME --statedir DIR</pre><p>The device continues by itself. If you do not know "
                           "it, do nothing: the request ends by itself 15 minutes after it was made.</p>");
  }
  answer_text(404, "404 page not found\n");
}

void Connection::next_request() {
  deadline_ = read_clock().now + kIdleTimeout;
  parser_ = wire::HttpMessageParser(wire::HttpKind::kRequest, request_limits());
}

void Connection::ask_api(const ApiRequest& request) {
  asking_ = true;
  server_.api_(request, [self = shared_from_this()](ApiAnswer a) {
    self->asking_ = false;
    if (self->phase_ == Phase::kClosed) return;
    a.headers.emplace_back("Cache-Control", "no-store");
    self->answer(a.status, a.content_type, a.body, a.headers);
    if (self->in_request_) return;  // answered at once: handle_bytes() goes on
    if (self->phase_ == Phase::kHttp) self->next_request();
    self->go_on();
  });
}

void Connection::upgrade_control(std::string_view handshake, MutBytes rest) {
  auto initiation = from_base64(handshake);
  if (!initiation) {
    close_when_sent_ = true;
    return answer_text(400, "invalid tailscale handshake header\n");
  }
  wire::HttpHeader headers[] = {{"Upgrade", ts2021::kUpgradeProtocol}, {"Connection", "upgrade"}};
  PORTHOLE_ASSERT(wire::encode_http_response_head(pending_.end(), 101, "Switching Protocols", headers).ok());
  Clock clock = read_clock();
  int seconds = 60;  // notices clients that vanished without a word, beside the keep-alives' own writes
  setsockopt(socket().native_handle(), IPPROTO_TCP, TCP_KEEPIDLE, &seconds, sizeof seconds);
  error_code ignored;
  socket().set_option(asio::socket_base::keep_alive(true), ignored);
  phase_ = Phase::kControl;
  session_ = server_.coordinator_->on_upgrade(clock, Endpoint{client_, remote_.port}, *initiation);
  server_.by_session_[session_] = this;
  if (!rest.empty()) server_.coordinator_->consume(clock, session_, rest);
  pump();
}

void Connection::answer(int status, std::string_view content_type, std::string_view body,
                        std::span<const std::pair<std::string, std::string>> headers) {
  std::string length = std::to_string(body.size());
  std::vector<wire::HttpHeader> list;
  if (status != 204) {
    list.push_back({"Content-Type", content_type});
    list.push_back({"Content-Length", length});
  }
  const std::string date = ts2021::format_http_date(read_clock().wall);   // for clients whose clock is wrong
  list.push_back({"Date", date});
  list.push_back({"X-Content-Type-Options", "nosniff"});
  if (close_when_sent_) list.push_back({"Connection", "close"});
  for (const auto& [name, value] : headers) list.push_back({name, value});
  if (!wire::encode_http_response_head(pending_.end(), status, reason_of(status), list)) return close();
  bool head_only = parser_.head_done() && parser_.head().method() == "HEAD";
  if (!head_only) append(pending_.end(), as_bytes(body));
  if (close_when_sent_) {
    phase_ = Phase::kClosing;
    deadline_ = read_clock().now + kIdleTimeout;
  }
  write();
}

void Connection::answer_text(int status, std::string_view text) { answer(status, kPlainText, text); }

void Connection::answer_page(int status, std::string_view title, std::string_view body) {
  std::string page = "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" "
                     "content=\"width=device-width\"><title>" + std::string(title) +
                     "</title><style>body{font:16px/1.5 sans-serif;max-width:40em;margin:3em auto;padding:0 1em}"
                     "pre{overflow:auto;padding:1em;background:#eee}</style><h1>" + std::string(title) + "</h1>" +
                     std::string(body) + "</html>\n";
  std::pair<std::string, std::string> policy[] = {
      {"Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'"}, {"Cache-Control", "no-store"}};
  answer(status, kHtml, page, policy);
}

std::size_t Connection::fill(MutBytes out) {
  std::size_t n = pending_.take(out);
  if (n > 0 && pending_.empty()) pending_ = OutBytes();  // idle connections keep no buffer
  if (phase_ == Phase::kControl) n += server_.coordinator_->produce(read_clock(), session_, out.subspan(n));
  else if (phase_ == Phase::kRelay) n += server_.relay_->produce(read_clock().now, relay_id_, out.subspan(n));
  return n;
}

void Connection::pump() { write(); }

// Closing a socket that holds unread bytes resets it, and whoever still sends a large body would never read our answer to it
// (RFC 9112 9.6): the rest is read and dropped, within bounds.
void Connection::linger() {
  error_code ignored;
  socket().shutdown(Tcp::shutdown_send, ignored);
  writing_ = ending_ = true;
  deadline_ = read_clock().now + kLingerTimeout;
  drop_rest();
}

void Connection::drop_rest() {
  socket().async_wait(Tcp::wait_read, [self = shared_from_this()](error_code e) {
    if (self->phase_ == Phase::kClosed) return;
    std::size_t n = e ? 0 : self->socket().read_some(asio::buffer(self->server_.read_buffer_), e);
    self->lingered_ += n;
    if (e || self->lingered_ > kLingerMax) self->close();
    else self->drop_rest();
  });
}

void Connection::write() {
  if (writing_ || phase_ == Phase::kClosed) return;
  auto* tls = std::get_if<Tls>(&stream_);
  out_.resize(phase_ == Phase::kRelay && !tls ? 4 * kWriteSize : kWriteSize);
  std::size_t n = fill(out_);
  if (n == 0) {
    out_ = ByteVector();
    bool over = phase_ == Phase::kControl && server_.coordinator_->is_over(session_);
    if (!over && phase_ != Phase::kClosing) return;
    auto self = shared_from_this();
    if (tls) {
      // The other side learns that this is the end and not a cut.
      phase_ = phase_ == Phase::kControl ? phase_ : Phase::kClosing;
      writing_ = true;
      ending_ = true;
      deadline_ = read_clock().now + kRequestTimeout;
      tls->async_shutdown([self](error_code) {
        if (self->phase_ == Phase::kClosing) self->linger();
        else self->close();
        self->server_.settle();
      });
    } else if (phase_ == Phase::kClosing) {
      linger();
    } else {
      close();
    }
    return;
  }
  writing_ = true;
  auto done = [self = shared_from_this()](error_code e, std::size_t) {
    self->writing_ = false;
    if (e) self->close();
    self->write();
    self->go_on();
    self->server_.settle();
  };
  if (tls) asio::async_write(*tls, asio::buffer(out_.data(), n), done);
  else asio::async_write(std::get<Tcp>(stream_), asio::buffer(out_.data(), n), done);
}

}  // namespace porthole::remote
