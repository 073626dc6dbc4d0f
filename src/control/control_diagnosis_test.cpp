// What the client says when a server or what is in front of it misbehaves, and that nothing of it ends the client.
#include <gtest/gtest.h>

#include "control/control_world_for_test.h"

namespace porthole::control {
namespace {

using namespace world;
using ControlClientTest = World;

// ---- diagnosis in words ----

TEST_F(ControlClientTest, CaptivePortal) {
  key_answer = [] { return http(200, "text/html", "<html>Welcome to Hotel WiFi</html>"); };
  start(config());
  EXPECT_NE(notices().find("captive portal"), std::string::npos);
  key_answer = nullptr;
  advance(std::chrono::minutes(1));
  EXPECT_EQ(client->state(), ControlState::kRunning);
}

TEST_F(ControlClientTest, WhatIsWrongWithTheKeyAnswer) {
  struct Case {
    ByteVector answer;
    std::string_view words;
  };
  auto raw = [](std::string_view s) { return to_vector(as_bytes(s)); };
  for (const Case& c : {Case{raw("HTTP/1.1 302 Found\r\nLocation: http://login.wifi/\r\nContent-Length: 0\r\n\r\n"), "redirects to http://login.wifi/"},
                        Case{http(404, "text/plain", "not found"), "no control server"},
                        Case{http(400, "text/plain", "unsupported client version\n"), "400: unsupported client version"},
                        Case{http(502, "text/html", "<html>Bad gateway"), "502 with a web page"},
                        Case{http(200, "application/json", "{\"publicKey\":\"mkey:" + std::string(64, '0') + "\"}"), "no Noise key"},
                        Case{http(200, "text/plain", std::string(64, 'a')), "not understood"},
                        Case{raw("\x15\x03\x01\x02\x02\x46"), "speaks TLS"},
                        Case{raw("SSH-2.0-OpenSSH\r\n"), "SSH"},
                        Case{raw(""), "without an answer"},
                        Case{raw("HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort"), ""}}) {
    key_answer = [&] { return c.answer; };
    start(config());
    const std::string said = notices();
    EXPECT_FALSE(said.empty());
    EXPECT_NE(said.find(c.words), std::string::npos) << said;
    EXPECT_EQ(client->state(), ControlState::kConnecting);
    conns.clear();
  }
}

TEST_F(ControlClientTest, WhatIsWrongWithTheUpgrade) {
  struct Case {
    ByteVector answer;
    std::string_view words;
  };
  auto raw = [](std::string_view s) { return to_vector(as_bytes(s)); };
  for (const Case& c : {Case{http(426, "text/plain", ""), "does not pass the upgrade"}, Case{http(400, "text/plain", "x"), "does not pass the upgrade"},
                        Case{http(200, "text/html", "<html>"), "does not pass the upgrade"}, Case{http(500, "text/plain", "Internal error"), "does not pass the upgrade"},
                        Case{raw("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\r\n"), "does not pass the upgrade"},
                        Case{raw("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"), "does not pass the upgrade"},
                        Case{raw("HTTP/1.1 400 Bad Request\r\nServer: nginx/1.22.1\r\nContent-Length: 0\r\n\r\n"), "nginx/1.22.1 answered the upgrade with 400: a proxy"},
                        Case{http(426, "text/plain", ""), "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection"},
                        Case{http(502, "text/html", "<html>Bad gateway"), "502: the control server behind it does not run"},
                        Case{http(504, "text/html", "<html>"), "504: the control server behind it does not run"},
                        Case{raw("HTTP/1.1 301 Moved\r\nLocation: https://other/\r\nContent-Length: 0\r\n\r\n"), "redirect to https://other/"},
                        Case{raw(""), "closed the connection instead of answering the upgrade"},
                        Case{http(404, "text/plain", ""), "hides /ts2021"}, Case{http(503, "text/plain", "busy"), "503: busy"},
                        Case{raw("HTTP/1.1 101 X\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n\r\n"), "its key has changed"},
                        Case{raw("HTTP/1.1 101 X\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n\r\n"s + "\x03\x00\x05nope!"s), "refused the handshake: nope!"},
                        Case{raw("HTTP/1.1 101 X\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n\r\nHTTP/1.1 200 OK"), "handshake answer is not one"}}) {
    upgrade_answer = [&] { return c.answer; };
    start(config());
    const std::string said = notices();
    EXPECT_NE(said.find(c.words), std::string::npos) << c.words << " in " << said;
    EXPECT_EQ(client->state(), ControlState::kConnecting);
    conns.clear();
  }
}

TEST_F(ControlClientTest, BadUrls) {
  for (std::string_view url : {"", "control.example", "ftp://x", "https://", "https://x:0", "https://x:99999", "https://x/path", "https://[::1",
                               "https://a b", "https://x:", "https://user@x", "https://x\r\nHost: y"}) {
    ControlConfig c = config();
    c.url = url;
    start(std::move(c));
    EXPECT_EQ(client->state(), ControlState::kFailed) << url;
    EXPECT_FALSE(state_error().empty());
  }
  EXPECT_EQ(ControlUrl::parse("http://[::1]:8080/")->authority, "[::1]:8080");
  EXPECT_EQ(ControlUrl::parse("https://h:443")->authority, "h");
}

TEST_F(ControlClientTest, TailnetLockRequestsAreFatal) {
  on_register = [](const RegisterRequest&) {
    RegisterResponse r = accepted();
    r.node_key_signature = "AAAA";
    return r;
  };
  start(config());
  EXPECT_EQ(client->state(), ControlState::kFailed);
}

// ---- hostile servers ----

TEST_F(ControlClientTest, BadMapMessagesNeverStopTheClient) {
  start(config());
  for (std::string_view bad : {"{", "[]", R"({"Peers":[1]})", "\xff\xfe", R"({"Node":{"ID":"x"}})"}) {
    if (maps.empty()) break;
    send_raw(bad);
    run();
    EXPECT_EQ(client->state(), ControlState::kReconnecting);
    advance(std::chrono::seconds(5));
    EXPECT_EQ(client->state(), ControlState::kRunning) << bad;
  }
  // A length that nobody can mean.
  conns.at(maps.back().conn).h2->send_data(maps.back().stream, ByteVector{0xff, 0xff, 0xff, 0x7f});
  run();
  advance(std::chrono::seconds(5));
  EXPECT_EQ(client->state(), ControlState::kRunning);
  // First message of a stream without a node.
  send_first_map = false;
  client->network_changed(clock);
  run();
  send_raw(R"({"Domain":"x"})");
  run();
  EXPECT_EQ(client->state(), ControlState::kReconnecting);
}

TEST_F(ControlClientTest, DamagedBytesAnywhere) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    SeededRng damage(seed);
    start(config());
    for (int i = 0; i < 30 && !conns.empty(); ++i) {
      ByteVector junk(1 + damage.below(200));
      damage.fill(junk);
      auto it = conns.begin();
      std::advance(it, static_cast<std::ptrdiff_t>(damage.below(conns.size())));
      if (damage.below(2) == 0 && !maps.empty() && conns.contains(maps.back().conn)) {
        send_raw(std::string_view(as_text(junk)));
      } else {
        append(it->second.out, junk);
      }
      run();
      advance(std::chrono::milliseconds(static_cast<std::int64_t>(damage.below(3000))));
    }
    advance(std::chrono::minutes(2));
    EXPECT_EQ(client->state(), ControlState::kRunning) << seed;
    conns.clear();
    maps.clear();
  }
}

TEST_F(ControlClientTest, StopIsQuiet) {
  start(config());
  client->stop();
  int closes = 0;
  while (auto a = client->poll_action()) closes += std::holds_alternative<CloseStream>(*a) ? 1 : 0;
  EXPECT_GE(closes, 1);
  EXPECT_FALSE(client->poll_event().has_value());
  EXPECT_TRUE(client->next_timeout().is_never());
}

TEST(C2n, EchoChunkedAndGarbage) {
  auto text = [](std::string_view request) { return std::string(as_text(answer_c2n(as_bytes(request)))); };
  EXPECT_EQ(text("POST /echo?x=1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
  EXPECT_TRUE(text("GET /echo").starts_with("HTTP/1.1 400 "));
  EXPECT_TRUE(text("").starts_with("HTTP/1.1 400 "));
}

}  // namespace
}  // namespace porthole::control
