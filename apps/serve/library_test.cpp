#include "serve/library.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <thread>

#include "serve/control_socket.h"
#include "serve/limits.h"
#include "support/support.h"
#include "support/test_files.h"

namespace porthole::serve {
namespace {

namespace fs = std::filesystem;

class LibraryTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    shared = new app::TempDir;
    app::make_clip(*shared / "clip.mp4");
  }
  static void TearDownTestSuite() { delete shared; }
  void SetUp() override { fs::create_directories(dir / "lib"); }
  Library library() {
    return Library({dir / "lib"}, dir / "posters", [this](const std::string& line) { log += line + "\n"; });
  }
  static app::TempDir* shared;
  app::TempDir dir;
  std::string log;
};
app::TempDir* LibraryTest::shared = nullptr;

TEST_F(LibraryTest, KnowsWhatIsInTheFilesAndNoticesChanges) {
  fs::create_directories(dir / "lib/deep/er");
  fs::copy(*shared / "clip.mp4", dir / "lib/deep/er/clip.mp4");
  app::write_text(dir / "lib/broken_file.mkv", "this is no film");
  app::write_text(dir / "lib/notes.txt", "not media");
  app::write_text(dir / "lib/.hidden.mp4", "x");
  Library l = library();
  EXPECT_TRUE(l.scan());
  CatalogPtr c = l.catalog();
  ASSERT_EQ(c->items.size(), 2u);
  const MediaItem& film = c->items[0];
  EXPECT_EQ(film.title, "Test Film");
  EXPECT_EQ(film.file_name, "clip.mp4");
  EXPECT_EQ(film.video_codec, "h264");
  EXPECT_EQ(film.audio_codec, "aac");
  EXPECT_EQ(film.width, 320u);
  EXPECT_NEAR(static_cast<double>(film.duration_ms), 2000, 100);
  EXPECT_EQ(film.content_type, "video/mp4");
  EXPECT_TRUE(film.has_poster);
  EXPECT_EQ(film.unplayable, "");
  EXPECT_EQ(c->items[1].title, "broken file");
  EXPECT_NE(c->items[1].unplayable, "");
  EXPECT_NE(log.find("broken_file.mkv"), std::string::npos);

  EXPECT_FALSE(l.scan());
  EXPECT_EQ(l.catalog(), c);
  fs::remove(dir / "lib/broken_file.mkv");
  EXPECT_TRUE(l.scan());
  EXPECT_EQ(l.catalog()->items.size(), 1u);
  EXPECT_EQ(l.catalog()->items[0].id, film.id);
  EXPECT_GT(l.catalog()->revision, c->revision);
}

TEST_F(LibraryTest, PosterIsAJpegAndComesFromTheCacheAfterwards) {
  fs::copy(*shared / "clip.mp4", dir / "lib/clip.mp4");
  Library l = library();
  l.scan();
  MediaItem item = l.catalog()->items.at(0);
  Picture first = l.poster(item);
  EXPECT_EQ(first.error, "");
  EXPECT_EQ(first.content_type, "image/jpeg");
  EXPECT_EQ(first.image.substr(0, 2), "\xff\xd8");
  app::write_text(dir / "lib/clip.mp4", "gone");
  EXPECT_EQ(l.poster(item).image, first.image);
  item.modified_ns = 1;
  EXPECT_NE(l.poster(item).error, "");
}

TEST_F(LibraryTest, LinksOutOfTheLibraryAreNotServed) {
  app::write_text(dir / "secret.mp4", "secret");
  fs::create_symlink(dir / "secret.mp4", dir / "lib/link.mp4");
  fs::create_symlink(dir / "lib", dir / "lib/loop");
  fs::create_symlink("/", dir / "lib/root");
  fs::copy(*shared / "clip.mp4", dir / "lib/clip.mp4");
  Library l = library();
  l.scan();
  ASSERT_EQ(l.catalog()->items.size(), 1u);
  MediaItem item = l.catalog()->items[0];
  Library::Opened open = l.open(item);
  EXPECT_GE(open.fd, 0);
  ::close(open.fd);
  // Replaced by a link after the scan.
  fs::remove(dir / "lib/clip.mp4");
  fs::create_symlink(dir / "secret.mp4", dir / "lib/clip.mp4");
  open = l.open(item);
  EXPECT_EQ(open.fd, -1);
  EXPECT_NE(open.error, "");
  fs::remove(dir / "lib/clip.mp4");
  EXPECT_EQ(l.open(item).fd, -1);
}

TEST_F(LibraryTest, DamagedFilmsNeverCrash) {
  std::string clip = app::read_file(*shared / "clip.mp4");
  for (int i = 0; i < 40; ++i) {
    std::string bad = clip;
    for (int k = 0; k < 50; ++k) bad[static_cast<std::size_t>(i * 7919 + k * 104729) % bad.size()] ^= static_cast<char>(1 << k % 8);
    bad.resize(bad.size() - static_cast<std::size_t>(i) * bad.size() / 41);
    app::write_text(dir / "lib/bad.mp4", bad);
    probe_media(dir / "lib/bad.mp4", std::chrono::seconds(5));
    make_poster(dir / "lib/bad.mp4", std::chrono::seconds(5));
  }
}

TEST_F(LibraryTest, MissingFolderIsAnError) {
  EXPECT_THROW(Library({dir / "nowhere"}, dir / "posters", [](const std::string&) {}), app::CommandError);
}

TEST_F(LibraryTest, AFolderThatIsAwayKeepsItsItemsAndSaysSo) {
  fs::create_directories(dir / "other");
  fs::copy(*shared / "clip.mp4", dir / "lib/clip.mp4");
  app::write_text(dir / "other/broken.mp4", "x");
  Library l({dir / "lib", dir / "other"}, dir / "posters", [this](const std::string& line) { log += line + "\n"; });
  EXPECT_TRUE(l.scan());
  ASSERT_EQ(l.catalog()->items.size(), 2u);
  EXPECT_TRUE(l.problems().empty());
  fs::rename(dir / "lib", dir / "away");
  int told = 0;
  auto tell = [&](Library::Step step) { told += step == Library::Step::kProblems; };
  EXPECT_FALSE(l.scan(tell));
  EXPECT_FALSE(l.scan(tell));
  EXPECT_EQ(told, 1);
  EXPECT_EQ(l.catalog()->items.size(), 2u);
  ASSERT_EQ(l.problems().size(), 1u);
  EXPECT_NE(l.problems()[0].find(dir / "lib"), std::string::npos);
  EXPECT_NE(log.find(l.problems()[0]), std::string::npos);
  // A file of the other folder goes meanwhile: that is a change like any other.
  fs::remove(dir / "other/broken.mp4");
  EXPECT_TRUE(l.scan(tell));
  EXPECT_EQ(l.catalog()->items.size(), 1u);
  fs::rename(dir / "away", dir / "lib");
  EXPECT_FALSE(l.scan(tell));
  EXPECT_EQ(told, 2);
  EXPECT_TRUE(l.problems().empty());
  fs::remove(dir / "lib/clip.mp4");
  EXPECT_TRUE(l.scan(tell));
  EXPECT_TRUE(l.catalog()->items.empty());
}

TEST_F(LibraryTest, FoldersThatAreTooDeepAreNamed) {
  std::string deep = dir / "lib";
  for (int i = 0; i <= kFolderDepthMax; ++i) {
    deep += "/d";
    fs::create_directory(deep);
    if (i == kFolderDepthMax - 1) fs::copy(*shared / "clip.mp4", deep + "/last.mp4");
  }
  fs::copy(*shared / "clip.mp4", deep + "/beyond.mp4");
  Library l = library();
  l.scan();
  ASSERT_EQ(l.catalog()->items.size(), 1u);
  EXPECT_EQ(l.catalog()->items[0].file_name, "last.mp4");
  ASSERT_EQ(l.problems().size(), 1u);
  EXPECT_NE(l.problems()[0].find(deep), std::string::npos) << l.problems()[0];
}

// What a sparse file of 200 GiB takes to be probed as MPEG audio is more than anybody wants to wait for.
TEST_F(LibraryTest, AFileThatTakesLongHoldsUpNeitherTheOthersNorTheEnd) {
  fs::copy(*shared / "clip.mp4", dir / "lib/clip.mp4");
  app::write_text(dir / "lib/huge.mp3", "");
  fs::resize_file(dir / "lib/huge.mp3", 200ull << 30);
  Library l = library();
  std::vector<Library::Step> steps;
  std::chrono::steady_clock::time_point stopped;
  std::thread stopper;
  EXPECT_FALSE(l.scan([&](Library::Step step) {
    steps.push_back(step);
    stopper = std::thread([&] {
      stopped = std::chrono::steady_clock::now();
      l.stop();
    });
  }));
  stopper.join();
  EXPECT_LT(std::chrono::steady_clock::now() - stopped, std::chrono::seconds(5));
  EXPECT_EQ(steps, std::vector<Library::Step>{Library::Step::kListed});
  ASSERT_EQ(l.catalog()->items.size(), 1u);
  EXPECT_EQ(l.catalog()->items[0].file_name, "clip.mp4");
}

TEST(ControlSocket, AnswersAndKeepsASecondServerOut) {
  app::TempDir dir;
  EXPECT_THROW(ask_server(dir.path(), {{"do", "x"}}), app::CommandError);
  ControlSocket socket(dir.path(), [](const boost::json::object& o) { return boost::json::object{{"did", o.at("do")}}; });
  EXPECT_EQ(ask_server(dir.path(), {{"do", "x"}})["did"], "x");
  EXPECT_THROW(ControlSocket(dir.path(), [](const boost::json::object&) { return boost::json::object(); }), app::CommandError);
}

}  // namespace
}  // namespace porthole::serve
