// The URL under which clients reach the service, and the relay map that follows from it.
#pragma once

#include <string>

#include "base/ip.h"
#include "ts2021/messages.h"

namespace porthole::remote {

constexpr int kOwnRegion = 900;  // 900 to 999 are free for private relays

struct PublicUrl {
  bool tls = false;
  std::string host;  // name or literal, IPv6 without brackets
  std::uint16_t port = 0;

  // "https://name[:port]" or "http://name[:port]", nothing behind it. CommandError (usage) with what is wrong, which names
  // the option.
  static PublicUrl parse(const std::string& text, std::string_view option = "--public-url");
  // Without --public-url: the listen address; for 0.0.0.0 and ::, this machine's address towards the Internet, else
  // loopback.
  static PublicUrl from_listen(const Endpoint& listen, bool tls);
  // Without trailing slash; the port only where it is not the scheme's.
  std::string text() const;
};

// One region with this one relay. `stun_port` 0: no STUN.
ts2021::RelayMap own_relay_map(const PublicUrl& url, std::uint16_t stun_port);

}  // namespace porthole::remote
