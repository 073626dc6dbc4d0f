// The IKpsk2 handshake as pure functions over bytes: no time, no tables, nothing kept (paper 5.4.2 to 5.4.5).
// Every function works on locals and hands results out only when the message authenticated.
#pragma once

#include <optional>

#include "base/key.h"
#include "crypto/hash.h"
#include "crypto/secret.h"
#include "wg/spec_constants.h"
#include "wg/tai64n.h"

namespace porthole::wg {

using Mac16 = std::array<std::uint8_t, 16>;

// Keys that depend only on whom a handshake message is for.
crypto::Hash32 mac1_key_of(const NodePublic& destination);
crypto::Hash32 cookie_key_of(const NodePublic& destination);

// The node itself.
struct Identity {
  crypto::NodePrivate key;
  NodePublic shown;
  crypto::Hash32 mac1_key{};
  crypto::Hash32 cookie_key{};

  static Identity of(const crypto::NodePrivate& key);
};

// What is constant about a peer.
struct PeerKeys {
  NodePublic shown;
  crypto::SecretBytes<32> static_static;  // DH of both static keys
  bool usable = false;                    // false when that DH is all zero
  crypto::SecretBytes<32> psk;            // zero when there is none; takes part all the same
  crypto::Hash32 mac1_key{};
  crypto::Hash32 cookie_key{};

  static PeerKeys of(const Identity& self, const NodePublic& peer, Bytes psk);
};

// Chaining key and transcript hash.
class Transcript {
 public:
  // Before the first message to `responder`.
  static Transcript start(const NodePublic& responder);
  Transcript duplicate() const;

  void mix_hash(Bytes b);
  void mix_key(Bytes input);
  void mix_key(Bytes input, crypto::SecretBytes<32>& key);
  void mix_psk(Bytes psk, crypto::SecretBytes<32>& key);
  // Aead(key, 0, plain, H), then H = Hash(H || sealed).
  void seal(const crypto::SecretBytes<32>& key, Bytes plain, MutBytes out);
  [[nodiscard]] bool open(const crypto::SecretBytes<32>& key, Bytes sealed, MutBytes out);

  Bytes chaining_key() const { return c_.reveal(); }
  const crypto::Hash32& hash() const { return h_; }

 private:
  crypto::SecretBytes<32> c_;
  crypto::Hash32 h_{};
};

struct TransportKeys {
  crypto::SecretBytes<32> send;
  crypto::SecretBytes<32> receive;
};

// An initiation of ours that waits for its response.
struct PendingInitiation {
  std::uint32_t index = 0;
  crypto::NodePrivate ephemeral;
  Transcript transcript;
};

// Writes all of the 148 bytes but the macs. nullopt when a DH came out zero.
std::optional<PendingInitiation> build_initiation(const Identity& self, const PeerKeys& peer,
                                                  crypto::NodePrivate ephemeral, std::uint32_t index,
                                                  const Tai64n& stamp, MutBytes out148);

// A received initiation, opened as far as the sender's static key: anyone can claim one, the stamp proves it.
struct ClaimedInitiation {
  Transcript transcript;
  NodePublic static_key;
  NodePublic ephemeral;
  std::uint32_t sender_index = 0;
};
std::optional<ClaimedInitiation> open_initiation(const Identity& self, Bytes message148);
// Second half: proves the static key. Advances the transcript only on success.
std::optional<Tai64n> open_stamp(ClaimedInitiation& claimed, Bytes static_static, Bytes message148);

// Writes all of the 92 bytes but the macs; nullopt when a DH came out zero.
std::optional<TransportKeys> build_response(const ClaimedInitiation& claimed, const PeerKeys& peer,
                                            const crypto::NodePrivate& ephemeral, std::uint32_t index,
                                            MutBytes out92);
// nullopt when it does not authenticate; `pending` is untouched either way.
std::optional<TransportKeys> consume_response(const Identity& self, const PeerKeys& peer,
                                              const PendingInitiation& pending, Bytes message92);

// mac1 and mac2 are the last 32 bytes of types 1 and 2.
Mac16 write_mac1(const crypto::Hash32& mac1_key, MutBytes message);
void write_mac2(const Mac16& cookie, MutBytes message);
bool check_mac1(const crypto::Hash32& mac1_key, Bytes message);
bool check_mac2(const Mac16& cookie, Bytes message);

}  // namespace porthole::wg
