// TailnetBridge (S1, S2): the server's node on the tailnet. Joins on a thread of its own from stored state, or with a key
// of its own from the enrolment service at the first start, and forwards the service port to the WebSocket server.
// Serving the LAN never waits for any of it, and goes on when the bridge cannot start at all: then status() says why. Every method may be called from any thread.
#pragma once

#include <boost/json/object.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "serve/enrolment.h"
#include "serve/server.h"

namespace porthole::serve {

struct BridgeConfig {
  std::string state_dir;  // of the node; made when missing
  std::string hostname;   // on the tailnet
  std::string device_id;  // the server's own, for the enrolment service
  std::string ca_file;
  bool relay_only = false;       // never a direct path
  std::uint16_t local_port = 0;  // the WebSocket server's bridge listener
};

struct BridgeHooks {
  // Also while the bridge is being made.
  std::function<void(boost::json::object)> event;
  std::function<void(const std::string&)> log;
  // The tailnet addresses of every peer, whenever one disappeared.
  std::function<void(const std::set<std::string>&)> peers;
};

class TailnetBridge {
 public:
  TailnetBridge(BridgeConfig config, std::shared_ptr<const EnrolmentClient> enrolment, BridgeHooks hooks);
  ~TailnetBridge();

  std::optional<PeerIdentity> peer_of(std::uint16_t local_port) const;
  // The device's own key and where this server is on the tailnet; at most kEnrolmentTimeout.
  RemoteGrant grant(const std::string& device_id, bool new_key) const;
  boost::json::object status() const;
  // Ends the questions to the enrolment service that are under way, and asks no more: nobody waits for them from here on.
  // The node stays, so that sessions can be said goodbye to.
  void stop_asking();
  void stop();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace porthole::serve
