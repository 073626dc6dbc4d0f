#include "sim/nat.h"

namespace porthole::sim {

void Nat::set_external(const IpAddress& address) {
  external_ = address;
  forget();
}

std::uint16_t Nat::choose_port(std::uint16_t wanted) {
  if (config_.keeps_port && wanted != 0 && !ports_.contains(wanted)) return wanted;
  for (;;) {
    auto port = static_cast<std::uint16_t>(1024 + rng_.below(64512));
    if (!ports_.contains(port)) return port;
  }
}

Endpoint Nat::outbound(Instant now, const Endpoint& inside, const Endpoint& remote) {
  Key key{inside, config_.mapping == NatMapping::kEndpointIndependent ? Endpoint{} : remote};
  auto it = mappings_.find(key);
  if (it != mappings_.end() && now - it->second.last_out > config_.timeout) {
    ports_.erase(it->second.port);
    mappings_.erase(it);
    it = mappings_.end();
  }
  if (it == mappings_.end()) {
    it = mappings_.emplace(key, Mapping{}).first;
    // A symmetric NAT that kept the port would be no symmetric NAT.
    it->second.port = choose_port(config_.mapping == NatMapping::kEndpointIndependent ? inside.port : std::uint16_t{0});
    ports_.emplace(it->second.port, key);
  }
  it->second.last_out = now;
  it->second.permitted[remote] = now;
  return {external_, it->second.port};
}

std::optional<Endpoint> Nat::inbound(Instant now, const Endpoint& remote, std::uint16_t port) {
  auto owner = ports_.find(port);
  if (owner == ports_.end()) return std::nullopt;
  const Mapping& mapping = mappings_.at(owner->second);
  if (now - mapping.last_out > config_.timeout) return std::nullopt;
  if (config_.filtering == NatFiltering::kEndpointIndependent) return owner->second.inside;
  for (const auto& [endpoint, last] : mapping.permitted) {
    if (now - last > config_.timeout || endpoint.address != remote.address) continue;
    if (config_.filtering == NatFiltering::kAddress || endpoint.port == remote.port) return owner->second.inside;
  }
  return std::nullopt;
}

}  // namespace porthole::sim
