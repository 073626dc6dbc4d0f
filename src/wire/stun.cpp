#include "wire/stun.h"

#include "base/assert.h"

namespace porthole::wire::stun {
namespace {

constexpr std::uint32_t kCookie = 0x2112a442;
constexpr std::uint32_t kFingerprintXor = 0x5354554e;
constexpr std::uint16_t kBindingRequest = 0x0001;
constexpr std::uint16_t kBindingSuccess = 0x0101;
constexpr std::uint16_t kMappedAddress = 0x0001;
constexpr std::uint16_t kXorMappedAddress = 0x0020;
constexpr std::uint16_t kXorMappedAddressOld = 0x8020;
constexpr std::uint16_t kSoftware = 0x8022;
constexpr std::uint16_t kFingerprint = 0x8028;
constexpr std::string_view kSoftwareText = "tailnode";

constexpr std::array<std::uint32_t, 256> make_crc_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t c = i;
    for (int k = 0; k < 8; ++k) c = (c & 1) != 0 ? 0xedb88320u ^ (c >> 1) : c >> 1;
    table[i] = c;
  }
  return table;
}
constexpr auto kCrcTable = make_crc_table();

struct Attribute {
  std::uint16_t type = 0;
  Bytes value;
  std::size_t offset = 0;   // of the attribute's header in the datagram
};

// Walks the attributes behind the header. The last one may lack its padding.
class AttributeWalk {
 public:
  AttributeWalk(Bytes datagram, std::size_t end) : bytes_(datagram.first(end)), at_(kHeaderSize) {}
  bool done() const { return at_ >= bytes_.size(); }
  std::optional<Attribute> next() {
    if (bytes_.size() - at_ < 4) return std::nullopt;
    Attribute a;
    a.type = load_be<std::uint16_t>(bytes_.data() + at_);
    const std::size_t length = load_be<std::uint16_t>(bytes_.data() + at_ + 2);
    if (length > bytes_.size() - at_ - 4) return std::nullopt;
    a.offset = at_;
    a.value = bytes_.subspan(at_ + 4, length);
    at_ += 4 + ((length + 3) & ~std::size_t{3});
    return a;
  }

 private:
  Bytes bytes_;
  std::size_t at_;
};

// The header's own length when the header is one of ours, the cookie right and the length within the datagram.
std::optional<std::size_t> message_end(Bytes p, std::uint16_t type) {
  if (p.size() < kHeaderSize || load_be<std::uint16_t>(p.data()) != type) return std::nullopt;
  if (load_be<std::uint32_t>(p.data() + 4) != kCookie) return std::nullopt;
  const std::size_t end = kHeaderSize + load_be<std::uint16_t>(p.data() + 2);
  if (end > p.size()) return std::nullopt;
  return end;
}

TransactionId id_of(Bytes p) {
  TransactionId id;
  std::memcpy(id.data(), p.data() + 8, id.size());
  return id;
}

std::optional<Endpoint> parse_address(Bytes value, const std::uint8_t* mask16, bool masked) {
  if (value.size() < 4) return std::nullopt;
  const std::size_t size = value[1] == 1 ? 4 : value[1] == 2 ? 16 : 0;
  if (size == 0 || value.size() < 4 + size) return std::nullopt;
  std::uint8_t raw[16];
  for (std::size_t i = 0; i < size; ++i)
    raw[i] = static_cast<std::uint8_t>(value[4 + i] ^ (masked ? mask16[i] : 0));
  Endpoint e;
  e.address = size == 4 ? IpAddress::v4_bytes(raw) : IpAddress::v6_bytes(raw);
  e.port = static_cast<std::uint16_t>(load_be<std::uint16_t>(value.data() + 2) ^ (masked ? kCookie >> 16 : 0));
  return e;
}

}  // namespace

std::uint32_t crc32(Bytes bytes) {
  std::uint32_t c = 0xffffffffu;
  for (std::uint8_t b : bytes) c = kCrcTable[(c ^ b) & 0xff] ^ (c >> 8);
  return c ^ 0xffffffffu;
}

std::array<std::uint8_t, kRequestSize> encode_request(const TransactionId& id) {
  std::array<std::uint8_t, kRequestSize> out{};
  store_be<std::uint16_t>(out.data(), kBindingRequest);
  store_be<std::uint16_t>(out.data() + 2, kRequestSize - kHeaderSize);   // counts FINGERPRINT already
  store_be<std::uint32_t>(out.data() + 4, kCookie);
  std::memcpy(out.data() + 8, id.data(), id.size());
  store_be<std::uint16_t>(out.data() + 20, kSoftware);
  store_be<std::uint16_t>(out.data() + 22, static_cast<std::uint16_t>(kSoftwareText.size()));
  std::memcpy(out.data() + 24, kSoftwareText.data(), kSoftwareText.size());
  store_be<std::uint16_t>(out.data() + 32, kFingerprint);
  store_be<std::uint16_t>(out.data() + 34, 4);
  store_be<std::uint32_t>(out.data() + 36, crc32(Bytes(out).first(32)) ^ kFingerprintXor);
  return out;
}

std::optional<Response> parse_response(Bytes datagram) {
  auto end = message_end(datagram, kBindingSuccess);
  if (!end) return std::nullopt;
  // RFC 8489 14.2: the address is XORed with cookie and transaction id, which follow each other in the header.
  const std::uint8_t* mask = datagram.data() + 4;
  std::optional<Endpoint> xored, plain;
  for (AttributeWalk walk(datagram, *end); !walk.done();) {
    auto a = walk.next();
    if (!a) return std::nullopt;
    if (a->type == kXorMappedAddress || a->type == kXorMappedAddressOld) {
      xored = parse_address(a->value, mask, true);
      if (!xored) return std::nullopt;
    } else if (a->type == kMappedAddress) {
      plain = parse_address(a->value, mask, false);
      if (!plain) return std::nullopt;
    }
  }
  if (!xored) xored = plain;
  if (!xored) return std::nullopt;
  return Response{id_of(datagram), *xored};
}

std::optional<TransactionId> parse_request(Bytes datagram, bool any_software) {
  auto end = message_end(datagram, kBindingRequest);
  if (!end || *end != datagram.size()) return std::nullopt;
  bool software = any_software;
  bool fingerprint = false;
  for (AttributeWalk walk(datagram, *end); !walk.done();) {
    auto a = walk.next();
    if (!a || fingerprint) return std::nullopt;   // FINGERPRINT must be the last one
    if (a->type == kSoftware && as_text(a->value) == kSoftwareText) software = true;
    if (a->type == kFingerprint) {
      if (a->value.size() != 4) return std::nullopt;
      if (load_be<std::uint32_t>(a->value.data()) != (crc32(datagram.first(a->offset)) ^ kFingerprintXor)) return std::nullopt;
      fingerprint = true;
    }
  }
  if (!software || !fingerprint) return std::nullopt;
  return id_of(datagram);
}

std::size_t encode_response(const TransactionId& id, const Endpoint& source, MutBytes out) {
  PORTHOLE_ASSERT(source.address.is_valid() && out.size() >= kResponseSizeMax);
  const Bytes address = source.address.bytes();
  const std::size_t value_size = 4 + address.size();
  store_be<std::uint16_t>(out.data(), kBindingSuccess);
  store_be<std::uint16_t>(out.data() + 2, static_cast<std::uint16_t>(4 + value_size));
  store_be<std::uint32_t>(out.data() + 4, kCookie);
  std::memcpy(out.data() + 8, id.data(), id.size());
  store_be<std::uint16_t>(out.data() + 20, kXorMappedAddress);
  store_be<std::uint16_t>(out.data() + 22, static_cast<std::uint16_t>(value_size));
  out[24] = 0;
  out[25] = source.address.is_v4() ? 1 : 2;
  store_be<std::uint16_t>(out.data() + 26, static_cast<std::uint16_t>(source.port ^ (kCookie >> 16)));
  for (std::size_t i = 0; i < address.size(); ++i) out[28 + i] = static_cast<std::uint8_t>(address[i] ^ out[4 + i]);
  return kHeaderSize + 4 + value_size;
}

}  // namespace porthole::wire::stun
