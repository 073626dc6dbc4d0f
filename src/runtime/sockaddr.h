// Endpoint <-> sockaddr.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include "base/ip.h"

namespace porthole::runtime {

struct SockAddr {
  sockaddr_storage storage{};
  socklen_t size = 0;
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
  sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
};

inline SockAddr to_sockaddr(const Endpoint& e) {
  SockAddr out;
  if (e.address.is_v4()) {
    auto* a = reinterpret_cast<sockaddr_in*>(&out.storage);
    a->sin_family = AF_INET;
    a->sin_port = htons(e.port);
    std::memcpy(&a->sin_addr, e.address.bytes().data(), 4);
    out.size = sizeof *a;
  } else {
    auto* a = reinterpret_cast<sockaddr_in6*>(&out.storage);
    a->sin6_family = AF_INET6;
    a->sin6_port = htons(e.port);
    if (e.address.is_v6()) std::memcpy(&a->sin6_addr, e.address.bytes().data(), 16);
    out.size = sizeof *a;
  }
  return out;
}

inline Endpoint from_sockaddr(const sockaddr_storage& s) {
  if (s.ss_family == AF_INET) {
    const auto* a = reinterpret_cast<const sockaddr_in*>(&s);
    return {IpAddress::v4_bytes(reinterpret_cast<const std::uint8_t*>(&a->sin_addr)), ntohs(a->sin_port)};
  }
  if (s.ss_family == AF_INET6) {
    const auto* a = reinterpret_cast<const sockaddr_in6*>(&s);
    return {IpAddress::v6_bytes(reinterpret_cast<const std::uint8_t*>(&a->sin6_addr)), ntohs(a->sin6_port)};
  }
  return {};
}

inline Endpoint local_endpoint(int fd) {
  SockAddr a;
  a.size = sizeof a.storage;
  return ::getsockname(fd, a.get(), &a.size) == 0 ? from_sockaddr(a.storage) : Endpoint{};
}
inline Endpoint remote_endpoint(int fd) {
  SockAddr a;
  a.size = sizeof a.storage;
  return ::getpeername(fd, a.get(), &a.size) == 0 ? from_sockaddr(a.storage) : Endpoint{};
}

}  // namespace porthole::runtime
