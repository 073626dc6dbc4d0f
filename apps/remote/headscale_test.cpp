// What is said to a Headscale, and what is made of its answers, good and bad.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "coordinator/memory_store.h"
#include "remote/headscale_engine.h"
#include "remote/headscale_for_test.h"
#include "remote/headscale_isolation.h"
#include "support/support.h"

namespace porthole::remote {
namespace {

TEST(HeadscaleVersions, AreReadAndJudged) {
  struct Case {
    const char* text;
    const char* why;  // nullptr: good
  };
  for (const Case& c : std::initializer_list<Case>{{"v0.28.0", nullptr}, {"v0.29.3", nullptr}, {"0.29.0", nullptr}, {"v0.30.1", nullptr},
                                                   {"v1.0.0", nullptr}, {"v0.29.0-beta.2", nullptr}, {"v0.27.0", "0.27.0"},
                                                   {"v0.27.1", "spent key"}, {"v0.26.1", "no rule"}, {"0.22.3", "no rule"}, {"dev", "no release"},
                                                   {"", "no release"}, {"v0.0.0-20260701123456-abcdef", "no release"}, {"v0.29.3-dirty", "no release"},
                                                   {"(devel)", "no release"}, {"v0.29", "no release"}, {"0.29.3x", "no release"},
                                                   {"v-1.2.3", "no release"}, {"v99999999999.1.1", "no release"}}) {
    auto why = why_not_this_version(c.text);
    EXPECT_EQ(why.has_value(), c.why != nullptr) << c.text;
    if (!why || !c.why) continue;
    EXPECT_NE(why->find(c.why), std::string::npos) << *why;
    EXPECT_NE(why->find("0.28.0 or newer"), std::string::npos) << *why;
  }
}

TEST(HeadscalePolicies, OnlyThoseThatKeepAccountsApartPass) {
  const std::string self = R"({"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]})";
  for (const std::string& good : {std::string(kIsolatingPolicy), "{\"acls\": [" + self + ",], // a comment\n}",
                                  "{\"acls\": [" + self + R"(, {"action": "accept", "src": ["bob@"], "dst": ["bob@:22,80-90", "eve@:*"]}]})",
                                  std::string(R"({"grants": [{"src": ["autogroup:member"], "dst": ["autogroup:self"], "ip": ["*"]}]})"),
                                  "{\"acls\": [" + self + R"(], "tests": [{"src": "bob@", "deny": ["eve@:22"]}]})"})
    EXPECT_EQ(why_not_this_policy(good), std::nullopt) << good;
  for (const std::string& bad : {
           std::string(), std::string("{"), std::string("[]"), std::string("{}"), std::string(R"({"acls": []})"), std::string(R"({"grants": []})"),
           std::string(R"({"ssh": []})"), std::string(R"({"acls": [7]})"), std::string(R"({"acls": {}})"),
           std::string(R"({"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]})"),
           "{\"acls\": [" + self + R"(, {"action": "accept", "src": ["*"], "dst": ["*:*"]}]})",
           "{\"acls\": [" + self + R"(, {"action": "accept", "src": ["autogroup:member"], "dst": ["bob@:*"]}]})",
           "{\"acls\": [" + self + R"(, {"action": "accept", "src": ["bob@"], "dst": ["acct-smith@:*"]}]})",
           "{\"acls\": [" + self + R"(, {"action": "accept", "src": ["acct-smith@"], "dst": ["bob@:*"]}]})",
           "{\"acls\": [" + self + R"(, {"action": "accept", "src": ["porthole-proof-1@"], "dst": ["porthole-proof-2@:*"]}]})",
           "{\"acls\": [" + self + R"(, {"action": "accept", "src": ["bob@example.com"], "dst": ["bob@:*"]}]})",
           "{\"acls\": [" + self + R"(, {"action": "accept", "src": ["bob@"], "dst": ["tag:x:*"]}]})",
           "{\"acls\": [" + self + R"(, {"action": "accept", "src": ["bob@"], "dst": ["100.64.0.0/10:*"]}]})",
           "{\"acls\": [" + self + R"(, {"action": "accept", "src": ["group:x"], "dst": ["bob@:*"]}]})",
           "{\"acls\": [" + self + R"(, {"action": "accept", "src": ["bob@"]}]})",
           "{\"acls\": [" + self + R"(, {"action": "accept", "src": ["bob@"], "dst": ["bob@:*"], "srcPosture": ["x"]}]})",
           "{\"acls\": [" + self + R"(], "tagOwners": {"tag:x": ["autogroup:member"]}})",
           "{\"acls\": [" + self + R"(], "autoApprovers": {}})", "{\"acls\": [" + self + R"(], "groups": {}})",
           std::string(R"({"grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"]}]})"),
           std::string(R"({"grants": [{"src": ["autogroup:member"], "dst": ["autogroup:self"], "ip": ["*"], "via": ["tag:x"]}]})"),
           std::string(5000, '[')}) {
    auto why = why_not_this_policy(bad);
    EXPECT_TRUE(why.has_value()) << bad;
  }
  // What is said about it goes to a terminal.
  EXPECT_EQ(why_not_this_policy("{\"\\u001b[31m" + std::string(500, 'x') + "\": []}"),
            "it has \" [31m" + std::string(195, 'x') + "...\", which can change who reaches whom");
}

TEST(HeadscaleKeys, ShowTheirPublicPart) {
  EXPECT_EQ(headscale_key_prefix("hskey-auth-Qm4tZp0LwXe2-" + std::string(64, '-')), "hskey-auth-Qm4tZp0LwXe2");
  EXPECT_EQ(headscale_key_prefix("hskey-auth-I-N3GAg-kY09-" + std::string(64, 'x')), "hskey-auth-I-N3GAg-kY09");
  EXPECT_EQ(headscale_key_prefix(std::string(48, 'a')), "");
  EXPECT_EQ(headscale_key_prefix(std::string(100, 'a')), "");
  EXPECT_EQ(headscale_key_prefix(""), "");
}

class HeadscaleTest : public testing::Test {
 protected:
  HeadscaleTest() {
    char name[] = "/tmp/porthole-hs-XXXXXX";
    dir_ = ::mkdtemp(name);
    key_file_ = dir_ + "/api.key";
    app::write_file_atomic(key_file_, std::string(FakeHeadscale::kApiKey) + "\n", 0600);
    api_ = std::make_unique<HeadscaleApi>(fake_.url(), key_file_, "");
  }
  ~HeadscaleTest() override { std::filesystem::remove_all(dir_); }

  void expect_error(const Error& e, ErrorCode code, std::string_view part) {
    EXPECT_EQ(e.code, code) << e.message;
    EXPECT_NE(e.message.find(part), std::string::npos) << e.message;
    EXPECT_EQ(e.message.find(FakeHeadscale::kApiKey), std::string::npos) << "the API key is shown";
    EXPECT_EQ(e.message.find('\n'), std::string::npos);
  }
  HeadscaleEngine engine(std::uint8_t secret = 1) {
    std::array<std::uint8_t, 32> raw{secret};
    return {*api_, crypto::SecretBytes<32>(Bytes(raw)), rng_, {std::chrono::milliseconds(0)}, [this](std::chrono::milliseconds) { ++pauses_; }};
  }
  coordinator::AuthKeyRecord wanted(const std::string& device) {
    coordinator::AuthKeyRecord k;
    k.account = account_.id;
    k.device_id = device;
    k.expires = read_clock().wall + Duration(1h);
    return k;
  }

  FakeHeadscale fake_;
  std::string dir_, key_file_;
  std::unique_ptr<HeadscaleApi> api_;
  SeededRng rng_{7};
  int pauses_ = 0;
  coordinator::AccountRecord account_{1, "smith", read_clock().wall, {}};
};

TEST_F(HeadscaleTest, KeyFileAndAddressAreChecked) {
  auto refused = [&](const std::string& url, const std::string& file, const std::string& ca, std::string_view part) {
    try {
      HeadscaleApi api(url, file, ca);
      ADD_FAILURE() << url << " " << file;
    } catch (const app::CommandError& e) {
      EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
      EXPECT_EQ(std::string(e.what()).find(FakeHeadscale::kApiKey), std::string::npos);
    }
  };
  refused("ftp://x", key_file_, "", "--headscale-url");
  refused("http://headscale.example.com", key_file_, "", "in clear");
  refused("http://192.0.2.1:8080", key_file_, "", "in clear");
  refused(fake_.url(), dir_ + "/none", "", "none");
  refused("https://headscale.example.com", key_file_, dir_ + "/none.pem", "none.pem");
  for (const char* text : {"", "\n", "two words\n", "a\x01"}) {
    app::write_file_atomic(key_file_, text, 0600);
    refused(fake_.url(), key_file_, "", "does not hold an API key");
  }
  app::write_file_atomic(key_file_, std::string(FakeHeadscale::kApiKey), 0600);
  ::chmod(key_file_.c_str(), 0640);
  refused(fake_.url(), key_file_, "", "chmod 600");
  // At run time, too: and what is mended needs no restart.
  expect_error(api_->users().error(), ErrorCode::kUnavailable, "chmod 600");
  ::chmod(key_file_.c_str(), 0600);
  EXPECT_TRUE(api_->users().ok());
  app::write_file_atomic(key_file_, "another", 0600);
  expect_error(api_->users().error(), ErrorCode::kUnavailable, "refuses the API key");
}

TEST_F(HeadscaleTest, BadAnswersAreSentences) {
  auto all = [&](std::string_view part) {
    std::vector<Error> errors;
    auto add = [&](const auto& result) {
      if (!result.ok()) errors.push_back(result.error());
      else ADD_FAILURE() << "accepted: " << part;
    };
    add(api_->users());
    add(api_->create_user("x"));
    add(api_->keys());
    add(api_->create_key("1", false, false, read_clock().wall));
    add(api_->nodes());
    add(api_->version());
    add(api_->health());
    for (const Error& e : errors) expect_error(e, ErrorCode::kUnavailable, part);
  };
  auto replace = [&](unsigned status, const std::string& body) {
    std::lock_guard lock(fake_.mutex);
    for (const char* call : {"GET /api/v1/user", "POST /api/v1/user", "GET /api/v1/preauthkey", "POST /api/v1/preauthkey", "GET /api/v1/node",
                             "GET /version", "GET /health", "GET /api/v1/policy"})
      fake_.replaced[call] = {status, body};
  };
  for (const char* body : {"", "<html>captive portal</html>", "[]", "7", "{", "{}", R"({"users":7,"user":7,"preAuthKeys":7,"preAuthKey":7,"nodes":7})",
                           R"({"users":[7],"user":[],"preAuthKeys":[7],"preAuthKey":[],"nodes":[7],"version":[],"status":"fail"})",
                           R"({"users":[{"id":"x"}],"user":{"id":"../../x"},"preAuthKeys":[{"id":"1/expire"}],"preAuthKey":{"key":"short"},"nodes":[{"id":"1"}]})",
                           R"({"users":[{"id":""}],"user":{"id":"1","name":"y"},"preAuthKeys":[{}],"preAuthKey":{},"nodes":[{"id":"1","machineKey":"mkey:zz"}]})"}) {
    replace(200, body);
    all("Headscale at " + fake_.url());
  }
  replace(500, R"({"code":2,"message":"something\nbroke"})");
  expect_error(api_->users().error(), ErrorCode::kUnavailable, "status 500: something broke");
  replace(302, "");
  expect_error(api_->users().error(), ErrorCode::kUnavailable, "status 302");
  replace(500, std::string(20u << 20, 'x'));
  expect_error(api_->users().error(), ErrorCode::kUnavailable, "does not answer as HTTP");
  EXPECT_FALSE(api_->policy().ok());
  replace(401, "Unauthorized");
  expect_error(api_->policy().error(), ErrorCode::kUnavailable, "refuses the API key");
  replace(404, R"({"code":5,"message":"node not found"})");
  expect_error(api_->version().error(), ErrorCode::kNotFound, "node not found");
  fake_.stop();
  expect_error(api_->users().error(), ErrorCode::kUnavailable, "cannot be reached");
}

TEST_F(HeadscaleTest, AccountsTakeOnlyEmptyUsers) {
  auto e = engine();
  ASSERT_TRUE(e.open_account(account_).ok());
  ASSERT_TRUE(e.open_account(account_).ok()) << "the attempt that got no further is taken up";
  EXPECT_EQ(fake_.users.size(), 1u);
  auto key = e.issue_key(account_, wanted("tv"), 1);
  ASSERT_TRUE(key.ok());
  expect_error(e.open_account(account_).error(), ErrorCode::kAlreadyExists, "acct-smith");
  fake_.keys.clear();
  fake_.nodes[9] = {9, "acct-smith", "tv", "", 0, false, {}};
  expect_error(e.open_account(account_).error(), ErrorCode::kAlreadyExists, "another name");
}

TEST_F(HeadscaleTest, DeviceKeysAreSealed) {
  auto e = engine();
  auto record = wanted("tv");
  auto key = e.issue_key(account_, record, 1);
  ASSERT_TRUE(key.ok()) << key.error().message;
  EXPECT_EQ(headscale_key_prefix(key->text.reveal()), key->prefix);
  record.prefix = key->prefix;
  record.sealed = key->sealed;
  std::string sealed(record.sealed.begin(), record.sealed.end());
  EXPECT_EQ(sealed.find(std::string(key->text.reveal().substr(24))), std::string::npos);
  coordinator::DeviceRecord device{1, "tv", 1, 1, {}, 0};
  auto again = e.key_text(device, record);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->reveal(), key->text.reveal());
  // Another secret, another key's record, a damaged or missing text.
  EXPECT_FALSE(engine(2).key_text(device, record).ok());
  auto other = record;
  other.prefix += "x";
  EXPECT_FALSE(e.key_text(device, other).ok());
  for (std::size_t i = 0; i < record.sealed.size(); ++i) {
    auto broken = record;
    broken.sealed[i] ^= 1;
    EXPECT_FALSE(e.key_text(device, broken).ok());
    broken.sealed.resize(i);
    EXPECT_FALSE(e.key_text(device, broken).ok());
  }
}

TEST_F(HeadscaleTest, RevocationIsDoneInItsOrderAndCanBeRepeated) {
  auto e = engine();
  auto record = wanted("tv");
  auto key = e.issue_key(account_, record, 1);
  ASSERT_TRUE(key.ok());
  record.prefix = key->prefix;
  int id = fake_.keys.begin()->first;
  fake_.keys[id].used = true;
  fake_.nodes[4] = {4, "acct-smith", "tv", "", id, true, {}};
  fake_.nodes[5] = {5, "acct-smith", "pad", "", 0, true, {}};
  fake_.users[50] = "acct-jones";
  fake_.nodes[6] = {6, "acct-jones", "tv", "", 0, true, {}};
  auto snapshot = e.snapshot(read_clock().wall);
  ASSERT_TRUE(snapshot.ok());
  ASSERT_EQ(snapshot->nodes.size(), 3u);
  EXPECT_EQ(snapshot->nodes[0].key_prefix, record.prefix);
  EXPECT_EQ(snapshot->nodes[2].account, "jones");
  EXPECT_EQ(snapshot->nodes[0].record.key_expiry, std::nullopt) << "year 1 is never";
  // Headscale breaks in the middle: nothing is said to be done.
  fake_.replaced["DELETE /api/v1/node/4"] = {500, R"({"code":2,"message":"database is locked"})"};
  expect_error(e.revoke(account_, &record, &snapshot->nodes[0].record).error(), ErrorCode::kUnavailable, "database is locked");
  fake_.replaced.clear();
  fake_.calls.clear();
  ASSERT_TRUE(e.revoke(account_, &record, &snapshot->nodes[0].record).ok());
  EXPECT_EQ(fake_.calls, (std::vector<std::string>{"GET /api/v1/preauthkey", "POST /api/v1/preauthkey/expire", "GET /api/v1/node",
                                                   "POST /api/v1/node/4/expire", "DELETE /api/v1/node/4", "GET /api/v1/node",
                                                   "DELETE /api/v1/preauthkey"}));
  EXPECT_EQ(pauses_, 2);
  EXPECT_EQ(fake_.nodes.size(), 2u);
  EXPECT_TRUE(fake_.keys.empty());
  // And once more: everything is gone already.
  ASSERT_TRUE(e.revoke(account_, &record, &snapshot->nodes[0].record).ok());
  EXPECT_TRUE(e.retire_key(account_, record).ok());
  // A node that nobody hears is not waited for.
  fake_.nodes[5].online = false;
  ASSERT_TRUE(e.revoke(account_, nullptr, &snapshot->nodes[1].record).ok());
  EXPECT_EQ(pauses_, 2);
  EXPECT_EQ(fake_.nodes.size(), 1u);
}

TEST_F(HeadscaleTest, ThePolicyIsSetOnlyWhereNobodyElseIs) {
  IsolationProof proof;
  ASSERT_TRUE(check_isolation(*api_, proof).ok());
  EXPECT_TRUE(proof.policy_was_set);
  EXPECT_EQ(fake_.policy, std::string(kIsolatingPolicy));
  proof = {};
  ASSERT_TRUE(check_isolation(*api_, proof).ok());
  EXPECT_FALSE(proof.policy_was_set);

  fake_.policy.reset();
  fake_.users[50] = "bob";
  fake_.nodes[9] = {9, "bob", "laptop", "", 0, true, {}};
  expect_error(check_isolation(*api_, proof).error(), ErrorCode::kUnsupported, "devices of other users (1)");
  EXPECT_FALSE(fake_.policy);
  fake_.nodes.clear();
  fake_.policy_can_be_set = false;
  expect_error(check_isolation(*api_, proof).error(), ErrorCode::kUnsupported, "none can be set here");
  fake_.policy = "{}";
  expect_error(check_isolation(*api_, proof).error(), ErrorCode::kUnsupported, "everything is allowed");
  fake_.version = "v0.26.1";
  expect_error(check_isolation(*api_, proof).error(), ErrorCode::kUnsupported, "version 0.26.1");
  fake_.replaced["GET /version"] = {404, "404 page not found"};
  expect_error(check_isolation(*api_, proof).error(), ErrorCode::kUnsupported, "older than 0.27");
  fake_.replaced["GET /health"] = {500, R"({"status":"fail"})"};
  expect_error(check_isolation(*api_, proof).error(), ErrorCode::kUnavailable, "not well");
}

}  // namespace
}  // namespace porthole::remote
