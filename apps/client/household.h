// For tests: a real media server with a real film in this process, coroutines run to their end, a SOCKS5 proxy that leads
// to the server whatever it is asked for, and a tailnet node that does what the test says.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "client/connector.h"
#include "client/error.h"
#include "client/session.h"
#include "client/store.h"
#include "client/tailnet.h"
#include "serve/library.h"
#include "serve/password.h"
#include "serve/server.h"
#include "session/names.h"
#include "support/support.h"
#include "support/test_files.h"

namespace porthole::client::testing {

inline constexpr const char* kPassword = "correct horse";
inline constexpr const char* kDeviceId = "0b7755c6-bfa5-42f9-a714-599d4aec7938";

// Runs `work` to its end on `io`; what it throws comes out here.
inline void run(boost::asio::io_context& io, boost::asio::awaitable<void> work) {
  std::exception_ptr failure;
  bool finished = false;
  io.restart();
  boost::asio::co_spawn(io, std::move(work), [&](std::exception_ptr e) {
    failure = e;
    finished = true;
    io.stop();
  });
  io.run_for(std::chrono::seconds(60));
  if (failure) std::rethrow_exception(failure);
  ASSERT_TRUE(finished) << "did not end within a minute";
}

template <class F>
Failure failure_of(boost::asio::io_context& io, F work) {
  try {
    run(io, work());
  } catch (const ClientError& e) {
    return e.failure();
  }
  ADD_FAILURE() << "nothing failed";
  return Failure::kFailed;
}

// Bytes that no compression or repetition could hide an error in.
inline std::string noise(std::size_t size) {
  std::string out(size, '\0');
  std::uint64_t x = 88172645463325252;
  for (char& c : out) {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    c = static_cast<char>(x);
  }
  return out;
}

class Household {
 public:
  Household() {
    std::filesystem::create_directories(dir / "lib");
    std::filesystem::copy(seed() / "clip.mp4", dir / "lib/clip.mp4");
    std::filesystem::copy(seed() / "password.json", dir / "password.json");
    film = app::read_file(dir / "lib/clip.mp4");
    big = noise(9 * 1024 * 1024 + 321);
    app::write_text(dir / "lib/big.mkv", big);
    library = std::make_unique<serve::Library>(std::vector<std::string>{dir / "lib"}, dir / "posters", [](const std::string&) {});
    library->scan();
    start();
  }
  ~Household() { server.reset(); }

  void start(const std::string& listen = "127.0.0.1:0") {
    serve::ServerConfig c;
    c.name = "Home";
    c.server_id = "1d7e2c87-bac6-4463-a4bd-c12073064dc4";
    c.listen = listen;
    c.tls_file = dir / "tls.pem";
    c.password_hash = serve::load_password_hash(dir / "password.json");
    serve::ServerHooks h;
    h.event = [this](boost::json::object e) {
      std::lock_guard lock(mutex);
      events.push_back(std::move(e));
    };
    h.peer_of = [](std::uint16_t) { return serve::PeerIdentity{"ipad", "100.64.0.3", "3", "home"}; };
    h.remote_grant = [this](const std::string& id, bool) {
      serve::RemoteGrant g = grant;
      if (!g.tailnet_preauth_key.empty()) g.tailnet_preauth_key += "-" + id;
      return g;
    };
    server = std::make_unique<serve::MediaServer>(c, *library, h);
    port = session::parse_listen_address(server->listen_address()).port;
  }

  SavedServer saved() const {
    SavedServer s;
    s.id = "1d7e2c87-bac6-4463-a4bd-c12073064dc4";
    s.name = "Home";
    s.hostname = "127.0.0.1:" + std::to_string(port);
    s.password = kPassword;
    s.pin = server->fingerprint();
    return s;
  }

  boost::asio::awaitable<std::shared_ptr<Session>> open(std::string pin = {}) {
    boost::asio::ip::tcp::socket socket = co_await connect_direct("127.0.0.1", port, std::chrono::seconds(5));
    std::shared_ptr<Session> out = co_await Session::open(std::move(socket), "home", pin);
    co_return out;
  }
  static LoginDetails details(const std::string& password = kPassword, bool want_remote = false) {
    LoginDetails d;
    d.password = password;
    d.device_id = kDeviceId;
    d.device_name = "Curtis’s iPad Pro";
    d.want_remote = want_remote;
    return d;
  }
  boost::asio::awaitable<std::shared_ptr<Session>> open_logged_in() {
    std::shared_ptr<Session> s = co_await open();
    LoginDetails d = details();
    co_await s->login(std::move(d));
    co_return s;
  }
  std::string id_of(const std::string& file_name) const {
    for (const serve::MediaItem& i : library->catalog()->items)
      if (i.file_name == file_name) return i.id;
    return {};
  }

  // Film and password hash take a while to make: once for all tests of the program.
  static const app::TempDir& seed() {
    static const app::TempDir made;
    static const bool filled = [] {
      app::make_clip(made / "clip.mp4");
      serve::set_password(made / "password.json", kPassword);
      return true;
    }();
    EXPECT_TRUE(filled);
    return made;
  }

  app::TempDir dir;
  std::string film, big;
  std::unique_ptr<serve::Library> library;
  std::unique_ptr<serve::MediaServer> server;
  std::uint16_t port = 0;
  serve::RemoteGrant grant;
  std::mutex mutex;
  std::vector<boost::json::object> events;
};

// SOCKS5 with user name and password; every connection ends at 127.0.0.1:`target`.
class TestProxy {
 public:
  explicit TestProxy(std::uint16_t target) : target_(target) {
    fd_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in at = address(0);
    socklen_t size = sizeof at;
    ::bind(fd_, reinterpret_cast<sockaddr*>(&at), sizeof at);
    ::listen(fd_, 16);
    ::getsockname(fd_, reinterpret_cast<sockaddr*>(&at), &size);
    endpoint = {"127.0.0.1:" + std::to_string(ntohs(at.sin_port)), "user", "pass"};
    thread_ = std::thread([this] {
      for (int c; (c = ::accept(fd_, nullptr, nullptr)) >= 0;) {
        std::lock_guard lock(mutex_);
        open_.push_back(c);
        connections_.emplace_back([this, c] { serve(c); });
      }
    });
  }
  ~TestProxy() {
    ::shutdown(fd_, SHUT_RDWR);
    thread_.join();
    cut();
    for (std::thread& t : connections_) t.join();
    for (int c : open_) ::close(c);
    ::close(fd_);
  }
  // Ends every connection, as a lost tailnet does.
  void cut() {
    std::lock_guard lock(mutex_);
    for (int c : open_) ::shutdown(c, SHUT_RDWR);
  }

  ProxyEndpoint endpoint;
  std::atomic<int> refuse_next{0};  // connections to refuse with code 4
  std::atomic<int> requests{0};
  std::string asked_for() {
    std::lock_guard lock(mutex_);
    return asked_;
  }

 private:
  static sockaddr_in address(std::uint16_t port) {
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    at.sin_port = htons(port);
    return at;
  }
  static std::string take(int c, std::size_t size) {
    std::string out(size, '\0');
    if (::recv(c, out.data(), size, MSG_WAITALL) != static_cast<ssize_t>(size)) return {};
    return out;
  }
  static void give(int c, const std::string& bytes) { ::send(c, bytes.data(), bytes.size(), MSG_NOSIGNAL); }

  void serve(int c) {
    if (take(c, 3) != std::string("\x05\x01\x02", 3)) return done(c);
    give(c, std::string("\x05\x02", 2));
    std::string user = take(c, 2);
    if (user.size() != 2) return done(c);
    user = take(c, static_cast<std::size_t>(user[1]));
    std::string size = take(c, 1);
    std::string password = take(c, static_cast<std::size_t>(size[0]));
    bool good = user == endpoint.username && password == endpoint.password;
    give(c, good ? std::string("\x01\x00", 2) : std::string("\x01\x01", 2));
    if (!good) return done(c);
    std::string head = take(c, 4);
    if (head.size() != 4) return done(c);
    std::string host;
    if (head[3] == 3) {
      host = take(c, static_cast<std::size_t>(take(c, 1)[0]));
    } else {
      std::string raw = take(c, head[3] == 1 ? 4 : 16);
      char text[INET6_ADDRSTRLEN] = "";
      ::inet_ntop(head[3] == 1 ? AF_INET : AF_INET6, raw.data(), text, sizeof text);
      host = text;
    }
    std::string port = take(c, 2);
    {
      std::lock_guard lock(mutex_);
      asked_ = host + ":" + std::to_string(static_cast<unsigned char>(port[0]) * 256 + static_cast<unsigned char>(port[1]));
    }
    ++requests;
    if (refuse_next > 0) {
      --refuse_next;
      give(c, std::string("\x05\x04\x00\x01\0\0\0\0\0\0", 10));
      return done(c);
    }
    int s = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in at = address(target_);
    if (::connect(s, reinterpret_cast<sockaddr*>(&at), sizeof at) != 0) {
      ::close(s);
      return done(c);
    }
    give(c, std::string("\x05\x00\x00\x01\0\0\0\0\0\0", 10));
    pollfd p[2] = {{c, POLLIN, 0}, {s, POLLIN, 0}};
    std::vector<char> buffer(64 * 1024);
    for (bool alive = true; alive && ::poll(p, 2, -1) > 0;) {
      for (int i = 0; i < 2 && alive; ++i) {
        if (p[i].revents == 0) continue;
        ssize_t n = ::recv(p[i].fd, buffer.data(), buffer.size(), 0);
        alive = n > 0 && ::send(p[1 - i].fd, buffer.data(), static_cast<std::size_t>(n), MSG_NOSIGNAL) == n;
      }
    }
    ::close(s);
    done(c);
  }
  static void done(int c) { ::shutdown(c, SHUT_RDWR); }

  std::uint16_t target_;
  int fd_;
  std::mutex mutex_;
  std::string asked_;
  std::vector<int> open_;
  std::vector<std::thread> connections_;
  std::thread thread_;
};

// What the fake nodes of one test share.
struct FakeTailnet {
  std::mutex mutex;
  std::vector<TailnetNodeConfig> made;
  std::function<void(const TailnetNodeConfig&)> on_join = [](const TailnetNodeConfig&) {};
  std::function<void(const std::string&)> on_wait_peer = [](const std::string&) {};
  std::vector<NodeNews> news;  // what each node says as soon as somebody listens
  ProxyEndpoint proxy;

  std::size_t nodes() {
    std::lock_guard lock(mutex);
    return made.size();
  }
  TailnetNodeFactory factory();
};

class FakeNode final : public TailnetNode {
 public:
  FakeNode(FakeTailnet& t, TailnetNodeConfig c) : tailnet_(t), config_(std::move(c)) {}
  void join(std::chrono::milliseconds) override {
    tailnet_.on_join(config_);
    connected_ = true;
  }
  bool connected() override { return connected_; }
  ProxyEndpoint loopback_proxy() override { return tailnet_.proxy; }
  void wait_peer(const std::string& peer, std::chrono::milliseconds) override { tailnet_.on_wait_peer(peer); }
  std::string path_to(const std::string&) override { return "direct"; }
  void observe(std::function<void(const NodeNews&)> observer) override {
    for (const NodeNews& n : tailnet_.news) observer(n);
  }

 private:
  FakeTailnet& tailnet_;
  TailnetNodeConfig config_;
  std::atomic<bool> connected_{false};
};

inline TailnetNodeFactory FakeTailnet::factory() {
  return [this](const TailnetNodeConfig& c) -> std::unique_ptr<TailnetNode> {
    std::lock_guard lock(mutex);
    made.push_back(c);
    return std::make_unique<FakeNode>(*this, c);
  };
}

}  // namespace porthole::client::testing
