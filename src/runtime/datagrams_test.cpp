// UDP of the netstack, joined with sockets of this host. Two netstacks, wired to each other; the sockets are real.
#include "runtime/datagrams.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <set>

#include "netstack/link_harness.h"
#include "proxy/limits.h"
#include "runtime/clock.h"
#include "runtime/sockaddr.h"
#include "runtime/socks_udp.h"

namespace porthole::runtime {
namespace {

using netstack::SocketId;
using netstack::Stack;
using netstack::harness::kA4;
using netstack::harness::kA6;
using netstack::harness::kB4;
using netstack::harness::kB6;

// The loop under test belongs to stack a; b is the rest of the tailnet.
class Datagrams : public ::testing::Test {
 protected:
  Datagrams() : rng_a_(1), rng_b_(2), a(config(), rng_a_), b({}, rng_b_), scratch_(64 * 1024) {
    IpAddress own_a[] = {kA4, kA6}, own_b[] = {kB4, kB6};
    a.set_addresses(own_a);
    b.set_addresses(own_b);
    now = clock_now().now;
  }
  static netstack::StackConfig config() {
    netstack::StackConfig c;
    c.udp_receive_buffer = 64 << 10;
    return c;
  }

  // Descriptors and packets until nothing moves.
  void turn() {
    for (int quiet = 0; quiet < 3;) {
      loop.wait(now, now);
      loop.dispatch();
      bool moved = carry(a, b, way_open) | carry(b, a, true);
      while (auto e = a.poll_event()) {
        moved = true;
        if (auto u = users.find(e->id); u != users.end()) u->second->handle_event(*e);
        if (auto f = flows.find(e->id); f != flows.end()) f->second->handle_event(*e);
      }
      while (auto e = b.poll_event()) moved = true;
      for (auto& [id, u] : users)
        if (u->next_timeout() <= now) u->handle_timeout();
      quiet = moved ? 0 : quiet + 1;
    }
  }
  bool carry(Stack& from, Stack& to, bool open) {
    netstack::harness::VectorSink sink(open ? 64 : 0);
    from.produce(now, sink);
    std::vector<MutBytes> batch;
    for (auto& p : sink.packets) batch.emplace_back(p);
    if (!batch.empty()) to.handle_packets(now, batch);
    return !batch.empty();
  }

  // The app's end.
  UniqueFd join(SocketId socket, std::optional<Endpoint> remote) {
    auto pair = datagram_pair();
    EXPECT_TRUE(pair.ok());
    users[socket] = std::make_shared<AppDatagrams>(loop, a, socket, std::move(pair->first), remote, scratch_, now, counters,
                                                   [this] { ++done; });
    return std::move(pair->second);
  }
  std::shared_ptr<UdpForwarder> forward(SocketId socket, const Endpoint& service, int sources_max) {
    auto f = std::make_shared<UdpForwarder>(loop, a, socket, service, sources_max, scratch_, now, counters);
    users[socket] = f;
    return f;
  }
  static std::string take(int fd) {
    char block[70000];
    ssize_t n = ::recv(fd, block, sizeof block, MSG_DONTWAIT);
    return n < 0 ? "-" : std::string(block, static_cast<std::size_t>(n));
  }
  static bool put(int fd, const std::string& text) {
    return ::send(fd, text.data(), text.size(), MSG_DONTWAIT | MSG_NOSIGNAL) == static_cast<ssize_t>(text.size());
  }
  std::string at_b(SocketId socket, Endpoint* from = nullptr) {
    auto d = b.udp_receive(socket);
    if (!d) return "-";
    if (from) *from = d->source;
    return std::string(d->data.begin(), d->data.end());
  }

  SeededRng rng_a_, rng_b_;
  Stack a, b;
  EventLoop loop;
  ByteVector scratch_;
  Instant now;
  DatagramCounters counters;
  std::map<SocketId, std::shared_ptr<UdpUser>> users;
  std::map<SocketId, SocksUdp*> flows;
  int done = 0;
  bool way_open = true;
};

UniqueFd local_udp(std::uint16_t& port, bool v6 = false) {
  UniqueFd fd(::socket(v6 ? AF_INET6 : AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  SockAddr at = to_sockaddr({v6 ? *IpAddress::parse("::1") : IpAddress::v4(127, 0, 0, 1), 0});
  EXPECT_EQ(::bind(fd.get(), at.get(), at.size), 0);
  port = local_endpoint(fd.get()).port;
  return fd;
}

TEST_F(Datagrams, DialledSocketKeepsDatagramsApartBothWays) {
  for (const IpAddress& to : {kB4, kB6}) {
    SocketId far = *b.udp_bind(std::nullopt, 53);
    UniqueFd app = join(*a.udp_bind(std::nullopt, 0), Endpoint{to, 53});
    ASSERT_TRUE(put(app.get(), "one") && put(app.get(), "") && put(app.get(), "three"));
    turn();
    Endpoint from;
    EXPECT_EQ(at_b(far, &from), "one");
    EXPECT_EQ(from.address, to.is_v4() ? kA4 : kA6);
    EXPECT_EQ(at_b(far), "");
    EXPECT_EQ(at_b(far), "three");
    EXPECT_EQ(at_b(far), "-");
    for (std::string answer : {"A", "", "CC"}) EXPECT_TRUE(b.udp_send(now, far, from, as_bytes(answer)));
    // Somebody else than the dialled peer.
    SocketId other = *b.udp_bind(std::nullopt, 54);
    EXPECT_TRUE(b.udp_send(now, other, from, as_bytes(std::string("forged"))));
    turn();
    EXPECT_EQ(take(app.get()), "A");
    EXPECT_EQ(take(app.get()), "CC") << "an empty one would read as the end";
    EXPECT_EQ(take(app.get()), "-");
    EXPECT_EQ(counters.empty, 1u);
    EXPECT_EQ(counters.other_source, 1u);
    b.udp_close(far);
    b.udp_close(other);
    counters = {};
  }
}

TEST_F(Datagrams, TheLongestFitsAndLongerOnesAreCounted) {
  struct { IpAddress to; std::size_t most; } cases[] = {{kB4, kDatagramMaxV4}, {kB6, kDatagramMaxV6}};
  SocketId far = *b.udp_bind(std::nullopt, 53);
  for (auto& c : cases) {
    counters = {};
    UniqueFd app = join(*a.udp_bind(std::nullopt, 0), Endpoint{c.to, 53});
    for (std::size_t size : {c.most, c.most + 1, std::size_t{65000}, std::size_t{70000}}) ASSERT_TRUE(put(app.get(), std::string(size, 'x')));
    turn();
    EXPECT_EQ(at_b(far).size(), c.most);
    EXPECT_EQ(at_b(far), "-");
    EXPECT_EQ(counters.from_app, 1u);
    EXPECT_EQ(counters.too_long, 3u);
  }
}

TEST_F(Datagrams, AClosedEndFreesTheSocketAndWhatWasSentBeforeStillLeaves) {
  SocketId far = *b.udp_bind(std::nullopt, 53);
  SocketId near = *a.udp_bind(std::nullopt, 7000);
  {
    UniqueFd app = join(near, Endpoint{kB4, 53});
    for (int i = 0; i < 80; ++i) ASSERT_TRUE(put(app.get(), std::to_string(i)));
  }
  turn();
  EXPECT_EQ(done, 1);
  for (int i = 0; i < 80; ++i) ASSERT_EQ(at_b(far), std::to_string(i));
  EXPECT_EQ(a.memory().udp_sockets, 0u);
  EXPECT_TRUE(a.udp_bind(std::nullopt, 7000).ok()) << "the port is free again";
}

TEST_F(Datagrams, AHalfClosedEndStillReceivesAndDoesNotSpin) {
  SocketId far = *b.udp_bind(std::nullopt, 53);
  UniqueFd app = join(*a.udp_bind(std::nullopt, 0), Endpoint{kB4, 53});
  ASSERT_TRUE(put(app.get(), "last"));
  ::shutdown(app.get(), SHUT_WR);
  turn();
  Endpoint from;
  EXPECT_EQ(at_b(far, &from), "last");
  EXPECT_EQ(at_b(far), "-") << "the end is no datagram";
  EXPECT_EQ(done, 0);
  EXPECT_TRUE(b.udp_send(now, far, from, as_bytes(std::string("answer"))));
  turn();
  EXPECT_EQ(take(app.get()), "answer");
  // Nothing is ready any more: this waits for its whole time.
  loop.wait(now, now);
  auto start = clock_now().now;
  loop.wait(start, start + 20ms);
  EXPECT_GE(clock_now().now - start, 15ms);
}

TEST_F(Datagrams, ASlowReaderLosesDatagramsAndNoMemory) {
  SocketId far = *b.udp_bind(std::nullopt, 53);
  UniqueFd app = join(*a.udp_bind(std::nullopt, 7000), Endpoint{kB4, 53});
  std::string full(1200, 'x');
  constexpr int kSent = 4000;
  for (int i = 0; i < kSent; ++i) {
    std::string text = std::to_string(i);
    full.replace(0, text.size(), text);
    if (!b.udp_send(now, far, {kA4, 7000}, as_bytes(full))) --i;
    if (i % 50 == 0) turn();
  }
  turn();
  EXPECT_LE(a.memory().buffers, std::size_t{128} << 10);
  std::uint64_t lost = a.counters().drop(netstack::Drop::kUdpQueueFull);
  EXPECT_GT(lost, 0u);
  int got = 0;
  for (int tries = 0; tries < 100; ++tries) {
    while (take(app.get()).size() == full.size()) ++got;
    turn();
  }
  EXPECT_EQ(static_cast<std::uint64_t>(got) + lost, kSent) << "what did not arrive was counted";
  // And it is as good as new.
  EXPECT_TRUE(b.udp_send(now, far, {kA4, 7000}, as_bytes(std::string("again"))));
  turn();
  EXPECT_EQ(take(app.get()), "again");
}

TEST_F(Datagrams, AFullWayOutMakesTheAppWaitAndNothingWaitsForEver) {
  SocketId far = *b.udp_bind(std::nullopt, 53);
  UniqueFd app = join(*a.udp_bind(std::nullopt, 0), Endpoint{kB4, 53});
  way_open = false;
  std::string full(1200, 'x');
  int sent = 0;
  for (int tries = 0; tries < 50; ++tries) {
    while (put(app.get(), full)) ++sent;
    turn();
  }
  EXPECT_EQ(errno, EAGAIN) << "the app sees that it is too fast";
  EXPECT_GT(sent, 400);
  EXPECT_EQ(counters.way_full, 0u);
  way_open = true;
  turn();
  int got = 0;
  while (at_b(far) == full) ++got;
  EXPECT_GT(got, 200);
  // Stuck for longer than a datagram is worth: one goes, time after time.
  way_open = false;
  for (int tries = 0; tries < 50; ++tries) {
    while (put(app.get(), full)) {}
    turn();
  }
  now = now + 2s;
  turn();
  EXPECT_GE(counters.way_full, 1u);
}

TEST_F(Datagrams, PacketsOfAnyPeerWithTheirAddress) {
  SocketId one = *b.udp_bind(std::nullopt, 53), two = *b.udp_bind(std::nullopt, 54);
  UniqueFd app = join(*a.udp_bind(std::nullopt, 7000), std::nullopt);
  std::uint8_t block[2000];
  auto none = receive_packet(app.get(), 0, block);
  ASSERT_FALSE(none.ok());
  EXPECT_EQ(none.error().code, ErrorCode::kTimeout);
  EXPECT_TRUE(b.udp_send(now, one, {kA4, 7000}, as_bytes(std::string("v4"))));
  EXPECT_TRUE(b.udp_send(now, two, {kA6, 7000}, as_bytes(std::string("v6 is longer"))));
  EXPECT_TRUE(b.udp_send(now, two, {kA6, 7000}, {}));
  turn();
  auto first = receive_packet(app.get(), 0, block);
  ASSERT_TRUE(first.ok()) << first.error().message;
  EXPECT_EQ(first->peer, (Endpoint{kB4, 53}));
  EXPECT_EQ(as_text(Bytes(block).first(first->size)), "v4");
  auto second = receive_packet(app.get(), 0, MutBytes(block).first(4));
  ASSERT_TRUE(second.ok());
  EXPECT_EQ(second->peer, (Endpoint{kB6, 54}));
  EXPECT_EQ(as_text(Bytes(block).first(second->size)), "v6 i");
  auto third = receive_packet(app.get(), 0, block);
  ASSERT_TRUE(third.ok()) << "an empty datagram is one, too";
  EXPECT_EQ(third->size, 0u);
  EXPECT_TRUE(send_packet(app.get(), first->peer, as_bytes(std::string("to one"))));
  EXPECT_TRUE(send_packet(app.get(), second->peer, as_bytes(std::string("to two"))));
  EXPECT_TRUE(send_packet(app.get(), second->peer, {}));
  EXPECT_EQ(send_packet(app.get(), first->peer, ByteVector(kDatagramMaxV4 + 1)).error().code, ErrorCode::kLimit);
  EXPECT_EQ(send_packet(app.get(), second->peer, ByteVector(kDatagramMaxV6 + 1)).error().code, ErrorCode::kLimit);
  turn();
  Endpoint from;
  EXPECT_EQ(at_b(one, &from), "to one");
  EXPECT_EQ(from, (Endpoint{kA4, 7000}));
  EXPECT_EQ(at_b(two, &from), "to two");
  EXPECT_EQ(from, (Endpoint{kA6, 7000}));
  EXPECT_EQ(at_b(two), "");
  // What is no packet at all, or has no device's address.
  for (const std::string& bad : {std::string(), std::string("x"), std::string(19, '\0'), std::string(30, '\0'), std::string(30, '\5')})
    ASSERT_TRUE(put(app.get(), bad));
  for (const char* bad : {"127.0.0.1:9", "224.0.0.1:9", "100.64.0.1:9"}) EXPECT_TRUE(send_packet(app.get(), *Endpoint::parse(bad), {}));
  turn();
  EXPECT_EQ(counters.bad_head, 8u);
  users.clear();
  EXPECT_EQ(receive_packet(app.get(), -1, block).error().code, ErrorCode::kCancelled);
  EXPECT_EQ(send_packet(app.get(), first->peer, {}).error().code, ErrorCode::kCancelled);
}

TEST_F(Datagrams, ExposedServiceAnswersTheRightSource) {
  for (bool v6 : {false, true}) {
    std::uint16_t port = 0;
    UniqueFd service = local_udp(port, v6);
    SocketId exposed = *a.udp_bind(std::nullopt, v6 ? 5354 : 5353);
    auto f = forward(exposed, local_endpoint(service.get()), 16);
    SocketId ends[] = {*b.udp_bind(std::nullopt, 0), *b.udp_bind(std::nullopt, 0), *b.udp_bind(std::nullopt, 0)};
    const IpAddress& to = v6 ? kA6 : kA4;
    Endpoint at{to, a.local(exposed).port};
    for (int round = 0; round < 2; ++round)
      for (int i = 0; i < 3; ++i) EXPECT_TRUE(b.udp_send(now, ends[i], at, as_bytes("hello " + std::to_string(i))));
    turn();
    std::map<std::uint16_t, std::string> seen;
    for (int i = 0; i < 6; ++i) {
      char block[100];
      SockAddr from;
      from.size = sizeof from.storage;
      ssize_t n = ::recvfrom(service.get(), block, sizeof block, MSG_DONTWAIT, from.get(), &from.size);
      ASSERT_GT(n, 0);
      std::string text(block, static_cast<std::size_t>(n));
      std::uint16_t source = from_sockaddr(from.storage).port;
      EXPECT_TRUE(seen[source].empty() || seen[source] == text) << "one local port is one source";
      seen[source] = text;
      auto who = f->source_of(source);
      ASSERT_TRUE(who);
      EXPECT_EQ(who->port, b.local(ends[text.back() - '0']).port);
      std::string answer = "answer to " + text;
      ::sendto(service.get(), answer.data(), answer.size(), 0, from.get(), from.size);
    }
    EXPECT_EQ(seen.size(), 3u);
    EXPECT_EQ(f->sources(), 3u);
    EXPECT_FALSE(f->source_of(1));
    turn();
    for (int i = 0; i < 3; ++i) {
      Endpoint from;
      EXPECT_EQ(at_b(ends[i], &from), "answer to hello " + std::to_string(i));
      EXPECT_EQ(from, at) << "from the address that was asked";
      b.udp_close(ends[i]);
    }
  }
}

TEST_F(Datagrams, SourcesAreForgottenWhenIdleAndTheQuietestMakesRoom) {
  std::uint16_t port = 0;
  UniqueFd service = local_udp(port);
  SocketId exposed = *a.udp_bind(std::nullopt, 5353);
  auto f = forward(exposed, {IpAddress::v4(127, 0, 0, 1), port}, 8);  // 2 an address
  auto say = [&](const IpAddress& from, SocketId id) {
    EXPECT_TRUE(b.udp_send_from(now, id, from, {from.is_v4() ? kA4 : kA6, 5353}, as_bytes(std::string("x"))));
    turn();
  };
  auto count_known = [&](SocketId id, const IpAddress& from) {
    int n = 0;
    for (unsigned p = 1; p < 65536; ++p)
      if (auto s = f->source_of(static_cast<std::uint16_t>(p)); s && s->port == b.local(id).port && s->address == from) ++n;
    return n;
  };
  SocketId one = *b.udp_bind(std::nullopt, 0), two = *b.udp_bind(std::nullopt, 0), three = *b.udp_bind(std::nullopt, 0);
  say(kB4, one);
  say(kB4, two);
  say(kB6, one);
  now = now + 1s;
  say(kB4, one);
  EXPECT_EQ(f->sources(), 3u);
  say(kB4, three);
  EXPECT_EQ(f->sources(), 3u) << "a quarter each";
  EXPECT_EQ(count_known(two, kB4), 0) << "the one that was quiet longest made room";
  EXPECT_EQ(count_known(one, kB4), 1);
  EXPECT_EQ(count_known(one, kB6), 1) << "another address does not pay for it";
  now = now + kUdpSourceIdle - 1s;
  say(kB4, one);
  EXPECT_EQ(f->sources(), 2u) << "the IPv6 source is gone";
  EXPECT_EQ(f->next_timeout(), now + 1s);
  now = now + kUdpSourceIdle;
  turn();
  EXPECT_EQ(f->sources(), 0u);
  EXPECT_EQ(f->next_timeout(), Instant::max());
}

TEST_F(Datagrams, AServiceThatIsAwayIsCountedAndWorksWhenItIsBack) {
  std::uint16_t port = 0;
  local_udp(port).reset();
  SocketId exposed = *a.udp_bind(std::nullopt, 5353);
  forward(exposed, {IpAddress::v4(127, 0, 0, 1), port}, 8);
  SocketId far = *b.udp_bind(std::nullopt, 0);
  for (int i = 0; i < 5; ++i) {
    EXPECT_TRUE(b.udp_send(now, far, {kA4, 5353}, as_bytes(std::string("x"))));
    turn();
  }
  UniqueFd back(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  SockAddr at = to_sockaddr({IpAddress::v4(127, 0, 0, 1), port});
  ASSERT_EQ(::bind(back.get(), at.get(), at.size), 0);
  EXPECT_TRUE(b.udp_send(now, far, {kA4, 5353}, as_bytes(std::string("now"))));
  turn();
  EXPECT_EQ(take(back.get()), "now");
}

// A program of this host and its association; "b" is the other stack, by both of its addresses.
class SocksDatagrams : public Datagrams {
 protected:
  std::unique_ptr<SocksUdp> associate(const IpAddress& at) {
    auto made = std::make_shared<SocksUdp*>(nullptr);
    SocksUdp::Hooks hooks;
    hooks.find = [](const std::string& host) -> Result<IpAddress> {
      if (host == "b") return kB4;
      if (auto literal = IpAddress::parse(host); literal && (*literal == kB4 || *literal == kB6)) return *literal;
      return Error{ErrorCode::kNotFound, "nobody"};
    };
    hooks.opened = [this, made](SocketId id) { flows[id] = *made; };
    hooks.closed = [this](SocketId id) { flows.erase(id); };
    auto udp = SocksUdp::open(loop, a, at, at, std::move(hooks), scratch_, now, association);
    EXPECT_TRUE(udp.ok());
    *made = udp->get();
    return std::move(*udp);
  }
  static UniqueFd program(const Endpoint& to) {
    UniqueFd fd(::socket(to.address.is_v6() ? AF_INET6 : AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    SockAddr at = to_sockaddr(to);
    EXPECT_EQ(::connect(fd.get(), at.get(), at.size), 0);
    return fd;
  }
  static std::string head_of(const std::string& target) { return std::string("\0\0\0", 3) + target; }
  static std::string head_of(const Endpoint& target) {
    ByteVector port(2);
    store_be(port.data(), target.port);
    std::string out(1, target.address.is_v4() ? '\1' : '\4');
    return head_of(out.append(as_text(target.address.bytes())).append(as_text(port)));
  }
  proxy::AssociationCounters association;
};

const std::string kNameOfB("\3\1b\0\65", 5);  // port 53

TEST_F(SocksDatagrams, EachTargetIsAFlowAndItsAnswersCarryItsHead) {
  for (const IpAddress& at : {IpAddress::v4(127, 0, 0, 1), *IpAddress::parse("::1")}) {
    SocketId far = *b.udp_bind(std::nullopt, 53);
    auto socks = associate(at);
    EXPECT_EQ(socks->local().address, at);
    EXPECT_NE(socks->local().port, 0);
    UniqueFd app = program(socks->local());
    const std::string heads[] = {head_of(kNameOfB), head_of({kB4, 53}), head_of({kB6, 53})};
    std::set<std::uint16_t> ports;
    for (const std::string& head : heads) {
      ASSERT_TRUE(put(app.get(), head + "question"));
      turn();
      Endpoint from;
      EXPECT_EQ(at_b(far, &from), "question");
      ports.insert(from.port);
      EXPECT_EQ(from.address, &head == &heads[2] ? kA6 : kA4);
      EXPECT_TRUE(b.udp_send(now, far, from, as_bytes(std::string("answer"))));
      EXPECT_TRUE(b.udp_send(now, far, from, {}));
      // From another port of b: not from the target.
      SocketId other = *b.udp_bind(std::nullopt, 54);
      EXPECT_TRUE(b.udp_send(now, other, from, as_bytes(std::string("forged"))));
      b.udp_close(other);
      turn();
      EXPECT_EQ(take(app.get()), head + "answer");
      EXPECT_EQ(take(app.get()), head);
      EXPECT_EQ(take(app.get()), "-");
    }
    EXPECT_EQ(ports.size(), 3u);
    EXPECT_EQ(flows.size(), 3u);
    EXPECT_EQ(association.other_source, 3u);
    association = {};
    // Its end frees everything: here, on the tailnet, and the port of this host.
    Endpoint was = socks->local();
    socks.reset();
    EXPECT_TRUE(flows.empty());
    EXPECT_EQ(a.memory().udp_sockets, 0u);
    UniqueFd again(::socket(at.is_v6() ? AF_INET6 : AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    SockAddr same = to_sockaddr(was);
    EXPECT_EQ(::bind(again.get(), same.get(), same.size), 0);
    b.udp_close(far);
  }
}

TEST_F(SocksDatagrams, TheLongestPassAndTheRestIsDroppedAndCounted) {
  SocketId far = *b.udp_bind(std::nullopt, 53);
  auto socks = associate(IpAddress::v4(127, 0, 0, 1));
  UniqueFd app = program(socks->local()), other = program(socks->local());
  struct { IpAddress to; std::size_t most; } cases[] = {{kB4, kDatagramMaxV4}, {kB6, kDatagramMaxV6}};
  for (auto& c : cases) {
    std::string head = head_of({c.to, 53});
    for (std::size_t size : {c.most, c.most + 1, std::size_t{65507} - head.size()}) ASSERT_TRUE(put(app.get(), head + std::string(size, 'x')));
    turn();
    Endpoint from;
    EXPECT_EQ(at_b(far, &from).size(), c.most);
    EXPECT_EQ(at_b(far), "-");
    // And back.
    EXPECT_TRUE(b.udp_send(now, far, from, as_bytes(std::string(c.most, 'y'))));
    turn();
    EXPECT_EQ(take(app.get()), head + std::string(c.most, 'y'));
  }
  EXPECT_EQ(association.too_long, 4u);
  ASSERT_TRUE(put(other.get(), head_of(kNameOfB) + "x"));
  std::string fragment = head_of(kNameOfB) + "x";
  fragment[2] = 1;
  ASSERT_TRUE(put(app.get(), fragment) && put(app.get(), "") && put(app.get(), head_of(std::string("\3\1c\0\65", 5)) + "x"));
  ASSERT_TRUE(put(app.get(), head_of({IpAddress::v4(127, 0, 0, 1), 53}) + "x") && put(app.get(), head_of({kA4, 53}) + "x"));
  turn();
  EXPECT_EQ(at_b(far), "-");
  EXPECT_EQ(association.other_client, 1u);
  EXPECT_EQ(association.fragment, 1u);
  EXPECT_EQ(association.bad_head, 1u);
  EXPECT_EQ(association.unknown_target, 3u);
  EXPECT_EQ(a.memory().udp_sockets, 2u);
}

TEST_F(SocksDatagrams, AFullWayLosesDatagramsAndWorksAgain) {
  SocketId far = *b.udp_bind(std::nullopt, 53);
  auto socks = associate(IpAddress::v4(127, 0, 0, 1));
  UniqueFd app = program(socks->local());
  way_open = false;
  std::string full = head_of(kNameOfB) + std::string(1200, 'x');
  for (int i = 0; i < 1000; ++i) {
    ASSERT_TRUE(put(app.get(), full));
    if (i % 20 == 0) turn();
  }
  turn();
  EXPECT_GT(association.way_full, 0u);
  EXPECT_EQ(association.way_full + association.from_client, 1000u);
  way_open = true;
  turn();
  int got = 0;
  while (at_b(far).size() == 1200) ++got;
  EXPECT_GT(got, 100);
  ASSERT_TRUE(put(app.get(), head_of(kNameOfB) + "again"));
  turn();
  EXPECT_EQ(at_b(far), "again");
}

TEST_F(SocksDatagrams, ManyTargetsKeepTheBoundAndQuietOnesGo) {
  auto socks = associate(IpAddress::v4(127, 0, 0, 1));
  UniqueFd app = program(socks->local());
  for (std::uint16_t port = 1; port <= 3 * proxy::kUdpTargetsMax; ++port) {
    SocketId far = *b.udp_bind(std::nullopt, port);
    ASSERT_TRUE(put(app.get(), head_of({kB4, port}) + std::to_string(port)));
    turn();
    EXPECT_EQ(at_b(far), std::to_string(port));
    EXPECT_EQ(flows.size(), std::min<std::size_t>(port, proxy::kUdpTargetsMax));
    EXPECT_EQ(a.memory().udp_sockets, flows.size());
  }
  EXPECT_EQ(socks->next_timeout().latest, now + proxy::kUdpTargetIdle);
  now = now + proxy::kUdpTargetIdle;
  socks->handle_timeout();
  EXPECT_EQ(a.memory().udp_sockets, 0u);
  EXPECT_TRUE(socks->next_timeout().is_never());
}

TEST_F(Datagrams, HeadsSurviveTheRoundTrip) {
  for (const char* text : {"100.64.0.2:1", "[fd7a:115c:a1e0::2]:65535"}) {
    std::uint8_t head[kPacketHead];
    write_packet_head(*Endpoint::parse(text), head);
    EXPECT_EQ(parse_packet_head(head), Endpoint::parse(text));
    for (std::size_t n = 0; n < kPacketHead; ++n) EXPECT_FALSE(parse_packet_head(Bytes(head).first(n)));
  }
}

}  // namespace
}  // namespace porthole::runtime
