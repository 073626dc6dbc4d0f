#include "support/output.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <thread>
#include <utility>
#include <vector>

#include "support/limits.h"

namespace porthole::app {
namespace {

using Clock = std::chrono::steady_clock;

// A pipe of one page with an Output at its end, which lives on, as it does in a program.
struct Pipe {
  explicit Pipe(int stop_fd = -1) {
    EXPECT_EQ(::pipe2(fds, O_CLOEXEC), 0);
    ::fcntl(fds[1], F_SETPIPE_SZ, 4096);
    static std::vector<Output*>& all = *new std::vector<Output*>;
    all.push_back(out = new Output(fds[1], stop_fd));
  }
  ~Pipe() { ::close(fds[0]); }
  // What came so far and what comes until `end` is in it, or until the time is over.
  std::string read_until(const std::string& end) {
    std::string text;
    char part[4096];
    while (text.find(end) == std::string::npos) {
      ssize_t n = ::read(fds[0], part, sizeof part);
      if (n <= 0) break;
      text.append(part, static_cast<std::size_t>(n));
    }
    return text;
  }
  int fds[2] = {-1, -1};
  Output* out;
};

std::string line(int i) { return "{\"n\":" + std::to_string(i) + ",\"x\":\"" + std::string(300, 'x') + "\"}\n"; }

TEST(Output, WhoeverSpeaksDoesNotWaitForAReaderWhoIsToldWhatIsMissing) {
  Pipe p;
  constexpr int kLines = 20'000;  // six times what may wait
  for (int i = 0; i < kLines; ++i) p.out->put(line(i), Output::Kind::kJson);
  const std::string text = p.read_until("\"n\":" + std::to_string(kLines - 1) + ",");
  std::uint64_t seen = 0;
  for (std::size_t at = 0; (at = text.find("{\"n\":", at)) != std::string::npos; ++at) ++seen;
  const std::string dropped = "{\"event\":\"dropped\",\"count\":";
  std::uint64_t missing = 0;
  for (std::size_t at = 0; (at = text.find(dropped, at)) != std::string::npos; ++at)
    missing += std::stoull(text.substr(at + dropped.size()));
  EXPECT_GT(missing, 0u);
  EXPECT_EQ(seen + missing, static_cast<std::uint64_t>(kLines));
  EXPECT_LT(text.size(), kOutputBytesMax + 64 * 1024);
}

TEST(Output, TheEndWaitsForASlowReaderAndNotForNone) {
  Pipe slow;
  for (int i = 0; i < 500; ++i) slow.out->put(line(i), Output::Kind::kJson);
  std::string text;
  std::thread reader([&] { text = slow.read_until("\"n\":499,"); });
  slow.out->flush(Clock::now());
  reader.join();
  EXPECT_EQ(text.find("dropped"), std::string::npos);
  EXPECT_NE(text.find("\"n\":0,"), std::string::npos);

  Pipe none;
  for (int i = 0; i < 500; ++i) none.out->put(line(i), Output::Kind::kJson);
  const auto begin = Clock::now();
  none.out->flush(begin);
  EXPECT_GE(Clock::now() - begin, kOutputPatience);
  EXPECT_LT(Clock::now() - begin, 5 * kOutputPatience);
}

TEST(Output, AnAnswerIsNeverCutShortUntilSomebodyStopsIt) {
  Pipe p;
  std::string text;
  std::thread reader([&] { text = p.read_until("\"n\":9999,"); });
  for (int i = 0; i < 10'000; ++i) p.out->put_answer(line(i), Output::Kind::kJson);
  p.out->flush(Clock::now());
  reader.join();
  EXPECT_EQ(text.find("dropped"), std::string::npos);

  // What was said before the answer fills the pipe, and its writer waits for the reader already.
  const int stop = ::eventfd(0, EFD_CLOEXEC);
  Pipe unread(stop);
  for (int i = 0; i < 100; ++i) unread.out->put(line(i), Output::Kind::kJson);
  pollfd room{unread.fds[1], POLLOUT, 0};
  while (::poll(&room, 1, 0) == 1) std::this_thread::yield();
  std::thread signal([&] {
    const std::uint64_t one = 1;
    EXPECT_EQ(::write(stop, &one, sizeof one), static_cast<ssize_t>(sizeof one));
  });
  for (int i = 0; i < 10'000; ++i) unread.out->put_answer(line(i), Output::Kind::kJson);
  unread.out->flush(Clock::now());
  signal.join();
}

TEST(Output, AReaderThatIsGoneIsNobodysFailure) {
  Pipe p;
  ::close(std::exchange(p.fds[0], -1));
  p.out->put(line(0), Output::Kind::kJson);
  p.out->put_answer(line(1), Output::Kind::kJson);
  const auto begin = Clock::now();
  p.out->flush(begin);
  EXPECT_LT(Clock::now() - begin, kOutputPatience);
}

}  // namespace
}  // namespace porthole::app
