#include "proxy/proxy_machine.h"

#include <gtest/gtest.h>

#include "base/rng.h"
#include "proxy/names.h"
#include "support/vectors.h"

namespace porthole::proxy {
namespace {

const Instant kStart = Instant::from_ns(1'000'000'000);

ByteVector unhex(std::string_view hex) { return test::unhex(hex); }
std::string hex_of(std::string_view s) { return to_hex(as_bytes(s)); }

struct Session {
  ProxyCredential credential{"tsnet", crypto::SecretText("0123456789abcde")};
  ProxyMachine machine;
  std::string unconsumed;
  explicit Session(bool open = false, bool hand_over = false) : machine(kStart, {open ? nullptr : &credential, hand_over}) {}

  // Feeds in slices until the machine takes no more; the rest is kept.
  void feed(Bytes in, std::size_t slice = 100000) {
    std::size_t at = 0;
    while (at < in.size()) {
      std::size_t size = std::min(slice, in.size() - at);
      std::size_t n = machine.consume(in.subspan(at, size));
      ASSERT_LE(n, size);
      at += n;
      if (n < size) break;
    }
    unconsumed.append(as_text(in.subspan(at)));
  }
  void feed(std::string_view text) { feed(as_bytes(text)); }
  std::string output() {
    ByteVector out(5000);
    out.resize(machine.produce(out));
    return std::string(as_text(out));
  }
  std::optional<Connect> connect() {
    auto e = machine.poll_event();
    if (!e || !std::holds_alternative<Connect>(*e)) return std::nullopt;
    return std::get<Connect>(*e);
  }
};

std::string login_hex(std::string_view user = "tsnet", std::string_view password = "0123456789abcde") {
  ByteVector out = {1, static_cast<std::uint8_t>(user.size())};
  append(out, as_bytes(user));
  out.push_back(static_cast<std::uint8_t>(password.size()));
  append(out, as_bytes(password));
  return to_hex(out);
}

TEST(Socks5Proxy, PipelinedHandshakeKeepsWhatBelongsToTheTunnel) {
  ByteVector all = unhex("050100" "02");
  all = unhex("050102");
  append(all, unhex(login_hex()));
  append(all, unhex("05010003036e617301bb"));
  append(all, as_bytes("GET / early"));
  for (std::size_t slice : {1u, 3u, 1000u}) {
    Session s;
    s.feed(all, slice);
    EXPECT_EQ(to_hex(as_bytes(s.output())), "05020100");
    auto c = s.connect();
    ASSERT_TRUE(c);
    EXPECT_EQ(std::get<std::string>(c->host), "nas");
    EXPECT_EQ(c->port, 443);
    EXPECT_EQ(c->to_string(), "nas:443");
    EXPECT_EQ(s.machine.state(), ProxyState::kConnecting);
    EXPECT_EQ(s.unconsumed, "GET / early");
    EXPECT_EQ(s.machine.consume(as_bytes("more")), 0u);
    EXPECT_TRUE(s.machine.next_timeout().is_never());
    s.machine.connected(*Endpoint::parse("100.64.0.1:4660"));
    EXPECT_EQ(to_hex(as_bytes(s.output())), "05000001644000011234");
    EXPECT_EQ(s.machine.state(), ProxyState::kOpen);
    EXPECT_FALSE(s.machine.has_output());
  }
}

TEST(Socks5Proxy, WhatRealClientsSend) {
  // curl: 05 03 00 01 02; PySocks, ncat: 05 02 00 02; RSV not zero is tolerated.
  for (const char* greeting : {"0503000102", "05020002", "050102"}) {
    Session s;
    s.feed(unhex(greeting));
    EXPECT_EQ(to_hex(as_bytes(s.output())), "0502");
    s.feed(unhex(login_hex()));
    EXPECT_EQ(to_hex(as_bytes(s.output())), "0100");
    s.feed(unhex("0501ff01644001020050"));
    EXPECT_EQ(s.connect()->to_string(), "100.64.1.2:80");
  }
  // nc, Chromium: no credential offered.
  for (const char* greeting : {"050100", "05020001", "0500"}) {
    Session s;
    s.feed(unhex(greeting));
    EXPECT_EQ(to_hex(as_bytes(s.output())), "05ff");
    EXPECT_EQ(s.machine.state(), ProxyState::kClosing);
    Session open(true);
    open.feed(unhex(greeting));
    EXPECT_EQ(to_hex(as_bytes(open.output())), std::string_view(greeting) == "0500" ? "05ff" : "0500");
  }
  Session literal_as_name(true);
  literal_as_name.feed(unhex("050100" "05010003" "0a" + hex_of("100.64.0.9") + "0050"));
  EXPECT_EQ(literal_as_name.connect()->to_string(), "100.64.0.9:80");
}

TEST(Socks5Proxy, WrongCredentials) {
  for (auto [user, password] : {std::pair{"tsnet", "0123456789abcdeX"}, {"tsnet", ""}, {"", "0123456789abcde"}, {"tsnetx", "0123456789abcde"}, {"tsnet", "0123456789abcde0"}}) {
    Session s;
    s.feed(unhex("050102" + login_hex(user, password) + "0501000164400102" "0050"));
    EXPECT_EQ(to_hex(as_bytes(s.output())), "05020101");
    EXPECT_EQ(s.machine.state(), ProxyState::kClosing);
    EXPECT_FALSE(s.connect());
  }
}

TEST(Socks5Proxy, RefusedCommandsAndAddresses) {
  struct Case {
    const char* request;
    const char* reply;
  } cases[] = {{"0502000164400102" "0050", "07"}, {"0509000164400102" "0050", "07"},
               {"05010002", "08"}, {"05010003" "00" "0050", "01"}, {"04010003", "01"}};
  for (const Case& c : cases) {
    Session s;
    s.feed(unhex("050102" + login_hex() + c.request));
    std::string out = to_hex(as_bytes(s.output()));
    EXPECT_EQ(out, "05020100" "05" + std::string(c.reply) + "0001000000000000") << c.request;
    EXPECT_EQ(s.machine.state(), ProxyState::kClosing);
  }
}

TEST(Socks5Proxy, Associate) {
  // With zeros, as most do; with an own port, as RFC 1928 has it; PySocks 1.7 writes the name "0".
  for (const char* request : {"0503000100000000" "0000", "050300017f000001" "1234", "050300030130" "0000"}) {
    for (std::size_t slice : {1u, 1000u}) {
      Session s;
      ByteVector in = unhex("050102" + login_hex() + request);
      append(in, as_bytes("ignored"));
      s.feed(in, slice);
      EXPECT_EQ(to_hex(as_bytes(s.output())), "05020100");
      auto e = s.machine.poll_event();
      ASSERT_TRUE(e && std::holds_alternative<Associate>(*e));
      EXPECT_EQ(s.machine.state(), ProxyState::kConnecting);
      EXPECT_EQ(s.unconsumed, "ignored");
      s.machine.connected(*Endpoint::parse("127.0.0.1:4660"));
      EXPECT_EQ(to_hex(as_bytes(s.output())), "050000017f0000011234");
      EXPECT_EQ(s.machine.state(), ProxyState::kOpen);
      EXPECT_TRUE(s.machine.next_timeout().is_never());
    }
  }
  Session v6(true);
  v6.feed(unhex("050100" "0503000100000000" "0000"));
  v6.output();
  ASSERT_TRUE(v6.machine.poll_event());
  v6.machine.connected(*Endpoint::parse("[::1]:4660"));
  EXPECT_EQ(to_hex(as_bytes(v6.output())), "05000004000000000000000000000000000000011234");
  Session full(true);
  full.feed(unhex("050100" "0503000100000000" "0000"));
  full.output();
  full.machine.failed(connect_failure(ErrorCode::kLimit), "too many");
  EXPECT_EQ(to_hex(as_bytes(full.output())), "05010001000000000000");
  EXPECT_EQ(full.machine.state(), ProxyState::kClosing);
  Session stranger;
  stranger.feed(unhex("050102" + login_hex("tsnet", "wrong") + "0503000100000000" "0000"));
  EXPECT_FALSE(stranger.machine.poll_event()) << "only after the login";
}

TEST(Socks5Proxy, FailureCodes) {
  for (auto [failure, code] : {std::pair{ConnectFailure::kGeneral, "01"}, {ConnectFailure::kNotAllowed, "02"}, {ConnectFailure::kUnreachable, "03"},
                               {ConnectFailure::kUnknownHost, "04"}, {ConnectFailure::kRefused, "05"}, {ConnectFailure::kTimeout, "04"}}) {
    Session s(true);
    s.feed(unhex("050100" "0501000164400102" "0050"));
    s.output();
    ASSERT_TRUE(s.connect());
    s.machine.failed(failure, "sentence");
    EXPECT_EQ(to_hex(as_bytes(s.output())), "05" + std::string(code) + "0001000000000000");
    EXPECT_EQ(s.machine.state(), ProxyState::kClosing);
    s.machine.connected({});  // too late
    EXPECT_FALSE(s.machine.has_output());
  }
  EXPECT_EQ(connect_failure(ErrorCode::kRefused), ConnectFailure::kRefused);
  EXPECT_EQ(connect_failure(ErrorCode::kNotFound), ConnectFailure::kUnknownHost);
  EXPECT_EQ(connect_failure(ErrorCode::kTimeout), ConnectFailure::kTimeout);
}

TEST(HttpProxy, ConnectWithCredential) {
  std::string head = "CONNECT nas.tail.ts.net:443 HTTP/1.1\r\nHost: nas.tail.ts.net:443\r\nProxy-Authorization: basic " +
                     to_base64(as_bytes("tsnet:0123456789abcde")) + "\r\n\r\n";
  for (std::size_t slice : {1u, 7u, 1000u}) {
    Session s;
    s.feed(as_bytes(head + "\x16tls"), slice);
    auto c = s.connect();
    ASSERT_TRUE(c);
    EXPECT_EQ(c->to_string(), "nas.tail.ts.net:443");
    EXPECT_EQ(s.unconsumed, "\x16tls");
    s.machine.connected({});
    EXPECT_EQ(s.output(), "HTTP/1.1 200 Connection established\r\n\r\n");
    EXPECT_EQ(s.machine.state(), ProxyState::kOpen);
  }
}

TEST(HttpProxy, CredentialRefused) {
  for (const std::string& header : {std::string(), std::string("Proxy-Authorization: Basic !!!\r\n"), "Proxy-Authorization: Basic " + to_base64(as_bytes("tsnet:wrong")) + "\r\n",
                                    "Proxy-Authorization: Basic " + to_base64(as_bytes("0123456789abcde")) + "\r\n",
                                    "Proxy-Authorization: Bearer " + to_base64(as_bytes("tsnet:0123456789abcde")) + "\r\n",
                                    "Authorization: Basic " + to_base64(as_bytes("tsnet:0123456789abcde")) + "\r\n"}) {
    Session s;
    s.feed("CONNECT nas:443 HTTP/1.1\r\n" + header + "\r\n");
    std::string out = s.output();
    EXPECT_TRUE(out.starts_with("HTTP/1.1 407 ")) << out;
    EXPECT_NE(out.find("Proxy-Authenticate: Basic realm=\"porthole\"\r\n"), std::string::npos);
    EXPECT_EQ(s.machine.state(), ProxyState::kClosing);
    EXPECT_FALSE(s.connect());
    EXPECT_EQ(out.find("0123456789abcde"), std::string::npos);
  }
}

TEST(HttpProxy, TargetsAndMethods) {
  auto answer = [](std::string_view request) {
    Session s(true);
    s.feed(request);
    auto c = s.connect();
    return c ? c->to_string() : s.output().substr(0, 12);
  };
  EXPECT_EQ(answer("CONNECT [fd7a::1]:22 HTTP/1.1\r\n\r\n"), "[fd7a::1]:22");
  EXPECT_EQ(answer("CONNECT 100.64.0.1:1 HTTP/1.0\r\n\r\n"), "100.64.0.1:1");
  for (const char* target : {"nas", "nas:", ":80", "nas:0", "nas:65536", "nas:8x", "fd7a::1:22", "[nas]:80", "a@b:80", "http://nas:80", "/:80", "[]:80"})
    EXPECT_EQ(answer("CONNECT " + std::string(target) + " HTTP/1.1\r\n\r\n"), "HTTP/1.1 400") << target;
  EXPECT_EQ(answer("CONNECT nas:80 HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"), "HTTP/1.1 400");
  EXPECT_EQ(answer("GET / HTTP/1.1\r\n\r\n"), "HTTP/1.1 400");
  EXPECT_EQ(answer(std::string_view("\x04\x01\x00\x50\x7f\x00\x00\x01\x00", 9)), "HTTP/1.1 400");  // SOCKS4
  EXPECT_EQ(answer("\x16\x03\x01"), "HTTP/1.1 400");                                             // TLS
  EXPECT_EQ(answer("GET / HTTP/1.1\r\nX: " + std::string(40000, 'a')), "HTTP/1.1 431");
  Session s(true);
  s.feed("CONNECT nas:80 HTTP/1.1\r\n\r\n");
  ASSERT_TRUE(s.connect());
  s.machine.failed(ConnectFailure::kUnknownHost, "no device named \"nas\" in this tailnet");
  EXPECT_NE(s.output().find("no device named \"nas\" in this tailnet\n"), std::string::npos);
}

TEST(HttpProxy, HandsOverItsOwnRequests) {
  Session s(false, true);
  std::string head = "GET /localapi/v0/status HTTP/1.1\r\nHost: 127.0.0.1:1\r\nSec-Tailscale: localapi\r\n\r\n";
  s.feed(as_bytes(head + "body"), 5);
  auto e = s.machine.poll_event();
  ASSERT_TRUE(e && std::holds_alternative<PlainHttp>(*e));
  EXPECT_EQ(as_text(std::get<PlainHttp>(*e).head), head);
  EXPECT_EQ(s.machine.state(), ProxyState::kOpen);
  EXPECT_EQ(s.unconsumed, "body");
  Session absolute(false, true);
  absolute.feed("GET http://nas/ HTTP/1.1\r\n\r\n");
  EXPECT_TRUE(absolute.output().starts_with("HTTP/1.1 407"));
}

TEST(HttpProxy, PlainRequestsAreRewrittenForTheServer) {
  std::string credential = "Proxy-Authorization: Basic " + to_base64(as_bytes("tsnet:0123456789abcde")) + "\r\n";
  // curl -x http://user:password@proxy http://nas:8080/a?b
  std::string get = "GET http://nas:8080/a?b HTTP/1.1\r\nHost: nas:8080\r\n" + credential +
                    "User-Agent: curl/7.88.1\r\nAccept: */*\r\nProxy-Connection: Keep-Alive\r\n\r\n";
  for (std::size_t slice : {1u, 7u, 10000u}) {
    Session s;
    s.feed(as_bytes(get), slice);
    auto c = s.connect();
    ASSERT_TRUE(c) << s.output();
    EXPECT_EQ(c->to_string(), "nas:8080");
    EXPECT_EQ(as_text(c->first), "GET /a?b HTTP/1.1\r\nHost: nas:8080\r\nConnection: close\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n\r\n");
    s.machine.connected({});
    EXPECT_EQ(s.output(), "") << "the server answers, not the proxy";
    EXPECT_EQ(s.machine.state(), ProxyState::kOpen);
  }
  // A body stays behind, framed as it is; the credential and what Connection names stay here.
  Session post;
  post.feed("POST HTTP://[fd7a::1]/x HTTP/1.1\r\nHost: forged\r\n" + credential +
            "Connection: keep-alive, X-Own, Content-Length\r\nX-Own: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\nContent-Length: 4\r\nX-Kept: 2\r\n\r\nbody");
  auto c = post.connect();
  ASSERT_TRUE(c) << post.output();
  EXPECT_EQ(c->to_string(), "[fd7a::1]:80");
  EXPECT_EQ(as_text(c->first), "POST /x HTTP/1.1\r\nHost: [fd7a::1]\r\nConnection: close\r\nContent-Length: 4\r\nX-Kept: 2\r\n\r\n");
  EXPECT_EQ(post.unconsumed, "body");
  auto first_line = [&](const std::string& line, const std::string& more = "") {
    Session s(true);
    s.feed(line + " HTTP/1.1\r\n" + more + "\r\n");
    auto to = s.connect();
    if (!to) return s.output().substr(0, 12);
    return to->to_string() + " " + std::string(as_text(to->first).substr(0, as_text(to->first).find('\r')));
  };
  EXPECT_EQ(first_line("GET http://nas"), "nas:80 GET / HTTP/1.1");
  EXPECT_EQ(first_line("GET http://nas:/"), "nas:80 GET / HTTP/1.1");
  EXPECT_EQ(first_line("GET http://nas?q"), "nas:80 GET /?q HTTP/1.1");
  EXPECT_EQ(first_line("GET http://nas/a:b@c/"), "nas:80 GET /a:b@c/ HTTP/1.1");
  EXPECT_EQ(first_line("OPTIONS http://nas"), "nas:80 OPTIONS * HTTP/1.1");
  EXPECT_EQ(first_line("OPTIONS http://nas/"), "nas:80 OPTIONS / HTTP/1.1");
  EXPECT_EQ(first_line("GET http://[fd7a::1]:81/"), "[fd7a::1]:81 GET / HTTP/1.1");
  for (const char* bad : {"GET /", "GET http://", "GET http:///x", "GET https://nas/", "GET ftp://nas/", "GET http://user:word@nas/", "GET http://nas:0/",
                          "GET http://nas:99999/", "GET http://fd7a::1/", "GET nas:80", "OPTIONS *", "CONNECT http://nas/"})
    EXPECT_EQ(first_line(bad), "HTTP/1.1 400") << bad;
  // WebSocket: the one connection becomes something else.
  Session ws(true);
  ws.feed("GET http://nas/live HTTP/1.1\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n");
  c = ws.connect();
  ASSERT_TRUE(c);
  EXPECT_EQ(as_text(c->first), "GET /live HTTP/1.1\r\nHost: nas\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n");
  // Failures are told as a proxy tells them.
  Session s(true);
  s.feed("GET http://nas/ HTTP/1.1\r\n\r\n");
  ASSERT_TRUE(s.connect());
  s.machine.failed(ConnectFailure::kRefused, "nas: connection refused");
  EXPECT_TRUE(s.output().starts_with("HTTP/1.1 502 "));
}

TEST(HttpProxy, PlainRequestsNeedTheCredential) {
  for (const std::string& header : {std::string(), "Proxy-Authorization: Basic " + to_base64(as_bytes("tsnet:wrong")) + "\r\n",
                                    "Authorization: Basic " + to_base64(as_bytes("tsnet:0123456789abcde")) + "\r\n"}) {
    Session s;
    s.feed("GET http://nas/ HTTP/1.1\r\n" + header + "\r\n");
    EXPECT_TRUE(s.output().starts_with("HTTP/1.1 407 "));
    EXPECT_FALSE(s.connect());
  }
}

TEST(Proxy, HandshakeHasTenSeconds) {
  for (const char* begin : {"", "0501", "434f4e"}) {
    Session s;
    s.feed(unhex(begin));
    EXPECT_EQ(s.machine.next_timeout().latest, kStart + 10s);
    s.machine.handle_timeout(kStart + 9s);
    EXPECT_EQ(s.machine.state(), ProxyState::kHandshake);
    s.machine.handle_timeout(kStart + 10s);
    EXPECT_EQ(s.machine.state(), ProxyState::kClosing) << begin;
    EXPECT_TRUE(s.machine.next_timeout().is_never());
    EXPECT_EQ(s.machine.consume(as_bytes("late")), 4u);
    EXPECT_EQ(s.output().starts_with("HTTP/1.1 408"), std::string_view(begin) == "434f4e");
  }
}

TEST(Proxy, HostileBytesNeverConnectWithoutTheCredential) {
  SeededRng rng(6);
  ByteVector good = unhex("050102" + login_hex() + "05010003036e617301bb");
  std::string get = "GET http://nas/x HTTP/1.1\r\nProxy-Authorization: Basic " + to_base64(as_bytes("tsnet:0123456789abcde")) + "\r\n\r\n";
  std::string http = "CONNECT nas:443 HTTP/1.1\r\nProxy-Authorization: Basic " + to_base64(as_bytes("tsnet:0123456789abcde")) + "\r\n\r\n";
  ByteVector credential = unhex(login_hex());
  for (int round = 0; round < 5000; ++round) {
    if (round % 8 == 1) good[good.size() - 9] ^= 2;  // CONNECT, or UDP ASSOCIATE
    ByteVector in = round % 2 ? good : to_vector(as_bytes(round % 4 ? http : get));
    for (std::uint64_t k = rng.below(4); k > 0; --k) in[rng.below(in.size())] ^= static_cast<std::uint8_t>(1 << rng.below(8));
    if (rng.below(4) == 0) in.resize(rng.below(in.size()));
    if (rng.below(4) == 0) {
      ByteVector junk(rng.below(600));
      rng.fill(junk);
      append(in, junk);
    }
    Session s;
    s.feed(in, 1 + rng.below(40));
    s.output();
    if (s.machine.poll_event()) {
      std::string_view text = as_text(in);
      EXPECT_TRUE(text.find(as_text(credential)) != std::string_view::npos || text.find(to_base64(as_bytes("tsnet:0123456789abcde"))) != std::string_view::npos);
    }
  }
}

TEST(NameTable, ResolvesWhatPeopleType) {
  IpAddress nas = IpAddress::v4(100, 64, 0, 1), shared = IpAddress::v4(100, 64, 0, 2), tv = IpAddress::v4(100, 64, 0, 3);
  NameTable table({{"nas.other.ts.net.", {shared}}, {"NAS.tail1.ts.net.", {nas, *IpAddress::parse("fd7a::1")}}, {"tv.other.ts.net", {tv}}, {"empty.tail1.ts.net", {}}}, "tail1.ts.net.");
  auto first = [&](std::string_view name) {
    auto r = table.resolve(name);
    return r.ok() ? r->front().to_string() : to_string(r.error().code).data() + std::string();
  };
  for (const char* name : {"nas", "NAS", "nas.", "nas.tail1.ts.net", "Nas.Tail1.TS.net."}) EXPECT_EQ(first(name), "100.64.0.1") << name;
  EXPECT_EQ(table.resolve("nas")->size(), 2u);
  EXPECT_EQ(first("nas.other.ts.net"), "100.64.0.2");
  EXPECT_EQ(first("tv"), "100.64.0.3");
  EXPECT_EQ(first("100.64.0.99"), "100.64.0.99");
  EXPECT_EQ(first("fd7a::9"), "fd7a::9");
  for (const char* name : {"na", "nas.tail1", "empty", "printer", "..", "nas..", "x.nas"}) EXPECT_EQ(first(name), "not-found") << name;
  EXPECT_FALSE(table.resolve("").ok());
  EXPECT_FALSE(table.resolve(std::string(300, 'a')).ok());
  EXPECT_EQ(table.resolve("printer").error().message, "no device named \"printer\" in this tailnet");
  EXPECT_EQ(table.resolve("a\nb").error().message, "no device named \"a?b\" in this tailnet");
  EXPECT_EQ(table.size(), 3u);
}

}  // namespace
}  // namespace porthole::proxy
