// The running coordination service: state directory, engine, relay and listener put together.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/ip.h"
#include "remote/headscale_isolation.h"
#include "remote/limits.h"

namespace porthole::remote {

// An existing Headscale coordinates: this service has accounts, device keys and their API, and no coordinator, relay or
// STUN of its own.
struct HeadscaleOptions {
  std::string url;           // of its API
  std::string public_url;    // where devices log in; empty: the same
  std::string api_key_file;  // 0600
  std::string ca_file;       // trusted besides the system's
  std::chrono::milliseconds proof_settle = kProofSettle;
  std::chrono::milliseconds expiry_grace = kHeadscaleExpiryGrace;
};

struct ServiceOptions {
  std::string state_dir;
  Endpoint listen;
  std::string tls_certificate;  // both or none
  std::string tls_key;
  std::string public_url;       // empty: from the listen address
  std::uint16_t stun_port = 3478;
  std::string base_domain = "porthole.internal";
  std::optional<HeadscaleOptions> headscale;    // absent: the embedded coordinator
  // With Headscale: each time that isolation was looked at, from any thread, and whether to give up starting.
  std::function<void(const Result<IsolationProof>&)> on_proof;
  std::function<bool()> stopped;
};

// Opens everything in the constructor (CommandError with one plain sentence), serves in run().
class RemoteService {
 public:
  explicit RemoteService(const ServiceOptions& options);
  ~RemoteService();

  std::string url() const;
  // Where devices log in.
  std::string coordination_url() const;
  std::string admin_token_file() const;
  Endpoint listen() const;
  std::uint16_t stun_port() const;  // 0: none

  // Serves until `stop_fd` becomes readable. CommandError when the last soft state cannot be written.
  void run(int stop_fd);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace porthole::remote
