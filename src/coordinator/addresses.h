// Which tailnet addresses are given out (control protocol, section 9.6): one IPv4 out of 100.64.0.0/10 and the IPv6 of
// fd7a:115c:a1e0::/48 that carries the same number, so that one allocation decides both.
//
// Sequential after the last one given out, so that an address that became free rests as long as possible before another
// device gets it. Never handed out: network and broadcast addresses of every /24, 100.100.100.0/24 (the service address
// and its neighbours), 100.115.92.0/23 (ChromeOS containers), and what is in use.
#pragma once

#include <cstdint>
#include <optional>
#include <unordered_set>

#include "base/ip.h"

namespace porthole::coordinator {

struct AddressPair {
  IpAddress ipv4;
  IpAddress ipv6;
};

class AddressPool {
 public:
  // nullopt: all in use (about four million).
  std::optional<AddressPair> allocate();
  // Addresses of a stored node; also moves the place where allocate() goes on.
  void take(const IpAddress& ipv4);
  void release(const IpAddress& ipv4);
  std::size_t used() const { return used_.size(); }
  static bool usable(std::uint32_t ipv4);

 private:
  std::unordered_set<std::uint32_t> used_;
  std::uint32_t next_ = 0x64400001;  // 100.64.0.1
};

}  // namespace porthole::coordinator
