// A small network in virtual time for the tests of this folder: hosts with Paths machines, NATs, STUN servers, relays.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <queue>
#include <set>
#include <string>
#include <vector>

#include "base/log.h"
#include "base/rng.h"
#include "crypto/dh.h"
#include "paths/paths.h"
#include "wire/classify.h"
#include "wire/disco.h"
#include "wire/stun.h"

namespace porthole::paths::world {

inline Endpoint ep(std::string_view text) { return *Endpoint::parse(text); }
inline IpAddress ip(std::string_view text) { return *IpAddress::parse(text); }

struct Nat {
  IpAddress external;
  bool endpoint_dependent_mapping = false;                   // EDM: another port per destination
  enum class Filter { kNone, kAddress, kAddressAndPort } filter = Filter::kAddressAndPort;
  std::map<std::pair<Endpoint, Endpoint>, Endpoint> out;     // (inner, remote or none) -> outer
  std::map<Endpoint, Endpoint> in;                           // outer -> inner
  std::map<Endpoint, std::set<Endpoint>> opened;             // outer -> remotes it sent to
  std::uint16_t next_port = 20000;

  Endpoint translate(const Endpoint& inner, const Endpoint& remote) {
    auto key = std::pair(inner, endpoint_dependent_mapping ? remote : Endpoint{});
    auto it = out.find(key);
    if (it == out.end()) {
      Endpoint outer{external, next_port++};
      it = out.emplace(key, outer).first;
      in[outer] = inner;
    }
    opened[it->second].insert(remote);
    return it->second;
  }
  std::optional<Endpoint> accept(const Endpoint& outer, const Endpoint& remote) {
    auto it = in.find(outer);
    if (it == in.end()) return std::nullopt;
    const std::set<Endpoint>& open = opened[outer];
    bool ok = filter == Filter::kNone || open.contains(remote);
    if (filter == Filter::kAddress)
      for (const Endpoint& e : open) ok |= e.address == remote.address;
    return ok ? std::optional(it->second) : std::nullopt;
  }
};

class World;

struct Sent {
  Instant at;
  std::optional<Endpoint> udp;
  int region = 0;
  NodePublic relay_to;
  ByteVector data;
  wire::DatagramKind kind;
};

class Host final : public DatagramSink {
 public:
  Host(World& world, std::string name_, std::uint64_t seed);
  void send_udp(const Endpoint& destination, Bytes data, std::size_t segment_size) override;
  void send_relay(int region, const NodePublic& destination, Bytes data) override;

  void deliver_udp(const Endpoint& source, ByteVector data);
  void deliver_relay(int region, const NodePublic& source, ByteVector data);
  void poll();

  PeerConfig config() const;
  // Sends one WireGuard-like datagram the way route() says; returns the route.
  Route send_data(const Host& to);
  std::size_t count_sent(wire::DatagramKind kind, const Endpoint& to) const {
    std::size_t n = 0;
    for (const Sent& s : sent) n += s.kind == kind && s.udp == to;
    return n;
  }
  template <typename T>
  std::vector<T> events_of() const {
    std::vector<T> out;
    for (const Event& e : events)
      if (const T* t = std::get_if<T>(&e)) out.push_back(*t);
    return out;
  }

  World& world;
  std::string name;
  SeededRng rng;
  crypto::DiscoPrivate disco;
  NodePublic node;
  std::vector<Endpoint> addresses;       // own interface addresses with the bound port
  Nat* nat = nullptr;                    // IPv4 goes through it
  std::string lan;                       // same name: hosts reach each other's interface addresses
  bool udp_blocked = false;
  bool relay_connected = true;
  int home = 0;                          // as last announced to others
  std::vector<Endpoint> announced;
  std::vector<Event> events;
  std::vector<Sent> sent;
  std::size_t data_udp = 0, data_relay = 0;
  std::unique_ptr<Paths> paths;
};

class World {
 public:
  Instant now = Instant::from_ns(1'000'000'000);
  Duration udp_delay = 10ms, relay_delay = 20ms;
  std::map<Endpoint, bool> stun_servers;                       // endpoint -> answers
  std::function<bool(const Endpoint& source, const Endpoint& destination)> lose;   // UDP on the way
  std::map<int, Duration> http_latencies;                      // of the regions that answer by HTTP
  std::map<std::string, std::vector<IpAddress>> names;
  std::vector<std::unique_ptr<Host>> hosts;
  std::vector<std::unique_ptr<Nat>> nats;
  RelayMap map;

  Nat& add_nat(std::string_view external) {
    nats.push_back(std::make_unique<Nat>());
    nats.back()->external = ip(external);
    return *nats.back();
  }
  Host& add_host(std::string name, std::vector<std::string> addresses, Nat* nat = nullptr, std::string lan = "") {
    hosts.push_back(std::make_unique<Host>(*this, name, hosts.size() + 100));
    Host& h = *hosts.back();
    for (const std::string& a : addresses) h.addresses.push_back(ep(a));
    h.nat = nat;
    h.lan = std::move(lan);
    return h;
  }
  void add_region(int id, std::string_view stun, bool answers = true) {
    RelayRegion r;
    r.id = id;
    RelayNode n;
    n.name = std::to_string(id) + "a";
    n.host_name = "relay" + std::to_string(id) + ".example";
    n.ipv4 = ep(stun).address.to_string();
    n.ipv6 = "none";
    n.stun_port = ep(stun).port;
    r.nodes.push_back(n);
    map.regions.push_back(r);
    stun_servers[ep(stun)] = answers;
  }
  void start(Host& h) {
    h.paths->set_keys(now, h.disco, h.node);
    set_addresses(h);
    h.paths->set_relay_map(now, map);
    for (const RelayRegion& r : map.regions) h.paths->note_relay_connected(now, r.id, h.relay_connected);
    h.poll();
  }
  void start_all() {
    for (auto& h : hosts) start(*h);
  }
  static void set_addresses(Host& h);
  // Everyone learns the others' current announcements, as from the control server.
  void share_map() {
    for (auto& h : hosts) {
      std::vector<PeerConfig> peers;
      for (auto& other : hosts)
        if (other != h) peers.push_back(other->config());
      h->paths->set_peers(now, peers);
      h->poll();
    }
  }

  void post(Duration delay, std::function<void()> what) { queue_.push({now + delay, sequence_++, std::move(what)}); }
  void run(Duration d) {
    const Instant end = now + d;
    for (;;) {
      Instant next = queue_.empty() ? Instant::max() : queue_.top().at;
      Host* due = nullptr;
      for (auto& h : hosts) {
        const Instant t = h->paths->next_timeout().latest;
        if (t < next) {
          next = t;
          due = h.get();
        }
      }
      if (next > end) break;
      if (next > now) now = next;
      if (due != nullptr) {
        due->paths->handle_timeout(now);
        due->poll();
      } else {
        auto what = queue_.top().what;
        queue_.pop();
        what();
      }
    }
    now = end;
  }
  // Sends a datagram from one host to another every 100 ms for a while.
  void traffic(Host& from, Host& to, Duration d, bool replies = true) {
    const Instant end = now + d;
    while (now < end) {
      from.send_data(to);
      if (replies) to.send_data(from);
      run(100ms);
    }
  }
  Host* host_at(const Endpoint& e, const std::string* lan) {
    for (auto& h : hosts)
      for (const Endpoint& a : h->addresses)
        if (a == e && (lan == nullptr ? h->nat == nullptr || e.address.is_v6() : h->lan == *lan)) return h.get();
    return nullptr;
  }
  void udp(Host& from, const Endpoint& destination, ByteVector data);

 private:
  struct Item {
    Instant at;
    std::uint64_t sequence;
    std::function<void()> what;
    bool operator<(const Item& o) const { return at != o.at ? at > o.at : sequence > o.sequence; }
  };
  std::priority_queue<Item> queue_;
  std::uint64_t sequence_ = 0;
};

inline Host::Host(World& w, std::string name_, std::uint64_t seed) : world(w), name(std::move(name_)), rng(seed) {
  disco = crypto::DiscoPrivate::generate(rng);
  node = crypto::NodePrivate::generate(rng).public_key();
  paths = std::make_unique<Paths>(*this, rng, Log::none());
}

inline void World::set_addresses(Host& h) {
  std::vector<InterfaceAddress> list;
  std::uint16_t v4 = 0, v6 = 0;
  for (const Endpoint& e : h.addresses) {
    list.push_back({"eth0", e.address, e.address.is_v4() ? 24 : 64, true, e.address.is_loopback()});
    (e.address.is_v4() ? v4 : v6) = e.port;
  }
  h.paths->set_local_addresses(h.world.now, list, v4, v6);
  h.poll();
}

inline void Host::send_udp(const Endpoint& destination, Bytes data, std::size_t segment_size) {
  (void)segment_size;
  sent.push_back({world.now, destination, 0, {}, to_vector(data), wire::classify(data).kind});
  if (!udp_blocked) world.udp(*this, destination, to_vector(data));
}

inline void World::udp(Host& from, const Endpoint& destination, ByteVector data) {
  const Endpoint* source = nullptr;
  for (const Endpoint& a : from.addresses)
    if (source == nullptr && a.address.is_v4() == destination.address.is_v4()) source = &a;
  if (source == nullptr) return;
  Endpoint inner = *source;
  if (!from.lan.empty()) {
    if (Host* h = host_at(destination, &from.lan)) {
      if (lose && lose(inner, destination)) return;
      return post(1ms, [h, inner, data = std::move(data)] { h->deliver_udp(inner, data); });
    }
  }
  const Endpoint outer = from.nat != nullptr && destination.address.is_v4() ? from.nat->translate(inner, destination) : inner;
  if (lose && lose(outer, destination)) return;
  Host* sender = &from;
  post(udp_delay, [this, sender, outer, destination, data = std::move(data)] {
    if (auto stun = stun_servers.find(destination); stun != stun_servers.end()) {
      auto id = wire::stun::parse_request(data);
      if (!id || !stun->second) return;
      std::uint8_t answer[wire::stun::kResponseSizeMax];
      const std::size_t n = wire::stun::encode_response(*id, outer, answer);
      ByteVector reply(answer, answer + n);
      return post(udp_delay, [sender, destination, reply] { sender->deliver_udp(destination, reply); });
    }
    Endpoint target = destination;
    for (auto& n : nats) {
      if (n->external != destination.address) continue;
      auto t = n->accept(destination, outer);
      if (!t) return;
      for (auto& h : hosts)
        if (h->nat == n.get())
          for (const Endpoint& a : h->addresses)
            if (a == *t) return h->deliver_udp(outer, data);
      return;
    }
    if (Host* h = host_at(target, nullptr)) h->deliver_udp(outer, data);
  });
}

inline void Host::send_relay(int region, const NodePublic& destination, Bytes data) {
  sent.push_back({world.now, std::nullopt, region, destination, to_vector(data), wire::classify(data).kind});
  if (!relay_connected) return;
  for (auto& h : world.hosts) {
    if (h->node != destination || !h->relay_connected) continue;
    Host* to = h.get();
    world.post(world.relay_delay, [to, region, from = node, d = to_vector(data)] { to->deliver_relay(region, from, d); });
  }
}

inline void Host::deliver_udp(const Endpoint& source, ByteVector data) {
  if (udp_blocked) return;
  if (!paths->handle_udp(world.now, {source, data})) {
    ++data_udp;
    if (auto key = paths->peer_at(source)) paths->note_authenticated(world.now, *key, source);
  }
  poll();
}

inline void Host::deliver_relay(int region, const NodePublic& source, ByteVector data) {
  if (!paths->handle_relayed(world.now, region, source, data)) ++data_relay;
  poll();
}

inline void Host::poll() {
  while (auto e = paths->poll_event()) {
    if (const auto* changed = std::get_if<EndpointsChanged>(&*e)) {
      announced.clear();
      for (const TypedEndpoint& t : changed->endpoints) announced.push_back(t.endpoint);
    } else if (const auto* moved = std::get_if<HomeRegionChanged>(&*e)) {
      home = moved->region;
    } else if (const auto* measure = std::get_if<MeasureRelays>(&*e)) {
      for (int region : measure->regions) {
        auto known = world.http_latencies.find(region);
        const std::optional<Duration> took = known == world.http_latencies.end() ? std::nullopt : std::optional(known->second);
        world.post(took.value_or(5ms), [this, region, took] {
          paths->relay_measured(world.now, region, took, false);
          poll();
        });
      }
    } else if (const auto* ask = std::get_if<ResolveRequest>(&*e)) {
      world.post(5ms, [this, host = ask->host] {
        paths->resolved(world.now, host, world.names[host]);
        poll();
      });
    }
    events.push_back(std::move(*e));
  }
}

inline PeerConfig Host::config() const { return {node, disco.public_key(), announced, home, false}; }

inline Route Host::send_data(const Host& to) {
  const Route r = paths->route(world.now, to.node);
  ByteVector data(64, 0xee);
  data[0] = 4;
  data[1] = data[2] = data[3] = 0;
  if (r.udp) send_udp(*r.udp, data, data.size());
  if (r.relay_region) send_relay(*r.relay_region, to.node, data);
  poll();
  return r;
}

// ---- what several files look at

inline constexpr auto kDisco = wire::DatagramKind::kDisco;

inline std::size_t drops(const Host& h, Drop d) { return h.paths->counters().drops[static_cast<std::size_t>(d)]; }

inline bool direct(Host& a, const Host& b) {
  auto s = a.paths->status(a.world.now, b.node);
  return s && s->trusted;
}

// Two homes behind NATs of the usual kind (endpoint-independent mapping, address-and-port-dependent filter), one relay
// region with STUN, maps shared once everyone knows their addresses.
struct TwoHomes {
  World w;
  Nat& nat_a = w.add_nat("198.51.100.1");
  Nat& nat_b = w.add_nat("203.0.113.1");
  Host& a = w.add_host("a", {"192.168.1.2:41641"}, &nat_a);
  Host& b = w.add_host("b", {"192.168.2.2:41641"}, &nat_b);
  TwoHomes() {
    w.add_region(1, "192.0.2.10:3478");
    w.start_all();
    w.run(1s);
    w.share_map();
  }
};

// A home whose NAT maps every destination to another port, and two STUN servers that can tell. Nothing has started.
struct HardHome {
  World w;
  Nat& nat = w.add_nat("198.51.100.1");
  Host& a = w.add_host("a", {"192.168.1.2:41641"}, &nat);
  HardHome() {
    nat.endpoint_dependent_mapping = true;
    w.add_region(1, "192.0.2.10:3478");
    w.add_region(2, "192.0.2.20:3478");
  }
};

// Two public hosts without NAT; `relay` gives them a region.
struct TwoPublic {
  World w;
  Host& a = w.add_host("a", {"198.51.100.5:41641"});
  Host& b = w.add_host("b", {"203.0.113.5:41641"});
  explicit TwoPublic(bool relay = true) {
    if (relay) w.add_region(1, "192.0.2.10:3478");
    w.start_all();
    w.run(1s);
    w.share_map();
  }
};

// Seals as `from` would, for hand-made messages.
inline ByteVector seal(Host& from, const Host& to, const wire::disco::Message& m) {
  const ByteVector plain = wire::disco::encode(m);
  ByteVector out(wire::disco::kOverhead + plain.size());
  std::uint8_t nonce[24];
  from.rng.fill(nonce);
  wire::disco::write_envelope(out, from.disco.public_key(), nonce);
  const auto key = crypto::BoxKey::make(from.disco.reveal(), to.disco.public_key().bytes());
  key->seal(nonce, plain, MutBytes(out).subspan(wire::disco::kBoxOffset));
  return out;
}

}  // namespace porthole::paths::world
