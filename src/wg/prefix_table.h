// Longest-prefix match from IP addresses to peers (paper 2, "cryptokey routing"). One hash table of (masked address,
// length); a lookup tries only the lengths that occur, longest first: in a tailnet that is /32 or /128 at once.
#pragma once

#include <array>
#include <cstdint>
#include <unordered_map>

#include "base/ip.h"

namespace porthole::wg {

class PrefixTable {
 public:
  // Host bits are ignored. The same prefix again replaces its value: the last writer wins.
  void set(const Prefix& prefix, std::uint32_t value);
  // Only if it still holds `value`.
  void erase(const Prefix& prefix, std::uint32_t value);
  // `none` when nothing matches.
  std::uint32_t lookup(const IpAddress& address, std::uint32_t none) const;
  std::size_t size() const { return entries_.size(); }

 private:
  struct Key {
    IpAddress address;  // masked
    int bits;
    friend bool operator==(const Key&, const Key&) = default;
  };
  struct Hash {
    std::size_t operator()(const Key& k) const {
      return std::hash<IpAddress>()(k.address) * 257 + static_cast<std::size_t>(k.bits);
    }
  };
  // How many prefixes have each length, and the lengths that occur as a bit set.
  struct Lengths {
    std::array<std::uint32_t, 129> count{};
    std::array<std::uint64_t, 3> present{};
    void add(int bits);
    void remove(int bits);
  };
  static Key key_of(const IpAddress& address, int bits);
  const Lengths& lengths(const IpAddress& a) const { return a.is_v4() ? v4_ : v6_; }
  Lengths& lengths(const IpAddress& a) { return a.is_v4() ? v4_ : v6_; }

  std::unordered_map<Key, std::uint32_t, Hash> entries_;
  Lengths v4_, v6_;
};

}  // namespace porthole::wg
