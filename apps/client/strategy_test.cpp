#include "client/strategy.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <future>

#include "client/elsewhere.h"
#include "client/household.h"
#include "client/limits.h"

namespace porthole::client::testing {
namespace {

using boost::asio::awaitable;

class StrategyTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { home = new Household; }
  static void TearDownTestSuite() { delete home; }
  void SetUp() override {
    proxy = std::make_unique<TestProxy>(home->server->bridge_port());
    net.proxy = proxy->endpoint;
  }

  SavedServer with_remote() const {
    SavedServer s = home->saved();
    s.remote_hostname = "home";
    s.remote_ip = "100.64.0.1";
    s.coordination_url = "https://c.example";
    s.tailnet_preauth_key = "key";
    return s;
  }
  // Nobody listens there: a port that was just given back.
  static std::string dead_address() {
    boost::asio::io_context io;
    boost::asio::ip::tcp::acceptor a(io, {boost::asio::ip::address_v4::loopback(), 0});
    return "127.0.0.1:" + std::to_string(a.local_endpoint().port());
  }
  Surroundings around() {
    Surroundings s;
    s.device_id = kDeviceId;
    s.device_name = "test";
    s.tailnet = [this] {
      if (!tailnet) tailnet = std::make_shared<TailnetClient>(dir / "tailnet", "test", "", net.factory());
      return tailnet;
    };
    s.ask = [this](const std::string&) {
      ++asked;
      return yes;
    };
    s.event = [this](boost::json::object e) { events.push_back(std::string(e["event"].as_string())); };
    s.backoff_first = std::chrono::milliseconds(1);
    s.remote_time_max = remote_time_max;
    return s;
  }
  Connected connect(const SavedServer& server, Way way) {
    Connected out;
    auto work = [&]() -> awaitable<void> { out = co_await connect_server(server, way, around()); };
    run(io, work());
    return out;
  }
  Failure fails(const SavedServer& server, Way way) {
    return failure_of(io, [&]() -> awaitable<void> { co_await connect_server(server, way, around()); });
  }

  static Household* home;
  std::unique_ptr<TestProxy> proxy;
  FakeTailnet net;
  app::TempDir dir;
  std::shared_ptr<TailnetClient> tailnet;
  boost::asio::io_context io;
  int asked = 0;
  bool yes = false;
  std::chrono::milliseconds remote_time_max = kRemoteTimeMax;
  std::vector<std::string> events;
};
Household* StrategyTest::home = nullptr;

TEST_F(StrategyTest, LocalFirstAndTheTailnetIsNotTouched) {
  for (Way way : {Way::kAsk, Way::kAuto, Way::kLocal}) EXPECT_FALSE(connect(with_remote(), way).remote);
  EXPECT_EQ(net.nodes(), 0u);
  EXPECT_EQ(asked, 0);
}

TEST_F(StrategyTest, DeadLanIsFollowedByAQuestion) {
  SavedServer s = with_remote();
  s.hostname = dead_address();
  EXPECT_EQ(fails(s, Way::kAsk), Failure::kUnreachable);
  EXPECT_EQ(asked, 1);
  EXPECT_EQ(net.nodes(), 0u);
  yes = true;
  EXPECT_TRUE(connect(s, Way::kAsk).remote);
  EXPECT_EQ(asked, 2);
  EXPECT_EQ(events.back(), "remote_attempt");
}

TEST_F(StrategyTest, AutoGoesOnAndLocalDoesNot) {
  SavedServer s = with_remote();
  s.hostname = dead_address();
  EXPECT_TRUE(connect(s, Way::kAuto).remote);
  EXPECT_EQ(asked, 0);
  EXPECT_EQ(fails(s, Way::kLocal), Failure::kUnreachable);
  EXPECT_EQ(proxy->asked_for(), "100.64.0.1:8443");
}

TEST_F(StrategyTest, WithoutRemoteDetailsItIsAPlainError) {
  SavedServer s = home->saved();
  s.hostname = dead_address();
  EXPECT_EQ(fails(s, Way::kAuto), Failure::kNoRemote);
  EXPECT_EQ(fails(s, Way::kRemote), Failure::kNoRemote);
  EXPECT_EQ(asked, 0);
}

TEST_F(StrategyTest, RemoteOnlyServerGoesStraightAndUsesTheNameWithoutAnAddress) {
  SavedServer s = with_remote();
  s.hostname.clear();
  s.remote_ip.clear();
  EXPECT_TRUE(connect(s, Way::kAsk).remote);
  EXPECT_EQ(asked, 0);
  EXPECT_EQ(proxy->asked_for(), "home:8443");
}

// Somebody else has the address in this network: nothing is said to it, and the tailnet leads home.
TEST_F(StrategyTest, StrangerAtTheLocalAddressIsPassedBy) {
  Household stranger;
  SavedServer s = with_remote();
  s.hostname = "127.0.0.1:" + std::to_string(stranger.port);
  EXPECT_TRUE(connect(s, Way::kAuto).remote);
  EXPECT_EQ(fails(s, Way::kLocal), Failure::kPinChanged);
}

TEST_F(StrategyTest, FirstAttemptWaitsForThePeer) {
  bool waited = false;
  net.on_wait_peer = [&](const std::string& peer) { waited = peer == "100.64.0.1"; };
  EXPECT_TRUE(connect(with_remote(), Way::kRemote).remote);
  EXPECT_TRUE(waited);
  EXPECT_EQ(proxy->requests, 1);
}

TEST_F(StrategyTest, PassingFailuresAreRetriedWithinTheLimit) {
  proxy->refuse_next = 1;
  EXPECT_TRUE(connect(with_remote(), Way::kRemote).remote);
  EXPECT_EQ(proxy->requests, 2);
  EXPECT_EQ(std::count(events.begin(), events.end(), "remote_failed"), 1);
}

// C8.
TEST_F(StrategyTest, FiveAttemptsAndNoMore) {
  proxy->refuse_next = 100;
  EXPECT_EQ(fails(with_remote(), Way::kRemote), Failure::kUnreachable);
  EXPECT_EQ(kRemoteAttemptsMax, 5);
  EXPECT_EQ(proxy->requests, 5);
  EXPECT_EQ(std::count(events.begin(), events.end(), "remote_attempt"), 5);
}

TEST_F(StrategyTest, AllAttemptsTogetherHaveABoundAndTheReasonIsSaid) {
  net.on_join = [](const TailnetNodeConfig&) { throw NodeError(NodeError::Kind::kTimeout, "not yet"); };
  net.news = {{"", "the coordination server does not answer", false}};
  remote_time_max = std::chrono::milliseconds(200);
  auto begin = std::chrono::steady_clock::now();
  try {
    connect(with_remote(), Way::kRemote);
    FAIL();
  } catch (const ClientError& e) {
    EXPECT_EQ(e.failure(), Failure::kUnreachable);
    EXPECT_NE(std::string(e.what()).find("the coordination server does not answer"), std::string::npos) << e.what();
  }
  EXPECT_LT(std::chrono::steady_clock::now() - begin, kTailnetReadyTimeout);
}

// A login page, a proxy, a certificate: nothing to wait for, and nothing to try again.
TEST_F(StrategyTest, WhatWaitingDoesNotMendEndsTheFirstAttempt) {
  net.on_join = [](const TailnetNodeConfig&) { throw NodeError(NodeError::Kind::kTimeout, "not yet"); };
  net.news = {{"", "it answered with a web page", true}};
  try {
    connect(with_remote(), Way::kRemote);
    FAIL();
  } catch (const ClientError& e) {
    EXPECT_NE(std::string(e.what()).find("it answered with a web page"), std::string::npos) << e.what();
  }
  EXPECT_EQ(std::count(events.begin(), events.end(), "remote_attempt"), 1);
  EXPECT_EQ(tailnet->status().kind, NodeError::Kind::kBlocked);
}

// C7: the address, else the name. A server that joined anew is at another address.
TEST_F(StrategyTest, ServerAtAnotherAddressIsFoundByItsName) {
  net.on_wait_peer = [](const std::string& peer) {
    if (peer == "100.64.0.1") throw NodeError(NodeError::Kind::kNotFound, "100.64.0.1 is not a device of this tailnet");
  };
  EXPECT_TRUE(connect(with_remote(), Way::kRemote).remote);
  EXPECT_EQ(proxy->asked_for(), "home:8443");
  EXPECT_EQ(std::count(events.begin(), events.end(), "remote_attempt"), 1);
}

// A node may come up from the map of its last run while the coordinator and the relay are out of reach.
TEST_F(StrategyTest, PeerThatDoesNotAnswerIsSaidWithWhatTheNodeMet) {
  net.on_wait_peer = [](const std::string&) { throw NodeError(NodeError::Kind::kTimeout, "not yet"); };
  net.news = {{"", "it answered with a web page", true}};
  remote_time_max = std::chrono::milliseconds(50);
  try {
    connect(with_remote(), Way::kRemote);
    FAIL();
  } catch (const ClientError& e) {
    EXPECT_EQ(e.failure(), Failure::kFailed);
    EXPECT_NE(std::string(e.what()).find("100.64.0.1"), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("it answered with a web page"), std::string::npos) << e.what();
  }
}

TEST_F(StrategyTest, WrongPasswordIsNotRetried) {
  SavedServer s = with_remote();
  s.password = "guess";
  EXPECT_EQ(fails(s, Way::kRemote), Failure::kWrongPassword);
  EXPECT_EQ(proxy->requests, 1);
}

TEST_F(StrategyTest, RevokedKeyIsSaidAtOnce) {
  net.on_join = [](const TailnetNodeConfig&) { throw NodeError(NodeError::Kind::kUnauthorized, "the key was revoked"); };
  EXPECT_EQ(fails(with_remote(), Way::kRemote), Failure::kKeyInvalid);
  EXPECT_EQ(std::count(events.begin(), events.end(), "remote_attempt"), 1);
}

// Ctrl-C drops the event loop while something is waited for: not before the thread that works for it is done.
TEST(Elsewhere, DroppedLoopWaitsForItsThread) {
  std::promise<void> begun, told;
  std::atomic<bool> returned{false};
  auto io = std::make_unique<boost::asio::io_context>();
  auto work = [&]() -> awaitable<void> {
    auto blocks = [&] {
      begun.set_value();
      told.get_future().wait();
      returned = true;
    };
    co_await elsewhere(blocks);
  };
  boost::asio::co_spawn(*io, work(), [](std::exception_ptr) { ADD_FAILURE() << "nobody is there to hear of it"; });
  io->poll();
  begun.get_future().wait();
  std::thread teller([&] { told.set_value(); });
  io.reset();
  EXPECT_TRUE(returned);
  teller.join();
}

class TailnetTest : public ::testing::Test {
 protected:
  std::unique_ptr<TailnetClient> client() { return std::make_unique<TailnetClient>(dir / "t", "host", "", net.factory()); }
  FakeTailnet net;
  app::TempDir dir;
};

TEST_F(TailnetTest, JoinsOnceAndComesBackWithoutAKey) {
  {
    auto c = client();
    EXPECT_EQ(net.nodes(), 0u);
    EXPECT_FALSE(c->has_joined());
    c->join("https://c", "key");
    c->wait_connected(std::chrono::seconds(10));
    c->join("https://c", "key");
    c->ensure_connected();
    c->wait_connected(std::chrono::seconds(10));
    EXPECT_EQ(net.nodes(), 1u);
    EXPECT_TRUE(c->has_joined());
  }
  auto c = client();
  EXPECT_EQ(c->joined_url(), "https://c");
  c->ensure_connected();
  c->wait_connected(std::chrono::seconds(10));
  ASSERT_EQ(net.nodes(), 2u);
  EXPECT_EQ(net.made[0].auth_key, "key");
  EXPECT_EQ(net.made[1].auth_key, "");
  EXPECT_EQ(net.made[1].coordination_url, "https://c");
}

TEST_F(TailnetTest, NewKeyIsUsedOnlyWhenTheStoredLoginIsRefused) {
  {
    auto c = client();
    c->join("https://c", "one");
    c->wait_connected(std::chrono::seconds(10));
  }
  {
    auto c = client();
    c->join("https://c", "two");
    c->wait_connected(std::chrono::seconds(10));
    EXPECT_EQ(net.made.back().auth_key, "");
  }
  net.on_join = [](const TailnetNodeConfig& config) {
    if (config.auth_key.empty()) throw NodeError(NodeError::Kind::kUnauthorized, "logged out");
  };
  auto c = client();
  c->join("https://c", "three");
  c->wait_connected(std::chrono::seconds(10));
  EXPECT_EQ(net.made.back().auth_key, "three");
}

// Whoever turns the stored login away need not be the server it belongs to: it counts until another one holds.
TEST_F(TailnetTest, AStoredLoginIsGivenUpOnlyForOneThatHolds) {
  {
    auto c = client();
    c->join("https://c", "one");
    c->wait_connected(std::chrono::seconds(10));
  }
  const std::string before = net.made.back().state_dir;
  std::filesystem::create_directories(before);
  for (const char* name : {"/lock", "/node.json"}) app::write_file_atomic(before + name, "the first login");
  net.on_join = [](const TailnetNodeConfig&) { throw NodeError(NodeError::Kind::kUnauthorized, "its key is not the one this node knows"); };
  for (const char* url : {"https://c", "https://elsewhere"}) {
    auto c = client();
    c->join(url, "two");
    EXPECT_THROW(c->wait_connected(std::chrono::seconds(10)), ClientError);
    EXPECT_NE(net.made.back().state_dir, before);
    EXPECT_EQ(net.made.back().auth_key, "two");
    EXPECT_EQ(c->joined_url(), "https://c");
  }
  net.on_join = [](const TailnetNodeConfig&) {};
  {
    auto c = client();
    c->ensure_connected();
    c->wait_connected(std::chrono::seconds(10));
    EXPECT_EQ(net.made.back().state_dir, before);
    EXPECT_EQ(net.made.back().auth_key, "");
  }
  EXPECT_EQ(app::read_file(before + "/node.json"), "the first login");

  net.on_join = [](const TailnetNodeConfig& config) {
    if (config.auth_key.empty()) throw NodeError(NodeError::Kind::kUnauthorized, "logged out");
  };
  {
    auto c = client();
    c->join("https://c", "three");
    c->wait_connected(std::chrono::seconds(10));
  }
  const std::string after = net.made.back().state_dir;
  EXPECT_NE(after, before);
  EXPECT_FALSE(std::filesystem::exists(before + "/node.json"));
  net.on_join = [](const TailnetNodeConfig&) {};
  auto c = client();
  c->ensure_connected();
  c->wait_connected(std::chrono::seconds(10));
  EXPECT_EQ(net.made.back().state_dir, after);
}

TEST_F(TailnetTest, BlockedJoinBlocksNobodyAndCanBeLeft) {
  net.on_join = [](const TailnetNodeConfig&) { throw NodeError(NodeError::Kind::kTimeout, "not yet"); };
  auto c = client();
  c->join("https://c", "key");
  EXPECT_EQ(c->status().state, TailnetState::kJoining);
  try {
    c->wait_connected(std::chrono::milliseconds(1));
    FAIL();
  } catch (const ClientError& e) {
    EXPECT_EQ(e.failure(), Failure::kUnreachable);
  }
  EXPECT_FALSE(c->has_joined());
  c.reset();
}

TEST_F(TailnetTest, WhoeverWatchesLearnsWhatIsInTheWayWhileItJoins) {
  net.on_join = [](const TailnetNodeConfig&) { throw NodeError(NodeError::Kind::kTimeout, "not yet"); };
  net.news = {{"connecting", "", false}, {"", "connection refused", false}};
  auto c = client();
  std::promise<TailnetStatus> seen;
  bool told = false;
  c->observe([&](const TailnetStatus& s) {
    if (!s.problem.empty() && !std::exchange(told, true)) seen.set_value(s);
  });
  c->join("https://c", "key");
  TailnetStatus s = seen.get_future().get();
  EXPECT_EQ(s.state, TailnetState::kJoining);
  EXPECT_EQ(s.problem, "connection refused");
}

// The node of another process, which is still joining with another key.
TEST_F(TailnetTest, WhatAnotherProcessHoldsIsLeftAlone) {
  const std::string node = dir / "t/node";
  std::filesystem::create_directories(node);
  app::write_file_atomic(node + "/node.json", "its keys");
  int lock = ::open((node + "/lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  ASSERT_EQ(::flock(lock, LOCK_EX | LOCK_NB), 0);
  auto c = client();
  c->join("https://c", "key");
  EXPECT_THROW(c->wait_connected(std::chrono::seconds(10)), ClientError);
  EXPECT_EQ(c->status().kind, NodeError::Kind::kInUse);
  EXPECT_EQ(app::read_file(node + "/node.json"), "its keys");
  ::close(lock);
  c->join("https://c", "key");
  c->wait_connected(std::chrono::seconds(10));
  EXPECT_FALSE(std::filesystem::exists(node + "/node.json")) << "a login that is not wanted any more";
}

TEST_F(TailnetTest, WithoutAKeyOrStateThereIsNoWay) {
  auto c = client();
  c->ensure_connected();
  EXPECT_THROW(c->wait_connected(std::chrono::seconds(10)), ClientError);
  EXPECT_EQ(net.nodes(), 0u);
  EXPECT_THROW(c->proxy(), ClientError);
}

TEST_F(TailnetTest, DamagedOrNewerNoteIsAnErrorAndStays) {
  std::filesystem::create_directories(dir / "t");
  for (const char* text : {"", "{}", "{\"version\":2,\"coordination_url\":\"x\"}"}) {
    app::write_text(dir / "t/tailnet.json", text);
    EXPECT_THROW(client(), ClientError);
    EXPECT_EQ(app::read_file(dir / "t/tailnet.json"), text);
  }
}

}  // namespace
}  // namespace porthole::client::testing
