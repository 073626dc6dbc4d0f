// Client and server, both real, over loopback sockets: direct and through a proxy.
#include "client/session.h"

#include <session.pb.h>

#include <boost/asio/use_awaitable.hpp>

#include "client/household.h"
#include "client/limits.h"
#include "serve/limits.h"
#include "session/limits.h"

namespace porthole::client::testing {
namespace {

using boost::asio::awaitable;

class SessionTest : public ::testing::Test {
 protected:
  // Making film and password hash takes a while: once for all.
  static void SetUpTestSuite() { home = new Household; }
  static void TearDownTestSuite() {
    delete home;
    home = nullptr;
  }
  static Household* home;
  boost::asio::io_context io;
};
Household* SessionTest::home = nullptr;

awaitable<std::string> all_of(ReadStream& stream) {
  std::string out;
  for (;;) {
    std::string bytes = co_await stream.read();
    if (bytes.empty()) break;
    out += bytes;
  }
  co_return out;
}

TEST_F(SessionTest, LoginListPosterAndEveryByte) {
  auto work = [&]() -> awaitable<void> {
    std::shared_ptr<Session> s = co_await home->open();
    EXPECT_EQ(s->fingerprint(), home->server->fingerprint());
    LoginDetails d = Household::details();
    LoginAnswer answer = co_await s->login(std::move(d));
    EXPECT_EQ(answer.server_name, "Home");
    EXPECT_EQ(answer.server_id.size(), 36u);
    EXPECT_EQ(answer.tailnet_preauth_key, "");
    std::vector<Item> items = co_await s->list();
    EXPECT_EQ(items.size(), 2u);
    std::string film = home->id_of("clip.mp4");
    PosterImage poster = co_await s->poster(film);
    EXPECT_EQ(poster.content_type, "image/jpeg");
    EXPECT_GT(poster.image.size(), 500u);
    std::unique_ptr<ReadStream> stream = co_await s->read(film, 0, 0);
    EXPECT_EQ(stream->size_bytes, home->film.size());
    EXPECT_EQ(stream->content_type, "video/mp4");
    std::string bytes = co_await all_of(*stream);
    EXPECT_TRUE(bytes == home->film);
    co_await s->ping();
    s->close();
  };
  run(io, work());
}

TEST_F(SessionTest, SeeksAndParallelStreamsAreByteExact) {
  auto work = [&]() -> awaitable<void> {
    std::shared_ptr<Session> s = co_await home->open_logged_in();
    std::string id = home->id_of("big.mkv");
    std::uint64_t at = 1;
    for (int i = 0; i < 40; ++i) {
      at = (at * 6364136223846793005u + 1442695040888963407u);
      std::uint64_t offset = at % home->big.size();
      std::unique_ptr<ReadStream> stream = co_await s->read(id, offset, 0);
      std::string first = co_await stream->read();  // and then somewhere else: the rest is cancelled
      EXPECT_FALSE(first.empty());
      EXPECT_TRUE(home->big.compare(offset, first.size(), first) == 0) << offset;
    }
    std::unique_ptr<ReadStream> a = co_await s->read(id, 0, 0);
    std::unique_ptr<ReadStream> b = co_await s->read(id, 5'000'000, 3'000'001);
    std::string from_a, from_b;
    while (from_a.size() < a->length || from_b.size() < b->length) {
      std::string x = co_await a->read();
      from_a += x;
      std::string y = co_await b->read();
      from_b += y;
    }
    EXPECT_TRUE(from_a == home->big);
    EXPECT_TRUE(from_b == home->big.substr(5'000'000, 3'000'001));
    s->close();
  };
  run(io, work());
}

// The reader stops: the server must stop too, at the window, and go on afterwards without a lost byte.
TEST_F(SessionTest, SlowReaderIsNotFlooded) {
  auto work = [&]() -> awaitable<void> {
    std::shared_ptr<Session> s = co_await home->open_logged_in();
    std::unique_ptr<ReadStream> stream = co_await s->read(home->id_of("big.mkv"), 0, 0);
    std::string got = co_await stream->read();
    // Each ping passes behind what the server has sent before it: nothing but time for it to send more.
    for (int i = 0; i < 50; ++i) co_await s->ping();
    boost::json::object status = home->server->status();
    std::uint64_t sent = 0;
    for (const boost::json::value& v : status["sessions"].as_array())
      sent = std::max(sent, boost::json::value_to<std::uint64_t>(v.as_object().at("bytes")));
    EXPECT_EQ(sent, kWindowBytes);
    std::string rest = co_await all_of(*stream);
    EXPECT_TRUE(got + rest == home->big);
    s->close();
  };
  run(io, work());
}

TEST_F(SessionTest, WrongPasswordAndUnknownItemsHaveTheirSentences) {
  EXPECT_EQ(failure_of(io, [&]() -> awaitable<void> {
    std::shared_ptr<Session> s = co_await home->open();
    LoginDetails d = Household::details("guess");
    co_await s->login(std::move(d));
  }), Failure::kWrongPassword);
  EXPECT_EQ(failure_of(io, [&]() -> awaitable<void> {
    std::shared_ptr<Session> s = co_await home->open_logged_in();
    co_await s->read("nothing", 0, 0);
  }), Failure::kNotFound);
  EXPECT_EQ(failure_of(io, [&]() -> awaitable<void> {
    std::shared_ptr<Session> s = co_await home->open_logged_in();
    co_await s->read(home->id_of("clip.mp4"), home->film.size() + 1, 0);
  }), Failure::kNotFound);
  EXPECT_EQ(failure_of(io, [&]() -> awaitable<void> {
    std::shared_ptr<Session> s = co_await home->open_logged_in();
    co_await s->poster(home->id_of("big.mkv"));
  }), Failure::kNotFound);
  // Before a login there is nothing.
  EXPECT_EQ(failure_of(io, [&]() -> awaitable<void> {
    std::shared_ptr<Session> s = co_await home->open();
    co_await s->list();
  }), Failure::kProtocol);
}

TEST_F(SessionTest, ChangedCertificateIsRefusedBeforeAnythingIsSent) {
  std::string other = "sha256:" + std::string(64, 'a');
  try {
    run(io, [&]() -> awaitable<void> { co_await home->open(other); }());
    FAIL();
  } catch (const ClientError& e) {
    EXPECT_EQ(e.failure(), Failure::kPinChanged);
    EXPECT_NE(std::string(e.what()).find(other), std::string::npos);
    EXPECT_NE(std::string(e.what()).find(home->server->fingerprint()), std::string::npos);
  }
}

TEST_F(SessionTest, NotAPortholeServer) {
  // A listener that speaks something else, and one that nobody answers at.
  boost::asio::ip::tcp::acceptor plain(io, {boost::asio::ip::address_v4::loopback(), 0});
  std::uint16_t port = plain.local_endpoint().port();
  std::thread other([&] {
    boost::asio::ip::tcp::socket s = plain.accept();
    std::string text = "HTTP/1.1 400 Bad Request\r\n\r\n";
    boost::system::error_code ignored;
    s.write_some(boost::asio::buffer(text), ignored);
  });
  EXPECT_EQ(failure_of(io, [&]() -> awaitable<void> {
    boost::asio::ip::tcp::socket socket = co_await connect_direct("127.0.0.1", port, std::chrono::seconds(5));
    co_await Session::open(std::move(socket), "other", "");
  }), Failure::kNotPorthole);
  other.join();
  plain.close();
  EXPECT_EQ(failure_of(io, [&]() -> awaitable<void> { co_await connect_direct("127.0.0.1", port, std::chrono::seconds(5)); }),
            Failure::kUnreachable);
}

TEST_F(SessionTest, ThroughTheProxyEverythingIsTheSameAndThePeerIsKnown) {
  TestProxy proxy(home->server->bridge_port());
  auto work = [&]() -> awaitable<void> {
    boost::asio::ip::tcp::socket socket = co_await connect_through(proxy.endpoint, "100.64.0.1", 8443, std::chrono::seconds(5));
    std::shared_ptr<Session> s = co_await Session::open(std::move(socket), "home", home->server->fingerprint());
    LoginDetails d = Household::details();
    co_await s->login(std::move(d));
    std::unique_ptr<ReadStream> stream = co_await s->read(home->id_of("big.mkv"), 0, 0);
    std::string bytes = co_await all_of(*stream);
    EXPECT_TRUE(bytes == home->big);
    boost::json::object status = home->server->status();
    bool known = false;
    for (const boost::json::value& v : status["sessions"].as_array()) {
      const boost::json::object& o = v.as_object();
      known = known || (o.at("via") == "tailnet" && o.contains("peer") && o.at("peer") == "ipad" && o.at("from") == "100.64.0.3");
    }
    EXPECT_TRUE(known) << boost::json::serialize(status);
    // The peer leaves the tailnet: its session ends, and says so.
    home->server->keep_peers({"100.64.0.9"});
    co_await s->wait_end();
    EXPECT_NE(s->end_reason().find("revoked"), std::string::npos) << s->end_reason();
  };
  run(io, work());
  EXPECT_EQ(proxy.asked_for(), "100.64.0.1:8443");
  ProxyEndpoint wrong = proxy.endpoint;
  wrong.password = "x";
  EXPECT_EQ(failure_of(io, [&]() -> awaitable<void> { co_await connect_through(wrong, "home", 8443, std::chrono::seconds(5)); }),
            Failure::kFailed);
  proxy.refuse_next = 1;
  EXPECT_EQ(failure_of(io, [&]() -> awaitable<void> {
    co_await connect_through(proxy.endpoint, "home", 8443, std::chrono::seconds(5));
  }), Failure::kUnreachable);
  EXPECT_EQ(proxy.asked_for(), "home:8443");
}

TEST(Server, GuessingIsSlowedDown) {
  Household home;
  boost::asio::io_context io;
  int refused = 0, wrong = 0;
  for (int i = 0; i < serve::kFreeAttempts + 3; ++i) {
    Failure f = failure_of(io, [&]() -> awaitable<void> {
      std::shared_ptr<Session> s = co_await home.open();
      LoginDetails d = Household::details("guess" + std::to_string(i));
      co_await s->login(std::move(d));
    });
    (f == Failure::kRefused ? refused : wrong)++;
  }
  EXPECT_EQ(wrong, serve::kFreeAttempts);
  EXPECT_EQ(refused, 3);
}

TEST(Server, LanOffEndsItsSessionsAndLanOnServesAgain) {
  Household home;
  boost::asio::io_context io;
  auto work = [&]() -> awaitable<void> {
    std::shared_ptr<Session> s = co_await home.open_logged_in();
    std::string error;
    EXPECT_TRUE(home.server->set_lan(false, error)) << error;
    co_await s->wait_end();
    bool refused = false;
    try {
      co_await home.open();
    } catch (const ClientError& e) {
      refused = e.failure() == Failure::kUnreachable;
    }
    EXPECT_TRUE(refused);
    EXPECT_TRUE(home.server->set_lan(true, error)) << error;
    s = co_await home.open_logged_in();
    co_await s->ping();
  };
  run(io, work());
}

TEST(Server, SaysGoodbyeWhenItStops) {
  Household home;
  boost::asio::io_context io;
  auto work = [&]() -> awaitable<void> {
    std::shared_ptr<Session> s = co_await home.open_logged_in();
    std::thread stopping([&] { home.server->stop(); });
    co_await s->wait_end();
    EXPECT_NE(s->end_reason().find("shutting down"), std::string::npos) << s->end_reason();
    stopping.join();
  };
  run(io, work());
}

TEST(Server, RemoteDetailsComeWithTheLogin) {
  Household home;
  home.grant.remote_hostname = "home";
  home.grant.remote_ip = "100.64.0.1";
  home.grant.coordination_url = "https://c.example";
  home.grant.tailnet_preauth_key = "key";
  boost::asio::io_context io;
  auto work = [&]() -> awaitable<void> {
    std::shared_ptr<Session> s = co_await home.open();
    LoginDetails d = Household::details(kPassword, true);
    LoginAnswer a = co_await s->login(std::move(d));
    EXPECT_EQ(a.remote_hostname, "home");
    EXPECT_EQ(a.remote_ip, "100.64.0.1");
    EXPECT_EQ(a.coordination_url, "https://c.example");
    EXPECT_EQ(a.tailnet_preauth_key, std::string("key-") + kDeviceId);
  };
  run(io, work());
  home.grant = {};
  home.grant.problem = "the coordination service is down";
  auto without = [&]() -> awaitable<void> {
    std::shared_ptr<Session> s = co_await home.open();
    LoginDetails d = Household::details(kPassword, true);
    LoginAnswer a = co_await s->login(std::move(d));
    EXPECT_EQ(a.remote_ip + a.tailnet_preauth_key + a.coordination_url + a.remote_hostname, "");
    EXPECT_EQ(a.remote_problem, "the coordination service is down");
  };
  run(io, without());
}

// C3: other implementations read these numbers. The bytes are written here by hand (number * 8 + kind, length, value).
TEST(Contract, NumbersOfTheLoginAnswer) {
  std::string bytes;
  bytes += std::string("\x08\x01", 2);
  bytes += std::string("\x12\x04", 2) + "Home";
  bytes += std::string("\x4a\x03", 2) + "nas";
  bytes += std::string("\x52\x0a", 2) + "100.64.0.1";
  bytes += std::string("\x5a\x09", 2) + "https://c";
  bytes += std::string("\x62\x03", 2) + "key";
  session::pb::LoginResponse r;
  ASSERT_TRUE(r.ParseFromString(bytes));
  EXPECT_TRUE(r.success());
  EXPECT_EQ(r.server_name(), "Home");
  EXPECT_EQ(r.remote_hostname(), "nas");
  EXPECT_EQ(r.remote_ip(), "100.64.0.1");
  EXPECT_EQ(r.coordination_url(), "https://c");
  EXPECT_EQ(r.tailnet_preauth_key(), "key");
  session::pb::LoginResponse made;
  made.set_success(true);
  made.set_server_name("Home");
  made.set_remote_hostname("nas");
  made.set_remote_ip("100.64.0.1");
  made.set_coordination_url("https://c");
  made.set_tailnet_preauth_key("key");
  EXPECT_EQ(made.SerializeAsString(), bytes);
}

int raw_connect(std::uint16_t port) {
  int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  at.sin_port = htons(port);
  if (::connect(fd, reinterpret_cast<sockaddr*>(&at), sizeof at) != 0) {
    ::close(fd);
    return -1;
  }
  return fd;
}

// Connections that say nothing, and ones that say nonsense, while an honest client comes.
TEST(Server, HalfOpenFloodAndNonsenseKeepNobodyOut) {
  Household home;
  boost::asio::io_context io;
  std::vector<int> flood;
  for (int i = 0; i < 400; ++i) {
    int fd = raw_connect(home.port);
    ASSERT_GE(fd, 0);
    std::string text = noise(static_cast<std::size_t>(i % 50));
    if (i % 2) ::send(fd, text.data(), text.size(), MSG_NOSIGNAL);
    flood.push_back(fd);
  }
  auto work = [&]() -> awaitable<void> {
    std::shared_ptr<Session> s = co_await home.open_logged_in();
    co_await s->list();
    s->close();
  };
  run(io, work());
  boost::json::object status = home.server->status();
  EXPECT_LE(boost::json::value_to<std::size_t>(status["unauthenticated"]), serve::kUnauthenticatedPerAddressMax + 1);
  for (int fd : flood) ::close(fd);
}

}  // namespace
}  // namespace porthole::client::testing
