#include "crypto/hash.h"

#include <openssl/evp.h>

#include <utility>

#include "base/assert.h"

namespace porthole::crypto {
namespace {

constexpr std::size_t kBlock = 64;

// RFC 7693 section 2.6.
constexpr std::array<std::uint32_t, 8> kIv = {0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A,
                                              0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19};

// RFC 7693 section 2.7.
constexpr std::uint8_t kSigma[10][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0}};

inline void mix(std::uint32_t& a, std::uint32_t& b, std::uint32_t& c, std::uint32_t& d, std::uint32_t x,
                std::uint32_t y) {
  a += b + x;
  d = std::rotr(d ^ a, 16);
  c += d;
  b = std::rotr(b ^ c, 12);
  a += b + y;
  d = std::rotr(d ^ a, 8);
  c += d;
  b = std::rotr(b ^ c, 7);
}

// One round with its schedule known at compile time: with all ten written out, the message words are plain operands.
template <std::size_t R>
[[gnu::always_inline]] inline void round(std::uint32_t (&v)[16], const std::uint32_t (&m)[16]) {
  constexpr const std::uint8_t(&s)[16] = kSigma[R];
  mix(v[0], v[4], v[8], v[12], m[s[0]], m[s[1]]);
  mix(v[1], v[5], v[9], v[13], m[s[2]], m[s[3]]);
  mix(v[2], v[6], v[10], v[14], m[s[4]], m[s[5]]);
  mix(v[3], v[7], v[11], v[15], m[s[6]], m[s[7]]);
  mix(v[0], v[5], v[10], v[15], m[s[8]], m[s[9]]);
  mix(v[1], v[6], v[11], v[12], m[s[10]], m[s[11]]);
  mix(v[2], v[7], v[8], v[13], m[s[12]], m[s[13]]);
  mix(v[3], v[4], v[9], v[14], m[s[14]], m[s[15]]);
}

template <std::size_t... R>
[[gnu::always_inline]] inline void rounds(std::uint32_t (&v)[16], const std::uint32_t (&m)[16],
                                          std::index_sequence<R...>) {
  (round<R>(v, m), ...);
}

}  // namespace

Blake2s::Blake2s(std::size_t out_size, Bytes key) : out_size_(out_size) {
  PORTHOLE_ASSERT(out_size >= 1 && out_size <= 32 && key.size() <= 32);
  for (std::size_t i = 0; i < 8; ++i) h_[i] = kIv[i];
  h_[0] ^= 0x01010000u ^ (static_cast<std::uint32_t>(key.size()) << 8) ^ static_cast<std::uint32_t>(out_size);
  if (!key.empty()) {
    std::memset(buffer_, 0, sizeof buffer_);
    std::memcpy(buffer_, key.data(), key.size());
    fill_ = kBlock;
  }
}

Blake2s::~Blake2s() {
  wipe(MutBytes(buffer_));
  wipe(MutBytes(reinterpret_cast<std::uint8_t*>(h_), sizeof h_));
}

void Blake2s::update(Bytes b) {
  // The last block is compressed with a flag, so a full buffer waits until more input shows that it was not the last.
  while (!b.empty()) {
    if (fill_ == kBlock) {
      count_ += kBlock;
      compress(buffer_, false);
      fill_ = 0;
    }
    if (fill_ == 0 && b.size() > kBlock) {
      count_ += kBlock;
      compress(b.data(), false);
      b = b.subspan(kBlock);
      continue;
    }
    const std::size_t n = std::min(kBlock - fill_, b.size());
    std::memcpy(buffer_ + fill_, b.data(), n);
    fill_ += n;
    b = b.subspan(n);
  }
}

void Blake2s::finish(MutBytes out) {
  PORTHOLE_ASSERT(out.size() == out_size_);
  count_ += fill_;
  std::memset(buffer_ + fill_, 0, kBlock - fill_);
  compress(buffer_, true);
  std::uint8_t full[32];
  for (std::size_t i = 0; i < 8; ++i) store_le(full + 4 * i, h_[i]);
  std::memcpy(out.data(), full, out_size_);
  wipe(MutBytes(full));
}

void Blake2s::compress(const std::uint8_t* block, bool last) {
  std::uint32_t m[16];
  for (std::size_t i = 0; i < 16; ++i) m[i] = load_le<std::uint32_t>(block + 4 * i);
  std::uint32_t v[16];
  for (std::size_t i = 0; i < 8; ++i) {
    v[i] = h_[i];
    v[i + 8] = kIv[i];
  }
  v[12] ^= static_cast<std::uint32_t>(count_);
  v[13] ^= static_cast<std::uint32_t>(count_ >> 32);
  if (last) v[14] = ~v[14];
  rounds(v, m, std::make_index_sequence<10>());
  for (std::size_t i = 0; i < 8; ++i) h_[i] ^= v[i] ^ v[i + 8];
}

Hash32 blake2s(Bytes a, Bytes b) {
  Hash32 out;
  Blake2s h;
  h.update(a);
  h.update(b);
  h.finish(out);
  return out;
}

std::array<std::uint8_t, 16> blake2s_mac16(Bytes key, Bytes message) {
  std::array<std::uint8_t, 16> out;
  Blake2s h(16, key);
  h.update(message);
  h.finish(out);
  return out;
}

namespace {

// HMAC keyed once, used for any number of messages (RFC 2104).
void hmac_parts(Bytes key, Bytes a, Bytes b, MutBytes out32) {
  std::uint8_t pad[kBlock] = {};
  if (key.size() > kBlock) {
    const Hash32 hashed = blake2s(key);
    std::memcpy(pad, hashed.data(), hashed.size());
  } else if (!key.empty()) {
    std::memcpy(pad, key.data(), key.size());
  }
  for (std::uint8_t& c : pad) c ^= 0x36;
  Hash32 inner_digest;
  {
    Blake2s inner;
    inner.update(pad);
    inner.update(a);
    inner.update(b);
    inner.finish(inner_digest);
  }
  for (std::uint8_t& c : pad) c ^= 0x36 ^ 0x5c;
  Blake2s outer;
  outer.update(pad);
  outer.update(inner_digest);
  outer.finish(out32);
  wipe(MutBytes(pad));
  wipe(inner_digest);
}

}  // namespace

void hmac_blake2s(Bytes key, Bytes message, MutBytes out32) { hmac_parts(key, message, {}, out32); }

void hkdf_blake2s(Bytes chaining_key, Bytes input, MutBytes out1, MutBytes out2, MutBytes out3) {
  // Outputs may overlap the inputs (a chaining key replaced in place): everything is computed before anything is written.
  SecretBytes<32> prk;
  hmac_parts(chaining_key, input, {}, prk.writable());
  SecretBytes<32> t[3];
  const MutBytes outs[3] = {out1, out2, out3};
  for (std::uint8_t i = 0; i < 3; ++i) {
    if (outs[i].empty()) break;
    PORTHOLE_ASSERT(outs[i].size() == 32);
    const std::uint8_t label[1] = {static_cast<std::uint8_t>(i + 1)};
    hmac_parts(prk.reveal(), i == 0 ? Bytes() : t[i - 1].reveal(), label, t[i].writable());
  }
  for (std::size_t i = 0; i < 3 && !outs[i].empty(); ++i) std::memcpy(outs[i].data(), t[i].reveal().data(), 32);
}

namespace {
EVP_MD_CTX* md(void* ctx) { return static_cast<EVP_MD_CTX*>(ctx); }
}  // namespace

Sha256::Sha256() : ctx_(EVP_MD_CTX_new()) {
  PORTHOLE_ASSERT(ctx_ != nullptr);
  PORTHOLE_ASSERT(EVP_DigestInit_ex(md(ctx_), EVP_sha256(), nullptr) == 1);
}
Sha256::~Sha256() { EVP_MD_CTX_free(md(ctx_)); }
Sha256::Sha256(Sha256&& o) noexcept : ctx_(std::exchange(o.ctx_, nullptr)) {}

void Sha256::update(Bytes b) { PORTHOLE_ASSERT(EVP_DigestUpdate(md(ctx_), b.data(), b.size()) == 1); }

Hash32 Sha256::finish() {
  Hash32 out;
  unsigned size = 0;
  PORTHOLE_ASSERT(EVP_DigestFinal_ex(md(ctx_), out.data(), &size) == 1 && size == out.size());
  return out;
}

Hash32 sha256(Bytes message) {
  Sha256 h;
  h.update(message);
  return h.finish();
}

}  // namespace porthole::crypto
