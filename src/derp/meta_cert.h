// Finds a relay's key in the certificates of its TLS handshake (MetaCert, wire/derp.h).
#pragma once

#include <optional>
#include <span>
#include <string_view>

#include "base/bytes.h"
#include "base/key.h"

namespace porthole::derp {

// Common name of the subject and serial number of a DER certificate (RFC 5280 section 4.1). nullopt for anything
// malformed or with a serial above 63 bits. Only walks the structure: no signature, date or name is checked.
struct CertificateNames {
  std::string_view common_name;  // last one of the subject; empty when there is none
  std::uint64_t serial = 0;
};
std::optional<CertificateNames> parse_certificate_names(Bytes der);

// The key of the first MetaCert in the list. Its authority is the handshake that carried it, so the caller must ask only
// for TLS 1.3 streams whose leaf was verified; self-signature and dates of the MetaCert do not matter.
std::optional<NodePublic> find_meta_cert(std::span<const ByteVector> certificates);

}  // namespace porthole::derp
