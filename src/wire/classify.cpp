#include "wire/classify.h"

#include "wire/disco.h"
#include "wire/stun.h"

namespace porthole::wire {
namespace {

// A naked disco message is recognised as soon as magic and sender key are there; whether the rest is whole is the
// envelope parser's business.
bool looks_like_disco(Bytes p) {
  return p.size() >= disco::kNonceOffset && std::memcmp(p.data(), disco::kMagic.data(), disco::kMagic.size()) == 0;
}

bool looks_like_stun(Bytes p) {
  static constexpr std::uint8_t kCookie[4] = {0x21, 0x12, 0xa4, 0x42};
  return p.size() >= stun::kHeaderSize && (p[0] & 0xc0) == 0 && p[1] == 0x01 && std::memcmp(p.data() + 4, kCookie, 4) == 0;
}

}  // namespace

Classified classify(Bytes datagram) {
  if (looks_like_stun(datagram)) return {DatagramKind::kStun, false};
  // The usual case first among the rest: WireGuard starts with 1..4 and three zero bytes, which no Geneve header of
  // ours (protocol 7a1x in bytes 2 and 3) and no disco message does.
  if (auto geneve = parse_geneve(datagram)) {
    if (geneve->protocol == kGeneveDisco && looks_like_disco(datagram.subspan(kGeneveHeaderSize)))
      return {DatagramKind::kDisco, true};
    if (geneve->protocol == kGeneveWireGuard) return {DatagramKind::kWireGuard, true};
  }
  if (looks_like_disco(datagram)) return {DatagramKind::kDisco, false};
  return {DatagramKind::kWireGuard, false};
}

std::optional<GeneveHeader> parse_geneve(Bytes p) {
  if (p.size() < kGeneveHeaderSize || (p[0] & 0xc0) != 0 || (p[1] & 0x3f) != 0 || p[7] != 0) return std::nullopt;
  GeneveHeader h;
  h.protocol = load_be<std::uint16_t>(p.data() + 2);
  h.vni = load_be<std::uint32_t>(p.data() + 4) >> 8;
  h.control = (p[1] & 0x80) != 0;
  return h;
}

std::array<std::uint8_t, kGeneveHeaderSize> encode_geneve(const GeneveHeader& header) {
  std::array<std::uint8_t, kGeneveHeaderSize> out{};
  if (header.control) out[1] = 0x80;
  store_be(out.data() + 2, header.protocol);
  store_be(out.data() + 4, static_cast<std::uint32_t>(header.vni << 8));
  return out;
}

}  // namespace porthole::wire
