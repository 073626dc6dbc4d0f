#include "serve/bridge.h"

#include <sys/stat.h>

#include <algorithm>
#include <boost/json.hpp>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <thread>

#include "serve/limits.h"
#include "session/limits.h"
#include "session/names.h"
#include "support/json_read.h"
#include "support/support.h"
#ifdef PORTHOLE_HAS_NODE_LIBRARY
#include <porthole/porthole.hpp>
#endif

namespace porthole::serve {
namespace {

using namespace std::chrono_literals;
using app::parse_object;
using app::text_of;
using boost::json::object;

}  // namespace

class TailnetBridge::Impl {
 public:
  Impl(BridgeConfig config, std::shared_ptr<const EnrolmentClient> enrolment, BridgeHooks hooks)
      : config_(std::move(config)), enrolment_(std::move(enrolment)), hooks_(std::move(hooks)) {
    try {
      app::ensure_state_dir(config_.state_dir);
      load();
    } catch (const app::CommandError& e) {
      enter("failed", e.what());
      return;
    }
    thread_ = std::thread([this] { run(); });
  }
  ~Impl() { stop(); }

  void stop_asking() { asking_.request_stop(); }
  void stop() {
    stop_asking();
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
      wake_.notify_all();
    }
    if (thread_.joinable()) thread_.join();
  }

  RemoteGrant grant(const std::string& device_id, bool new_key) const {
    RemoteGrant out;
    {
      std::lock_guard lock(mutex_);
      if (ip_.empty() || state_ == "failed") {
        out.problem = "the server is not on its tailnet" + (problem_.empty() ? " yet" : ": " + problem_);
        return out;
      }
      out.remote_hostname = hostname_;
      out.remote_ip = ip_;
    }
    try {
      DeviceKey key = enrolment_->device_key(device_id, new_key, kEnrolmentTimeout, asking_.get_token());
      out.coordination_url = key.coordination_url;
      out.tailnet_preauth_key = key.key;
    } catch (const EnrolmentError& e) {
      out = RemoteGrant{};
      out.problem = e.what();
    }
    return out;
  }

  object status() const {
    std::lock_guard lock(mutex_);
    object out{{"state", state_}, {"hostname", hostname_}, {"ip", ip_}, {"coordination_url", coordination_url_}};
    if (!problem_.empty()) out["problem"] = problem_;
    return out;
  }

  std::optional<PeerIdentity> peer_of(std::uint16_t port) const;

 private:
  std::string profile() const { return config_.state_dir + "/bridge.json"; }

  // Where the server was on the tailnet last: handed out at logins before the node is up again.
  void load() {
    struct stat s {};
    if (::stat(profile().c_str(), &s) != 0) return;
    object stored = parse_object(app::read_file(profile()));
    if (!stored.contains("version") || !stored["version"].is_int64())
      throw app::CommandError(profile() + " is damaged; remove the folder " + config_.state_dir + " to join the tailnet anew");
    if (stored["version"].as_int64() != 1)
      throw app::CommandError(profile() + " was written by a newer version of porthole");
    hostname_ = text_of(stored, "hostname");
    ip_ = text_of(stored, "ip");
    coordination_url_ = text_of(stored, "coordination_url");
    joined_ = true;
  }
  void save() {
    object stored{{"version", 1}, {"hostname", hostname_}, {"ip", ip_}, {"coordination_url", coordination_url_}};
    app::write_file_atomic(profile(), boost::json::serialize(stored) + "\n");
  }

  void enter(const std::string& state, const std::string& problem) {
    object event;
    {
      std::lock_guard lock(mutex_);
      if (state == state_ && problem == problem_) return;
      state_ = state;
      problem_ = problem;
      event = {{"event", "remote"}, {"state", state}, {"hostname", hostname_}, {"ip", ip_}};
      if (!problem.empty()) event["problem"] = problem;
    }
    hooks_.event(event);
    hooks_.log("remote access: " + state + (problem.empty() ? "" : ": " + problem));
  }

  // False when it is time to stop.
  bool pause(std::chrono::milliseconds time) {
    std::unique_lock lock(mutex_);
    return !wake_.wait_for(lock, time, [this] { return stopping_; });
  }
  bool stopping() const {
    std::lock_guard lock(mutex_);
    return stopping_;
  }

  void run() {
    auto wait = 1000ms;
    while (!stopping()) {
      try {
        one_life();
        wait = 1000ms;
      } catch (const std::exception& e) {
        if (stopping() || asking_.stop_requested()) return;
        enter("waiting", e.what());
      }
      if (abandoned_) start_over();
      unsigned jitter = 0;
      app::random_bytes(&jitter, sizeof jitter);
      if (!pause(wait + std::chrono::milliseconds(jitter % 500))) return;
      wait = std::min(wait * 2, 60'000ms);
    }
  }

  // The stored login is worth nothing any more: the next life asks for a key and joins as a new device.
  void start_over() {
    if (joined_) hooks_.log("remote access: this server's login at the coordination service has ended; joining anew");
    std::error_code ignored;
    std::filesystem::remove_all(config_.state_dir + "/node", ignored);
    std::filesystem::remove(profile(), ignored);
    abandoned_ = joined_ = false;
    replace_ = true;
    std::lock_guard lock(mutex_);
    ip_.clear();
  }

  void one_life();

  BridgeConfig config_;
  std::shared_ptr<const EnrolmentClient> enrolment_;
  BridgeHooks hooks_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;
  bool joined_ = false;      // the bridge's thread only, after load()
  bool abandoned_ = false;   // likewise
  bool replace_ = false;     // likewise
  bool on_tailnet_ = false;  // likewise; in this life
  std::string state_ = "starting", problem_, hostname_, ip_, coordination_url_;
  std::stop_source asking_;
  std::thread thread_;
#ifdef PORTHOLE_HAS_NODE_LIBRARY
  void watch(Node& node);
  void running(Node& node);
  void look_at_state(Node& node);
  void hear_notice(const std::string& text);

  mutable std::mutex node_mutex_;  // peer_of() against the end of a life
  Node* node_ = nullptr;
#endif
};

#ifdef PORTHOLE_HAS_NODE_LIBRARY

namespace {

// The IPv4 address where there is one: what people recognise, and what every peer can use.
std::string first_ip(const object& of) {
  std::string out;
  if (const boost::json::value* ips = of.if_contains("ips"); ips && ips->is_array())
    for (const boost::json::value& ip : ips->as_array())
      if (ip.is_string() && (out.empty() || out.find(':') != std::string::npos)) out = std::string(ip.as_string());
  return out;
}

}  // namespace

// Joins, forwards, and stays until stop() or until the tailnet does not want this server any more.
void TailnetBridge::Impl::one_life() {
  NodeOptions options;
  options.state_dir = config_.state_dir + "/node";
  options.hostname = config_.hostname;
  options.ca_file = config_.ca_file;
  options.relay_only = config_.relay_only;
  if (joined_) {
    options.control_url = coordination_url_;
  } else {
    enter("enrolling", "");
    DeviceKey key = enrolment_->device_key(config_.device_id, replace_, 15s, asking_.get_token());
    options.auth_key = key.key;
    std::lock_guard lock(mutex_);
    options.control_url = coordination_url_ = key.coordination_url;
  }
  enter("joining", "");
  on_tailnet_ = false;
  Node node(options);
  {
    std::lock_guard lock(node_mutex_);
    node_ = &node;
  }
  struct Forget {
    Impl* self;
    ~Forget() {
      std::lock_guard lock(self->node_mutex_);
      self->node_ = nullptr;
    }
  } forget{this};
  node.expose(session::kServicePort, "127.0.0.1:" + std::to_string(config_.local_port));
  try {
    watch(node);
  } catch (const Exception& e) {
    bool ended = e.code() == PORTHOLE_ERROR_UNAUTHORIZED || e.code() == PORTHOLE_ERROR_EXPIRED;
    // The stored login, or the key the service had, is worth nothing any more: the next one must be new.
    if (ended) abandoned_ = true;
    throw;
  }
}

// As it is now: events from before may still be in the queue. Throws when this node will not come up by itself.
void TailnetBridge::Impl::look_at_state(Node& node) {
  std::string state = text_of(parse_object(node.status_json()), "state");
  if (state == "running") return running(node);
  if (state == "failed" || state == "logged-out") node.wait_running(1s);  // throws the reason at once
  // The node would wait for a person to open a page; a server asks for a new key instead.
  if (state == "needs-login") {
    abandoned_ = true;
    throw app::CommandError("the coordination server wants a new login of this server");
  }
  if (on_tailnet_) enter(state, "");
}

// What keeps it from the tailnet belongs to the state; what the node says beside that does not last as long.
void TailnetBridge::Impl::hear_notice(const std::string& text) {
  std::string state;
  {
    std::lock_guard lock(mutex_);
    state = state_;
  }
  if (state != "running") return enter(state, text);
  hooks_.event({{"event", "remote_notice"}, {"message", text}});
  hooks_.log("remote access: " + text);
}

// Where this server is on the tailnet, from now on handed out at logins.
void TailnetBridge::Impl::running(Node& node) {
  if (stopping()) return;
  object status = parse_object(node.status_json());
  const boost::json::value* self = status.if_contains("self");
  if (!self || !self->is_object()) return;
  {
    std::lock_guard lock(mutex_);
    ip_ = first_ip(self->as_object());
    hostname_ = text_of(self->as_object(), "name");
    if (hostname_.ends_with('.')) hostname_.pop_back();
  }
  joined_ = on_tailnet_ = true;
  replace_ = false;
  try {
    save();
  } catch (const app::CommandError& e) {
    hooks_.log(std::string("remote access: ") + e.what());  // a full disk, most likely; the tailnet is there all the same
  }
  enter("running", "");
}

void TailnetBridge::Impl::watch(Node& node) {
  std::set<std::string> before;
  auto next_look = std::chrono::steady_clock::now();
  while (!stopping()) {
    if (auto text = node.next_event(500ms)) {
      object event = parse_object(*text);
      std::string name = text_of(event, "event");
      if (name == "running" || name == "state" || name == "login_url") look_at_state(node);
      if (name == "notice") hear_notice(session::clean_text(text_of(event, "message"), session::kTextBytesMax));
    }
    if (std::chrono::steady_clock::now() < next_look) continue;
    next_look = std::chrono::steady_clock::now() + 1s;
    std::set<std::string> now;
    object status = parse_object(node.status_json());
    if (text_of(status, "state") != "running") continue;  // an old netmap proves nothing
    if (const boost::json::value* peers = status.if_contains("peers"); peers && peers->is_array())
      for (const boost::json::value& peer : peers->as_array()) {
        if (!peer.is_object()) continue;
        if (const boost::json::value* ips = peer.as_object().if_contains("ips"); ips && ips->is_array())
          for (const boost::json::value& ip : ips->as_array())
            if (ip.is_string()) now.insert(std::string(ip.as_string()));
      }
    bool gone = std::any_of(before.begin(), before.end(), [&](const std::string& ip) { return !now.contains(ip); });
    if (gone) hooks_.peers(now);
    before = std::move(now);
  }
}

std::optional<PeerIdentity> TailnetBridge::Impl::peer_of(std::uint16_t port) const {
  std::lock_guard lock(node_mutex_);
  if (!node_) return std::nullopt;
  try {
    object peer = parse_object(node_->exposed_peer(port));
    PeerIdentity out{text_of(peer, "peer"), text_of(peer, "ip"), text_of(peer, "stable_id"), text_of(peer, "user")};
    out.name = session::clean_text(out.name, 128);
    out.user = session::clean_text(out.user, 128);
    return out;
  } catch (const Exception&) {
    return std::nullopt;  // ended already
  }
}

#else

void TailnetBridge::Impl::one_life() {
  throw app::CommandError("this build of porthole has no tailnet node, so there is no remote access");
}
std::optional<PeerIdentity> TailnetBridge::Impl::peer_of(std::uint16_t) const { return std::nullopt; }

#endif

TailnetBridge::TailnetBridge(BridgeConfig config, std::shared_ptr<const EnrolmentClient> enrolment, BridgeHooks hooks)
    : impl_(std::make_unique<Impl>(std::move(config), std::move(enrolment), std::move(hooks))) {}
TailnetBridge::~TailnetBridge() = default;
std::optional<PeerIdentity> TailnetBridge::peer_of(std::uint16_t port) const { return impl_->peer_of(port); }
RemoteGrant TailnetBridge::grant(const std::string& id, bool new_key) const { return impl_->grant(id, new_key); }
object TailnetBridge::status() const { return impl_->status(); }
void TailnetBridge::stop_asking() { impl_->stop_asking(); }
void TailnetBridge::stop() { impl_->stop(); }

}  // namespace porthole::serve
