// TailnetNode over libporthole.
#include "client/tailnet.h"

#ifdef PORTHOLE_HAS_NODE_LIBRARY

#include <atomic>
#include <boost/json.hpp>
#include <porthole/porthole.hpp>

#include "support/json_read.h"

namespace porthole::client {
namespace {

using app::parse_object;
using app::text_of;
using boost::json::object;

NodeError translated(const Exception& e) {
  switch (e.code()) {
    case PORTHOLE_ERROR_TIMEOUT:
      return {NodeError::Kind::kTimeout, e.what()};
    case PORTHOLE_ERROR_UNAUTHORIZED:
    case PORTHOLE_ERROR_EXPIRED:
      return {NodeError::Kind::kUnauthorized, e.what()};
    case PORTHOLE_ERROR_NOT_FOUND:
      return {NodeError::Kind::kNotFound, e.what()};
    case PORTHOLE_ERROR_EXISTS:
      return {NodeError::Kind::kInUse, kTailnetInUse};
    default:
      return {NodeError::Kind::kFailed, e.what()};
  }
}

// Codes of notices for what answers, but not as a coordination server (or relay) that this device can use: a login page, a
// proxy that strips the upgrade, TLS where there is none, an untrusted certificate, another service.
bool lasting(const std::string& code) {
  return code == "protocol" || code == "unauthorized" || code == "unsupported" || code == "not-found";
}

template <class F>
auto guarded(F f) {
  try {
    return f();
  } catch (const Exception& e) {
    throw translated(e);
  }
}

class NativeNode final : public TailnetNode {
 public:
  NativeNode(const TailnetNodeConfig& c, bool relay_only) : node_(options(c, relay_only)) {}
  ~NativeNode() override {
    stopping_ = true;
    if (observer_.joinable()) observer_.join();
  }

  void join(std::chrono::milliseconds time_max) override {
    try {
      node_.wait_running(time_max);
    } catch (const Exception& e) {
      // Without a key the node would wait for a person to open a page; here there is none to do that.
      if (e.code() == PORTHOLE_ERROR_TIMEOUT && text_of(parse_object(node_.status_json()), "state") == "needs-login")
        throw NodeError(NodeError::Kind::kUnauthorized, "the coordination server wants a new login");
      throw translated(e);
    }
  }
  bool connected() override {
    return guarded([&] { return text_of(parse_object(node_.status_json()), "state") == "running"; });
  }
  ProxyEndpoint loopback_proxy() override {
    Loopback l = guarded([&] { return node_.loopback(); });
    return {l.address, l.username, l.password};
  }
  void wait_peer(const std::string& peer, std::chrono::milliseconds time_max) override {
    guarded([&] { node_.wait_peer(peer, time_max); });
  }
  std::string path_to(const std::string& peer) override {
    object status = parse_object(guarded([&] { return node_.status_json(); }));
    const boost::json::value* peers = status.if_contains("peers");
    if (!peers || !peers->is_array()) return "unknown";
    for (const boost::json::value& v : peers->as_array()) {
      if (!v.is_object()) continue;
      const object& p = v.as_object();
      std::string name = text_of(p, "name");
      bool same = name == peer || (name.starts_with(peer) && name.size() > peer.size() && name[peer.size()] == '.');
      if (const boost::json::value* ips = p.if_contains("ips"); ips && ips->is_array())
        for (const boost::json::value& ip : ips->as_array()) same = same || (ip.is_string() && ip.as_string() == peer);
      if (!same) continue;
      std::string path = text_of(p, "path");
      return path.empty() ? "unknown" : path;
    }
    return "unknown";
  }
  void observe(std::function<void(const NodeNews&)> observer) override {
    if (observer_.joinable()) return;
    observer_ = std::thread([this, tell = std::move(observer)] {
      while (!stopping_) {
        try {
          auto text = node_.next_event(std::chrono::milliseconds(200));
          if (!text) continue;
          object event = parse_object(*text);
          NodeNews news;
          news.state = text_of(event, "event");
          if (news.state == "state") news.state = text_of(event, "state");
          if (news.state == "login_url") news.state = "login_needed";
          if (news.state == "notice") news = {{}, text_of(event, "message"), lasting(text_of(event, "code"))};
          tell(news);
        } catch (const Exception&) {
          return;  // closed
        }
      }
    });
  }

 private:
  static NodeOptions options(const TailnetNodeConfig& c, bool relay_only) {
    NodeOptions o;
    o.state_dir = c.state_dir;
    o.control_url = c.coordination_url;
    o.auth_key = c.auth_key;
    o.hostname = c.hostname;
    o.ca_file = c.ca_file;
    o.relay_only = relay_only;
    return o;
  }

  Node node_;
  std::atomic<bool> stopping_{false};
  std::thread observer_;
};

}  // namespace

TailnetNodeFactory native_node_factory(bool relay_only) {
  return [relay_only](const TailnetNodeConfig& config) {
    return guarded([&]() -> std::unique_ptr<TailnetNode> { return std::make_unique<NativeNode>(config, relay_only); });
  };
}

}  // namespace porthole::client

#else

namespace porthole::client {
TailnetNodeFactory native_node_factory(bool) { return {}; }
}  // namespace porthole::client

#endif
