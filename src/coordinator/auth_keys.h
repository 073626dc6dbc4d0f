// Texts of pre-auth keys and tokens. Both are "<kind>-<public part>-<secret part>": the public part finds the record,
// the secret part (256 bits) is compared as a hash in constant time. Only hashes are stored.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/rng.h"
#include "coordinator/records.h"
#include "crypto/secret.h"

namespace porthole::coordinator {

constexpr std::string_view kAuthKeyKind = "phkey-auth";
constexpr std::string_view kTokenKind = "phtoken";

// A secret fresh from the generator or derived, with what a store may know of it.
struct Issued {
  crypto::SecretText text;
  std::string prefix;
  crypto::Hash32 secret_hash{};
  ByteVector sealed;  // goes into AuthKeyRecord::sealed
};

Issued issue_auth_key(Rng& rng);
// The same text for the same arguments for ever: a server can hand it out again without having kept it.
Issued derive_device_key(const crypto::SecretBytes<32>& server_secret, AccountId account, std::string_view device_id,
                         std::int64_t generation);
// The account's name is the public part.
Issued issue_token(std::string_view public_part, Rng& rng);

struct ParsedSecret {
  std::string prefix;
  crypto::Hash32 secret_hash{};
};
// nullopt: not of this kind and form. A tailnet-lock suffix ("--TL...") of a key is ignored.
std::optional<ParsedSecret> parse_auth_key(std::string_view text);
std::optional<ParsedSecret> parse_token(std::string_view text);

}  // namespace porthole::coordinator
