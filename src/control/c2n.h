// Requests that control sends to this node inside a PingRequest ("c2n", section 8.1): an HTTP/1.x request as payload,
// answered with a whole HTTP/1.1 answer as text.
#pragma once

#include "base/bytes.h"

namespace porthole::control {

// /echo returns the body; everything else is refused. Also for payloads that are no request.
ByteVector answer_c2n(Bytes request);

}  // namespace porthole::control
