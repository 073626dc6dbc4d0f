// The Internet of a simulated world: a tree of sites with hosts in them.
//
//                      Internet (root site)
//            up/down |            up/down |
//              site "home"           site "carrier"       each may have a NAT, a firewall, links with faults
//             host    host              | up/down
//                                    site "phone"         NAT behind NAT
//                                      host
//
// A datagram climbs from its site until some site knows the destination, then descends. Hosts of a site reach each other
// without its links. IPv4 is translated where a site has a NAT, and private addresses may be used in many sites; IPv6 is
// always routed.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/datagram.h"
#include "base/ip.h"
#include "sim/link.h"
#include "sim/nat.h"
#include "sim/world.h"

namespace porthole::sim {

class Host;
class Network;

struct SiteConfig {
  LinkConfig up, down;                 // towards the parent, and back
  std::optional<NatConfig> nat;
  IpAddress external;                  // of the NAT
  bool udp_blocked = false;            // a firewall lets no UDP through, either way
  bool stateful = false;               // a firewall lets in only answers (matters for IPv6 and without a NAT)
};

class Site {
 public:
  const std::string& name() const { return name_; }
  Site* parent() const { return parent_; }
  Nat* nat() { return nat_ ? &*nat_ : nullptr; }
  Link& up() { return up_; }
  Link& down() { return down_; }
  // A blackout: nothing passes, streams stall.
  void set_up(bool is_up) { up_.up = down_.up = is_up; }
  void set_udp_blocked(bool blocked) { udp_blocked_ = blocked; }
  // The NAT gets another public address.
  void change_external(const IpAddress& address);

 private:
  friend class Network;
  friend class Host;
  struct Target {
    Host* host = nullptr;
    Site* child = nullptr;
  };

  Site(Network& network, std::string name, Site* parent, const SiteConfig& config);
  void learn(const IpAddress& address, const Target& target);
  void unlearn(const IpAddress& address);
  bool translates(const IpAddress& address) const { return nat_ && address.is_v4(); }

  Network& network_;
  std::string name_;
  Site* parent_;
  Link up_, down_;
  std::optional<Nat> nat_;
  bool udp_blocked_;
  bool stateful_;
  std::map<std::pair<Endpoint, Endpoint>, Instant> flows_;  // stateful: (inside, outside) -> last datagram out
  std::map<IpAddress, Target> table_;
};

class Host {
 public:
  // The destination is the one the datagram arrived with; `data` may be changed.
  using Receiver = std::function<void(const Endpoint& source, const Endpoint& destination, MutBytes data)>;

  const std::string& name() const { return name_; }
  Site& site() const { return *site_; }
  const std::vector<IpAddress>& addresses() const { return addresses_; }
  bool has(const IpAddress& address) const;
  // First address of the family; invalid: none.
  IpAddress address(bool v6) const;
  // Off, asleep or unplugged: nothing in, nothing out.
  bool up = true;

  void bind(std::uint16_t port, Receiver receiver) { ports_[port] = std::move(receiver); }
  void unbind(std::uint16_t port) { ports_.erase(port); }
  bool is_bound(std::uint16_t port) const { return ports_.contains(port); }
  // False: this host has no address of that family.
  bool send(std::uint16_t port, const Endpoint& destination, Bytes data);
  // With any source address: a forger.
  void send_from(const Endpoint& source, const Endpoint& destination, Bytes data);
  // Takes the host elsewhere, with other addresses.
  void move(Site& site, std::vector<IpAddress> addresses);

 private:
  friend class Network;
  Host(Network& network, std::string name, Site& site, std::vector<IpAddress> addresses);

  Network& network_;
  std::string name_;
  Site* site_;
  std::vector<IpAddress> addresses_;
  std::map<std::uint16_t, Receiver> ports_;
};

class Network {
 public:
  explicit Network(World& world);
  World& world() { return world_; }
  Site& internet() { return *root_; }

  // `parent` absent: the Internet.
  Site& add_site(std::string name, const SiteConfig& config = {}, Site* parent = nullptr);
  Host& add_host(std::string name, Site& site, std::vector<IpAddress> addresses);

  // The way of a stream from `from` to the host at `to`; nullopt: none. `seen_as` is the source address that the other
  // side sees.
  struct Way {
    Host* host = nullptr;
    IpAddress seen_as;
    std::vector<Link*> there, back;
  };
  std::optional<Way> way(Host& from, const IpAddress& to);

  struct Counters {
    std::uint64_t sent = 0, delivered = 0, lost = 0, filtered = 0, unroutable = 0;
  };
  const Counters& counters() const { return counters_; }

 private:
  friend class Host;
  friend class Site;
  struct Datagram {
    Endpoint source, destination;
    ByteVector data;
  };

  void route(Site& site, Datagram datagram);
  void climb(Site& site, Datagram datagram);
  void descend(Site& site, Datagram datagram);
  void travel(Link& link, Datagram datagram, std::function<void(Datagram)> arrived);
  void deliver(Host& host, Datagram& datagram);
  void drop(std::uint64_t& counter, const char* verdict, const Datagram& datagram);

  // Between hosts of one site.
  static constexpr Duration kLocalDelay = 100us;
  static constexpr Duration kFlowTimeout = 120s;

  World& world_;
  Site* root_;
  std::vector<std::unique_ptr<Site>> sites_;
  std::vector<std::unique_ptr<Host>> hosts_;
  Counters counters_;
};

}  // namespace porthole::sim
