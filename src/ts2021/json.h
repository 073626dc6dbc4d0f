// JSON forms of the messages (Tailscale control protocol, section 0: the dialect).
//
// parse_*: keys match in any ASCII letter case, unknown keys are skipped, null is absent, ids are read as int64, depth
// and size are bounded. Malformed JSON or a field of the wrong kind is an Error (kProtocol) that names the field; one
// malformed text inside a list (an endpoint, a prefix) is skipped, so that one bad entry cannot take a map down.
// encode_*: exact spelling, nothing null, empty lists omitted where absent means the same, no escaped '/', raw UTF-8
// (invalid UTF-8 becomes U+FFFD). What was parsed encodes to the same message again.
#pragma once

#include <string>

#include "base/bytes.h"
#include "base/result.h"
#include "crypto/secret.h"
#include "ts2021/messages.h"

namespace porthole::ts2021 {

Result<KeyAnswer> parse_key_answer(Bytes json);
std::string encode_key_answer(const KeyAnswer& answer);

Result<RegisterRequest> parse_register_request(Bytes json);
// Holds the pre-auth key when there is one, hence the type.
crypto::SecretText encode_register_request(const RegisterRequest& request);

Result<RegisterResponse> parse_register_response(Bytes json);
std::string encode_register_response(const RegisterResponse& response);

Result<MapRequest> parse_map_request(Bytes json);
std::string encode_map_request(const MapRequest& request);

// One map message, decompressed, without its length.
Result<MapResponse> parse_map_response(Bytes json);
std::string encode_map_response(const MapResponse& response);

// Parts, for stores and files.
Result<Hostinfo> parse_hostinfo(Bytes json);
std::string encode_hostinfo(const Hostinfo& hostinfo);
Result<Node> parse_node(Bytes json);
std::string encode_node(const Node& node);
// A DERPMap document as Headscale and Tailscale publish it.
Result<RelayMap> parse_relay_map(Bytes json);
std::string encode_relay_map(const RelayMap& map);
Result<FilterRules> parse_filter_rules(Bytes json);
std::string encode_filter_rules(const FilterRules& rules);

// {"nodeKeyChallenge":"chalpub:<hex>"}: the content of the early payload (section 3.6).
std::string encode_early_payload_json(const ChallengePublic& challenge);

}  // namespace porthole::ts2021
