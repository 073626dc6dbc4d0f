// Relay clients and relay servers joined by perfect streams in virtual time, for tests.
//
// Hosts are names: "relay1" leads to the server registered under it, "down" names fail to connect, "mute" ones accept
// and never say anything, "http" ones answer with an HTTP error.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "derp/derp_client.h"
#include "relay/http_front.h"
#include "relay/relay_server.h"

namespace porthole::test {

class OpenAdmission final : public relay::Admission {
 public:
  bool admit(const NodePublic& key, const Endpoint&) override { return !refused.contains(key); }
  std::set<NodePublic> refused;
};

struct RelayWorld {
  struct Received {
    int region;
    NodePublic source;
    ByteVector data;
  };

  struct Node final : derp::DerpHost {
    Node(RelayWorld& w, std::uint64_t seed, bool plain = false)
        : world(w), rng(seed), key(crypto::NodePrivate::generate(rng)), client({seed * 1000, plain}, *this, rng, Log::none()) {
      client.set_key(world.now, key);
    }
    void relay_packet(Instant, int region, const NodePublic& source, MutBytes data) override {
      received.push_back({region, source, to_vector(data)});
    }
    NodePublic pub() const { return key.public_key(); }
    std::vector<derp::DerpEvent> take_events() {
      std::vector<derp::DerpEvent> out;
      while (auto e = client.poll_event()) out.push_back(*e);
      return out;
    }
    template <typename E>
    int count(const std::vector<derp::DerpEvent>& events) const {
      int n = 0;
      for (const auto& e : events) n += std::holds_alternative<E>(e);
      return n;
    }

    RelayWorld& world;
    SeededRng rng;
    crypto::NodePrivate key;
    derp::DerpClient client;
    std::vector<Received> received;
  };

  struct Server {
    explicit Server(std::uint64_t seed) : rng(seed), key(crypto::NodePrivate::generate(rng)), machine(key, admission, rng, Log::none()) {}
    SeededRng rng;
    crypto::NodePrivate key;
    OpenAdmission admission;
    relay::RelayServer machine;
    std::vector<ByteVector> certificates;  // presented to clients
    bool honours_fast_start = true;
  };

  // One stream. Bytes cross at once unless the reader is blocked.
  struct Link {
    Node* node = nullptr;
    StreamId stream = 0;
    std::string host;
    Server* server = nullptr;
    relay::ConnId conn = 0;
    wire::HttpHeadParser head{wire::HttpKind::kRequest};
    bool upgraded = false;
    bool client_reads = true;
    bool server_reads = true;
    bool fast = false;
    std::string request;
  };

  Instant now = Instant::from_ns(1'000'000'000);
  std::map<std::string, std::unique_ptr<Server>> servers;
  std::deque<std::unique_ptr<Node>> nodes;
  std::vector<std::unique_ptr<Link>> links;
  std::vector<OpenStream> opened;  // every OpenStream seen
  std::size_t slice = 65536;
  std::function<void()> after_pump;

  Server& add_server(const std::string& host, std::uint64_t seed) { return *(servers[host] = std::make_unique<Server>(seed)); }
  Node& add_node(std::uint64_t seed) { return *nodes.emplace_back(std::make_unique<Node>(*this, seed)); }

  static ts2021::RelayMap map_of(std::map<int, std::vector<std::string>> regions) {
    ts2021::RelayMap map;
    for (auto& [id, hosts] : regions) {
      ts2021::RelayRegion region;
      region.region_id = id;
      region.region_code = "r" + std::to_string(id);
      int n = 0;
      for (auto& host : hosts) {
        ts2021::RelayNode node;
        node.name = std::to_string(id) + static_cast<char>('a' + n++);
        node.region_id = id;
        node.host_name = host;
        region.nodes.push_back(node);
      }
      map.regions[id] = region;
    }
    return map;
  }

  Link* link_of(Node& node, std::string_view host) {
    for (auto& l : links)
      if (l->node == &node && l->host == host) return l.get();
    return nullptr;
  }
  Link* link_of(relay::ConnId conn, Server* server) {
    for (auto& l : links)
      if (l->server == server && l->conn == conn) return l.get();
    return nullptr;
  }

  // The stream breaks for both ends.
  void cut(Link* link) {
    Node* node = link->node;
    StreamId stream = link->stream;
    if (link->server && link->conn) link->server->machine.on_close(now, link->conn);
    std::erase_if(links, [&](auto& l) { return l.get() == link; });
    Error reset{ErrorCode::kReset, "connection reset"};
    node->client.stream_closed(now, stream, &reset);
  }

  void to_client(Link& l, Bytes bytes) {
    ByteVector copy = to_vector(bytes);
    for (std::size_t at = 0; at < copy.size(); at += slice) {
      MutBytes part = MutBytes(copy).subspan(at);
      l.node->client.consume(now, l.stream, part.first(std::min(slice, part.size()))).ok();
    }
  }

  void to_server(Link& l, MutBytes bytes) {
    if (!l.server) return;
    while (!bytes.empty()) {
      MutBytes part = bytes.first(std::min(slice, bytes.size()));
      bytes = bytes.subspan(part.size());
      if (!l.upgraded) {
        auto n = l.head.consume(part);
        PORTHOLE_ASSERT(n.ok());
        part = part.subspan(*n);
        if (!l.head.done()) continue;
        auto answer = relay::answer_relay_request(l.head, l.server->machine.public_key());
        PORTHOLE_ASSERT(answer && answer->upgrade);
        l.fast = answer->bytes.empty();
        if (l.fast && !l.server->honours_fast_start) {
          l.fast = false;
          to_client(l, as_bytes("HTTP/1.1 400 Bad Request\r\n\r\n"));
          return;
        }
        l.conn = l.server->machine.on_connect(now, Endpoint{IpAddress::v4(192, 0, 2, 1), 1234});
        l.upgraded = true;
        to_client(l, answer->bytes);
      }
      l.server->machine.consume(now, l.conn, part);
    }
  }

  bool pump_once() {
    bool moved = false;
    for (auto& node : nodes) {
      while (auto action = node->client.poll_action()) {
        moved = true;
        if (auto* open = std::get_if<OpenStream>(&*action)) {
          opened.push_back(*open);
          if (open->host.starts_with("down")) {
            node->client.stream_failed(now, open->id, {ErrorCode::kUnavailable, "connection refused"});
            continue;
          }
          if (open->host.starts_with("hang")) continue;
          auto link = std::make_unique<Link>();
          link->node = node.get();
          link->stream = open->id;
          link->host = open->host;
          if (auto it = servers.find(open->host); it != servers.end()) link->server = it->second.get();
          Link& l = *links.emplace_back(std::move(link));
          StreamInfo info;
          info.local = Endpoint{IpAddress::v4(10, 0, 0, 1), 5555};
          info.remote = Endpoint{IpAddress::v4(198, 51, 100, 1), 443};
          if (l.server) {
            info.certificates = l.server->certificates;
            info.tls13 = !info.certificates.empty();
          }
          node->client.stream_opened(now, open->id, info);
        } else {
          StreamId id = std::get<CloseStream>(*action).id;
          for (auto& l : links)
            if (l->stream == id && l->server && l->conn) l->server->machine.on_close(now, l->conn);
          std::erase_if(links, [&](auto& l) { return l->stream == id; });
        }
      }
    }
    ByteVector buffer(65536);
    for (std::size_t i = 0; i < links.size(); ++i) {
      Link& l = *links[i];
      if (!l.server_reads) continue;
      std::size_t n = l.node->client.produce(now, l.stream, buffer);
      if (n == 0) continue;
      moved = true;
      l.request.append(as_text(Bytes(buffer).first(n)));
      if (l.host.starts_with("http")) {
        to_client(l, as_bytes("HTTP/1.1 403 Forbidden\r\nContent-Length: 9\r\n\r\ngo away!\n"));
        return true;
      }
      to_server(l, MutBytes(buffer).first(n));
    }
    for (auto& [host, server] : servers) {
      while (server->machine.poll_ready()) moved = true;
      for (std::size_t i = 0; i < links.size(); ++i) {
        Link& l = *links[i];
        if (l.server != server.get() || !l.conn || !l.client_reads) continue;
        std::size_t n = server->machine.produce(now, l.conn, buffer);
        if (n == 0) continue;
        moved = true;
        to_client(l, Bytes(buffer).first(n));
      }
      while (auto closed = server->machine.poll_close()) {
        moved = true;
        if (Link* l = link_of(closed->id, server.get())) {
          Node* node = l->node;
          StreamId stream = l->stream;
          std::erase_if(links, [&](auto& x) { return x.get() == l; });
          node->client.stream_closed(now, stream, nullptr);
        }
      }
    }
    return moved;
  }

  void pump() {
    for (int i = 0; i < 1000; ++i)
      if (!pump_once()) return;
    PORTHOLE_ASSERT(!"the world does not come to rest");
  }

  // Lets `d` pass, with every timer in its turn.
  void run(Duration d) {
    Instant end = now + d;
    pump();
    for (int i = 0; i < 1'000'000; ++i) {
      Instant next = end;
      for (auto& node : nodes) next = std::min(next, node->client.next_timeout().latest);
      for (auto& [host, server] : servers) next = std::min(next, server->machine.next_timeout().latest);
      now = std::max(now, next);
      for (auto& node : nodes)
        if (node->client.next_timeout().earliest <= now) node->client.handle_timeout(now);
      for (auto& [host, server] : servers)
        if (server->machine.next_timeout().earliest <= now) server->machine.handle_timeout(now);
      pump();
      if (now >= end && next >= end) return;
    }
    PORTHOLE_ASSERT(!"timers spin");
  }
};

}  // namespace porthole::test
