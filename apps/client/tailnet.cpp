#include "client/tailnet.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <filesystem>

#include "client/error.h"
#include "client/limits.h"
#include "support/support.h"

namespace porthole::client {
namespace {

using namespace std::chrono_literals;

using std::chrono::steady_clock;

constexpr std::chrono::milliseconds kTurn = 500ms;
constexpr const char* kKeyInvalid =
    "the key is no longer valid, or this device was revoked; log in at home again to get a new one";

// A new login is made beside the stored one, which counts until the new one holds: who turns this node away may not be the
// server it belongs to.
constexpr const char* kNodeFolders[] = {"node", "node.2"};

// A node that another process runs on this directory keeps what is its own.
void forget_node(const std::string& dir) {
  int lock = ::open((dir + "/lock").c_str(), O_RDWR | O_CLOEXEC);
  if (lock < 0) return;  // no node has been here
  if (::flock(lock, LOCK_EX | LOCK_NB) != 0) {
    ::close(lock);
    throw NodeError(NodeError::Kind::kInUse, kTailnetInUse);
  }
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(dir, ignored))
    if (entry.path().filename() != "lock") std::filesystem::remove_all(entry.path(), ignored);
  ::close(lock);
}

}  // namespace

const char* name_of(TailnetState state) {
  switch (state) {
    case TailnetState::kIdle:
      return "idle";
    case TailnetState::kJoining:
      return "joining";
    case TailnetState::kConnected:
      return "connected";
    case TailnetState::kFailed:
      return "failed";
  }
  return "unknown";
}

TailnetClient::TailnetClient(std::string dir, std::string hostname, std::string ca_file, TailnetNodeFactory factory)
    : dir_(std::move(dir)), hostname_(std::move(hostname)), ca_file_(std::move(ca_file)), factory_(std::move(factory)) {
  app::ensure_state_dir(dir_);
  std::string note = dir_ + "/tailnet.json";
  struct stat s {};
  if (::stat(note.c_str(), &s) == 0) {
    boost::system::error_code error;
    boost::json::value value = boost::json::parse(app::read_file(note), error);
    const boost::json::object* stored = error ? nullptr : value.if_object();
    const boost::json::value* version = stored ? stored->if_contains("version") : nullptr;
    const boost::json::value* url = stored ? stored->if_contains("coordination_url") : nullptr;
    if (version && version->is_int64() && version->as_int64() > 1)
      throw ClientError(Failure::kFailed, note + " was written by a newer version of porthole; update this one");
    if (!version || !url || !url->is_string())
      throw ClientError(Failure::kFailed, note + " is damaged; remove the folder " + dir_ + " and log in at home again");
    joined_url_ = std::string(url->as_string());
    const boost::json::value* node = stored->if_contains("node");
    if (node && node->is_string() && node->as_string() == kNodeFolders[1]) folder_ = kNodeFolders[1];
  }
  thread_ = std::thread([this] { run(); });
}

TailnetClient::~TailnetClient() {
  shut_down();
  thread_.join();
}

void TailnetClient::shut_down() {
  std::lock_guard lock(mutex_);
  stopping_ = true;
  changed_.notify_all();
}

void TailnetClient::save() {
  boost::json::object note{{"version", 1}, {"coordination_url", joined_url()}, {"node", folder_}};
  app::write_file_atomic(dir_ + "/tailnet.json", boost::json::serialize(note) + "\n", 0600);
}

bool TailnetClient::has_joined() const {
  std::lock_guard lock(mutex_);
  return !joined_url_.empty();
}
std::string TailnetClient::joined_url() const {
  std::lock_guard lock(mutex_);
  return joined_url_;
}
TailnetStatus TailnetClient::status() const {
  std::lock_guard lock(mutex_);
  return status_;
}
void TailnetClient::observe(std::function<void(const TailnetStatus&)> observer) {
  std::lock_guard lock(mutex_);
  observer_ = std::move(observer);
}
std::shared_ptr<TailnetNode> TailnetClient::node() const {
  std::lock_guard lock(mutex_);
  return node_;
}

void TailnetClient::start(Order order) {
  std::lock_guard lock(mutex_);
  if (order_ || status_.state == TailnetState::kJoining || status_.state == TailnetState::kConnected) return;
  order_ = std::move(order);
  trouble_.reset();
  status_ = {TailnetState::kJoining, {}, NodeError::Kind::kFailed};
  changed_.notify_all();
}

void TailnetClient::join(const std::string& coordination_url, const std::string& key) { start({coordination_url, key}); }
void TailnetClient::ensure_connected() { start({}); }

void TailnetClient::enter(TailnetState state, const std::string& problem, NodeError::Kind kind) {
  std::function<void(const TailnetStatus&)> observer;
  TailnetStatus status{state, problem, kind};
  {
    std::lock_guard lock(mutex_);
    status_ = status;
    observer = observer_;
    changed_.notify_all();
  }
  if (observer) observer(status);
}

void TailnetClient::run() {
  for (;;) {
    Order order;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return stopping_ || order_; });
      if (stopping_) break;
      order = *std::exchange(order_, std::nullopt);
    }
    try {
      bring_up(order);
    } catch (const NodeError& e) {
      bool unauthorized = e.kind() == NodeError::Kind::kUnauthorized;
      enter(TailnetState::kFailed, unauthorized ? std::string(kKeyInvalid) + " (" + e.what() + ")" : e.what(), e.kind());
    } catch (const std::exception& e) {
      enter(TailnetState::kFailed, e.what());
    }
  }
  drop_node();
}

// Never under the lock: the node's own thread may be waiting for it in note(). Whoever still waits on the node keeps it
// until they are done.
void TailnetClient::drop_node() {
  std::shared_ptr<TailnetNode> old;  // outlives the lock
  std::lock_guard lock(mutex_);
  old.swap(node_);
}

// On the node's thread: a login that ends while connected is the end of the connection.
void TailnetClient::note(const NodeNews& news) {
  bool ended = news.state == "login_needed" || news.state == "needs-login" || news.state == "logged-out" ||
               news.state == "expired";
  if (ended && status().state == TailnetState::kConnected)
    enter(TailnetState::kFailed, kKeyInvalid, NodeError::Kind::kUnauthorized);
  if (news.problem.empty()) return;
  std::function<void(const TailnetStatus&)> observer;
  TailnetStatus status;
  {
    std::lock_guard lock(mutex_);
    steady_clock::time_point now = steady_clock::now();
    std::optional<Trouble> before = trouble();
    bool goes_on = before && before->lasting == news.lasting;
    trouble_ = Trouble{news.problem, news.lasting, goes_on ? before->first : now, now};
    if (status_.state != TailnetState::kJoining) return;
    status_.problem = news.problem;
    status = status_;
    observer = observer_;
  }
  if (observer) observer(status);
}

std::optional<TailnetClient::Trouble> TailnetClient::trouble() const {
  if (trouble_ && steady_clock::now() - trouble_->last > kTroubleCounts) return std::nullopt;
  return trouble_;
}

void TailnetClient::bring_up(const Order& order) {
  enter(TailnetState::kJoining);
  std::string joined = joined_url();
  if (joined.empty() && order.key.empty())
    throw NodeError(NodeError::Kind::kFailed, "this device never joined the tailnet of this server; log in at home first");
  if (!factory_) throw NodeError(NodeError::Kind::kFailed, "this build of porthole has no tailnet node");
  // From stored state first where there is some: a key that was used up or has expired since does not matter then.
  bool stored = !joined.empty() && (order.url.empty() || order.url == joined);
  std::string folder;
  for (;;) {
    folder = stored || joined.empty() ? folder_ : kNodeFolders[folder_ == kNodeFolders[0]];
    TailnetNodeConfig config{dir_ + "/" + folder, stored ? joined : order.url, stored ? std::string() : order.key, hostname_, ca_file_};
    drop_node();
    try {
      if (!stored) forget_node(config.state_dir);  // of a login that never held
      std::shared_ptr<TailnetNode> made = factory_(config);
      {
        std::lock_guard lock(mutex_);
        node_ = made;
      }
      made->observe([this](const NodeNews& news) { note(news); });
      for (;;) {
        try {
          made->join(250ms);
          break;
        } catch (const NodeError& e) {
          if (e.kind() != NodeError::Kind::kTimeout) throw;
        }
        std::lock_guard lock(mutex_);
        if (stopping_) return;
        std::optional<Trouble> met = trouble();
        if (met && met->lasting && steady_clock::now() - met->first > kLastingTroubleGrace)
          throw NodeError(NodeError::Kind::kBlocked, "the tailnet cannot be reached: " + met->sentence);
      }
      break;
    } catch (const NodeError& e) {
      drop_node();
      if (e.kind() != NodeError::Kind::kUnauthorized || !stored || order.key.empty()) throw;
      stored = false;  // the stored login has ended, but there is a key
    }
  }
  if (!stored) {
    const std::string before = std::exchange(folder_, folder);
    {
      std::lock_guard lock(mutex_);
      joined_url_ = order.url;
    }
    save();
    try {
      if (before != folder_) forget_node(dir_ + "/" + before);
    } catch (const NodeError&) {
      // another process is still there; the next login clears it away
    }
  }
  enter(TailnetState::kConnected);
}

void TailnetClient::wait_connected(std::chrono::milliseconds time_max) {
  std::unique_lock lock(mutex_);
  bool done = changed_.wait_for(lock, time_max, [this] {
    return stopping_ || status_.state == TailnetState::kConnected || status_.state == TailnetState::kFailed;
  });
  if (status_.state == TailnetState::kConnected) return;
  if (stopping_) throw ClientError(Failure::kFailed, "interrupted");
  if (!done)
    throw ClientError(Failure::kUnreachable, status_.problem.empty() ? "the tailnet does not answer yet"
                                                                     : "the tailnet cannot be reached yet: " + status_.problem);
  bool final = status_.kind == NodeError::Kind::kInUse || status_.kind == NodeError::Kind::kBlocked;
  Failure failure = status_.kind == NodeError::Kind::kUnauthorized ? Failure::kKeyInvalid
                    : final                                        ? Failure::kFailed
                                                                   : Failure::kUnreachable;
  throw ClientError(failure, status_.problem);
}

namespace {

[[noreturn]] void raise(const NodeError& e, const std::string& doing) {
  if (e.kind() == NodeError::Kind::kUnauthorized)
    throw ClientError(Failure::kKeyInvalid, std::string(kKeyInvalid) + " (" + e.what() + ")");
  throw ClientError(Failure::kUnreachable, doing + ": " + e.what());
}

}  // namespace

ProxyEndpoint TailnetClient::proxy() {
  std::shared_ptr<TailnetNode> n = node();
  if (!n) throw ClientError(Failure::kUnreachable, "the tailnet is not connected");
  try {
    return n->loopback_proxy();
  } catch (const NodeError& e) {
    raise(e, "the way into the tailnet cannot be opened");
  }
}

void TailnetClient::wait_peer(const std::string& peer, std::chrono::milliseconds time_max) {
  std::shared_ptr<TailnetNode> n = node();
  if (!n) throw ClientError(Failure::kUnreachable, "the tailnet is not connected");
  // In short turns, so that shut_down() need not wait for the whole time.
  auto deadline = steady_clock::now() + time_max;
  for (;;) {
    try {
      n->wait_peer(peer, std::min(time_max, kTurn));
      return;
    } catch (const NodeError& e) {
      if (e.kind() != NodeError::Kind::kTimeout) raise(e, "the server cannot be reached over the tailnet");
    }
    std::lock_guard lock(mutex_);
    if (steady_clock::now() >= deadline) {
      // A node that came up from the map it knew has perhaps not reached anybody since.
      std::optional<Trouble> met = trouble();
      throw ClientError(met && met->lasting ? Failure::kFailed : Failure::kUnreachable,
                        peer + " does not answer on the tailnet; is the server running, and are both devices online?" +
                            (met ? " (" + met->sentence + ")" : std::string()));
    }
    if (stopping_) throw ClientError(Failure::kFailed, "interrupted");
    if (status_.state == TailnetState::kFailed && status_.kind == NodeError::Kind::kUnauthorized)
      throw ClientError(Failure::kKeyInvalid, status_.problem);
  }
}

std::string TailnetClient::path_to(const std::string& peer) {
  std::shared_ptr<TailnetNode> n = node();
  if (!n) return "unknown";
  try {
    return n->path_to(peer);
  } catch (const NodeError&) {
    return "unknown";
  }
}

}  // namespace porthole::client
