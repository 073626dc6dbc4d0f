#include "client/session.h"

#include <session.pb.h>

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
#include <deque>
#include <map>

#include "client/limits.h"
#include "session/limits.h"
#include "session/message_stream.h"
#include "session/names.h"
#include "session/tls.h"

namespace porthole::client {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace websocket = beast::websocket;
namespace pb = session::pb;
using asio::awaitable;
using asio::ip::tcp;
using boost::system::error_code;
using std::chrono::steady_clock;

std::string said(const std::string& text) { return session::clean_text(text, session::kTextBytesMax); }

Failure failure_of(pb::Error::Code code) {
  switch (code) {
    case pb::Error::NOT_FOUND:
    case pb::Error::UNPLAYABLE:
    case pb::Error::BAD_RANGE:
      return Failure::kNotFound;
    case pb::Error::LIMIT:
    case pb::Error::BUSY:
      return Failure::kRefused;
    case pb::Error::READ_FAILED:
      return Failure::kFailed;
    default:
      return Failure::kProtocol;
  }
}

// Answers to one request, in order. Bounded by what was granted: credit for data, one answer otherwise.
struct Pending {
  explicit Pending(asio::any_io_executor executor) : bell(executor, steady_clock::time_point::max()) {}
  std::deque<pb::Envelope> answers;
  asio::steady_timer bell;
  std::uint64_t data_allowed = 0;  // bytes of Data the server may still send
};

class SessionImpl final : public Session, public std::enable_shared_from_this<SessionImpl> {
 public:
  SessionImpl(tcp::socket socket, std::string where)
      : executor_(socket.get_executor()),
        tls_(session::client_tls().release()),
        stream_(std::move(socket), tls_, session::kAnswerBytesMax),
        outgoing_(executor_, steady_clock::time_point::max()),
        over_(executor_, steady_clock::time_point::max()),
        where_(std::move(where)) {}

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
  bool ended() const override { return ended_; }
  std::string end_reason() const override { return reason_; }

  awaitable<void> wait_end() override {
    auto self = shared_from_this();
    error_code ignored;
    while (!ended_) co_await over_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
  }

  void close() override {
    if (ended_) return;
    end(Failure::kLost, "the session was closed");
  }

  awaitable<LoginAnswer> login(LoginDetails details) override {
    pb::Envelope e;
    pb::LoginRequest& l = *e.mutable_login();
    l.set_password(details.password);
    l.set_device_id(details.device_id);
    l.set_device_name(session::clean_text(details.device_name, 128));
    l.set_want_remote(details.want_remote);
    l.set_new_key(details.new_key);
    pb::Envelope answer = co_await ask(std::move(e), pb::Envelope::kLoginResponse);
    const pb::LoginResponse& r = answer.login_response();
    if (!r.success()) {
      std::string why = r.error().empty() ? "the server refused the login" : said(r.error());
      throw ClientError(r.retry_after_s() > 0 ? Failure::kRefused : Failure::kWrongPassword, where_ + ": " + why);
    }
    LoginAnswer out;
    out.server_name = session::clean_text(r.server_name(), 128);
    out.server_id = r.server_id();
    out.remote_problem = said(r.remote_problem());
    out.remote_hostname = said(r.remote_hostname());
    out.remote_ip = said(r.remote_ip());
    out.coordination_url = said(r.coordination_url());
    out.tailnet_preauth_key = said(r.tailnet_preauth_key());
    co_return out;
  }

  awaitable<std::vector<Item>> list() override {
    std::vector<Item> out;
    std::uint64_t revision = 0;
    for (std::uint32_t total = 1; out.size() < total;) {
      pb::Envelope e;
      e.mutable_list()->set_offset(static_cast<std::uint32_t>(out.size()));
      pb::Envelope answer = co_await ask(std::move(e), pb::Envelope::kListResponse);
      const pb::ListResponse& r = answer.list_response();
      if (!out.empty() && r.revision() != revision) {
        out.clear();  // changed in between: from the start
        continue;
      }
      revision = r.revision();
      total = r.total();
      if (total > kListItemsMax) throw ClientError(Failure::kProtocol, where_ + ": the library is larger than can be");
      if (r.items_size() == 0) break;
      for (const pb::Item& i : r.items()) {
        Item item;
        item.id = said(i.id());
        item.title = said(i.title());
        item.file_name = said(i.file_name());
        item.video_codec = said(i.video_codec());
        item.audio_codec = said(i.audio_codec());
        item.content_type = said(i.content_type());
        item.unplayable = said(i.unplayable());
        item.duration_ms = i.duration_ms();
        item.size_bytes = i.size_bytes();
        item.width = i.width();
        item.height = i.height();
        item.has_poster = i.has_poster();
        out.push_back(std::move(item));
      }
    }
    co_return out;
  }

  awaitable<PosterImage> poster(std::string item_id) override {
    pb::Envelope e;
    e.mutable_poster_request()->set_item_id(item_id);
    pb::Envelope answer = co_await ask(std::move(e), pb::Envelope::kPoster);
    PosterImage out;
    out.content_type = said(answer.poster().content_type());
    out.image = std::move(*answer.mutable_poster()->mutable_image());
    co_return out;
  }

  awaitable<void> ping() override {
    pb::Envelope e;
    e.mutable_ping();
    co_await ask(std::move(e), pb::Envelope::kPong);
  }

  awaitable<std::unique_ptr<ReadStream>> read(std::string item_id, std::uint64_t offset, std::uint64_t length) override;

  // Sends a request and gives the queue its answers will be in.
  std::shared_ptr<Pending> send(pb::Envelope e, std::uint64_t& id) {
    if (ended_) throw ClientError(failure_, reason_);
    id = next_id_++;
    auto pending = std::make_shared<Pending>(executor_);
    pending_[id] = pending;
    post(id, std::move(e));
    return pending;
  }
  // Sends and expects nothing.
  void post(std::uint64_t id, pb::Envelope e) {
    if (ended_) return;
    e.set_version(session::kProtocolVersion);
    e.set_id(id);
    outbox_.push_back(e.SerializeAsString());
    outgoing_.cancel();
  }

  // The next answer; ClientError when the session ends first or nothing comes for kAnswerTimeout.
  awaitable<pb::Envelope> next(std::shared_ptr<Pending> pending) {
    steady_clock::time_point deadline = steady_clock::now() + kAnswerTimeout;
    while (pending->answers.empty()) {
      if (ended_) throw ClientError(failure_, reason_);
      if (steady_clock::now() >= deadline) throw ClientError(Failure::kLost, where_ + " does not answer any more");
      error_code ignored;
      pending->bell.expires_at(deadline);
      co_await pending->bell.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
    }
    pb::Envelope out = std::move(pending->answers.front());
    pending->answers.pop_front();
    if (out.body_case() == pb::Envelope::kError)
      throw ClientError(failure_of(out.error().code()), said(out.error().message()));
    co_return out;
  }

  awaitable<pb::Envelope> ask(pb::Envelope e, pb::Envelope::BodyCase expected) {
    auto self = shared_from_this();
    std::uint64_t id = 0;
    std::shared_ptr<Pending> pending = send(std::move(e), id);
    struct Forget {
      SessionImpl& session;
      std::uint64_t id;
      ~Forget() { session.pending_.erase(id); }
    } forget{*this, id};
    pb::Envelope answer = co_await next(pending);
    if (answer.body_case() != expected) throw ClientError(Failure::kProtocol, where_ + " gave an answer that does not fit");
    co_return answer;
  }

  void forget(std::uint64_t id) { pending_.erase(id); }
  asio::any_io_executor executor() const { return executor_; }
  const std::string& where() const { return where_; }

 private:
  void end(Failure failure, std::string reason) {
    if (ended_) return;
    ended_ = true;
    failure_ = failure;
    reason_ = std::move(reason);
    stream_.abort();
    outgoing_.cancel();
    over_.cancel();
    for (auto& [id, pending] : pending_) pending->bell.cancel();
  }

  awaitable<void> read_loop() {
    auto self = shared_from_this();
    while (!ended_) {
      const session::MessageStream::Received message = co_await stream_.read();
      if (const error_code& error = message.error) {
        std::string why = error == websocket::error::closed || error == asio::error::eof || error == asio::ssl::error::stream_truncated
                              ? "it was closed at the other end"
                              : error.message();
        if (notice_.empty())
          end(Failure::kLost, "the connection to " + where_ + " was lost: " + why);
        else
          end(notice_failure_, notice_);
        co_return;
      }
      pb::Envelope e;
      bool good = e.ParseFromArray(message.bytes.data(), static_cast<int>(message.bytes.size()));
      if (!good || e.version() != session::kProtocolVersion) {
        end(Failure::kProtocol, where_ + " sent something that is no message of a media session");
        co_return;
      }
      handle(std::move(e));
    }
  }

  void handle(pb::Envelope e) {
    if (e.body_case() == pb::Envelope::kNotice) {
      if (e.notice().kind() == pb::Notice::REVOKED) {
        notice_failure_ = Failure::kRevoked;
        notice_ = "this device was revoked: " + where_ + " no longer accepts it";
      } else if (e.notice().kind() == pb::Notice::SHUTTING_DOWN) {
        notice_failure_ = Failure::kLost;
        notice_ = where_ + " is shutting down";
      }
      return;
    }
    if (e.id() == 0 && e.body_case() == pb::Envelope::kError)
      return end(Failure::kProtocol, where_ + " ended the session: " + said(e.error().message()));
    auto it = pending_.find(e.id());
    if (it == pending_.end()) return;  // of a request given up meanwhile
    Pending& p = *it->second;
    std::uint64_t size = e.body_case() == pb::Envelope::kData ? e.data().content().size() : 0;
    if (size > p.data_allowed || p.answers.size() > kWindowBytes / 1024)
      return end(Failure::kProtocol, where_ + " sent more than was asked for");
    p.data_allowed -= size;
    p.answers.push_back(std::move(e));
    p.bell.cancel();
  }

  awaitable<void> write_loop() {
    auto self = shared_from_this();
    while (!ended_) {
      error_code error;
      if (outbox_.empty()) {
        co_await outgoing_.async_wait(asio::redirect_error(asio::use_awaitable, error));
        continue;
      }
      std::string message = std::move(outbox_.front());
      outbox_.pop_front();
      error = co_await stream_.write(message);
      std::fill(message.begin(), message.end(), '\0');  // it may have held the password
      if (error) co_return;                             // the reader finds out why
    }
  }

  asio::any_io_executor executor_;
  asio::ssl::context tls_;
  session::MessageStream stream_;
  asio::steady_timer outgoing_, over_;
  std::string where_, fingerprint_;
  std::map<std::uint64_t, std::shared_ptr<Pending>> pending_;
  std::deque<std::string> outbox_;
  std::uint64_t next_id_ = 1;
  bool ended_ = false;
  Failure failure_ = Failure::kLost;
  std::string reason_;
  Failure notice_failure_ = Failure::kLost;
  std::string notice_;
};

class ReadStreamImpl final : public ReadStream {
 public:
  ReadStreamImpl(std::shared_ptr<SessionImpl> s, std::shared_ptr<Pending> p, std::uint64_t i)
      : session_(std::move(s)), pending_(std::move(p)), id_(i) {}
  ~ReadStreamImpl() override {
    session_->forget(id_);
    if (done_) return;
    pb::Envelope e;
    e.mutable_close();
    session_->post(id_, std::move(e));
  }

  awaitable<std::string> read() override {
    if (done_) co_return std::string();
    pb::Envelope answer;
    try {
      answer = co_await session_->next(pending_);
    } catch (const ClientError&) {
      done_ = !session_->ended();  // after an Error the server has forgotten the stream
      throw;
    }
    if (answer.body_case() == pb::Envelope::kEnd && position_ == length) {
      done_ = true;
      co_return std::string();
    }
    if (answer.body_case() != pb::Envelope::kData || answer.data().offset() != offset + position_ ||
        answer.data().content().empty() || answer.data().content().size() > length - position_)
      throw ClientError(Failure::kProtocol, session_->where() + " sent bytes that were not asked for");
    std::string out = std::move(*answer.mutable_data()->mutable_content());
    position_ += out.size();
    consumed_ += out.size();
    if (consumed_ >= kWindowBytes / 4 && position_ < length) {
      pb::Envelope e;
      e.mutable_credit()->set_bytes(consumed_);
      pending_->data_allowed += consumed_;
      consumed_ = 0;
      session_->post(id_, std::move(e));
    }
    co_return out;
  }

 private:
  std::shared_ptr<SessionImpl> session_;
  std::shared_ptr<Pending> pending_;
  std::uint64_t id_;
  std::uint64_t position_ = 0;  // bytes handed out
  std::uint64_t consumed_ = 0;  // of these, not yet granted again
  bool done_ = false;
};

awaitable<std::unique_ptr<ReadStream>> SessionImpl::read(std::string item_id, std::uint64_t offset, std::uint64_t length) {
  auto self = shared_from_this();
  pb::Envelope e;
  pb::Read& r = *e.mutable_read();
  r.set_item_id(item_id);
  r.set_offset(offset);
  r.set_length(length);
  r.set_credit_bytes(kWindowBytes);
  std::uint64_t id = 0;
  std::shared_ptr<Pending> pending = send(std::move(e), id);
  pending->data_allowed = kWindowBytes;
  auto stream = std::make_unique<ReadStreamImpl>(self, pending, id);
  pb::Envelope answer = co_await next(pending);
  const pb::Opened& o = answer.opened();
  bool fits = answer.body_case() == pb::Envelope::kOpened && o.offset() == offset && o.offset() <= o.size_bytes() &&
              o.length() <= o.size_bytes() - o.offset() &&
              o.length() == (length == 0 ? o.size_bytes() - o.offset() : length);
  if (!fits) throw ClientError(Failure::kProtocol, where_ + " opened something else than was asked for");
  stream->size_bytes = o.size_bytes();
  stream->offset = o.offset();
  stream->length = o.length();
  stream->content_type = said(o.content_type());
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
