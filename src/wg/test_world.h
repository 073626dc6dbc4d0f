// Two or more tunnels on a fake wire in virtual time, for the tests of this folder.
#pragma once

#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "wg/tunnel.h"

namespace porthole::wg::test {

// Serves scripted answers by size (32: keys and secrets, 24: nonces, 4: indices), then falls back to a seeded stream.
class ScriptedRng final : public Rng {
 public:
  explicit ScriptedRng(std::uint64_t seed) : rest_(seed) {}
  void script(Bytes b) { scripted_[b.size()].push_back(to_vector(b)); }
  void script_index(std::uint32_t v) {
    std::uint8_t b[4];
    store_le(b, v);
    script(b);
  }
  void fill(MutBytes out) override {
    auto it = scripted_.find(out.size());
    if (it == scripted_.end() || it->second.empty()) return rest_.fill(out);
    std::memcpy(out.data(), it->second.front().data(), out.size());
    it->second.pop_front();
  }

 private:
  SeededRng rest_;
  std::map<std::size_t, std::deque<ByteVector>> scripted_;
};

// An IPv4 packet with a payload that starts with `id`.
inline ByteVector ip_packet(const IpAddress& from, const IpAddress& to, std::uint64_t id, std::size_t size = 60) {
  ByteVector p(size);
  p[0] = 0x45;
  store_be(p.data() + 2, static_cast<std::uint16_t>(size));
  p[8] = 64;
  p[9] = 17;
  std::memcpy(p.data() + 12, from.bytes().data(), 4);
  std::memcpy(p.data() + 16, to.bytes().data(), 4);
  store_be(p.data() + 20, id);
  return p;
}
inline std::uint64_t packet_id(Bytes packet) { return load_be<std::uint64_t>(packet.data() + 20); }

class World;

struct Node final : Host {
  Node(World& w, std::string n, std::uint64_t seed, std::uint8_t number);

  World& world;
  std::string name;
  ScriptedRng rng;
  crypto::NodePrivate key;
  NodePublic shown;  // of `key`
  Endpoint endpoint;
  IpAddress address;  // inside the tunnel
  Duration wall_offset{};
  bool admit_all = false;

  struct Delivered { PeerId peer; ByteVector packet; Instant at; };
  std::vector<Delivered> delivered;
  std::vector<std::pair<PeerId, SessionState>> sessions;
  std::vector<std::pair<PeerId, Source>> authentic;
  std::vector<Source> strays;
  std::vector<NodePublic> asked;
  std::size_t cookie_replies = 0;
  struct Sent { Instant at; ByteVector datagram; };
  std::vector<Sent> sent;
  bool keep_sent = true;
  std::function<void(PeerId, SessionState)> on_session;
  std::function<void(PeerId, std::span<const MutBytes>)> on_deliver;
  std::unique_ptr<Tunnel> tunnel;

  Clock clock() const;
  PeerId add(const Node& other);
  PeerId id_of(const Node& other) const { return tunnel->find(other.shown).value(); }
  void send(const Node& to, std::uint64_t id, std::size_t size = 60);
  // Times at which messages of `type` were sent.
  std::vector<Instant> sent_at(std::uint8_t type) const {
    std::vector<Instant> out;
    for (const Sent& s : sent) {
      if (s.datagram[0] == type) out.push_back(s.at);
    }
    return out;
  }
  std::size_t count_sent(std::uint8_t type) const { return sent_at(type).size(); }

  bool admit(const NodePublic& k) override;
  void transmit(PeerId peer, Bytes run, std::size_t segment_size) override;
  void reply(const Source& to, Bytes datagram) override;
  void deliver(PeerId peer, std::span<const MutBytes> packets) override {
    for (MutBytes p : packets) delivered.push_back({peer, to_vector(p), clock().now});
    if (on_deliver) on_deliver(peer, packets);
  }
  void stray(const Source& source) override { strays.push_back(source); }
  void authenticated(PeerId peer, const Source& source) override { authentic.emplace_back(peer, source); }
  void session(PeerId peer, SessionState state) override {
    sessions.emplace_back(peer, state);
    if (on_session) on_session(peer, state);
  }
};

class World {
 public:
  explicit World(std::uint64_t seed = 1) : rng(seed) {}

  Node& add(std::string name) {
    nodes.push_back(std::make_unique<Node>(*this, std::move(name), rng.u64(), static_cast<std::uint8_t>(nodes.size() + 1)));
    return *nodes.back();
  }
  // Introduces two nodes to each other.
  void introduce(Node& a, Node& b) {
    a.add(b);
    b.add(a);
  }

  Duration delay = 10ms;
  Duration jitter{};
  double loss = 0, duplicate = 0;
  // False: lost.
  std::function<bool(const Node& from, const Node& to, Bytes)> pass;

  Instant now = Instant::from_ns(1'000'000'000'000);
  WallTime wall = WallTime::from_unix_s(1'800'000'000);
  SeededRng rng;
  std::vector<std::unique_ptr<Node>> nodes;

  Clock clock() const { return {now, wall}; }
  void put(const Endpoint& source, Node& to, Bytes datagram) {
    for (int copy = 0; copy < 1 + (rng.unit() < duplicate ? 1 : 0); ++copy) {
      if (rng.unit() < loss) continue;
      const Instant at = now + delay + rng.between(Duration(0), jitter);
      wire_.emplace(std::pair(at, ++sequence_), Flying{source, &to, to_vector(datagram)});
    }
  }
  // Time passes with nobody running (suspend), nothing is delivered meanwhile.
  void jump(Duration d) {
    now = now + d;
    wall = wall + d;
  }
  void run_for(Duration d) { run_until(now + d); }
  void run_until(Instant end) {
    for (;;) {
      Instant next = end;
      if (!wire_.empty()) next = std::min(next, std::max(now, wire_.begin()->first.first));
      for (const auto& n : nodes) next = std::min(next, std::max(now, n->tunnel->next_timeout().latest));
      wall = wall + (next - now);
      now = next;
      if (wire_.empty() || wire_.begin()->first.first > now) {
        bool fired = false;
        for (const auto& n : nodes) {
          if (n->tunnel->next_timeout().latest <= now) {
            n->tunnel->handle_timeout(n->clock());
            fired = true;
          }
        }
        if (!fired && now >= end) return;
        continue;
      }
      // Everything that arrives now, in one batch per node.
      std::map<Node*, std::vector<Flying>> arrived;
      while (!wire_.empty() && wire_.begin()->first.first <= now) {
        Flying f = std::move(wire_.begin()->second);
        wire_.erase(wire_.begin());
        arrived[f.to].push_back(std::move(f));
      }
      for (const auto& n : nodes) {
        auto it = arrived.find(n.get());
        if (it == arrived.end()) continue;
        std::vector<RecvDatagram> batch;
        for (Flying& f : it->second) batch.push_back({f.source, MutBytes(f.bytes)});
        n->tunnel->handle_datagrams(n->clock(), batch);
        n->tunnel->flush(n->clock());
      }
    }
  }
  std::size_t in_flight() const { return wire_.size(); }

 private:
  struct Flying {
    Endpoint source;
    Node* to;
    ByteVector bytes;
  };
  std::map<std::pair<Instant, std::uint64_t>, Flying> wire_;
  std::uint64_t sequence_ = 0;
};

inline Node::Node(World& w, std::string n, std::uint64_t seed, std::uint8_t number)
    : world(w), name(std::move(n)), rng(seed) {
  key = crypto::NodePrivate::generate(rng);
  shown = key.public_key();
  endpoint = {IpAddress::v4(192, 0, 2, number), 41641};
  address = IpAddress::v4(100, 64, 0, number);
  tunnel = std::make_unique<Tunnel>(*this, rng);
  tunnel->set_private_key(clock(), key);
}
inline Clock Node::clock() const { return {world.now, world.wall + wall_offset}; }
inline PeerId Node::add(const Node& other) {
  const Prefix p = Prefix::host(other.address);
  return tunnel->add_peer(clock(), other.shown, std::span(&p, 1));
}
inline void Node::send(const Node& to, std::uint64_t id, std::size_t size) {
  const ByteVector p = ip_packet(address, to.address, id, size);
  MutBytes room = tunnel->begin(p.size());
  std::memcpy(room.data(), p.data(), p.size());
  tunnel->commit(clock(), p.size());
  tunnel->flush(clock());
}
inline bool Node::admit(const NodePublic& k) {
  asked.push_back(k);
  if (!admit_all) return false;
  for (const auto& n : world.nodes) {
    if (n->shown == k) return add(*n) != kNoPeer;
  }
  return false;
}
inline void Node::transmit(PeerId peer, Bytes run, std::size_t segment_size) {
  const NodePublic to = tunnel->key_of(peer);
  for (std::size_t at = 0; at < run.size(); at += segment_size) {
    const Bytes datagram = run.subspan(at, std::min(segment_size, run.size() - at));
    if (keep_sent) sent.push_back({world.now, to_vector(datagram)});
    for (const auto& n : world.nodes) {
      if (n.get() == this || n->shown != to) continue;
      if (world.pass && !world.pass(*this, *n, datagram)) continue;
      world.put(endpoint, *n, datagram);
    }
  }
}
inline void Node::reply(const Source& to, Bytes datagram) {
  ++cookie_replies;
  if (keep_sent) sent.push_back({world.now, to_vector(datagram)});
  const auto* e = std::get_if<Endpoint>(&to);
  for (const auto& n : world.nodes) {
    if (e != nullptr && n->endpoint == *e) world.put(endpoint, *n, datagram);
  }
}

inline std::uint64_t drops(const Node& n, Drop d) { return n.tunnel->counters().drops[static_cast<std::size_t>(d)]; }

}  // namespace porthole::wg::test
