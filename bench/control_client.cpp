#include "control_client.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "support/support.h"
#include "wire/http.h"

namespace porthole::bench {

void die(const std::string& what) {
  std::fprintf(stderr, "coordinator_bench: %s\n", what.c_str());
  std::exit(1);
}

void OsRng::fill(MutBytes out) { app::random_bytes(out.data(), out.size()); }

Target parse_target(const std::string& url) {
  Target out;
  out.tls = url.starts_with("https://");
  std::size_t begin = out.tls ? 8 : 7, colon = url.rfind(':');
  if ((!out.tls && !url.starts_with("http://")) || colon <= begin) die("not http[s]://ADDRESS:PORT: " + url);
  out.address = url.substr(begin, colon - begin);
  out.port = static_cast<std::uint16_t>(std::atoi(url.c_str() + colon + 1));
  return out;
}

// ---- connections -------------------------------------------------------------------------------------------------------

Link::Link(const Target& target) {
  fd_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(target.port);
  if (::inet_pton(AF_INET, target.address.c_str(), &to.sin_addr) != 1) die("not an IPv4 address: " + target.address);
  if (fd_ < 0 || ::connect(fd_, reinterpret_cast<sockaddr*>(&to), sizeof to) != 0) die("cannot connect to " + target.address);
  int on = 1;
  ::setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (!target.tls) return;
  static SSL_CTX* const context = ::SSL_CTX_new(::TLS_client_method());
  tls_.reset(::SSL_new(context));
  ::SSL_set_mode(tls_.get(), SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  ::SSL_set_fd(tls_.get(), fd_);
  if (::SSL_connect(tls_.get()) != 1) die("no TLS with " + target.address);
}

Link::~Link() { ::close(fd_); }

void Link::unblock() { ::fcntl(fd_, F_SETFL, O_NONBLOCK); }

std::size_t Link::read(MutBytes out) {
  if (tls_) {
    int n = ::SSL_read(tls_.get(), out.data(), static_cast<int>(out.size()));
    if (n > 0) return static_cast<std::size_t>(n);
    ended_ = ::SSL_get_error(tls_.get(), n) != SSL_ERROR_WANT_READ;
    return 0;
  }
  ssize_t n = ::recv(fd_, out.data(), out.size(), 0);
  ended_ = n == 0 || (n < 0 && errno != EAGAIN);
  return n < 0 ? 0 : static_cast<std::size_t>(n);
}

std::size_t Link::write(Bytes bytes) {
  if (tls_) {
    int n = ::SSL_write(tls_.get(), bytes.data(), static_cast<int>(bytes.size()));
    return n < 0 ? 0 : static_cast<std::size_t>(n);
  }
  ssize_t n = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
  return n < 0 ? 0 : static_cast<std::size_t>(n);
}

std::string Api::call(const std::string& method, const std::string& path, const std::string& token, const std::string& body) {
  std::string request = method + " " + path + " HTTP/1.1\r\nHost: x\r\n" +
                        (token.empty() ? "" : "Authorization: Bearer " + token + "\r\n") +
                        (method == "GET" ? "" : "Content-Length: " + std::to_string(body.size()) + "\r\n") + "\r\n" + body;
  if (link_.write(as_bytes(request)) != request.size()) die("the service broke off");
  wire::HttpMessageParser parser(wire::HttpKind::kResponse);
  std::uint8_t in[8192];
  while (!parser.done())
    if (!parser.consume(Bytes(in).first(link_.read(in))).ok() || link_.ended()) die("no HTTP answer");
  if (parser.head().status() >= 300) die("refused: " + std::string(parser.body()));
  return std::string(parser.body());
}

MachinePublic server_key(const Target& target) {
  auto answer = ts2021::parse_key_answer(as_bytes(Api(target).call("GET", "/key?v=" + std::to_string(ts2021::kCapabilityVersion), "", "")));
  if (!answer) die("no key: " + answer.error().message);
  return answer->public_key;
}

// ---- a client ----------------------------------------------------------------------------------------------------------

Client::Client(Rng& rng, std::size_t account_index, std::string hostname, std::string key, Stay stay)
    : account(account_index), hostname_(std::move(hostname)), key_(std::move(key)), stay_(stay), rng_(rng),
      machine_(crypto::MachinePrivate::generate(rng)), node_(crypto::NodePrivate::generate(rng)) {
  new_disco();
}

void Client::new_disco() {
  std::array<std::uint8_t, 32> raw;
  rng_.fill(raw);
  disco = DiscoPublic(raw);
}

void Client::start(const Target& target, const MachinePublic& server) {
  link_ = std::make_unique<Link>(target);
  link_->unblock();
  in_.clear();
  out_.clear();
  register_body_.clear();
  records_.reset();
  early_ = {};
  registered_ = false;
  map_stream_ = 0;
  initiator_.emplace(ts2021::NoiseInitiator::start(ts2021::kCapabilityVersion, server, machine_, rng_).value());
  std::string head = "POST /ts2021 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: upgrade\r\nUpgrade: "
                     "tailscale-control-protocol\r\nX-Tailscale-Handshake: " + to_base64(initiator_->initiation()) + "\r\n\r\n";
  append(out_, as_bytes(head));
  h2_.emplace("x");
  ts2021::RegisterRequest r;
  r.version = ts2021::kCapabilityVersion;
  r.node_key = node_.public_key();
  r.auth_key = crypto::SecretText(key_);
  r.hostinfo = hostinfo();
  register_stream_ = h2_->submit("POST", "/machine/register", {}, as_bytes(ts2021::encode_register_request(r).reveal())).value();
  flush();
}

void Client::update() {
  post_map(false);
  flush();
}

bool Client::on_readable() {
  std::uint8_t in[16 * 1024];
  while (std::size_t n = link_->read(in)) append(in_, Bytes(in).first(n));
  if (initiator_) {
    auto text = as_text(in_);
    std::size_t end = text.find("\r\n\r\n");
    if (end == std::string_view::npos || in_.size() < end + 4 + 51) return false;
    if (!text.starts_with("HTTP/1.1 101")) die("no upgrade: " + std::string(text));
    auto session = initiator_->finish(Bytes(in_).subspan(end + 4, 51));
    if (!session) die(session.error().message);
    records_.emplace(std::move(session->records));
    initiator_.reset();
    in_.erase(in_.begin(), in_.begin() + static_cast<std::ptrdiff_t>(end + 4 + 51));
  }
  ByteVector plain, rest;
  if (!records_->open(in_, plain)) die("bad record");
  in_.clear();
  if (!early_.done()) {
    if (!early_.consume(plain, rest)) die("bad early payload");
    plain.swap(rest);
  }
  if (!h2_->consume(plain)) die("bad HTTP/2");
  bool map = false;
  while (auto event = h2_->poll_event()) on_event(*event, map);
  flush();
  return map;
}

void Client::on_event(const ts2021::H2ClientEvent& event, bool& map) {
  if (auto* response = std::get_if<ts2021::H2Response>(&event); response && response->status != 200)
    die("a request was answered with " + std::to_string(response->status));
  if (auto* closed = std::get_if<ts2021::H2Closed>(&event)) {
    if (closed->stream == map_stream_) {
      ++streams_lost;
      post_map(true);
    }
    if (closed->stream == update_stream_ && stay_ == Stay::kLeaves) told_ = true;
  }
  auto* data = std::get_if<ts2021::H2Data>(&event);
  if (!data) return;
  if (data->stream == register_stream_ && !registered_) {
    append(register_body_, data->bytes);
    auto r = ts2021::parse_register_response(register_body_);
    if (!r) return;
    if (!r->error.empty() || !r->machine_authorized) die("register: " + r->error);
    registered_ = true;
    if (stay_ == Stay::kConnected) post_map(true);
    post_map(false);
  } else if (data->stream == map_stream_) {
    if (!reader_.consume(data->bytes)) die("bad map framing");
    while (auto message = reader_.next()) {
      auto m = ts2021::parse_map_response(**message);
      if (!m) die(m.error().message);
      apply(*m);
      map = true;
    }
  }
}

void Client::flush() {
  if (records_) {
    std::uint8_t out[16 * 1024];
    while (std::size_t n = h2_->produce(out))
      if (!records_->seal(Bytes(out).first(n), out_)) die("seal");
  }
  while (!out_.empty()) {
    std::size_t n = link_->write(out_);
    if (n == 0) break;
    out_.erase(out_.begin(), out_.begin() + static_cast<std::ptrdiff_t>(n));
  }
}

ts2021::Hostinfo Client::hostinfo() const {
  ts2021::Hostinfo h;
  h.hostname = hostname_;
  h.os = "linux";
  h.ipn_version = "1.0-bench";
  h.net_info.emplace();
  h.net_info->preferred_derp = 900;
  return h;
}

void Client::post_map(bool stream) {
  ts2021::MapRequest m;
  m.version = ts2021::kCapabilityVersion;
  m.compress = "zstd";
  m.keep_alive = true;
  m.node_key = node_.public_key();
  m.disco_key = disco;
  m.stream = stream;
  m.omit_peers = !stream;
  m.hostinfo = hostinfo();
  m.endpoints = {{IpAddress::v4(198, 51, 100, 7), 41641}, {IpAddress::v4(192, 168, 1, 7), 41641}};
  if (stream) reader_ = ts2021::MapFrameReader{true};
  auto id = h2_->submit("POST", "/machine/map", {}, as_bytes(ts2021::encode_map_request(m))).value();
  (stream ? map_stream_ : update_stream_) = id;
}

void Client::apply(const ts2021::MapResponse& m) {
  if (m.node) own_id = m.node->id;
  for (const auto& p : m.peers) peers[p.id] = p.disco_key;
  for (const auto& p : m.peers_changed) peers[p.id] = p.disco_key;
  for (auto id : m.peers_removed) peers.erase(id);
  for (const auto& c : m.peers_changed_patch)
    if (c.disco_key) peers[c.node_id] = *c.disco_key;
}

// ---- many --------------------------------------------------------------------------------------------------------------

Fleet::Fleet(const Target& target, std::size_t at_once)
    : target_(target), server_(server_key(target)), at_once_(at_once), epoll_(::epoll_create1(EPOLL_CLOEXEC)) {}

Fleet::~Fleet() { ::close(epoll_); }

void Fleet::begin(std::size_t index) {
  clients[index]->start(target_, server_);
  epoll_event e{};
  e.events = EPOLLIN;
  e.data.u64 = index;
  ::epoll_ctl(epoll_, EPOLL_CTL_ADD, clients[index]->fd(), &e);
}

bool Fleet::read(std::size_t index) {
  Client& c = *clients[index];
  bool map = c.on_readable();
  if (c.ended()) {
    ++c.streams_lost;
    begin(index);
  }
  return map;
}

std::size_t Fleet::poll(int timeout_ms) {
  epoll_event events[256];
  int n = ::epoll_wait(epoll_, events, 256, timeout_ms);
  ready_.clear();
  for (int i = 0; i < n; ++i) ready_.push_back(events[i].data.u64);
  return ready_.size();
}

}  // namespace porthole::bench
