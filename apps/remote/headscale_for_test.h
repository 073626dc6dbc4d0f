// A Headscale for tests: its API over HTTP on loopback, as far as this project uses it, with a memory of its own. Answers
// can be replaced, and it can go away and come back on the same port. With a service behind it (a RemoteService with the
// embedded coordinator), its keys really admit nodes, and what joined there is in its list.
#pragma once

#include <atomic>
#include <boost/asio.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/json.hpp>
#include <charconv>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "remote/clock.h"
#include "remote/control_socket.h"
#include "ts2021/time_text.h"

namespace porthole::remote {

class FakeHeadscale {
 public:
  struct Answer {
    unsigned status = 200;
    std::string body;
  };
  struct Key {
    std::string text, user;
    bool reusable = false, ephemeral = false, used = false;
    WallTime expires;
  };
  struct Node {
    int id = 0;
    std::string user, name, key_prefix;
    int key = 0;
    bool online = true;
    std::optional<WallTime> expiry;
  };
  static constexpr const char* kApiKey = "hskey-api-test-key-that-no-error-may-show";

  // `behind`: the state directory of the service that its keys admit to; empty: none.
  explicit FakeHeadscale(std::string behind = {}) : behind_(std::move(behind)) { start(); }
  ~FakeHeadscale() { stop(); }

  std::string url() const { return "http://127.0.0.1:" + std::to_string(port_); }
  void start() {
    acceptor_.emplace(io_, Tcp::endpoint(boost::asio::ip::address_v4::loopback(), port_));
    port_ = acceptor_->local_endpoint().port();
    stopping_ = false;
    thread_ = std::thread([this] { serve(); });
  }
  void stop() {
    if (!thread_.joinable()) return;
    stopping_ = true;
    boost::system::error_code ignored;
    Tcp::socket knock(io_);
    knock.connect(Tcp::endpoint(boost::asio::ip::address_v4::loopback(), port_), ignored);
    thread_.join();
    acceptor_.reset();
  }

  // All below: under this lock while the server runs.
  std::mutex mutex;
  std::string version = "v0.29.3";
  std::optional<std::string> policy;
  bool policy_can_be_set = true;
  bool flat = false;              // all users share one account of the service behind: nothing is kept apart
  std::string api_key = kApiKey;
  std::map<int, std::string> users;
  std::map<int, Key> keys;
  std::map<int, Node> nodes;      // without a service behind
  std::map<std::string, Answer> replaced;  // "GET /api/v1/user": this answer instead
  std::vector<std::string> calls;          // "POST /api/v1/user", in order

 private:
  using Tcp = boost::asio::ip::tcp;
  using Request = boost::beast::http::request<boost::beast::http::string_body>;
  using Object = boost::json::object;

  void serve() {
    namespace http = boost::beast::http;
    for (;;) {
      boost::system::error_code e;
      Tcp::socket socket(io_);
      acceptor_->accept(socket, e);
      if (e || stopping_) return;
      boost::beast::flat_buffer buffer;
      Request request;
      http::read(socket, buffer, request, e);
      if (e) continue;
      Answer a;
      {
        std::lock_guard lock(mutex);
        a = answer(request);
      }
      http::response<http::string_body> response(static_cast<http::status>(a.status), 11);
      response.set(http::field::content_type, "application/json");
      response.body() = a.body;
      response.prepare_payload();
      http::write(socket, response, e);
      socket.shutdown(Tcp::socket::shutdown_both, e);
    }
  }

  static Answer ok(const Object& o) { return {200, boost::json::serialize(o)}; }
  static Answer failed(unsigned status, const std::string& message) {
    return {status, boost::json::serialize(Object{{"code", 2}, {"message", message}, {"details", boost::json::array()}})};
  }
  static std::string text(const Object& o, const char* name) {
    const auto* v = o.if_contains(name);
    return v && v->is_string() ? std::string(std::string_view(v->as_string())) : std::string();
  }
  static bool flag(const Object& o, const char* name) {
    const auto* v = o.if_contains(name);
    return v && v->is_bool() && v->as_bool();
  }
  static int number(std::string_view text) {
    int n = -1;
    std::from_chars(text.data(), text.data() + text.size(), n);
    return n;
  }
  static std::string hex64(int n) {
    std::string digits = std::to_string(n);
    return std::string(64 - digits.size(), '0') + digits;
  }

  Answer answer(const Request& request) {
    std::string target(request.target());
    std::string path = target.substr(0, target.find('?'));
    std::string query = target.size() > path.size() ? target.substr(path.size() + 1) : "";
    std::string call = std::string(request.method_string()) + " " + path;
    calls.push_back(call);
    if (auto it = replaced.find(call); it != replaced.end()) return it->second;
    if (call == "GET /health") return ok({{"status", "pass"}});
    if (call == "GET /version") return ok({{"version", version}, {"dirty", false}});
    if (request[boost::beast::http::field::authorization] != "Bearer " + api_key) return {401, "Unauthorized"};
    boost::system::error_code bad;
    boost::json::value parsed = boost::json::parse(request.body(), bad);
    Object body = !bad && parsed.is_object() ? parsed.as_object() : Object();
    look_behind();
    constexpr std::string_view kNode = "/api/v1/node/";
    if (call == "GET /api/v1/user") {
      boost::json::array list;
      for (const auto& [id, name] : users) list.push_back(user_json(name));
      return ok({{"users", list}});
    }
    if (call == "POST /api/v1/user") return create_user(text(body, "name"));
    if (call == "GET /api/v1/preauthkey") {
      boost::json::array list;
      for (const auto& [id, key] : keys) list.push_back(key_json(id, true));
      return ok({{"preAuthKeys", list}});
    }
    if (call == "POST /api/v1/preauthkey") return create_key(body);
    if (call == "POST /api/v1/preauthkey/expire") {
      int id = number(text(body, "id"));
      if (auto it = keys.find(id); it != keys.end()) {
        it->second.expires = read_clock().wall;
        if (!it->second.used) (void)behind("revoke", {{"account", account_of(it->second.user)}, {"id", "k" + std::to_string(id)}});
      }
      return ok({});
    }
    if (call == "DELETE /api/v1/preauthkey") {
      keys.erase(number(query.substr(query.find('=') + 1)));
      return ok({});
    }
    if (call == "GET /api/v1/node") {
      boost::json::array list;
      for (const auto& [id, node] : nodes) list.push_back(node_json(node));
      return ok({{"nodes", list}});
    }
    if (call == "POST /api/v1/node/register") {
      std::size_t amp = query.find("&key=");
      std::string user = query.substr(5, amp - 5), id = query.substr(amp + 5);
      auto done = behind("approve", {{"account", account_of(user)}, {"id", id}});
      return flag(done, "ok") ? ok({{"node", Object()}}) : failed(500, "no such login");
    }
    if (path.starts_with(kNode)) {
      int id = number(std::string_view(path).substr(kNode.size()));
      auto it = nodes.find(id);
      if (it == nodes.end()) return failed(404, "node not found");
      if (path.ends_with("/expire")) {
        it->second.expiry = expired_[id] = read_clock().wall;
        return ok({{"node", node_json(it->second)}});
      }
      (void)behind("revoke", {{"account", account_of(it->second.user)}, {"id", std::to_string(id)}});
      nodes.erase(it);
      return ok({});
    }
    if (call == "GET /api/v1/policy") {
      if (!policy) return failed(500, "loading ACL from database: acl policy not found");
      return ok({{"policy", *policy}, {"updatedAt", nullptr}});
    }
    if (call == "PUT /api/v1/policy") {
      if (!policy_can_be_set) return failed(500, "update is disabled for modes other than 'database'");
      policy = text(body, "policy");
      return ok({{"policy", *policy}});
    }
    return failed(404, "Not Found");
  }

  Object user_json(const std::string& name) const {
    for (const auto& [id, n] : users)
      if (n == name) return {{"id", std::to_string(id)}, {"name", name}};
    return {};
  }
  Object key_json(int id, bool masked) const {
    const Key& k = keys.at(id);
    std::string shown = masked ? k.text.substr(0, k.text.size() - 65) + "-***" : k.text;
    return {{"user", user_json(k.user)}, {"id", std::to_string(id)}, {"key", shown}, {"reusable", k.reusable}, {"ephemeral", k.ephemeral},
            {"used", k.used}, {"expiration", ts2021::format_time(k.expires)}, {"aclTags", boost::json::array()}};
  }
  Object node_json(const Node& n) const {
    Object o{{"id", std::to_string(n.id)}, {"machineKey", "mkey:" + hex64(n.id)}, {"nodeKey", "nodekey:" + hex64(n.id)},
             {"discoKey", "discokey:" + hex64(n.id)}, {"ipAddresses", boost::json::array{"100.64.0." + std::to_string(n.id)}},
             {"name", n.name}, {"user", user_json(n.user)}, {"createdAt", "2026-08-02T18:16:39Z"}, {"givenName", n.name}, {"online", n.online},
             {"expiry", n.expiry ? boost::json::value(ts2021::format_time(*n.expiry)) : boost::json::value("0001-01-01T00:00:00Z")},
             {"tags", boost::json::array()}, {"preAuthKey", nullptr}};
    if (n.key != 0) o["preAuthKey"] = keys.contains(n.key) ? boost::json::value(key_json(n.key, true)) : boost::json::value(nullptr);
    return o;
  }

  Answer create_user(const std::string& name) {
    for (const auto& [id, n] : users)
      if (n == name) return failed(500, "UNIQUE constraint failed: users.name");
    users[++last_] = name;
    return ok({{"user", user_json(name)}});
  }

  Answer create_key(const Object& body) {
    auto user = users.find(number(text(body, "user")));
    auto expires = ts2021::parse_time(text(body, "expiration"));
    if (user == users.end() || !expires) return failed(500, "user not found");
    int id = ++last_;
    Key k{"hskey-auth-" + hex64(id).substr(52) + "-" + hex64(id), user->second, flag(body, "reusable"), flag(body, "ephemeral"), false, *expires};
    if (!behind_.empty()) {
      (void)behind("account_create", {{"account", account_of(k.user)}});  // where it is not there yet
      Object command{{"account", account_of(k.user)}, {"reusable", k.reusable}, {"ephemeral", k.ephemeral}, {"lifetime_seconds", 3600}};
      if (!k.reusable) command["device"] = "k" + std::to_string(id);
      Object made = behind("key_create", command);
      if (!flag(made, "ok")) return failed(500, text(made, "error"));
      k.text = text(made, "key");
    }
    keys[id] = k;
    return ok({{"preAuthKey", key_json(id, false)}});
  }

  std::string account_of(const std::string& user) const { return flat ? "flat" : user; }
  Object behind(const char* command, Object arguments) {
    if (behind_.empty()) return {};
    arguments["command"] = command;
    return ask_control_socket(behind_ + "/control.sock", arguments).value_or(Object());
  }
  void look_behind() {
    if (behind_.empty()) return;
    nodes.clear();
    Object list = behind("devices_list", {});
    for (const auto& v : list.at("devices").as_array()) {
      const Object& d = v.as_object();
      if (!d.contains("node")) continue;
      Node n{number(text(d, "node")), text(d, "account"), text(d, "name"), "", 0, flag(d, "online"), {}};
      if (std::string device = text(d, "device"); device.starts_with("k")) n.key = number(std::string_view(device).substr(1));
      if (auto it = keys.find(n.key); it != keys.end()) {
        it->second.used = true;
        n.user = it->second.user;
      }
      if (auto it = expired_.find(n.id); it != expired_.end()) n.expiry = it->second;
      nodes[n.id] = n;
    }
  }

  std::string behind_;
  boost::asio::io_context io_;
  std::optional<Tcp::acceptor> acceptor_;
  std::uint16_t port_ = 0;
  std::atomic<bool> stopping_ = false;
  std::thread thread_;
  int last_ = 0;
  std::map<int, WallTime> expired_;
};

}  // namespace porthole::remote
