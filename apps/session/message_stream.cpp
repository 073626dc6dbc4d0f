#include "session/message_stream.h"

#include <boost/asio/redirect_error.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/ssl.hpp>
#include <boost/beast/websocket.hpp>
#include <boost/beast/websocket/ssl.hpp>
#include <google/protobuf/stubs/logging.h>
#include <mutex>

#include "session/limits.h"

namespace porthole::session {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
namespace websocket = beast::websocket;
using asio::redirect_error;
using asio::use_awaitable;

namespace {
constexpr std::size_t kHeadBytesMax = 8 * 1024;

// libprotobuf writes to stderr when a peer's message is wrong: any stranger could fill a log with it. Whoever parses says what
// there is to say.
void silence_protobuf() {
  static std::once_flag once;
  std::call_once(once, [] { google::protobuf::SetLogHandler(nullptr); });
}
}  // namespace

struct MessageStream::Impl {
  Impl(asio::ip::tcp::socket socket, asio::ssl::context& tls) : ws(beast::tcp_stream(std::move(socket)), tls) {}

  beast::tcp_stream& tcp() { return beast::get_lowest_layer(ws); }
  // The WebSocket brings time limits of its own.
  void prepare() {
    tcp().expires_never();
    ws.set_option(websocket::stream_base::timeout{kHandshakeTimeout, kIdleTimeout, true});
    ws.auto_fragment(false);
    ws.binary(true);
    ws.write_buffer_bytes(kRequestBytesMax);  // what a client masks in one go
  }

  websocket::stream<beast::ssl_stream<beast::tcp_stream>, false> ws;  // films do not deflate
  http::request_parser<http::empty_body> request;
  beast::flat_buffer buffer;
};

MessageStream::MessageStream(asio::ip::tcp::socket socket, asio::ssl::context& tls, std::size_t message_max)
    : impl_(std::make_unique<Impl>(std::move(socket), tls)) {
  silence_protobuf();
  impl_->ws.read_message_max(message_max);
}
MessageStream::~MessageStream() = default;

auto MessageStream::secure(asio::ssl::stream_base::handshake_type side, std::chrono::seconds limit) -> Task<Error> {
  Error error;
  impl_->tcp().expires_after(limit);
  co_await impl_->ws.next_layer().async_handshake(side, redirect_error(use_awaitable, error));
  co_return error;
}

const SSL* MessageStream::tls() const { return impl_->ws.next_layer().native_handle(); }

auto MessageStream::read_upgrade() -> Task<Error> {
  Error error;
  auto& tls = impl_->ws.next_layer();
  auto& parser = impl_->request;
  parser.header_limit(kHeadBytesMax);
  beast::flat_buffer head(kHeadBytesMax);
  co_await http::async_read(tls, head, parser, redirect_error(use_awaitable, error));
  if (error) co_return error;
  if (websocket::is_upgrade(parser.get()) && parser.get().target() == kSessionPath) co_return error;
  http::response<http::string_body> answer(http::status::not_found, parser.get().version());
  answer.set(http::field::content_type, "text/plain; charset=utf-8");
  answer.body() = "This is a Porthole media server. Use \"porthole client\" to connect to it.\n";
  answer.keep_alive(false);
  answer.prepare_payload();
  co_await http::async_write(tls, answer, redirect_error(use_awaitable, error));
  if (!error) co_await tls.async_shutdown(redirect_error(use_awaitable, error));
  co_return websocket::error::upgrade_declined;
}

auto MessageStream::accept() -> Task<Error> {
  Error error;
  impl_->prepare();
  impl_->ws.set_option(
      websocket::stream_base::decorator([](websocket::response_type& r) { r.set(http::field::server, "porthole"); }));
  co_await impl_->ws.async_accept(impl_->request.get(), redirect_error(use_awaitable, error));
  co_return error;
}

auto MessageStream::connect(unsigned& status) -> Task<Error> {
  Error error;
  impl_->prepare();
  websocket::response_type answer;
  const std::string host = "porthole", target = kSessionPath;
  co_await impl_->ws.async_handshake(answer, host, target, redirect_error(use_awaitable, error));
  status = answer.result_int();
  co_return error;
}

auto MessageStream::read() -> Task<Received> {
  Received out;
  beast::flat_buffer& buffer = impl_->buffer;
  buffer.consume(buffer.size());
  co_await impl_->ws.async_read(buffer, redirect_error(use_awaitable, out.error));
  out.text = impl_->ws.got_text();
  out.bytes = {static_cast<const char*>(buffer.data().data()), buffer.size()};
  co_return out;
}

auto MessageStream::write(std::string_view message) -> Task<Error> {
  Error error;
  co_await impl_->ws.async_write(asio::buffer(message.data(), message.size()), redirect_error(use_awaitable, error));
  co_return error;
}

auto MessageStream::close() -> Task<Error> {
  Error error;
  const websocket::close_reason reason(websocket::close_code::normal);
  co_await impl_->ws.async_close(reason, redirect_error(use_awaitable, error));
  co_return error;
}

void MessageStream::abort() {
  Error ignored;
  impl_->tcp().socket().close(ignored);
}

void MessageStream::reset() {
  Error ignored;
  impl_->tcp().socket().set_option(asio::socket_base::linger(true, 0), ignored);
  abort();
}

}  // namespace porthole::session
