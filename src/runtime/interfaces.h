// The host's interface addresses, and word of their change.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/ip.h"
#include "runtime/event_loop.h"

namespace porthole::runtime {

struct HostAddress {
  std::string interface_name;
  IpAddress address;
  int prefix_bits = 0;
  bool up = true;
  bool loopback = false;
  friend bool operator==(const HostAddress&, const HostAddress&) = default;
};

std::vector<HostAddress> host_addresses();
// Whether something is gone that connections may depend on. One more address does not matter to them, nor do the link-local
// ones, which come up seconds after their link.
bool lost_addresses(const std::vector<HostAddress>& before, const std::vector<HostAddress>& now);
// First label of the host's name, or "porthole".
std::string host_name();

// Calls back on the loop's thread when addresses or routes may have changed (rtnetlink). Where the system refuses the
// subscription, it stays silent; the node then learns from its own failures.
class NetworkMonitor final : public FdHandler {
 public:
  NetworkMonitor(EventLoop&, std::function<void()> changed);
  ~NetworkMonitor() override;
  void on_ready(bool readable, bool writable, bool hangup) override;

 private:
  EventLoop& loop_;
  UniqueFd fd_;
  EventLoop::Token token_ = 0;
  std::function<void()> changed_;
};

}  // namespace porthole::runtime
