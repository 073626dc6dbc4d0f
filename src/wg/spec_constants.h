// Constants of the WireGuard protocol, under the names the paper gives them (sections 5.4, 6.1, 6.5).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/time.h"

namespace porthole::wg {

constexpr std::string_view kConstruction = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
constexpr std::string_view kIdentifier = "WireGuard v1 zx2c4 Jason@zx2c4.com";
constexpr std::string_view kLabelMac1 = "mac1----";
constexpr std::string_view kLabelCookie = "cookie--";

constexpr std::uint64_t kRekeyAfterMessages = std::uint64_t{1} << 60;
constexpr std::uint64_t kRejectAfterMessages = ~std::uint64_t{0} - (std::uint64_t{1} << 13);
constexpr Duration kRekeyAfterTime = 120s;
constexpr Duration kRejectAfterTime = 180s;
constexpr Duration kRekeyAttemptTime = 90s;
constexpr Duration kRekeyTimeout = 5s;
constexpr Duration kKeepaliveTimeout = 10s;
constexpr Duration kCookieRefreshTime = 120s;

// Values all deployed implementations share although the paper leaves them open.
constexpr int kMaxTimerHandshakes = 18;             // kRekeyAttemptTime / kRekeyTimeout
constexpr Duration kRekeyTimeoutJitterMax = 333ms;  // added to the 5 s and 15 s timers
constexpr Duration kRekeyOnReceiveAge = kRejectAfterTime - kKeepaliveTimeout - kRekeyTimeout;
constexpr Duration kIdleWipeTime = 3 * kRejectAfterTime;
constexpr Duration kHandshakeInitiationRate = 20ms;  // smallest gap between two accepted initiations of one peer
constexpr std::size_t kPaddingMultiple = 16;

// Message types (paper 5.4): byte 0, the next three bytes are zero.
constexpr std::uint8_t kTypeInitiation = 1;
constexpr std::uint8_t kTypeResponse = 2;
constexpr std::uint8_t kTypeCookieReply = 3;
constexpr std::uint8_t kTypeTransport = 4;
constexpr std::size_t kInitiationSize = 148;
constexpr std::size_t kResponseSize = 92;
constexpr std::size_t kCookieReplySize = 64;
constexpr std::size_t kTransportHeaderSize = 16;
constexpr std::size_t kTransportOverhead = 32;  // header and tag: also the smallest transport message

}  // namespace porthole::wg
