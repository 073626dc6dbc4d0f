#include "wire/udp.h"

#include "wire/checksum.h"
#include "wire/ip.h"

namespace porthole::wire {

std::optional<UdpHeader> parse_udp(Bytes payload, const IpAddress& source, const IpAddress& destination) {
  if (payload.size() < kUdpHeaderSize) return std::nullopt;
  std::size_t length = load_be<std::uint16_t>(&payload[4]);
  if (length < kUdpHeaderSize || length > payload.size()) return std::nullopt;
  UdpHeader out;
  out.source_port = load_be<std::uint16_t>(&payload[0]);
  out.destination_port = load_be<std::uint16_t>(&payload[2]);
  out.data = payload.subspan(kUdpHeaderSize, length - kUdpHeaderSize);
  if (load_be<std::uint16_t>(&payload[6]) == 0) {
    out.checksum_ok = source.is_v4();
  } else {
    out.checksum_ok = finish(pseudo_header_sum(source, destination, ip_protocol::kUdp, length) +
                             sum_bytes(payload.first(length))) == 0;
  }
  return out;
}

void write_udp(std::uint8_t* out, const Endpoint& source, const Endpoint& destination, Bytes data) {
  std::size_t length = kUdpHeaderSize + data.size();
  store_be(out, source.port);
  store_be(out + 2, destination.port);
  store_be(out + 4, static_cast<std::uint16_t>(length));
  out[6] = out[7] = 0;
  PartialSum sum = copy_and_sum(out + kUdpHeaderSize, data.data(), data.size());
  sum += sum_bytes({out, kUdpHeaderSize});
  sum += pseudo_header_sum(source.address, destination.address, ip_protocol::kUdp, length);
  std::uint16_t value = finish(sum);
  if (value == 0) value = 0xffff;
  std::memcpy(out + 6, &value, 2);
}

}  // namespace porthole::wire
