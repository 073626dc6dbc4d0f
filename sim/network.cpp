#include "sim/network.h"

#include <algorithm>

namespace porthole::sim {

// ---- sites ----

Site::Site(Network& network, std::string name, Site* parent, const SiteConfig& config)
    : network_(network), name_(std::move(name)), parent_(parent), up_(config.up, network.world().rng("link up " + name_)),
      down_(config.down, network.world().rng("link down " + name_)), udp_blocked_(config.udp_blocked), stateful_(config.stateful) {
  if (config.nat) {
    nat_.emplace(*config.nat, config.external, network.world().rng("nat " + name_));
    if (parent_) parent_->learn(config.external, {nullptr, this});
  }
}

void Site::learn(const IpAddress& address, const Target& target) {
  table_[address] = target;
  if (parent_ && !translates(address)) parent_->learn(address, {nullptr, this});
}

void Site::unlearn(const IpAddress& address) {
  table_.erase(address);
  if (parent_ && !translates(address)) parent_->unlearn(address);
}

void Site::change_external(const IpAddress& address) {
  if (!nat_ || !parent_) return;
  parent_->unlearn(nat_->external());
  nat_->set_external(address);
  parent_->learn(address, {nullptr, this});
  network_.world().note(name_, "external address is now " + address.to_string());
}

// ---- hosts ----

Host::Host(Network& network, std::string name, Site& site, std::vector<IpAddress> addresses)
    : network_(network), name_(std::move(name)), site_(&site), addresses_(std::move(addresses)) {
  for (const IpAddress& a : addresses_) site_->learn(a, {this, nullptr});
}

bool Host::has(const IpAddress& address) const {
  return std::find(addresses_.begin(), addresses_.end(), address) != addresses_.end();
}

IpAddress Host::address(bool v6) const {
  for (const IpAddress& a : addresses_)
    if (a.is_v6() == v6) return a;
  return {};
}

bool Host::send(std::uint16_t port, const Endpoint& destination, Bytes data) {
  IpAddress own = address(destination.address.is_v6());
  if (!own.is_valid()) return false;
  send_from({own, port}, destination, data);
  return true;
}

void Host::send_from(const Endpoint& source, const Endpoint& destination, Bytes data) {
  if (!up) return;
  ++network_.counters_.sent;
  Network::Datagram datagram{source, destination, to_vector(data)};
  network_.world_.trace().datagram(network_.world_.now(), "sent", source, destination, data);
  network_.route(*site_, std::move(datagram));
}

void Host::move(Site& site, std::vector<IpAddress> addresses) {
  for (const IpAddress& a : addresses_) site_->unlearn(a);
  site_ = &site;
  addresses_ = std::move(addresses);
  for (const IpAddress& a : addresses_) site_->learn(a, {this, nullptr});
  network_.world_.note(name_, "moved to " + site.name());
}

// ---- network ----

Network::Network(World& world) : world_(world) {
  sites_.push_back(std::unique_ptr<Site>(new Site(*this, "internet", nullptr, {})));
  root_ = sites_.back().get();
}

Site& Network::add_site(std::string name, const SiteConfig& config, Site* parent) {
  sites_.push_back(std::unique_ptr<Site>(new Site(*this, std::move(name), parent ? parent : root_, config)));
  return *sites_.back();
}

Host& Network::add_host(std::string name, Site& site, std::vector<IpAddress> addresses) {
  hosts_.push_back(std::unique_ptr<Host>(new Host(*this, std::move(name), site, std::move(addresses))));
  return *hosts_.back();
}

void Network::drop(std::uint64_t& counter, const char* verdict, const Datagram& d) {
  ++counter;
  world_.trace().datagram(world_.now(), verdict, d.source, d.destination, d.data);
}

void Network::route(Site& site, Datagram d) {
  auto it = site.table_.find(d.destination.address);
  if (it == site.table_.end()) {
    if (!site.parent_) return drop(counters_.unroutable, "no route", d);
    return climb(site, std::move(d));
  }
  if (it->second.child) return descend(*it->second.child, std::move(d));
  Host* host = it->second.host;
  world_.after(kLocalDelay, [this, host, d = std::move(d)]() mutable { deliver(*host, d); });
}

void Network::climb(Site& site, Datagram d) {
  if (site.udp_blocked_) return drop(counters_.filtered, "UDP blocked", d);
  if (site.stateful_) site.flows_[{d.source, d.destination}] = world_.now();
  if (site.translates(d.source.address)) {
    if (d.destination.address == site.nat_->external()) {
      if (!site.nat_->config().hairpin) return drop(counters_.filtered, "no hairpin", d);
      d.source = site.nat_->outbound(world_.now(), d.source, d.destination);
      auto inside = site.nat_->inbound(world_.now(), d.source, d.destination.port);
      if (!inside) return drop(counters_.filtered, "filtered", d);
      d.destination = *inside;
      return route(site, std::move(d));
    }
    d.source = site.nat_->outbound(world_.now(), d.source, d.destination);
  }
  Site* parent = site.parent_;
  travel(site.up_, std::move(d), [this, parent](Datagram arrived) { route(*parent, std::move(arrived)); });
}

void Network::descend(Site& site, Datagram d) {
  Site* to = &site;
  travel(site.down_, std::move(d), [this, to](Datagram arrived) {
    if (to->udp_blocked_) return drop(counters_.filtered, "UDP blocked", arrived);
    if (to->translates(arrived.destination.address)) {
      auto inside = to->nat_->inbound(world_.now(), arrived.source, arrived.destination.port);
      if (!inside) return drop(counters_.filtered, "filtered", arrived);
      arrived.destination = *inside;
    }
    if (to->stateful_) {
      auto flow = to->flows_.find({arrived.destination, arrived.source});
      if (flow == to->flows_.end() || world_.now() - flow->second > kFlowTimeout)
        return drop(counters_.filtered, "filtered", arrived);
    }
    // What a NAT let in may only go down, or it would climb again.
    if (!to->table_.contains(arrived.destination.address)) return drop(counters_.unroutable, "no host", arrived);
    route(*to, std::move(arrived));
  });
}

void Network::travel(Link& link, Datagram d, std::function<void(Datagram)> arrived) {
  constexpr std::size_t kIpAndUdp = 28;
  Link::Arrivals arrivals = link.carry(world_.now(), d.data.size() + kIpAndUdp);
  if (arrivals.count == 0) return drop(counters_.lost, arrivals.verdict, d);
  if (arrivals.count == 2) world_.at(arrivals.at[1], [d, arrived]() mutable { arrived(std::move(d)); });
  world_.at(arrivals.at[0], [d = std::move(d), arrived = std::move(arrived)]() mutable { arrived(std::move(d)); });
}

void Network::deliver(Host& host, Datagram& d) {
  if (!host.up || !host.has(d.destination.address)) return drop(counters_.lost, "host away", d);
  auto port = host.ports_.find(d.destination.port);
  if (port == host.ports_.end()) return drop(counters_.unroutable, "port closed", d);
  ++counters_.delivered;
  world_.trace().datagram(world_.now(), "received", d.source, d.destination, d.data);
  Host::Receiver receiver = port->second;  // it may close the port
  receiver(d.source, d.destination, d.data);
}

std::optional<Network::Way> Network::way(Host& from, const IpAddress& to) {
  Way out;
  out.seen_as = from.address(to.is_v6());
  if (!out.seen_as.is_valid()) return std::nullopt;
  Site* site = from.site_;
  while (!site->table_.contains(to)) {
    if (!site->parent_) return std::nullopt;
    if (site->translates(out.seen_as)) out.seen_as = site->nat_->external();
    out.there.push_back(&site->up_);
    out.back.push_back(&site->down_);
    site = site->parent_;
  }
  for (;;) {
    Site::Target target = site->table_.at(to);
    if (target.host) {
      out.host = target.host;
      return out;
    }
    // No stream enters through a NAT: nobody forwards a port here.
    if (target.child->translates(to)) return std::nullopt;
    site = target.child;
    out.there.push_back(&site->down_);
    out.back.push_back(&site->up_);
  }
}

}  // namespace porthole::sim
