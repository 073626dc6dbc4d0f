#include "client/playback.h"

#include <openssl/crypto.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <map>
#include <set>

#include "client/limits.h"
#include "client/range.h"
#include "session/names.h"
#include "support/support.h"

namespace porthole::client {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::awaitable;
using asio::ip::tcp;
using boost::system::error_code;

// What may stand in a URL as it is; everything else becomes "-", since the name is only there for people.
std::string url_name(const std::string& text) {
  std::string out;
  for (char c : text) {
    bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_';
    if (plain)
      out += c;
    else if (!out.empty() && out.back() != '-')
      out += '-';
  }
  return out.empty() ? "item" : out;
}

tcp::endpoint listen_endpoint(const std::string& listen) {
  session::HostPort at = session::parse_listen_address(listen);
  error_code error;
  asio::ip::address address = asio::ip::make_address(at.host, error);
  if (error || !address.is_loopback())
    throw app::CommandError("playback listens on loopback addresses only (127.0.0.1 or ::1), not on " + listen);
  return {address, at.port};
}

}  // namespace

struct Playback::Impl : std::enable_shared_from_this<Impl> {
  Impl(asio::io_context& i, SessionSource s, std::function<void(const std::string&)> p)
      : io(i), acceptor(i), source(std::move(s)), problem(std::move(p)), token(app::random_hex(16)) {}

  void open(const std::string& listen) {
    tcp::endpoint endpoint = listen_endpoint(listen);
    error_code error;
    acceptor.open(endpoint.protocol(), error);
    if (!error) acceptor.set_option(tcp::acceptor::reuse_address(true), error);
    if (!error) acceptor.bind(endpoint, error);
    if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
    if (error) throw ClientError(Failure::kFailed, "cannot listen on " + listen + ": " + error.message());
    tcp::endpoint bound = acceptor.local_endpoint();
    base = "http://" + session::join_host_port(bound.address().to_string(), bound.port());
    asio::co_spawn(io, accept_loop(shared_from_this()), asio::detached);
  }

  void stop() {
    stopped = true;
    error_code ignored;
    acceptor.close(ignored);
    for (beast::tcp_stream* c : connections) c->socket().close(ignored);
  }

  static awaitable<void> accept_loop(std::shared_ptr<Impl> self) {
    while (!self->stopped) {
      error_code error;
      tcp::socket socket(self->io);
      co_await self->acceptor.async_accept(socket, asio::redirect_error(asio::use_awaitable, error));
      if (error || self->stopped) {
        if (error == asio::error::operation_aborted || !self->acceptor.is_open()) co_return;
        continue;
      }
      if (self->connections.size() >= kPlaybackConnectionsMax) continue;  // closes it
      asio::co_spawn(self->io, serve(self, std::move(socket)), asio::detached);
    }
  }

  static awaitable<void> serve(std::shared_ptr<Impl> self, tcp::socket socket) {
    beast::tcp_stream stream(std::move(socket));
    struct Registered {
      Impl& impl;
      beast::tcp_stream* stream;
      Registered(Impl& i, beast::tcp_stream* s) : impl(i), stream(s) { impl.connections.insert(s); }
      ~Registered() { impl.connections.erase(stream); }
    } registered(*self, &stream);
    beast::flat_buffer buffer(kPlaybackHeaderBytesMax);
    bool keep = true;
    while (keep && !self->stopped) {
      error_code error;
      http::request_parser<http::string_body> parser;
      parser.header_limit(static_cast<std::uint32_t>(kPlaybackHeaderBytesMax));
      parser.body_limit(0);
      stream.expires_after(kPlaybackIdle);
      co_await http::async_read(stream, buffer, parser, asio::redirect_error(asio::use_awaitable, error));
      if (error) co_return;
      stream.expires_never();
      http::request<http::string_body> request = parser.release();
      keep = co_await self->answer(stream, request);
    }
    error_code ignored;
    stream.socket().shutdown(tcp::socket::shutdown_send, ignored);
  }

  awaitable<bool> refuse(beast::tcp_stream& stream, const http::request<http::string_body>& request, http::status status,
                         std::string text) {
    http::response<http::string_body> response(status, request.version());
    response.set(http::field::content_type, "text/plain; charset=utf-8");
    if (status == http::status::method_not_allowed) response.set(http::field::allow, "GET, HEAD");
    response.keep_alive(request.keep_alive());
    response.body() = text + "\n";
    response.prepare_payload();
    if (request.method() == http::verb::head) response.body().clear();
    error_code error;
    co_await http::async_write(stream, response, asio::redirect_error(asio::use_awaitable, error));
    co_return !error && request.keep_alive();
  }

  // What one request is answered from.
  struct Opening {
    std::uint64_t size = 0;
    std::string type;
    RangeAnswer range;
    std::unique_ptr<ReadStream> from;  // none for HEAD, and for a range that is not there
    bool current = false;              // false: what was remembered about the item is not true any more
  };

  // The range depends on the size: from the last answer about this item, else (or with `look`) from a look at the item.
  awaitable<Opening> open_item(std::shared_ptr<Session> session, const std::string& item, bool look,
                               const http::request<http::string_body>& request) {
    Opening out;
    auto known = look ? facts.end() : facts.find(item);
    if (known != facts.end()) {
      out.size = known->second.first;
      out.type = known->second.second;
    } else {
      std::unique_ptr<ReadStream> first;
      try {
        first = co_await session->read(item, 0, 1);
      } catch (const ClientError& e) {
        if (e.failure() != Failure::kNotFound) throw;
      }
      // An item of 0 bytes has no first one, but can be opened.
      if (!first) first = co_await session->read(item, 0, 0);
      out.size = first->size_bytes;
      out.type = first->content_type;
    }
    out.range = parse_range(std::string(request[http::field::range]), out.size);
    out.current = known == facts.end() || out.range.verdict != RangeVerdict::kUnsatisfiable;
    if (request.method() == http::verb::get && out.range.verdict != RangeVerdict::kUnsatisfiable) {
      bool part = out.range.verdict == RangeVerdict::kPartial;
      try {
        out.from = co_await session->read(item, part ? out.range.range.offset : 0, part ? out.range.range.length : out.size);
        out.current = out.from->size_bytes == out.size;
      } catch (const ClientError& e) {
        if (e.failure() != Failure::kNotFound) throw;
        out.current = false;
      }
    }
    co_return out;
  }

  // False: the connection ends.
  awaitable<bool> answer(beast::tcp_stream& stream, const http::request<http::string_body>& request) {
    if (request.method() != http::verb::get && request.method() != http::verb::head)
      co_return co_await refuse(stream, request, http::status::method_not_allowed, "only GET and HEAD");
    // "/TOKEN/ITEM/NAME"
    std::string target(request.target());
    std::string prefix = "/" + token + "/";
    bool known = target.size() > prefix.size() && CRYPTO_memcmp(target.data(), prefix.data(), prefix.size()) == 0;
    if (!known) co_return co_await refuse(stream, request, http::status::not_found, "not found");
    std::string item = target.substr(prefix.size());
    item = item.substr(0, item.find('/'));

    std::string failure;
    http::status failure_status = http::status::bad_gateway;
    Opening opening;
    try {
      std::shared_ptr<Session> session = co_await source();
      opening = co_await open_item(session, item, false, request);
      if (!opening.current) opening = co_await open_item(session, item, true, request);
      if (!opening.current) throw ClientError(Failure::kFailed, "the item changes on the server; ask again");
      facts[item] = {opening.size, opening.type};
    } catch (const ClientError& e) {
      failure = e.what();
      if (e.failure() == Failure::kNotFound) failure_status = http::status::not_found;
      facts.erase(item);
    }
    if (!failure.empty()) {
      problem(failure);
      co_return co_await refuse(stream, request, failure_status, failure);
    }

    const RangeAnswer& range = opening.range;
    const std::uint64_t size = opening.size;
    http::response<http::empty_body> response(http::status::ok, request.version());
    response.set(http::field::server, "porthole");
    response.set(http::field::accept_ranges, "bytes");
    response.set(http::field::content_type, opening.type.empty() ? "application/octet-stream" : opening.type);
    response.set(http::field::cache_control, "no-store");
    response.keep_alive(request.keep_alive());
    std::uint64_t offset = 0;
    std::uint64_t length = size;
    if (range.verdict == RangeVerdict::kUnsatisfiable) {
      response.result(http::status::range_not_satisfiable);
      response.set(http::field::content_range, "bytes */" + std::to_string(size));
      length = 0;
    } else if (range.verdict == RangeVerdict::kPartial) {
      response.result(http::status::partial_content);
      offset = range.range.offset;
      length = range.range.length;
      response.set(http::field::content_range, "bytes " + std::to_string(offset) + "-" + std::to_string(offset + length - 1) +
                                                   "/" + std::to_string(size));
    }
    response.content_length(length);
    http::response_serializer<http::empty_body> head(response);
    error_code error;
    co_await http::async_write_header(stream, head, asio::redirect_error(asio::use_awaitable, error));
    if (error) co_return false;
    if (request.method() == http::verb::head || !opening.from) co_return request.keep_alive();
    bool whole = co_await pass_on(stream, std::move(opening.from), item, offset, length, size);
    co_return whole && request.keep_alive();
  }

  // Sends `length` bytes from `offset` on; false when that could not be done in full.
  awaitable<bool> pass_on(beast::tcp_stream& stream, std::unique_ptr<ReadStream> from, std::string item,
                          std::uint64_t offset, std::uint64_t length, std::uint64_t size) {
    std::uint64_t done = 0;
    int losses = 0;
    while (done < length) {
      std::string bytes;
      bool lost = false;
      try {
        if (!from) {
          std::shared_ptr<Session> session = co_await source();
          from = co_await session->read(item, offset + done, length - done);
          if (from->size_bytes != size) throw ClientError(Failure::kFailed, "the item changed on the server while it was played");
        }
        bytes = co_await from->read();
      } catch (const ClientError& e) {
        if (e.failure() != Failure::kLost || stopped || ++losses > kStreamLossesMax) {
          problem(e.what());
          co_return false;
        }
        lost = true;
      }
      if (lost) {
        from.reset();
        continue;
      }
      losses = 0;
      if (bytes.empty()) co_return false;
      error_code error;
      co_await asio::async_write(stream.socket(), asio::buffer(bytes), asio::redirect_error(asio::use_awaitable, error));
      if (error) co_return false;  // the player has enough
      done += bytes.size();
      served += bytes.size();
    }
    co_return true;
  }

  asio::io_context& io;
  tcp::acceptor acceptor;
  SessionSource source;
  std::function<void(const std::string&)> problem;
  std::string token, base;
  std::set<beast::tcp_stream*> connections;
  std::map<std::string, std::pair<std::uint64_t, std::string>> facts;  // item -> size and type, as last answered
  std::uint64_t served = 0;
  bool stopped = false;
};

Playback::Playback(asio::io_context& io, const std::string& listen, SessionSource source,
                   std::function<void(const std::string&)> problem)
    : impl_(std::make_shared<Impl>(io, std::move(source), std::move(problem))) {
  impl_->open(listen);
}
Playback::~Playback() { impl_->stop(); }
void Playback::check_listen(const std::string& listen) { listen_endpoint(listen); }
std::string Playback::url(const Item& item) const {
  return impl_->base + "/" + impl_->token + "/" + item.id + "/" + url_name(item.file_name);
}
std::uint64_t Playback::bytes_served() const { return impl_->served; }

}  // namespace porthole::client
