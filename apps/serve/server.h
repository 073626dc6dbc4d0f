// The WebSocket server: two listeners (the LAN's, and one on 127.0.0.1 that the tailnet bridge feeds) with the same
// certificate and the same sessions. Coroutines on one thread of its own; files, passwords and enrolment are worked on
// by a few worker threads. Every method may be called from any thread.
#pragma once

#include <boost/json/object.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "serve/library.h"

namespace porthole::serve {

// Who is behind a connection that came through the tailnet.
struct PeerIdentity {
  std::string name, ip, stable_id, user;
};

// What a login hands out (C3); all empty without remote access.
struct RemoteGrant {
  std::string remote_hostname, remote_ip, coordination_url, tailnet_preauth_key;
  std::string problem;  // a sentence: why it is empty although remote access is set up
};

struct ServerConfig {
  std::string name;       // shown to clients
  std::string server_id;  // UUID
  std::string listen;     // "ADDR:PORT" of the LAN listener; port 0: any
  std::string tls_file;
  std::string password_hash;
};

struct ServerHooks {
  // The source port of a bridged connection -> who that is. May block for a moment; worker thread.
  std::function<std::optional<PeerIdentity>(std::uint16_t)> peer_of;
  // At most kEnrolmentTimeout; worker thread.
  std::function<RemoteGrant(const std::string& device_id, bool new_key)> remote_grant;
  // For programs and for people; the server's thread.
  std::function<void(boost::json::object)> event;
  std::function<void(const std::string&)> log;
};

class MediaServer {
 public:
  // CommandError when the address cannot be listened on or the certificate is unusable. Serves from here on.
  MediaServer(ServerConfig config, Library& library, ServerHooks hooks);
  ~MediaServer();

  // CommandError: not ADDRESS:PORT.
  static void check_listen(const std::string& listen);
  std::string listen_address() const;  // with the port that was found
  std::uint16_t bridge_port() const;
  std::string fingerprint() const;

  // Closes the LAN listener and its sessions, or opens it again on the same port; false with a reason otherwise.
  bool set_lan(bool on, std::string& error);
  bool lan() const;
  void library_changed();
  // Ends the sessions of tailnet peers whose address is not among these.
  void keep_peers(const std::set<std::string>& ips);
  // {"sessions":[..],"unauthenticated":n,...}; empty when the server's thread does not answer.
  boost::json::object status() const;
  // Says goodbye to the sessions (at most a second) and ends the thread.
  void stop();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace porthole::serve
