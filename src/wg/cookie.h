// Denial-of-service protection of handshakes (paper 5.3, 5.4.7): when too many arrive, a sender must first prove that it
// receives at its address, with a cookie; and each proven source gets a bounded rate.
#pragma once

#include <map>
#include <optional>

#include "base/rng.h"
#include "base/time.h"
#include "wg/limits.h"
#include "wg/noise.h"
#include "wg/tunnel.h"

namespace porthole::wg {

// The loaded side: makes cookies bound to a source, and checks mac2 against them.
class CookieMaker {
 public:
  using Reply = std::array<std::uint8_t, kCookieReplySize>;

  // `refused` is the handshake message; the reply is sealed with our own cookie key.
  Reply make_reply(Instant now, Rng& rng, const crypto::Hash32& own_cookie_key, const Source& source, Bytes refused);
  // False as well when the secret behind the cookie is older than kCookieRefreshTime.
  bool check(Instant now, const Source& source, Bytes message) const;

 private:
  Mac16 cookie_for(const Source& source) const;
  crypto::SecretBytes<32> secret_;
  std::optional<Instant> made_;
};

// The sending side, one per peer: the mac1 that a reply must refer to, and the cookie held.
class CookieJar {
 public:
  // Completes a handshake message for the peer: mac1, and mac2 if a cookie is held.
  void sign(Instant now, const PeerKeys& peer, MutBytes message);
  // True and stored if the reply is authentic for the last message signed.
  bool accept(Instant now, const PeerKeys& peer, Bytes reply);
  void clear() { *this = CookieJar(); }

 private:
  Mac16 last_mac1_{};
  bool sent_ = false;
  Mac16 cookie_{};
  std::optional<Instant> received_;
};

// Decides when the node is under load.
class LoadMeter {
 public:
  // One handshake message with a valid mac1 arrived. True: under load.
  bool count(Instant now);

 private:
  Instant interval_start_;
  int in_interval_ = 0;
  Instant loaded_until_;
};

// A token bucket per proven source: IPv4 address, IPv6 /64, or node key behind a relay.
class SourceLimiter {
 public:
  bool allow(Instant now, const Source& source);
  std::size_t size() const { return buckets_.size(); }

 private:
  using Key = std::array<std::uint8_t, 33>;
  struct Bucket {
    Instant last;
    Duration credit{};
  };
  std::map<Key, Bucket> buckets_;
  Instant swept_;
};

}  // namespace porthole::wg
