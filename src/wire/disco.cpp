#include "wire/disco.h"

#include "base/assert.h"

namespace porthole::wire::disco {
namespace {

enum Type : std::uint8_t {
  kPing = 1, kPong = 2, kCallMeMaybe = 3, kBind = 4, kChallenge = 5, kAnswer = 6, kVia = 7, kAllocate = 8, kAllocated = 9,
};

constexpr std::size_t kTxIdSize = 12;

Endpoint read_endpoint(ByteReader& r) {
  const auto raw = r.array<16>();
  Endpoint e;
  e.address = IpAddress::v6_bytes(raw.data());
  e.port = r.be16();
  return e;
}

void write_endpoint(ByteWriter& w, const Endpoint& e) {
  w.bytes(e.address.mapped());
  w.be16(e.port);
}

template <typename Key>
Key read_key(ByteReader& r) {
  return Key(r.array<32>());
}

std::vector<Endpoint> read_endpoints(ByteReader& r) {
  std::vector<Endpoint> out;
  out.reserve(r.remaining() / kAddressSize);
  while (r.remaining() >= kAddressSize) out.push_back(read_endpoint(r));
  return out;
}

// The rest of the reader is one relay endpoint block: fixed part, then a whole number of addresses, at least one.
std::optional<RelayEndpoint> read_relay_endpoint(ByteReader& r) {
  RelayEndpoint e;
  e.server_disco = read_key<DiscoPublic>(r);
  e.client_disco[0] = read_key<DiscoPublic>(r);
  e.client_disco[1] = read_key<DiscoPublic>(r);
  e.lamport_id = r.be64();
  e.vni = r.be32();
  e.bind_lifetime_ns = r.be64();
  e.steady_lifetime_ns = r.be64();
  if (!r.ok() || r.remaining() == 0 || r.remaining() % kAddressSize != 0) return std::nullopt;
  e.addresses = read_endpoints(r);
  return e;
}

void write_relay_endpoint(ByteWriter& w, const RelayEndpoint& e) {
  w.bytes(e.server_disco.bytes());
  w.bytes(e.client_disco[0].bytes());
  w.bytes(e.client_disco[1].bytes());
  w.be64(e.lamport_id);
  w.be32(e.vni);
  w.be64(e.bind_lifetime_ns);
  w.be64(e.steady_lifetime_ns);
  for (const Endpoint& a : e.addresses) write_endpoint(w, a);
}

std::optional<Message> parse_ping(ByteReader& r) {
  Ping m;
  m.tx_id = r.array<kTxIdSize>();
  if (!r.ok()) return std::nullopt;
  if (r.remaining() >= 32) m.node_key = read_key<NodePublic>(r);
  m.padding = r.remaining();
  return m;
}

std::optional<Message> parse_pong(ByteReader& r) {
  Pong m;
  m.tx_id = r.array<kTxIdSize>();
  m.source = read_endpoint(r);
  if (!r.ok()) return std::nullopt;
  return m;
}

Message parse_call_me_maybe(ByteReader& r, std::uint8_t version) {
  CallMeMaybe m;
  if (version == 0 && r.remaining() % kAddressSize == 0) m.endpoints = read_endpoints(r);
  return m;
}

std::optional<Message> parse_bind(ByteReader& r, std::uint8_t type) {
  BindRelay m;
  m.step = static_cast<BindRelay::Step>(type);
  m.vni = r.be32();
  m.generation = r.be32();
  m.remote_key = read_key<DiscoPublic>(r);
  m.challenge = r.array<32>();
  if (!r.ok()) return std::nullopt;
  return m;
}

std::optional<Message> parse_allocate(ByteReader& r) {
  AllocateRequest m;
  m.client_disco[0] = read_key<DiscoPublic>(r);
  m.client_disco[1] = read_key<DiscoPublic>(r);
  m.generation = r.be32();
  if (!r.ok()) return std::nullopt;
  return m;
}

struct Encoder {
  ByteVector& out;

  ByteWriter head(std::uint8_t type) const {
    ByteWriter w(out);
    w.u8(type);
    w.u8(0);
    return w;
  }
  void operator()(const Ping& m) const {
    ByteWriter w = head(kPing);
    w.bytes(m.tx_id);
    if (!m.node_key.is_zero() || m.padding > 0) w.bytes(m.node_key.bytes());
    w.zeros(m.padding);
  }
  void operator()(const Pong& m) const {
    ByteWriter w = head(kPong);
    w.bytes(m.tx_id);
    write_endpoint(w, m.source);
  }
  void operator()(const CallMeMaybe& m) const {
    ByteWriter w = head(kCallMeMaybe);
    for (const Endpoint& e : m.endpoints) write_endpoint(w, e);
  }
  void operator()(const BindRelay& m) const {
    ByteWriter w = head(static_cast<std::uint8_t>(m.step));
    w.be32(m.vni);
    w.be32(m.generation);
    w.bytes(m.remote_key.bytes());
    w.bytes(m.challenge);
  }
  void operator()(const CallMeMaybeVia& m) const {
    ByteWriter w = head(kVia);
    write_relay_endpoint(w, m.endpoint);
  }
  void operator()(const AllocateRequest& m) const {
    ByteWriter w = head(kAllocate);
    w.bytes(m.client_disco[0].bytes());
    w.bytes(m.client_disco[1].bytes());
    w.be32(m.generation);
  }
  void operator()(const AllocateResponse& m) const {
    ByteWriter w = head(kAllocated);
    w.be32(m.generation);
    write_relay_endpoint(w, m.endpoint);
  }
  void operator()(const Unknown&) const {}
};

}  // namespace

std::optional<Envelope> parse_envelope(Bytes p) {
  if (p.size() < kOverhead || std::memcmp(p.data(), kMagic.data(), kMagic.size()) != 0) return std::nullopt;
  return Envelope{DiscoPublic::from_bytes(p.subspan(kKeyOffset, DiscoPublic::kSize)), p.subspan(kNonceOffset, kNonceSize),
                  p.subspan(kBoxOffset)};
}

void write_envelope(MutBytes out, const DiscoPublic& sender, Bytes nonce24) {
  PORTHOLE_ASSERT(out.size() >= kBoxOffset && nonce24.size() == kNonceSize);
  std::memcpy(out.data(), kMagic.data(), kMagic.size());
  std::memcpy(out.data() + kKeyOffset, sender.raw().data(), DiscoPublic::kSize);
  std::memcpy(out.data() + kNonceOffset, nonce24.data(), kNonceSize);
}

std::optional<Message> parse(Bytes plaintext) {
  ByteReader r(plaintext);
  const std::uint8_t type = r.u8();
  const std::uint8_t version = r.u8();
  if (!r.ok()) return std::nullopt;
  switch (type) {
    case kPing: return parse_ping(r);
    case kPong: return parse_pong(r);
    case kCallMeMaybe: return parse_call_me_maybe(r, version);
    case kBind:
    case kChallenge:
    case kAnswer: return parse_bind(r, type);
    default: break;
  }
  if (version != 0) return Unknown{type};
  switch (type) {
    case kVia: {
      auto e = read_relay_endpoint(r);
      if (!e) return std::nullopt;
      return CallMeMaybeVia{std::move(*e)};
    }
    case kAllocate: return parse_allocate(r);
    case kAllocated: {
      AllocateResponse m;
      m.generation = r.be32();
      auto e = read_relay_endpoint(r);
      if (!e) return std::nullopt;
      m.endpoint = std::move(*e);
      return m;
    }
    default: return Unknown{type};
  }
}

ByteVector encode(const Message& message) {
  ByteVector out;
  std::visit(Encoder{out}, message);
  return out;
}

std::array<std::uint8_t, kPongPlaintextSize> encode_pong(const TxId& tx_id, const Endpoint& source) {
  std::array<std::uint8_t, kPongPlaintextSize> out{};
  out[0] = kPong;
  std::memcpy(out.data() + 2, tx_id.data(), kTxIdSize);
  const auto mapped = source.address.mapped();
  std::memcpy(out.data() + 14, mapped.data(), mapped.size());
  store_be(out.data() + 30, source.port);
  return out;
}

std::array<std::uint8_t, kPingPlaintextSize> encode_ping(const TxId& tx_id, const NodePublic& node_key) {
  std::array<std::uint8_t, kPingPlaintextSize> out{};
  out[0] = kPing;
  std::memcpy(out.data() + 2, tx_id.data(), kTxIdSize);
  std::memcpy(out.data() + 14, node_key.raw().data(), NodePublic::kSize);
  return out;
}

Endpoint relay_pseudo_endpoint(int region) {
  return {IpAddress::v4(127, 3, 3, 40), static_cast<std::uint16_t>(region)};
}

}  // namespace porthole::wire::disco
