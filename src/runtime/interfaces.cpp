#include "runtime/interfaces.h"

#include <ifaddrs.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <unistd.h>

#include <algorithm>
#include <bit>

#include "runtime/sockaddr.h"

namespace porthole::runtime {

std::vector<HostAddress> host_addresses() {
  std::vector<HostAddress> out;
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) != 0) return out;
  for (ifaddrs* a = list; a; a = a->ifa_next) {
    if (!a->ifa_addr || (a->ifa_addr->sa_family != AF_INET && a->ifa_addr->sa_family != AF_INET6)) continue;
    sockaddr_storage s{};
    std::size_t size = a->ifa_addr->sa_family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
    std::memcpy(&s, a->ifa_addr, size);
    HostAddress h;
    h.interface_name = a->ifa_name;
    h.address = from_sockaddr(s).address;
    h.up = (a->ifa_flags & IFF_UP) != 0;
    h.loopback = (a->ifa_flags & IFF_LOOPBACK) != 0;
    if (a->ifa_netmask) {
      sockaddr_storage m{};
      std::memcpy(&m, a->ifa_netmask, size);
      const auto* p = m.ss_family == AF_INET
                          ? reinterpret_cast<const std::uint8_t*>(&reinterpret_cast<const sockaddr_in*>(&m)->sin_addr)
                          : reinterpret_cast<const std::uint8_t*>(&reinterpret_cast<const sockaddr_in6*>(&m)->sin6_addr);
      for (std::size_t i = 0; i < (m.ss_family == AF_INET ? 4u : 16u); ++i) h.prefix_bits += std::popcount(p[i]);
    }
    if (h.address.is_valid()) out.push_back(std::move(h));
  }
  ::freeifaddrs(list);
  return out;
}

bool lost_addresses(const std::vector<HostAddress>& before, const std::vector<HostAddress>& now) {
  return std::any_of(before.begin(), before.end(), [&](const HostAddress& a) {
    return a.up && !a.loopback && !a.address.is_link_local() && std::find(now.begin(), now.end(), a) == now.end();
  });
}

std::string host_name() {
  char name[256] = "";
  if (::gethostname(name, sizeof name - 1) != 0) return "porthole";
  std::string s = name;
  s = s.substr(0, s.find('.'));
  return s.empty() ? "porthole" : s;
}

NetworkMonitor::NetworkMonitor(EventLoop& loop, std::function<void()> changed) : loop_(loop), changed_(std::move(changed)) {
  UniqueFd fd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE));
  if (!fd) return;
  sockaddr_nl a{};
  a.nl_family = AF_NETLINK;
  a.nl_groups = RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE;
  if (::bind(fd.get(), reinterpret_cast<sockaddr*>(&a), sizeof a) != 0) return;
  fd_ = std::move(fd);
  token_ = loop_.add(fd_.get(), *this, true, false);
}

NetworkMonitor::~NetworkMonitor() {
  if (token_) loop_.remove(token_);
}

void NetworkMonitor::on_ready(bool, bool, bool) {
  char buffer[8192];
  while (::recv(fd_.get(), buffer, sizeof buffer, MSG_DONTWAIT) > 0) {
  }
  changed_();
}

}  // namespace porthole::runtime
