// The C ABI as a program sees it: wrong use, one node by itself, many threads.
#include "capi/node_for_test.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <boost/json.hpp>
#include <chrono>
#include <cstring>
#include <fstream>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

namespace json = boost::json;
using namespace porthole::test;

TEST(CApi, NullArgumentsAreErrors) {
  porthole_error e{};
  char* text = nullptr;
  int fd = 7;
  porthole_proxy proxy{};
  EXPECT_EQ(porthole_start(nullptr, &e), nullptr);
  EXPECT_EQ(e.code, PORTHOLE_ERROR_INVALID);
  EXPECT_EQ(porthole_start(nullptr, nullptr), nullptr);
  porthole_options_init(nullptr);
  porthole_close(nullptr);
  porthole_listener_close(nullptr);
  porthole_free(nullptr);
  EXPECT_EQ(porthole_event_fd(nullptr), -1);
  EXPECT_EQ(porthole_listen(nullptr, 80, &e), nullptr);
  EXPECT_EQ(porthole_listen(nullptr, 80, nullptr), nullptr);
  EXPECT_EQ(porthole_listener_fd(nullptr), -1);
  std::size_t size = 0;
  char byte = 0;
  EXPECT_EQ(porthole_receive_from(-1, 0, &byte, 1, &size, nullptr, 0, &e), PORTHOLE_ERROR_INVALID);
  EXPECT_EQ(porthole_receive_from(0, 0, nullptr, 1, &size, nullptr, 0, &e), PORTHOLE_ERROR_INVALID);
  EXPECT_EQ(porthole_receive_from(0, 0, &byte, 1, nullptr, nullptr, 0, nullptr), PORTHOLE_ERROR_INVALID);
  EXPECT_EQ(porthole_dial_begin(nullptr, "tcp", "x:1", 0, &fd, &e), PORTHOLE_ERROR_INVALID);
  EXPECT_EQ(porthole_dial_end(-1, &fd, &e), PORTHOLE_ERROR_INVALID);
  EXPECT_EQ(porthole_dial_end(0, nullptr, nullptr), PORTHOLE_ERROR_INVALID);
  EXPECT_EQ(porthole_send_to(-1, "100.64.0.1:1", &byte, 1, &e), PORTHOLE_ERROR_INVALID);
  EXPECT_EQ(porthole_send_to(0, nullptr, &byte, 1, &e), PORTHOLE_ERROR_INVALID);
  EXPECT_EQ(porthole_send_to(0, "100.64.0.1:1", nullptr, 1, nullptr), PORTHOLE_ERROR_INVALID);
  TempDir dir;
  Node node(dir.file("n"), kNobody);
  ASSERT_TRUE(node.p) << node.error.message;
  for (porthole_node* n : {static_cast<porthole_node*>(nullptr), node.p}) {
    bool null = n == nullptr;
    for (porthole_error* out : {&e, static_cast<porthole_error*>(nullptr)}) {
      if (null) {
        EXPECT_EQ(porthole_wait_running(n, 0, out), PORTHOLE_ERROR_INVALID);
        EXPECT_EQ(porthole_wait_peer(n, "x", 0, out), PORTHOLE_ERROR_INVALID);
        EXPECT_EQ(porthole_logout(n, 0, out), PORTHOLE_ERROR_INVALID);
        EXPECT_EQ(porthole_next_event(n, 0, &text, out), PORTHOLE_ERROR_INVALID);
        EXPECT_EQ(porthole_status_json(n, &text, out), PORTHOLE_ERROR_INVALID);
        EXPECT_EQ(porthole_loopback(n, &proxy, out), PORTHOLE_ERROR_INVALID);
        EXPECT_EQ(porthole_dial(n, "tcp", "x:1", 0, &fd, out), PORTHOLE_ERROR_INVALID);
        EXPECT_EQ(porthole_expose(n, 1, "127.0.0.1:1", 0, out), PORTHOLE_ERROR_INVALID);
        EXPECT_EQ(porthole_exposed_peer(n, 1, &text, out), PORTHOLE_ERROR_INVALID);
        EXPECT_EQ(porthole_expose_udp(n, 1, "127.0.0.1:1", 0, out), PORTHOLE_ERROR_INVALID);
        EXPECT_EQ(porthole_exposed_udp_peer(n, 1, &text, out), PORTHOLE_ERROR_INVALID);
        EXPECT_EQ(porthole_listen_packet(n, 1, &fd, out), PORTHOLE_ERROR_INVALID);
        EXPECT_EQ(porthole_ping(n, "x", 0, &text, out), PORTHOLE_ERROR_INVALID);
        EXPECT_EQ(porthole_netcheck(n, 0, &text, out), PORTHOLE_ERROR_INVALID);
        EXPECT_EQ(porthole_set_log_fd(n, -1, out), PORTHOLE_ERROR_INVALID);
      }
      EXPECT_EQ(porthole_wait_peer(n, nullptr, 0, out), PORTHOLE_ERROR_INVALID);
      EXPECT_EQ(porthole_next_event(n, 0, nullptr, out), PORTHOLE_ERROR_INVALID);
      EXPECT_EQ(porthole_status_json(n, nullptr, out), PORTHOLE_ERROR_INVALID);
      EXPECT_EQ(porthole_loopback(n, nullptr, out), PORTHOLE_ERROR_INVALID);
      EXPECT_EQ(porthole_dial(n, nullptr, "x:1", 0, &fd, out), PORTHOLE_ERROR_INVALID);
      EXPECT_EQ(porthole_dial(n, "tcp", nullptr, 0, &fd, out), PORTHOLE_ERROR_INVALID);
      EXPECT_EQ(porthole_dial(n, "tcp", "x:1", 0, nullptr, out), PORTHOLE_ERROR_INVALID);
      EXPECT_EQ(porthole_accept(nullptr, 0, &fd, nullptr, 0, out), PORTHOLE_ERROR_INVALID);
      EXPECT_EQ(porthole_expose(n, 1, nullptr, 0, out), PORTHOLE_ERROR_INVALID);
      EXPECT_EQ(porthole_exposed_peer(n, 1, nullptr, out), PORTHOLE_ERROR_INVALID);
      EXPECT_EQ(porthole_expose_udp(n, 1, nullptr, 0, out), PORTHOLE_ERROR_INVALID);
      EXPECT_EQ(porthole_exposed_udp_peer(n, 1, nullptr, out), PORTHOLE_ERROR_INVALID);
      EXPECT_EQ(porthole_listen_packet(n, 1, nullptr, out), PORTHOLE_ERROR_INVALID);
      EXPECT_EQ(porthole_ping(n, nullptr, 0, &text, out), PORTHOLE_ERROR_INVALID);
      EXPECT_EQ(porthole_ping(n, "x", 0, nullptr, out), PORTHOLE_ERROR_INVALID);
      EXPECT_EQ(porthole_netcheck(n, 0, nullptr, out), PORTHOLE_ERROR_INVALID);
    }
  }
  EXPECT_GT(std::strlen(e.message), 0u);
  EXPECT_EQ(fd, 7) << "an argument error touches nothing";
}

TEST(CApi, OptionsMustBeInitialised) {
  porthole_error e{};
  porthole_options o{};
  o.state_dir = "/nowhere";
  EXPECT_EQ(porthole_start(&o, &e), nullptr);
  expect_words(e, PORTHOLE_ERROR_INVALID, {"porthole_options_init"});
  for (std::size_t size : {sizeof o.size, std::size_t{1} << 20, ~std::size_t{0}}) {
    porthole_options_init(&o);
    o.size = size;  // no version of the struct is this small, or this large
    EXPECT_EQ(porthole_start(&o, &e), nullptr);
    expect_words(e, PORTHOLE_ERROR_INVALID, {"porthole_options_init"});
  }
  porthole_options_init(&o);
  EXPECT_EQ(porthole_start(&o, &e), nullptr);
  expect_words(e, PORTHOLE_ERROR_INVALID, {"state directory"});
}

TEST(CApi, AStartThatFailsSaysWhyAndLeavesNothingBehind) {
  TempDir dir;
  porthole_options o;
  porthole_options_init(&o);
  std::string state = dir.file("n");
  o.state_dir = state.c_str();
  porthole_error e{};
  EXPECT_EQ(porthole_start(&o, &e), nullptr);
  expect_words(e, PORTHOLE_ERROR_INVALID, {"no coordination server"});
  o.control_url = "ftp://x";
  EXPECT_EQ(porthole_start(&o, &e), nullptr);
  expect_words(e, PORTHOLE_ERROR_INVALID, {"ftp://x", "URL"});
  o.control_url = kNobody;
  o.auth_key = "file:/no/such/key";
  EXPECT_EQ(porthole_start(&o, &e), nullptr);
  expect_words(e, PORTHOLE_ERROR_NOT_FOUND, {"/no/such/key"});
  o.auth_key = nullptr;
  o.ca_file = "/no/such/ca.pem";
  EXPECT_EQ(porthole_start(&o, &e), nullptr);
  expect_words(e, PORTHOLE_ERROR_INVALID, {"/no/such/ca.pem"});
  o.ca_file = nullptr;
  std::ofstream(dir.file("plain")) << "text";
  std::string plain = dir.file("plain");
  o.state_dir = plain.c_str();
  EXPECT_EQ(porthole_start(&o, &e), nullptr);
  expect_words(e, PORTHOLE_ERROR_INVALID, {"not a directory"});
  o.state_dir = state.c_str();
  porthole_node* node = porthole_start(&o, &e);
  ASSERT_TRUE(node) << e.message;
  EXPECT_EQ(e.code, PORTHOLE_OK);
  EXPECT_EQ(porthole_start(&o, &e), nullptr);
  expect_words(e, PORTHOLE_ERROR_EXISTS, {"in use", state.c_str()});
  // A UDP port that is taken.
  char* text = nullptr;
  ASSERT_EQ(porthole_status_json(node, &text, &e), PORTHOLE_OK);
  json::object status = take_json(text);
  std::string second = dir.file("second");
  o.state_dir = second.c_str();
  o.udp_port = status.at("self").at("udp_port").to_number<std::uint16_t>();
  EXPECT_EQ(porthole_start(&o, &e), nullptr);
  expect_words(e, PORTHOLE_ERROR_EXISTS, {"port"});
  o.udp_port = 0;
  Node again(second, kNobody);
  EXPECT_TRUE(again.p) << again.error.message;
  porthole_close(node);
  // And the directory of a closed node is free at once.
  Node reopened(state, "");
  EXPECT_TRUE(reopened.p) << reopened.error.message;
}

TEST(CApi, EventDescriptorIsReadableWhileEventsWait) {
  TempDir dir;
  Node node(dir.file("n"), kNobody);
  ASSERT_TRUE(node.p);
  int fd = porthole_event_fd(node.p);
  ASSERT_GE(fd, 0);
  ASSERT_TRUE(readable(fd, kSoonMs));
  bool told = false;  // that nobody answers
  while (!told && readable(fd, kSoonMs)) {
    char* text = nullptr;
    ASSERT_EQ(porthole_next_event(node.p, 0, &text, nullptr), PORTHOLE_OK);
    if (!text) continue;
    told = take_json(text).at("event") == "notice";
  }
  EXPECT_TRUE(told);
  // Waiting with a limit comes back with nothing or with another notice, and never hangs.
  char* text = nullptr;
  EXPECT_EQ(porthole_next_event(node.p, 10, &text, nullptr), PORTHOLE_OK);
  porthole_free(text);
}

TEST(CApi, NodesThatAreNotConnectedAnswerInWords) {
  TempDir dir;
  Node node(dir.file("n"), kNobody);
  ASSERT_TRUE(node.p);
  porthole_error e{};
  EXPECT_EQ(porthole_wait_running(node.p, 50, &e), PORTHOLE_ERROR_TIMEOUT);
  expect_words(e, PORTHOLE_ERROR_TIMEOUT, {"not connected"});
  int fd = -1;
  EXPECT_EQ(porthole_dial(node.p, "tcp", "home:80", 50, &fd, &e), PORTHOLE_ERROR_TIMEOUT);
  EXPECT_EQ(fd, -1);
  EXPECT_EQ(porthole_wait_peer(node.p, "home", 50, &e), PORTHOLE_ERROR_TIMEOUT);
  char* text = nullptr;
  EXPECT_LT(porthole_ping(node.p, "home", 50, &text, &e), 0);
  EXPECT_EQ(text, nullptr);
  EXPECT_EQ(porthole_dial(node.p, "udp", "home:80", 50, &fd, &e), PORTHOLE_ERROR_TIMEOUT);
  for (const char* bad : {"", "sctp", "tcp5", "udp46", "unix"}) EXPECT_EQ(porthole_dial(node.p, bad, "home:80", 50, &fd, &e), PORTHOLE_ERROR_UNSUPPORTED) << bad;
  for (const char* bad : {"", "home", "home:", ":80", "home:0", "home:99999", "home:80x", "fd7a::1:80"}) {
    EXPECT_EQ(porthole_dial(node.p, "tcp", bad, 50, &fd, &e), PORTHOLE_ERROR_INVALID) << bad;
    EXPECT_EQ(porthole_dial(node.p, "udp", bad, 50, &fd, &e), PORTHOLE_ERROR_INVALID) << bad;
    EXPECT_EQ(fd, -1);
  }
  porthole_proxy proxy{};
  EXPECT_EQ(porthole_loopback_on(node.p, "0.0.0.0:0", &proxy, &e), PORTHOLE_ERROR_INVALID);
  EXPECT_EQ(porthole_loopback_on(node.p, "nonsense", &proxy, &e), PORTHOLE_ERROR_INVALID);
  EXPECT_EQ(porthole_expose(node.p, 80, "nonsense", 0, &e), PORTHOLE_ERROR_INVALID);
  EXPECT_EQ(porthole_expose(node.p, 0, "127.0.0.1:80", 0, &e), PORTHOLE_ERROR_INVALID);
  EXPECT_EQ(porthole_expose(node.p, 80, "127.0.0.1:80", -1, &e), PORTHOLE_ERROR_INVALID);
  EXPECT_EQ(porthole_expose(node.p, 80, "127.0.0.1:80", 0, &e), PORTHOLE_OK) << e.message;
  EXPECT_LT(porthole_expose(node.p, 80, "127.0.0.1:81", 0, &e), 0) << "the port is taken";
  EXPECT_EQ(porthole_listen(node.p, 80, &e), nullptr) << "the port is taken";
  EXPECT_EQ(porthole_exposed_peer(node.p, 1, &text, &e), PORTHOLE_ERROR_NOT_FOUND);
  EXPECT_EQ(porthole_expose_udp(node.p, 80, "nonsense", 0, &e), PORTHOLE_ERROR_INVALID);
  EXPECT_EQ(porthole_expose_udp(node.p, 0, "127.0.0.1:80", 0, &e), PORTHOLE_ERROR_INVALID);
  EXPECT_EQ(porthole_expose_udp(node.p, 80, "127.0.0.1:80", -1, &e), PORTHOLE_ERROR_INVALID);
  EXPECT_EQ(porthole_expose_udp(node.p, 80, "127.0.0.1:80", 0, &e), PORTHOLE_OK) << "UDP ports are others than TCP ports: " << e.message;
  EXPECT_EQ(porthole_expose_udp(node.p, 80, "127.0.0.1:81", 0, &e), PORTHOLE_ERROR_EXISTS);
  EXPECT_EQ(porthole_listen_packet(node.p, 80, &fd, &e), PORTHOLE_ERROR_EXISTS);
  EXPECT_EQ(porthole_exposed_udp_peer(node.p, 1, &text, &e), PORTHOLE_ERROR_NOT_FOUND);
  int plain[2];
  ASSERT_EQ(::pipe2(plain, O_CLOEXEC), 0);
  std::size_t size = 0;
  EXPECT_LT(porthole_receive_from(plain[0], 0, text, 0, &size, nullptr, 0, &e), 0) << "not a socket";
  EXPECT_EQ(porthole_send_to(plain[1], "home:80", "x", 1, &e), PORTHOLE_ERROR_INVALID);
  EXPECT_LT(porthole_send_to(plain[1], "100.64.0.2:80", "x", 1, &e), 0);
  ::close(plain[0]);
  ::close(plain[1]);
  EXPECT_LT(porthole_set_log_fd(node.p, 1'000'000, &e), 0);
}

TEST(CApi, ALogDescriptorWithoutReaderDoesNotEndTheProgram) {
  TempDir dir;
  int fds[2];
  ASSERT_EQ(::pipe2(fds, O_CLOEXEC), 0);
  Node node(dir.file("n"), kNobody);
  ASSERT_TRUE(node.p);
  ASSERT_EQ(porthole_set_log_fd(node.p, fds[1], nullptr), PORTHOLE_OK);
  ::close(fds[0]);
  ::close(fds[1]);
  porthole_proxy proxy{};
  porthole_error e{};
  for (int i = 0; i < 3; ++i) EXPECT_EQ(porthole_loopback(node.p, &proxy, &e), PORTHOLE_OK) << e.message;
  EXPECT_EQ(porthole_wait_running(node.p, 200, &e), PORTHOLE_ERROR_TIMEOUT);
}

// ---- closing

TEST(CApi, CloseEndsEveryCallUnderWay) {
  TempDir dir;
  Node node(dir.file("n"), kNobody);
  ASSERT_TRUE(node.p);
  porthole_node* p = node.p;
  porthole_listener* listener = porthole_listen(p, 80, nullptr);
  ASSERT_TRUE(listener);
  int packets = -1;
  ASSERT_EQ(porthole_listen_packet(p, 80, &packets, nullptr), PORTHOLE_OK);
  std::atomic<int> begun{0};
  std::vector<std::function<int()>> calls = {
      [&] { return porthole_wait_running(p, -1, nullptr); },
      [&] { return porthole_wait_peer(p, "home", -1, nullptr); },
      [&] { int fd; return porthole_dial(p, "tcp", "home:80", -1, &fd, nullptr); },
      [&] { int fd; return porthole_accept(listener, -1, &fd, nullptr, 0, nullptr); },
      [&] { int fd; return porthole_dial(p, "udp", "home:80", -1, &fd, nullptr); },
      [&] { std::size_t size; return porthole_receive_from(packets, -1, nullptr, 0, &size, nullptr, 0, nullptr); },
      [&] { char* t; return porthole_netcheck(p, -1, &t, nullptr); },
      [&] {
        for (;;) {
          char* t = nullptr;
          int rc = porthole_next_event(p, -1, &t, nullptr);
          porthole_free(t);
          if (rc != PORTHOLE_OK) return rc;
        }
      },
      [&] {
        for (;;) {
          char* t = nullptr;
          int rc = porthole_status_json(p, &t, nullptr);
          porthole_free(t);
          if (rc != PORTHOLE_OK) return rc;
        }
      },
  };
  std::vector<int> results(calls.size(), 1);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < calls.size(); ++i)
    threads.emplace_back([&, i] {
      ++begun;
      results[i] = calls[i]();
    });
  while (begun < static_cast<int>(calls.size())) std::this_thread::yield();
  auto start = Clock::now();
  node.close();
  for (auto& t : threads) t.join();
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(10));
  for (std::size_t i = 0; i < results.size(); ++i) {
    // The network check may have found out, before, that there is no network.
    if (i == 6 && results[i] == PORTHOLE_OK) continue;
    EXPECT_EQ(results[i], PORTHOLE_ERROR_CANCELLED) << "call " << i;
  }
  ::close(packets);
  porthole_listener_close(listener);
}

TEST(CApi, CallsOnAClosedNodeAreErrors) {
  TempDir dir;
  Node node(dir.file("n"), kNobody);
  ASSERT_TRUE(node.p);
  porthole_node* p = node.p;
  porthole_listener* listener = porthole_listen(p, 80, nullptr);
  int packets = -1;
  ASSERT_EQ(porthole_listen_packet(p, 80, &packets, nullptr), PORTHOLE_OK);
  node.close();
  porthole_close(p);
  porthole_error e{};
  char* text = nullptr;
  int fd = -1;
  porthole_proxy proxy{};
  EXPECT_EQ(porthole_wait_running(p, -1, &e), PORTHOLE_ERROR_CANCELLED);
  expect_words(e, PORTHOLE_ERROR_CANCELLED, {"closed"});
  EXPECT_EQ(porthole_wait_peer(p, "x", -1, &e), PORTHOLE_ERROR_CANCELLED);
  EXPECT_EQ(porthole_logout(p, -1, &e), PORTHOLE_ERROR_CANCELLED);
  EXPECT_EQ(porthole_next_event(p, -1, &text, &e), PORTHOLE_ERROR_CANCELLED);
  EXPECT_EQ(porthole_status_json(p, &text, &e), PORTHOLE_ERROR_CANCELLED);
  EXPECT_EQ(porthole_loopback(p, &proxy, &e), PORTHOLE_ERROR_CANCELLED);
  EXPECT_EQ(porthole_dial(p, "tcp", "x:1", -1, &fd, &e), PORTHOLE_ERROR_CANCELLED);
  EXPECT_EQ(porthole_dial_begin(p, "tcp", "x:1", -1, &fd, &e), PORTHOLE_ERROR_CANCELLED);
  EXPECT_EQ(porthole_listen(p, 81, &e), nullptr);
  EXPECT_EQ(e.code, PORTHOLE_ERROR_CANCELLED);
  EXPECT_EQ(porthole_accept(listener, -1, &fd, nullptr, 0, &e), PORTHOLE_ERROR_CANCELLED);
  EXPECT_TRUE(readable(porthole_listener_fd(listener), 0)) << "whoever polls it must hear that it is over";
  EXPECT_EQ(porthole_accept(listener, 0, &fd, nullptr, 0, &e), PORTHOLE_ERROR_CANCELLED);
  EXPECT_EQ(porthole_expose(p, 1, "127.0.0.1:1", 0, &e), PORTHOLE_ERROR_CANCELLED);
  EXPECT_EQ(porthole_expose_udp(p, 1, "127.0.0.1:1", 0, &e), PORTHOLE_ERROR_CANCELLED);
  EXPECT_EQ(porthole_listen_packet(p, 1, &fd, &e), PORTHOLE_ERROR_CANCELLED);
  EXPECT_EQ(porthole_exposed_udp_peer(p, 1, &text, &e), PORTHOLE_ERROR_CANCELLED);
  std::size_t size = 0;
  EXPECT_EQ(porthole_receive_from(packets, -1, nullptr, 0, &size, nullptr, 0, &e), PORTHOLE_ERROR_CANCELLED);
  EXPECT_EQ(porthole_send_to(packets, "100.64.0.1:1", "x", 1, &e), PORTHOLE_ERROR_CANCELLED);
  ::close(packets);
  EXPECT_EQ(porthole_ping(p, "x", -1, &text, &e), PORTHOLE_ERROR_CANCELLED);
  EXPECT_EQ(porthole_netcheck(p, -1, &text, &e), PORTHOLE_ERROR_CANCELLED);
  EXPECT_EQ(porthole_set_log_fd(p, -1, &e), PORTHOLE_ERROR_CANCELLED);
  EXPECT_EQ(porthole_event_fd(p), -1);
  // The directory is free although the listener still exists.
  Node again(dir.file("n"), "");
  EXPECT_TRUE(again.p) << again.error.message;
  EXPECT_NE(again.p, p);
  porthole_listener_close(listener);
  porthole_listener_close(listener);
}

TEST(CApi, StartAndCloseFromManyThreads) {
  TempDir dir;
  std::vector<std::thread> threads;
  std::atomic<int> started{0};
  for (int t = 0; t < 6; ++t)
    threads.emplace_back([&, t] {
      for (int round = 0; round < 4; ++round) {
        Node node(dir.file("n" + std::to_string(t)), kNobody);
        if (!node.p) continue;
        ++started;
        porthole_proxy proxy{};
        EXPECT_EQ(porthole_loopback(node.p, &proxy, nullptr), PORTHOLE_OK);
        // Half of them are closed by somebody else, while this thread still asks.
        if (round % 2 == 0) continue;
        porthole_node* p = node.p;
        std::thread closer([p] { porthole_close(p); });
        char* text = nullptr;
        while (porthole_status_json(p, &text, nullptr) == PORTHOLE_OK) porthole_free(std::exchange(text, nullptr));
        closer.join();
      }
    });
  for (auto& t : threads) t.join();
  EXPECT_EQ(started, 24);
}

TEST(CApi, VersionIsSet) { EXPECT_GT(std::strlen(porthole_version()), 2u); }

}  // namespace
