#include "remote/enrolment_api.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <sstream>

#include "coordinator/directory.h"
#include "coordinator/memory_store.h"
#include "remote/limits.h"
#include "support/vectors.h"

namespace porthole::remote {
namespace {

namespace json = boost::json;

class ApiTest : public testing::Test {
 protected:
  ApiTest() {
    auto opened = coordinator::Directory::open({}, store_, rng_, Log::none());
    directory_ = std::move(*opened);
    api_ = std::make_unique<EnrolmentApi>(*directory_, crypto::SecretText(kAdmin), "https://remote.example");
  }
  ApiAnswer call(std::string_view method, std::string_view target, std::string_view token, std::string_view body = {}) {
    std::string authorization = token.empty() ? "" : "Bearer " + std::string(token);
    return api_->handle(clock_, {method, target, authorization, body, IpAddress::v4(192, 0, 2, 1)});
  }
  static json::object parse(const ApiAnswer& a) { return json::parse(a.body).as_object(); }
  std::string account(std::string_view name) {
    auto a = call("POST", "/api/v1/accounts", kAdmin, "{\"name\":\"" + std::string(name) + "\"}");
    EXPECT_EQ(a.status, 201) << a.body;
    return std::string(parse(a).at("token").as_string());
  }
  void expect_problem(const ApiAnswer& a, int status, std::string_view part) {
    EXPECT_EQ(a.status, status) << a.body;
    EXPECT_EQ(a.content_type, "application/problem+json");
    EXPECT_NE(a.body.find(part), std::string::npos) << a.body;
  }

  static constexpr std::string_view kAdmin = "phtoken-admin-aaaa";
  SeededRng rng_{1};
  coordinator::MemoryStore store_;
  std::unique_ptr<coordinator::Directory> directory_;
  std::unique_ptr<EnrolmentApi> api_;
  Clock clock_{Instant::from_ns(1'000'000'000), WallTime::from_unix_s(1'790'000'000)};
};

TEST_F(ApiTest, ADeviceGetsItsKeyAndOnlyOne) {
  std::string token = account("smith");
  auto first = call("POST", "/api/v1/accounts/smith/devices/kitchen-tv/key", token);
  ASSERT_EQ(first.status, 201) << first.body;
  auto o = parse(first);
  EXPECT_EQ(o.at("coordination_url").as_string(), "https://remote.example");
  EXPECT_FALSE(o.at("expires").is_null());
  EXPECT_EQ(o.at("device").as_object().at("state").as_string(), "invited");
  std::set<std::string> keys{std::string(o.at("key").as_string())};
  for (int i = 0; i < 1000; ++i) {
    auto again = call("POST", "/api/v1/accounts/smith/devices/kitchen-tv/key", token, "{}");
    ASSERT_EQ(again.status, 200);
    keys.insert(std::string(parse(again).at("key").as_string()));
  }
  EXPECT_EQ(keys.size(), 1u);
  auto list = call("GET", "/api/v1/accounts/smith/devices", token);
  EXPECT_EQ(parse(list).at("devices").as_array().size(), 1u);

  EXPECT_EQ(call("DELETE", "/api/v1/accounts/smith/devices/kitchen-tv", token).status, 204);
  expect_problem(call("DELETE", "/api/v1/accounts/smith/devices/kitchen-tv", token), 404, "revoked already");
  EXPECT_TRUE(parse(call("GET", "/api/v1/accounts/smith/devices", token)).at("devices").as_array().empty());
  auto next = call("POST", "/api/v1/accounts/smith/devices/kitchen-tv/key", token);
  EXPECT_EQ(next.status, 201);
  keys.insert(std::string(parse(next).at("key").as_string()));
  EXPECT_EQ(keys.size(), 2u);
  auto replaced = call("POST", "/api/v1/accounts/smith/devices/kitchen-tv/key", token, "{\"replace\":true}");
  EXPECT_EQ(replaced.status, 201);
  keys.insert(std::string(parse(replaced).at("key").as_string()));
  EXPECT_EQ(keys.size(), 3u);
}

TEST_F(ApiTest, TokensActOnTheirOwnAccountOnly) {
  std::string smith = account("smith");
  std::string jones = account("jones");
  expect_problem(call("POST", "/api/v1/accounts/jones/devices/tv/key", smith), 403, "another account");
  expect_problem(call("GET", "/api/v1/accounts/jones/devices", smith), 403, "another account");
  expect_problem(call("DELETE", "/api/v1/accounts/jones/devices/tv", smith), 403, "another account");
  expect_problem(call("GET", "/api/v1/accounts", smith), 403, "admin");
  expect_problem(call("POST", "/api/v1/accounts", smith, "{\"name\":\"x\"}"), 403, "admin");
  expect_problem(call("GET", "/api/v1/accounts/jones/devices", ""), 401, "token is needed");
  expect_problem(call("GET", "/api/v1/accounts/jones/devices", jones + "0"), 401, "not known");
  EXPECT_EQ(call("GET", "/api/v1/accounts/jones/devices", kAdmin).status, 200);
  expect_problem(call("GET", "/api/v1/accounts/nobody/devices", kAdmin), 404, "does not exist");
  EXPECT_EQ(parse(call("GET", "/api/v1/accounts", kAdmin)).at("accounts").as_array().size(), 2u);
  auto replaced = call("POST", "/api/v1/accounts/jones/token", kAdmin);
  ASSERT_EQ(replaced.status, 200);
  EXPECT_EQ(call("GET", "/api/v1/accounts/jones/devices", jones).status, 401);
  EXPECT_EQ(call("GET", "/api/v1/accounts/jones/devices", std::string(parse(replaced).at("token").as_string())).status, 200);
}

TEST_F(ApiTest, BadRequestsSayWhatIsWrong) {
  std::string token = account("smith");
  expect_problem(call("POST", "/api/v1/accounts", kAdmin, "{"), 400, "not JSON");
  expect_problem(call("POST", "/api/v1/accounts", kAdmin, "[]"), 400, "JSON object");
  expect_problem(call("POST", "/api/v1/accounts", kAdmin, "{}"), 400, "\\\"name\\\" is missing");
  expect_problem(call("POST", "/api/v1/accounts", kAdmin, "{\"name\":7}"), 400, "name");
  expect_problem(call("POST", "/api/v1/accounts", kAdmin, "{\"name\":\"Smith\"}"), 400, "lower-case");
  expect_problem(call("POST", "/api/v1/accounts", kAdmin, "{\"name\":\"smith\"}"), 409, "already exists");
  expect_problem(call("POST", "/api/v1/accounts", kAdmin, "{\"name\":\"a\",\"x\":1}"), 400, "unknown member");
  expect_problem(call("POST", "/api/v1/accounts/smith/devices/a%2Fb/key", token), 400, "device id");
  expect_problem(call("POST", "/api/v1/accounts/smith/devices/a%zz/key", token), 404, "no such path");
  expect_problem(call("POST", "/api/v1/accounts/smith/devices//key", token), 404, "no such path");
  expect_problem(call("POST", "/api/v1/accounts/smith/devices/tv/key", token, "{\"replace\":1}"), 400, "true or false");
  expect_problem(call("POST", "/api/v1/accounts/smith/keys", token, "{\"expires_in\":0}"), 400, "expires_in");
  expect_problem(call("GET", "/api/v1/nothing", token), 404, "no such path");
  expect_problem(call("GET", "/api/v1/" + std::string(2000, 'x'), token), 404, "no such path");
  auto method = call("PUT", "/api/v1/accounts", kAdmin);
  expect_problem(method, 405, "GET, POST");
  EXPECT_EQ(method.headers.at(0), std::make_pair(std::string("Allow"), std::string("GET, POST")));
  expect_problem(call("POST", "/api/v1/accounts", kAdmin, std::string(kApiBodyMax + 1, ' ')), 413, "larger than");
  expect_problem(call("POST", "/api/v1/accounts/smith/approvals/abc", token), 404, "no login waits");
  store_.fail_with(Error{ErrorCode::kIo, "the disk is full"});
  expect_problem(call("POST", "/api/v1/accounts", kAdmin, "{\"name\":\"new\"}"), 507, "disk is full");
  EXPECT_EQ(call("GET", "/api/v1/health", "").status, 503);
  store_.fail_with(std::nullopt);
  EXPECT_EQ(call("POST", "/api/v1/accounts", kAdmin, "{\"name\":\"new\"}").status, 201);
  EXPECT_EQ(call("GET", "/api/v1/health", "").body, "{\"status\":\"ok\"}");
  EXPECT_EQ(parse(call("GET", "/api/v1/health", kAdmin)).at("accounts").to_number<int>(), 2);
}

TEST_F(ApiTest, RatesAreLimited) {
  std::string token = account("smith");
  int refused = 0;
  for (int i = 0; i < static_cast<int>(kTokenBurst) + 10; ++i)
    if (auto a = call("GET", "/api/v1/accounts/smith/devices", token); a.status == 429) {
      ++refused;
      EXPECT_EQ(a.headers.at(0).first, "Retry-After");
      EXPECT_GE(std::stoi(a.headers.at(0).second), 1);
    }
  EXPECT_EQ(refused, 10);
  clock_.now = clock_.now + 1s;
  EXPECT_EQ(call("GET", "/api/v1/accounts/smith/devices", token).status, 200);
  // Guessing: the address is shut out, also for what would be right; other addresses are not.
  int guesses = 0;
  while (call("GET", "/api/v1/accounts", "wrong").status == 401) ++guesses;
  EXPECT_EQ(guesses, static_cast<int>(kFailuresBurst));
  EXPECT_EQ(call("GET", "/api/v1/accounts", kAdmin).status, 429);
  std::string authorization = "bearer " + std::string(kAdmin);
  EXPECT_EQ(api_->handle(clock_, {"GET", "/api/v1/accounts", authorization, {}, IpAddress::v4(192, 0, 2, 2)}).status, 200);
}

// Every path and method of the document is served, and the other way round.
TEST(OpenApi, DocumentAndRoutesAgree) {
  std::ifstream file(test::tests_path("../docs/openapi.yaml"));
  ASSERT_TRUE(file.good());
  std::set<std::string> documented;
  std::string line, path;
  bool in_paths = false;
  while (std::getline(file, line)) {
    if (!line.empty() && line[0] != ' ' && line[0] != '#') in_paths = line.starts_with("paths:");
    if (!in_paths) continue;
    if (line.starts_with("  /")) {
      path = line.substr(2, line.find(':') - 2);
    } else if (line.starts_with("    ") && line.size() > 5 && line[4] != ' ') {
      std::string method = line.substr(4, line.find(':') - 4);
      if (std::set<std::string>{"get", "post", "put", "delete", "patch"}.contains(method)) {
        for (char& c : method) c = static_cast<char>(c - 'a' + 'A');
        documented.insert(method + " " + path);
      }
    }
  }
  auto list = EnrolmentApi::routes();
  EXPECT_EQ(documented, std::set<std::string>(list.begin(), list.end()));
}

}  // namespace
}  // namespace porthole::remote
