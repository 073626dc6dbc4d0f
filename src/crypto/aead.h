// ChaCha20-Poly1305 (RFC 8439) for the data path, batch-first, and one-shot forms for handshakes.
// OpenSSL EVP underneath: one context per key and direction, only the nonce changes per packet, vzeroupper after the
// calls on AVX machines (why: docs/architecture.md, "Data path costs").
#pragma once

#include <array>
#include <memory>

#include "base/bytes.h"
#include "crypto/secret.h"

namespace porthole::crypto {

constexpr std::size_t kAeadTagSize = 16;
constexpr std::size_t kAeadNonceSize = 12;

// One packet of a batch, sealed or opened in place.
struct AeadJob {
  MutBytes data;            // seal: plaintext followed by 16 spare bytes; open: ciphertext followed by the tag
  std::uint64_t counter;    // becomes the nonce: 4 zero bytes || LE64(counter) (WireGuard)
  bool ok = false;          // result of open; always true after seal
};

// A key for one direction of one session. Move-only; the cipher context is created on first use and wiped at drop.
class AeadKey {
 public:
  enum class Direction { kSeal, kOpen };
  AeadKey(Direction direction, Bytes key32);
  ~AeadKey();
  AeadKey(AeadKey&&) noexcept;
  AeadKey& operator=(AeadKey&&) noexcept;

  // AAD empty. A job that fails to open leaves its data unspecified (never the plaintext of a forgery).
  void process(std::span<AeadJob> jobs);

  // Explicit 12-byte nonce and AAD, in place, for ts2021 records. Sizes as in AeadJob::data.
  void seal(Bytes nonce12, Bytes aad, MutBytes data);
  [[nodiscard]] bool open(Bytes nonce12, Bytes aad, MutBytes data);

 private:
  struct Context;
  std::unique_ptr<Context> ctx_;
};

// One-shot, for handshakes. out: plain.size()+16 / sealed.size()-16 bytes; may not overlap the input.
void aead_seal(Bytes key32, Bytes nonce12, Bytes aad, Bytes plain, MutBytes out);
[[nodiscard]] bool aead_open(Bytes key32, Bytes nonce12, Bytes aad, Bytes sealed, MutBytes out);
// XChaCha20-Poly1305, 24-byte nonce (WireGuard cookies).
void xaead_seal(Bytes key32, Bytes nonce24, Bytes aad, Bytes plain, MutBytes out);
[[nodiscard]] bool xaead_open(Bytes key32, Bytes nonce24, Bytes aad, Bytes sealed, MutBytes out);

}  // namespace porthole::crypto
