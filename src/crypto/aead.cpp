#include "crypto/aead.h"

#include <openssl/evp.h>

#include "crypto/sodium_ready.h"

namespace porthole::crypto {
namespace {

// OpenSSL's wide kernels return with dirty upper halves of the vector registers, and its own baseline SSE code then pays
// a merge penalty on every move: clearing them after each call saves a quarter of the time of a full packet
// (docs/architecture.md, "Data path costs").
#if defined(__x86_64__)
__attribute__((target("avx"))) void clear_upper_halves_avx() { __builtin_ia32_vzeroupper(); }
inline void clear_upper_halves() {
  static const bool has_avx = __builtin_cpu_supports("avx") != 0;
  if (has_avx) clear_upper_halves_avx();
}
#else
inline void clear_upper_halves() {}
#endif

}  // namespace

struct AeadKey::Context {
  Direction direction;
  SecretBytes<32> key;
  EVP_CIPHER_CTX* cipher = nullptr;

  Context(Direction d, Bytes k) : direction(d), key(k) {}
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  ~Context() { EVP_CIPHER_CTX_free(cipher); }  // clears the expanded key as well

  void ready() {
    if (cipher != nullptr) return;
    cipher = EVP_CIPHER_CTX_new();
    PORTHOLE_ASSERT(cipher != nullptr);
    PORTHOLE_ASSERT(EVP_CipherInit_ex(cipher, EVP_chacha20_poly1305(), nullptr, key.reveal().data(), nullptr,
                                      direction == Direction::kSeal ? 1 : 0) == 1);
  }

  // Runs the cipher over all but the last 16 bytes of `data`, where the tag is written or checked.
  bool run(const std::uint8_t* nonce12, Bytes aad, MutBytes data) {
    std::uint8_t* const tag = data.data() + (data.size() - kAeadTagSize);
    const int size = static_cast<int>(data.size() - kAeadTagSize);
    int written = 0;
    PORTHOLE_ASSERT(EVP_CipherInit_ex(cipher, nullptr, nullptr, nullptr, nonce12, -1) == 1);
    if (!aad.empty()) {
      PORTHOLE_ASSERT(EVP_CipherUpdate(cipher, nullptr, &written, aad.data(), static_cast<int>(aad.size())) == 1);
    }
    if (direction == Direction::kOpen) {
      PORTHOLE_ASSERT(EVP_CIPHER_CTX_ctrl(cipher, EVP_CTRL_AEAD_SET_TAG, kAeadTagSize, tag) == 1);
    }
    if (size > 0) {
      PORTHOLE_ASSERT(EVP_CipherUpdate(cipher, data.data(), &written, data.data(), size) == 1);
      clear_upper_halves();
    }
    const bool ok = EVP_CipherFinal_ex(cipher, tag, &written) == 1;
    clear_upper_halves();
    if (direction == Direction::kSeal) {
      PORTHOLE_ASSERT(ok);
      PORTHOLE_ASSERT(EVP_CIPHER_CTX_ctrl(cipher, EVP_CTRL_AEAD_GET_TAG, kAeadTagSize, tag) == 1);
    } else if (!ok) {
      // The cipher decrypts before it knows: nobody may see what a forgery decrypted to.
      std::memset(data.data(), 0, data.size());
    }
    return ok;
  }
};

AeadKey::AeadKey(Direction direction, Bytes key32) {
  PORTHOLE_ASSERT(key32.size() == 32);
  ctx_ = std::make_unique<Context>(direction, key32);
}
AeadKey::~AeadKey() = default;
AeadKey::AeadKey(AeadKey&&) noexcept = default;
AeadKey& AeadKey::operator=(AeadKey&&) noexcept = default;

void AeadKey::process(std::span<AeadJob> jobs) {
  ctx_->ready();
  std::uint8_t nonce[kAeadNonceSize] = {};
  for (AeadJob& job : jobs) {
    if (job.data.size() < kAeadTagSize) {
      PORTHOLE_ASSERT(ctx_->direction == Direction::kOpen);
      job.ok = false;
      continue;
    }
    store_le(nonce + 4, job.counter);
    job.ok = ctx_->run(nonce, {}, job.data);
  }
}

void AeadKey::seal(Bytes nonce12, Bytes aad, MutBytes data) {
  PORTHOLE_ASSERT(ctx_->direction == Direction::kSeal);
  PORTHOLE_ASSERT(nonce12.size() == kAeadNonceSize && data.size() >= kAeadTagSize);
  ctx_->ready();
  ctx_->run(nonce12.data(), aad, data);
}

bool AeadKey::open(Bytes nonce12, Bytes aad, MutBytes data) {
  PORTHOLE_ASSERT(ctx_->direction == Direction::kOpen);
  if (nonce12.size() != kAeadNonceSize || data.size() < kAeadTagSize) return false;
  ctx_->ready();
  return ctx_->run(nonce12.data(), aad, data);
}

// One-shots go to libsodium: no context to allocate, and handshake fields are tens of bytes.
void aead_seal(Bytes key32, Bytes nonce12, Bytes aad, Bytes plain, MutBytes out) {
  PORTHOLE_ASSERT(key32.size() == 32 && nonce12.size() == 12 && out.size() == plain.size() + kAeadTagSize);
  ensure_sodium();
  crypto_aead_chacha20poly1305_ietf_encrypt(out.data(), nullptr, plain.data(), plain.size(), aad.data(), aad.size(),
                                            nullptr, nonce12.data(), key32.data());
}

bool aead_open(Bytes key32, Bytes nonce12, Bytes aad, Bytes sealed, MutBytes out) {
  PORTHOLE_ASSERT(key32.size() == 32 && nonce12.size() == 12);
  if (sealed.size() < kAeadTagSize || out.size() != sealed.size() - kAeadTagSize) return false;
  ensure_sodium();
  std::uint8_t none;
  return crypto_aead_chacha20poly1305_ietf_decrypt(out.empty() ? &none : out.data(), nullptr, nullptr, sealed.data(),
                                                   sealed.size(), aad.data(), aad.size(), nonce12.data(),
                                                   key32.data()) == 0;
}

void xaead_seal(Bytes key32, Bytes nonce24, Bytes aad, Bytes plain, MutBytes out) {
  PORTHOLE_ASSERT(key32.size() == 32 && nonce24.size() == 24 && out.size() == plain.size() + kAeadTagSize);
  ensure_sodium();
  crypto_aead_xchacha20poly1305_ietf_encrypt(out.data(), nullptr, plain.data(), plain.size(), aad.data(), aad.size(),
                                             nullptr, nonce24.data(), key32.data());
}

bool xaead_open(Bytes key32, Bytes nonce24, Bytes aad, Bytes sealed, MutBytes out) {
  PORTHOLE_ASSERT(key32.size() == 32 && nonce24.size() == 24);
  if (sealed.size() < kAeadTagSize || out.size() != sealed.size() - kAeadTagSize) return false;
  ensure_sodium();
  std::uint8_t none;
  return crypto_aead_xchacha20poly1305_ietf_decrypt(out.empty() ? &none : out.data(), nullptr, nullptr, sealed.data(),
                                                    sealed.size(), aad.data(), aad.size(), nonce24.data(),
                                                    key32.data()) == 0;
}

}  // namespace porthole::crypto
