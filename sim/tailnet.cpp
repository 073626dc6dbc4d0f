#include "sim/tailnet.h"

#include <algorithm>

namespace porthole::sim {
namespace {

IpAddress v6(std::uint16_t site, std::uint16_t host) {
  std::uint8_t b[16] = {0x2a, 0x00};
  store_be(b + 4, site);
  store_be(b + 14, host);
  return IpAddress::v6_bytes(b);
}

}  // namespace

Tailnet::Tailnet(std::uint64_t seed, int relay_regions) : world(seed), network(world), streams(network), ledger(world) {
  for (int region = 1; region <= relay_regions; ++region) {
    LinkConfig link;
    link.delay = region == 1 ? Duration(3ms) : Duration(std::chrono::milliseconds(3 + 20 * region));
    std::string name = region == 1 ? "coordination.test" : "relay" + std::to_string(region) + ".test";
    Site& site = add_public_site("datacentre" + std::to_string(region), link);
    Host& host = network.add_host(name, site, next_addresses(site));
    servers_.push_back(std::make_unique<ServerHost>(network, streams, host, ServerHost::Config{name, region == 1, region}));
  }
  for (auto& server : servers_) server->set_authority(*servers_.front());
  servers_.front()->start_coordinator(relay_map());
  for (auto& server : servers_) server->start_relay();
}

Tailnet::~Tailnet() = default;

ts2021::RelayMap Tailnet::relay_map() const {
  ts2021::RelayMap map;
  for (const auto& server : servers_) map.regions[server->config().region] = server->region();
  return map;
}

void Tailnet::restart_coordinator(Duration down) {
  servers_.front()->stop_coordinator();
  world.after(down, [this] { servers_.front()->start_coordinator(relay_map()); });
}

void Tailnet::restart_relay(Duration down, std::size_t server) {
  servers_.at(server)->stop_relay();
  world.after(down, [this, server] { servers_.at(server)->start_relay(); });
}

// ---- places ----

Site& Tailnet::add_home(const std::string& name, NatConfig nat, LinkConfig link, Site* parent) {
  SiteConfig config;
  config.up = config.down = link;
  config.nat = nat;
  int number = next_site_++;
  config.external = parent ? IpAddress::v4(10, 200, 0, static_cast<std::uint8_t>(number)) : IpAddress::v4(81, 2, static_cast<std::uint8_t>(number), 1);
  Site& site = network.add_site(name, config, parent);
  site_numbers_[&site] = number;
  return site;
}

Site& Tailnet::add_public_site(const std::string& name, LinkConfig link, bool stateful_firewall) {
  SiteConfig config;
  config.up = config.down = link;
  config.stateful = stateful_firewall;
  Site& site = network.add_site(name, config);
  site_numbers_[&site] = next_site_++;
  return site;
}

std::vector<IpAddress> Tailnet::next_addresses(Site& site) {
  int number = site_numbers_.at(&site);
  int host = ++hosts_in_site_[&site] + 1;
  auto n = static_cast<std::uint8_t>(number), h = static_cast<std::uint8_t>(host);
  if (site.nat()) return {IpAddress::v4(192, 168, static_cast<std::uint8_t>(number % 3), h)};
  return {IpAddress::v4(45, 10, n, h), v6(n, h)};
}

// ---- nodes ----

crypto::SecretText Tailnet::new_key(const std::string& account, const std::string& name, bool ephemeral, bool lost_state) {
  ServerHost& s = *servers_.front();
  coordinator::Directory& directory = s.directory();
  if (!directory.has_account(account)) {
    auto created = directory.create_account(s.clock(), account);
    PORTHOLE_ASSERT(created.ok());
  }
  s.poke();
  if (ephemeral) {
    coordinator::KeyOptions options;
    options.ephemeral = true;
    auto key = directory.key_create(s.clock(), account, options);
    PORTHOLE_ASSERT(key.ok());
    return std::move(key->key);
  }
  auto key = directory.device_key(s.clock(), account, name, lost_state);
  PORTHOLE_ASSERT(key.ok());
  return std::move(key->key);
}

Status Tailnet::revoke(const std::string& account, const std::string& name) {
  ServerHost& s = *servers_.front();
  world.note("operator", "revokes " + name);
  Status status = s.directory().revoke(s.clock(), account, name);
  s.poke();
  return status;
}

NodeHost& Tailnet::add_node(NodeConfig config, Site& site, bool start) {
  if (config.control_url.empty()) config.control_url = servers_.front()->url();
  // A world of many nodes must fit into memory, whatever their apps do.
  config.stack.memory_max = 32u << 20;
  Host& host = network.add_host(config.name, site, next_addresses(site));
  auto key = new_key(config.account, config.name, config.ephemeral);
  nodes_.push_back(std::make_unique<NodeHost>(network, streams, ledger, host, std::move(config)));
  NodeHost& node = *nodes_.back();
  node.set_auth_key(std::move(key));
  if (start) node.start();
  return node;
}

// ---- running ----

bool Tailnet::run_until_running(Duration limit) {
  return run_until(
      [this] {
        for (auto& a : nodes_) {
          if (!a->is_up()) continue;
          if (!a->is_running()) return false;
          for (auto& b : nodes_)
            if (a != b && b->is_up() && a->config().account == b->config().account && !a->sees(*b)) return false;
        }
        return true;
      },
      limit);
}

bool Tailnet::run_until_over(const std::vector<TransferRef>& transfers, Duration limit) {
  return run_until([&] { return std::all_of(transfers.begin(), transfers.end(), [](const TransferRef& t) { return t->is_over(); }); }, limit);
}

bool Tailnet::run_until_direct(NodeHost& a, NodeHost& b, Duration limit) {
  return run_until([&] { return a.is_direct(b) && b.is_direct(a); }, limit);
}

std::string Tailnet::report() const {
  std::string out = world.report();
  for (const auto& n : nodes_) {
    out += n->name() + ": " + std::string(node::to_string(n->state())) + "\n";
    if (!n->is_up()) continue;
    for (const auto& p : n->engine().peers(world.now())) {
      out += "  " + p.name + ": ";
      if (!p.path) {
        out += "no path\n";
        continue;
      }
      out += (p.path->direct ? "direct " + p.path->direct->to_string() + (p.path->trusted ? "" : " (doubtful)") : std::string("not direct: ") + paths::to_text(p.path->not_direct)) +
             (p.path->relay_region ? ", relay " + std::to_string(*p.path->relay_region) : std::string()) + ", sent " +
             std::to_string(p.tunnel.tx_bytes) + " B, received " + std::to_string(p.tunnel.rx_bytes) + " B\n";
    }
  }
  return out;
}

}  // namespace porthole::sim
