// Network address translation of IPv4 UDP, in the words of RFC 4787.
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <optional>

#include "base/ip.h"
#include "base/rng.h"
#include "base/time.h"

namespace porthole::sim {

enum class NatMapping {
  kEndpointIndependent,  // one external port per internal one: "easy"
  kAddressAndPort,       // another external port per destination: "hard", symmetric
};
enum class NatFiltering {
  kEndpointIndependent,  // anybody may answer
  kAddress,              // addresses that were sent to
  kAddressAndPort,       // endpoints that were sent to
};

struct NatConfig {
  NatMapping mapping = NatMapping::kEndpointIndependent;
  NatFiltering filtering = NatFiltering::kAddressAndPort;
  Duration timeout = 120s;       // of a mapping and of a permission, after the last datagram out
  bool keeps_port = true;        // the external port is the internal one where free
  bool hairpin = false;          // inside hosts reach each other by external endpoints
};

class Nat {
 public:
  Nat(const NatConfig& config, const IpAddress& external, SeededRng rng) : config_(config), external_(external), rng_(rng) {}

  const IpAddress& external() const { return external_; }
  const NatConfig& config() const { return config_; }
  // Another external address, as after a reconnect of the line: all mappings are gone.
  void set_external(const IpAddress& address);
  // Reboot.
  void forget() { mappings_.clear(); ports_.clear(); }

  // The source that the outside sees.
  Endpoint outbound(Instant now, const Endpoint& inside, const Endpoint& remote);
  // The inside host that a datagram from `remote` to external port `port` goes to; nullopt: filtered.
  std::optional<Endpoint> inbound(Instant now, const Endpoint& remote, std::uint16_t port);

 private:
  struct Key {
    Endpoint inside;
    Endpoint remote;  // zero for endpoint-independent mapping
    friend auto operator<=>(const Key&, const Key&) = default;
  };
  struct Mapping {
    std::uint16_t port = 0;
    Instant last_out;
    std::map<Endpoint, Instant> permitted;
  };
  std::uint16_t choose_port(std::uint16_t wanted);

  NatConfig config_;
  IpAddress external_;
  SeededRng rng_;
  std::map<Key, Mapping> mappings_;
  std::map<std::uint16_t, Key> ports_;
};

}  // namespace porthole::sim
