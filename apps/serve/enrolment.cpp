#include "serve/enrolment.h"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/asio/ssl/host_name_verification.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/ssl.hpp>
#include <boost/json.hpp>
#include <charconv>

#include "serve/limits.h"
#include "session/names.h"
#include "session/tls.h"
#include "support/support.h"

namespace porthole::serve {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::awaitable;
using asio::ip::tcp;
using boost::system::error_code;

// What may stand in a path segment as it is (RFC 3986 section 2.3).
std::string escaped(const std::string& text) {
  std::string out;
  for (char c : text) {
    bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '.' ||
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

std::string text_of(const boost::json::object& object, const char* key) {
  const boost::json::value* v = object.if_contains(key);
  return v && v->is_string() ? std::string(v->as_string()) : std::string();
}

boost::json::object parse_object(const std::string& body) {
  error_code error;
  boost::json::value value = boost::json::parse(body, error);
  return !error && value.is_object() ? value.as_object() : boost::json::object();
}

template <class Stream>
awaitable<void> exchange(Stream& stream, http::request<http::string_body>& request, http::response<http::string_body>& answer) {
  co_await http::async_write(stream, request, asio::use_awaitable);
  beast::flat_buffer buffer(kEnrolmentAnswerBytesMax);
  http::response_parser<http::string_body> parser;
  parser.body_limit(kEnrolmentAnswerBytesMax);
  co_await http::async_read(stream, buffer, parser, asio::use_awaitable);
  answer = parser.release();
}

}  // namespace

EnrolmentClient::EnrolmentClient(const std::string& url, const std::string& token, std::string ca_file)
    : url_(url), ca_file_(std::move(ca_file)) {
  std::string_view rest = url;
  tls_ = rest.starts_with("https://");
  if (!tls_ && !rest.starts_with("http://"))
    throw app::CommandError("the address of the coordination service must start with https:// or http://, not \"" + url + "\"");
  rest.remove_prefix(tls_ ? 8 : 7);
  while (rest.ends_with('/')) rest.remove_suffix(1);
  while (url_.ends_with('/')) url_.pop_back();
  std::size_t slash = rest.find('/');
  if (slash != std::string_view::npos) prefix_ = rest.substr(slash);
  session::HostPort at = session::parse_server_url(rest.substr(0, slash), tls_ ? 443 : 80);
  host_ = at.host;
  port_ = std::to_string(at.port);
  constexpr std::string_view kKind = "phtoken-";
  std::size_t last = token.rfind('-');
  if (!token.starts_with(kKind) || last <= kKind.size() || token.find_first_of("\r\n \t") != std::string::npos)
    throw app::CommandError("the account token is not one (\"porthole remote account create\" prints it: phtoken-ACCOUNT-...)");
  account_ = token.substr(kKind.size(), last - kKind.size());
  token_ = token;
  if (tls_) session::verifying_client_tls(ca_file_);  // an unusable CA file is said at once
}

EnrolmentClient::Answer EnrolmentClient::post(const std::string& path, const std::string& body,
                                              std::chrono::milliseconds time_max) const {
  asio::io_context io(1);
  http::response<http::string_body> answer;
  std::exception_ptr failure;
  bool finished = false;
  const char* doing = "cannot be found";
  auto run = [&]() -> awaitable<void> {
    tcp::resolver resolver(io);
    tcp::resolver::results_type addresses = co_await resolver.async_resolve(host_, port_, asio::use_awaitable);
    doing = "cannot be reached";
    http::request<http::string_body> request(http::verb::post, prefix_ + path, 11);
    request.set(http::field::host, session::join_host_port(host_, static_cast<std::uint16_t>(std::stoi(port_))));
    request.set(http::field::authorization, "Bearer " + token_);
    request.set(http::field::user_agent, "porthole");
    request.set(http::field::accept, "application/json, application/problem+json");
    request.set(http::field::connection, "close");
    request.set(http::field::content_type, "application/json");
    request.body() = body;
    request.prepare_payload();
    beast::tcp_stream tcp(io);
    co_await tcp.async_connect(addresses, asio::use_awaitable);
    if (tls_) {
      doing = "has no certificate that is trusted here (see --ca-file)";
      asio::ssl::context context(session::verifying_client_tls(ca_file_).release());
      beast::ssl_stream<beast::tcp_stream> stream(std::move(tcp), context);
      stream.set_verify_callback(asio::ssl::host_name_verification(host_));
      // Spelled out because the macro of OpenSSL casts in C.
      SSL_ctrl(stream.native_handle(), SSL_CTRL_SET_TLSEXT_HOSTNAME, TLSEXT_NAMETYPE_host_name,
               const_cast<char*>(host_.c_str()));
      co_await stream.async_handshake(asio::ssl::stream_base::client, asio::use_awaitable);
      doing = "does not answer as HTTP";
      co_await exchange(stream, request, answer);
    } else {
      doing = "does not answer as HTTP";
      co_await exchange(tcp, request, answer);
    }
  };
  asio::co_spawn(io, run(), [&](std::exception_ptr e) {
    failure = e;
    finished = true;
    io.stop();
  });
  io.run_for(time_max);
  if (!finished) throw EnrolmentError("the coordination service at " + url_ + " did not answer in time", true);
  if (failure) {
    try {
      std::rethrow_exception(failure);
    } catch (const boost::system::system_error& e) {
      throw EnrolmentError("the coordination service at " + url_ + " " + doing + ": " + e.code().message(), true);
    }
  }
  return {answer.result_int(), answer.body()};
}

namespace {

[[noreturn]] void refuse(const std::string& url, unsigned status, const std::string& body) {
  boost::json::object problem = parse_object(body);
  std::string detail = text_of(problem, "detail");
  if (detail.empty()) detail = text_of(problem, "title");
  std::string what = detail.empty() ? "answered with HTTP status " + std::to_string(status)
                                    : "refused: " + session::clean_text(detail, 300);
  throw EnrolmentError("the coordination service at " + url + " " + what, status == 429 || status >= 500);
}

}  // namespace

DeviceKey EnrolmentClient::device_key(const std::string& device_id, bool replace,
                                      std::chrono::milliseconds time_max) const {
  std::string path = "/api/v1/accounts/" + escaped(account_) + "/devices/" + escaped(device_id) + "/key";
  Answer answer = post(path, replace ? "{\"replace\":true}" : "{}", time_max);
  if (answer.status != 200 && answer.status != 201) refuse(url_, answer.status, answer.body);
  boost::json::object object = parse_object(answer.body);
  DeviceKey out{text_of(object, "key"), text_of(object, "expires"), text_of(object, "coordination_url")};
  if (out.key.empty()) throw EnrolmentError("the coordination service at " + url_ + " answered without a key", false);
  if (out.coordination_url.empty()) out.coordination_url = url_;
  return out;
}

}  // namespace porthole::serve
