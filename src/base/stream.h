// How sans-I/O machines ask for byte streams (TCP, with or without TLS) and talk over them.
//
// A machine that needs a connection emits OpenStream with an id that it chose; whoever runs it (runtime, simulator)
// dials, and calls stream_opened or stream_failed; from then on bytes flow with consume / produce until either side
// closes. Each machine's header says which ids are its own.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/bytes.h"
#include "base/ip.h"
#include "base/result.h"

namespace porthole {

using StreamId = std::uint64_t;

enum class TlsMode {
  kPlain,
  kVerify,       // system roots plus the configured CA file; name must match
  kPinned,       // SHA-256 over the leaf certificate's DER must equal `pin`; no chain check
  kInsecure,     // tests only (DERPMap InsecureForTests)
};

struct OpenStream {
  StreamId id = 0;
  std::string host;                    // DNS name or address literal: SNI, Host header, certificate name
  std::uint16_t port = 0;
  std::vector<IpAddress> addresses;    // non-empty: dial these instead of resolving `host`
  TlsMode tls = TlsMode::kPlain;
  std::string certificate_name;        // empty: same as host
  std::vector<std::uint8_t> pin;       // kPinned: 32 bytes
  std::string purpose;                 // for messages: "control", "relay home"
};
struct CloseStream {
  StreamId id = 0;
};
using StreamAction = std::variant<OpenStream, CloseStream>;

// What is known about a stream once it is up.
struct StreamInfo {
  Endpoint local;
  Endpoint remote;
  bool tls13 = false;
  std::vector<ByteVector> certificates;  // as presented by the server, DER, leaf first; empty without TLS
};

}  // namespace porthole
