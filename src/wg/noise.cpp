#include "wg/noise.h"

#include "base/assert.h"
#include "crypto/aead.h"
#include "crypto/dh.h"

namespace porthole::wg {

using crypto::SecretBytes;

namespace {

constexpr std::uint8_t kZeroNonce[crypto::kAeadNonceSize] = {};

// Offsets within the messages.
constexpr std::size_t kEphemeral1 = 8, kStatic = 40, kStamp = 88;
constexpr std::size_t kEphemeral2 = 12, kEmpty = 44;

}  // namespace

crypto::Hash32 mac1_key_of(const NodePublic& destination) {
  return crypto::blake2s(as_bytes(kLabelMac1), destination.bytes());
}
crypto::Hash32 cookie_key_of(const NodePublic& destination) {
  return crypto::blake2s(as_bytes(kLabelCookie), destination.bytes());
}

Identity Identity::of(const crypto::NodePrivate& key) {
  Identity out;
  out.key = key.duplicate();
  out.shown = key.public_key();
  out.mac1_key = mac1_key_of(out.shown);
  out.cookie_key = cookie_key_of(out.shown);
  return out;
}

PeerKeys PeerKeys::of(const Identity& self, const NodePublic& peer, Bytes psk) {
  PeerKeys out;
  out.shown = peer;
  out.usable = !self.key.is_zero() && crypto::x25519(self.key.reveal(), peer.bytes(), out.static_static);
  if (psk.size() == 32) out.psk = SecretBytes<32>(psk);
  out.mac1_key = mac1_key_of(peer);
  out.cookie_key = cookie_key_of(peer);
  return out;
}

Transcript Transcript::start(const NodePublic& responder) {
  Transcript t;
  const crypto::Hash32 c = crypto::blake2s(as_bytes(kConstruction));
  t.c_ = SecretBytes<32>(Bytes(c));
  t.h_ = crypto::blake2s(c, as_bytes(kIdentifier));
  t.mix_hash(responder.bytes());
  return t;
}

Transcript Transcript::duplicate() const {
  Transcript t;
  t.c_ = c_.duplicate();
  t.h_ = h_;
  return t;
}

void Transcript::mix_hash(Bytes b) { h_ = crypto::blake2s(h_, b); }

void Transcript::mix_key(Bytes input) { crypto::hkdf_blake2s(c_.reveal(), input, c_.writable()); }

void Transcript::mix_key(Bytes input, SecretBytes<32>& key) {
  crypto::hkdf_blake2s(c_.reveal(), input, c_.writable(), key.writable());
}

void Transcript::mix_psk(Bytes psk, SecretBytes<32>& key) {
  SecretBytes<32> t;
  crypto::hkdf_blake2s(c_.reveal(), psk, c_.writable(), t.writable(), key.writable());
  mix_hash(t.reveal());
}

void Transcript::seal(const SecretBytes<32>& key, Bytes plain, MutBytes out) {
  crypto::aead_seal(key.reveal(), kZeroNonce, h_, plain, out);
  mix_hash(out);
}

bool Transcript::open(const SecretBytes<32>& key, Bytes sealed, MutBytes out) {
  if (!crypto::aead_open(key.reveal(), kZeroNonce, h_, sealed, out)) return false;
  mix_hash(sealed);
  return true;
}

std::optional<PendingInitiation> build_initiation(const Identity& self, const PeerKeys& peer,
                                                  crypto::NodePrivate ephemeral, std::uint32_t index,
                                                  const Tai64n& stamp, MutBytes out) {
  PORTHOLE_ASSERT(out.size() == kInitiationSize);
  PendingInitiation p;
  p.index = index;
  p.ephemeral = std::move(ephemeral);
  p.transcript = Transcript::start(peer.shown);
  const NodePublic shown = p.ephemeral.public_key();

  store_le(out.data(), std::uint32_t{kTypeInitiation});
  store_le(out.data() + 4, index);
  std::memcpy(out.data() + kEphemeral1, shown.raw().data(), 32);
  p.transcript.mix_key(shown.bytes());
  p.transcript.mix_hash(shown.bytes());

  SecretBytes<32> shared, key;
  if (!peer.usable || !crypto::x25519(p.ephemeral.reveal(), peer.shown.bytes(), shared)) return std::nullopt;
  p.transcript.mix_key(shared.reveal(), key);
  p.transcript.seal(key, self.shown.bytes(), out.subspan(kStatic, 48));
  p.transcript.mix_key(peer.static_static.reveal(), key);
  p.transcript.seal(key, stamp.bytes(), out.subspan(kStamp, 28));
  return p;
}

std::optional<ClaimedInitiation> open_initiation(const Identity& self, Bytes message) {
  PORTHOLE_ASSERT(message.size() == kInitiationSize);
  ClaimedInitiation c;
  c.sender_index = load_le<std::uint32_t>(message.data() + 4);
  c.ephemeral = NodePublic::from_bytes(message.subspan(kEphemeral1, 32));
  c.transcript = Transcript::start(self.shown);
  c.transcript.mix_hash(c.ephemeral.bytes());
  c.transcript.mix_key(c.ephemeral.bytes());

  SecretBytes<32> shared, key;
  if (!crypto::x25519(self.key.reveal(), c.ephemeral.bytes(), shared)) return std::nullopt;
  c.transcript.mix_key(shared.reveal(), key);
  std::array<std::uint8_t, 32> claimed;
  if (!c.transcript.open(key, message.subspan(kStatic, 48), claimed)) return std::nullopt;
  c.static_key = NodePublic(claimed);
  return c;
}

std::optional<Tai64n> open_stamp(ClaimedInitiation& claimed, Bytes static_static, Bytes message) {
  Transcript t = claimed.transcript.duplicate();
  SecretBytes<32> key;
  t.mix_key(static_static, key);
  std::array<std::uint8_t, 12> stamp;
  if (!t.open(key, message.subspan(kStamp, 28), stamp)) return std::nullopt;
  claimed.transcript = std::move(t);
  return Tai64n::from_bytes(stamp);
}

std::optional<TransportKeys> build_response(const ClaimedInitiation& claimed, const PeerKeys& peer,
                                            const crypto::NodePrivate& ephemeral, std::uint32_t index,
                                            MutBytes out) {
  PORTHOLE_ASSERT(out.size() == kResponseSize);
  const NodePublic shown = ephemeral.public_key();
  store_le(out.data(), std::uint32_t{kTypeResponse});
  store_le(out.data() + 4, index);
  store_le(out.data() + 8, claimed.sender_index);
  std::memcpy(out.data() + kEphemeral2, shown.raw().data(), 32);

  Transcript t = claimed.transcript.duplicate();
  t.mix_key(shown.bytes());
  t.mix_hash(shown.bytes());
  SecretBytes<32> shared, key;
  if (!crypto::x25519(ephemeral.reveal(), claimed.ephemeral.bytes(), shared)) return std::nullopt;
  t.mix_key(shared.reveal());
  if (!crypto::x25519(ephemeral.reveal(), peer.shown.bytes(), shared)) return std::nullopt;
  t.mix_key(shared.reveal());
  t.mix_psk(peer.psk.reveal(), key);
  t.seal(key, {}, out.subspan(kEmpty, 16));

  TransportKeys keys;
  crypto::hkdf_blake2s(t.chaining_key(), {}, keys.receive.writable(), keys.send.writable());
  return keys;
}

std::optional<TransportKeys> consume_response(const Identity& self, const PeerKeys& peer,
                                              const PendingInitiation& pending, Bytes message) {
  PORTHOLE_ASSERT(message.size() == kResponseSize);
  const Bytes ephemeral = message.subspan(kEphemeral2, 32);
  Transcript t = pending.transcript.duplicate();
  t.mix_key(ephemeral);
  t.mix_hash(ephemeral);
  SecretBytes<32> shared, key;
  if (!crypto::x25519(pending.ephemeral.reveal(), ephemeral, shared)) return std::nullopt;
  t.mix_key(shared.reveal());
  if (!crypto::x25519(self.key.reveal(), ephemeral, shared)) return std::nullopt;
  t.mix_key(shared.reveal());
  t.mix_psk(peer.psk.reveal(), key);
  if (!t.open(key, message.subspan(kEmpty, 16), {})) return std::nullopt;

  TransportKeys keys;
  crypto::hkdf_blake2s(t.chaining_key(), {}, keys.send.writable(), keys.receive.writable());
  return keys;
}

Mac16 write_mac1(const crypto::Hash32& mac1_key, MutBytes message) {
  const std::size_t at = message.size() - 32;
  const Mac16 mac = crypto::blake2s_mac16(mac1_key, message.first(at));
  std::memcpy(message.data() + at, mac.data(), mac.size());
  std::memset(message.data() + at + 16, 0, 16);
  return mac;
}

void write_mac2(const Mac16& cookie, MutBytes message) {
  const std::size_t at = message.size() - 16;
  const Mac16 mac = crypto::blake2s_mac16(cookie, message.first(at));
  std::memcpy(message.data() + at, mac.data(), mac.size());
}

bool check_mac1(const crypto::Hash32& mac1_key, Bytes message) {
  const std::size_t at = message.size() - 32;
  return crypto::equal_secret(crypto::blake2s_mac16(mac1_key, message.first(at)), message.subspan(at, 16));
}

bool check_mac2(const Mac16& cookie, Bytes message) {
  const std::size_t at = message.size() - 16;
  return crypto::equal_secret(crypto::blake2s_mac16(cookie, message.first(at)), message.subspan(at, 16));
}

}  // namespace porthole::wg
