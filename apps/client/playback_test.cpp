// The web server for players, over a real session.
#include "client/playback.h"

#include <future>

#include "client/household.h"
#include "client/limits.h"

namespace porthole::client::testing {
namespace {

using boost::asio::awaitable;

// One request on a connection of its own; everything that comes back until the end.
std::string fetch(std::uint16_t port, const std::string& request) {
  int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  at.sin_port = htons(port);
  if (::connect(fd, reinterpret_cast<sockaddr*>(&at), sizeof at) != 0) return {};
  ::send(fd, request.data(), request.size(), MSG_NOSIGNAL);
  std::string out;
  std::vector<char> part(64 * 1024);
  for (ssize_t n; (n = ::recv(fd, part.data(), part.size(), 0)) > 0;) out.append(part.data(), static_cast<std::size_t>(n));
  ::close(fd);
  return out;
}
std::string body_of(const std::string& answer) {
  std::size_t end = answer.find("\r\n\r\n");
  return end == std::string::npos ? "" : answer.substr(end + 4);
}

class PlaybackTest : public ::testing::Test {
 protected:
  void SetUp() override {
    Playback::SessionSource source = [this]() -> awaitable<std::shared_ptr<Session>> {
      if (session && !session->ended()) co_return session;
      if (++connects > 1 && way_back.valid()) way_back.wait();   // nothing else has to run meanwhile
      session = co_await home.open_logged_in();
      if (connects > 1 && dead > 0) {
        --dead;
        session->close();
      }
      co_return session;
    };
    playback = std::make_unique<Playback>(io, "127.0.0.1:0", source, [this](const std::string& p) {
      std::lock_guard lock(mutex);
      problems.push_back(p);
    });
    item.id = home.id_of("big.mkv");
    item.file_name = "big.mkv";
    std::string url = playback->url(item);
    std::string_view rest = std::string_view(url).substr(std::string_view("http://127.0.0.1:").size());
    port = static_cast<std::uint16_t>(std::stoi(std::string(rest.substr(0, rest.find('/')))));
    target = rest.substr(rest.find('/'));
    thread = std::thread([this] {
      auto guard = boost::asio::make_work_guard(io);
      io.run();
    });
  }
  void TearDown() override {
    io.stop();
    thread.join();
    playback.reset();
  }
  std::string get(const std::string& headers, const std::string& method = "GET", std::string what = {}) {
    if (what.empty()) what = target;
    return fetch(port, method + " " + what + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + headers + "\r\n");
  }
  // All that comes of a request for the film when the session is lost after its beginning.
  std::string get_with_a_loss() {
    int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int small = 16 * 1024;  // so that most of the film is still at the server when the cut comes
    ::setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    at.sin_port = htons(port);
    EXPECT_EQ(::connect(fd, reinterpret_cast<sockaddr*>(&at), sizeof at), 0);
    std::string request = "GET " + target + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    std::promise<void> back;
    way_back = back.get_future().share();
    ::send(fd, request.data(), request.size(), MSG_NOSIGNAL);
    std::string got(100'000, '\0');
    EXPECT_EQ(::recv(fd, got.data(), got.size(), MSG_WAITALL), 100'000);
    std::string error;
    EXPECT_TRUE(home.server->set_lan(false, error));
    bool on = home.server->set_lan(true, error);
    back.set_value();
    EXPECT_TRUE(on) << error;
    std::vector<char> part(64 * 1024);
    for (ssize_t n; (n = ::recv(fd, part.data(), part.size(), 0)) > 0;) got.append(part.data(), static_cast<std::size_t>(n));
    ::close(fd);
    return got;
  }

  Household home;
  boost::asio::io_context io;
  std::shared_ptr<Session> session;
  std::unique_ptr<Playback> playback;
  std::thread thread;
  std::mutex mutex;
  std::vector<std::string> problems;
  Item item;
  std::uint16_t port = 0;
  std::string target;
  std::atomic<int> connects{0};
  std::atomic<int> dead{0};      // so many sessions behind the first one have ended when they are used
  std::shared_future<void> way_back;   // set it before the first request: the second session is opened after it
};

TEST_F(PlaybackTest, WholePartsAndHead) {
  std::string whole = get("");
  EXPECT_TRUE(whole.starts_with("HTTP/1.1 200 ")) << whole.substr(0, 100);
  EXPECT_TRUE(body_of(whole) == home.big);
  EXPECT_NE(whole.find("Accept-Ranges: bytes"), std::string::npos);
  std::string part = get("Range: bytes=1000000-1999999\r\n");
  EXPECT_TRUE(part.starts_with("HTTP/1.1 206 "));
  EXPECT_NE(part.find("Content-Range: bytes 1000000-1999999/" + std::to_string(home.big.size())), std::string::npos);
  EXPECT_TRUE(body_of(part) == home.big.substr(1'000'000, 1'000'000));
  EXPECT_TRUE(body_of(get("Range: bytes=-77\r\n")) == home.big.substr(home.big.size() - 77));
  std::string beyond = get("Range: bytes=99999999-\r\n");
  EXPECT_TRUE(beyond.starts_with("HTTP/1.1 416 "));
  EXPECT_NE(beyond.find("Content-Range: bytes */" + std::to_string(home.big.size())), std::string::npos);
  std::string head = get("", "HEAD");
  EXPECT_TRUE(head.starts_with("HTTP/1.1 200 "));
  EXPECT_NE(head.find("Content-Length: " + std::to_string(home.big.size())), std::string::npos);
  EXPECT_EQ(body_of(head), "");
  EXPECT_EQ(connects, 1);
}

TEST_F(PlaybackTest, SeveralRequestsAtOnceAndOneAfterAnother) {
  std::vector<std::thread> players;
  std::atomic<int> good{0};
  for (std::size_t i = 0; i < 4; ++i)
    players.emplace_back([&, i] {
      std::size_t offset = i * 2'000'000 + 3;
      if (body_of(get("Range: bytes=" + std::to_string(offset) + "-\r\n")) == home.big.substr(offset)) ++good;
    });
  for (std::thread& t : players) t.join();
  EXPECT_EQ(good, 4);
  std::string one = "GET " + target + " HTTP/1.1\r\nHost: x\r\nRange: bytes=0-9\r\n\r\n";
  std::string two = "GET " + target + " HTTP/1.1\r\nHost: x\r\nRange: bytes=10-19\r\nConnection: close\r\n\r\n";
  std::string both = fetch(port, one + two);
  EXPECT_EQ(both.substr(both.size() - 10), home.big.substr(10, 10));
  EXPECT_NE(both.find(home.big.substr(0, 10)), std::string::npos);
}

TEST_F(PlaybackTest, OthersGetNothing) {
  EXPECT_TRUE(get("", "GET", "/").starts_with("HTTP/1.1 404 "));
  EXPECT_TRUE(get("", "GET", "/" + std::string(32, '0') + "/" + item.id + "/x").starts_with("HTTP/1.1 404 "));
  EXPECT_TRUE(get("", "GET", target.substr(0, 34) + "nothing/x").starts_with("HTTP/1.1 404 "));
  EXPECT_TRUE(get("", "DELETE").starts_with("HTTP/1.1 405 "));
  EXPECT_FALSE(fetch(port, noise(100) + "\r\n\r\n").starts_with("HTTP/1.1 200"));
  EXPECT_THROW(Playback(io, "0.0.0.0:0", {}, {}), app::CommandError);
}

// The file is another one now, and what was said about it before does not matter: each request is answered at once.
TEST_F(PlaybackTest, ItemThatChangedIsAnsweredAsItIsNow) {
  const std::string file = home.dir / "lib/big.mkv";
  ASSERT_TRUE(body_of(get("")) == home.big);
  app::write_text(file, home.big.substr(0, 1000));
  std::string shrunk = get("Range: bytes=500-\r\n");
  EXPECT_TRUE(shrunk.starts_with("HTTP/1.1 206 ")) << shrunk.substr(0, 100);
  EXPECT_TRUE(body_of(shrunk) == home.big.substr(500, 500));
  app::write_text(file, home.big.substr(0, 3000));
  EXPECT_TRUE(body_of(get("Range: bytes=2000-\r\n")) == home.big.substr(2000, 1000));
  app::write_text(file, "");
  std::string empty = get("");
  EXPECT_TRUE(empty.starts_with("HTTP/1.1 200 ")) << empty.substr(0, 100);
  EXPECT_NE(empty.find("Content-Length: 0\r\n"), std::string::npos);
  EXPECT_TRUE(get("Range: bytes=0-9\r\n").starts_with("HTTP/1.1 416 "));
  app::write_text(file, home.big);
  EXPECT_TRUE(body_of(get("")) == home.big);
  std::lock_guard lock(mutex);
  EXPECT_TRUE(problems.empty()) << problems[0];
}

// The session is lost while a film is under way: the answer goes on with a new one, and no byte is missing.
TEST_F(PlaybackTest, LostSessionIsReplacedInTheMiddleOfAnAnswer) {
  EXPECT_TRUE(body_of(get_with_a_loss()) == home.big);
  EXPECT_EQ(connects, 2);
}

// What is at hand then may be a session that looks alive, and turns out to be dead when it is asked.
TEST_F(PlaybackTest, SessionThatIsDeadAlreadyIsReplacedToo) {
  dead = 2;
  EXPECT_TRUE(body_of(get_with_a_loss()) == home.big);
  EXPECT_EQ(connects, 4);
  dead = 100;
  EXPECT_LT(body_of(get_with_a_loss()).size(), home.big.size());
  EXPECT_EQ(connects, 4 + kStreamLossesMax);
}

TEST_F(PlaybackTest, WhenThereIsNoWayBackTheAnswerIsCutAndSaidSo) {
  int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  int small = 16 * 1024;
  ::setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  at.sin_port = htons(port);
  ASSERT_EQ(::connect(fd, reinterpret_cast<sockaddr*>(&at), sizeof at), 0);
  std::string request = "GET " + target + " HTTP/1.1\r\nHost: x\r\n\r\n";
  ::send(fd, request.data(), request.size(), MSG_NOSIGNAL);
  std::string got(100'000, '\0');
  ASSERT_EQ(::recv(fd, got.data(), got.size(), MSG_WAITALL), 100'000);
  std::string error;
  ASSERT_TRUE(home.server->set_lan(false, error));
  std::vector<char> part(64 * 1024);
  for (ssize_t n; (n = ::recv(fd, part.data(), part.size(), 0)) > 0;) got.append(part.data(), static_cast<std::size_t>(n));
  ::close(fd);
  EXPECT_LT(body_of(got).size(), home.big.size());
  std::lock_guard lock(mutex);
  ASSERT_FALSE(problems.empty());
  EXPECT_NE(problems[0].find("cannot be reached"), std::string::npos) << problems[0];
}

}  // namespace
}  // namespace porthole::client::testing
