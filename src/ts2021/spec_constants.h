// Constants of the Tailscale control protocol (ts2021), under the names the protocol uses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace porthole::ts2021 {

// The capability version this release claims: in /key?v=, the Noise initiation and prologue, and every request.
constexpr std::uint16_t kCapabilityVersion = 131;

constexpr std::string_view kNoiseProtocolName = "Noise_IK_25519_ChaChaPoly_BLAKE2s";
constexpr std::string_view kNoisePrologue = "Tailscale Control Protocol v";  // + decimal version
constexpr std::string_view kUpgradeProtocol = "tailscale-control-protocol";
constexpr std::string_view kHandshakeHeader = "X-Tailscale-Handshake";

constexpr std::string_view kKeyPath = "/key";
constexpr std::string_view kUpgradePath = "/ts2021";
constexpr std::string_view kRegisterPath = "/machine/register";
constexpr std::string_view kMapPath = "/machine/map";

// Legacy home relay text: "127.3.3.40:<region>".
constexpr std::string_view kLegacyDerpAddress = "127.3.3.40:";

// ControlTime before this moment (2023-01-10) comes from a server without a clock: ignore it.
constexpr std::int64_t kControlTimeSane = 1'673'373'066;

// EndpointTypes (control protocol section 6.1).
enum class EndpointType : int {
  kUnknown = 0,
  kLocal = 1,
  kStun = 2,
  kPortMapped = 3,
  kStun4LocalPort = 4,
  kExplicit = 5,
};

}  // namespace porthole::ts2021
