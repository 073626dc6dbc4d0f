#include "relay/stun_server.h"

namespace porthole::relay {

Bytes StunServer::answer(const Endpoint& source, Bytes datagram) {
  auto id = source.is_valid() ? wire::stun::parse_request(datagram, any_software_) : std::nullopt;
  if (!id) {
    ++counters_.ignored;
    return {};
  }
  ++(source.address.is_v4() ? counters_.answered_v4 : counters_.answered_v6);
  return Bytes(buffer_).first(wire::stun::encode_response(*id, source, buffer_));
}

}  // namespace porthole::relay
