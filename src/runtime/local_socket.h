// Sockets on this host's side of the node: loopback listeners, connected pairs handed to the app, dials to local
// services.
#pragma once

#include <string>
#include <utility>

#include "base/ip.h"
#include "base/result.h"
#include "runtime/files.h"

namespace porthole::runtime {

// Non-blocking TCP listener. Port 0: any. Errors name the address.
Result<UniqueFd> listen_tcp(const Endpoint& address, int backlog = 128);
// Starts a non-blocking connect.
Result<UniqueFd> connect_tcp(const Endpoint& address);
// Unix stream listener, mode 0600, replacing whatever socket file is there. The folder's path may be of any length.
Result<UniqueFd> listen_unix(const std::string& path);

// A connected TCP pair over 127.0.0.1: first is the node's end (non-blocking), second the app's (blocking). TCP and not
// AF_UNIX, because only TCP can tell a reset from an end: a truncated download must not look complete.
Result<std::pair<UniqueFd, UniqueFd>> connected_pair();

// One message with a descriptor that the receiver gets a copy of (SCM_RIGHTS; negative: none). Never waits. As send().
ssize_t send_with_descriptor(int fd, std::string_view text, int passed);

// The outcome of a dial, through one message of a socket pair: an error code and sentence, or the descriptor.
void tell_dialled(int fd, const Result<UniqueFd>& outcome);
// Never waits: kUnavailable while there is no outcome, kCancelled when there will be none.
Result<UniqueFd> take_dialled(int fd);

// No Nagle; Reno, because a model-based default would pace loopback (a quarter of the throughput). Only the node's end.
void tune_local(int fd);
// Makes the next close() send a reset instead of an orderly end.
void reset_on_close(int fd);

}  // namespace porthole::runtime
