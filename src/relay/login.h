// The server's half of the DERP login, and the admission question of the field's relays.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/ip.h"
#include "base/key.h"
#include "base/result.h"
#include "crypto/dh.h"
#include "crypto/secret.h"
#include "wire/derp.h"

namespace porthole::relay {

struct ClientLogin {
  NodePublic key;
  std::int64_t version = 0;     // any value; 0 when absent
  bool can_ack_pings = false;
  bool is_prober = false;
  std::string app_name;
  bool has_mesh_key = false;    // well-formed; which one it is does not matter here
};
// Opens a ClientInfo payload: proof that the other side owns its node key. `box` is set for the answer. Keys of the JSON
// are compared without letter case and unknown ones skipped; wrong types and a malformed mesh key refuse the login.
Result<ClientLogin> open_client_info(Bytes payload, const crypto::NodePrivate& relay_key, std::optional<crypto::BoxKey>& box);

// Appends the ServerInfo frame.
void encode_server_info(ByteVector& out, const crypto::BoxKey& box, Bytes nonce24);

// For relays that ask a coordinator by HTTP: {"NodePublic":"nodekey:...","Source":"1.2.3.4"} and {"Allow":true}.
std::string encode_admission_request(const NodePublic& key, const IpAddress& source);
// nullopt: not an answer, which refuses.
std::optional<bool> parse_admission_answer(std::string_view body);

}  // namespace porthole::relay
