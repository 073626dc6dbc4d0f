// The C ABI as a program sees it: two nodes in one process. The coordination service is a real `porthole remote` in a
// process of its own.
#include "capi/node_for_test.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <boost/json.hpp>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

extern char** environ;

namespace {

namespace json = boost::json;
using namespace porthole::test;

// A program of ours; its standard output line by line.
class Child {
 public:
  explicit Child(std::vector<std::string> argv) {
    int pipe_fds[2];
    if (::pipe2(pipe_fds, O_CLOEXEC) != 0) return;
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, pipe_fds[1], STDOUT_FILENO);
    std::vector<char*> raw;
    for (std::string& a : argv) raw.push_back(a.data());
    raw.push_back(nullptr);
    if (::posix_spawn(&pid_, raw[0], &actions, nullptr, raw.data(), environ) != 0) pid_ = -1;
    ::posix_spawn_file_actions_destroy(&actions);
    ::close(pipe_fds[1]);
    out_ = pipe_fds[0];
  }
  ~Child() {
    if (pid_ > 0) {
      ::kill(pid_, SIGTERM);
      ::waitpid(pid_, nullptr, 0);
    }
    ::close(out_);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  std::string line() {
    std::string out;
    char c;
    while (::read(out_, &c, 1) == 1 && c != '\n') out.push_back(c);
    return out;
  }

 private:
  pid_t pid_ = -1;
  int out_ = -1;
};

class TwoNodes : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
#ifdef PORTHOLE_BINARY
    dir_ = new TempDir;
    std::string state = dir_->file("remote");
    remote_ = new Child({PORTHOLE_BINARY, "remote", "run", "--statedir", state, "--listen", "127.0.0.1:0", "--stun-port", "0", "--json"});
    url_ = new std::string(json::parse(remote_->line()).at("url").as_string());
    Child({PORTHOLE_BINARY, "remote", "account", "create", "home", "--statedir", state, "--json"}).line();
    Child key({PORTHOLE_BINARY, "remote", "key", "create", "--account", "home", "--reusable", "--statedir", state, "--json"});
    key_ = new std::string(json::parse(key.line()).at("key").as_string());
#endif
  }
  static void TearDownTestSuite() {
    delete std::exchange(remote_, nullptr);
    delete std::exchange(dir_, nullptr);
    delete std::exchange(url_, nullptr);
    delete std::exchange(key_, nullptr);
  }
  void SetUp() override {
    if (!url_) GTEST_SKIP() << "this build has no porthole program to coordinate the nodes";
    static std::atomic<int> number{0};
    name_ = "t" + std::to_string(++number);
    a_ = std::make_unique<Node>(dir_->file(name_ + "a"), *url_, *key_, (name_ + "a").c_str());
    b_ = std::make_unique<Node>(dir_->file(name_ + "b"), *url_, *key_, (name_ + "b").c_str());
    ASSERT_TRUE(a_->p) << a_->error.message;
    ASSERT_TRUE(b_->p) << b_->error.message;
    ASSERT_EQ(porthole_wait_running(a_->p, kSoonMs, &e_), PORTHOLE_OK) << e_.message;
    ASSERT_EQ(porthole_wait_running(b_->p, kSoonMs, &e_), PORTHOLE_OK) << e_.message;
    ASSERT_EQ(porthole_wait_peer(a_->p, (name_ + "b").c_str(), kSoonMs, &e_), PORTHOLE_OK) << e_.message;
  }
  void TearDown() override {
    a_.reset();
    b_.reset();
  }
  std::string peer(const std::string& port) const { return name_ + "b:" + port; }

  static TempDir* dir_;
  static Child* remote_;
  static std::string* url_;
  static std::string* key_;
  std::string name_;
  std::unique_ptr<Node> a_, b_;
  porthole_error e_{};
};
TempDir* TwoNodes::dir_ = nullptr;
Child* TwoNodes::remote_ = nullptr;
std::string* TwoNodes::url_ = nullptr;
std::string* TwoNodes::key_ = nullptr;

TEST_F(TwoNodes, DialListenAccept) {
  porthole_listener* listener = porthole_listen(b_->p, 80, &e_);
  ASSERT_TRUE(listener) << e_.message;
  int none = 5;
  EXPECT_EQ(porthole_accept(listener, 10, &none, nullptr, 0, &e_), PORTHOLE_ERROR_TIMEOUT);
  EXPECT_EQ(none, -1);
  int out = -1, in = -1;
  ASSERT_EQ(porthole_dial(a_->p, "tcp", peer("80").c_str(), kSoonMs, &out, &e_), PORTHOLE_OK) << e_.message;
  char from[64] = "";
  ASSERT_EQ(porthole_accept(listener, kSoonMs, &in, from, sizeof from, &e_), PORTHOLE_OK) << e_.message;
  EXPECT_EQ(std::string(from).substr(0, 7), "100.64.") << from;
  // Both ways at once, more than any buffer holds, then half-close.
  std::string data(3'000'000, 'x');
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i * 31 >> 7);
  auto send_all = [&](int fd) {
    std::size_t at = 0;
    while (at < data.size()) {
      ssize_t n = ::send(fd, data.data() + at, data.size() - at, MSG_NOSIGNAL);
      if (n <= 0) break;
      at += static_cast<std::size_t>(n);
    }
    ::shutdown(fd, SHUT_WR);
  };
  std::thread t1(send_all, out), t2(send_all, in);
  std::string got_in, got_out;
  std::thread t3([&] { got_in = read_exactly(in, data.size()); }), t4([&] { got_out = read_exactly(out, data.size()); });
  for (auto* t : {&t1, &t2, &t3, &t4}) t->join();
  EXPECT_TRUE(got_in == data);
  EXPECT_TRUE(got_out == data);
  char c;
  ASSERT_TRUE(readable(in, kSoonMs));
  EXPECT_EQ(::read(in, &c, 1), 0) << "the end that shutdown() sent";
  ::close(in);
  ::close(out);
  // A small place for the peer's address is filled and ended.
  ASSERT_EQ(porthole_dial(a_->p, "tcp", peer("80").c_str(), kSoonMs, &out, &e_), PORTHOLE_OK) << e_.message;
  char little[4] = "zzz";
  ASSERT_EQ(porthole_accept(listener, kSoonMs, &in, little, sizeof little, &e_), PORTHOLE_OK) << e_.message;
  EXPECT_STREQ(little, "100");
  ::close(in);
  ::close(out);
  // Closing the listener ends an accept under way, and the port refuses from then on.
  std::atomic<int> result{1};
  std::thread waiting([&] {
    int fd;
    result = porthole_accept(listener, -1, &fd, nullptr, 0, nullptr);
  });
  porthole_listener_close(listener);
  waiting.join();
  EXPECT_EQ(result, PORTHOLE_ERROR_CANCELLED);
  EXPECT_EQ(porthole_dial(a_->p, "tcp", peer("80").c_str(), kSoonMs, &out, &e_), PORTHOLE_ERROR_REFUSED) << e_.message;
  EXPECT_EQ(porthole_dial(a_->p, "tcp", "no-such-device:80", kSoonMs, &out, &e_), PORTHOLE_ERROR_NOT_FOUND) << e_.message;
  EXPECT_EQ(porthole_dial(a_->p, "tcp", "100.127.0.99:80", kSoonMs, &out, &e_), PORTHOLE_ERROR_UNAVAILABLE) << e_.message;
}

TEST_F(TwoNodes, ListenerDescriptorSaysWhenAcceptAnswers) {
  porthole_listener* listener = porthole_listen(b_->p, 80, &e_);
  ASSERT_TRUE(listener) << e_.message;
  int ready = porthole_listener_fd(listener);
  EXPECT_FALSE(readable(ready, 0));
  int fd = -1;
  EXPECT_EQ(porthole_accept(listener, 0, &fd, nullptr, 0, &e_), PORTHOLE_ERROR_TIMEOUT);
  int out[3];
  for (int& o : out) ASSERT_EQ(porthole_dial(a_->p, "tcp", peer("80").c_str(), kSoonMs, &o, &e_), PORTHOLE_OK) << e_.message;
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(readable(ready, kSoonMs));
    ASSERT_EQ(porthole_accept(listener, 0, &fd, nullptr, 0, &e_), PORTHOLE_OK) << e_.message;
    ::close(fd);
  }
  EXPECT_FALSE(readable(ready, 0));
  for (int o : out) ::close(o);
  // Whoever has just taken the last one is not told of another by the descriptor.
  for (int i = 0; i < 50; ++i) {
    ASSERT_EQ(porthole_dial(a_->p, "tcp", peer("80").c_str(), kSoonMs, &out[0], &e_), PORTHOLE_OK) << e_.message;
    ASSERT_EQ(porthole_accept(listener, kSoonMs, &fd, nullptr, 0, &e_), PORTHOLE_OK) << e_.message;
    ASSERT_FALSE(readable(ready, 0)) << i;
    ::close(fd);
    ::close(out[0]);
  }
  porthole_listener_close(listener);
  EXPECT_EQ(porthole_listener_fd(listener), -1);
}

TEST_F(TwoNodes, DialWithoutWaiting) {
  porthole_listener* listener = porthole_listen(b_->p, 80, &e_);
  ASSERT_TRUE(listener) << e_.message;
  int dialling = -1, out = -1, in = -1;
  ASSERT_EQ(porthole_dial_begin(a_->p, "tcp", peer("80").c_str(), -1, &dialling, &e_), PORTHOLE_OK) << e_.message;
  ASSERT_TRUE(readable(dialling, kSoonMs));
  ASSERT_EQ(porthole_dial_end(dialling, &out, &e_), PORTHOLE_OK) << e_.message;
  ASSERT_EQ(porthole_accept(listener, kSoonMs, &in, nullptr, 0, &e_), PORTHOLE_OK);
  EXPECT_NE(::fcntl(out, F_GETFD) & FD_CLOEXEC, 0);
  ASSERT_EQ(::send(out, "abc", 3, MSG_NOSIGNAL), 3);
  EXPECT_EQ(read_exactly(in, 3), "abc");
  int none = 5;
  EXPECT_EQ(porthole_dial_end(dialling, &none, &e_), PORTHOLE_ERROR_CANCELLED) << "an outcome is taken once";
  EXPECT_EQ(none, -1);
  for (int fd : {dialling, out, in}) ::close(fd);
  // Failures keep their code and sentence.
  struct { const char* to; int code; } cases[] = {{"81", PORTHOLE_ERROR_REFUSED}, {nullptr, PORTHOLE_ERROR_NOT_FOUND}};
  for (auto& c : cases) {
    ASSERT_EQ(porthole_dial_begin(a_->p, "tcp", c.to ? peer(c.to).c_str() : "no-such-device:80", -1, &dialling, &e_), PORTHOLE_OK);
    ASSERT_TRUE(readable(dialling, kSoonMs));
    EXPECT_EQ(porthole_dial_end(dialling, &none, &e_), c.code) << e_.message;
    EXPECT_GT(std::strlen(e_.message), 5u);
    ::close(dialling);
  }
  EXPECT_EQ(porthole_dial_begin(a_->p, "tcp", "nonsense", -1, &dialling, &e_), PORTHOLE_ERROR_INVALID);
  EXPECT_EQ(dialling, -1);
  // Given up, and overtaken by the node's end.
  Node lonely(dir_->file(name_ + "lonely"), kNobody);
  ASSERT_EQ(porthole_dial_begin(lonely.p, "udp", "home:80", -1, &dialling, &e_), PORTHOLE_OK);
  EXPECT_EQ(porthole_dial_end(dialling, &none, &e_), PORTHOLE_ERROR_UNAVAILABLE);
  ::close(dialling);
  ASSERT_EQ(porthole_dial_begin(lonely.p, "tcp", "home:80", -1, &dialling, &e_), PORTHOLE_OK);
  lonely.close();
  ASSERT_TRUE(readable(dialling, kSoonMs));
  EXPECT_EQ(porthole_dial_end(dialling, &none, &e_), PORTHOLE_ERROR_CANCELLED);
  ::close(dialling);
  porthole_listener_close(listener);
}

TEST_F(TwoNodes, DatagramsBothWaysOverIpv4AndIpv6) {
  int packets = -1;
  ASSERT_EQ(porthole_listen_packet(b_->p, 53, &packets, &e_), PORTHOLE_OK) << e_.message;
  for (const char* network : {"udp", "udp4", "udp6"}) {
    int fd = -1;
    ASSERT_EQ(porthole_dial(a_->p, network, peer("53").c_str(), kSoonMs, &fd, &e_), PORTHOLE_OK) << e_.message;
    ASSERT_EQ(::send(fd, "ask", 3, MSG_NOSIGNAL), 3);
    char block[2000], from[64] = "";
    std::size_t size = 0;
    ASSERT_EQ(porthole_receive_from(packets, kSoonMs, block, sizeof block, &size, from, sizeof from, &e_), PORTHOLE_OK) << e_.message;
    EXPECT_EQ(std::string(block, size), "ask");
    EXPECT_EQ(from[0], std::strcmp(network, "udp6") == 0 ? '[' : '1') << from;
    std::string longest(from[0] == '[' ? PORTHOLE_DATAGRAM_MAX_IPV6 : PORTHOLE_DATAGRAM_MAX_IPV4, 'x');
    ASSERT_EQ(porthole_send_to(packets, from, longest.data(), longest.size(), &e_), PORTHOLE_OK) << e_.message;
    EXPECT_EQ(porthole_send_to(packets, from, block, longest.size() + 1, &e_), PORTHOLE_ERROR_LIMIT);
    ASSERT_TRUE(readable(fd, kSoonMs));
    EXPECT_EQ(::recv(fd, block, sizeof block, 0), static_cast<ssize_t>(longest.size()));
    ::close(fd);
  }
  int fd = -1;
  EXPECT_EQ(porthole_dial(a_->p, "udp", "no-such-device:53", kSoonMs, &fd, &e_), PORTHOLE_ERROR_NOT_FOUND) << e_.message;
  // TCP to the IPv6 address of a name.
  porthole_listener* listener = porthole_listen(b_->p, 80, &e_);
  ASSERT_EQ(porthole_dial(a_->p, "tcp6", peer("80").c_str(), kSoonMs, &fd, &e_), PORTHOLE_OK) << e_.message;
  int in = -1;
  char from[64] = "";
  ASSERT_EQ(porthole_accept(listener, kSoonMs, &in, from, sizeof from, &e_), PORTHOLE_OK);
  EXPECT_EQ(std::string(from).substr(0, 6), "[fd7a:");
  ::close(in);
  ::close(fd);
  porthole_listener_close(listener);
  // The app's end hears that its node is gone.
  ASSERT_EQ(porthole_dial(a_->p, "udp", peer("53").c_str(), kSoonMs, &fd, &e_), PORTHOLE_OK);
  a_->close();
  char c;
  ASSERT_TRUE(readable(fd, kSoonMs));
  EXPECT_EQ(::recv(fd, &c, 1, 0), 0);
  ::close(fd);
  ::close(packets);
}

TEST_F(TwoNodes, ExposedUdpService) {
  int service = ::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof at;
  ASSERT_EQ(::bind(service, reinterpret_cast<sockaddr*>(&at), sizeof at), 0);
  ASSERT_EQ(::getsockname(service, reinterpret_cast<sockaddr*>(&at), &length), 0);
  ASSERT_EQ(porthole_expose_udp(b_->p, 53, ("127.0.0.1:" + std::to_string(ntohs(at.sin_port))).c_str(), 0, &e_), PORTHOLE_OK) << e_.message;
  int fds[2];
  for (int i = 0; i < 2; ++i) {
    ASSERT_EQ(porthole_dial(a_->p, i == 0 ? "udp4" : "udp6", peer("53").c_str(), kSoonMs, &fds[i], &e_), PORTHOLE_OK) << e_.message;
    ASSERT_EQ(::send(fds[i], "ask", 3, MSG_NOSIGNAL), 3);
    char block[100];
    ASSERT_TRUE(readable(service, kSoonMs));
    ASSERT_EQ(::recvfrom(service, block, sizeof block, 0, reinterpret_cast<sockaddr*>(&at), &length), 3);
    std::string answer = "answer " + std::to_string(i);
    ::sendto(service, answer.data(), answer.size(), 0, reinterpret_cast<sockaddr*>(&at), length);
    ASSERT_TRUE(readable(fds[i], kSoonMs));
    EXPECT_EQ(std::string(block, static_cast<std::size_t>(::recv(fds[i], block, sizeof block, 0))), answer);
    char* text = nullptr;
    ASSERT_EQ(porthole_exposed_udp_peer(b_->p, ntohs(at.sin_port), &text, &e_), PORTHOLE_OK) << e_.message;
    EXPECT_EQ(take_json(text).at("peer").as_string(), name_ + "a");
  }
  for (int fd : fds) ::close(fd);
  ::close(service);
  char* text = nullptr;
  ASSERT_EQ(porthole_status_json(b_->p, &text, &e_), PORTHOLE_OK);
  json::object status = take_json(text);
  EXPECT_EQ(status.at("counters").at("datagrams").at("to_app").to_number<int>(), 2);
  EXPECT_EQ(status.at("counters").at("datagrams").at("from_app").to_number<int>(), 2);
}

TEST_F(TwoNodes, LoopbackAndExpose) {
  std::uint16_t service_port = 0;
  int service = listen_local(service_port);
  ASSERT_EQ(porthole_expose(b_->p, 90, ("127.0.0.1:" + std::to_string(service_port)).c_str(), 0, &e_), PORTHOLE_OK) << e_.message;
  porthole_proxy first{}, second{}, other{};
  ASSERT_EQ(porthole_loopback(a_->p, &first, &e_), PORTHOLE_OK) << e_.message;
  ASSERT_EQ(porthole_loopback(a_->p, &second, &e_), PORTHOLE_OK) << e_.message;
  ASSERT_EQ(porthole_loopback(b_->p, &other, &e_), PORTHOLE_OK) << e_.message;
  EXPECT_STREQ(first.address, second.address);
  EXPECT_STREQ(first.password, second.password);
  EXPECT_STRNE(first.address, other.address);
  EXPECT_STRNE(first.password, other.password);
  EXPECT_EQ(porthole_loopback_on(a_->p, "127.0.0.1:1", &second, &e_), PORTHOLE_ERROR_EXISTS);

  // A program speaks SOCKS5 to the proxy (RFC 1928, RFC 1929).
  auto connect_proxy = [](const porthole_proxy& p) {
    int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    at.sin_port = htons(static_cast<std::uint16_t>(std::stoi(std::strrchr(p.address, ':') + 1)));
    EXPECT_EQ(::connect(fd, reinterpret_cast<sockaddr*>(&at), sizeof at), 0);
    return fd;
  };
  auto send_text = [](int fd, const std::string& s) { return ::send(fd, s.data(), s.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(s.size()); };
  auto login = [](const porthole_proxy& p, const std::string& password) {
    std::string user = p.username;
    return std::string("\x05\x01\x02\x01", 4) + static_cast<char>(user.size()) + user + static_cast<char>(password.size()) + password;
  };
  int wrong = connect_proxy(first);
  ASSERT_TRUE(send_text(wrong, login(first, other.password)));
  EXPECT_NE(read_exactly(wrong, 4).substr(2), std::string("\x01\x00", 2)) << "the other node's credential opens this one's proxy";
  ::close(wrong);
  int fd = connect_proxy(first);
  std::string host = name_ + "b";
  ASSERT_TRUE(send_text(fd, login(first, first.password) + std::string("\x05\x01\x00\x03", 4) + static_cast<char>(host.size()) + host + std::string("\x00\x5a", 2)));
  EXPECT_EQ(read_exactly(fd, 4), std::string("\x05\x02\x01\x00", 4));
  std::string reply = read_exactly(fd, 10);
  ASSERT_EQ(reply.size(), 10u);
  EXPECT_EQ(reply[1], 0);
  ASSERT_TRUE(readable(service, kSoonMs));
  sockaddr_in from{};
  socklen_t size = sizeof from;
  int local = ::accept(service, reinterpret_cast<sockaddr*>(&from), &size);
  ASSERT_GE(local, 0);
  ASSERT_TRUE(send_text(fd, "hello"));
  EXPECT_EQ(read_exactly(local, 5), "hello");
  char* text = nullptr;
  ASSERT_EQ(porthole_exposed_peer(b_->p, ntohs(from.sin_port), &text, &e_), PORTHOLE_OK) << e_.message;
  json::object who = take_json(text);
  EXPECT_EQ(who.at("peer").as_string(), name_ + "a");
  EXPECT_EQ(porthole_exposed_peer(b_->p, service_port, &text, &e_), PORTHOLE_ERROR_NOT_FOUND);
  // The far side hears of a node that is closed while connections run.
  a_->close();
  ASSERT_TRUE(readable(local, kSoonMs));
  char c;
  EXPECT_LE(::read(local, &c, 1), 0);
  ::close(local);
  ::close(fd);
  ::close(service);
}

TEST_F(TwoNodes, StatusPingNetcheckFromManyThreads) {
  porthole_listener* listener = porthole_listen(b_->p, 80, &e_);
  ASSERT_TRUE(listener);
  std::thread echo([&] {
    for (;;) {
      int fd;
      if (porthole_accept(listener, -1, &fd, nullptr, 0, nullptr) != PORTHOLE_OK) return;
      std::string got = read_exactly(fd, 3);
      EXPECT_EQ(::send(fd, got.data(), got.size(), MSG_NOSIGNAL), 3);
      ::close(fd);
    }
  });
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      porthole_error e{};
      for (int i = 0; i < 5; ++i) {
        char* text = nullptr;
        EXPECT_EQ(porthole_status_json(a_->p, &text, &e), PORTHOLE_OK) << e.message;
        json::object status = take_json(text);
        EXPECT_EQ(status.at("state"), "running");
        int fd = -1;
        ASSERT_EQ(porthole_dial(a_->p, "tcp", peer("80").c_str(), kSoonMs, &fd, &e), PORTHOLE_OK) << e.message;
        EXPECT_EQ(::send(fd, "abc", 3, MSG_NOSIGNAL), 3);
        EXPECT_EQ(read_exactly(fd, 3), "abc");
        ::close(fd);
      }
      char* text = nullptr;
      EXPECT_EQ(porthole_ping(a_->p, (name_ + "b").c_str(), kSoonMs, &text, &e), PORTHOLE_OK) << e.message;
      EXPECT_EQ(take_json(text).at("peer").as_string(), name_ + "b");
      if (t == 0) {
        EXPECT_EQ(porthole_netcheck(a_->p, kSoonMs, &text, &e), PORTHOLE_OK) << e.message;
        EXPECT_TRUE(take_json(text).contains("relays"));
      }
    });
  for (auto& t : threads) t.join();
  porthole_listener_close(listener);
  echo.join();
}

std::size_t entries(const char* folder) {
  return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator(folder), {}));
}

// A node is started, used by many threads in every way, and closed by one of them at any moment.
TEST_F(TwoNodes, CloseAtAnyTime) {
  const char* wanted = std::getenv("PORTHOLE_ROUNDS");
  int rounds = wanted ? std::atoi(wanted) : 15;
  std::string far = peer("80"), far_udp = peer("53");
  porthole_listener* echo = porthole_listen(b_->p, 80, &e_);
  ASSERT_TRUE(echo) << e_.message;
  std::thread echoing([&] {
    int fd;
    while (porthole_accept(echo, -1, &fd, nullptr, 0, nullptr) == PORTHOLE_OK) ::close(fd);
  });
  int packets = -1;
  ASSERT_EQ(porthole_listen_packet(b_->p, 53, &packets, &e_), PORTHOLE_OK);
  std::size_t descriptors = 0, threads_before = 0;
  std::uint32_t random = 12345;
  for (int round = 0; round < rounds; ++round) {
    if (round == 3) {  // whatever is made once exists by now
      descriptors = entries("/proc/self/fd");
      threads_before = entries("/proc/self/task");
    }
    Node node(dir_->file("hammered"), *url_, *key_, "hammered");
    ASSERT_TRUE(node.p) << node.error.message;
    porthole_node* p = node.p;
    std::atomic<bool> over{false};
    std::atomic<porthole_listener*> listener{porthole_listen(p, 90, nullptr)};
    auto until_closed = [&over](auto call) {
      return std::thread([&over, call] {
        while (!over) {
          int code = call();
          if (code == PORTHOLE_ERROR_CANCELLED) return;
          if (code != PORTHOLE_OK) std::this_thread::yield();
        }
      });
    };
    auto dialling = [p](const char* network, const std::string& to) {
      int fd = -1;
      int code = porthole_dial(p, network, to.c_str(), 2000, &fd, nullptr);
      if (fd >= 0) {
        [[maybe_unused]] ssize_t n = ::send(fd, "x", 1, MSG_NOSIGNAL);
        ::close(fd);
      }
      return code;
    };
    std::vector<std::thread> threads;
    threads.push_back(until_closed([&] { return dialling("tcp", far); }));
    threads.push_back(until_closed([&] { return dialling("udp", far_udp); }));
    threads.push_back(until_closed([&] {
      int begun = -1, fd = -1;
      int code = porthole_dial_begin(p, "tcp", far.c_str(), 2000, &begun, nullptr);
      if (begun >= 0) porthole_dial_end(begun, &fd, nullptr);
      if (fd >= 0) ::close(fd);
      if (begun >= 0) ::close(begun);
      return code == PORTHOLE_OK ? PORTHOLE_ERROR_UNAVAILABLE : code;
    }));
    threads.push_back(until_closed([&] {
      int fd = -1;
      int code = porthole_accept(listener, 5, &fd, nullptr, 0, nullptr);
      if (fd >= 0) ::close(fd);
      return code == PORTHOLE_ERROR_CANCELLED && !over ? PORTHOLE_ERROR_UNAVAILABLE : code;  // the listener's own end
    }));
    threads.push_back(until_closed([&] {
      char* text = nullptr;
      int code = porthole_next_event(p, 5, &text, nullptr);
      porthole_free(text);
      return code;
    }));
    threads.push_back(until_closed([&] {
      char* text = nullptr;
      int code = porthole_status_json(p, &text, nullptr);
      porthole_free(text);
      return code;
    }));
    threads.push_back(until_closed([&] {
      int fd = -1;
      int code = porthole_listen_packet(p, 91, &fd, nullptr);
      std::size_t size = 0;
      if (fd >= 0) porthole_receive_from(fd, 1, nullptr, 0, &size, nullptr, 0, nullptr);
      ::close(fd);
      return code;
    }));
    threads.push_back(until_closed([&] {
      porthole_listener_close(listener.exchange(porthole_listen(p, 90, nullptr)));
      porthole_proxy proxy{};
      return porthole_loopback(p, &proxy, nullptr);
    }));
    random = random * 1664525u + 1013904223u;
    std::this_thread::sleep_for(std::chrono::microseconds(random >> 8) % std::chrono::milliseconds(round % 4 == 0 ? 3 : 120));
    std::thread closers[] = {std::thread([p] { porthole_close(p); }), std::thread([p] { porthole_close(p); })};
    for (auto& t : closers) t.join();
    over = true;
    for (auto& t : threads) t.join();
    porthole_listener_close(listener);
    node.p = nullptr;
  }
  // Name look-ups have threads that end by themselves.
  for (int tries = 0; tries < 200 && entries("/proc/self/task") > threads_before; ++tries) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_LE(entries("/proc/self/task"), threads_before);
  EXPECT_LE(entries("/proc/self/fd"), descriptors + 4) << "descriptors leak";
  porthole_listener_close(echo);
  echoing.join();
  ::close(packets);
}

TEST_F(TwoNodes, LogoutForgetsTheLogin) {
  ASSERT_EQ(porthole_logout(a_->p, kSoonMs, &e_), PORTHOLE_OK) << e_.message;
  EXPECT_EQ(porthole_wait_running(a_->p, kSoonMs, &e_), PORTHOLE_ERROR_UNAUTHORIZED) << e_.message;
  int fd = -1;
  EXPECT_EQ(porthole_dial(a_->p, "tcp", peer("80").c_str(), kSoonMs, &fd, &e_), PORTHOLE_ERROR_UNAUTHORIZED) << e_.message;
  a_->close();
  Node again(dir_->file(name_ + "a"), "", *key_);
  ASSERT_TRUE(again.p) << again.error.message;
  EXPECT_EQ(porthole_wait_running(again.p, kSoonMs, &e_), PORTHOLE_OK) << e_.message;
}

TEST_F(TwoNodes, ComesBackFromStoredState) {
  a_->close();
  Node again(dir_->file(name_ + "a"), "");
  ASSERT_TRUE(again.p) << again.error.message;
  EXPECT_EQ(porthole_wait_running(again.p, kSoonMs, &e_), PORTHOLE_OK) << e_.message;
  EXPECT_EQ(porthole_wait_peer(again.p, (name_ + "b").c_str(), kSoonMs, &e_), PORTHOLE_OK) << e_.message;
}

}  // namespace
