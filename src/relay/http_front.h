// What a relay answers to HTTP requests before the DERP stream begins.
#pragma once

#include <optional>

#include "base/bytes.h"
#include "base/key.h"
#include "wire/http.h"

namespace porthole::relay {

struct RelayHttpAnswer {
  ByteVector bytes;      // to be written as they are; empty for a fast start, which gets frames only
  bool upgrade = false;  // afterwards the stream, with everything behind the request head, belongs to the RelayServer
  bool close = false;    // the answer says that it is the last one on its connection
};

// Answers a request whose head is complete: /derp, /derp/probe, /derp/latency-check, /generate_204. nullopt: another
// path, not ours. Bodies of requests are not looked at; close after an answer to a request that has one, too.
std::optional<RelayHttpAnswer> answer_relay_request(const wire::HttpHeadParser& request, const NodePublic& relay_key);

}  // namespace porthole::relay
