#include "serve/server.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ip/v6_only.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cstring>
#include <future>
#include <list>
#include <map>
#include <thread>
#include <vector>

#include "serve/limits.h"
#include "serve/password.h"
#include "serve/session_machine.h"
#include "session/limits.h"
#include "session/message_stream.h"
#include "session/names.h"
#include "session/tls.h"
#include "support/support.h"

namespace porthole::serve {
namespace {

namespace asio = boost::asio;
using asio::awaitable;
using asio::ip::tcp;
using boost::system::error_code;
using std::chrono::steady_clock;

// A timer that never fires by itself: waiters go on when somebody calls notify().
class Bell {
 public:
  explicit Bell(asio::io_context& io) : timer_(io, steady_clock::time_point::max()) {}
  awaitable<void> wait() {
    error_code ignored;
    co_await timer_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
  }
  void notify() { timer_.cancel(); }

 private:
  asio::steady_timer timer_;
};

// A descriptor that closes when the last read on it is done.
struct File {
  explicit File(int f) : fd(f) {}
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() { ::close(fd); }
  int fd;
};

enum class Via { kLan, kBridge };
const char* name_of(Via via) { return via == Via::kLan ? "lan" : "tailnet"; }

tcp::endpoint listen_endpoint(const std::string& listen) {
  std::string why;
  try {
    session::HostPort at = session::parse_listen_address(listen);
    error_code error;
    asio::ip::address address = asio::ip::make_address(at.host, error);
    if (!error) return {address, at.port};
    why = "\"" + at.host + "\" is not an IP address";
  } catch (const app::CommandError& e) {
    why = e.what();
  }
  throw app::CommandError("cannot listen on \"" + listen + "\" (--listen): " + why);
}

}  // namespace

class MediaServer::Impl {
 public:
  Impl(ServerConfig config, Library& library, ServerHooks hooks)
      : config_(std::move(config)),
        library_(library),
        hooks_(std::move(hooks)),
        tls_(session::server_tls(config_.tls_file).release()),
        lan_(io_),
        bridge_(io_),
        work_(asio::make_work_guard(io_)) {
    fingerprint_ = session::fingerprint_of(tls_.native_handle());
    lan_endpoint_ = listen_endpoint(config_.listen);
    std::string error;
    if (!open(lan_, lan_endpoint_, error)) throw app::CommandError("cannot listen on " + config_.listen + ": " + error);
    lan_endpoint_ = lan_.local_endpoint();
    if (!open(bridge_, tcp::endpoint(asio::ip::address_v4::loopback(), 0), error))
      throw app::CommandError("cannot listen on 127.0.0.1: " + error);
    bridge_port_ = bridge_.local_endpoint().port();
    lan_on_ = true;
    asio::co_spawn(io_, accept_loop(lan_, Via::kLan), asio::detached);
    asio::co_spawn(io_, accept_loop(bridge_, Via::kBridge), asio::detached);
    thread_ = std::thread([this] { io_.run(); });
  }

  ~Impl() { stop(); }

  // Runs `f` on the server's thread and waits for its result.
  template <class F>
  auto on_loop(F f) {
    using R = decltype(f());
    if (ended_) return f();
    auto task = std::make_shared<std::packaged_task<R()>>(std::move(f));
    std::future<R> result = task->get_future();
    asio::post(io_, [task] { (*task)(); });
    // The loop answers in microseconds; when it does not, it may have ended under us.
    const auto until = steady_clock::now() + kLoopAnswerTimeout;
    while (result.wait_for(std::chrono::milliseconds(20)) != std::future_status::ready)
      if (ended_ || steady_clock::now() > until) return R{};
    return result.get();
  }

  bool set_lan(bool on, std::string& error);
  void library_changed();
  void keep_peers(const std::set<std::string>& ips);
  boost::json::object status();
  void stop();

  std::string listen_address() const {
    return session::join_host_port(lan_endpoint_.address().to_string(), lan_endpoint_.port());
  }

  ServerConfig config_;
  std::string fingerprint_;
  std::uint16_t bridge_port_ = 0;

 private:
  struct Connection;

  static bool open(tcp::acceptor& acceptor, const tcp::endpoint& at, std::string& error) {
    error_code bad;
    auto ok = [&] {
      if (bad) {
        error = bad.message();
        error_code ignored;
        acceptor.close(ignored);
      }
      return !bad;
    };
    acceptor.open(at.protocol(), bad);
    if (!ok()) return false;
    ::fcntl(acceptor.native_handle(), F_SETFD, FD_CLOEXEC);
    acceptor.set_option(tcp::acceptor::reuse_address(true), bad);
    if (!ok()) return false;
    if (at.address().is_v6()) acceptor.set_option(asio::ip::v6_only(false), bad);
    if (!ok()) return false;
    acceptor.bind(at, bad);
    if (!ok()) return false;
    acceptor.listen(kListenBacklog, bad);
    return ok();
  }

  awaitable<void> accept_loop(tcp::acceptor& acceptor, Via via) {
    for (;;) {
      error_code error;
      tcp::socket socket(io_);
      co_await acceptor.async_accept(socket, asio::redirect_error(asio::use_awaitable, error));
      if (error == asio::error::operation_aborted || !acceptor.is_open()) co_return;
      if (error) {
        // Out of descriptors, most likely: wait for some to come back instead of spinning.
        asio::steady_timer pause(io_, std::chrono::milliseconds(100));
        error_code ignored;
        co_await pause.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
        continue;
      }
      admit(std::move(socket), via);
    }
  }

  void admit(tcp::socket socket, Via via);
  awaitable<void> serve(std::shared_ptr<Connection> c);
  awaitable<void> read_loop(std::shared_ptr<Connection> c);
  awaitable<void> write_loop(std::shared_ptr<Connection> c);
  void execute(const std::shared_ptr<Connection>& c, Action action);
  void check_login(const std::shared_ptr<Connection>& c, CheckLogin login);
  void authenticated(Connection& c);
  void remove(const std::shared_ptr<Connection>& c);

  Library& library_;
  ServerHooks hooks_;
  asio::io_context io_{1};
  asio::ssl::context tls_;
  tcp::acceptor lan_, bridge_;
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  tcp::endpoint lan_endpoint_;
  bool lan_on_ = false;
  std::atomic<bool> stopping_ = false;  // set by the loop; a check of a password that has not begun need not
  std::atomic<bool> ended_ = false;
  std::weak_ptr<asio::steady_timer> stop_timer_;
  std::list<std::shared_ptr<Connection>> connections_;  // oldest first
  std::size_t unauthenticated_ = 0;
  std::size_t sessions_ = 0;
  std::size_t password_checks_ = 0;
  std::uint64_t next_id_ = 1;
  LoginThrottle throttle_;
  asio::thread_pool files_{2}, passwords_{1}, posters_{1}, enrolment_{4};
  std::thread thread_;
};

struct MediaServer::Impl::Connection : std::enable_shared_from_this<Connection> {
  Connection(Impl& s, tcp::socket socket, Via v)
      : server(s),
        stream(std::move(socket), s.tls_, session::kRequestBytesMax),
        machine([&s] { return s.library_.catalog(); }),
        outgoing(s.io_),
        room(s.io_),
        login_timer(s.io_),
        write_timer(s.io_),
        via(v),
        id(s.next_id_++) {}

  // Does what the machine wants done, and wakes whoever may go on.
  void pump() {
    while (auto action = machine.poll_action()) server.execute(shared_from_this(), std::move(*action));
    outgoing.notify();
    if (machine.wants_input()) room.notify();
  }

  // Cuts the connection; its coroutines end with an error.
  void abort() {
    aborted = true;
    // The bridge cannot tell a closed socket from half a connection, and would keep a silent peer's place for it.
    if (via == Via::kBridge && !upgraded) stream.reset();
    else stream.abort();
    outgoing.notify();
    room.notify();
  }

  void end(NoticeKind kind, const std::string& why) {
    if (!upgraded) return abort();
    machine.notify(kind, why);
    machine.close();
    pump();
    room.notify();
  }

  // The address that attempts are counted for.
  std::string counted_as() const { return peer ? "tailnet:" + peer->ip : throttle_key(remote_ip); }

  boost::json::object describe() const {
    boost::json::object out{{"id", id}, {"via", name_of(via)}, {"from", peer ? peer->ip : remote_ip}};
    if (peer) out["peer"] = peer->name;
    if (!device_name.empty()) out["device"] = device_name;
    if (!device_id.empty()) out["device_id"] = device_id;
    out["bytes"] = machine.bytes_sent();
    out["streams"] = machine.stream_count();
    return out;
  }

  void say(const char* state) {
    boost::json::object event{{"event", "session"}, {"state", state}};
    boost::json::object facts = describe();
    for (auto& [key, value] : facts) event[key] = value;
    server.hooks_.event(std::move(event));
  }

  Impl& server;
  session::MessageStream stream;
  SessionMachine machine;
  Bell outgoing, room;
  asio::steady_timer login_timer, write_timer;
  Via via;
  std::uint64_t id;
  std::uint16_t remote_port = 0;
  std::string remote_ip;
  std::optional<PeerIdentity> peer;
  std::string device_id, device_name;
  std::map<std::uint64_t, std::shared_ptr<File>> files;
  std::map<std::uint64_t, std::string> content_types;
  bool upgraded = false;
  bool counted_session = false;
  bool aborted = false;
  bool writer_done = false;
};

bool MediaServer::Impl::set_lan(bool on, std::string& error) {
  return on_loop([&] {
    if (on == lan_on_) return true;
    if (!on) {
      error_code ignored;
      lan_.close(ignored);
      lan_on_ = false;
      for (auto& c : connections_)
        if (c->via == Via::kLan) c->abort();
      return true;
    }
    if (!open(lan_, lan_endpoint_, error)) return false;
    lan_on_ = true;
    asio::co_spawn(io_, accept_loop(lan_, Via::kLan), asio::detached);
    return true;
  });
}

void MediaServer::Impl::library_changed() {
  asio::post(io_, [this] {
    for (auto& c : connections_) {
      c->machine.notify(NoticeKind::kLibraryChanged, "the library changed");
      c->pump();
    }
  });
}

void MediaServer::Impl::keep_peers(const std::set<std::string>& ips) {
  asio::post(io_, [this, ips] {
    for (auto& c : connections_) {
      if (!c->peer || ips.contains(c->peer->ip)) continue;
      hooks_.log("session " + std::to_string(c->id) + ": " + c->peer->name + " no longer belongs to the tailnet");
      c->end(NoticeKind::kRevoked, "this device's access has ended");
    }
  });
}

boost::json::object MediaServer::Impl::status() {
  return on_loop([&] {
    boost::json::object out;
    boost::json::array sessions;
    for (auto& c : connections_)
      if (c->machine.logged_in()) sessions.push_back(c->describe());
    out["lan"] = lan_on_ ? "on" : "off";
    out["listen"] = listen_address();
    out["sessions"] = std::move(sessions);
    out["unauthenticated"] = unauthenticated_;
    out["items"] = library_.catalog()->items.size();
    return out;
  });
}

void MediaServer::Impl::stop() {
  if (!thread_.joinable()) return;
  asio::post(io_, [this] {
    error_code ignored;
    lan_.close(ignored);
    bridge_.close(ignored);
    stopping_ = true;
    for (auto& c : connections_) c->end(NoticeKind::kShuttingDown, "the server is shutting down");
    work_.reset();
    // Sessions that do not take their goodbye within a second are cut.
    auto deadline = std::make_shared<asio::steady_timer>(io_, std::chrono::seconds(1));
    stop_timer_ = deadline;
    deadline->async_wait([this, deadline](error_code canceled) {
      if (canceled) return;
      for (auto& c : connections_) c->abort();
    });
    if (connections_.empty()) deadline->cancel();
  });
  thread_.join();
  ended_ = true;
  files_.join();
  passwords_.join();
  posters_.join();
  enrolment_.join();
}

// Room is made by dropping the connection that has been waiting longest without logging in: of the same address when
// that has too many, of anybody's when all places are taken. An honest client is through long before its turn comes.
void MediaServer::Impl::admit(tcp::socket socket, Via via) {
  error_code error;
  tcp::endpoint from = socket.remote_endpoint(error);
  if (error || stopping_) return;
  socket.set_option(tcp::no_delay(true), error);
  if (via == Via::kBridge) socket.set_option(asio::socket_base::send_buffer_size(kBridgeSendBufferBytes), error);
  ::fcntl(socket.native_handle(), F_SETFD, FD_CLOEXEC);
  auto c = std::make_shared<Connection>(*this, std::move(socket), via);
  c->remote_ip = from.address().to_string();
  c->remote_port = from.port();
  std::string key = throttle_key(c->remote_ip);
  std::size_t same = 0;
  std::shared_ptr<Connection> oldest, oldest_same;
  for (auto& other : connections_) {
    if (other->counted_session || other->aborted) continue;
    if (!oldest) oldest = other;
    if (other->via != via || throttle_key(other->remote_ip) != key) continue;
    ++same;
    if (!oldest_same) oldest_same = other;
  }
  // All bridged connections come from 127.0.0.1: the bridge itself limits what one peer may open.
  std::size_t same_max = via == Via::kBridge ? kUnauthenticatedMax / 2 : kUnauthenticatedPerAddressMax;
  if (same >= same_max) {
    oldest_same->abort();
  } else if (unauthenticated_ >= kUnauthenticatedMax && oldest) {
    oldest->abort();
  }
  ++unauthenticated_;
  connections_.push_back(c);
  asio::co_spawn(io_, serve(c), [this, c](std::exception_ptr failure) {
    // Only a bug or lack of memory gets here; the connection goes, the server stays.
    if (failure) hooks_.log("session " + std::to_string(c->id) + " ended by an internal error");
    remove(c);
  });
}

void MediaServer::Impl::remove(const std::shared_ptr<Connection>& c) {
  auto it = std::find(connections_.begin(), connections_.end(), c);
  if (it == connections_.end()) return;
  connections_.erase(it);
  c->abort();
  c->machine.close();
  c->files.clear();
  c->login_timer.cancel();
  c->write_timer.cancel();
  if (c->counted_session) {
    --sessions_;
    c->say("closed");
    hooks_.log("session " + std::to_string(c->id) + " of " + c->device_name + " closed");
  } else {
    --unauthenticated_;
  }
  if (stopping_ && connections_.empty())
    if (auto timer = stop_timer_.lock()) timer->cancel();
}

awaitable<void> MediaServer::Impl::serve(std::shared_ptr<Connection> c) {
  session::MessageStream& stream = c->stream;
  if (co_await stream.secure(asio::ssl::stream_base::server, session::kHandshakeTimeout) || c->aborted) co_return;
  if (co_await stream.read_upgrade() || c->aborted) co_return;
  if (c->via == Via::kBridge && hooks_.peer_of) {
    std::uint16_t port = c->remote_port;
    std::optional<PeerIdentity> peer;
    auto ask = [this, port, &peer]() -> awaitable<void> {
      peer = hooks_.peer_of(port);
      co_return;
    };
    co_await asio::co_spawn(enrolment_, ask(), asio::use_awaitable);
    c->peer = peer;
    if (c->aborted) co_return;
  }
  if (co_await stream.accept() || c->aborted) co_return;
  c->upgraded = true;
  c->login_timer.expires_after(session::kLoginTimeout);
  c->login_timer.async_wait([c](error_code canceled) {
    if (!canceled && !c->machine.logged_in()) c->abort();
  });
  asio::co_spawn(io_, write_loop(c), [c](std::exception_ptr) {
    c->writer_done = true;
    c->abort();
  });
  co_await read_loop(c);
  // The writer sends what is left (a reason, a goodbye) and closes; abort() ends it when there is nobody to take it.
  while (!c->writer_done) {
    if (!c->machine.closing()) c->abort();
    c->outgoing.notify();
    co_await c->room.wait();
  }
}

awaitable<void> MediaServer::Impl::read_loop(std::shared_ptr<Connection> c) {
  for (;;) {
    while (!c->machine.wants_input()) {
      if (c->aborted || c->machine.closing()) co_return;
      co_await c->room.wait();
    }
    const session::MessageStream::Received message = co_await c->stream.read();
    if (message.error || c->aborted) {
      if (!c->machine.closing()) c->abort();
      co_return;
    }
    c->machine.handle_message(message.text ? "\xff" : message.bytes);  // text is no message of ours: answered as such
    c->pump();
  }
}

awaitable<void> MediaServer::Impl::write_loop(std::shared_ptr<Connection> c) {
  while (!c->aborted) {
    std::optional<std::string> message = c->machine.produce();
    if (!message) {
      if (c->machine.closing()) {
        c->write_timer.expires_after(std::chrono::seconds(2));
        c->write_timer.async_wait([c](error_code canceled) {
          if (!canceled) c->abort();
        });
        co_await c->stream.close();
        co_return;
      }
      co_await c->outgoing.wait();
      continue;
    }
    c->pump();  // there is room now: read on while this one is being sent
    c->write_timer.expires_after(kWriteTimeout);
    c->write_timer.async_wait([c](error_code canceled) {
      if (!canceled) c->abort();
    });
    const error_code error = co_await c->stream.write(*message);
    c->write_timer.cancel();
    if (error) co_return;
  }
}

void MediaServer::Impl::authenticated(Connection& c) {
  c.counted_session = true;
  --unauthenticated_;
  ++sessions_;
  c.login_timer.cancel();
  c.say("login");
  hooks_.log("session " + std::to_string(c.id) + ": " + c.device_name + " logged in from " +
             (c.peer ? c.peer->name + " (" + c.peer->ip + ")" : c.remote_ip) + " over the " + name_of(c.via));
}

void MediaServer::Impl::check_login(const std::shared_ptr<Connection>& c, CheckLogin login) {
  LoginOutcome refused;
  const std::string address = c->counted_as();
  std::chrono::seconds wait = throttle_.wait(steady_clock::now(), address);
  if (wait.count() > 0) {
    refused.error = "too many wrong passwords; try again in " + std::to_string(wait.count()) + " s";
    refused.retry_after_s = static_cast<std::uint32_t>(wait.count());
  } else if (password_checks_ >= kPasswordChecksMax) {
    refused.error = "the server is busy with other logins; try again in a moment";
    refused.retry_after_s = 2;
  } else if (sessions_ >= kSessionsMax) {
    refused.error = "too many devices are connected to this server";
    refused.retry_after_s = 30;
  }
  if (!refused.error.empty()) {
    c->machine.login_done(login.id, refused);
    return c->pump();
  }
  ++password_checks_;
  throttle_.begin(address);
  asio::post(passwords_, [this, c, address, login = std::move(login)]() mutable {
    bool matches = !stopping_ && password_matches(config_.password_hash, login.password);
    std::fill(login.password.begin(), login.password.end(), '\0');
    asio::post(io_, [this, c, address, matches, login = std::move(login)]() mutable {
      --password_checks_;
      // A guess counts, whether or not the guesser stayed to hear the answer.
      matches ? throttle_.succeeded(address) : throttle_.failed(steady_clock::now(), address);
      if (c->aborted || stopping_) return;
      LoginOutcome outcome;
      if (!matches) {
        hooks_.log("session " + std::to_string(c->id) + ": wrong password from " + address);
        outcome.error = "the password is wrong";
        c->machine.login_done(login.id, outcome);
        return c->pump();
      }
      c->device_id = login.device_id;
      c->device_name = login.device_name.empty() ? login.device_id : login.device_name;
      outcome.success = true;
      outcome.server_name = config_.name;
      outcome.server_id = config_.server_id;
      if (!login.want_remote || !hooks_.remote_grant) {
        c->machine.login_done(login.id, outcome);
        if (c->machine.logged_in()) authenticated(*c);
        return c->pump();
      }
      asio::post(enrolment_, [this, c, outcome, login = std::move(login)]() mutable {
        RemoteGrant grant = hooks_.remote_grant(login.device_id, login.new_key);
        asio::post(io_, [this, c, outcome, grant, id = login.id]() mutable {
          if (c->aborted) return;
          outcome.remote_hostname = grant.remote_hostname;
          outcome.remote_ip = grant.remote_ip;
          outcome.coordination_url = grant.coordination_url;
          outcome.tailnet_preauth_key = grant.tailnet_preauth_key;
          outcome.remote_problem = grant.problem;
          if (!grant.problem.empty()) hooks_.log("session " + std::to_string(c->id) + ": no remote details: " + grant.problem);
          c->machine.login_done(id, outcome);
          if (c->machine.logged_in()) authenticated(*c);
          c->pump();
        });
      });
    });
  });
}

void MediaServer::Impl::execute(const std::shared_ptr<Connection>& c, Action action) {
  if (auto* login = std::get_if<CheckLogin>(&action)) return check_login(c, std::move(*login));
  if (auto* close = std::get_if<CloseItem>(&action)) {
    c->files.erase(close->id);
    return;
  }
  if (auto* poster = std::get_if<MakePoster>(&action)) {
    asio::post(posters_, [this, c, id = poster->id, item_id = poster->item_id] {
      CatalogPtr catalog = library_.catalog();
      const MediaItem* item = catalog->find(item_id);
      Picture picture;
      if (item)
        picture = library_.poster(*item);
      else
        picture.error = "there is no such item in the library";
      asio::post(io_, [c, id, picture = std::move(picture)]() mutable {
        c->machine.poster_made(id, picture.content_type, std::move(picture.image), picture.error);
        c->pump();
      });
    });
    return;
  }
  if (auto* open = std::get_if<OpenItem>(&action)) {
    asio::post(files_, [this, c, id = open->id, item_id = open->item_id] {
      CatalogPtr catalog = library_.catalog();
      const MediaItem* item = catalog->find(item_id);
      Library::Opened opened;
      std::string type;
      if (item) {
        opened = library_.open(*item);
        type = item->content_type;
      } else {
        opened.error = "there is no such item in the library";
      }
      std::shared_ptr<File> file = opened.fd >= 0 ? std::make_shared<File>(opened.fd) : nullptr;
      asio::post(io_, [c, id, opened, type, file] {
        if (file && !c->aborted && !c->machine.closing()) c->files[id] = file;
        c->machine.item_opened(id, opened.size_bytes, type, opened.error);
        c->pump();
      });
    });
    return;
  }
  auto& read = std::get<ReadChunk>(action);
  auto it = c->files.find(read.id);
  if (it == c->files.end()) return;
  asio::post(files_, [this, c, file = it->second, id = read.id, offset = read.offset, size = read.size] {
    std::string content(size, '\0');
    std::string error;
    std::size_t done = 0;
    while (done < size) {
      ssize_t n = ::pread(file->fd, content.data() + done, size - done, static_cast<off_t>(offset + done));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) error = std::string("the file cannot be read: ") + std::strerror(errno);
      if (n == 0) error = "the file became shorter while it was read";
      if (n <= 0) break;
      done += static_cast<std::size_t>(n);
    }
    asio::post(io_, [c, id, content = std::move(content), error = std::move(error)]() mutable {
      c->machine.chunk_read(id, std::move(content), error);
      c->pump();
    });
  });
}

MediaServer::MediaServer(ServerConfig config, Library& library, ServerHooks hooks) {
  if (!hooks.event) hooks.event = [](boost::json::object) {};
  if (!hooks.log) hooks.log = [](const std::string&) {};
  impl_ = std::make_unique<Impl>(std::move(config), library, std::move(hooks));
}
MediaServer::~MediaServer() = default;
void MediaServer::check_listen(const std::string& listen) { listen_endpoint(listen); }

std::string MediaServer::listen_address() const { return impl_->listen_address(); }
std::uint16_t MediaServer::bridge_port() const { return impl_->bridge_port_; }
std::string MediaServer::fingerprint() const { return impl_->fingerprint_; }
bool MediaServer::set_lan(bool on, std::string& error) { return impl_->set_lan(on, error); }
bool MediaServer::lan() const { return impl_->status()["lan"] == "on"; }
void MediaServer::library_changed() { impl_->library_changed(); }
void MediaServer::keep_peers(const std::set<std::string>& ips) { impl_->keep_peers(ips); }
boost::json::object MediaServer::status() const { return impl_->status(); }
void MediaServer::stop() { impl_->stop(); }

}  // namespace porthole::serve
