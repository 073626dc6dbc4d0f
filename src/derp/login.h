// The client's half of the DERP login: NaCl boxes between the node key and the relay's key.
#pragma once

#include "base/bytes.h"
#include "base/key.h"
#include "base/result.h"
#include "base/rng.h"
#include "crypto/dh.h"
#include "crypto/secret.h"

namespace porthole::derp {

// Appends the ClientInfo frame that proves to the relay that we own `key`.
void encode_login(ByteVector& out, const NodePublic& key, const crypto::BoxKey& box, Bytes nonce24);

struct ServerInfo {
  std::uint64_t version = 0;           // 0: not said
  std::uint64_t bytes_per_second = 0;  // 0: no limit
  std::uint64_t bytes_burst = 0;
};
// Payload of a ServerInfo frame. Opening it proves that the relay owns the key it announced.
Result<ServerInfo> open_server_info(Bytes payload, const crypto::BoxKey& box);

}  // namespace porthole::derp
