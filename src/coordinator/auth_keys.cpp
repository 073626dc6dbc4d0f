#include "coordinator/auth_keys.h"

namespace porthole::coordinator {
namespace {

constexpr std::size_t kPrefixHex = 16;
constexpr std::size_t kSecretHex = 64;

crypto::Hash32 hash_secret(std::string_view kind, std::string_view secret_hex) {
  crypto::Sha256 h;
  h.update(as_bytes(kind));
  h.update(as_bytes(secret_hex));
  return h.finish();
}

Issued assemble(std::string_view kind, std::string prefix, Bytes secret) {
  std::string hex = to_hex(secret);
  std::string text = std::string(kind) + "-" + prefix + "-" + hex;
  Issued out;
  out.secret_hash = hash_secret(kind, hex);
  out.prefix = std::move(prefix);
  out.text = crypto::SecretText(text);
  crypto::wipe(MutBytes(reinterpret_cast<std::uint8_t*>(hex.data()), hex.size()));
  crypto::wipe(MutBytes(reinterpret_cast<std::uint8_t*>(text.data()), text.size()));
  return out;
}

bool is_hex(std::string_view text) {
  for (char c : text)
    if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'))) return false;
  return true;
}

// Cut from the end by length: the public part may hold '-'.
std::optional<ParsedSecret> parse(std::string_view kind, std::string_view text) {
  if (!text.starts_with(kind) || text.size() < kind.size() + 1 + 1 + 1 + kSecretHex) return std::nullopt;
  std::string_view secret = text.substr(text.size() - kSecretHex);
  std::string_view middle = text.substr(kind.size(), text.size() - kSecretHex - kind.size());
  if (!is_hex(secret) || middle.size() < 3 || middle.front() != '-' || middle.back() != '-') return std::nullopt;
  return ParsedSecret{std::string(middle.substr(1, middle.size() - 2)), hash_secret(kind, secret)};
}

}  // namespace

Issued issue_auth_key(Rng& rng) {
  std::uint8_t prefix[kPrefixHex / 2];
  rng.fill(prefix);
  crypto::SecretBytes<32> secret;
  rng.fill(secret.writable());
  return assemble(kAuthKeyKind, to_hex(prefix), secret.reveal());
}

Issued derive_device_key(const crypto::SecretBytes<32>& server_secret, AccountId account, std::string_view device_id,
                         std::int64_t generation) {
  ByteVector message;
  ByteWriter w(message);
  w.bytes(as_bytes("porthole device key 1"));
  w.be64(static_cast<std::uint64_t>(account));
  w.be64(static_cast<std::uint64_t>(generation));
  w.bytes(as_bytes(device_id));
  crypto::SecretBytes<32> public_part, secret;
  crypto::hkdf_blake2s(server_secret.reveal(), message, public_part.writable(), secret.writable());
  return assemble(kAuthKeyKind, to_hex(public_part.reveal().first(kPrefixHex / 2)), secret.reveal());
}

Issued issue_token(std::string_view public_part, Rng& rng) {
  crypto::SecretBytes<32> secret;
  rng.fill(secret.writable());
  return assemble(kTokenKind, std::string(public_part), secret.reveal());
}

std::optional<ParsedSecret> parse_auth_key(std::string_view text) {
  if (std::size_t lock = text.find("--TL"); lock != std::string_view::npos) text = text.substr(0, lock);
  return parse(kAuthKeyKind, text);
}

std::optional<ParsedSecret> parse_token(std::string_view text) { return parse(kTokenKind, text); }

}  // namespace porthole::coordinator
