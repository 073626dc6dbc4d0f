// A node as an object that any thread may use: owns the thread, the sockets and the Engine, and turns blocking calls of
// the app into work on the loop. The C ABI (capi/) is a thin layer over this.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/result.h"
#include "crypto/secret.h"
#include "runtime/files.h"

namespace porthole::runtime {

struct NodeOptions {
  std::string state_dir;
  std::string control_url;         // empty: stored
  crypto::SecretText auth_key;     // the key itself
  std::string hostname;            // empty: the host's name
  std::string ca_file;
  std::uint16_t udp_port = 0;
  bool ephemeral = false;
  bool relay_only = false;
};

struct ProxyAccess {
  std::string address, username, password;
};

// What "network" and "host:port" of the ABI mean.
struct DialTarget {
  std::string host;                // name or address, without brackets
  std::uint16_t port = 0;
  bool udp = false;
  int family = 0;                  // 4, 6, or 0: either
  static Result<DialTarget> parse(const std::string& network, const std::string& address);
};

class NodeRuntime {
 public:
  static Result<std::unique_ptr<NodeRuntime>> start(NodeOptions options);
  ~NodeRuntime();

  // Ends everything; calls under way in other threads return kCancelled. Idempotent; blocks at most about 2 s.
  void close();

  // All blocking calls: timeout_ms -1 means no limit (dial: 30 s).
  Status wait_running(int timeout_ms);
  Status wait_peer(const std::string& peer, int timeout_ms);
  Status logout(int timeout_ms);
  Result<std::optional<std::string>> next_event(int timeout_ms);
  int event_fd() const { return event_fd_.get(); }
  Result<std::string> status_json();
  Result<ProxyAccess> loopback(const std::string& address);   // empty: 127.0.0.1, any port
  Result<UniqueFd> dial(const std::string& network, const std::string& address, int timeout_ms);
  // The descriptor becomes readable when finish_dial() has an answer.
  Result<UniqueFd> begin_dial(const std::string& network, const std::string& address, int timeout_ms);
  struct ListenerRef {
    std::uint64_t id = 0;
    std::shared_ptr<UniqueFd> fd;                             // readable while connections wait
  };
  Result<ListenerRef> listen(std::uint16_t port);
  struct Accepted {
    UniqueFd fd;
    std::string peer;
  };
  Result<Accepted> accept(std::uint64_t listener, int timeout_ms);
  void close_listener(std::uint64_t listener);
  Status expose(std::uint16_t port, const std::string& local_address, int max_connections);
  Result<std::string> exposed_peer(std::uint16_t local_port);
  Result<UniqueFd> listen_packet(std::uint16_t port);         // the app's end; see runtime/datagrams.h
  Status expose_udp(std::uint16_t port, const std::string& local_address, int max_sources);
  Result<std::string> exposed_udp_peer(std::uint16_t local_port);
  Result<std::string> ping(const std::string& peer, int timeout_ms);
  Result<std::string> netcheck(int timeout_ms);
  Status set_log_fd(int fd);

  class Loop;

 private:
  NodeRuntime() = default;
  std::shared_ptr<Loop> loop_;
  std::thread thread_;
  UniqueFd event_fd_;              // readable while events wait
  std::mutex close_mutex_;
};

}  // namespace porthole::runtime
