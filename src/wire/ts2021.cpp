#include "wire/ts2021.h"

namespace porthole::wire {

std::optional<Ts2021Header> parse_ts2021_header(Bytes frame) {
  ByteReader r(frame);
  std::uint8_t type = r.u8();
  std::uint16_t length = r.be16();
  if (!r.ok() || type < 2 || type > 4) return std::nullopt;
  return Ts2021Header{static_cast<Ts2021Type>(type), length};
}

void encode_ts2021_header(Ts2021Header header, MutBytes out) {
  out[0] = static_cast<std::uint8_t>(header.type);
  store_be<std::uint16_t>(out.data() + 1, header.length);
}

std::optional<Ts2021InitiationFault> check_ts2021_initiation(Bytes frame) {
  if (frame.size() != kTs2021InitiationSize) return Ts2021InitiationFault::kSize;
  if (frame[2] != static_cast<std::uint8_t>(Ts2021Type::kInitiation)) return Ts2021InitiationFault::kType;
  if (load_be<std::uint16_t>(frame.data() + 3) != kTs2021InitiationPayloadSize) return Ts2021InitiationFault::kLength;
  return std::nullopt;
}

std::optional<Ts2021Initiation> parse_ts2021_initiation(Bytes frame) {
  if (check_ts2021_initiation(frame)) return std::nullopt;
  return Ts2021Initiation{load_be<std::uint16_t>(frame.data()), frame.subspan(5, 32), frame.subspan(37, 48),
                          frame.subspan(85, 16)};
}

std::optional<std::uint32_t> parse_ts2021_early_header(Bytes nine) {
  if (nine.size() != kTs2021EarlyHeaderSize || !equal(nine.first(5), kTs2021EarlyMagic)) return std::nullopt;
  return load_be<std::uint32_t>(nine.data() + 5);
}

}  // namespace porthole::wire
