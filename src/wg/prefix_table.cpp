#include "wg/prefix_table.h"

#include <bit>

namespace porthole::wg {

void PrefixTable::Lengths::add(int bits) {
  const auto i = static_cast<std::size_t>(bits);
  if (count[i]++ == 0) present[i / 64] |= std::uint64_t{1} << (i % 64);
}

void PrefixTable::Lengths::remove(int bits) {
  const auto i = static_cast<std::size_t>(bits);
  if (--count[i] == 0) present[i / 64] &= ~(std::uint64_t{1} << (i % 64));
}

PrefixTable::Key PrefixTable::key_of(const IpAddress& address, int bits) {
  if (address.is_v4()) {
    const std::uint32_t mask = bits == 0 ? 0 : ~std::uint32_t{0} << (32 - bits);
    return {IpAddress::v4(address.v4_value() & mask), bits};
  }
  std::array<std::uint8_t, 16> b = address.mapped();
  for (std::size_t i = 0; i < 16; ++i) {
    const int kept = bits - static_cast<int>(8 * i);
    if (kept <= 0) b[i] = 0;
    else if (kept < 8) b[i] = static_cast<std::uint8_t>(b[i] & (0xff << (8 - kept)));
  }
  // ::ffff:0:0/96 masks to the form of an IPv4 address; no tailnet prefix is that, and it would only miss.
  return {IpAddress::v6_bytes(b.data()), bits};
}

void PrefixTable::set(const Prefix& prefix, std::uint32_t value) {
  if (!prefix.address.is_valid() || prefix.bits < 0 || prefix.bits > prefix.address.bit_length()) return;
  const auto [it, added] = entries_.insert_or_assign(key_of(prefix.address, prefix.bits), value);
  if (added) lengths(prefix.address).add(prefix.bits);
}

void PrefixTable::erase(const Prefix& prefix, std::uint32_t value) {
  if (!prefix.address.is_valid() || prefix.bits < 0 || prefix.bits > prefix.address.bit_length()) return;
  const auto it = entries_.find(key_of(prefix.address, prefix.bits));
  if (it == entries_.end() || it->second != value) return;
  entries_.erase(it);
  lengths(prefix.address).remove(prefix.bits);
}

std::uint32_t PrefixTable::lookup(const IpAddress& address, std::uint32_t none) const {
  if (!address.is_valid()) return none;
  const Lengths& l = lengths(address);
  for (std::size_t word = 3; word-- > 0;) {
    for (std::uint64_t left = l.present[word]; left != 0;) {
      const int top = 63 - std::countl_zero(left);
      left &= ~(std::uint64_t{1} << top);
      const auto it = entries_.find(key_of(address, static_cast<int>(word) * 64 + top));
      if (it != entries_.end()) return it->second;
    }
  }
  return none;
}

}  // namespace porthole::wg
