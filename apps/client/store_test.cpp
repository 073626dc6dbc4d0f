#include "client/store.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <random>

#include "client/error.h"
#include "client/range.h"
#include "support/support.h"
#include "support/test_files.h"

namespace porthole::client {
namespace {

SavedServer sample(const std::string& id, const std::string& name) {
  SavedServer s;
  s.id = id;
  s.name = name;
  s.hostname = name + ".lan:8443";
  s.password = "secret \"quoted\" ’";
  s.pin = "sha256:aa";
  s.remote_ip = "100.64.0.1";
  return s;
}
void add(Store& store, const SavedServer& s) {
  store.update([&](std::vector<SavedServer>& list) { list.push_back(s); });
}

TEST(Store, KeepsServersPrivately) {
  app::TempDir dir;
  Store store(dir / "state");
  EXPECT_TRUE(store.servers().empty());
  add(store, sample("id-1", "Home"));
  add(store, sample("id-2", "Hotel"));
  std::vector<SavedServer> list = Store(dir / "state").servers();
  ASSERT_EQ(list.size(), 2u);
  EXPECT_EQ(list[0].password, "secret \"quoted\" ’");
  EXPECT_TRUE(list[0].has_remote_details());
  EXPECT_FALSE(SavedServer{}.has_remote_details());
  struct stat s {};
  ASSERT_EQ(::stat((dir / "state/servers.json").c_str(), &s), 0);
  EXPECT_EQ(s.st_mode & 0777, 0600u);
  EXPECT_EQ(store.find("home").id, "id-1");
  EXPECT_EQ(store.find("id-2").name, "Hotel");
  EXPECT_EQ(store.find("hom").id, "id-1");
  EXPECT_EQ(store.find("hotel.lan:8443").id, "id-2");
  EXPECT_THROW(store.find("ho"), ClientError);
  EXPECT_THROW(store.find("nothing"), ClientError);
}

TEST(Store, DeviceIsMadeOnceAndKeepsItsName) {
  app::TempDir dir;
  Store::Device first = Store(dir / "s").device("Tablet");
  EXPECT_EQ(first.id.size(), 36u);
  Store::Device again = Store(dir / "s").device("");
  EXPECT_EQ(again.id, first.id);
  EXPECT_EQ(again.name, "Tablet");
  EXPECT_EQ(Store(dir / "s").device("Other").name, "Other");
  EXPECT_EQ(Store(dir / "s").device("").name, "Other");
}

TEST(Store, DamagedOrNewerFilesAreErrorsAndNeverOverwritten) {
  app::TempDir dir;
  Store store(dir / "s");
  for (const char* text : {"", "[]", "{", "{\"version\":1}", "{\"version\":1,\"servers\":[1]}", "{\"version\":1,\"servers\":[{\"id\":\"a\"}]}",
                           "{\"version\":1,\"servers\":[{\"id\":\"a\",\"name\":7}]}", "{\"version\":2,\"servers\":[]}"}) {
    app::write_text(dir / "s/servers.json", text);
    EXPECT_THROW(store.servers(), ClientError) << text;
    EXPECT_THROW(add(store, sample("x", "y")), ClientError) << text;
    EXPECT_EQ(app::read_file(dir / "s/servers.json"), text);
  }
}

// A disk without room, by way of the file size limit of a child process.
TEST(Store, FullDiskKeepsTheOldContent) {
  app::TempDir dir;
  Store store(dir / "s");
  add(store, sample("id-1", "Home"));
  std::string before = app::read_file(dir / "s/servers.json");
  pid_t child = ::fork();
  if (child == 0) {
    ::signal(SIGXFSZ, SIG_IGN);
    rlimit none{10, 10};
    ::setrlimit(RLIMIT_FSIZE, &none);
    int code = 1;
    try {
      add(store, sample("id-2", "Hotel"));
    } catch (const app::CommandError&) {
      code = 0;
    }
    ::_exit(code);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  EXPECT_EQ(app::read_file(dir / "s/servers.json"), before);
  EXPECT_EQ(store.servers().size(), 1u);
}

TEST(Range, Table) {
  struct {
    const char* header;
    RangeVerdict verdict;
    std::uint64_t offset, length;
  } kTable[] = {
      {"", RangeVerdict::kWhole, 0, 0},
      {"bytes=0-0", RangeVerdict::kPartial, 0, 1},
      {"bytes=0-", RangeVerdict::kPartial, 0, 1000},
      {"Bytes = 10-19", RangeVerdict::kPartial, 10, 10},
      {"bytes=990-5000", RangeVerdict::kPartial, 990, 10},
      {"bytes=-1", RangeVerdict::kPartial, 999, 1},
      {"bytes=-5000", RangeVerdict::kPartial, 0, 1000},
      {"bytes=999-99999999999999999999999", RangeVerdict::kPartial, 999, 1},
      {"bytes=1000-", RangeVerdict::kUnsatisfiable, 0, 0},
      {"bytes=99999999999999999999999-", RangeVerdict::kUnsatisfiable, 0, 0},
      {"bytes=-0", RangeVerdict::kUnsatisfiable, 0, 0},
      {"bytes=5-4", RangeVerdict::kWhole, 0, 0},
      {"bytes=0-1,3-4", RangeVerdict::kWhole, 0, 0},
      {"bytes=-", RangeVerdict::kWhole, 0, 0},
      {"bytes=a-b", RangeVerdict::kWhole, 0, 0},
      {"bytes=--1", RangeVerdict::kWhole, 0, 0},
      {"bytes=+1-2", RangeVerdict::kWhole, 0, 0},
      {"items=0-1", RangeVerdict::kWhole, 0, 0},
  };
  for (const auto& t : kTable) {
    RangeAnswer a = parse_range(t.header, 1000);
    EXPECT_EQ(a.verdict, t.verdict) << t.header;
    EXPECT_EQ(a.range.offset, t.offset) << t.header;
    EXPECT_EQ(a.range.length, t.length) << t.header;
  }
  EXPECT_EQ(parse_range("bytes=0-", 0).verdict, RangeVerdict::kUnsatisfiable);
  EXPECT_EQ(parse_range("bytes=-1", 0).verdict, RangeVerdict::kUnsatisfiable);
}

}  // namespace
}  // namespace porthole::client
