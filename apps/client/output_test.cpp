#include "client/output.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <future>
#include <thread>

#include "support/support.h"
#include "support/test_files.h"

namespace porthole::client {
namespace {

std::size_t entries(const app::TempDir& dir) {
  auto all = std::filesystem::directory_iterator(dir.path());
  return static_cast<std::size_t>(std::distance(begin(all), end(all)));
}

TEST(Output, FileHasItsNameOnlyWhenItIsComplete) {
  app::TempDir dir;
  app::write_text(dir / "film", "old");
  ::chmod((dir / "film").c_str(), 0640);
  {
    Output out(dir / "film");
    out.open();
    EXPECT_EQ(out.write("half"), 4u);
    EXPECT_EQ(app::read_file(dir / "film"), "old");
    EXPECT_NE(out.unfinished().find("is as it was"), std::string::npos);
  }
  EXPECT_EQ(app::read_file(dir / "film"), "old");
  EXPECT_EQ(entries(dir), 1u);
  {
    Output out(dir / "film");
    out.open();
    out.write("new");
    out.finish();
  }
  EXPECT_EQ(app::read_file(dir / "film"), "new");
  EXPECT_EQ(entries(dir), 1u);
  struct stat s {};
  ::stat((dir / "film").c_str(), &s);
  EXPECT_EQ(s.st_mode & 0777, 0640u);
}

TEST(Output, LinkStaysALink) {
  app::TempDir dir;
  app::write_text(dir / "film", "old");
  std::filesystem::create_symlink("film", dir / "link");
  Output out(dir / "link");
  out.open();
  out.write("new");
  out.finish();
  EXPECT_TRUE(std::filesystem::is_symlink(dir / "link"));
  EXPECT_EQ(app::read_file(dir / "film"), "new");
}

// A pipe is written as it is; while it is full there is no waiting in write(), and whoever waits can be called away.
TEST(Output, FullPipeKeepsNobody) {
  app::TempDir dir;
  ASSERT_EQ(::mkfifo((dir / "pipe").c_str(), 0600), 0);
  int reader = ::open((dir / "pipe").c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  int stop = ::eventfd(0, EFD_CLOEXEC);
  Output out(dir / "pipe");
  out.open();
  const std::string block(1 << 20, 'x');
  std::size_t written = 0;
  while (out.ready()) written += out.write(block);
  EXPECT_GT(written, 0u);
  std::future<void> waiting = std::async(std::launch::async, [&] { out.wait(stop); });
  std::uint64_t one = 1;
  EXPECT_EQ(::write(stop, &one, sizeof one), 8);
  EXPECT_EQ(waiting.wait_for(std::chrono::seconds(20)), std::future_status::ready);
  ::close(reader);  // and lets a waiter that was not called away go, too
  ::close(stop);
  EXPECT_EQ(entries(dir), 1u);
}

}  // namespace
}  // namespace porthole::client
