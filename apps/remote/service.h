// The running coordination service: state directory, coordinator, relay and listener put together.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "base/ip.h"

namespace porthole::remote {

struct ServiceOptions {
  std::string state_dir;
  Endpoint listen;
  std::string tls_certificate;  // both or none
  std::string tls_key;
  std::string public_url;       // empty: from the listen address
  std::uint16_t stun_port = 3478;
  std::string base_domain = "porthole.internal";
};

// Opens everything in the constructor (CommandError with one plain sentence), serves in run().
class RemoteService {
 public:
  explicit RemoteService(const ServiceOptions& options);
  ~RemoteService();

  std::string url() const;
  std::string admin_token_file() const;
  Endpoint listen() const;
  std::uint16_t stun_port() const;

  // Serves until `stop_fd` becomes readable. CommandError when the last soft state cannot be written.
  void run(int stop_fd);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace porthole::remote
