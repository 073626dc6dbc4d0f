#include "derp/latency_probe.h"

#include <gtest/gtest.h>

#include "base/rng.h"
#include "derp/limits.h"

namespace porthole::derp {
namespace {

constexpr StreamId kFirst = 500;

ts2021::RelayNode node(std::string host, int port = 0) {
  ts2021::RelayNode n;
  n.host_name = std::move(host);
  n.derp_port = port;
  return n;
}

struct Probing {
  LatencyProbe probe{kFirst, false};
  Instant now = Instant::from_ns(1'000'000'000);
  ts2021::RelayMap map;
  std::map<StreamId, OpenStream> open;
  std::vector<StreamId> closed;
  std::vector<MeasuredLatency> results;

  Probing() {
    for (int id : {1, 2}) {
      ts2021::RelayRegion region;
      region.region_id = id;
      std::string n = std::to_string(id);
      region.nodes = {node("a" + n + ".example", 8443), node("b" + n + ".example")};
      region.nodes.insert(region.nodes.begin(), node("stun" + n + ".example"));
      region.nodes[0].stun_only = true;
      map.regions[id] = region;
    }
    probe.set_map(map);
  }
  void poll() {
    while (auto action = probe.poll_action()) {
      if (auto* o = std::get_if<OpenStream>(&*action)) open[o->id] = *o;
      if (auto* c = std::get_if<CloseStream>(&*action)) {
        closed.push_back(c->id);
        open.erase(c->id);
      }
    }
    while (auto r = probe.poll_result()) results.push_back(*r);
  }
  void start(std::vector<int> regions) {
    probe.start(now, regions);
    poll();
  }
  StreamId to(std::string_view host) {
    for (const auto& [id, o] : open)
      if (o.host == host) return id;
    return 0;
  }
  std::string connect(StreamId id) {
    StreamInfo info;
    info.remote = *Endpoint::parse("192.0.2.7:443");
    probe.stream_opened(now, id, info);
    ByteVector out(4096);
    out.resize(probe.produce(now, id, out));
    EXPECT_FALSE(probe.has_output(id));
    return std::string(as_text(out));
  }
  void feed(StreamId id, std::string_view text, std::size_t slice = 4096) {
    ByteVector copy = to_vector(as_bytes(text));
    for (std::size_t at = 0; at < copy.size(); at += slice) {
      MutBytes part = MutBytes(copy).subspan(at);
      part = part.first(std::min(slice, part.size()));
      EXPECT_EQ(probe.consume(now, id, part).value(), part.size());
    }
    poll();
  }
};

constexpr std::string_view kGood = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

TEST(LatencyProbe, TimesTheRequestOnly) {
  for (std::size_t slice : {1u, 5u, 4096u}) {
    Probing s;
    s.start({1, 2});
    ASSERT_EQ(s.open.size(), 2u);
    StreamId one = s.to("a1.example"), two = s.to("a2.example");
    EXPECT_GE(one, kFirst);
    EXPECT_EQ(s.open[one].port, 8443);
    EXPECT_EQ(s.open[one].tls, TlsMode::kVerify);
    s.now = s.now + 700ms;   // a slow way to connect says nothing
    EXPECT_EQ(s.connect(one), "GET /derp/latency-check HTTP/1.1\r\nHost: a1.example:8443\r\nUser-Agent: porthole\r\nConnection: close\r\n\r\n");
    s.connect(two);
    s.now = s.now + 30ms;
    s.feed(two, kGood, slice);
    s.now = s.now + 20ms;
    s.feed(one, kGood, slice);
    ASSERT_EQ(s.results.size(), 2u);
    EXPECT_EQ(s.results[0].region, 2);
    EXPECT_EQ(s.results[0].took, 30ms);
    EXPECT_EQ(s.results[1].took, 50ms);
    EXPECT_TRUE(s.results[1].remote.is_v4());
    EXPECT_TRUE(s.open.empty());
    EXPECT_TRUE(s.probe.next_timeout().is_never());
  }
}

TEST(LatencyProbe, GoesToTheNextNodeAndSaysWhenThereIsNone) {
  Probing s;
  s.start({1, 2, 77});
  ASSERT_EQ(s.results.size(), 1u);   // not in the map
  EXPECT_EQ(s.results[0].region, 77);
  EXPECT_FALSE(s.results[0].took);
  StreamId first = s.to("a1.example");
  s.probe.stream_failed(s.now, first);
  s.open.erase(first);
  s.poll();
  StreamId second = s.to("b1.example");
  s.connect(second);
  s.now = s.now + 10ms;
  s.feed(second, kGood);
  EXPECT_EQ(s.results.at(1).took, 10ms);
  // A portal, an answer that is no HTTP, a close: none is the relay.
  StreamId a2 = s.to("a2.example");
  s.connect(a2);
  s.feed(a2, "HTTP/1.1 302 Found\r\nLocation: http://portal.example/\r\nContent-Length: 0\r\n\r\n");
  StreamId b2 = s.to("b2.example");
  ASSERT_NE(b2, 0u);
  s.connect(b2);
  s.feed(b2, "SSH-2.0-x\r\n\r\n");
  ASSERT_EQ(s.results.size(), 3u);
  EXPECT_EQ(s.results[2].region, 2);
  EXPECT_FALSE(s.results[2].took);
  EXPECT_TRUE(s.open.empty()) << s.open.begin()->second.host;
}

TEST(LatencyProbe, EndsInTime) {
  Probing s;
  const Instant began = s.now;
  s.start({1, 2});
  s.connect(s.to("a2.example"));   // and never answers
  while (!s.probe.next_timeout().is_never()) {
    s.now = s.probe.next_timeout().latest;
    s.probe.handle_timeout(s.now);
    s.poll();
  }
  EXPECT_EQ(s.now - began, kLatencyProbeTime);
  EXPECT_EQ(s.results.size(), 2u);
  EXPECT_EQ(s.closed.size(), 4u);
  EXPECT_TRUE(s.open.empty());
}

TEST(LatencyProbe, ANewRunOrMapDropsTheOldOne) {
  Probing s;
  s.start({1});
  StreamId old = s.to("a1.example");
  s.start({1});
  EXPECT_EQ(s.closed, std::vector{old});
  StreamInfo info;
  s.probe.stream_opened(s.now, old, info);
  EXPECT_FALSE(s.probe.has_output(old));
  s.feed(old, kGood);
  s.probe.stream_closed(s.now, old);
  s.poll();
  EXPECT_TRUE(s.results.empty());
  s.probe.set_map({});
  s.poll();
  EXPECT_TRUE(s.open.empty());
  s.start({1});
  EXPECT_EQ(s.results.size(), 1u);
}

TEST(LatencyProbe, AnswerBeforeTheQuestionAndNoiseAreHarmless) {
  Probing s;
  s.start({1});
  StreamId id = s.to("a1.example");
  s.feed(id, kGood);   // not connected yet
  StreamInfo info;
  s.probe.stream_opened(s.now, id, info);
  s.feed(id, kGood);   // nothing was asked
  EXPECT_TRUE(s.results.empty());
  EXPECT_EQ(s.to("a1.example"), 0u);
  SeededRng rng(3);
  for (int round = 0; round < 2000; ++round) {
    Probing t;
    t.start({1});
    StreamId n = t.to("a1.example");
    t.connect(n);
    std::string text(kGood);
    for (int flips = 0; flips < 3; ++flips) text[rng.below(text.size())] = static_cast<char>(rng.below(256));
    t.feed(n, std::string_view(text).substr(0, rng.below(text.size() + 1)));
    for (int i = 0; i < 10 && !t.probe.next_timeout().is_never(); ++i) {
      t.now = t.probe.next_timeout().latest;
      t.probe.handle_timeout(t.now);
      t.poll();
    }
    ASSERT_EQ(t.results.size(), 1u);
    ASSERT_TRUE(t.open.empty());
  }
}

}  // namespace
}  // namespace porthole::derp
