// How the client logs in, keeps its login, loses it and logs out.
#include <gtest/gtest.h>

#include "control/control_client_impl.h"
#include "control/control_world_for_test.h"

namespace porthole::control {
namespace {

using namespace world;
using ControlClientTest = World;

TEST_F(ControlClientTest, JoinsWithAPreAuthKeyWithoutTimePassing) {
  start(config());
  EXPECT_EQ(client->state(), ControlState::kRunning);
  EXPECT_EQ(states, (std::vector{ControlState::kConnecting, ControlState::kRunning}));
  EXPECT_EQ(dials, 2);  // key and session at once
  ASSERT_EQ(registers.size(), 1u);
  EXPECT_EQ(registers[0].auth_key.reveal(), "hskey-auth-abc");  // the lock suffix is not the server's business
  EXPECT_EQ(registers[0].version, 131);
  EXPECT_EQ(registers[0].hostinfo->hostname, "alpha");
  EXPECT_TRUE(registers[0].old_node_key.is_zero());
  EXPECT_FALSE(registers[0].expiry.has_value());
  ASSERT_EQ(take<NodeKeyChanged>().size(), 1u);
  ASSERT_EQ(take<Registered>().size(), 1u);
  auto learned = take<ControlKeyLearned>();
  ASSERT_EQ(learned.size(), 1u);
  EXPECT_EQ(learned[0].key, server_key.public_key());
  auto changed = take<NetmapChanged>();
  ASSERT_EQ(changed.size(), 1u);
  EXPECT_TRUE(changed[0].change.full);
  EXPECT_EQ(changed[0].change.peers_upserted.size(), 2u);
  EXPECT_EQ(client->netmap().peers().size(), 2u);
  // Stream and lite update both carry everything.
  ASSERT_EQ(maps.size(), 1u);
  EXPECT_FALSE(maps[0].request.disco_key.is_zero());
  ASSERT_EQ(lites.size(), 1u);
  EXPECT_FALSE(lites[0].second.disco_key.is_zero());
  EXPECT_EQ(lites[0].second.hostinfo->hostname, "alpha");
}

TEST_F(ControlClientTest, AnySliceOfBytesWillDo) {
  slice = 1;
  early_payload = false;
  start(config());
  EXPECT_EQ(client->state(), ControlState::kRunning);
}

TEST_F(ControlClientTest, PlainHttpAndUncompressed) {
  ControlConfig c = config();
  c.url = "http://127.0.0.1:8080/";
  c.zstd = false;
  start(std::move(c));
  EXPECT_EQ(client->state(), ControlState::kRunning);
  EXPECT_EQ(conns.begin()->second.how.tls, TlsMode::kPlain);
  EXPECT_EQ(conns.begin()->second.how.port, 8080);
  EXPECT_EQ(maps[0].request.compress, "");
}

TEST_F(ControlClientTest, WarmStartAsksForEverythingAtOnce) {
  ControlConfig c = config();
  c.cached_control_key = server_key.public_key();
  c.expect_registered = true;
  on_register = [](const RegisterRequest&) { return std::nullopt; };  // slow server: the map does not wait for it
  auto key = crypto::NodePrivate::generate(rng);
  const NodePublic public_key = key.public_key();
  start(std::move(c), std::move(key));
  EXPECT_EQ(client->state(), ControlState::kRunning);
  EXPECT_EQ(key_fetches, 1);  // confirmed beside it
  EXPECT_TRUE(take<NodeKeyChanged>().empty());
  EXPECT_EQ(maps[0].request.node_key, public_key);
  conns.at(waiting_register.first).h2->respond(waiting_register.second, 200, {}, as_bytes(ts2021::encode_register_response(accepted())));
  run();
  EXPECT_EQ(maps.size(), 1u);
  EXPECT_EQ(take<Registered>().size(), 1u);
}

TEST_F(ControlClientTest, TheMapOfTheLastRunHoldsUntilTheServerSendsItsOwn) {
  start(config());
  const std::string saved = client->saved_map();
  const Netmap before = client->netmap();
  ASSERT_FALSE(before.peers().empty());
  auto fresh = [&](const crypto::NodePrivate& key, bool expect) {
    ControlConfig c = config();
    c.expect_registered = expect;
    client = std::make_unique<ControlClient>(std::move(c), crypto::MachinePrivate::generate(rng), key.duplicate(), rng, Log::none());
  };
  const auto key = client->node_key().duplicate();
  fresh(key, true);
  ASSERT_TRUE(client->restore_map(clock, as_bytes(saved)));
  EXPECT_EQ(client->netmap().peers(), before.peers());
  EXPECT_EQ(client->netmap().self(), before.self());
  EXPECT_EQ(client->netmap().filter_chunks(), before.filter_chunks());
  EXPECT_EQ(client->netmap().relay_map(), before.relay_map());
  EXPECT_EQ(client->netmap().users(), before.users());
  EXPECT_EQ(client->netmap().dns(), before.dns());
  EXPECT_EQ(client->netmap().domain(), before.domain());
  EXPECT_EQ(client->saved_map(), saved);
  // Not for another key, nor for a node that is not registered, nor when it is damaged.
  fresh(crypto::NodePrivate::generate(rng), true);
  EXPECT_FALSE(client->restore_map(clock, as_bytes(saved)));
  fresh(key, false);
  EXPECT_FALSE(client->restore_map(clock, as_bytes(saved)));
  fresh(key, true);
  for (std::size_t n : {std::size_t{0}, std::size_t{1}, saved.size() / 2, saved.size() - 1})
    EXPECT_FALSE(client->restore_map(clock, as_bytes(saved).first(n)));
  EXPECT_FALSE(client->netmap().has_map());
  EXPECT_FALSE(client->poll_event());
}

// Keys end by the clock, whether the server is there or not.
TEST_F(ControlClientTest, KeysOfARestoredMapEnd) {
  peers[0].key_expiry = clock.wall + std::chrono::hours(2);
  self_node.key_expiry = clock.wall + std::chrono::hours(3);
  start(config());
  const std::string saved = client->saved_map();
  ControlConfig c = config();
  c.expect_registered = true;
  client = std::make_unique<ControlClient>(std::move(c), crypto::MachinePrivate::generate(rng), client->node_key().duplicate(), rng, Log::none());
  ASSERT_TRUE(client->restore_map(clock, as_bytes(saved)));
  EXPECT_FALSE(client->netmap().peer(2)->expired);
  advance(std::chrono::minutes(121));
  EXPECT_TRUE(client->netmap().peer(2)->expired);
  EXPECT_EQ(client->state(), ControlState::kIdle);
  advance(std::chrono::hours(1));
  EXPECT_EQ(client->state(), ControlState::kExpired);
}

TEST_F(ControlClientTest, WarmStartThatCameTooEarlyTriesAgainAfterRegistering) {
  ControlConfig c = config();
  c.cached_control_key = server_key.public_key();
  c.expect_registered = true;
  map_status = 404;
  on_register = [](const RegisterRequest&) { return std::nullopt; };
  start(std::move(c), crypto::NodePrivate::generate(rng));
  EXPECT_EQ(client->state(), ControlState::kConnecting);
  map_status = 200;
  conns.at(waiting_register.first).h2->respond(waiting_register.second, 200, {}, as_bytes(ts2021::encode_register_response(accepted())));
  run();
  EXPECT_EQ(client->state(), ControlState::kRunning);
}

TEST_F(ControlClientTest, AnotherServerKeyThanTheKnownOneIsFatal) {
  ControlConfig c = config();
  c.cached_control_key = crypto::MachinePrivate::generate(rng).public_key();
  start(std::move(c));
  EXPECT_EQ(client->state(), ControlState::kFailed);
  EXPECT_NE(state_error().find("its key is not the one this node knows"), std::string::npos);
  EXPECT_TRUE(client->next_timeout().is_never());
  EXPECT_TRUE(registers.empty());
}

TEST_F(ControlClientTest, InteractiveLoginWithFollowup) {
  ControlConfig c = config();
  c.auth_key = {};
  const std::string url = "https://control.example/register/hskey-authreq-x";
  on_register = [&](const RegisterRequest& r) -> std::optional<RegisterResponse> {
    if (!r.followup.empty()) return std::nullopt;  // waits for the person
    RegisterResponse answer;
    answer.auth_url = url;
    return answer;
  };
  start(std::move(c));
  EXPECT_EQ(client->state(), ControlState::kNeedsLogin);
  auto logins = take<LoginUrl>();
  ASSERT_EQ(logins.size(), 1u);
  EXPECT_EQ(logins[0].url, url);
  ASSERT_EQ(registers.size(), 2u);
  EXPECT_EQ(registers[1].followup, url);
  EXPECT_EQ(registers[1].node_key, registers[0].node_key);
  advance(std::chrono::hours(2));  // people take their time; PING keeps the connection
  EXPECT_EQ(sessions, 1);
  EXPECT_EQ(registers.size(), 2u);
  EXPECT_TRUE(maps.empty());
  conns.at(waiting_register.first).h2->respond(waiting_register.second, 200, {}, as_bytes(ts2021::encode_register_response(accepted())));
  run();
  EXPECT_EQ(client->state(), ControlState::kRunning);
}

TEST_F(ControlClientTest, ANewLoginUrlReplacesTheOldOneAndTheSameOneBacksOff) {
  ControlConfig c = config();
  c.auth_key = {};
  int n = 0;
  on_register = [&](const RegisterRequest&) {
    RegisterResponse answer;
    answer.auth_url = "https://x/" + std::to_string(std::min(++n, 3));
    return answer;
  };
  start(std::move(c));
  EXPECT_EQ(take<LoginUrl>().size(), 3u);
  const std::size_t before = registers.size();
  advance(std::chrono::seconds(1));
  EXPECT_LT(registers.size(), before + 20);
  advance(std::chrono::minutes(10));
  EXPECT_LT(registers.size(), before + 80);
}

TEST_F(ControlClientTest, FollowupIsContinuedOnANewConnection) {
  ControlConfig c = config();
  c.auth_key = {};
  on_register = [&](const RegisterRequest& r) -> std::optional<RegisterResponse> {
    if (!r.followup.empty()) return std::nullopt;
    RegisterResponse answer;
    answer.auth_url = "https://x/1";
    return answer;
  };
  start(std::move(c));
  conns.begin()->second.ended = true;
  run();
  advance(std::chrono::seconds(1));
  EXPECT_EQ(client->state(), ControlState::kNeedsLogin);
  EXPECT_EQ(registers.back().followup, "https://x/1");
  EXPECT_EQ(take<LoginUrl>().size(), 1u);  // not shown twice
}

TEST_F(ControlClientTest, ARefusedKeyNeedsAPersonAndANewKeyHelps) {
  on_register = [](const RegisterRequest& r) -> std::optional<RegisterResponse> {
    if (r.auth_key.reveal() == "good") return accepted();
    RegisterResponse answer;
    answer.error = "authkey expired";
    return answer;
  };
  start(config());
  EXPECT_EQ(client->state(), ControlState::kNeedsLogin);
  const std::string error = state_error();
  EXPECT_NE(error.find("authkey expired"), std::string::npos) << error;
  EXPECT_EQ(error.find("hskey"), std::string::npos);
  advance(std::chrono::hours(1));
  EXPECT_EQ(registers.size(), 1u);  // no hammering
  client->login(clock, crypto::SecretText("good"));
  run();
  EXPECT_EQ(client->state(), ControlState::kRunning);
}

TEST_F(ControlClientTest, RegisterRateLimitIsHonoured) {
  register_status = 429;
  register_headers = {{"retry-after", "40"}};
  start(config());
  EXPECT_EQ(registers.size(), 1u);
  advance(std::chrono::seconds(39));
  EXPECT_EQ(registers.size(), 1u);
  register_headers = {{"retry-after", "Tue, 24 Nov 2026 08:01:40 GMT"}};  // 60 s after the second try
  advance(std::chrono::seconds(2));
  EXPECT_EQ(registers.size(), 2u);
  advance(std::chrono::seconds(57));
  EXPECT_EQ(registers.size(), 2u);
  register_headers = {{"retry-after", "never"}};  // 5 to 10 s
  advance(std::chrono::seconds(3));
  EXPECT_EQ(registers.size(), 3u);
  register_status = 200;
  advance(std::chrono::seconds(10));
  EXPECT_EQ(client->state(), ControlState::kRunning);
}

TEST(RetryAfter, IsBelievedWithinAnHour) {
  SeededRng rng(1);
  const WallTime now = WallTime::from_unix_s(784'111'777);  // Sun, 06 Nov 1994 08:49:37 GMT
  EXPECT_EQ(retry_after("3600", now, rng), 1h);
  EXPECT_EQ(retry_after("Sun, 06 Nov 1994 09:49:37 GMT", now, rng), 1h);
  for (std::string_view other :
       {"", "0", "-1", "3601", "9223372036854775807", "9223372036854775808", "1 ", "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 09:49:38 GMT", "Fri, 01 Jan 1700 00:00:00 GMT", "Tue, 31 Dec 2261 23:59:60 GMT"}) {
    const Duration wait = retry_after(other, now, rng);
    EXPECT_TRUE(wait >= kRetryAfterLow && wait <= kRetryAfterHigh) << other;
  }
}

TEST_F(ControlClientTest, ServerErrorsAreRetriedWithGrowingPauses) {
  register_status = 500;
  start(config());
  advance(std::chrono::minutes(5));
  EXPECT_GT(registers.size(), 20u);
  EXPECT_LT(registers.size(), 60u);
  EXPECT_EQ(client->state(), ControlState::kConnecting);
  EXPECT_NE(notices().find("answered the register request with 500: no"), std::string::npos);
  register_status = 200;
  advance(std::chrono::minutes(1));
  EXPECT_EQ(client->state(), ControlState::kRunning);
}

TEST_F(ControlClientTest, ExpiryRotatesTheNodeKey) {
  start(config());
  const NodePublic first = client->node_key().public_key();
  take<NodeKeyChanged>();
  MapResponse expired;
  expired.node = self_node;
  expired.node->key = first;
  expired.node->expired = true;
  send_map(expired);
  run();
  ASSERT_EQ(registers.size(), 2u);
  EXPECT_EQ(registers[1].old_node_key, first);
  EXPECT_NE(registers[1].node_key, first);
  EXPECT_EQ(registers[1].auth_key.reveal(), "hskey-auth-abc");
  auto changed = take<NodeKeyChanged>();
  ASSERT_EQ(changed.size(), 1u);
  EXPECT_EQ(changed[0].previous, first);
  EXPECT_EQ(changed[0].key, registers[1].node_key);
  EXPECT_EQ(client->state(), ControlState::kRunning);
  EXPECT_EQ(maps.back().request.node_key, registers[1].node_key);
  EXPECT_EQ(maps.size(), 1u);  // the old stream was cancelled
  EXPECT_NE(std::find(states.begin(), states.end(), ControlState::kExpired), states.end());
}

TEST_F(ControlClientTest, ExpiredAndItsKeyIsSpent) {
  start(config());
  on_register = [](const RegisterRequest&) {
    RegisterResponse answer;
    answer.error = "authkey already used";
    return answer;
  };
  MapResponse expired;
  expired.node = self_node;
  expired.node->key = registers[0].node_key;
  expired.node->key_expiry = WallTime::from_unix_s(1);
  send_map(expired);
  run();
  EXPECT_EQ(client->state(), ControlState::kNeedsLogin);
  const std::string why = state_error();
  EXPECT_NE(why.find("this node's login has ended there, and its key is refused: authkey already used"), std::string::npos) << why;
  EXPECT_FALSE(client->netmap().has_map());
}

TEST_F(ControlClientTest, KeyExpiryByTheClock) {
  self_node.key_expiry = clock.wall + std::chrono::hours(3);
  peers[0].key_expiry = clock.wall + std::chrono::hours(2);
  start(config());
  take<NetmapChanged>();
  auto keep_alive = [&] { send_raw(R"({"KeepAlive":true})"); };
  for (int minute = 0; minute < 2 * 60 + 1; ++minute) {
    keep_alive();
    advance(std::chrono::minutes(1));
  }
  auto changes = take<NetmapChanged>();
  ASSERT_EQ(changes.size(), 1u);
  EXPECT_EQ(changes[0].change.peers_upserted, std::vector<ts2021::NodeId>{2});
  EXPECT_TRUE(client->netmap().peer(2)->expired);
  EXPECT_EQ(registers.size(), 1u);
  for (int minute = 0; minute < 60; ++minute) {
    keep_alive();
    advance(std::chrono::minutes(1));
    self_node.key_expiry.reset();
  }
  EXPECT_EQ(registers.size(), 2u);
  EXPECT_EQ(client->state(), ControlState::kRunning);
}

TEST_F(ControlClientTest, NodeKeyExpiredAtRegistration) {
  auto key = crypto::NodePrivate::generate(rng);
  const NodePublic stored = key.public_key();
  on_register = [&](const RegisterRequest& r) -> std::optional<RegisterResponse> {
    if (r.node_key != stored) return accepted();
    RegisterResponse answer;
    answer.node_key_expired = true;
    return answer;
  };
  start(config(), std::move(key));
  EXPECT_EQ(client->state(), ControlState::kRunning);
  ASSERT_EQ(registers.size(), 2u);
  EXPECT_EQ(registers[1].old_node_key, stored);
}

TEST_F(ControlClientTest, AServerThatCallsEveryKeyExpiredIsNotHammered) {
  on_register = [](const RegisterRequest&) {
    RegisterResponse answer;
    answer.node_key_expired = true;
    return answer;
  };
  start(config());
  EXPECT_EQ(client->state(), ControlState::kNeedsLogin);
  EXPECT_EQ(registers.size(), 1u);
  // The same, told by the map.
  on_register = [](const RegisterRequest&) { return accepted(); };
  self_node.expired = true;
  client->login(clock, crypto::SecretText("k"));
  run();
  advance(std::chrono::minutes(5));
  EXPECT_LT(registers.size(), 60u);
}

TEST_F(ControlClientTest, LogoutTellsTheServer) {
  start(config());
  client->logout(clock);
  run();
  ASSERT_EQ(registers.size(), 2u);
  EXPECT_EQ(registers[1].expiry, WallTime::from_unix_s(123));
  EXPECT_TRUE(registers[1].auth_key.empty());
  EXPECT_EQ(client->state(), ControlState::kLoggedOut);
  EXPECT_EQ(take<LoggedOut>().size(), 1u);
  EXPECT_FALSE(client->netmap().has_map());
  EXPECT_EQ(take<NetmapChanged>().back().change.peers_removed.size(), 2u);
  EXPECT_TRUE(client->next_timeout().is_never());
  const NodePublic old = client->node_key().public_key();
  client->login(clock, crypto::SecretText("again"));
  run();
  EXPECT_EQ(client->state(), ControlState::kRunning);
  EXPECT_NE(client->node_key().public_key(), old);
  EXPECT_TRUE(registers.back().old_node_key.is_zero());
}

TEST_F(ControlClientTest, LogoutWithoutAServerEndsAfterTenSeconds) {
  start(config());
  blackhole = true;
  client->logout(clock);
  run();
  advance(std::chrono::seconds(9));
  EXPECT_NE(client->state(), ControlState::kLoggedOut);
  advance(std::chrono::seconds(2));
  EXPECT_EQ(client->state(), ControlState::kLoggedOut);
  EXPECT_EQ(take<LoggedOut>().size(), 1u);
}

TEST_F(ControlClientTest, DeletedNodeRegistersAgainThenReportsIt) {
  start(config());
  map_status = 404;
  conns.at(maps.back().conn).h2->end(maps.back().stream);
  run();
  advance(std::chrono::seconds(5));
  EXPECT_EQ(client->state(), ControlState::kLoggedOut);
  EXPECT_EQ(registers.size(), 2u);  // one more try
  EXPECT_EQ(map_refusals, 2 * kNotFoundMax);
  EXPECT_NE(state_error().find("removed"), std::string::npos);
  EXPECT_FALSE(client->netmap().has_map());
  advance(std::chrono::hours(1));
  EXPECT_EQ(map_refusals, 2 * kNotFoundMax);
}

// Headscale leaves the stream of a deleted node open and says nothing.
TEST_F(ControlClientTest, ANodeThatWasDeletedInSilenceFindsOut) {
  for (bool asked : {true, false}) {
    SCOPED_TRACE(asked);
    start(config());
    advance(std::chrono::seconds(20));
    map_status = 404;
    lite_refusals = 0;
    if (asked) {
      client->check_membership(clock);
      client->check_membership(clock);
    }
    for (int i = 0; i < 3; ++i) {
      if (!asked) send_raw(R"({"KeepAlive":true})");
      run();
      advance(std::chrono::seconds(30));
      if (maps.empty() || client->state() == ControlState::kLoggedOut) break;
    }
    EXPECT_GE(lite_refusals, 1);
    EXPECT_EQ(client->state(), ControlState::kLoggedOut);
    EXPECT_NE(state_error().find("removed"), std::string::npos);
    map_status = 200;
    conns.clear();
    maps.clear();
  }
}

TEST_F(ControlClientTest, DeletedNodeWithoutAKeyIsAskedToLogIn) {
  start(config());
  map_status = 404;
  on_register = [](const RegisterRequest& r) -> std::optional<RegisterResponse> {
    if (!r.followup.empty()) return std::nullopt;
    RegisterResponse answer;
    answer.auth_url = "https://x/login";
    return answer;
  };
  conns.at(maps.back().conn).h2->end(maps.back().stream);
  run();
  advance(std::chrono::seconds(5));
  EXPECT_EQ(client->state(), ControlState::kNeedsLogin);
  EXPECT_EQ(take<LoginUrl>().size(), 1u);
  EXPECT_FALSE(client->netmap().has_map());
}

TEST_F(ControlClientTest, ApprovalByAnAdmin) {
  self_node.machine_authorized = false;
  start(config());
  EXPECT_EQ(client->state(), ControlState::kNeedsApproval);
  MapResponse approved;
  approved.node = self_node;
  approved.node->key = client->node_key().public_key();
  approved.node->machine_authorized = true;
  send_map(approved);
  run();
  EXPECT_EQ(client->state(), ControlState::kRunning);
}

}  // namespace
}  // namespace porthole::control
