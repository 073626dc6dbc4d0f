#include "runtime/streams.h"

#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <sys/socket.h>

#include <cerrno>
#include <vector>

#include "crypto/hash.h"
#include "crypto/secret.h"
#include "runtime/sockaddr.h"

namespace porthole::runtime {
namespace {

constexpr Duration kOpenTimeout = 10s;       // look-up, connect and TLS together
constexpr Duration kNextAddressAfter = 250ms;  // RFC 8305 section 5
constexpr std::size_t kReadBytes = 64 * 1024;
constexpr std::size_t kWriteBlock = 16 * 1024;  // one TLS record
// Bytes read from one stream in one turn before others are served.
constexpr std::size_t kReadPerTurn = 512 * 1024;

std::string openssl_reason() {
  unsigned long e = ::ERR_peek_last_error();
  const char* text = e ? ::ERR_reason_error_string(e) : nullptr;
  return text ? text : "unknown TLS error";
}

std::string age_text(int days, int seconds) {
  if (days != 0) return std::to_string(days) + (days == 1 ? " day" : " days");
  int hours = seconds / 3600;
  return hours > 0 ? std::to_string(hours) + (hours == 1 ? " hour" : " hours") : "minutes";
}

std::string certificate_error(SSL* ssl, const std::string& name) {
  long verdict = ::SSL_get_verify_result(ssl);
  X509* leaf = ::SSL_get0_peer_certificate(ssl);
  int days = 0, seconds = 0;
  switch (verdict) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
      if (leaf && ::ASN1_TIME_diff(&days, &seconds, ::X509_get0_notAfter(leaf), nullptr))
        return "certificate for " + name + " expired " + age_text(days, seconds) + " ago (or this host's clock is wrong)";
      return "certificate for " + name + " has expired (or this host's clock is wrong)";
    case X509_V_ERR_CERT_NOT_YET_VALID:
      return "certificate for " + name + " is not valid yet: is this host's clock right?";
    case X509_V_ERR_HOSTNAME_MISMATCH:
    case X509_V_ERR_IP_ADDRESS_MISMATCH: return "the certificate presented is not for " + name;
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
      return "certificate for " + name + " is signed by nobody this host trusts; if it is your own, give its CA with --ca-file";
    default: return "certificate for " + name + " was refused: " + ::X509_verify_cert_error_string(verdict);
  }
}

}  // namespace

class Streams::Conn final : public std::enable_shared_from_this<Streams::Conn> {
 public:
  Conn(Streams& owner, OpenStream request, Instant now)
      : owner_(owner), request_(std::move(request)), deadline_(now + kOpenTimeout) {}
  ~Conn() {
    drop_attempts();
    if (token_) owner_.loop_.remove(token_);
    if (ssl_) ::SSL_free(ssl_);
  }

  void start(Instant now) {
    if (!request_.addresses.empty()) return begin_dialing(now, request_.addresses);
    owner_.resolver_.resolve(request_.host, [self = weak_from_this()](Result<std::vector<IpAddress>> r) {
      auto me = self.lock();
      if (!me || me->closed_) return;
      if (!r) return me->fail(r.error());
      me->pending_ = std::move(*r);
      me->owner_dial();
    });
  }

  bool is_open() const { return open_; }
  Instant next_timeout() const {
    if (open_) return Instant::max();
    return next_ < addresses_.size() && next_attempt_at_ < deadline_ ? next_attempt_at_ : deadline_;
  }

  void handle_timeout(Instant now) {
    if (open_ || closed_) return;
    if (now >= deadline_) {
      return fail({ErrorCode::kTimeout, where() + " did not answer within 10 s" +
                                            (last_error_.empty() ? "" : " (" + last_error_ + ")")});
    }
    if (!ssl_ && next_ < addresses_.size() && now >= next_attempt_at_) attempt_next(now);
  }

  // Moves machine output to the network until either runs dry.
  void pump() {
    if (!open_ || closed_) return;
    offer_leftover();
    for (int i = 0; i < 64 && !closed_; ++i) {
      if (out_.empty()) {
        if (!owner_.machine_.stream_has_output(request_.id)) break;
        out_.resize(kWriteBlock);
        out_.resize(owner_.machine_.stream_produce(request_.id, out_));
        if (out_.empty()) break;
        out_at_ = 0;
      }
      if (!write_some()) break;
    }
    if (!closed_) update_interest();
  }

  void close_now() { closed_ = true; }

  // Runs when the look-up has finished; the clock of the last turn is good enough for staggering.
  void owner_dial() {
    begin_dialing(last_now_, std::move(pending_));
  }
  void set_now(Instant now) { last_now_ = now; }

 private:
  struct Attempt final : FdHandler {
    Conn* conn = nullptr;
    UniqueFd fd;
    EventLoop::Token token = 0;
    Endpoint to;
    void on_ready(bool, bool, bool) override { conn->attempt_ready(this); }
  };
  struct Ready final : FdHandler {
    explicit Ready(Conn& c) : conn(c) {}
    Conn& conn;
    void on_ready(bool readable, bool writable, bool) override {
      auto keep = conn.shared_from_this();
      conn.socket_ready(readable, writable);
    }
  };

  std::string where() const { return request_.host + ":" + std::to_string(request_.port); }

  void fail(Error e) {
    if (closed_) return;
    closed_ = true;
    auto keep = shared_from_this();
    Streams& owner = owner_;
    StreamId id = request_.id;
    bool was_open = open_;
    owner.erase(id);
    if (was_open)
      owner.machine_.stream_closed(id, &e);
    else
      owner.machine_.stream_failed(id, e);
  }
  void end_cleanly() {
    if (closed_) return;
    closed_ = true;
    auto keep = shared_from_this();
    owner_.erase(request_.id);
    owner_.machine_.stream_closed(request_.id, nullptr);
  }

  void begin_dialing(Instant now, std::vector<IpAddress> addresses) {
    addresses_ = std::move(addresses);
    attempt_next(now);
  }

  void attempt_next(Instant now) {
    auto keep = shared_from_this();
    while (next_ < addresses_.size()) {
      Endpoint to{addresses_[next_++], request_.port};
      next_attempt_at_ = now + kNextAddressAfter;
      UniqueFd fd(::socket(to.address.is_v6() ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
      if (!fd) {
        last_error_ = std::strerror(errno);
        last_errno_ = errno;
        continue;
      }
      SockAddr a = to_sockaddr(to);
      if (::connect(fd.get(), a.get(), a.size) != 0 && errno != EINPROGRESS) {
        last_error_ = std::strerror(errno);
        last_errno_ = errno;
        continue;
      }
      auto attempt = std::make_unique<Attempt>();
      attempt->conn = this;
      attempt->to = to;
      attempt->token = owner_.loop_.add(fd.get(), *attempt, false, true);
      attempt->fd = std::move(fd);
      attempts_.push_back(std::move(attempt));
      return;
    }
    if (attempts_.empty())
      fail(errno_error("cannot reach " + where(), last_errno_ ? last_errno_ : EHOSTUNREACH));
  }

  void attempt_ready(Attempt* attempt) {
    auto keep = shared_from_this();
    int error = 0;
    socklen_t size = sizeof error;
    ::getsockopt(attempt->fd.get(), SOL_SOCKET, SO_ERROR, &error, &size);
    owner_.loop_.remove(attempt->token);
    attempt->token = 0;
    if (error != 0) {
      last_error_ = std::strerror(error);
      last_errno_ = error;
      std::erase_if(attempts_, [&](const auto& a) { return a.get() == attempt; });
      if (attempts_.empty() || next_ < addresses_.size()) attempt_next(last_now_);
      return;
    }
    fd_ = std::move(attempt->fd);
    info_.remote = attempt->to;
    drop_attempts();
    connected();
  }

  void drop_attempts() {
    for (auto& a : attempts_)
      if (a->token) owner_.loop_.remove(a->token);
    attempts_.clear();
  }

  void connected() {
    int one = 1;
    ::setsockopt(fd_.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    // A peer that vanished is noticed although we may write little (derp: 15 s).
    unsigned user_timeout_ms = 15000;
    ::setsockopt(fd_.get(), IPPROTO_TCP, TCP_USER_TIMEOUT, &user_timeout_ms, sizeof user_timeout_ms);
    info_.local = local_endpoint(fd_.get());
    token_ = owner_.loop_.add(fd_.get(), ready_, true, false);
    if (request_.tls == TlsMode::kPlain) return opened();
    start_tls();
  }

  void start_tls() {
    if (request_.tls == TlsMode::kVerify) owner_.load_system_roots();
    ssl_ = ::SSL_new(owner_.tls_);
    PORTHOLE_ASSERT(ssl_);
    ::SSL_set_fd(ssl_, fd_.get());
    std::string name = request_.certificate_name.empty() ? request_.host : request_.certificate_name;
    bool host_is_ip = IpAddress::parse(request_.host).has_value();
    if (!host_is_ip)
      ::SSL_ctrl(ssl_, SSL_CTRL_SET_TLSEXT_HOSTNAME, TLSEXT_NAMETYPE_host_name, const_cast<char*>(request_.host.c_str()));
    if (request_.tls == TlsMode::kVerify) {
      ::SSL_set_verify(ssl_, SSL_VERIFY_PEER, nullptr);
      if (IpAddress::parse(name))
        ::X509_VERIFY_PARAM_set1_ip_asc(::SSL_get0_param(ssl_), name.c_str());
      else
        ::SSL_set1_host(ssl_, name.c_str());
    } else {
      ::SSL_set_verify(ssl_, SSL_VERIFY_NONE, nullptr);
    }
    handshake();
  }

  void handshake() {
    ::ERR_clear_error();
    int rc = ::SSL_connect(ssl_);
    if (rc == 1) return tls_done();
    int why = ::SSL_get_error(ssl_, rc);
    if (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE) {
      owner_.loop_.change(token_, why == SSL_ERROR_WANT_READ, why == SSL_ERROR_WANT_WRITE);
      return;
    }
    std::string name = request_.certificate_name.empty() ? request_.host : request_.certificate_name;
    if (request_.tls == TlsMode::kVerify && ::SSL_get_verify_result(ssl_) != X509_V_OK)
      return fail({ErrorCode::kUnauthorized, certificate_error(ssl_, name)});
    unsigned long e = ::ERR_peek_last_error();
    int reason = ERR_GET_REASON(e);
    if (reason == SSL_R_WRONG_VERSION_NUMBER || reason == SSL_R_HTTP_REQUEST || reason == SSL_R_PACKET_LENGTH_TOO_LONG)
      return fail({ErrorCode::kProtocol, where() + " answers, but not with TLS: is the URL meant to begin with http://?"});
    if (why == SSL_ERROR_SYSCALL || reason == SSL_R_UNEXPECTED_EOF_WHILE_READING)
      return fail({ErrorCode::kReset, where() + " closed the connection during the TLS handshake"});
    fail({ErrorCode::kProtocol, "TLS with " + where() + " failed: " + openssl_reason()});
  }

  void tls_done() {
    info_.tls13 = ::SSL_version(ssl_) >= TLS1_3_VERSION;
    STACK_OF(X509)* chain = ::SSL_get_peer_cert_chain(ssl_);
    for (int i = 0; chain && i < sk_X509_num(chain); ++i) {
      unsigned char* der = nullptr;
      int n = ::i2d_X509(sk_X509_value(chain, i), &der);
      if (n > 0) info_.certificates.emplace_back(der, der + n);
      ::OPENSSL_free(der);
    }
    if (request_.tls == TlsMode::kPinned) {
      auto seen = info_.certificates.empty() ? crypto::Hash32{} : crypto::sha256(info_.certificates.front());
      if (!crypto::equal_secret(seen, request_.pin))
        return fail({ErrorCode::kUnauthorized, "the certificate of " + where() + " is not the pinned one: sha256-raw:" + to_hex(seen) +
                                                   " instead of sha256-raw:" + to_hex(request_.pin) +
                                                   "; if it was renewed there, the new pin belongs into the relay map (CertName), else "
                                                   "something answers in its place"});
    }
    owner_.loop_.change(token_, true, false);
    opened();
  }

  void opened() {
    open_ = true;
    StreamId id = request_.id;
    owner_.machine_.stream_opened(id, info_);
    info_.certificates.clear();
    if (closed_) return;
    if (ssl_ && ::SSL_has_pending(ssl_)) read_some();
  }

  void socket_ready(bool readable, bool writable) {
    if (closed_) return;
    if (!open_) {
      if (ssl_) handshake();
      return;
    }
    if (readable || (writable && read_wants_write_)) read_some();
    if (!closed_ && (writable || write_wants_read_)) {
      if (!out_.empty()) write_some();
    }
    if (!closed_) pump();
  }

  void read_some() {
    read_wants_write_ = false;
    std::size_t total = 0;
    while (!closed_ && leftover_.empty() && total < kReadPerTurn) {
      std::uint8_t* scratch = owner_.scratch_.get();
      std::size_t n = 0;
      if (ssl_) {
        // Fill the scratch with several records, so that the machine works on large blocks.
        bool stop = false;
        while (kReadBytes - n >= kWriteBlock + 1024) {
          ::ERR_clear_error();
          int rc = ::SSL_read(ssl_, scratch + n, static_cast<int>(kReadBytes - n));
          if (rc > 0) {
            n += static_cast<std::size_t>(rc);
            continue;
          }
          int why = ::SSL_get_error(ssl_, rc);
          if (why == SSL_ERROR_WANT_WRITE) read_wants_write_ = true;
          if (why != SSL_ERROR_WANT_READ && why != SSL_ERROR_WANT_WRITE) {
            if (n > 0 && !feed(scratch, n)) return;
            if (why == SSL_ERROR_ZERO_RETURN) return end_cleanly();
            if (why == SSL_ERROR_SYSCALL && errno != 0) return fail(errno_error("connection to " + where(), errno));
            return fail({ErrorCode::kReset, where() + " closed the connection"});
          }
          stop = true;
          break;
        }
        if (n > 0 && !feed(scratch, n)) return;
        total += n;
        if (stop || n == 0) return;
      } else {
        ssize_t rc = ::recv(fd_.get(), scratch, kReadBytes, MSG_DONTWAIT);
        if (rc < 0) {
          if (errno == EINTR) continue;
          if (errno == EAGAIN) return;
          return fail(errno_error("connection to " + where(), errno));
        }
        if (rc == 0) return end_cleanly();
        n = static_cast<std::size_t>(rc);
        total += n;
        if (!feed(scratch, n)) return;
        if (n < kReadBytes) return;
      }
    }
  }

  // False when the stream ended meanwhile.
  bool feed(std::uint8_t* data, std::size_t size) {
    auto taken = owner_.machine_.stream_consume(request_.id, {data, size});
    if (closed_) return false;
    if (!taken) {
      fail(taken.error());
      return false;
    }
    if (*taken < size) leftover_.assign(data + *taken, data + size);
    return true;
  }

  void offer_leftover() {
    if (leftover_.empty()) return;
    ByteVector rest = std::move(leftover_);
    leftover_.clear();
    if (feed(rest.data(), rest.size()) && leftover_.empty()) read_some();
  }

  // True when everything pending was written.
  bool write_some() {
    write_wants_read_ = false;
    while (out_at_ < out_.size()) {
      if (ssl_) {
        ::ERR_clear_error();
        int rc = ::SSL_write(ssl_, out_.data() + out_at_, static_cast<int>(out_.size() - out_at_));
        if (rc <= 0) {
          int why = ::SSL_get_error(ssl_, rc);
          if (why == SSL_ERROR_WANT_READ) write_wants_read_ = true;
          if (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE) return false;
          fail({ErrorCode::kReset, where() + " closed the connection"});
          return false;
        }
        out_at_ += static_cast<std::size_t>(rc);
      } else {
        ssize_t rc = ::send(fd_.get(), out_.data() + out_at_, out_.size() - out_at_, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (rc < 0 && errno == EINTR) continue;
        if (rc < 0 && errno == EAGAIN) return false;
        if (rc < 0) {
          fail(errno_error("connection to " + where(), errno));
          return false;
        }
        out_at_ += static_cast<std::size_t>(rc);
      }
    }
    out_.clear();
    out_at_ = 0;
    return true;
  }

  void update_interest() {
    bool blocked = !out_.empty() && !write_wants_read_;
    owner_.loop_.change(token_, leftover_.empty(), blocked || read_wants_write_);
  }

  Streams& owner_;
  OpenStream request_;
  Instant deadline_;
  Instant last_now_;
  Instant next_attempt_at_;
  std::vector<IpAddress> addresses_, pending_;
  std::size_t next_ = 0;
  std::vector<std::unique_ptr<Attempt>> attempts_;
  std::string last_error_;
  int last_errno_ = 0;
  UniqueFd fd_;
  EventLoop::Token token_ = 0;
  Ready ready_{*this};
  SSL* ssl_ = nullptr;
  StreamInfo info_;
  bool open_ = false;
  bool closed_ = false;
  bool read_wants_write_ = false;
  bool write_wants_read_ = false;
  ByteVector out_;
  std::size_t out_at_ = 0;
  ByteVector leftover_;
};

Streams::Streams(EventLoop& loop, StreamMachine& machine)
    : loop_(loop), machine_(machine), resolver_(loop), scratch_(new std::uint8_t[kReadBytes]) {}

Result<std::unique_ptr<Streams>> Streams::make(EventLoop& loop, StreamMachine& machine, const std::string& ca_file) {
  std::unique_ptr<Streams> s(new Streams(loop, machine));
  s->tls_ = ::SSL_CTX_new(::TLS_client_method());
  PORTHOLE_ASSERT(s->tls_);
  ::SSL_CTX_set_min_proto_version(s->tls_, TLS1_2_VERSION);
  ::SSL_CTX_set_mode(s->tls_, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_RELEASE_BUFFERS);
  ::SSL_CTX_set_read_ahead(s->tls_, 1);
  static constexpr unsigned char kAlpn[] = "\x08http/1.1";
  ::SSL_CTX_set_alpn_protos(s->tls_, kAlpn, sizeof kAlpn - 1);
  if (!ca_file.empty() && ::SSL_CTX_load_verify_file(s->tls_, ca_file.c_str()) != 1)
    return Error{ErrorCode::kInvalid, "cannot use the CA file " + ca_file + ": it is missing, not readable or not PEM"};
  return s;
}

// More than a megabyte once parsed: only for nodes that verify a certificate at all.
void Streams::load_system_roots() {
  if (system_roots_) return;
  system_roots_ = true;
  ::SSL_CTX_set_default_verify_paths(tls_);  // honours SSL_CERT_FILE and SSL_CERT_DIR
}

Streams::~Streams() {
  conns_.clear();
  if (tls_) ::SSL_CTX_free(tls_);
}

void Streams::open(Instant now, OpenStream request) {
  StreamId id = request.id;
  auto conn = std::make_shared<Conn>(*this, std::move(request), now);
  conn->set_now(now);
  conns_[id] = conn;
  conn->start(now);
}

void Streams::close(StreamId id) {
  auto it = conns_.find(id);
  if (it == conns_.end()) return;
  auto conn = it->second;
  conn->pump();  // last words of the machine
  conn->close_now();
  conns_.erase(id);
}

void Streams::erase(StreamId id) { conns_.erase(id); }

void Streams::pump(Instant now) {
  std::vector<std::shared_ptr<Conn>> all;
  all.reserve(conns_.size());
  for (auto& [id, conn] : conns_) all.push_back(conn);
  for (auto& conn : all) {
    conn->set_now(now);
    conn->pump();
  }
}

void Streams::handle_timeout(Instant now) {
  std::vector<std::shared_ptr<Conn>> due;
  for (auto& [id, conn] : conns_) {
    conn->set_now(now);
    if (conn->next_timeout() <= now) due.push_back(conn);
  }
  for (auto& conn : due) conn->handle_timeout(now);
}

Instant Streams::next_timeout() const {
  Instant t = Instant::max();
  for (auto& [id, conn] : conns_) t = std::min(t, conn->next_timeout());
  return t;
}

}  // namespace porthole::runtime
