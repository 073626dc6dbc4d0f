// The whole service over real loopback sockets, each on a port that the system chose.
#include "remote/service.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <filesystem>
#include <map>
#include <set>
#include <thread>

#include "control/control_client.h"
#include "remote/clock.h"
#include "remote/control_socket.h"
#include "remote/headscale_for_test.h"
#include "support/support.h"
#include "ts2021/json.h"
#include "ts2021/time_text.h"
#include "wire/http.h"
#include "wire/stun.h"

namespace porthole::remote {
namespace {

namespace json = boost::json;

struct Answer {
  int status = 0;
  std::map<std::string, std::string> headers;
  std::string body;
  json::object object() const { return json::parse(body).as_object(); }
};

int connect_to(std::uint16_t port) {
  int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(port);
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  timeval limit{10, 0};
  ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  if (::connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to) != 0) {
    ::close(fd);
    return -1;
  }
  return fd;
}

Answer parse_answer(const std::string& bytes, bool head_request) {
  wire::HttpMessageParser parser(wire::HttpKind::kResponse, {}, head_request);
  Answer a;
  auto n = parser.consume(as_bytes(bytes));
  EXPECT_TRUE(n.ok()) << bytes;
  if (!n.ok()) return a;
  (void)parser.end_of_stream();
  a.status = parser.head().status();
  for (std::size_t i = 0; i < parser.head().header_count(); ++i) {
    auto h = parser.head().header_at(i);
    a.headers[std::string(h.name)] = h.value;
  }
  a.body = parser.body();
  return a;
}

class ServiceTest : public testing::Test {
 protected:
  ServiceTest() {
    char name[] = "/tmp/porthole-svc-XXXXXX";
    dir_ = ::mkdtemp(name);
    options_.state_dir = dir_ + "/state";
    options_.listen = {IpAddress::v4(127, 0, 0, 1), 0};
    options_.stun_port = 0;
  }
  ~ServiceTest() override {
    stop();
    std::filesystem::remove_all(dir_);
  }
  void start() {
    service_ = std::make_unique<RemoteService>(options_);
    stop_fd_ = ::eventfd(0, EFD_CLOEXEC);
    thread_ = std::thread([this] { service_->run(stop_fd_); });
    std::string token = app::read_file(service_->admin_token_file());
    token.pop_back();
    admin_ = token;
  }
  void stop() {
    if (!service_) return;
    std::uint64_t one = 1;
    ASSERT_EQ(::write(stop_fd_, &one, sizeof one), static_cast<ssize_t>(sizeof one));
    thread_.join();
    ::close(stop_fd_);
    service_.reset();
  }
  std::uint16_t port() const { return service_->listen().port; }

  std::string raw(const std::string& request) {
    int fd = connect_to(port());
    EXPECT_GE(fd, 0);
    EXPECT_EQ(::send(fd, request.data(), request.size(), MSG_NOSIGNAL), static_cast<ssize_t>(request.size()));
    std::string in;
    char buffer[4096];
    for (ssize_t n; (n = ::recv(fd, buffer, sizeof buffer, 0)) > 0;) in.append(buffer, static_cast<std::size_t>(n));
    ::close(fd);
    return in;
  }
  Answer http(const std::string& method, const std::string& path, const std::string& token = {}, const std::string& body = {},
              const std::string& more = {}) {
    std::string request = method + " " + path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + more;
    if (!token.empty()) request += "Authorization: Bearer " + token + "\r\n";
    if (!body.empty()) request += "Content-Length: " + std::to_string(body.size()) + "\r\n";
    return parse_answer(raw(request + "\r\n" + body), method == "HEAD");
  }

  std::string dir_;
  ServiceOptions options_;
  std::unique_ptr<RemoteService> service_;
  std::thread thread_;
  int stop_fd_ = -1;
  std::string admin_;
};

// What both engines promise. With Headscale: a service of our own lets the devices in, and the API of a Headscale stands
// before it.
class EngineTest : public ServiceTest, public testing::WithParamInterface<const char*> {
 protected:
  EngineTest() {
    if (GetParam() != std::string_view("headscale_api")) return;
    ServiceOptions behind;
    behind.state_dir = dir_ + "/behind";
    behind.listen = options_.listen;
    behind.stun_port = 0;
    behind_ = std::make_unique<RemoteService>(behind);
    behind_stop_ = ::eventfd(0, EFD_CLOEXEC);
    behind_thread_ = std::thread([this] { behind_->run(behind_stop_); });
    fake_ = std::make_unique<FakeHeadscale>(behind.state_dir);
    app::write_file_atomic(dir_ + "/api.key", FakeHeadscale::kApiKey, 0600);
    options_.headscale.emplace();
    options_.headscale->url = fake_->url();
    options_.headscale->public_url = behind_->url();
    options_.headscale->api_key_file = dir_ + "/api.key";
    options_.headscale->proof_settle = std::chrono::milliseconds(200);
    options_.headscale->expiry_grace = std::chrono::milliseconds(0);
    options_.on_proof = [this](const Result<IsolationProof>& proof) {
      std::lock_guard lock(proofs_mutex_);
      proofs_.push_back(proof ? "" : proof.error().message);
    };
  }
  ~EngineTest() override {
    stop();
    fake_.reset();
    if (!behind_) return;
    std::uint64_t one = 1;
    EXPECT_EQ(::write(behind_stop_, &one, sizeof one), static_cast<ssize_t>(sizeof one));
    behind_thread_.join();
    ::close(behind_stop_);
  }
  // The account's part of names, where devices log in.
  std::string domain_of(const std::string& account) const { return (fake_ ? "acct-" : "") + account + ".porthole.internal."; }
  std::vector<std::string> proofs() {
    std::lock_guard lock(proofs_mutex_);
    return proofs_;
  }
  bool becomes(int status, const std::string& path, const std::string& token = {}) {
    Instant end = read_clock().now + 20s;
    while (read_clock().now < end) {
      if (http("GET", path, token).status == status) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return false;
  }

  std::unique_ptr<RemoteService> behind_;
  std::thread behind_thread_;
  int behind_stop_ = -1;
  std::unique_ptr<FakeHeadscale> fake_;
  std::mutex proofs_mutex_;
  std::vector<std::string> proofs_;  // empty: proved
};
INSTANTIATE_TEST_SUITE_P(Engines, EngineTest, testing::Values("embedded", "headscale_api"),
                         [](const auto& p) { return std::string(p.param); });

TEST_F(ServiceTest, FrontDoor) {
  start();
  auto key = http("GET", "/key?v=131");
  EXPECT_EQ(key.status, 200);
  auto parsed = ts2021::parse_key_answer(as_bytes(key.body));
  ASSERT_TRUE(parsed.ok());
  EXPECT_FALSE(parsed->public_key.is_zero());
  EXPECT_NE(key.body.find("legacyPublicKey"), std::string::npos);
  EXPECT_EQ(http("GET", "/key").status, 400);
  EXPECT_EQ(http("GET", "/key?v=x").body, "invalid capability version\n");
  EXPECT_EQ(http("GET", "/health").body, "{\"status\":\"ok\"}");
  EXPECT_EQ(http("GET", "/generate_204").status, 204);
  EXPECT_EQ(http("GET", "/generate_204", {}, {}, "X-Tailscale-Challenge: abc\r\n").headers["X-Tailscale-Response"], "response abc");
  EXPECT_EQ(http("HEAD", "/derp/probe").status, 200);
  EXPECT_EQ(http("GET", "/derp/latency-check").headers["Access-Control-Allow-Origin"], "*");
  EXPECT_EQ(http("GET", "/derp").status, 426);
  const std::string closed = raw("GET /derp HTTP/1.1\r\nHost: x\r\n\r\n"
                                 "GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  EXPECT_NE(closed.find("HTTP/1.1 426"), std::string::npos);
  EXPECT_EQ(closed.find("HTTP/1.1 200"), std::string::npos) << closed;  // it said that it closes
  EXPECT_EQ(http("GET", "/nothing").status, 404);
  EXPECT_EQ(http("GET", "/register/abc").status, 404);
  EXPECT_EQ(http("GET", "/ts2021").status, 405);
  auto stripped = http("POST", "/ts2021");
  EXPECT_EQ(stripped.status, 400);
  EXPECT_TRUE(stripped.body.starts_with("missing next protocol"));
  EXPECT_NE(stripped.body.find("reverse proxy"), std::string::npos);
  auto head = [&](const std::string& more) {
    return parse_answer(raw("POST /ts2021 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n" + more + "\r\n"), false);
  };
  EXPECT_TRUE(head("Upgrade: websocket\r\nConnection: upgrade\r\n").body.starts_with("unknown next protocol"));
  EXPECT_EQ(head("Upgrade: tailscale-control-protocol\r\n").body, "missing Tailscale handshake header\n");
  EXPECT_EQ(head("Upgrade: Tailscale-Control-Protocol\r\nX-Tailscale-Handshake: !!\r\n").body,
            "invalid tailscale handshake header\n");
  // A malformed initiation: 101, an error frame, the end.
  auto refused = raw("POST /ts2021 HTTP/1.1\r\nHost: x\r\nUpgrade: tailscale-control-protocol\r\nX-Tailscale-Handshake: AAAA\r\n\r\n");
  EXPECT_TRUE(refused.starts_with("HTTP/1.1 101 ")) << refused;
  EXPECT_NE(refused.find("\r\nConnection: upgrade\r\n"), std::string::npos);
  EXPECT_NE(refused.find("wrong handshake initiation size"), std::string::npos);
  EXPECT_TRUE(raw("NONSENSE\r\n\r\n").starts_with("HTTP/1.1 400 "));
  EXPECT_TRUE(raw("GET / HTTP/1.1\r\nX: " + std::string(20000, 'x') + "\r\n\r\n").starts_with("HTTP/1.1 431 "));
  // Whoever sends too much, to its end, still reads why.
  for (std::size_t size : {std::size_t{20'000}, std::size_t{3'000'000}}) {
    auto large = parse_answer(raw("POST /api/v1/accounts HTTP/1.1\r\nContent-Length: 3000000\r\n\r\n" + std::string(size, 'x')), false);
    EXPECT_EQ(large.status, 413);
    EXPECT_EQ(large.headers["Content-Type"], "application/problem+json");
    EXPECT_NE(large.body.find("larger than"), std::string::npos) << large.body;
  }
  // A client whose clock is wrong finds out here.
  auto now = ts2021::parse_http_date(http("GET", "/health").headers["Date"]);
  ASSERT_TRUE(now);
  EXPECT_LT(std::abs(now->unix_s() - std::time(nullptr)), 60);
  // Two requests on one connection, sent at once.
  auto two = raw("GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  EXPECT_NE(two.find("HTTP/1.1 200", 10), std::string::npos);
}

TEST_P(EngineTest, EnrolmentOverHttp) {
  start();
  auto made = http("POST", "/api/v1/accounts", admin_, "{\"name\":\"smith\"}");
  ASSERT_EQ(made.status, 201) << made.body;
  std::string token(made.object().at("token").as_string());
  auto key = http("POST", "/api/v1/accounts/smith/devices/tv/key", token);
  ASSERT_EQ(key.status, 201) << key.body;
  EXPECT_EQ(key.object().at("coordination_url").as_string(), fake_ ? behind_->url() : service_->url());
  EXPECT_EQ(http("POST", "/api/v1/accounts/smith/devices/tv/key", token).object().at("key"), key.object().at("key"));
  EXPECT_EQ(http("GET", "/api/v1/accounts", token).status, 403);
  EXPECT_EQ(http("GET", "/api/v1/accounts").status, 401);
  EXPECT_EQ(http("DELETE", "/api/v1/accounts/smith/devices/tv", token).status, 204);
  EXPECT_EQ(http("GET", "/api/v1/health").status, 200);
  // Guessing is limited by the address that the reverse proxy names.
  for (int i = 0; i < 30; ++i) (void)http("GET", "/api/v1/accounts", "wrong", {}, "X-Forwarded-For: 203.0.113.9\r\n");
  auto limited = http("GET", "/api/v1/accounts", "wrong", {}, "X-Forwarded-For: 203.0.113.9\r\n");
  EXPECT_EQ(limited.status, 429);
  EXPECT_FALSE(limited.headers["Retry-After"].empty());
  EXPECT_EQ(http("GET", "/api/v1/accounts", admin_).status, 200);
}

TEST_P(EngineTest, AThousandCallsAtOnceGetOneKey) {
  start();
  ASSERT_EQ(http("POST", "/api/v1/accounts", admin_, "{\"name\":\"smith\"}").status, 201);
  std::vector<std::thread> threads;
  std::vector<std::string> keys(1000);
  for (std::size_t t = 0; t < 25; ++t)
    threads.emplace_back([&, t] {
      for (std::size_t i = 0; i < 40; ++i)
        keys[t * 40 + i] = http("POST", "/api/v1/accounts/smith/devices/tv/key", admin_).object().at("key").as_string();
    });
  for (auto& t : threads) t.join();
  EXPECT_EQ(std::set<std::string>(keys.begin(), keys.end()).size(), 1u);
  EXPECT_EQ(http("GET", "/api/v1/accounts/smith/devices", admin_).object().at("devices").as_array().size(), 1u);
  if (fake_) {
    EXPECT_EQ(fake_->keys.size(), 1u);
  }
}

TEST_F(ServiceTest, ControlSocketAndDoors) {
  start();
  std::string socket = options_.state_dir + "/control.sock";
  struct stat info {};
  ASSERT_EQ(::stat(socket.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  ASSERT_EQ(::stat(service_->admin_token_file().c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  auto ask = [&](const json::object& command) { return ask_control_socket(socket, command).value(); };
  auto made = ask({{"command", "account_create"}, {"account", "smith"}});
  EXPECT_TRUE(made.at("ok").as_bool());
  auto again = ask({{"command", "account_create"}, {"account", "smith"}});
  EXPECT_FALSE(again.at("ok").as_bool());
  EXPECT_NE(again.at("error").as_string().find("already exists"), json::string::npos);
  EXPECT_FALSE(ask({{"command", "nonsense"}}).at("ok").as_bool());

  // A second service is refused, by the directory or by the port.
  try {
    RemoteService second(options_);
    FAIL() << "two services in one directory";
  } catch (const app::CommandError& e) {
    EXPECT_NE(std::string(e.what()).find("in use"), std::string::npos) << e.what();
  }
  ServiceOptions other = options_;
  other.state_dir = dir_ + "/other";
  other.listen.port = port();
  try {
    RemoteService second(other);
    FAIL() << "two services on one port";
  } catch (const app::CommandError& e) {
    EXPECT_NE(std::string(e.what()).find("port is in use"), std::string::npos) << e.what();
  }
  other.listen.port = 0;
  other.stun_port = service_->stun_port();
  EXPECT_THROW(RemoteService second(other), app::CommandError);
  other.stun_port = 0;
  other.tls_certificate = dir_ + "/missing.pem";
  other.tls_key = dir_ + "/missing.pem";
  EXPECT_THROW(RemoteService second(other), app::CommandError);

  // Keys and tokens survive a restart.
  std::string key = http("GET", "/key?v=131").body, admin = admin_;
  stop();
  EXPECT_FALSE(std::filesystem::exists(socket));
  EXPECT_FALSE(ask_control_socket(socket, {{"command", "health"}}));
  start();
  EXPECT_EQ(http("GET", "/key?v=131").body, key);
  EXPECT_EQ(admin_, admin);
  EXPECT_EQ(http("GET", "/api/v1/accounts", admin_).object().at("accounts").as_array().size(), 1u);
}

TEST_F(ServiceTest, StunAnswers) {
  start();
  int fd = ::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(service_->stun_port());
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(::connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to), 0);
  auto request = wire::stun::encode_request({1, 2, 3});
  ASSERT_EQ(::send(fd, request.data(), request.size(), 0), static_cast<ssize_t>(request.size()));
  pollfd p{fd, POLLIN, 0};
  ASSERT_EQ(::poll(&p, 1, 5000), 1);
  std::uint8_t in[100];
  ssize_t n = ::recv(fd, in, sizeof in, 0);
  auto answer = wire::stun::parse_response(Bytes(in, static_cast<std::size_t>(n)));
  ASSERT_TRUE(answer);
  sockaddr_in own{};
  socklen_t size = sizeof own;
  ::getsockname(fd, reinterpret_cast<sockaddr*>(&own), &size);
  EXPECT_EQ(answer->mapped, (Endpoint{IpAddress::v4(127, 0, 0, 1), ntohs(own.sin_port)}));
  ::close(fd);
}

// Runs a ControlClient over real sockets until `done` or ten seconds are over.
class Joiner {
 public:
  Joiner(const std::string& url, const std::string& key, const std::string& hostname) {
    control::ControlConfig config;
    config.url = url;
    config.auth_key = crypto::SecretText(key);
    config.hostinfo.hostname = hostname;
    config.hostinfo.os = "linux";
    client_ = std::make_unique<control::ControlClient>(std::move(config), crypto::MachinePrivate::generate(rng_),
                                                       crypto::NodePrivate::generate(rng_), rng_, Log::none());
    client_->set_disco_key(read_clock(), crypto::DiscoPrivate::generate(rng_).public_key());
    client_->start(read_clock());
  }
  ~Joiner() {
    for (auto& [id, fd] : fds_) ::close(fd);
  }
  control::ControlClient& client() { return *client_; }

  template <typename Done>
  bool run(Done done) {
    Instant end = read_clock().now + 10s;
    while (read_clock().now < end) {
      step();
      if (done()) return true;
    }
    return false;
  }
  void step() {
    Clock clock = read_clock();
    if (client_->next_timeout().earliest <= clock.now) client_->handle_timeout(clock);
    while (auto event = client_->poll_event())
      if (auto* url = std::get_if<control::LoginUrl>(&*event)) login_url = url->url;
    while (auto action = client_->poll_action()) {
      if (auto* open = std::get_if<OpenStream>(&*action)) {
        int fd = connect_to(open->port);
        if (fd < 0) {
          client_->stream_failed(clock, open->id, Error{ErrorCode::kUnavailable, "refused"});
          continue;
        }
        fds_[open->id] = fd;
        client_->stream_opened(clock, open->id, {});
      } else {
        StreamId id = std::get<CloseStream>(*action).id;
        ::close(fds_[id]);
        fds_.erase(id);
      }
    }
    std::vector<pollfd> polls;
    for (auto& [id, fd] : fds_) {
      std::uint8_t out[16 * 1024];
      while (std::size_t n = client_->produce(clock, id, out)) (void)::send(fd, out, n, MSG_NOSIGNAL);
      polls.push_back({fd, POLLIN, 0});
    }
    ::poll(polls.data(), polls.size(), 5);
    auto fds = fds_;
    for (auto& [id, fd] : fds) {
      std::uint8_t in[16 * 1024];
      ssize_t n = ::recv(fd, in, sizeof in, MSG_DONTWAIT);
      if (n > 0) {
        (void)client_->consume(read_clock(), id, Bytes(in, static_cast<std::size_t>(n)));
      } else if (n == 0) {
        ::close(fd);
        fds_.erase(id);
        client_->stream_closed(read_clock(), id, std::nullopt);
      }
    }
  }
  std::string login_url;

 private:
  SystemRng rng_;
  std::unique_ptr<control::ControlClient> client_;
  std::map<StreamId, int> fds_;
};

TEST_P(EngineTest, ControlClientsJoinSeeEachOtherAndAreRevoked) {
  start();
  ASSERT_EQ(http("POST", "/api/v1/accounts", admin_, "{\"name\":\"smith\"}").status, 201);
  auto device_key = [&](const std::string& device) {
    return std::string(http("POST", "/api/v1/accounts/smith/devices/" + device + "/key", admin_).object().at("key").as_string());
  };
  const std::string login = service_->coordination_url();
  Joiner a(login, device_key("a"), "alpha");
  Joiner b(login, device_key("b"), "beta");
  ASSERT_TRUE(a.run([&] { b.step(); return a.client().netmap().peers().size() == 1 && b.client().netmap().peers().size() == 1; }))
      << to_string(a.client().state());
  EXPECT_EQ(a.client().state(), control::ControlState::kRunning);
  ASSERT_TRUE(a.client().netmap().self());
  EXPECT_EQ(a.client().netmap().self()->name, "alpha." + domain_of("smith"));
  // Another account's device sees nobody and is seen by nobody.
  ASSERT_EQ(http("POST", "/api/v1/accounts", admin_, "{\"name\":\"jones\"}").status, 201);
  Joiner other(login, std::string(http("POST", "/api/v1/accounts/jones/devices/a/key", admin_).object().at("key").as_string()), "other");
  ASSERT_TRUE(other.run([&] { return other.client().state() == control::ControlState::kRunning; }));
  EXPECT_TRUE(other.client().netmap().peers().empty());
  auto list = [&](const std::string& account) {
    return http("GET", "/api/v1/accounts/" + account + "/devices", admin_).object().at("devices").as_array();
  };
  ASSERT_TRUE(a.run([&] { b.step(); return list("smith").size() == 2 && list("smith")[0].as_object().contains("node") && list("smith")[1].as_object().contains("node"); }));
  EXPECT_EQ(list("smith")[0].as_object().at("online"), json::value(true));
  EXPECT_EQ(list("smith")[0].as_object().at("device"), json::value("a"));
  EXPECT_EQ(list("smith")[0].as_object().at("state"), json::value("enrolled"));
  EXPECT_EQ(a.client().netmap().peers().size(), 1u);
  auto joined = http("POST", "/api/v1/accounts/smith/devices/a/key", admin_);
  EXPECT_EQ(joined.status, 200);
  EXPECT_EQ(joined.object().at("device").as_object().at("name"), json::value("alpha"));

  ASSERT_EQ(http("DELETE", "/api/v1/accounts/smith/devices/b", admin_).status, 204);
  EXPECT_TRUE(a.run([&] { return a.client().netmap().peers().empty(); }));
  EXPECT_EQ(list("smith").size(), 1u);
  // It does not come back with its key, and gets another one.
  EXPECT_EQ(http("DELETE", "/api/v1/accounts/smith/devices/b", admin_).status, 404);
  EXPECT_EQ(http("POST", "/api/v1/accounts/smith/devices/b/key", admin_).status, 201);

  // Interactive: the URL leads to a page, the approval lets it in.
  Joiner c(login, "", "gamma");
  ASSERT_TRUE(c.run([&] { return !c.login_url.empty(); }));
  ASSERT_TRUE(c.login_url.starts_with(login + "/register/"));
  std::string id = c.login_url.substr(c.login_url.rfind('/') + 1);
  if (!fake_) {
    auto page = http("GET", c.login_url.substr(login.size()));
    EXPECT_EQ(page.status, 200);
    EXPECT_NE(page.body.find("gamma"), std::string::npos);
    EXPECT_NE(page.body.find("porthole remote register approve " + id), std::string::npos);
  }
  auto approved = ask_control_socket(options_.state_dir + "/control.sock", {{"command", "approve"}, {"account", "smith"}, {"id", id}}).value();
  EXPECT_TRUE(approved.at("ok").as_bool()) << json::serialize(approved);
  EXPECT_TRUE(c.run([&] { return c.client().state() == control::ControlState::kRunning && c.client().netmap().peers().size() == 1; }));
}

// ---- Headscale: what can go wrong with it ------------------------------------------------------------------------------

class HeadscaleServiceTest : public EngineTest {};
INSTANTIATE_TEST_SUITE_P(Headscale, HeadscaleServiceTest, testing::Values("headscale_api"));

TEST_P(HeadscaleServiceTest, ServesTheApiAndNothingElse) {
  start();
  EXPECT_EQ(proofs(), std::vector<std::string>{""});
  EXPECT_EQ(service_->stun_port(), 0);
  EXPECT_EQ(http("GET", "/health").body, "{\"status\":\"ok\"}");
  for (const char* path : {"/key?v=131", "/derp", "/derp/probe", "/register/abc", "/ts2021", "/generate_204"})
    EXPECT_EQ(http("GET", path).status, 404) << path;
  EXPECT_EQ(http("POST", "/ts2021").status, 404);
  // Nothing of the proof is left.
  EXPECT_TRUE(fake_->keys.empty());
  EXPECT_FALSE(std::filesystem::exists(options_.state_dir + "/proof"));
  // Two requests on one connection, sent at once: answered in their order.
  auto two = raw("GET /api/v1/health HTTP/1.1\r\nHost: x\r\n\r\nGET /api/v1/nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  std::size_t first = two.find("HTTP/1.1 200"), second = two.find("HTTP/1.1 404");
  EXPECT_NE(first, std::string::npos);
  EXPECT_NE(second, std::string::npos);
  EXPECT_LT(first, second);
  // The store holds no key in clear.
  ASSERT_EQ(http("POST", "/api/v1/accounts", admin_, "{\"name\":\"smith\"}").status, 201);
  std::string key(http("POST", "/api/v1/accounts/smith/devices/tv/key", admin_).object().at("key").as_string());
  for (const char* name : {"/coordinator.db", "/coordinator.db-wal"})
    EXPECT_EQ(app::read_file(options_.state_dir + name).find(key.substr(key.size() - 64)), std::string::npos) << name;
  // The directory stays with its engine.
  stop();
  ServiceOptions embedded = options_;
  embedded.headscale.reset();
  EXPECT_THROW(RemoteService second_service(embedded), app::CommandError);
  start();
  EXPECT_EQ(std::string(http("POST", "/api/v1/accounts/smith/devices/tv/key", admin_).object().at("key").as_string()), key);
}

TEST_P(HeadscaleServiceTest, AnOutageIs503AndEndsByItself) {
  start();
  ASSERT_EQ(http("POST", "/api/v1/accounts", admin_, "{\"name\":\"smith\"}").status, 201);
  std::string key(http("POST", "/api/v1/accounts/smith/devices/tv/key", admin_).object().at("key").as_string());
  fake_->stop();
  ASSERT_TRUE(becomes(503, "/api/v1/accounts", admin_));
  for (auto [method, path] : std::initializer_list<std::pair<const char*, const char*>>{
           {"GET", "accounts"}, {"POST", "accounts/smith/token"}, {"POST", "accounts/smith/keys"}, {"GET", "accounts/smith/devices"},
           {"POST", "accounts/smith/devices/tv/key"}, {"DELETE", "accounts/smith/devices/tv"}, {"POST", "accounts/smith/approvals/x"},
           {"GET", "health"}}) {
    auto a = http(method, "/api/v1/" + std::string(path), admin_);
    EXPECT_EQ(a.status, 503) << method << " " << path << " " << a.body;
    EXPECT_NE(a.body.find("cannot be reached"), std::string::npos) << a.body;
    EXPECT_EQ(a.headers["Content-Type"], path == std::string_view("health") ? "application/json" : "application/problem+json");
  }
  EXPECT_EQ(http("GET", "/api/v1/accounts", "wrong").status, 401);
  auto command = ask_control_socket(options_.state_dir + "/control.sock", {{"command", "devices_list"}}).value();
  EXPECT_FALSE(command.at("ok").as_bool());
  EXPECT_EQ(command.at("code"), json::value("unavailable"));
  fake_->start();
  ASSERT_TRUE(becomes(200, "/api/v1/accounts", admin_));
  EXPECT_EQ(proofs(), (std::vector<std::string>{"", ""})) << "proved again";
  EXPECT_EQ(std::string(http("POST", "/api/v1/accounts/smith/devices/tv/key", admin_).object().at("key").as_string()), key);
  // It comes back with everybody in one network: nobody is let in.
  fake_->stop();
  ASSERT_TRUE(becomes(503, "/api/v1/accounts", admin_));
  fake_->flat = true;
  fake_->start();
  Instant end = read_clock().now + 20s;
  while (proofs().size() < 3 && read_clock().now < end) (void)http("GET", "/api/v1/accounts", admin_);
  ASSERT_EQ(proofs().size(), 3u);
  EXPECT_NE(proofs()[2].find("see each other"), std::string::npos) << proofs()[2];
  auto refused = http("POST", "/api/v1/accounts/smith/devices/new/key", admin_);
  EXPECT_EQ(refused.status, 503);
  EXPECT_NE(refused.body.find("see each other"), std::string::npos) << refused.body;
}

TEST_P(HeadscaleServiceTest, DoesNotStartUnproved) {
  auto refused = [&](std::string_view part) {
    try {
      RemoteService service(options_);
      ADD_FAILURE() << "it starts: " << part;
    } catch (const app::CommandError& e) {
      EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
      EXPECT_EQ(e.status(), 1);
    }
  };
  fake_->flat = true;
  refused("devices of different users see each other");
  fake_->flat = false;
  fake_->policy = "{\"acls\":[{\"action\":\"accept\",\"src\":[\"*\"],\"dst\":[\"*:*\"]}]}";
  refused("does not keep accounts apart");
  fake_->policy = std::string(kIsolatingPolicy);
  fake_->version = "v0.27.1";
  refused("0.27.1");
  fake_->version = "v0.28.0";
  fake_->api_key = "another";
  refused("refuses the API key");
  fake_->api_key = FakeHeadscale::kApiKey;
  // Devices that cannot join prove nothing; a stop is not waited for.
  options_.headscale->public_url = "http://127.0.0.1:1";
  Instant begin = read_clock().now;
  options_.stopped = [begin] { return read_clock().now - begin > 500ms; };
  refused("stopped");
  EXPECT_LT(read_clock().now - begin, 5s);
}

// A certificate for "localhost", good for an hour.
void write_certificate(const std::string& certificate_file, const std::string& key_file) {
  EVP_PKEY* key = EVP_PKEY_Q_keygen(nullptr, nullptr, "EC", "P-256");
  X509* cert = X509_new();
  X509_set_version(cert, 2);
  ASN1_INTEGER_set(X509_get_serialNumber(cert), 77);
  X509_gmtime_adj(X509_getm_notBefore(cert), 0);
  X509_gmtime_adj(X509_getm_notAfter(cert), 3600);
  X509_set_pubkey(cert, key);
  X509_NAME_add_entry_by_txt(X509_get_subject_name(cert), "CN", MBSTRING_ASC, reinterpret_cast<const unsigned char*>("localhost"), -1, -1, 0);
  X509_set_issuer_name(cert, X509_get_subject_name(cert));
  X509_sign(cert, key, EVP_sha256());
  FILE* f = std::fopen(certificate_file.c_str(), "w");
  PEM_write_X509(f, cert);
  std::fclose(f);
  f = std::fopen(key_file.c_str(), "w");
  PEM_write_PrivateKey(f, key, nullptr, nullptr, 0, nullptr, nullptr);
  std::fclose(f);
  X509_free(cert);
  EVP_PKEY_free(key);
}

TEST_F(ServiceTest, TlsOffersHttp11AndTheRelaysKey) {
  options_.tls_certificate = dir_ + "/cert.pem";
  options_.tls_key = dir_ + "/key.pem";
  write_certificate(options_.tls_certificate, options_.tls_key);
  start();
  EXPECT_TRUE(service_->url().starts_with("https://127.0.0.1:"));
  SSL_CTX* context = SSL_CTX_new(TLS_client_method());
  SSL* ssl = SSL_new(context);
  static constexpr unsigned char kProtocols[] = "\x02h2\x08http/1.1";
  SSL_set_alpn_protos(ssl, kProtocols, sizeof kProtocols - 1);
  int fd = connect_to(port());
  SSL_set_fd(ssl, fd);
  ASSERT_EQ(SSL_connect(ssl), 1);
  EXPECT_EQ(SSL_version(ssl), TLS1_3_VERSION);
  const unsigned char* chosen = nullptr;
  unsigned chosen_size = 0;
  SSL_get0_alpn_selected(ssl, &chosen, &chosen_size);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(chosen), chosen_size), "http/1.1");
  STACK_OF(X509)* chain = SSL_get_peer_cert_chain(ssl);
  ASSERT_EQ(sk_X509_num(chain), 2);
  X509* meta = sk_X509_value(chain, 1);
  EXPECT_EQ(ASN1_INTEGER_get(X509_get0_serialNumber(meta)), 2);
  char name[200] = {};
  X509_NAME_get_text_by_NID(X509_get_subject_name(meta), NID_commonName, name, sizeof name);
  EXPECT_EQ(std::string(name).size(), 71u);
  EXPECT_TRUE(std::string(name).starts_with("derpkey"));
  std::string request = "GET /key?v=131 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
  ASSERT_GT(SSL_write(ssl, request.data(), static_cast<int>(request.size())), 0);
  std::string in;
  char buffer[4096];
  for (int n; (n = SSL_read(ssl, buffer, sizeof buffer)) > 0;) in.append(buffer, static_cast<std::size_t>(n));
  EXPECT_EQ(parse_answer(in, false).status, 200);
  SSL_free(ssl);
  ::close(fd);
  // Nothing below TLS 1.2.
  ssl = SSL_new(context);
  SSL_set_max_proto_version(ssl, TLS1_1_VERSION);
  SSL_set_security_level(ssl, 0);
  fd = connect_to(port());
  SSL_set_fd(ssl, fd);
  EXPECT_NE(SSL_connect(ssl), 1);
  SSL_free(ssl);
  ::close(fd);
  SSL_CTX_free(context);
}

}  // namespace
}  // namespace porthole::remote
