// links: base crypto wire ts2021 derp
// Certificates of a relay's TLS handshake, which are read by hand: the walk stays inside the certificate, what it finds is
// part of it, and a key comes only with a name and a serial number that say so.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "derp/meta_cert.h"
#include "wire/derp.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace porthole;
  const Bytes input(data, size);
  const auto names = derp::parse_certificate_names(input);
  const auto key = derp::find_meta_cert(std::vector<ByteVector>{to_vector(input)});
  if (!names) {
    if (key) std::abort();
    return 0;
  }
  if (!names->common_name.empty() && as_text(input).find(names->common_name) == std::string_view::npos) std::abort();
  if (names->serial >> 63 != 0) std::abort();
  const bool said = names->serial >= 1 && names->serial <= 255 && wire::derp::parse_meta_cert_name(names->common_name);
  if (key.has_value() != said) std::abort();
  if (key && (key->is_zero() || wire::derp::parse_meta_cert_name(wire::derp::meta_cert_name(*key)) != key)) std::abort();
  // Bytes behind the certificate change nothing.
  ByteVector longer = to_vector(input);
  longer.push_back(0);
  const auto same = derp::parse_certificate_names(longer);
  if (!same || same->common_name != names->common_name || same->serial != names->serial) std::abort();
  return 0;
}
