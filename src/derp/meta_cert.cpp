#include "derp/meta_cert.h"

#include "wire/derp.h"

namespace porthole::derp {
namespace {

enum : std::uint8_t { kInteger = 0x02, kObjectId = 0x06, kSequence = 0x30, kSet = 0x31, kExplicit0 = 0xa0 };
constexpr std::uint8_t kCommonNameOid[] = {0x55, 0x04, 0x03};

// Takes one DER element off the front of `in`: its tag and contents. False for a bad length.
bool take(Bytes& in, std::uint8_t& tag, Bytes& contents) {
  if (in.size() < 2) return false;
  tag = in[0];
  std::size_t length = in[1];
  std::size_t at = 2;
  if (length & 0x80) {
    std::size_t bytes = length & 0x7f;
    if (bytes == 0 || bytes > 3 || in.size() < at + bytes) return false;
    length = 0;
    for (std::size_t i = 0; i < bytes; ++i) length = length << 8 | in[at++];
  }
  if (in.size() - at < length) return false;
  contents = in.subspan(at, length);
  in = in.subspan(at + length);
  return true;
}

bool take(Bytes& in, std::uint8_t wanted_tag, Bytes* contents = nullptr) {
  std::uint8_t tag = 0;
  Bytes inner;
  if (!take(in, tag, inner) || tag != wanted_tag) return false;
  if (contents) *contents = inner;
  return true;
}

}  // namespace

std::optional<CertificateNames> parse_certificate_names(Bytes der) {
  Bytes certificate, tbs, serial, subject;
  if (!take(der, kSequence, &certificate) || !take(certificate, kSequence, &tbs)) return std::nullopt;
  if (!tbs.empty() && tbs[0] == kExplicit0 && !take(tbs, kExplicit0)) return std::nullopt;
  if (!take(tbs, kInteger, &serial)) return std::nullopt;
  if (!take(tbs, kSequence) || !take(tbs, kSequence) || !take(tbs, kSequence)) return std::nullopt;  // algorithm, issuer, validity
  if (!take(tbs, kSequence, &subject)) return std::nullopt;
  if (serial.empty() || serial.size() > 8 || serial[0] & 0x80) return std::nullopt;
  CertificateNames names;
  for (std::uint8_t b : serial) names.serial = names.serial << 8 | b;
  while (!subject.empty()) {
    Bytes set;
    if (!take(subject, kSet, &set)) return std::nullopt;
    while (!set.empty()) {
      Bytes attribute, oid, text;
      std::uint8_t string_tag = 0;
      if (!take(set, kSequence, &attribute) || !take(attribute, kObjectId, &oid) || !take(attribute, string_tag, text))
        return std::nullopt;
      if (equal(oid, kCommonNameOid)) names.common_name = as_text(text);
    }
  }
  return names;
}

std::optional<NodePublic> find_meta_cert(std::span<const ByteVector> certificates) {
  for (const ByteVector& der : certificates) {
    auto names = parse_certificate_names(der);
    if (!names || names->serial == 0 || names->serial > 255) continue;
    if (auto key = wire::derp::parse_meta_cert_name(names->common_name)) return key;
  }
  return std::nullopt;
}

}  // namespace porthole::derp
