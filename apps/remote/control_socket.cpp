#include "remote/control_socket.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "crypto/secret.h"
#include "remote/limits.h"
#include "support/support.h"
#include "support/unix_socket.h"

namespace porthole::remote {

namespace asio = boost::asio;
namespace json = boost::json;
using boost::system::error_code;
using Local = asio::local::stream_protocol;

class ControlSocket::Client : public std::enable_shared_from_this<Client> {
 public:
  Client(ControlSocket& owner, Local::socket socket) : owner_(owner), socket_(std::move(socket)) {}

  void read() {
    asio::async_read_until(socket_, asio::dynamic_buffer(in_, kCommandSizeMax), '\n',
                           [self = shared_from_this()](error_code e, std::size_t n) {
                             if (e) return self->close();
                             self->handle(n);
                           });
  }
  void close() {
    error_code ignored;
    socket_.close(ignored);
    owner_.clients_.erase(shared_from_this());
  }

 private:
  void handle(std::size_t n) {
    error_code bad;
    json::value command = json::parse(json::string_view(in_.data(), n), bad);
    in_.erase(0, n);
    if (bad || !command.is_object())
      return answer({{"ok", false}, {"error", "the command is not a JSON object"}, {"code", "invalid"}});
    owner_.handler_(command.as_object(), [self = shared_from_this()](json::object o) { self->answer(o); });
  }
  void answer(const json::object& answer) {
    if (!socket_.is_open()) return;
    out_ = json::serialize(answer) + "\n";
    asio::async_write(socket_, asio::buffer(out_), [self = shared_from_this()](error_code e, std::size_t) {
      crypto::wipe(MutBytes(reinterpret_cast<std::uint8_t*>(self->out_.data()), self->out_.size()));
      if (e) return self->close();
      self->read();
    });
  }

  ControlSocket& owner_;
  Local::socket socket_;
  std::string in_;
  std::string out_;
};

ControlSocket::ControlSocket(asio::io_context& io, const std::string& path, Handler handler)
    : path_(path), handler_(std::move(handler)), acceptor_(io) {
  ::unlink(path.c_str());
  error_code e;
  acceptor_.open(Local(), e);
  mode_t old = ::umask(0177);
  if (!e && app::bind_unix(acceptor_.native_handle(), path) != 0) e.assign(errno, boost::system::system_category());
  ::umask(old);
  if (!e) acceptor_.listen(asio::socket_base::max_listen_connections, e);
  if (e) throw app::CommandError("cannot make " + path + ": " + e.message());
  accept();
}

ControlSocket::~ControlSocket() { close(); }

void ControlSocket::close() {
  if (!acceptor_.is_open()) return;
  error_code ignored;
  acceptor_.close(ignored);
  ::unlink(path_.c_str());
  auto clients = clients_;
  for (const auto& c : clients) c->close();
}

void ControlSocket::accept() {
  acceptor_.async_accept([this](error_code e, Local::socket socket) {
    if (e == asio::error::operation_aborted) return;
    if (!e && clients_.size() < kCommandClientsMax) {
      auto client = std::make_shared<Client>(*this, std::move(socket));
      clients_.insert(client);
      client->read();
    }
    accept();
  });
}

std::optional<json::object> ask_control_socket(const std::string& path, const json::object& command) {
  int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) throw app::CommandError(std::string("cannot make a socket: ") + std::strerror(errno));
  struct Closer {
    int fd;
    ~Closer() { ::close(fd); }
  } closer{fd};
  timeval limit{30, 0};
  ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  ::setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  auto fail = [&] { return app::CommandError("the running service does not answer on " + path + ": " + std::strerror(errno)); };
  if (app::connect_unix(fd, path) != 0) {
    if (errno == ENOENT || errno == ECONNREFUSED) return std::nullopt;
    throw fail();
  }
  std::string out = json::serialize(command) + "\n";
  for (std::size_t at = 0; at < out.size();) {
    ssize_t n = ::send(fd, out.data() + at, out.size() - at, MSG_NOSIGNAL);
    if (n <= 0) throw fail();
    at += static_cast<std::size_t>(n);
  }
  std::string in;
  while (in.empty() || in.back() != '\n') {
    char buffer[16 * 1024];
    ssize_t n = ::recv(fd, buffer, sizeof buffer, 0);
    if (n == 0) errno = ECONNRESET;
    if (n <= 0) throw fail();
    in.append(buffer, static_cast<std::size_t>(n));
  }
  error_code bad;
  json::value answer = json::parse(in, bad);
  if (bad || !answer.is_object()) throw app::CommandError("the running service gave an answer that cannot be understood");
  return answer.as_object();
}

}  // namespace porthole::remote
