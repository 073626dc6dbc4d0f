#include "ts2021/h2.h"

#include <gtest/gtest.h>

#include <map>

#include "base/rng.h"
#include "ts2021/limits.h"

namespace porthole::ts2021 {
namespace {

// A client and a server with a pipe between them.
struct H2Pair {
  H2Client client{"control.example:443"};
  H2Server server;
  std::vector<H2ClientEvent> client_events;
  std::vector<H2ServerEvent> server_events;
  std::size_t slice = 4077;
  Status client_status, server_status;

  // One way; returns whether anything moved.
  template <typename From, typename To>
  bool move(From& from, To& to, Status& status) {
    ByteVector buffer(slice);
    std::size_t n = from.produce(buffer);
    if (n == 0) return false;
    status = to.consume(Bytes(buffer).first(n));
    return status.ok();
  }
  void run() {
    for (bool moved = true; moved;) {
      moved = move(client, server, server_status);
      while (auto e = server.poll_event()) server_events.push_back(std::move(*e));
      moved = move(server, client, client_status) || moved;
      while (auto e = client.poll_event()) client_events.push_back(std::move(*e));
    }
  }
  template <typename E, typename Events>
  std::vector<E> take(Events& events) {
    std::vector<E> out;
    for (auto& e : events) {
      if (auto* x = std::get_if<E>(&e)) out.push_back(*x);
    }
    std::erase_if(events, [](const auto& e) { return std::holds_alternative<E>(e); });
    return out;
  }
  std::string body(H2StreamId id) {
    std::string out;
    for (auto& e : client_events) {
      if (auto* d = std::get_if<H2Data>(&e); d != nullptr && d->stream == id) out += as_text(d->bytes);
    }
    return out;
  }
};

TEST(H2, RequestAndAnswer) {
  for (std::size_t slice : {1u, 7u, 4077u, 100000u}) {
    H2Pair p;
    p.slice = slice;
    auto id = p.client.submit("POST", "/machine/register", {{"ts-lb", "nodekey:00"}}, as_bytes("{\"Version\":1}"));
    ASSERT_TRUE(id.ok());
    p.run();
    auto requests = p.take<H2Request>(p.server_events);
    ASSERT_EQ(requests.size(), 1u);
    EXPECT_EQ(requests[0].method, "POST");
    EXPECT_EQ(requests[0].path, "/machine/register");
    EXPECT_EQ(find_header(requests[0].headers, "ts-lb"), "nodekey:00");
    EXPECT_EQ(find_header(requests[0].headers, "content-length"), "13");
    EXPECT_EQ(as_text(requests[0].body), "{\"Version\":1}");
    ASSERT_TRUE(p.server.respond(requests[0].stream, 200, {{"content-type", "application/json"}}, as_bytes("{}")));
    EXPECT_FALSE(p.server.respond(requests[0].stream, 200, {}, {}));  // once only
    p.run();
    auto answers = p.take<H2Response>(p.client_events);
    ASSERT_EQ(answers.size(), 1u);
    EXPECT_EQ(answers[0].status, 200);
    EXPECT_EQ(find_header(answers[0].headers, "content-type"), "application/json");
    EXPECT_EQ(p.body(*id), "{}");
    auto closed = p.take<H2Closed>(p.client_events);
    ASSERT_EQ(closed.size(), 1u);
    EXPECT_EQ(closed[0].error_code, kH2NoError);
    EXPECT_EQ(p.take<H2StreamEnded>(p.server_events).size(), 1u);
    EXPECT_FALSE(p.server.respond(requests[0].stream, 200, {}, {}));
  }
}

TEST(H2, EndlessStreamBesideOthers) {
  H2Pair p;
  auto map = p.client.submit("POST", "/machine/map", {}, as_bytes("stream"));
  p.run();
  auto map_request = p.take<H2Request>(p.server_events);
  ASSERT_EQ(map_request.size(), 1u);
  ASSERT_TRUE(p.server.respond_streaming(map_request[0].stream, 200, {}));
  p.run();
  EXPECT_EQ(p.take<H2Response>(p.client_events).size(), 1u);  // headers before any data

  std::string sent;
  SeededRng rng(1);
  for (int i = 0; i < 40; ++i) {  // far beyond every default window
    std::string piece(1'000'000, static_cast<char>('a' + i % 26));
    ASSERT_TRUE(p.server.send_data(map_request[0].stream, as_bytes(piece)));
    sent += piece;
    auto lite = p.client.submit("POST", "/machine/map", {}, as_bytes("lite"));
    p.run();
    for (auto& r : p.take<H2Request>(p.server_events)) ASSERT_TRUE(p.server.respond(r.stream, 200, {}, {}));
    p.run();
    auto answers = p.take<H2Response>(p.client_events);
    ASSERT_EQ(answers.size(), 1u);
    EXPECT_EQ(answers[0].stream, *lite);
  }
  EXPECT_EQ(p.body(*map), sent);
  EXPECT_EQ(p.server.queued(map_request[0].stream), 0u);
  p.server.end(map_request[0].stream);
  p.take<H2Closed>(p.client_events);
  p.run();
  auto closed = p.take<H2Closed>(p.client_events);
  ASSERT_EQ(closed.size(), 1u);
  EXPECT_EQ(closed[0].stream, *map);
}

TEST(H2, CancelReachesTheServerAndSilencesTheStream) {
  H2Pair p;
  auto id = p.client.submit("POST", "/machine/map", {}, {});
  p.run();
  auto requests = p.take<H2Request>(p.server_events);
  ASSERT_EQ(requests.size(), 1u);
  p.server.respond_streaming(requests[0].stream, 200, {});
  p.server.send_data(requests[0].stream, as_bytes("late"));
  p.client.cancel(*id);
  p.run();
  EXPECT_TRUE(p.client_events.empty());
  auto ended = p.take<H2StreamEnded>(p.server_events);
  ASSERT_EQ(ended.size(), 1u);
  EXPECT_EQ(ended[0].error_code, kH2Cancel);
  EXPECT_FALSE(p.server.send_data(requests[0].stream, as_bytes("x")));
  EXPECT_TRUE(p.client.submit("GET", "/", {}, {}).ok());
}

TEST(H2, PingIsAnswered) {
  H2Pair p;
  p.run();
  p.client.ping();
  p.run();
  EXPECT_EQ(p.take<H2Pong>(p.client_events).size(), 1u);
}

TEST(H2, GoAwayStopsNewRequests) {
  H2Pair p;
  auto id = p.client.submit("POST", "/x", {}, {});
  p.run();
  p.server.go_away();
  p.run();
  auto away = p.take<H2GoAway>(p.client_events);
  ASSERT_EQ(away.size(), 1u);
  EXPECT_EQ(away[0].last_stream, *id);
  EXPECT_FALSE(p.client.submit("POST", "/y", {}, {}).ok());
  auto requests = p.take<H2Request>(p.server_events);
  p.server.respond(requests[0].stream, 200, {}, as_bytes("still"));
  ByteVector buffer(4096);
  std::size_t n = p.server.produce(buffer);
  (void)p.client.consume(Bytes(buffer).first(n));  // the session may now count as over
  std::string text;
  while (auto e = p.client.poll_event()) {
    if (auto* d = std::get_if<H2Data>(&*e)) text += as_text(d->bytes);
  }
  EXPECT_EQ(text, "still");
}

TEST(H2, LargeBodiesAreRefused) {
  H2Pair p;
  ByteVector fits(kRequestBodySizeMax, 'x'), too_large(kRequestBodySizeMax + 1, 'x');
  ASSERT_TRUE(p.client.submit("POST", "/fits", {}, fits).ok());
  auto id = p.client.submit("POST", "/large", {}, too_large);
  p.run();
  auto requests = p.take<H2Request>(p.server_events);
  ASSERT_EQ(requests.size(), 1u);
  EXPECT_EQ(requests[0].body.size(), kRequestBodySizeMax);
  auto answers = p.take<H2Response>(p.client_events);
  ASSERT_EQ(answers.size(), 1u);
  EXPECT_EQ(answers[0].stream, *id);
  EXPECT_EQ(answers[0].status, 413);
}

TEST(H2, LongHeaderListsAreRefused) {
  H2Pair p;
  Headers many;
  for (int i = 0; i < 200; ++i) many.push_back({"x-" + std::to_string(i), "y"});
  ASSERT_TRUE(p.client.submit("GET", "/", many, {}).ok());
  ASSERT_TRUE(p.client.submit("GET", "/ok", {}, {}).ok());
  p.run();
  auto requests = p.take<H2Request>(p.server_events);
  ASSERT_EQ(requests.size(), 1u);
  EXPECT_EQ(requests[0].path, "/ok");
  EXPECT_EQ(p.take<H2Closed>(p.client_events).size(), 1u);
}

TEST(H2, RapidResetsEndTheSession) {
  H2Pair p;
  p.run();
  for (int i = 0; i < 1000 && p.server_status.ok(); ++i) {
    auto id = p.client.submit("POST", "/x", {}, {});
    p.run();
    p.client.cancel(*id);
    p.run();
    p.server_events.clear();
  }
  EXPECT_FALSE(p.server_status.ok());
}

TEST(H2, QueueOfOneStreamIsBounded) {
  H2Pair p;
  ASSERT_TRUE(p.client.submit("POST", "/x", {}, {}).ok());
  p.run();
  auto requests = p.take<H2Request>(p.server_events);
  p.server.respond_streaming(requests[0].stream, 200, {});
  ByteVector piece(kServerStreamQueueSizeMax / 2, 0);
  EXPECT_TRUE(p.server.send_data(requests[0].stream, piece));
  EXPECT_TRUE(p.server.send_data(requests[0].stream, piece));
  EXPECT_FALSE(p.server.send_data(requests[0].stream, as_bytes("xx")));
}

TEST(H2, GarbageEndsTheSession) {
  H2Server server;
  EXPECT_FALSE(server.consume(as_bytes("GET / HTTP/1.1\r\nHost: x\r\n\r\n")).ok());
  H2Client client("x");
  (void)client.consume(as_bytes("HTTP/1.1 400 Bad Request\r\n\r\n")).ok();
  ByteVector goodbye(4096);
  EXPECT_GT(client.produce(goodbye), 0u);
  EXPECT_TRUE(client.finished());
  // Bit flips of a real exchange.
  H2Pair p;
  auto id = p.client.submit("POST", "/x", {}, as_bytes("hello"));
  ASSERT_TRUE(id.ok());
  ByteVector recorded(10000);
  recorded.resize(p.client.produce(recorded));
  for (std::size_t bit = 0; bit < recorded.size() * 8; ++bit) {
    ByteVector bad = recorded;
    bad[bit / 8] ^= static_cast<std::uint8_t>(1 << (bit % 8));
    H2Server s;
    (void)s.consume(bad).ok();
    ByteVector out(10000);
    s.produce(out);
  }
}

}  // namespace
}  // namespace porthole::ts2021
