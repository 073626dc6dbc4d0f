#include "client/session.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/ssl/error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core/error.hpp>
#include <boost/beast/websocket/error.hpp>
#include <map>

#include "client/limits.h"
#include "session/limits.h"
#include "session/message_stream.h"
#include "session/tls.h"

namespace porthole::client {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace websocket = beast::websocket;
using asio::awaitable;
using asio::ip::tcp;
using boost::system::error_code;
using std::chrono::steady_clock;

class SessionImpl final : public Session, public std::enable_shared_from_this<SessionImpl> {
 public:
  SessionImpl(tcp::socket socket, std::string where)
      : executor_(socket.get_executor()),
        tls_(session::client_tls().release()),
        stream_(std::move(socket), tls_, session::kAnswerBytesMax),
        outgoing_(executor_, steady_clock::time_point::max()),
        over_(executor_, steady_clock::time_point::max()),
        where_(std::move(where)),
        machine_(where_) {}

  awaitable<void> handshake(std::string pin) {
    error_code error = co_await stream_.secure(asio::ssl::stream_base::client, session::kHandshakeTimeout);
    if (error == beast::error::timeout)
      throw ClientError(Failure::kUnreachable, where_ + " accepts connections but does not answer");
    if (error == asio::error::connection_reset || error == asio::error::eof)
      throw ClientError(Failure::kUnreachable, where_ + " closed the connection at once");
    if (error)
      throw ClientError(Failure::kNotPorthole, where_ + " is not a Porthole media server: no TLS 1.3 (" + error.message() + ")");
    fingerprint_ = session::peer_fingerprint(stream_.tls());
    if (fingerprint_.empty())
      throw ClientError(Failure::kNotPorthole, where_ + " is not a Porthole media server: it shows no certificate");
    if (!pin.empty() && pin != fingerprint_)
      throw ClientError(Failure::kPinChanged,
                        "the certificate of " + where_ + " is not the one seen at the first login: expected " + pin + ", got " +
                            fingerprint_ + "; it is another machine, or the server was set up anew (then remove the "
                            "saved server and log in again). Nothing was sent");
    unsigned status = 0;
    error = co_await stream_.connect(status);
    if (error == websocket::error::upgrade_declined)
      throw ClientError(Failure::kNotPorthole, where_ + " is a web server but not a Porthole media server (HTTP status " +
                                                   std::to_string(status) + ")");
    if (error) throw ClientError(Failure::kUnreachable, where_ + " broke off the connection: " + error.message());
  }

  void start() {
    auto self = shared_from_this();
    asio::co_spawn(executor_, [self]() { return self->read_loop(); }, asio::detached);
    asio::co_spawn(executor_, [self]() { return self->write_loop(); }, asio::detached);
  }

  const std::string& fingerprint() const override { return fingerprint_; }
  bool ended() const override { return machine_.ended(); }
  std::string end_reason() const override { return machine_.reason(); }

  awaitable<void> wait_end() override {
    auto self = shared_from_this();
    error_code ignored;
    while (!machine_.ended()) co_await over_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
  }

  void close() override {
    machine_.end(Failure::kLost, "the session was closed");
    moved();
  }

  awaitable<LoginAnswer> login(LoginDetails details) override {
    Request r(*this, machine_.ask_login(details));
    co_await answer_to(r);
    co_return machine_.login(r.id);
  }

  awaitable<std::vector<Item>> list() override {
    Listing listing;
    for (bool whole = false; !whole;) {
      Request r(*this, machine_.ask_page(listing));
      co_await answer_to(r);
      whole = machine_.page(r.id, listing);
    }
    co_return std::move(listing.items);
  }

  awaitable<PosterImage> poster(std::string item_id) override {
    Request r(*this, machine_.ask_poster(item_id));
    co_await answer_to(r);
    co_return machine_.poster(r.id);
  }

  awaitable<void> ping() override {
    Request r(*this, machine_.ask_ping());
    co_await answer_to(r);
    machine_.pong(r.id);
  }

  awaitable<std::unique_ptr<ReadStream>> read(std::string item_id, std::uint64_t offset, std::uint64_t length) override;

 private:
  friend class ReadStreamImpl;

  // A request until nobody waits for its answers any more. Keeps the session.
  struct Request {
    Request(SessionImpl& s, std::uint64_t number)
        : session(s.shared_from_this()), id(number), bell(s.executor_, steady_clock::time_point::max()) {
      session->requests_[id] = this;
      session->moved();
    }
    ~Request() {
      session->requests_.erase(id);
      session->machine_.forget(id);
      session->moved();
    }
    Request(const Request&) = delete;
    Request& operator=(const Request&) = delete;
    const std::shared_ptr<SessionImpl> session;
    const std::uint64_t id;
    asio::steady_timer bell;
  };

  // Until there is an answer; ClientError when nothing comes for kAnswerTimeout.
  awaitable<void> answer_to(Request& r) {
    const steady_clock::time_point deadline = steady_clock::now() + kAnswerTimeout;
    while (!machine_.has_answer(r.id)) {
      if (steady_clock::now() >= deadline) throw ClientError(Failure::kLost, where_ + " does not answer any more");
      error_code ignored;
      r.bell.expires_at(deadline);
      co_await r.bell.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
    }
  }

  // After every call into the machine that may have something to send, or have ended the session.
  void moved() {
    outgoing_.cancel();
    if (!machine_.ended() || over_told_) return;
    over_told_ = true;
    stream_.abort();
    over_.cancel();
    for (auto& [id, request] : requests_) request->bell.cancel();
  }

  awaitable<void> read_loop() {
    auto self = shared_from_this();
    while (!machine_.ended()) {
      const session::MessageStream::Received message = co_await stream_.read();
      if (const error_code& error = message.error) {
        const bool closed = error == websocket::error::closed || error == asio::error::eof || error == asio::ssl::error::stream_truncated;
        machine_.handle_loss(closed ? "it was closed at the other end" : error.message());
      } else if (auto it = requests_.find(machine_.handle_message(message.bytes)); it != requests_.end()) {
        it->second->bell.cancel();
      }
      moved();
    }
  }

  awaitable<void> write_loop() {
    auto self = shared_from_this();
    while (!machine_.ended()) {
      error_code error;
      std::optional<std::string> message = machine_.produce();
      if (!message) {
        co_await outgoing_.async_wait(asio::redirect_error(asio::use_awaitable, error));
        continue;
      }
      error = co_await stream_.write(*message);
      std::fill(message->begin(), message->end(), '\0');  // it may have held the password
      if (error) co_return;                               // the reader finds out why
    }
  }

  asio::any_io_executor executor_;
  asio::ssl::context tls_;
  session::MessageStream stream_;
  asio::steady_timer outgoing_, over_;
  const std::string where_;
  std::string fingerprint_;
  SessionMachine machine_;
  std::map<std::uint64_t, Request*> requests_;
  bool over_told_ = false;
};

class ReadStreamImpl final : public ReadStream {
 public:
  ReadStreamImpl(SessionImpl& session, std::uint64_t id) : session_(session), request_(session, id) {}

  awaitable<void> open() {
    co_await session_.answer_to(request_);
    static_cast<OpenedRange&>(*this) = session_.machine_.opened(request_.id);
  }

  awaitable<std::string> read() override {
    if (done_) co_return std::string();
    co_await session_.answer_to(request_);
    std::string out = session_.machine_.data(request_.id);
    done_ = out.empty();
    session_.moved();
    co_return out;
  }

 private:
  SessionImpl& session_;  // request_ keeps it
  SessionImpl::Request request_;
  bool done_ = false;
};

awaitable<std::unique_ptr<ReadStream>> SessionImpl::read(std::string item_id, std::uint64_t offset, std::uint64_t length) {
  auto stream = std::make_unique<ReadStreamImpl>(*this, machine_.ask_range(item_id, offset, length));
  co_await stream->open();
  std::unique_ptr<ReadStream> out = std::move(stream);
  co_return out;
}

}  // namespace

awaitable<std::shared_ptr<Session>> Session::open(tcp::socket socket, std::string where, std::string pin) {
  auto s = std::make_shared<SessionImpl>(std::move(socket), std::move(where));
  co_await s->handshake(std::move(pin));
  s->start();
  std::shared_ptr<Session> out = s;
  co_return out;
}

}  // namespace porthole::client
