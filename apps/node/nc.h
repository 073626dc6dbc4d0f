// The bytes of `porthole node nc`: stdin and stdout joined with a socket.
#pragma once

#include <string>

namespace porthole::app {

// Copies both ways until both are finished: the end of `in` shuts the socket's sending half, the socket's end closes
// `out`, and each direction goes on while the other has ended. A terminal at `in` does not keep a connection that the
// other side has ended. Returns the exit status: 0 in order (also when nobody reads `out` any more), 130 when `stop_fd`
// became readable. CommandError when the connection broke; `name` is what it is called there.
int copy_both_ways(int in, int out, int socket, int stop_fd, const std::string& name);

}  // namespace porthole::app
