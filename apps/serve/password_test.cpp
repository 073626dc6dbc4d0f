#include "serve/password.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "serve/limits.h"
#include "support/support.h"
#include "support/test_files.h"

namespace porthole::serve {
namespace {

using namespace std::chrono_literals;

TEST(Password, IsStoredAsAHashAndChecked) {
  app::TempDir dir;
  EXPECT_THROW(load_password_hash(dir / "password.json"), app::CommandError);
  EXPECT_THROW(set_password(dir / "password.json", "short"), app::CommandError);
  set_password(dir / "password.json", "correct horse");
  std::string hash = load_password_hash(dir / "password.json");
  EXPECT_TRUE(password_matches(hash, "correct horse"));
  EXPECT_FALSE(password_matches(hash, "correct horsf"));
  EXPECT_FALSE(password_matches(hash, ""));
  EXPECT_EQ(app::read_file(dir / "password.json").find("correct"), std::string::npos);
  struct stat s {};
  ASSERT_EQ(::stat((dir / "password.json").c_str(), &s), 0);
  EXPECT_EQ(s.st_mode & 0777, 0600u);
}

TEST(Password, WhatNoClientCanSendIsRefused) {
  app::TempDir dir;
  struct {
    const char* password;
    const char* says;
  } kTable[] = {{"caf\xe9 au lait", "UTF-8"},  {"\xff\xfe" "s\0e\0s\0", "UTF-8"}, {"open\tsesame", "control characters"},
                {"open\nsesame!", "one line"}, {"open\r\nsesame", "one line"},     {"\xef\xbb\xbfopen sesame", "byte order mark"}};
  for (const auto& t : kTable) {
    try {
      set_password(dir / "password.json", t.password);
      ADD_FAILURE() << t.says;
    } catch (const app::CommandError& e) {
      EXPECT_NE(std::string(e.what()).find(t.says), std::string::npos) << e.what();
    }
    EXPECT_FALSE(std::filesystem::exists(dir / "password.json"));
  }
  set_password(dir / "password.json", "K\xc3\xa4sekuchen \xf0\x9f\x8d\xb0");
  EXPECT_TRUE(password_matches(load_password_hash(dir / "password.json"), "K\xc3\xa4sekuchen \xf0\x9f\x8d\xb0"));
}

TEST(Password, DamagedOrNewerFilesAreErrors) {
  app::TempDir dir;
  for (const char* text : {"", "{", "{\"version\":1}", "{\"version\":1,\"argon2id\":\"plain\"}", "{\"version\":2,\"argon2id\":\"$argon2id$x\"}"}) {
    app::write_text(dir / "p", text);
    EXPECT_THROW(load_password_hash(dir / "p"), app::CommandError) << text;
    EXPECT_EQ(app::read_file(dir / "p"), text);
  }
}

TEST(LoginThrottle, AddressWaitsLongerAfterEachFailure) {
  LoginThrottle t;
  LoginThrottle::Time now{};
  for (int i = 0; i < kFreeAttempts; ++i) {
    EXPECT_EQ(t.wait(now, "a"), 0s);
    t.failed(now, "a");
  }
  std::chrono::seconds before{0};
  for (int i = 0; i < 12; ++i) {
    std::chrono::seconds wait = t.wait(now, "a");
    EXPECT_GT(wait, 0s);
    EXPECT_TRUE(wait > before || wait == kAddressWaitMax);
    EXPECT_EQ(t.wait(now, "b"), 0s);
    before = wait;
    now += wait;
    EXPECT_EQ(t.wait(now, "a"), 0s);
    t.failed(now, "a");
  }
  EXPECT_EQ(before, kAddressWaitMax);
  t.succeeded("a");
  EXPECT_EQ(t.wait(now, "a"), 0s);
}

TEST(LoginThrottle, ManyAddressesTogetherAreLimitedToo) {
  LoginThrottle t;
  LoginThrottle::Time now{};
  for (int i = 0; i < kGlobalFailuresPerMinute; ++i) t.failed(now, "host" + std::to_string(i));
  EXPECT_GT(t.wait(now, "honest"), 0s);
  EXPECT_EQ(t.wait(now + 60s, "honest"), 0s);
  for (int i = 0; i < 6000; ++i) t.failed(now, "many" + std::to_string(i));
  EXPECT_LE(t.size(), kAddressesMax);
}

TEST(LoginThrottle, AttemptsUnderWayCountAsFailed) {
  LoginThrottle t;
  LoginThrottle::Time now{};
  for (int i = 0; i < kFreeAttempts; ++i) {
    EXPECT_EQ(t.wait(now, "a"), 0s);
    t.begin("a");
  }
  EXPECT_GT(t.wait(now, "a"), 0s);
  EXPECT_EQ(t.wait(now, "b"), 0s);
  // An honest one among them makes room again; the others still count.
  t.succeeded("a");
  EXPECT_EQ(t.wait(now, "a"), 0s);
  for (int i = 1; i < kFreeAttempts; ++i) t.failed(now, "a");
  EXPECT_EQ(t.wait(now, "a"), 0s);
  t.begin("a");
  EXPECT_GT(t.wait(now, "a"), 0s);
  t.failed(now, "a");
  // From now on one at a time, after its wait.
  now += kAddressWaitFirst;
  EXPECT_EQ(t.wait(now, "a"), 0s);
  t.begin("a");
  EXPECT_GT(t.wait(now, "a"), 0s);
  t.succeeded("a");
  EXPECT_EQ(t.size(), 0u);

  for (int i = 0; i < kGlobalFailuresPerMinute; ++i) t.begin("host" + std::to_string(i));
  EXPECT_GT(t.wait(now, "honest"), 0s);
  for (int i = 0; i < kGlobalFailuresPerMinute; ++i) t.succeeded("host" + std::to_string(i));
  EXPECT_EQ(t.wait(now, "honest"), 0s);
}

TEST(LoginThrottle, Keys) {
  EXPECT_EQ(throttle_key("192.0.2.1"), "192.0.2.1");
  EXPECT_EQ(throttle_key("::ffff:192.0.2.1"), "192.0.2.1");
  EXPECT_EQ(throttle_key("2001:db8:1:2:3:4:5:6"), throttle_key("2001:db8:1:2::9"));
  EXPECT_NE(throttle_key("2001:db8:1:2::1"), throttle_key("2001:db8:1:3::1"));
}

}  // namespace
}  // namespace porthole::serve
