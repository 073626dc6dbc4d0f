#include "session/http_client.h"

#include <netdb.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/ssl.hpp>
#include <cstring>
#include <mutex>
#include <system_error>
#include <thread>

#include "session/names.h"
#include "session/tls.h"

namespace porthole::session {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::awaitable;
using asio::ip::tcp;

namespace {

using Request = http::request<http::string_body>;
using Response = http::response<http::string_body>;

template <class Stream>
awaitable<void> converse(Stream& stream, const Request& request, std::size_t body_max, beast::flat_buffer& buffer, Response& answer) {
  co_await http::async_write(stream, request, asio::use_awaitable);
  http::response_parser<http::string_body> parser;
  parser.body_limit(body_max);
  co_await http::async_read(stream, buffer, parser, asio::use_awaitable);
  answer = parser.release();
}

// The system's look-up can be neither interrupted nor limited in time, so it has a thread of its own, which whoever asked
// leaves behind when there is no more time.
struct LookUp {
  std::mutex mutex;
  asio::io_context* asker = nullptr;  // null: nobody waits any more
  asio::steady_timer* bell = nullptr;
  std::vector<tcp::endpoint> found;
  std::string failure;
};

void look_up(std::shared_ptr<LookUp> task, const std::string& host, std::uint16_t port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* list = nullptr;
  const int bad = ::getaddrinfo(host.c_str(), nullptr, &hints, &list);
  std::lock_guard lock(task->mutex);
  if (bad != 0) task->failure = ::gai_strerror(bad);
  for (const addrinfo* a = bad == 0 ? list : nullptr; a; a = a->ai_next) {
    tcp::endpoint at;
    if (a->ai_addrlen > at.capacity()) continue;
    std::memcpy(at.data(), a->ai_addr, a->ai_addrlen);
    at.resize(a->ai_addrlen);
    at.port(port);
    task->found.push_back(at);
  }
  if (bad == 0) ::freeaddrinfo(list);
  if (task->asker) asio::post(*task->asker, [bell = task->bell] { bell->cancel(); });
}

// Why the handshake failed, to stand behind the server's name.
std::string handshake_trouble(SSL* tls, const boost::system::error_code& error) {
  switch (SSL_get_verify_result(tls)) {
    case X509_V_OK: break;
    case X509_V_ERR_CERT_HAS_EXPIRED: return "has a certificate that has expired (or the clock of this machine is wrong)";
    case X509_V_ERR_CERT_NOT_YET_VALID: return "has a certificate that is not valid yet: is the clock of this machine right?";
    case X509_V_ERR_HOSTNAME_MISMATCH:
    case X509_V_ERR_IP_ADDRESS_MISMATCH: return "has a certificate for another name";
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
      return "has no certificate that is trusted here; if it is your own, give its CA with --ca-file";
    default:
      return std::string("has no certificate that is trusted here: ") + X509_verify_cert_error_string(SSL_get_verify_result(tls));
  }
  if (error.category() == asio::error::get_ssl_category()) {
    const int reason = ERR_GET_REASON(static_cast<unsigned long>(error.value()));
    if (reason == SSL_R_WRONG_VERSION_NUMBER || reason == SSL_R_HTTP_REQUEST || reason == SSL_R_PACKET_LENGTH_TOO_LONG)
      return "answers, but not with TLS: is its address meant to begin with http://?";
  }
  if (error == asio::error::eof || error == asio::ssl::error::stream_truncated || error == asio::error::connection_reset)
    return "closed the connection during the TLS handshake";
  return "cannot agree on TLS with this program: " + error.message();
}

// A TLS record where HTTP was expected: an alert, most likely.
bool looks_like_tls(std::string_view bytes) {
  return bytes.size() >= 3 && bytes[0] >= 0x14 && bytes[0] <= 0x17 && bytes[1] == 3;
}

}  // namespace

struct HttpClient::Tls {
  asio::ssl::context context;
};

HttpClient::HttpClient(bool tls, std::string host, std::uint16_t port, const std::string& ca_file)
    : host_(std::move(host)), port_(port) {
  if (tls) tls_ = std::make_unique<Tls>(Tls{asio::ssl::context(verifying_client_tls(ca_file).release())});
  else if (!ca_file.empty()) verifying_client_tls(ca_file);
}

HttpClient::~HttpClient() = default;

HttpAnswer HttpClient::call(const HttpCall& call, std::chrono::milliseconds time_max, std::size_t body_max,
                            std::stop_token stop) const {
  Request request(http::string_to_verb(call.method), call.target, 11);
  std::string authority = join_host_port(host_, port_);
  if (port_ == (tls_ ? 443 : 80)) authority.resize(authority.rfind(':'));
  request.set(http::field::host, authority);
  request.set(http::field::user_agent, "porthole");
  request.set(http::field::connection, "close");
  for (const auto& [name, value] : call.headers) request.set(name, value);
  if (!call.body.empty()) request.set(http::field::content_type, "application/json");
  request.body() = call.body;
  request.prepare_payload();

  Response answer;
  std::exception_ptr failure;
  bool finished = false;
  const char* doing = "cannot be reached";
  beast::flat_buffer buffer;
  auto task = std::make_shared<LookUp>();
  asio::io_context io(1);
  auto run = [&]() -> awaitable<void> {
    std::vector<tcp::endpoint> addresses;
    boost::system::error_code is_name;
    const asio::ip::address literal = asio::ip::make_address(host_, is_name);
    if (!is_name) {
      addresses.emplace_back(literal, port_);
    } else {
      asio::steady_timer bell(io, asio::steady_timer::time_point::max());
      task->asker = &io;
      task->bell = &bell;
      try {
        std::thread([task, host = host_, port = port_] { look_up(task, host, port); }).detach();
      } catch (const std::system_error& e) {
        throw HttpTrouble(std::string("cannot be looked up: ") + e.what());
      }
      boost::system::error_code rung;
      co_await bell.async_wait(asio::redirect_error(asio::use_awaitable, rung));
      std::lock_guard lock(task->mutex);
      task->asker = nullptr;
      if (task->found.empty()) throw HttpTrouble("cannot be found: " + task->failure);
      addresses = task->found;
    }
    beast::tcp_stream stream(io);
    co_await stream.async_connect(addresses, asio::use_awaitable);
    if (!tls_) {
      doing = "does not answer as HTTP";
      co_await converse(stream, request, body_max, buffer, answer);
      co_return;
    }
    beast::ssl_stream<beast::tcp_stream> secure(std::move(stream), tls_->context);
    SSL* tls = secure.native_handle();
    if (is_name) {
      SSL_set1_host(tls, host_.c_str());
      // Spelled out because the macro of OpenSSL casts in C.
      SSL_ctrl(tls, SSL_CTRL_SET_TLSEXT_HOSTNAME, TLSEXT_NAMETYPE_host_name, const_cast<char*>(host_.c_str()));
    } else {
      X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(tls), host_.c_str());
    }
    boost::system::error_code refused;
    co_await secure.async_handshake(asio::ssl::stream_base::client, asio::redirect_error(asio::use_awaitable, refused));
    if (refused) throw HttpTrouble(handshake_trouble(tls, refused));
    doing = "does not answer as HTTP";
    co_await converse(secure, request, body_max, buffer, answer);
  };
  asio::co_spawn(io, run(), [&](std::exception_ptr e) {
    failure = e;
    finished = true;
    io.stop();
  });
  {
    std::stop_callback interrupt(stop, [&io] { io.stop(); });
    io.run_for(time_max);
  }
  {
    std::lock_guard lock(task->mutex);
    task->asker = nullptr;
  }
  if (!finished && stop.stop_requested()) throw HttpTrouble("was not waited for: this program is stopping");
  if (!finished) throw HttpTrouble("did not answer within " + std::to_string(time_max.count() / 1000) + " s");
  if (failure) {
    try {
      std::rethrow_exception(failure);
    } catch (const boost::system::system_error& e) {
      if (!tls_ && looks_like_tls({static_cast<const char*>(buffer.data().data()), buffer.size()}))
        throw HttpTrouble("answers with TLS: is its address meant to begin with https://?");
      throw HttpTrouble(std::string(doing) + ": " + e.code().message());
    }
  }
  return {answer.result_int(), std::string(answer[http::field::content_type]), std::string(answer[http::field::location]),
          std::move(answer.body())};
}

std::string percent_encoded(std::string_view text) {
  std::string out;
  for (char c : text) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '.' ||
                       c == '_' || c == '~';
    if (plain) {
      out += c;
    } else {
      out += '%';
      out += "0123456789ABCDEF"[(c >> 4) & 15];
      out += "0123456789ABCDEF"[c & 15];
    }
  }
  return out;
}

}  // namespace porthole::session
