// The client's place on the tailnet (C5, C6, C12, C13).
//
// TailnetNode is all that the app knows of a node; its implementations are interchangeable and pass the same tests.
// TailnetClient makes one when it is first needed, joins on a thread of its own, and remembers that it has joined.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>

#include "client/connector.h"

namespace porthole::client {

class NodeError : public std::runtime_error {
 public:
  // kBlocked: something is in the way that waiting does not mend (NodeNews::lasting).
  enum class Kind { kTimeout, kUnauthorized, kNotFound, kInUse, kBlocked, kFailed };
  NodeError(Kind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  Kind kind() const { return kind_; }

 private:
  Kind kind_;
};

inline constexpr const char* kTailnetInUse = "another porthole client is using the tailnet of this server; end it first";

// What a node says about itself while it runs.
struct NodeNews {
  std::string state;     // "running", "connecting", "login_needed", ...; empty: as before
  std::string problem;   // what it has just met, as a sentence; empty: nothing
  bool lasting = false;  // of the problem: it stays until somebody does something (a login page, a proxy, a certificate)
};

// May be called from any thread; destroying it leaves the tailnet connection. Failures throw NodeError.
class TailnetNode {
 public:
  virtual ~TailnetNode() = default;
  // Blocks until the node is on the tailnet; kTimeout when it is not yet (call again), kUnauthorized when it cannot be.
  virtual void join(std::chrono::milliseconds time_max) = 0;
  virtual bool connected() = 0;
  virtual ProxyEndpoint loopback_proxy() = 0;
  // Blocks until `peer` (address or name) can be dialled.
  virtual void wait_peer(const std::string& peer, std::chrono::milliseconds time_max) = 0;
  // "direct", "relay", or "unknown".
  virtual std::string path_to(const std::string& peer) = 0;
  // Called from a thread of the node's with the news as they come. Set once.
  virtual void observe(std::function<void(const NodeNews&)> observer) = 0;
};

struct TailnetNodeConfig {
  std::string state_dir;
  std::string coordination_url;
  std::string auth_key;  // empty: from the stored state
  std::string hostname;
  std::string ca_file;
};
using TailnetNodeFactory = std::function<std::unique_ptr<TailnetNode>(const TailnetNodeConfig&)>;

enum class TailnetState { kIdle, kJoining, kConnected, kFailed };
const char* name_of(TailnetState state);

struct TailnetStatus {
  TailnetState state = TailnetState::kIdle;
  std::string problem;  // a sentence: with kFailed why, with kJoining what was met so far
  NodeError::Kind kind = NodeError::Kind::kFailed;  // with kFailed; kUnauthorized: only a new key helps
};

class TailnetClient {
 public:
  // `dir` holds the node's state and the note that it has joined; ClientError when that note is damaged or newer.
  TailnetClient(std::string dir, std::string hostname, std::string ca_file, TailnetNodeFactory factory);
  ~TailnetClient();

  bool has_joined() const;
  std::string joined_url() const;

  // Starts joining and returns at once. Does nothing when connected or on the way, and uses the stored login when there
  // is one for this URL: the key counts only if that is refused (C5). A stored login is given up only for one that holds.
  void join(const std::string& coordination_url, const std::string& key);
  // Starts the node from stored state and returns at once; fails (see status) when it never joined.
  void ensure_connected();
  TailnetStatus status() const;
  // Called from the client's own thread at each change, never under a lock.
  void observe(std::function<void(const TailnetStatus&)> observer);

  // These block and throw ClientError with what the node has met: kUnreachable when waiting longer may help, kKeyInvalid
  // when the tailnet does not take this device any more.
  void wait_connected(std::chrono::milliseconds time_max);
  ProxyEndpoint proxy();
  void wait_peer(const std::string& peer, std::chrono::milliseconds time_max);
  std::string path_to(const std::string& peer);
  // Makes whoever waits here give up; nothing can be started after that.
  void shut_down();

 private:
  struct Order {
    std::string url, key;
  };
  void run();
  void bring_up(const Order& order);
  void enter(TailnetState state, const std::string& problem = {}, NodeError::Kind kind = NodeError::Kind::kFailed);
  void start(Order order);
  std::shared_ptr<TailnetNode> node() const;
  void save();
  void drop_node();
  void note(const NodeNews& news);
  // What the node met last, unless that is too long ago to matter.
  struct Trouble {
    std::string sentence;
    bool lasting = false;
    std::chrono::steady_clock::time_point first, last;  // of this lasting, or this passing
  };
  std::optional<Trouble> trouble() const;  // under the lock

  const std::string dir_, hostname_, ca_file_;
  const TailnetNodeFactory factory_;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::optional<Order> order_;
  TailnetStatus status_;
  std::optional<Trouble> trouble_;
  std::string joined_url_;  // empty: never joined
  std::shared_ptr<TailnetNode> node_;
  std::function<void(const TailnetStatus&)> observer_;
  bool stopping_ = false;
  std::string folder_ = "node";  // of the login that counts; its thread's only
  std::thread thread_;
};

// The native node (libporthole); empty when this build has none.
// relay_only: never a direct path, for networks (and demonstrations) where only the relay is wanted.
TailnetNodeFactory native_node_factory(bool relay_only = false);

}  // namespace porthole::client
