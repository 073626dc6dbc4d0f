#include "coordinator/addresses.h"

namespace porthole::coordinator {
namespace {

constexpr std::uint32_t kFirst = 0x64400000;  // 100.64.0.0
constexpr std::uint32_t kSize = 1u << 22;     // a /10

// fd7a:115c:a1e0:: with the offset inside the /10 as its last 32 bits; 100.64.0.1 becomes
// fd7a:115c:a1e0::1. Offset 0x53 (100.64.0.83) would be fd7a:115c:a1e0::53, the service address: usable() leaves it out.
IpAddress ipv6_of(std::uint32_t ipv4) {
  std::uint8_t b[16] = {0xfd, 0x7a, 0x11, 0x5c, 0xa1, 0xe0};
  store_be(b + 12, ipv4 - kFirst);
  return IpAddress::v6_bytes(b);
}

}  // namespace

bool AddressPool::usable(std::uint32_t ipv4) {
  if (ipv4 < kFirst || ipv4 - kFirst >= kSize) return false;
  std::uint32_t last = ipv4 & 0xff;
  if (last == 0 || last == 0xff) return false;
  if ((ipv4 & 0xffffff00) == 0x64646400) return false;  // 100.100.100.0/24
  if ((ipv4 & 0xfffffe00) == 0x64735c00) return false;  // 100.115.92.0/23
  return ipv4 - kFirst != 0x53;
}

std::optional<AddressPair> AddressPool::allocate() {
  for (std::uint32_t tried = 0; tried < kSize; ++tried) {
    std::uint32_t candidate = next_;
    next_ = next_ + 1 - kFirst >= kSize ? kFirst : next_ + 1;
    if (!usable(candidate) || !used_.insert(candidate).second) continue;
    return AddressPair{IpAddress::v4(candidate), ipv6_of(candidate)};
  }
  return std::nullopt;
}

void AddressPool::take(const IpAddress& ipv4) {
  std::uint32_t value = ipv4.v4_value();
  used_.insert(value);
  if (value >= next_ && usable(value)) next_ = value + 1 - kFirst >= kSize ? kFirst : value + 1;
}

void AddressPool::release(const IpAddress& ipv4) { used_.erase(ipv4.v4_value()); }

}  // namespace porthole::coordinator
