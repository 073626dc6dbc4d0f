#include "node/probe_link.h"

#include <fcntl.h>
#include <netdb.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <future>
#include <thread>

#include "runtime/files.h"
#include "runtime/sockaddr.h"
#include "support/support.h"

namespace porthole::app {
namespace {
using namespace std::chrono_literals;
constexpr auto kOtherFamilyGrace = 250ms;   // for the addresses that did not connect first
constexpr std::size_t kNamesShown = 4;

int ms_until(Deadline until) {
  auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - std::chrono::steady_clock::now()).count();
  return static_cast<int>(std::clamp<std::int64_t>(left, 0, 3'600'000));
}

Error late(const std::string& what) { return {ErrorCode::kTimeout, what}; }

std::string name_entry(X509_NAME* name) {
  char text[256] = {};
  if (X509_NAME_get_text_by_NID(name, NID_commonName, text, sizeof text) > 0) return text;
  if (X509_NAME_get_text_by_NID(name, NID_organizationName, text, sizeof text) > 0) return text;
  return "an unnamed issuer";
}

// "2027-01-02 03:04 UTC"
std::string time_text(const ASN1_TIME* t) {
  std::tm tm{};
  if (::ASN1_TIME_to_tm(t, &tm) != 1) return "an unreadable date";
  char text[40];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M UTC", &tm);
  return text;
}

std::string age(int days, int seconds) {
  days = std::abs(days);
  seconds = std::abs(seconds);
  if (days > 0) return std::to_string(days) + (days == 1 ? " day" : " days");
  if (seconds >= 3600) return std::to_string(seconds / 3600) + " h";
  return std::to_string(seconds / 60) + " min";
}

// The names that a certificate is for.
std::string certificate_names(X509* leaf) {
  std::string out;
  auto* names = static_cast<GENERAL_NAMES*>(::X509_get_ext_d2i(leaf, NID_subject_alt_name, nullptr, nullptr));
  int total = names ? sk_GENERAL_NAME_num(names) : 0;
  for (int i = 0; i < total; ++i) {
    if (static_cast<std::size_t>(i) == kNamesShown) {
      out += " and " + std::to_string(total - i) + " more";
      break;
    }
    const GENERAL_NAME* n = sk_GENERAL_NAME_value(names, i);
    std::string text;
    if (n->type == GEN_DNS) {
      text.assign(reinterpret_cast<const char*>(::ASN1_STRING_get0_data(n->d.dNSName)),
                  static_cast<std::size_t>(::ASN1_STRING_length(n->d.dNSName)));
      for (char& c : text)
        if (c < 0x21 || c > 0x7e) c = '?';
    } else if (n->type == GEN_IPADD) {
      const auto* bytes = ::ASN1_STRING_get0_data(n->d.iPAddress);
      int size = ::ASN1_STRING_length(n->d.iPAddress);
      text = size == 4 ? IpAddress::v4_bytes(bytes).to_string() : size == 16 ? IpAddress::v6_bytes(bytes).to_string() : "?";
    } else {
      continue;
    }
    out += (out.empty() ? "" : ", ") + text;
  }
  ::GENERAL_NAMES_free(names);
  return out.empty() ? name_entry(::X509_get_subject_name(leaf)) : out;
}

CertificateVerdict judge(SSL* ssl, const std::string& host) {
  CertificateVerdict v;
  X509* leaf = ::SSL_get0_peer_certificate(ssl);
  if (!leaf) {
    v.fault = "the server has no certificate";
    return v;
  }
  const std::string issuer = name_entry(::X509_get_issuer_name(leaf));
  v.summary = "certificate for " + certificate_names(leaf) + ", from " + issuer + ", until " + time_text(::X509_get0_notAfter(leaf));
  int days = 0, seconds = 0;
  long verdict = ::SSL_get_verify_result(ssl);
  // Which certificate of the chain it is about is not recorded; the leaf's own dates are what usually fails.
  const bool over = ::ASN1_TIME_diff(&days, &seconds, nullptr, ::X509_get0_notAfter(leaf)) == 1 && (days < 0 || seconds < 0);
  if (verdict == X509_V_OK) {
    v.days_left = days;
    return v;
  }
  switch (verdict) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
      v.fault = over ? "the certificate expired " + age(days, seconds) + " ago (" + time_text(::X509_get0_notAfter(leaf)) + ")"
                     : "a certificate in the server's chain has expired";
      v.advice = "renew it on the server";
      v.time_fault = true;
      break;
    case X509_V_ERR_CERT_NOT_YET_VALID:
      v.fault = "the certificate is valid only from " + time_text(::X509_get0_notBefore(leaf)) + " on";
      v.advice = "set this machine's clock right, or renew the certificate";
      v.time_fault = true;
      break;
    case X509_V_ERR_HOSTNAME_MISMATCH:
    case X509_V_ERR_IP_ADDRESS_MISMATCH:
      v.fault = "the certificate is for " + certificate_names(leaf) + ", not for " + host;
      v.advice = "use a URL with one of these names, or give the server a certificate for " + host;
      break;
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
      v.fault = "the certificate is signed by itself, which nobody vouches for";
      v.advice = "give the file with --ca-file if it is your own (node run --ca-file, too), or get one from a public authority";
      break;
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
      v.fault = "the certificate is signed by " + issuer + ", which this host does not trust";
      v.advice = "if that is your own authority, give its certificate with --ca-file; else the server sends an incomplete chain (use "
                 "fullchain.pem), or something in between answers in its place";
      break;
    default: v.fault = std::string("the certificate was refused: ") + ::X509_verify_cert_error_string(verdict);
  }
  if (over && verdict != X509_V_ERR_CERT_HAS_EXPIRED) *v.fault += "; it also expired " + age(days, seconds) + " ago";
  return v;
}

}  // namespace

bool wait_ready(int fd, short events, Deadline until, int stop_fd) {
  for (;;) {
    pollfd p[2] = {{fd, events, 0}, {stop_fd, POLLIN, 0}};
    int left = ms_until(until);
    int n = ::poll(p, 2, left);
    if (n < 0 && errno == EINTR) continue;
    if (stop_fd >= 0 && p[1].revents) throw Stopped();
    return n > 0;
  }
}

Result<std::vector<IpAddress>> look_up(const std::string& host, Deadline until, int stop_fd) {
  if (auto literal = IpAddress::parse(host)) return std::vector<IpAddress>{*literal};
  auto answer = std::make_shared<std::promise<Result<std::vector<IpAddress>>>>();
  auto result = answer->get_future();
  std::thread([answer, host] {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* list = nullptr;
    int rc = ::getaddrinfo(host.c_str(), nullptr, &hints, &list);
    if (rc != 0) {
      answer->set_value(Error{rc == EAI_NONAME || rc == EAI_NODATA ? ErrorCode::kNotFound : ErrorCode::kUnavailable, ::gai_strerror(rc)});
      return;
    }
    std::vector<IpAddress> out;
    for (addrinfo* a = list; a; a = a->ai_next) {
      sockaddr_storage s{};
      std::memcpy(&s, a->ai_addr, a->ai_addrlen);
      IpAddress ip = runtime::from_sockaddr(s).address;
      if (ip.is_valid() && std::find(out.begin(), out.end(), ip) == out.end()) out.push_back(ip);
    }
    ::freeaddrinfo(list);
    answer->set_value(std::move(out));
  }).detach();
  while (result.wait_for(20ms) != std::future_status::ready) {
    if (std::chrono::steady_clock::now() >= until) return late("no name server answers");
    pollfd p{stop_fd, POLLIN, 0};
    if (stop_fd >= 0 && ::poll(&p, 1, 0) > 0) throw Stopped();
  }
  return result.get();
}

OwnedFd connect_any(const std::vector<Endpoint>& to, Deadline until, int stop_fd, std::vector<ConnectAttempt>& attempts) {
  std::vector<OwnedFd> fds;
  for (const Endpoint& e : to) {
    ConnectAttempt attempt{e, {}, false};
    OwnedFd fd(::socket(e.address.is_v6() ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    runtime::SockAddr a = runtime::to_sockaddr(e);
    if (!fd || (::connect(fd.get(), a.get(), a.size) != 0 && errno != EINPROGRESS)) {
      attempt.error = Error{ErrorCode::kUnavailable, std::strerror(errno)};
      fd = OwnedFd();
    }
    fds.push_back(std::move(fd));
    attempts.push_back(attempt);
  }
  OwnedFd winner;
  for (;;) {
    std::vector<pollfd> p;
    std::vector<std::size_t> which;
    for (std::size_t i = 0; i < fds.size(); ++i)
      if (fds[i]) {
        p.push_back({fds[i].get(), POLLOUT, 0});
        which.push_back(i);
      }
    if (p.empty()) break;
    p.push_back({stop_fd, POLLIN, 0});
    int n = ::poll(p.data(), p.size(), ms_until(until));
    if (n < 0 && errno == EINTR) continue;
    if (stop_fd >= 0 && p.back().revents) throw Stopped();
    if (n <= 0) {
      for (std::size_t i : which) attempts[i].error = late(winner ? "no answer yet" : "no answer");
      break;
    }
    for (std::size_t k = 0; k < which.size(); ++k) {
      if (!p[k].revents) continue;
      std::size_t i = which[k];
      int error = 0;
      socklen_t size = sizeof error;
      ::getsockopt(fds[i].get(), SOL_SOCKET, SO_ERROR, &error, &size);
      OwnedFd fd = std::move(fds[i]);
      fds[i] = OwnedFd();
      if (error != 0) {
        attempts[i].error = runtime::errno_error("", error);
        attempts[i].error->message = std::strerror(error);
        continue;
      }
      attempts[i].connected = true;
      if (winner) continue;
      winner = std::move(fd);
      until = std::min(until, std::chrono::steady_clock::now() + kOtherFamilyGrace);
    }
  }
  return winner;
}

ProbeLink::~ProbeLink() {
  if (ssl_) ::SSL_free(ssl_);
}

Error ProbeLink::tls_error(int rc, const std::string& doing) const {
  int why = ::SSL_get_error(ssl_, rc);
  int reason = ERR_GET_REASON(::ERR_peek_last_error());
  if (reason == SSL_R_WRONG_VERSION_NUMBER || reason == SSL_R_HTTP_REQUEST || reason == SSL_R_PACKET_LENGTH_TOO_LONG)
    return {ErrorCode::kProtocol, "it answers, but not with TLS: is the URL meant to begin with http://?"};
  if (why == SSL_ERROR_SYSCALL || why == SSL_ERROR_ZERO_RETURN || reason == SSL_R_UNEXPECTED_EOF_WHILE_READING)
    return {ErrorCode::kReset, "it closed the connection during " + doing};
  char text[256] = "unknown reason";
  if (unsigned long e = ::ERR_get_error()) ::ERR_error_string_n(e, text, sizeof text);
  const char* last = std::strrchr(text, ':');
  return {ErrorCode::kProtocol, doing + " failed: " + (last ? last + 1 : text)};
}

Result<CertificateVerdict> ProbeLink::start_tls(SSL_CTX* context, const std::string& host, Deadline until) {
  ssl_ = ::SSL_new(context);
  ::SSL_set_fd(ssl_, fd_.get());
  if (IpAddress::parse(host)) {
    ::X509_VERIFY_PARAM_set1_ip_asc(::SSL_get0_param(ssl_), host.c_str());
  } else {
    ::SSL_ctrl(ssl_, SSL_CTRL_SET_TLSEXT_HOSTNAME, TLSEXT_NAMETYPE_host_name, const_cast<char*>(host.c_str()));
    ::SSL_set1_host(ssl_, host.c_str());
  }
  for (;;) {
    ::ERR_clear_error();
    int rc = ::SSL_connect(ssl_);
    if (rc == 1) return judge(ssl_, host);
    int why = ::SSL_get_error(ssl_, rc);
    if (why != SSL_ERROR_WANT_READ && why != SSL_ERROR_WANT_WRITE) return tls_error(rc, "the TLS handshake");
    if (!wait_ready(fd_.get(), why == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT, until, stop_fd_))
      return late("the TLS handshake does not finish: something on the way holds it up");
  }
}

Status ProbeLink::write(Bytes bytes, Deadline until) {
  while (!bytes.empty()) {
    short wanted = POLLOUT;
    if (ssl_) {
      ::ERR_clear_error();
      int rc = ::SSL_write(ssl_, bytes.data(), static_cast<int>(bytes.size()));
      if (rc > 0) {
        bytes = bytes.subspan(static_cast<std::size_t>(rc));
        continue;
      }
      int why = ::SSL_get_error(ssl_, rc);
      if (why == SSL_ERROR_WANT_READ) wanted = POLLIN;
      else if (why != SSL_ERROR_WANT_WRITE) return tls_error(rc, "sending");
    } else {
      ssize_t n = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n > 0) {
        bytes = bytes.subspan(static_cast<std::size_t>(n));
        continue;
      }
      if (errno != EAGAIN && errno != EINTR) return runtime::errno_error("sending", errno);
    }
    if (!wait_ready(fd_.get(), wanted, until, stop_fd_)) return late("it takes no data");
  }
  return {};
}

Result<std::size_t> ProbeLink::read(MutBytes into, Deadline until) {
  for (;;) {
    short wanted = POLLIN;
    if (ssl_) {
      ::ERR_clear_error();
      int rc = ::SSL_read(ssl_, into.data(), static_cast<int>(into.size()));
      if (rc > 0) return static_cast<std::size_t>(rc);
      int why = ::SSL_get_error(ssl_, rc);
      int reason = ERR_GET_REASON(::ERR_peek_last_error());
      if (why == SSL_ERROR_ZERO_RETURN || reason == SSL_R_UNEXPECTED_EOF_WHILE_READING) return std::size_t{0};
      if (why == SSL_ERROR_WANT_WRITE) wanted = POLLOUT;
      else if (why != SSL_ERROR_WANT_READ) return tls_error(rc, "reading");
    } else {
      ssize_t n = ::recv(fd_.get(), into.data(), into.size(), 0);
      if (n >= 0) return static_cast<std::size_t>(n);
      if (errno != EAGAIN && errno != EINTR) return runtime::errno_error("reading", errno);
    }
    if (!wait_ready(fd_.get(), wanted, until, stop_fd_)) return late("no answer came");
  }
}

void TlsContextFree::operator()(SSL_CTX* context) const { ::SSL_CTX_free(context); }

TlsContext probe_tls_context(const std::string& ca_file) {
  TlsContext context(::SSL_CTX_new(::TLS_client_method()));
  ::SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION);
  ::SSL_CTX_set_verify(context.get(), SSL_VERIFY_NONE, nullptr);   // judged afterwards
  static constexpr unsigned char kAlpn[] = "\x08http/1.1";
  ::SSL_CTX_set_alpn_protos(context.get(), kAlpn, sizeof kAlpn - 1);
  ::SSL_CTX_set_default_verify_paths(context.get());
  if (!ca_file.empty() && ::SSL_CTX_load_verify_file(context.get(), ca_file.c_str()) != 1)
    throw CommandError("cannot use the CA file " + ca_file + ": it is missing, not readable or not PEM");
  return context;
}

}  // namespace porthole::app
