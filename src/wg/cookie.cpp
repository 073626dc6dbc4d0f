#include "wg/cookie.h"

#include "crypto/aead.h"

namespace porthole::wg {
namespace {

// Any fixed private encoding does: only we recompute it.
struct SourceBytes {
  std::uint8_t b[32];
  std::size_t size;
  Bytes bytes() const { return {b, size}; }
};

SourceBytes encode(const Source& source) {
  SourceBytes out{};
  if (const auto* relay = std::get_if<RelaySource>(&source)) {
    std::memcpy(out.b, relay->key.raw().data(), 32);
    out.size = 32;
    return out;
  }
  const Endpoint& e = std::get<Endpoint>(source);
  const Bytes address = e.address.bytes();
  if (!address.empty()) std::memcpy(out.b, address.data(), address.size());
  store_be(out.b + address.size(), e.port);
  out.size = address.size() + 2;
  return out;
}

}  // namespace

Mac16 CookieMaker::cookie_for(const Source& source) const {
  return crypto::blake2s_mac16(secret_.reveal(), encode(source).bytes());
}

CookieMaker::Reply CookieMaker::make_reply(Instant now, Rng& rng, const crypto::Hash32& own_cookie_key,
                                           const Source& source, Bytes refused) {
  if (!made_ || now - *made_ > kCookieRefreshTime) {
    rng.fill(secret_.writable());
    made_ = now;
  }
  Reply out{};
  MutBytes view(out);
  store_le(view.data(), std::uint32_t{kTypeCookieReply});
  std::memcpy(view.data() + 4, refused.data() + 4, 4);  // the sender's own index
  rng.fill(view.subspan(8, 24));
  const Bytes mac1 = refused.subspan(refused.size() - 32, 16);
  crypto::xaead_seal(own_cookie_key, view.subspan(8, 24), mac1, cookie_for(source), view.subspan(32, 32));
  return out;
}

bool CookieMaker::check(Instant now, const Source& source, Bytes message) const {
  if (!made_ || now - *made_ > kCookieRefreshTime) return false;
  return check_mac2(cookie_for(source), message);
}

void CookieJar::sign(Instant now, const PeerKeys& peer, MutBytes message) {
  last_mac1_ = write_mac1(peer.mac1_key, message);
  sent_ = true;
  if (received_ && now - *received_ < kCookieRefreshTime) write_mac2(cookie_, message);
}

bool CookieJar::accept(Instant now, const PeerKeys& peer, Bytes reply) {
  if (!sent_ || reply.size() != kCookieReplySize) return false;
  Mac16 cookie;
  if (!crypto::xaead_open(peer.cookie_key, reply.subspan(8, 24), last_mac1_, reply.subspan(32, 32), cookie)) return false;
  cookie_ = cookie;
  received_ = now;
  return true;
}

bool LoadMeter::count(Instant now) {
  if (now - interval_start_ >= kLoadInterval) {
    interval_start_ = now;
    in_interval_ = 0;
  }
  if (++in_interval_ > kHandshakesPerInterval) loaded_until_ = now + kLoadHold;
  return now < loaded_until_;
}

bool SourceLimiter::allow(Instant now, const Source& source) {
  constexpr Duration kCost = Duration(1s) / kSourceRatePerSecond;
  constexpr Duration kFull = kCost * kSourceBurst;
  Key key{};
  if (const auto* relay = std::get_if<RelaySource>(&source)) {
    key[0] = 1;
    std::memcpy(key.data() + 1, relay->key.raw().data(), 32);
  } else {
    const IpAddress& a = std::get<Endpoint>(source).address;
    key[0] = a.is_v6() ? 6 : 4;
    const Bytes b = a.bytes().first(std::min<std::size_t>(a.bytes().size(), 8));
    if (!b.empty()) std::memcpy(key.data() + 1, b.data(), b.size());
  }
  if (now - swept_ >= kSourceForgetTime) {
    swept_ = now;
    std::erase_if(buckets_, [now](const auto& entry) { return now - entry.second.last >= kSourceForgetTime; });
  }
  auto it = buckets_.find(key);
  if (it == buckets_.end()) {
    if (buckets_.size() >= kSourcesMax) return false;
    it = buckets_.emplace(key, Bucket{now, kFull}).first;
  }
  Bucket& bucket = it->second;
  bucket.credit = std::min(kFull, bucket.credit + (now - bucket.last));
  bucket.last = now;
  if (bucket.credit < kCost) return false;
  bucket.credit -= kCost;
  return true;
}

}  // namespace porthole::wg
