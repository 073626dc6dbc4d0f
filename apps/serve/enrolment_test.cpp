#include "serve/enrolment.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <functional>
#include <thread>

#include "support/support.h"

namespace porthole::serve {
namespace {

using namespace std::chrono_literals;

constexpr const char* kToken = "phtoken-smith-jones-0123";

// A web service of one connection at a time that answers each request with what `answer` makes of it. "": hangs until
// the client goes away.
class FakeService {
 public:
  explicit FakeService(std::function<std::string(const std::string&)> answer) {
    fd_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof at;
    ::bind(fd_, reinterpret_cast<sockaddr*>(&at), sizeof at);
    ::listen(fd_, 8);
    ::getsockname(fd_, reinterpret_cast<sockaddr*>(&at), &size);
    port = ntohs(at.sin_port);
    thread_ = std::thread([this, answer = std::move(answer)] {
      for (int c; (c = ::accept(fd_, nullptr, nullptr)) >= 0; ::close(c)) {
        std::string request;
        char part[4096];
        while (request.find("\r\n\r\n") == std::string::npos || (request.find("{") == std::string::npos && request.starts_with("POST"))) {
          ssize_t n = ::recv(c, part, sizeof part, 0);
          if (n <= 0) break;
          request.append(part, static_cast<std::size_t>(n));
        }
        std::string text = answer(request);
        if (text.empty()) {
          while (::recv(c, part, sizeof part, 0) > 0) {
          }
        }
        ::send(c, text.data(), text.size(), MSG_NOSIGNAL);
      }
    });
  }
  ~FakeService() {
    ::shutdown(fd_, SHUT_RDWR);
    thread_.join();
    ::close(fd_);
  }
  std::string url() const { return "http://127.0.0.1:" + std::to_string(port); }
  std::uint16_t port = 0;

 private:
  int fd_;
  std::thread thread_;
};

std::string http(int status, const std::string& body) {
  return "HTTP/1.1 " + std::to_string(status) + " X\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
}

TEST(Enrolment, AsksForTheDevicesKey) {
  std::string seen;
  FakeService service([&](const std::string& request) {
    seen = request;
    return http(201, R"({"key":"phkey-1","expires":"2027-01-01T00:00:00Z","coordination_url":"https://c.example","device":{}})");
  });
  DeviceKey key = EnrolmentClient(service.url() + "/", kToken, "").device_key("ab/c", false, 5s);
  EXPECT_EQ(key.key, "phkey-1");
  EXPECT_EQ(key.coordination_url, "https://c.example");
  EXPECT_TRUE(seen.starts_with("POST /api/v1/accounts/smith-jones/devices/ab%2Fc/key HTTP/1.1\r\n")) << seen;
  EXPECT_NE(seen.find(std::string("Authorization: Bearer ") + kToken + "\r\n"), std::string::npos);
  EXPECT_TRUE(seen.ends_with("{}"));
  EnrolmentClient(service.url(), kToken, "").device_key("d", true, 5s);
  EXPECT_TRUE(seen.ends_with("{\"replace\":true}"));
}

TEST(Enrolment, FailuresSayWhy) {
  struct {
    std::string answer;
    const char* says;
    bool temporary;
  } kTable[] = {
      {http(401, R"({"title":"Unauthorized","detail":"this token is not known"})"), "this token is not known", false},
      {http(507, R"({"detail":"the disk is full"})"), "the disk is full", true},
      {http(429, "slow down"), "429", true},
      {http(200, "not json"), "is it a coordination service", false},
      {http(200, "{}"), "is it a coordination service", false},
      {http(200, R"({"expires":"never"})"), "without a key", false},
      {http(404, "<html>"), "404 and a web page", false},
      {http(200, "<!doctype html><title>Hotel</title>"), "captive portal", true},
      {http(200, "\n <html>"), "captive portal", true},
      {"HTTP/1.1 302 Found\r\nLocation: http://login.hotel.example/\r\nContent-Length: 0\r\n\r\n",
       "redirects to http://login.hotel.example/: this network may want a login first", true},
      {http(400, "This is an HTTPS server."), "https://", false},
      {"\x15\x03\x01\x02\x02\x46", "https://", true},
      {"SSH-2.0-OpenSSH\r\n", "does not answer as HTTP", true},
      {"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n", "does not answer as HTTP", true},
  };
  for (const auto& t : kTable) {
    FakeService service([&](const std::string&) { return t.answer; });
    try {
      EnrolmentClient(service.url(), kToken, "").device_key("d", false, 5s);
      ADD_FAILURE() << t.answer;
    } catch (const EnrolmentError& e) {
      EXPECT_NE(std::string(e.what()).find(t.says), std::string::npos) << e.what();
      EXPECT_EQ(e.temporary(), t.temporary) << e.what();
      EXPECT_EQ(std::string(e.what()).find(kToken), std::string::npos);
    }
  }
}

TEST(Enrolment, SilentAndAbsentServicesAreGivenUp) {
  std::uint16_t port = 0;
  {
    FakeService service([](const std::string&) { return ""; });
    port = service.port;
    auto begin = std::chrono::steady_clock::now();
    EXPECT_THROW(EnrolmentClient(service.url(), kToken, "").device_key("d", false, 200ms), EnrolmentError);
    EXPECT_LT(std::chrono::steady_clock::now() - begin, 5s);
  }
  EXPECT_THROW(EnrolmentClient("http://127.0.0.1:" + std::to_string(port), kToken, "").device_key("d", false, 2s), EnrolmentError);
}

TEST(Enrolment, WhoeverStopsItDoesNotWait) {
  std::stop_source stop;
  FakeService service([&](const std::string&) {
    stop.request_stop();  // while the answer is being waited for
    return "";
  });
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_THROW(EnrolmentClient(service.url(), kToken, "").device_key("d", false, 60s, stop.get_token()), EnrolmentError);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 30s);
}

// The names of this machine need no answer from the network.
TEST(Enrolment, NamesAreLookedUp) {
  FakeService service([](const std::string&) { return http(200, R"({"key":"k"})"); });
  const std::string url = "http://localhost:" + std::to_string(service.port);
  EXPECT_EQ(EnrolmentClient(url, kToken, "").device_key("d", false, 20s).key, "k");
  try {
    EnrolmentClient("http://no-such-host.invalid", kToken, "").device_key("d", false, 20s);
    ADD_FAILURE();
  } catch (const EnrolmentError& e) {
    EXPECT_NE(std::string(e.what()).find("no-such-host.invalid cannot be found"), std::string::npos) << e.what();
  }
}

TEST(Enrolment, UnusableSettingsAreSaidAtOnce) {
  EXPECT_THROW(EnrolmentClient("remote.example", kToken, ""), app::CommandError);
  EXPECT_THROW(EnrolmentClient("https://remote.example", "secret", ""), app::CommandError);
  EXPECT_THROW(EnrolmentClient("https://remote.example", "phtoken-a-b\nphtoken-c-d", ""), app::CommandError);
  EXPECT_THROW(EnrolmentClient("https://remote.example", kToken, "/nonexistent.pem"), app::CommandError);
}

}  // namespace
}  // namespace porthole::serve
