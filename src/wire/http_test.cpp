#include "wire/http.h"

#include <gtest/gtest.h>

#include <functional>

#include "base/rng.h"

namespace porthole::wire {
namespace {

constexpr HttpKind kReq = HttpKind::kRequest;
constexpr HttpKind kRes = HttpKind::kResponse;

// Feeds `text` in slices of `slice`; returns the unconsumed rest.
std::string feed(HttpMessageParser& p, std::string_view input, std::size_t slice, bool* failed = nullptr) {
  std::size_t at = 0;
  while (at < input.size() && !p.done()) {
    std::size_t size = std::min(slice, input.size() - at);
    auto n = p.consume(as_bytes(input.substr(at, size)));
    if (!n) {
      if (failed) *failed = true;
      return "";
    }
    at += *n;
    if (*n < size) break;
  }
  return std::string(input.substr(at));
}

TEST(HttpHead, RequestInAnySliceKeepsTheRest) {
  std::string text = "POST /derp HTTP/1.1\r\nHost: a:8443\r\nuPGRADE:  DERP \r\nConnection: keep-alive, Upgrade\r\nX:\r\n\r\n";
  for (std::size_t slice : {std::size_t{1}, std::size_t{7}, text.size() + 4}) {
    HttpMessageParser p(kReq);
    EXPECT_EQ(feed(p, text + "\x01rest", slice), "\x01rest");
    ASSERT_TRUE(p.done());
    EXPECT_EQ(p.head().method(), "POST");
    EXPECT_EQ(p.head().target(), "/derp");
    EXPECT_EQ(p.head().header("upgrade"), "DERP");
    EXPECT_EQ(p.head().header("x"), "");
    EXPECT_FALSE(p.head().header("y"));
    EXPECT_TRUE(p.head().header_has_token("Connection", "upgrade"));
    EXPECT_FALSE(p.head().header_has_token("Connection", "up"));
    EXPECT_EQ(p.head().header_count(), 4u);
    EXPECT_EQ(p.head().header_at(0).value, "a:8443");
  }
}

TEST(HttpHead, MovedParserKeepsItsViews) {
  HttpHeadParser a(kReq);
  ASSERT_TRUE(a.consume(as_bytes("GET / HTTP/1.1\r\nA: b\r\n\r\n")));
  HttpHeadParser b = std::move(a);
  EXPECT_EQ(b.header("a"), "b");
  EXPECT_EQ(b.method(), "GET");
}

TEST(HttpHead, StatusLines) {
  for (auto [text, status, reason] : {std::tuple{"HTTP/1.1 200 OK\r\n\r\n", 200, "OK"}, {"HTTP/1.1 101 Switching Protocols\r\n\r\n", 101, "Switching Protocols"},
                                      {"HTTP/1.0 404 \r\n\r\n", 404, ""}, {"HTTP/1.1 500\r\n\r\n", 500, ""}}) {
    HttpHeadParser p(kRes);
    ASSERT_TRUE(p.consume(as_bytes(text))) << text;
    ASSERT_TRUE(p.done());
    EXPECT_EQ(p.status(), status);
    EXPECT_EQ(p.reason(), reason);
  }
}

TEST(HttpHead, RejectsWhatTwoReadersCouldReadDifferently) {
  const char* bad_requests[] = {
      "GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
      "GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
      "GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\n",
      "GET / HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\n",
      "GET / HTTP/1.1\r\nContent-Length: 9999999999999999999\r\n\r\n",
      "GET / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
      "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
      "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
      "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
      "GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n",
      "GET / HTTP/1.1\r\nA : b\r\n\r\n",
      "GET / HTTP/1.1\r\n: b\r\n\r\n",
      "GET / HTTP/1.1\r\nA\r\n\r\n",
      "GET / HTTP/1.1\r\nA: b\rc\r\n\r\n",
      "GET / HTTP/1.1\r\nA: b\nB: c\r\n\r\n",
      "GET / HTTP/2.0\r\n\r\n",
      "GET /\r\n\r\n",
      "GET  HTTP/1.1\r\n\r\n",
      "GET / x HTTP/1.1\r\n\r\n",
      "\r\n\r\n",
      "\r\nGET / HTTP/1.1\r\n\r\n",
      "G(T / HTTP/1.1\r\n\r\n",
  };
  for (const char* text : bad_requests) EXPECT_FALSE(HttpHeadParser(kReq).consume(as_bytes(text)).ok()) << text;
  EXPECT_FALSE(HttpHeadParser(kReq).consume(as_bytes(std::string_view("GET / HTTP/1.1\r\nA: \0\r\n\r\n", 24))).ok());
  for (const char* text : {"HTTP/1.1 99 no\r\n\r\n", "HTTP/1.1 2000 OK\r\n\r\n", "HTTP/1.1\r\n\r\n", "HTTP/3 200 OK\r\n\r\n", "SSH-2.0-OpenSSH_9\r\n"})
    EXPECT_FALSE(HttpHeadParser(kRes).consume(as_bytes(text)).ok()) << text;
}

TEST(HttpHead, BareLineFeedsNeverEndAHead) {
  HttpHeadParser p(kReq);
  ASSERT_TRUE(p.consume(as_bytes("GET / HTTP/1.1\n\nGET / HTTP/1.1\n\n")));
  EXPECT_FALSE(p.done());
}

TEST(HttpHead, LimitsHold) {
  HttpHeadParser p(kReq);
  auto r = p.consume(as_bytes(std::string(8 * 1024 + 1, 'a')));
  ASSERT_FALSE(r.ok());
  EXPECT_EQ(r.error().code, ErrorCode::kLimit);
  std::string many = "GET / HTTP/1.1\r\n";
  for (int i = 0; i < 65; ++i) many += "a: b\r\n";
  EXPECT_FALSE(HttpHeadParser(kReq).consume(as_bytes(many + "\r\n")).ok());
  std::string exact = "GET / HTTP/1.1\r\nA: ";
  exact += std::string(8 * 1024 - exact.size() - 4, 'b') + "\r\n\r\n";
  EXPECT_TRUE(HttpHeadParser(kReq).consume(as_bytes(exact + "more")).ok());
}

TEST(HttpBody, LengthChunkedAndUntilClose) {
  struct Case {
    const char* text;
    const char* body;
    const char* rest;
  } cases[] = {
      {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhellomore", "hello", "more"},
      {"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nmore", "", "more"},
      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n5;x=y\r\nhello\r\nA\r\n, world...\r\n0\r\nT: v\r\n\r\nmore", "hello, world...", "more"},
      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nmore", "", "more"},
      {"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nmore", "", "more"},
      {"HTTP/1.1 101 Switching Protocols\r\n\r\nmore", "", "more"},
  };
  for (const Case& c : cases)
    for (std::size_t slice : {1u, 7u, 1000u}) {
      HttpMessageParser p(kRes);
      EXPECT_EQ(feed(p, c.text, slice), c.rest);
      ASSERT_TRUE(p.done()) << c.text;
      EXPECT_EQ(p.body(), c.body);
      EXPECT_TRUE(p.end_of_stream().ok());
    }
  HttpMessageParser until_close(kRes);
  feed(until_close, "HTTP/1.1 403 Forbidden\r\n\r\nno entry", 3);
  EXPECT_FALSE(until_close.done());
  EXPECT_EQ(until_close.body(), "no entry");
  EXPECT_TRUE(until_close.end_of_stream().ok());
  EXPECT_TRUE(until_close.done());
  HttpMessageParser head(kRes, {}, true);
  EXPECT_EQ(feed(head, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nnext", 9), "next");
  EXPECT_TRUE(head.done());
}

TEST(HttpBody, RejectsBrokenChunksShortBodiesAndBigOnes) {
  const std::string head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
  for (const char* body : {"g\r\n", "\r\n", "-1\r\n", "5\nhello", "5\r\nhello!", "5\r\nhello\rX", "10000000000000\r\n", "5 x\n", ";a\r\n"}) {
    bool failed = false;
    HttpMessageParser p(kRes);
    feed(p, head + body, 100, &failed);
    EXPECT_TRUE(failed) << body;
  }
  bool failed = false;
  HttpMessageParser cut(kRes);
  feed(cut, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell", 100);
  EXPECT_FALSE(cut.end_of_stream().ok());
  HttpLimits small;
  small.body_size_max = 4;
  for (const char* text : {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "HTTP/1.1 200 OK\r\n\r\nhello"}) {
    failed = false;
    HttpMessageParser big(kRes, small);
    feed(big, text, 100, &failed);
    EXPECT_TRUE(failed);
  }
  failed = false;
  HttpMessageParser endless(kRes);
  feed(endless, head + "0\r\n" + std::string(300, 't'), 100, &failed);
  EXPECT_TRUE(failed);
}

TEST(HttpEncode, RoundTripAndInjectionRefused) {
  ByteVector out;
  HttpHeader headers[] = {{"Host", "example.com:8443"}, {"Upgrade", "DERP"}};
  ASSERT_TRUE(encode_http_request_head(out, "GET", "/derp", headers).ok());
  EXPECT_EQ(as_text(out), "GET /derp HTTP/1.1\r\nHost: example.com:8443\r\nUpgrade: DERP\r\n\r\n");
  ByteVector kept = out;
  HttpHeader evil[] = {{"Host", "a\r\nX: y"}};
  EXPECT_FALSE(encode_http_request_head(out, "GET", "/", evil).ok());
  EXPECT_FALSE(encode_http_request_head(out, "GET", "/a b", {}).ok());
  EXPECT_FALSE(encode_http_request_head(out, "G T", "/", {}).ok());
  EXPECT_FALSE(encode_http_response_head(out, 200, "a\nb", {}).ok());
  EXPECT_EQ(out, kept);
  ByteVector answer = http_text_response(407, "Proxy Authentication Required", "password please\n", headers);
  HttpMessageParser p(kRes);
  feed(p, as_text(answer), 5);
  ASSERT_TRUE(p.done());
  EXPECT_EQ(p.head().status(), 407);
  EXPECT_EQ(p.body(), "password please\n");
  EXPECT_FALSE(p.head().keep_alive());
}

TEST(HttpRequest, WholeUrlsForOriginServers) {
  for (auto [target, wanted] : std::initializer_list<std::pair<std::string_view, std::string_view>>{
           {"/key?v=131", "/key?v=131"},
           {"https://remote.example:8443/key?v=131", "/key?v=131"},
           {"HTTP://[2001:db8::1]/", "/"},
           {"http://remote.example", "/"},
           {"/go?to=http://remote.example/key", "/go?to=http://remote.example/key"},
           {"ftp://remote.example/key", "ftp://remote.example/key"},
           {"remote.example:443", "remote.example:443"},
           {"*", "*"}}) {
    HttpHeadParser p(HttpKind::kRequest);
    ASSERT_TRUE(p.consume(as_bytes("GET " + std::string(target) + " HTTP/1.1\r\nHost: x\r\n\r\n")).ok()) << target;
    ASSERT_TRUE(p.done());
    EXPECT_EQ(p.target(), target);
    EXPECT_EQ(p.path_and_query(), wanted);
  }
}

TEST(HttpHostile, RandomAndFlippedBytesNeverConfuseSlicing) {
  SeededRng rng(11);
  const std::string seed = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nA: b\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
  for (int round = 0; round < 3000; ++round) {
    std::string text = seed;
    for (std::uint64_t k = rng.below(4); k > 0; --k) text[rng.below(text.size())] ^= static_cast<char>(1 << rng.below(8));
    if (rng.below(4) == 0) text.resize(rng.below(text.size()));
    HttpMessageParser whole(kRes), sliced(kRes);
    bool whole_failed = false, sliced_failed = false;
    std::string rest_whole = feed(whole, text, text.size() + 1, &whole_failed);
    std::string rest_sliced = feed(sliced, text, 1 + rng.below(9), &sliced_failed);
    EXPECT_EQ(whole.done(), sliced.done());
    if (whole.done()) {
      EXPECT_EQ(rest_whole, rest_sliced);
      EXPECT_EQ(whole.body(), sliced.body());
    } else if (!whole.head_done() || whole_failed) {
      EXPECT_EQ(whole_failed, sliced_failed);
    }
  }
}

}  // namespace
}  // namespace porthole::wire
