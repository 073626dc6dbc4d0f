#include <gtest/gtest.h>

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/resource.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "runtime/clock.h"
#include "runtime/datagrams.h"
#include "runtime/event_loop.h"
#include "runtime/files.h"
#include "runtime/interfaces.h"
#include "runtime/local_socket.h"
#include "runtime/memory.h"
#include "runtime/resolver.h"
#include "runtime/sockaddr.h"
#include "runtime/state_store.h"
#include "runtime/temp_dir_for_test.h"
#include "runtime/udp_socket.h"

namespace porthole::runtime {
namespace {

using test::TempDir;

void write_text(const std::string& path, const std::string& text) { std::ofstream(path) << text; }

// Turns the loop until `done` or five seconds have passed.
template <typename F>
bool turn(EventLoop& loop, F done) {
  Instant end = clock_now().now + 5s;
  while (!done()) {
    Instant now = clock_now().now;
    if (now > end) return false;
    loop.wait(now, now + 50ms);
    loop.dispatch();
  }
  return true;
}

TEST(Memory, TheLeastControlGroupCounts) {
  TempDir dir;
  namespace fs = std::filesystem;
  fs::create_directories(dir.file("a/b"));
  fs::create_directories(dir.file("memory/c"));
  EXPECT_EQ(control_group_memory("0::/a/b\n", dir.path()), std::nullopt);
  write_text(dir.file("a/b/memory.max"), "max\n");
  EXPECT_EQ(control_group_memory("0::/a/b\n", dir.path()), std::nullopt);
  write_text(dir.file("a/memory.max"), "1000000\n");
  EXPECT_EQ(control_group_memory("0::/a/b\n", dir.path()), 1000000u);
  write_text(dir.file("a/b/memory.max"), "2000000\n");           // a parent may be narrower
  EXPECT_EQ(control_group_memory("0::/a/b\n", dir.path()), 1000000u);
  // The first version, beside the second; other controllers' paths say nothing about memory.
  write_text(dir.file("memory/c/memory.limit_in_bytes"), "500000\n");
  EXPECT_EQ(control_group_memory("4:cpu,memory:/c\n3:cpuset:/a\n0::/a/b\n", dir.path()), 500000u);
  EXPECT_EQ(control_group_memory("4:cpu:/c\n", dir.path()), std::nullopt);
  // A container whose membership is told by the host's names.
  write_text(dir.file("memory.max"), "3000000\n");
  EXPECT_EQ(control_group_memory("0::/of/the/host", dir.path()), 3000000u);
  EXPECT_EQ(control_group_memory("nonsense\n:\n", dir.path()), std::nullopt);
  EXPECT_GT(usable_memory(), 1u << 20);
}

TEST(Files, AtomicWriteKeepsModeAndReplaces) {
  TempDir dir;
  ASSERT_TRUE(write_file_atomic(dir.file("a"), "one").ok());
  ASSERT_TRUE(write_file_atomic(dir.file("a"), "two").ok());
  auto text = read_file(dir.file("a"), 100);
  ASSERT_TRUE(text.ok());
  EXPECT_EQ(**text, "two");
  struct stat s {};
  ASSERT_EQ(::stat(dir.file("a").c_str(), &s), 0);
  EXPECT_EQ(s.st_mode & 0777, 0600u);
}

TEST(Files, FullDiskKeepsTheOldContent) {
  TempDir dir;
  ASSERT_TRUE(write_file_atomic(dir.file("a"), "old").ok());
  rlimit saved{};
  ::getrlimit(RLIMIT_FSIZE, &saved);
  rlimit tiny = saved;
  tiny.rlim_cur = 10;
  auto handler = ::signal(SIGXFSZ, SIG_IGN);
  ::setrlimit(RLIMIT_FSIZE, &tiny);
  Status s = write_file_atomic(dir.file("a"), std::string(1000, 'x'));
  ::setrlimit(RLIMIT_FSIZE, &saved);
  ::signal(SIGXFSZ, handler);
  ASSERT_FALSE(s.ok());
  EXPECT_NE(s.error().message.find("old content is kept"), std::string::npos) << s.error().message;
  EXPECT_EQ(**read_file(dir.file("a"), 100), "old");
  EXPECT_FALSE(std::filesystem::exists(dir.file("a.new")));
}

TEST(Files, StateDirIsExclusiveAndPrivate) {
  TempDir dir;
  auto first = StateDir::open(dir.file("x/y"));
  ASSERT_TRUE(first.ok());
  struct stat s {};
  ASSERT_EQ(::stat(dir.file("x/y").c_str(), &s), 0);
  EXPECT_EQ(s.st_mode & 0777, 0700u);
  auto second = StateDir::open(dir.file("x/y"));
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.error().code, ErrorCode::kAlreadyExists);
  write_text(dir.file("plain"), "");
  auto third = StateDir::open(dir.file("plain"));
  ASSERT_FALSE(third.ok());
}

// A socket's name has room for 107 characters; a folder may have a longer one.
TEST(LocalSocket, ListensUnderALongPath) {
  TempDir dir;
  const std::string folder = dir.file(std::string(200, 'l'));
  std::filesystem::create_directory(folder);
  for (int round = 0; round < 2; ++round) {  // the second one replaces what is left of the first
    auto listener = listen_unix(folder + "/node.sock");
    ASSERT_TRUE(listener.ok()) << listener.error().message;
    struct stat s {};
    ASSERT_EQ(::stat((folder + "/node.sock").c_str(), &s), 0);
    EXPECT_TRUE(S_ISSOCK(s.st_mode));
    EXPECT_EQ(s.st_mode & 0777, 0600u);
    UniqueFd directory(::open(folder.c_str(), O_PATH | O_CLOEXEC));
    sockaddr_un a{};
    a.sun_family = AF_UNIX;
    std::snprintf(a.sun_path, sizeof a.sun_path, "/proc/self/fd/%d/node.sock", directory.get());
    UniqueFd asking(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(::connect(asking.get(), reinterpret_cast<sockaddr*>(&a), sizeof a), 0);
  }
  auto impossible = listen_unix(folder + "/" + std::string(200, 's'));
  ASSERT_FALSE(impossible.ok());
  EXPECT_NE(impossible.error().message.find("too long"), std::string::npos) << impossible.error().message;
}

TEST(StateStore, RoundTrip) {
  TempDir temp;
  auto dir = StateDir::open(temp.file("s"));
  StateStore store(*dir);
  auto none = store.load();
  ASSERT_TRUE(none.ok());
  EXPECT_FALSE(none->has_value());
  SeededRng rng(1);
  NodeState s;
  s.machine_key = crypto::MachinePrivate::generate(rng);
  s.node_key = crypto::NodePrivate::generate(rng);
  s.disco_key = crypto::DiscoPrivate::generate(rng);
  s.control_url = "https://t.example";
  s.hostname = "alpha";
  s.registered = true;
  s.udp_port = 41641;
  s.last_tai64n = wg::Tai64n::from_wall(WallTime::from_unix_s(1700000000));
  s.addresses = {*IpAddress::parse("100.64.0.1")};
  ASSERT_TRUE(store.save(s).ok());
  auto back = store.load();
  ASSERT_TRUE(back.ok());
  ASSERT_TRUE(back->has_value());
  EXPECT_EQ((*back)->machine_key.public_key(), s.machine_key.public_key());
  EXPECT_EQ((*back)->node_key.public_key(), s.node_key.public_key());
  EXPECT_EQ((*back)->disco_key.public_key(), s.disco_key.public_key());
  EXPECT_EQ((*back)->control_url, s.control_url);
  EXPECT_EQ((*back)->udp_port, 41641);
  EXPECT_EQ((*back)->last_tai64n, s.last_tai64n);
  EXPECT_EQ((*back)->addresses, s.addresses);
  EXPECT_TRUE((*back)->registered);
}

TEST(StateStore, DamagedForeignAndNewerFilesAreErrorsAndStay) {
  TempDir temp;
  auto dir = StateDir::open(temp.file("s"));
  StateStore store(*dir);
  const std::pair<std::string, ErrorCode> cases[] = {
      {"", ErrorCode::kInvalid},
      {"{", ErrorCode::kInvalid},
      {"[]", ErrorCode::kInvalid},
      {"{\"format\":\"something-else\"}", ErrorCode::kInvalid},
      {"{\"format\":\"porthole-node-state\",\"version\":1}", ErrorCode::kInvalid},
      {"{\"format\":\"porthole-node-state\",\"version\":2,\"machine_key\":\"x\"}", ErrorCode::kUnsupported},
  };
  for (const auto& [text, code] : cases) {
    write_text(store.path(), text);
    auto r = store.load();
    ASSERT_FALSE(r.ok()) << text;
    EXPECT_EQ(r.error().code, code) << text;
    EXPECT_NE(r.error().message.find(store.path()), std::string::npos);
    EXPECT_EQ(**read_file(store.path(), 1000), text);
  }
}

TEST(EventLoop, PostFromAnotherThreadWakesTheLoop) {
  EventLoop loop;
  bool ran = false;
  std::thread other([&] { EXPECT_EQ(loop.post([&] { ran = true; }), EventLoop::Posted::kPosted); });
  EXPECT_TRUE(turn(loop, [&] { return ran; }));
  other.join();
  loop.close();
  EXPECT_EQ(loop.post([] {}), EventLoop::Posted::kClosed);
  EXPECT_FALSE(loop.post_always([] {}));
}

TEST(EventLoop, WhatWaitsIsBoundedAndNothingThatWasTakenIsLost) {
  EventLoop loop;
  std::size_t ran = 0;
  for (std::size_t i = 0; i < kPostedMax; ++i) ASSERT_EQ(loop.post([&] { ++ran; }), EventLoop::Posted::kPosted);
  EXPECT_EQ(loop.post([&] { ran += 1'000'000; }), EventLoop::Posted::kFull);
  EXPECT_TRUE(loop.post_always([&] { ++ran; }));
  EXPECT_TRUE(turn(loop, [&] { return ran > 0; }));
  EXPECT_EQ(ran, kPostedMax + 1);
  EXPECT_EQ(loop.post([] {}), EventLoop::Posted::kPosted);
}

TEST(Resolver, LiteralsAndLocalhostAnswerAtOnceAndUnknownNamesFail) {
  EventLoop loop;
  Resolver resolver(loop);
  int answers = 0;
  resolver.resolve("192.0.2.1", [&](auto r) { answers += r.ok() && r->front() == IpAddress::v4(192, 0, 2, 1); });
  resolver.resolve("localhost", [&](auto r) { answers += r.ok() && r->front().is_loopback(); });
  EXPECT_EQ(answers, 2);
  std::optional<Error> error;
  resolver.resolve("no-such-host.invalid", [&](auto r) { error = r.ok() ? Error{} : r.error(); });
  EXPECT_TRUE(turn(loop, [&] { return error.has_value(); }));
  EXPECT_NE(error->message.find("no-such-host.invalid"), std::string::npos);
}

struct Collector final : UdpSocket::Receiver {
  std::vector<ByteVector> got;
  Endpoint source;
  void datagrams_received(std::span<const RecvDatagram> batch) override {
    for (const auto& d : batch) {
      got.push_back(to_vector(d.data));
      source = d.source;
    }
  }
};

// One run of equal datagrams with a shorter tail, as the tunnel makes them.
void send_run(bool offload) {
  EventLoop loop;
  Collector a, b;
  UdpSocket::Options options;
  options.offload = offload;
  auto buffers = UdpSocket::make_buffers();
  auto sender = UdpSocket::open(loop, false, 0, options, buffers, a, {});
  auto receiver = UdpSocket::open(loop, false, 0, options, buffers, b, {});
  ASSERT_TRUE(sender.ok());
  ASSERT_TRUE(receiver.ok());
  EXPECT_EQ((*sender)->uses_segment_offload() && !offload, false);
  ByteVector run;
  for (int i = 0; i < 40; ++i) run.insert(run.end(), i == 39 ? 100 : 1312, static_cast<std::uint8_t>(i));
  (*sender)->send({IpAddress::v4(127, 0, 0, 1), (*receiver)->port()}, run, 1312);
  ASSERT_TRUE(turn(loop, [&] { return b.got.size() >= 40; }));
  ASSERT_EQ(b.got.size(), 40u);
  for (std::size_t i = 0; i < 40; ++i) {
    EXPECT_EQ(b.got[i].size(), i == 39 ? 100u : 1312u);
    EXPECT_EQ(b.got[i].front(), i);
    EXPECT_EQ(b.got[i].back(), i);
  }
  EXPECT_EQ(b.source.port, (*sender)->port());
  EXPECT_EQ((*sender)->counters().datagrams_out, 40u);
  EXPECT_EQ((*receiver)->counters().datagrams_in, 40u);
}

TEST(UdpSocket, RunWithSegmentOffload) { send_run(true); }
TEST(UdpSocket, RunWithoutOffload) { send_run(false); }

TEST(UdpSocket, PortInUseSaysSo) {
  EventLoop loop;
  Collector c;
  auto buffers = UdpSocket::make_buffers();
  auto first = UdpSocket::open(loop, false, 0, {}, buffers, c, {});
  ASSERT_TRUE(first.ok());
  auto second = UdpSocket::open(loop, false, (*first)->port(), {}, buffers, c, {});
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.error().code, ErrorCode::kAlreadyExists);
  EXPECT_NE(second.error().message.find(std::to_string((*first)->port())), std::string::npos);
}

TEST(LocalSocket, PairTellsResetFromEnd) {
  for (bool reset : {false, true}) {
    auto pair = connected_pair();
    ASSERT_TRUE(pair.ok());
    ASSERT_EQ(::write(pair->first.get(), "abc", 3), 3);
    char block[16];
    ASSERT_EQ(::read(pair->second.get(), block, sizeof block), 3);
    if (reset) reset_on_close(pair->first.get());
    pair->first.reset();
    errno = 0;
    ssize_t n = ::read(pair->second.get(), block, sizeof block);
    EXPECT_EQ(n, reset ? -1 : 0);
    EXPECT_EQ(reset, n < 0 && errno == ECONNRESET);
  }
}

TEST(LocalSocket, DialOutcomesKeepTheirCodeAndDescriptor) {
  for (int code = 0; code <= static_cast<int>(ErrorCode::kInternal); ++code) {
    auto pair = datagram_pair();
    ASSERT_TRUE(pair.ok());
    EXPECT_EQ(take_dialled(pair->second.get()).error().code, ErrorCode::kUnavailable);
    tell_dialled(pair->first.get(), Error{static_cast<ErrorCode>(code), "a sentence"});
    auto back = take_dialled(pair->second.get());
    ASSERT_FALSE(back.ok());
    EXPECT_EQ(back.error().code, static_cast<ErrorCode>(code));
    EXPECT_EQ(back.error().message, "a sentence");
  }
  auto pair = datagram_pair();
  int pipe_fds[2];
  ASSERT_EQ(::pipe2(pipe_fds, O_CLOEXEC), 0);
  UniqueFd out(pipe_fds[0]), in(pipe_fds[1]);
  tell_dialled(pair->first.get(), std::move(in));
  auto back = take_dialled(pair->second.get());
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(::write(back->get(), "x", 1), 1);
  pair->first.reset();
  EXPECT_EQ(take_dialled(pair->second.get()).error().code, ErrorCode::kCancelled);
  EXPECT_FALSE(take_dialled(out.get()).ok());
  // Nobody is there any more.
  tell_dialled(pair->second.get(), Error{ErrorCode::kRefused, std::string(5000, 'x')});
}

TEST(Interfaces, LoopbackIsListed) {
  bool found = false;
  for (const HostAddress& a : host_addresses()) found |= a.loopback && a.address.is_loopback();
  EXPECT_TRUE(found);
  EXPECT_FALSE(host_name().empty());
}

}  // namespace
TEST(Interfaces, OnlyAGoneAddressMattersToConnections) {
  const HostAddress lan{"eth0", *IpAddress::parse("192.0.2.7"), 24, true, false};
  const HostAddress v6{"eth0", *IpAddress::parse("2001:db8::7"), 64, true, false};
  const HostAddress link{"eth0", *IpAddress::parse("fe80::7"), 64, true, false};
  const HostAddress lo{"lo", *IpAddress::parse("127.0.0.1"), 8, true, true};
  HostAddress down = lan;
  down.up = false;
  EXPECT_FALSE(lost_addresses({lan, lo}, {lan, lo}));
  EXPECT_FALSE(lost_addresses({lan, lo}, {lan, v6, link, lo}));
  EXPECT_FALSE(lost_addresses({lan, link, lo}, {lan}));
  EXPECT_FALSE(lost_addresses({down}, {}));
  EXPECT_TRUE(lost_addresses({lan, v6}, {lan}));
  EXPECT_TRUE(lost_addresses({lan}, {v6}));
  EXPECT_TRUE(lost_addresses({lan}, {down}));
}

}  // namespace porthole::runtime
