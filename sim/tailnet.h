// A whole simulated world in one object: network, coordinator with relay, sites and nodes. What scenarios are made of.
//
//   Tailnet t(seed);
//   NodeHost& a = t.add_node({.name = "a"}, t.add_home("home"));
//   NodeHost& b = t.add_node({.name = "b"}, t.add_home("flat"));
//   ASSERT_TRUE(t.run_until_running(10s)) << t.report();
//   auto transfer = a.transfer(b, 100'000, 0);
//   EXPECT_TRUE(t.run_until_over({transfer}, 10s)) << t.report();
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "sim/node_host.h"
#include "sim/server_host.h"

namespace porthole::sim {

class Tailnet {
 public:
  explicit Tailnet(std::uint64_t seed, int relay_regions = 1);
  ~Tailnet();

  World world;
  Network network;
  Streams streams;
  Ledger ledger;

  // Coordinator and relay 1; further regions are relays alone.
  ServerHost& server(std::size_t index = 0) { return *servers_.at(index); }
  ts2021::RelayMap relay_map() const;
  void restart_coordinator(Duration down);
  void restart_relay(Duration down, std::size_t server = 0);

  // A home router: NAT for IPv4, no IPv6. `config.external` is chosen here where absent.
  Site& add_home(const std::string& name, NatConfig nat = {}, LinkConfig link = {}, Site* parent = nullptr);
  // Public addresses of both families.
  Site& add_public_site(const std::string& name, LinkConfig link = {}, bool stateful_firewall = false);
  // A host with the next free addresses of the site.
  std::vector<IpAddress> next_addresses(Site& site);

  // Started, unless told otherwise.
  NodeHost& add_node(NodeConfig config, Site& site, bool start = true);
  NodeHost& node(std::size_t index) { return *nodes_.at(index); }
  std::size_t node_count() const { return nodes_.size(); }
  // A key for the node, as its household's server would fetch it. `lost_state`: the node is to be replaced.
  crypto::SecretText new_key(const std::string& account, const std::string& name, bool ephemeral = false, bool lost_state = false);
  Status revoke(const std::string& account, const std::string& name);

  // ---- running ----
  bool run_until(const std::function<bool()>& done, Duration limit) { return world.run_until(done, limit); }
  // Every node that is up runs and sees every other of its account.
  bool run_until_running(Duration limit);
  bool run_until_over(const std::vector<TransferRef>& transfers, Duration limit);
  bool run_until_direct(NodeHost& a, NodeHost& b, Duration limit);
  bool run_for(Duration time) { return world.run_for(time); }
  std::string report() const;

 private:
  std::vector<std::unique_ptr<ServerHost>> servers_;
  std::vector<std::unique_ptr<NodeHost>> nodes_;
  std::map<const Site*, int> site_numbers_;
  std::map<const Site*, int> hosts_in_site_;
  int next_site_ = 1;
};

}  // namespace porthole::sim
