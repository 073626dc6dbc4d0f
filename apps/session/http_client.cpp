#include "session/http_client.h"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/asio/ssl/host_name_verification.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/ssl.hpp>

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
awaitable<void> converse(Stream& stream, const Request& request, std::size_t body_max, Response& answer) {
  co_await http::async_write(stream, request, asio::use_awaitable);
  beast::flat_buffer buffer;
  http::response_parser<http::string_body> parser;
  parser.body_limit(body_max);
  co_await http::async_read(stream, buffer, parser, asio::use_awaitable);
  answer = parser.release();
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

HttpAnswer HttpClient::call(const HttpCall& call, std::chrono::milliseconds time_max, std::size_t body_max) const {
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
  const char* doing = "cannot be found";
  asio::io_context io(1);
  auto run = [&]() -> awaitable<void> {
    tcp::resolver resolver(io);
    auto addresses = co_await resolver.async_resolve(host_, std::to_string(port_), asio::use_awaitable);
    doing = "cannot be reached";
    beast::tcp_stream stream(io);
    co_await stream.async_connect(addresses, asio::use_awaitable);
    if (!tls_) {
      doing = "does not answer as HTTP";
      co_await converse(stream, request, body_max, answer);
      co_return;
    }
    doing = "has no certificate that is trusted here (see --ca-file)";
    beast::ssl_stream<beast::tcp_stream> secure(std::move(stream), tls_->context);
    secure.set_verify_callback(asio::ssl::host_name_verification(host_));
    // Spelled out because the macro of OpenSSL casts in C.
    boost::system::error_code is_name;
    (void)asio::ip::make_address(host_, is_name);
    if (is_name)
      SSL_ctrl(secure.native_handle(), SSL_CTRL_SET_TLSEXT_HOSTNAME, TLSEXT_NAMETYPE_host_name, const_cast<char*>(host_.c_str()));
    co_await secure.async_handshake(asio::ssl::stream_base::client, asio::use_awaitable);
    doing = "does not answer as HTTP";
    co_await converse(secure, request, body_max, answer);
  };
  asio::co_spawn(io, run(), [&](std::exception_ptr e) {
    failure = e;
    finished = true;
    io.stop();
  });
  io.run_for(time_max);
  if (!finished) throw HttpTrouble("did not answer within " + std::to_string(time_max.count() / 1000) + " s");
  if (failure) {
    try {
      std::rethrow_exception(failure);
    } catch (const boost::system::system_error& e) {
      throw HttpTrouble(std::string(doing) + ": " + e.code().message());
    }
  }
  return {answer.result_int(), std::move(answer.body())};
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
