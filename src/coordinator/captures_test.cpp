// Real clients' requests, in the order in which they were made, must be served.
#include <set>

#include "coordinator/coordinator_test_world.h"
#include "support/vectors.h"

namespace porthole::coordinator {
namespace {

namespace json = boost::json;
using test::Client;
using test::World;

class Captures : public testing::TestWithParam<const char*> {};

TEST_P(Captures, AreServed) {
  World w;
  w.account("rig");
  std::map<std::string, std::unique_ptr<Client>> clients;
  std::map<std::string, std::string> keys;  // the capture's -> ours
  std::string last_auth_url;
  int registered = 0, maps = 0, streams = 0;
  const json::value capture = porthole::test::load_capture(GetParam());
  for (const json::value& v : capture.at("events").as_array()) {
    const json::object& event = v.as_object();
    const json::value* request = event.if_contains("request");
    if (!request) continue;
    std::string name(event.at("client").as_string());
    std::string_view line = request->as_string();
    std::string_view path = line.substr(line.find(' ') + 1);
    json::object body = event.at("body").as_object();
    auto& client = clients[name];
    if (!client) {
      client = std::make_unique<Client>(w);
      ASSERT_TRUE(client->connect(142));
    }
    w.step(1s);
    if (const json::value* auth = body.if_contains("Auth"); auth && auth->is_object()) {
      std::string key(auth->as_object().at("AuthKey").as_string());
      if (!keys.contains(key) && key.size() > 40) keys[key] = w.key("rig", {"", true, name == "machine4", std::nullopt});
      body["Auth"] = json::object{{"AuthKey", keys.contains(key) ? keys[key] : key}};
    }
    if (const json::value* followup = body.if_contains("Followup"); followup && !followup->as_string().empty())
      body["Followup"] = last_auth_url;
    auto stream = client->post(path, as_bytes(json::serialize(body)));
    if (body.contains("Stream") && body.at("Stream").as_bool()) client->watch(stream, body.at("Compress") == json::value("zstd"));
    client->pump();
    const Client::Answer& answer = client->answers[stream];
    SCOPED_TRACE(json::serialize(body));
    if (path == ts2021::kRegisterPath) {
      bool waits = !body.at("Followup").as_string().empty() && answer.status == 0;
      if (waits) {
        auto id = last_auth_url.substr(last_auth_url.rfind('/') + 1);
        if (name == "machine5") {
          ASSERT_TRUE(w.directory->approve(w.clock, "rig", id).ok());
          client->pump();
        } else {
          continue;  // abandoned
        }
      }
      ASSERT_EQ(answer.status, 200) << answer.body;
      auto parsed = ts2021::parse_register_response(as_bytes(answer.body));
      ASSERT_TRUE(parsed.ok());
      if (!parsed->auth_url.empty()) last_auth_url = parsed->auth_url;
      if (parsed->machine_authorized) ++registered;
    } else {
      ASSERT_EQ(path, ts2021::kMapPath);
      ASSERT_EQ(answer.status, 200) << answer.body;
      ++maps;
      if (client->poll_stream == stream) {
        ++streams;
        ASSERT_FALSE(client->maps.empty());
        EXPECT_EQ(client->maps[0].node->key.to_string(), body.at("NodeKey").as_string());
      }
    }
  }
  EXPECT_GT(registered, 0);
  EXPECT_GT(maps, 2);
  EXPECT_GT(streams, 0);
}

INSTANTIATE_TEST_SUITE_P(All, Captures,
                         testing::Values("control-session.json", "control-embedded.json", "control-interactive-delete.json"));

}  // namespace
}  // namespace porthole::coordinator
