#include "crypto/dh.h"

#include "crypto/sodium_ready.h"

namespace porthole::crypto {

std::array<std::uint8_t, 32> x25519_public(Bytes private_key) {
  PORTHOLE_ASSERT(private_key.size() == 32);
  ensure_sodium();
  std::array<std::uint8_t, 32> out{};
  // Fails only for an all-zero result, which a clamped scalar cannot give on the base point.
  PORTHOLE_ASSERT(crypto_scalarmult_base(out.data(), private_key.data()) == 0);
  return out;
}

bool x25519(Bytes private_key, Bytes public_key, SecretBytes<32>& shared) {
  PORTHOLE_ASSERT(private_key.size() == 32 && public_key.size() == 32);
  ensure_sodium();
  // libsodium refuses the points of small order before it multiplies; is_zero() keeps the promise of the header even
  // for a build of it that does not.
  const bool ok = crypto_scalarmult(shared.writable().data(), private_key.data(), public_key.data()) == 0;
  if (ok && !shared.is_zero()) return true;
  wipe(shared.writable());
  return false;
}

std::optional<BoxKey> BoxKey::make(Bytes private_key, Bytes public_key) {
  if (private_key.size() != 32 || public_key.size() != 32) return std::nullopt;
  ensure_sodium();
  BoxKey key;
  if (crypto_box_beforenm(key.k_.writable().data(), public_key.data(), private_key.data()) != 0) return std::nullopt;
  return key;
}

void BoxKey::seal(Bytes nonce24, Bytes plain, MutBytes out) const {
  PORTHOLE_ASSERT(nonce24.size() == kNonceSize && out.size() == plain.size() + kTagSize);
  ensure_sodium();
  crypto_box_easy_afternm(out.data(), plain.data(), plain.size(), nonce24.data(), k_.reveal().data());
}

bool BoxKey::open(Bytes nonce24, Bytes boxed, MutBytes out) const {
  if (nonce24.size() != kNonceSize || boxed.size() < kTagSize || out.size() != boxed.size() - kTagSize) return false;
  ensure_sodium();
  // An empty message still needs a destination pointer.
  std::uint8_t none;
  std::uint8_t* destination = out.empty() ? &none : out.data();
  return crypto_box_open_easy_afternm(destination, boxed.data(), boxed.size(), nonce24.data(), k_.reveal().data()) == 0;
}

}  // namespace porthole::crypto
