// What the node's thread keeps for those that ask and do not listen: waiting calls, events, commands of the control socket.
#include "runtime/node_loop.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "runtime/temp_dir_for_test.h"

namespace porthole::runtime {
namespace {

using test::TempDir;

constexpr const char* kNobody = "http://127.0.0.1:1";

template <typename T>
using Waiters = std::vector<std::shared_ptr<Pending<T>>>;

// As many as may wait do; the next one is told; once the others have given up there is room again.
template <typename T>
void expect_room_for_a_thousand(const char* what, const std::function<void(std::shared_ptr<Pending<T>>)>& ask, bool ends_with_time = false) {
  SCOPED_TRACE(what);
  Waiters<T> all;
  for (std::size_t i = 0; i < kWaitersMax; ++i) ask(all.emplace_back(std::make_shared<Pending<T>>()));
  for (const auto& p : all) ASSERT_FALSE(p->wait(0));
  auto late = std::make_shared<Pending<T>>();
  ask(late);
  auto answer = late->wait(0);
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->error().code, ErrorCode::kLimit);
  EXPECT_NE(answer->error().message.find("1024"), std::string::npos) << answer->error().message;
  if (ends_with_time) return;
  all.clear();
  late = std::make_shared<Pending<T>>();
  ask(late);
  EXPECT_FALSE(late->wait(0));
}

TEST(NodeLoop, CallsThatWaitAreBounded) {
  TempDir temp;
  auto dir = StateDir::open(temp.file("n"));
  ASSERT_TRUE(dir.ok());
  StateStore store(*dir);
  SeededRng rng(1);
  NodeState state;
  state.machine_key = crypto::MachinePrivate::generate(rng);
  state.control_url = kNobody;
  UniqueFd wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  auto loop = std::make_shared<NodeRuntime::Loop>(NodeOptions{}, std::move(*dir), store, std::move(state), wg::StampLease{}, wake.get());
  ASSERT_TRUE(loop->open().ok());
  expect_room_for_a_thousand<bool>("wait_running", [&](auto p) { loop->wait_running(p); });
  expect_room_for_a_thousand<bool>("wait_peer", [&](auto p) { loop->wait_peer("peer", p); });
  expect_room_for_a_thousand<std::string>("netcheck", [&](auto p) { loop->netcheck(p); });
  auto listener = loop->listen(80);
  ASSERT_TRUE(listener.ok());
  expect_room_for_a_thousand<NodeRuntime::Accepted>("accept", [&](auto p) { loop->accept(listener->id, p); });
  expect_room_for_a_thousand<UniqueFd>("dial", [&](auto p) { loop->dial(*DialTarget::parse("tcp", "peer:80"), 30s, p); }, true);
  expect_room_for_a_thousand<bool>("logout", [&](auto p) { loop->logout(p); });
}

TEST(EventQueue, HoldsSoManyBytesAndKeepsTheNewest) {
  UniqueFd wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  EventQueue queue(wake.get());
  const std::size_t large = 900'000;
  queue.push("first", false);
  queue.push(std::string(large, 'p'), true);
  for (char c = 'a'; c < 'a' + 6; ++c) queue.push(std::string(large, c), false);
  std::string order;
  std::size_t bytes = 0;
  for (;;) {
    auto event = queue.next(0);
    ASSERT_TRUE(event.ok());
    if (!*event) break;
    order += (*event)->front();
    bytes += (*event)->size();
  }
  EXPECT_EQ(order, "cdef");
  EXPECT_LE(bytes, 4u << 20);
  // One that is too large by itself is told all the same, and leaves room for others.
  queue.push(std::string(5u << 20, 'x'), false);
  queue.push("y", false);
  EXPECT_TRUE(**queue.next(0) == "y");
  EXPECT_FALSE(queue.next(0)->has_value());
}

// A program at the control socket.
class Commander {
 public:
  explicit Commander(const std::string& state_dir) : fd_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un a{};
    a.sun_family = AF_UNIX;
    std::string path = state_dir + "/node.sock";
    path.copy(a.sun_path, sizeof a.sun_path - 1);
    EXPECT_EQ(::connect(fd_.get(), reinterpret_cast<sockaddr*>(&a), sizeof a), 0);
  }
  // How much of it there was room for.
  std::size_t put(std::string_view text) {
    ssize_t n = ::send(fd_.get(), text.data(), text.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    return n < 0 ? 0 : static_cast<std::size_t>(n);
  }
  std::string line() {
    for (;;) {
      if (std::size_t end = in_.find('\n'); end != std::string::npos) {
        std::string out = in_.substr(0, end);
        in_.erase(0, end + 1);
        return out;
      }
      pollfd p{fd_.get(), POLLIN, 0};
      if (::poll(&p, 1, 30'000) != 1) return "nothing came";
      char block[65536];
      ssize_t n = ::recv(fd_.get(), block, sizeof block, 0);
      if (n <= 0) return "closed";
      in_.append(block, static_cast<std::size_t>(n));
    }
  }

 private:
  UniqueFd fd_;
  std::string in_;
};

class ControlSocket : public ::testing::Test {
 protected:
  void SetUp() override {
    NodeOptions options;
    options.state_dir = dir();
    options.control_url = kNobody;
    auto started = NodeRuntime::start(std::move(options));
    ASSERT_TRUE(started.ok()) << started.error().message;
    node = std::move(*started);
  }
  std::string dir() const { return temp.file("n"); }

  TempDir temp;
  std::unique_ptr<NodeRuntime> node;
};

TEST_F(ControlSocket, WhoeverDoesNotReadIsNotReadEither) {
  Commander deaf(dir()), other(dir());
  const std::string command = "{\"command\":\"nonsense\"}\n";
  constexpr std::size_t kCommands = 50'000;  // several times what the kernel keeps
  std::string all;
  for (std::size_t i = 0; i < kCommands; ++i) all += command;
  std::size_t sent = 0;
  // An answer to the other one shows that the node had its turn. Without room after so many turns there will be none.
  for (int idle = 0; idle < 20 && sent < all.size();) {
    std::size_t n = deaf.put(std::string_view(all).substr(sent));
    sent += n;
    idle = n > 0 ? 0 : idle + 1;
    other.put(command);
    ASSERT_TRUE(other.line().starts_with("{\"ok\":false")) << sent;
  }
  EXPECT_LT(sent, all.size());
  // Nothing is lost: one answer for each, and the connection goes on.
  for (std::size_t i = 0; i < kCommands; ++i) {
    sent += sent < all.size() ? deaf.put(std::string_view(all).substr(sent)) : 0;
    ASSERT_TRUE(deaf.line().starts_with("{\"ok\":false")) << i;
  }
  EXPECT_EQ(sent, all.size());
}

TEST_F(ControlSocket, SoManyCommandsOfAConnectionWaitAndNoMore) {
  Commander c(dir());
  auto dial = [&](int ms) {
    std::string text = "{\"command\":\"dial\",\"address\":\"peer:80\",\"timeout_ms\":" + std::to_string(ms) + "}\n";
    EXPECT_EQ(c.put(text), text.size());
  };
  // Answered ones make room.
  for (int i = 0; i < 40; ++i) {
    dial(0);
    std::string answer = c.line();
    EXPECT_NE(answer.find("\"code\":\"timeout\""), std::string::npos) << answer;
  }
  for (int i = 0; i < 17; ++i) dial(600'000);
  std::string answer = c.line();
  EXPECT_NE(answer.find("\"code\":\"limit\""), std::string::npos) << answer;
  EXPECT_NE(answer.find("16 commands"), std::string::npos) << answer;
}

}  // namespace
}  // namespace porthole::runtime
