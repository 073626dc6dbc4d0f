#include "sim/foreign_coordinator.h"

#include "ts2021/h2.h"
#include "ts2021/json.h"
#include "ts2021/map_framing.h"
#include "ts2021/noise.h"
#include "ts2021/spec_constants.h"
#include "wire/http.h"

namespace porthole::sim {

class ForeignCoordinator::Connection final : public StreamUser {
 public:
  Connection(ForeignCoordinator& coordinator, StreamRef s) : stream(std::move(s)), coordinator_(coordinator) {}

  void stream_bytes(MutBytes bytes) override {
    if (!noise_) {
      auto taken = head_.consume(bytes);
      if (!taken.ok()) return stream->abort();
      bytes = bytes.subspan(*taken);
      if (!head_.done()) return;
      if (!answer_head()) return stream->close();
    }
    ByteVector plain;
    if (!noise_->records.open(bytes, plain).ok() || !h2.consume(plain).ok()) return stream->abort();
    while (auto event = h2.poll_event()) {
      if (auto* request = std::get_if<ts2021::H2Request>(&*event)) {
        if (request->path == ts2021::kRegisterPath) coordinator_.handle_register(*this, request->stream, request->body);
        else if (request->path == ts2021::kMapPath) coordinator_.handle_map(*this, request->stream, request->body);
        else h2.respond(request->stream, 404, {}, {});
      }
    }
    flush();
  }
  void stream_writable() override { flush(); }
  void stream_closed(const std::optional<Error>&) override { over = true; }

  void flush() {
    ByteVector plain(kStreamBlock), sealed;
    while (std::size_t n = h2.produce(plain))
      if (!noise_->records.seal(Bytes(plain).first(n), sealed).ok()) return stream->abort();
    if (!sealed.empty()) stream->send(sealed);
  }

  StreamRef stream;
  ts2021::H2Server h2;
  bool over = false;

 private:
  // False: the connection has had its answer.
  bool answer_head() {
    ByteVector out;
    auto head = [&](int status, std::string_view reason, std::initializer_list<wire::HttpHeader> headers) {
      const std::vector<wire::HttpHeader> list(headers);
      if (auto s = wire::encode_http_response_head(out, status, reason, list); !s) PORTHOLE_ASSERT(false);
    };
    auto handshake = head_.header("X-Tailscale-Handshake");
    auto initiation = handshake ? from_base64(*handshake) : std::nullopt;
    if (!initiation) {
      const std::string key = ts2021::encode_key_answer({coordinator_.noise_key_.public_key(), {}});
      head(200, "OK", {{"Content-Type", "application/json"}, {"Content-Length", std::to_string(key.size())}});
      append(out, as_bytes(key));
      stream->send(out);
      return false;
    }
    auto response = ts2021::respond_noise(*initiation, coordinator_.noise_key_, coordinator_.rng_);
    PORTHOLE_ASSERT(response.ok());
    head(101, "Switching Protocols", {{"Upgrade", ts2021::kUpgradeProtocol}, {"Connection", "upgrade"}});
    append(out, response->response);
    stream->send(out);
    noise_.emplace(std::move(response->session));
    return true;
  }

  ForeignCoordinator& coordinator_;
  wire::HttpHeadParser head_{wire::HttpKind::kRequest};
  std::optional<ts2021::NoiseSession> noise_;
};

ForeignCoordinator::ForeignCoordinator(Network& network, Streams& streams, Host& host, std::string name, ts2021::RelayMap relays)
    : world_(network.world()), name_(std::move(name)), relays_(std::move(relays)), rng_(world_.rng("server " + name_)),
      noise_key_(crypto::MachinePrivate::generate(rng_)) {
  streams.add_name(name_, host.addresses());
  streams.listen(host, kHttpsPort, [this](const StreamRef& stream) -> StreamUser* {
    connections_.push_back(std::make_unique<Connection>(*this, stream));
    return connections_.back().get();
  });
}

ForeignCoordinator::~ForeignCoordinator() {
  for (auto& c : connections_) c->stream->vanish();
}

void ForeignCoordinator::handle_register(Connection& c, std::int32_t stream, Bytes body) {
  auto request = ts2021::parse_register_request(body);
  PORTHOLE_ASSERT(request.ok());
  const auto number = static_cast<std::uint8_t>(members_.size() + 1);
  auto [it, is_new] = members_.try_emplace(request->node_key);
  if (is_new) {
    ts2021::Node& n = it->second.node;
    n.id = number;
    n.stable_id = std::to_string(number);
    n.name = request->hostinfo->hostname + ".foreign.test.";
    n.user = 1;
    n.key = request->node_key;
    n.addresses = {Prefix::host(IpAddress::v4(100, 64, 0, number))};
    n.machine_authorized = true;
  }
  ts2021::RegisterResponse answer;
  answer.machine_authorized = true;
  answer.user.id = answer.login.id = 1;
  answer.login.login_name = "family";
  c.h2.respond(stream, 200, {}, as_bytes(ts2021::encode_register_response(answer)));
}

void ForeignCoordinator::handle_map(Connection& c, std::int32_t stream, Bytes body) {
  auto request = ts2021::parse_map_request(body);
  PORTHOLE_ASSERT(request.ok());
  auto it = members_.find(request->node_key);
  if (it == members_.end()) {
    c.h2.respond(stream, 404, {}, as_bytes("node not found\n"));
    return;
  }
  Member& member = it->second;
  if (request->endpoints) member.node.endpoints = *request->endpoints;
  member.node.disco_key = request->disco_key;
  if (request->hostinfo && request->hostinfo->net_info) member.node.home_derp = request->hostinfo->net_info->preferred_derp;
  if (!request->stream) {
    c.h2.respond(stream, 200, {}, {});
  } else {
    c.h2.respond_streaming(stream, 200, {});
    member.connection = &c;
    member.stream = stream;
    member.zstd = request->compress == "zstd";
    ++member.whole_maps;
    ts2021::MapResponse whole;
    whole.control_time = world_.wall();
    whole.node = member.node;
    whole.domain = "foreign.test";
    whole.derp_map = ts2021::RelayMapUpdate::full(relays_);
    for (const auto& [key, other] : members_)
      if (&other != &member) whole.peers.push_back(other.node);
    add_rules(member, whole);
    tell(member, whole);
  }
  for (auto& [key, other] : members_) {
    if (&other == &member) continue;
    ts2021::MapResponse news;
    news.peers_changed = {member.node};
    if (rules == Rules::kWithThePeer) add_rules(other, news);
    tell(other, news);
  }
}

void ForeignCoordinator::tell(Member& member, const ts2021::MapResponse& news) {
  if (!member.connection || member.connection->over) return;
  // A stream that the node has cancelled takes nothing.
  member.connection->h2.send_data(member.stream, ts2021::frame_map_message(ts2021::encode_map_response(news), member.zstd));
  member.connection->flush();
}

void ForeignCoordinator::add_rules(const Member& member, ts2021::MapResponse& out) const {
  ts2021::FilterRule rule;
  if (rules != Rules::kNever)
    for (const auto& [key, other] : members_)
      if (&other != &member) rule.src_ips.push_back(other.node.addresses.front().address.to_string());
  rule.dst_ports.push_back({member.node.addresses.front().address.to_string(), ts2021::PortRange::any()});
  out.packet_filters.emplace();
  (*out.packet_filters)["base"] = rule.src_ips.empty() ? ts2021::FilterRules{} : ts2021::FilterRules{rule};
}

}  // namespace porthole::sim
