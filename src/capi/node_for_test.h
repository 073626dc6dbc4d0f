// What tests of the C ABI share: nodes that end with their scope, folders that vanish with theirs, waiting and comparing.
#pragma once

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <porthole/porthole.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <string>
#include <utility>

namespace porthole::test {

using Clock = std::chrono::steady_clock;

constexpr int kSoonMs = 30'000;   // what happens at once, on a machine that is busy and slowed by sanitizers
constexpr const char* kNobody = "http://127.0.0.1:1";

class TempDir {
 public:
  TempDir() {
    char pattern[] = "/tmp/porthole-capi-XXXXXX";
    path_ = ::mkdtemp(pattern);
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

struct Node {
  porthole_node* p = nullptr;
  porthole_error error{};
  Node() = default;
  Node(const std::string& dir, const std::string& url, const std::string& key = {}, const char* hostname = nullptr) {
    porthole_options o;
    porthole_options_init(&o);
    o.state_dir = dir.c_str();
    o.control_url = url.empty() ? nullptr : url.c_str();
    o.auth_key = key.empty() ? nullptr : key.c_str();
    o.hostname = hostname;
    p = porthole_start(&o, &error);
  }
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;
  ~Node() { porthole_close(p); }
  void close() { porthole_close(std::exchange(p, nullptr)); }
};

inline boost::json::object take_json(char* text) {
  boost::json::object out = text ? boost::json::parse(text).as_object() : boost::json::object();
  porthole_free(text);
  return out;
}

inline void expect_words(const porthole_error& e, int code, std::initializer_list<const char*> words) {
  EXPECT_EQ(e.code, code) << e.message;
  for (const char* w : words) EXPECT_NE(std::strstr(e.message, w), nullptr) << "'" << w << "' is not in: " << e.message;
}

// A listener on a loopback port of the kernel's choice.
inline int listen_local(std::uint16_t& port) {
  int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof a;
  EXPECT_EQ(::bind(fd, reinterpret_cast<sockaddr*>(&a), sizeof a), 0);
  EXPECT_EQ(::listen(fd, 16), 0);
  EXPECT_EQ(::getsockname(fd, reinterpret_cast<sockaddr*>(&a), &size), 0);
  port = ntohs(a.sin_port);
  return fd;
}

inline bool readable(int fd, int timeout_ms) {
  pollfd p{fd, POLLIN, 0};
  return ::poll(&p, 1, timeout_ms) == 1 && (p.revents & POLLIN) != 0;
}

inline std::string read_exactly(int fd, std::size_t size) {
  std::string out;
  char block[65536];
  while (out.size() < size && readable(fd, kSoonMs)) {
    ssize_t n = ::read(fd, block, std::min(sizeof block, size - out.size()));
    if (n <= 0) break;
    out.append(block, static_cast<std::size_t>(n));
  }
  return out;
}

}  // namespace porthole::test
