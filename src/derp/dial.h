// From a node of the relay map to the stream that reaches it.
#pragma once

#include <optional>
#include <string>

#include "base/stream.h"
#include "ts2021/messages.h"

namespace porthole::derp {

// Host, addresses, port and how TLS is judged; without id and purpose. nullopt: this node is no relay or cannot be dialled.
std::optional<OpenStream> relay_stream(const ts2021::RelayNode& node, bool all_plain);
// The Host header of a request on such a stream.
std::string host_header(const OpenStream& stream);

}  // namespace porthole::derp
