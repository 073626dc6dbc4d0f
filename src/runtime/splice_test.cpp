// A TCP connection of the netstack, joined with a local socket. Two netstacks, wired to each other in virtual time; the
// local sockets are real.
#include "runtime/splice.h"

#include <gtest/gtest.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cerrno>

#include "netstack/link_harness.h"
#include "runtime/local_socket.h"

namespace porthole::runtime {
namespace {

using netstack::SocketId;
using netstack::Stack;
using netstack::harness::kA4;
using netstack::harness::kB4;

// The splice under test belongs to stack a, which has a port exposed; b is the rest of the tailnet.
class SpliceTest : public ::testing::Test {
 protected:
  SpliceTest() : rng_a_(1), rng_b_(2), a(config(), rng_a_), b(config(), rng_b_), scratch_(64 * 1024) {
    a.set_addresses({&kA4, 1});
    b.set_addresses({&kB4, 1});
    now = Instant::from_ns(1'000'000'000);
  }
  static netstack::StackConfig config() {
    netstack::StackConfig c;
    c.receive_buffer_start = c.receive_buffer_max = c.send_buffer_max = 128 << 10;
    return c;
  }

  bool carry(Stack& from, Stack& to) {
    netstack::harness::VectorSink sink(64);
    from.produce(now, sink);
    std::vector<MutBytes> batch(sink.packets.begin(), sink.packets.end());
    if (!batch.empty()) to.handle_packets(now, batch);
    return !batch.empty();
  }
  // Until nothing moves; then as much time passes as the stacks want to wait, so many times.
  void run(int times) {
    for (int quiet = 0; times > 0;) {
      loop.wait(now, now);
      loop.dispatch();
      bool moved = carry(a, b) | carry(b, a);
      while (auto e = a.poll_event()) {
        moved = true;
        if (splice && e->id == splice->socket()) splice->handle_event(*e);
      }
      while (auto e = b.poll_event()) moved = true;
      if (moved) quiet = 0;
      if (moved || ++quiet < 3) continue;
      quiet = 0;
      --times;
      Instant next = std::min(a.next_timeout().latest, b.next_timeout().latest);
      if (next == Instant::max()) continue;
      now = std::max(now, next);
      a.handle_timeout(now);
      b.handle_timeout(now);
    }
  }

  // `far` dials the exposed port; the service's end of its local connection is `service`.
  void connect() {
    SocketId listener = *a.listen(now, std::nullopt, 80);
    far = *b.connect(now, {kA4, 80});
    run(3);
    auto socket = a.accept(listener);
    ASSERT_TRUE(socket);
    auto pair = connected_pair();
    ASSERT_TRUE(pair.ok());
    service = std::move(pair->second);
    splice = std::make_unique<Splice>(loop, a, *socket, std::move(pair->first), scratch_, now, [this] { ++done; });
    run(3);
  }
  // More than the two netstacks take, less than fills the local connection besides: neither an end nor a reset passes a
  // closed window.
  static constexpr std::size_t kMuch = 300u << 10;
  // Bytes in the local connection that the splice has not read.
  int waiting() {
    int n = 0;
    ::ioctl(splice->fd(), FIONREAD, &n);
    return n;
  }
  // The service speaks, and nobody at the far end reads.
  void fill(std::size_t most) {
    for (int i = 0; i < 50; ++i) {
      std::uint8_t block[4096];
      while (said < most) {
        for (std::size_t k = 0; k < sizeof block; ++k) block[k] = pattern(said + k);
        ssize_t n = ::send(service.get(), block, sizeof block, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0) break;
        said += static_cast<std::size_t>(n);
      }
      run(1);
    }
  }
  static std::uint8_t pattern(std::size_t at) { return static_cast<std::uint8_t>(at * 7 + at / 251); }
  void read_all() {
    for (int i = 0; i < 10'000 && !b.read_eof(far); ++i) {
      Bytes span;
      while (b.peek(far, {&span, 1}) > 0) {
        for (std::uint8_t byte : span) {
          if (byte != pattern(heard++)) return;
        }
        b.consume(now, far, span.size());
      }
      run(1);
    }
  }

  SeededRng rng_a_, rng_b_;
  Stack a, b;
  EventLoop loop;
  ByteVector scratch_;
  Instant now;
  std::unique_ptr<Splice> splice;
  UniqueFd service;
  SocketId far = 0;
  std::size_t said = 0, heard = 0;
  int done = 0;
};

// As a reader that pauses makes it: the far end has said all, the service too, and much of it has found no room yet.
TEST_F(SpliceTest, AServiceThatIsGoneWakesNobodyWhileTheReaderPauses) {
  connect();
  b.shutdown_write(now, far);
  run(5);
  char byte;
  EXPECT_EQ(::recv(service.get(), &byte, 1, MSG_DONTWAIT), 0);
  fill(kMuch);
  service.reset();
  run(5);
  EXPECT_GT(waiting(), 0);
  EXPECT_EQ(loop.wait(now, now), 0) << "the loop is woken though nothing can move";
  loop.dispatch();
  read_all();
  EXPECT_TRUE(b.read_eof(far));
  EXPECT_EQ(heard, said);
  EXPECT_EQ(done, 1);
}

TEST_F(SpliceTest, AServiceThatResetsWakesNobodyWhileTheReaderPauses) {
  connect();
  fill(kMuch);
  reset_on_close(service.get());
  service.reset();
  run(5);
  EXPECT_GT(waiting(), 0);
  EXPECT_EQ(loop.wait(now, now), 0) << "the loop is woken though nothing can move";
  loop.dispatch();
  EXPECT_EQ(done, 0);
  read_all();
  EXPECT_FALSE(b.read_eof(far)) << "a truncated answer must not look complete";
  EXPECT_EQ(done, 1);
}

}  // namespace
}  // namespace porthole::runtime
