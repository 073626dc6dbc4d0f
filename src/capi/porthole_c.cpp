// The C ABI: argument checks, exception fence, error mapping. Everything real is in runtime/node_runtime.h.
#include <porthole/porthole.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "runtime/datagrams.h"
#include "runtime/files.h"
#include "runtime/local_socket.h"
#include "runtime/node_runtime.h"

using porthole::Error;
using porthole::ErrorCode;
using porthole::runtime::NodeRuntime;

namespace {

struct Listener {
  std::shared_ptr<NodeRuntime> runtime;
  NodeRuntime::ListenerRef ref;
};

// What a program holds is a number that is never used again, not an address: a call that another thread's close
// overtakes, and a call on something closed long ago, find nothing instead of freed memory. Calls under way hold the
// object, so that closing frees nothing under their feet.
template <typename Handle, typename Object>
class Handles {
 public:
  Handle* add(Object object) {
    std::lock_guard lock(mutex_);
    objects_.emplace(++last_, std::move(object));
    return reinterpret_cast<Handle*>(last_ * kStep);
  }
  Object find(Handle* handle) {
    std::lock_guard lock(mutex_);
    auto it = objects_.find(number(handle));
    return it == objects_.end() ? Object() : it->second;
  }
  Object take(Handle* handle) {
    std::lock_guard lock(mutex_);
    auto node = objects_.extract(number(handle));
    return node.empty() ? Object() : std::move(node.mapped());
  }

 private:
  // Pointers of a program are aligned; so is this.
  static constexpr std::uintptr_t kStep = 16;
  static std::uintptr_t number(Handle* handle) {
    auto value = reinterpret_cast<std::uintptr_t>(handle);
    return value % kStep == 0 ? value / kStep : 0;
  }
  std::mutex mutex_;
  std::map<std::uintptr_t, Object> objects_;
  std::uintptr_t last_ = 0;
};

// Never destroyed: a program's own threads may outlive its main().
auto& nodes() {
  static auto& handles = *new Handles<porthole_node, std::shared_ptr<NodeRuntime>>;
  return handles;
}
auto& listeners() {
  static auto& handles = *new Handles<porthole_listener, std::shared_ptr<Listener>>;
  return handles;
}

constexpr std::size_t kKeyFileMax = 4096;
constexpr int kOk = PORTHOLE_OK;
static_assert(porthole::runtime::kPacketHead == PORTHOLE_PACKET_HEAD && porthole::runtime::kDatagramMaxV4 == PORTHOLE_DATAGRAM_MAX_IPV4 &&
              porthole::runtime::kDatagramMaxV6 == PORTHOLE_DATAGRAM_MAX_IPV6);
constexpr std::size_t kOptionsSizeMax = 4096;  // of any future version: beyond it the field was never set

int to_code(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalid: return PORTHOLE_ERROR_INVALID;
    case ErrorCode::kUnavailable: return PORTHOLE_ERROR_UNAVAILABLE;
    case ErrorCode::kTimeout: return PORTHOLE_ERROR_TIMEOUT;
    case ErrorCode::kRefused: return PORTHOLE_ERROR_REFUSED;
    case ErrorCode::kUnauthorized: return PORTHOLE_ERROR_UNAUTHORIZED;
    case ErrorCode::kExpired: return PORTHOLE_ERROR_EXPIRED;
    case ErrorCode::kNotFound: return PORTHOLE_ERROR_NOT_FOUND;
    case ErrorCode::kAlreadyExists: return PORTHOLE_ERROR_EXISTS;
    case ErrorCode::kPermission: return PORTHOLE_ERROR_PERMISSION;
    case ErrorCode::kProtocol: return PORTHOLE_ERROR_PROTOCOL;
    case ErrorCode::kLimit: return PORTHOLE_ERROR_LIMIT;
    case ErrorCode::kCancelled: return PORTHOLE_ERROR_CANCELLED;
    case ErrorCode::kReset: return PORTHOLE_ERROR_RESET;
    case ErrorCode::kIo: return PORTHOLE_ERROR_IO;
    case ErrorCode::kUnsupported: return PORTHOLE_ERROR_UNSUPPORTED;
    case ErrorCode::kInternal: return PORTHOLE_ERROR_INTERNAL;
  }
  return PORTHOLE_ERROR_INTERNAL;
}

int report(const Error& e, porthole_error* out) {
  int code = to_code(e.code);
  if (out) {
    out->code = code;
    std::size_t n = std::min(e.message.size(), sizeof out->message - 1);
    std::memcpy(out->message, e.message.data(), n);
    out->message[n] = '\0';
  }
  return code;
}

int closed(porthole_error* out) { return report({ErrorCode::kCancelled, "the node was closed"}, out); }

int invalid(const char* what, porthole_error* out) { return report({ErrorCode::kInvalid, what}, out); }

template <typename F>
int guarded(porthole_error* out, F&& work) {
  try {
    if (out) *out = {};
    return work();
  } catch (const std::exception& e) {
    return report({ErrorCode::kInternal, std::string("internal error: ") + e.what()}, out);
  }
}

// The call's work on the node behind the handle.
template <typename F>
int with_node(porthole_node* node, porthole_error* out, F&& work) {
  return guarded(out, [&] {
    auto runtime = nodes().find(node);
    return runtime ? work(runtime) : closed(out);
  });
}

int give(porthole::Result<std::string> r, char** json_out, porthole_error* out) {
  *json_out = nullptr;
  if (!r) return report(r.error(), out);
  *json_out = ::strdup(r->c_str());
  return *json_out ? kOk : report({ErrorCode::kLimit, "out of memory"}, out);
}

int finish(const porthole::Status& s, porthole_error* out) { return s ? kOk : report(s.error(), out); }

std::string text(const char* s) { return s ? s : ""; }

void copy_text(char* to, std::size_t size, const std::string& from) {
  std::size_t n = std::min(from.size(), size - 1);
  std::memcpy(to, from.data(), n);
  to[n] = '\0';
}

}  // namespace

extern "C" {

void porthole_options_init(porthole_options* options) {
  if (!options) return;
  *options = {};
  options->size = sizeof *options;
}

porthole_node* porthole_start(const porthole_options* given, porthole_error* error) {
  porthole_node* out = nullptr;
  guarded(error, [&] {
    // A program built against an older header has a shorter struct: what it does not know keeps its default.
    if (!given || given->size < offsetof(porthole_options, state_dir) + sizeof(char*) || given->size > kOptionsSizeMax)
      return invalid("options were not initialised with porthole_options_init", error);
    porthole_options known;
    porthole_options_init(&known);
    std::memcpy(&known, given, std::min(given->size, sizeof known));
    const porthole_options* options = &known;
    porthole::runtime::NodeOptions o;
    o.state_dir = text(options->state_dir);
    o.control_url = text(options->control_url);
    std::string key = text(options->auth_key);
    if (key.starts_with("file:")) {
      auto content = porthole::runtime::read_file(key.substr(5), kKeyFileMax);
      if (!content) return report(content.error(), error);
      if (!*content) return report({ErrorCode::kNotFound, "the key file " + key.substr(5) + " does not exist"}, error);
      key = **content;
      while (!key.empty() && (key.back() == '\n' || key.back() == '\r' || key.back() == ' ')) key.pop_back();
    }
    o.auth_key = porthole::crypto::SecretText(key);
    porthole::crypto::wipe({reinterpret_cast<std::uint8_t*>(key.data()), key.size()});
    o.hostname = text(options->hostname);
    o.ca_file = text(options->ca_file);
    o.udp_port = options->udp_port;
    o.ephemeral = options->ephemeral != 0;
    o.relay_only = options->relay_only != 0;
    auto node = NodeRuntime::start(std::move(o));
    if (!node) return report(node.error(), error);
    out = nodes().add(std::move(*node));
    return kOk;
  });
  return out;
}

int porthole_wait_running(porthole_node* node, int timeout_ms, porthole_error* error) {
  if (!node) return invalid("no node", error);
  return with_node(node, error, [&](const std::shared_ptr<NodeRuntime>& runtime) { return finish(runtime->wait_running(timeout_ms), error); });
}

int porthole_wait_peer(porthole_node* node, const char* peer, int timeout_ms, porthole_error* error) {
  if (!node || !peer) return invalid("no node or no peer", error);
  return with_node(node, error, [&](const std::shared_ptr<NodeRuntime>& runtime) { return finish(runtime->wait_peer(peer, timeout_ms), error); });
}

void porthole_close(porthole_node* node) {
  if (!node) return;
  guarded(nullptr, [&] {
    if (auto runtime = nodes().take(node)) runtime->close();
    return 0;
  });
}

int porthole_logout(porthole_node* node, int timeout_ms, porthole_error* error) {
  if (!node) return invalid("no node", error);
  return with_node(node, error, [&](const std::shared_ptr<NodeRuntime>& runtime) { return finish(runtime->logout(timeout_ms), error); });
}

int porthole_next_event(porthole_node* node, int timeout_ms, char** json_out, porthole_error* error) {
  if (!node || !json_out) return invalid("no node or no place for the event", error);
  *json_out = nullptr;
  return with_node(node, error, [&](const std::shared_ptr<NodeRuntime>& runtime) {
    auto r = runtime->next_event(timeout_ms);
    if (!r) return report(r.error(), error);
    if (!*r) return kOk;
    return give(porthole::Result<std::string>(std::move(**r)), json_out, error);
  });
}

int porthole_event_fd(porthole_node* node) {
  auto runtime = nodes().find(node);
  return runtime ? runtime->event_fd() : -1;
}

int porthole_status_json(porthole_node* node, char** json_out, porthole_error* error) {
  if (!node || !json_out) return invalid("no node or no place for the status", error);
  return with_node(node, error, [&](const std::shared_ptr<NodeRuntime>& runtime) { return give(runtime->status_json(), json_out, error); });
}

int porthole_loopback_on(porthole_node* node, const char* address, porthole_proxy* out, porthole_error* error) {
  if (!node || !out) return invalid("no node or no place for the proxy's address", error);
  *out = {};
  return with_node(node, error, [&](const std::shared_ptr<NodeRuntime>& runtime) {
    auto r = runtime->loopback(text(address));
    if (!r) return report(r.error(), error);
    copy_text(out->address, sizeof out->address, r->address);
    copy_text(out->username, sizeof out->username, r->username);
    copy_text(out->password, sizeof out->password, r->password);
    return kOk;
  });
}

int porthole_loopback(porthole_node* node, porthole_proxy* out, porthole_error* error) {
  return porthole_loopback_on(node, nullptr, out, error);
}

int porthole_dial(porthole_node* node, const char* network, const char* address, int timeout_ms, int* fd_out, porthole_error* error) {
  if (!node || !network || !address || !fd_out) return invalid("an argument of porthole_dial is NULL", error);
  *fd_out = -1;
  return with_node(node, error, [&](const std::shared_ptr<NodeRuntime>& runtime) {
    auto r = runtime->dial(network, address, timeout_ms);
    if (!r) return report(r.error(), error);
    *fd_out = r->release();
    return kOk;
  });
}

int porthole_dial_begin(porthole_node* node, const char* network, const char* address, int timeout_ms, int* fd_out, porthole_error* error) {
  if (!node || !network || !address || !fd_out) return invalid("an argument of porthole_dial_begin is NULL", error);
  *fd_out = -1;
  return with_node(node, error, [&](const std::shared_ptr<NodeRuntime>& runtime) {
    auto r = runtime->begin_dial(network, address, timeout_ms);
    if (!r) return report(r.error(), error);
    *fd_out = r->release();
    return kOk;
  });
}

int porthole_dial_end(int fd, int* connection_out, porthole_error* error) {
  if (fd < 0 || !connection_out) return invalid("no descriptor or no place for the connection", error);
  *connection_out = -1;
  return guarded(error, [&] {
    auto r = porthole::runtime::take_dialled(fd);
    if (!r) return report(r.error(), error);
    *connection_out = r->release();
    return kOk;
  });
}

porthole_listener* porthole_listen(porthole_node* node, uint16_t port, porthole_error* error) {
  porthole_listener* out = nullptr;
  if (!node) {
    invalid("no node", error);
    return nullptr;
  }
  with_node(node, error, [&](const std::shared_ptr<NodeRuntime>& runtime) {
    auto r = runtime->listen(port);
    if (!r) return report(r.error(), error);
    out = listeners().add(std::make_shared<Listener>(Listener{runtime, *r}));
    return kOk;
  });
  return out;
}

int porthole_accept(porthole_listener* listener, int timeout_ms, int* fd_out, char* peer_out, size_t peer_size, porthole_error* error) {
  if (!listener || !fd_out) return invalid("no listener or no place for the descriptor", error);
  *fd_out = -1;
  return guarded(error, [&] {
    auto l = listeners().find(listener);
    if (!l) return report({ErrorCode::kCancelled, "the listener was closed"}, error);
    auto r = l->runtime->accept(l->ref.id, timeout_ms);
    if (!r) return report(r.error(), error);
    if (peer_out && peer_size > 0) copy_text(peer_out, peer_size, r->peer);
    *fd_out = r->fd.release();
    return kOk;
  });
}

int porthole_listener_fd(porthole_listener* listener) {
  auto l = listeners().find(listener);
  return l ? l->ref.fd->get() : -1;
}

void porthole_listener_close(porthole_listener* listener) {
  if (!listener) return;
  guarded(nullptr, [&] {
    if (auto l = listeners().take(listener)) l->runtime->close_listener(l->ref.id);
    return 0;
  });
}

int porthole_expose(porthole_node* node, uint16_t port, const char* local_address, int max_connections, porthole_error* error) {
  if (!node || !local_address) return invalid("no node or no local address", error);
  return with_node(node, error, [&](const std::shared_ptr<NodeRuntime>& runtime) { return finish(runtime->expose(port, local_address, max_connections), error); });
}

int porthole_exposed_peer(porthole_node* node, uint16_t local_port, char** json_out, porthole_error* error) {
  if (!node || !json_out) return invalid("no node or no place for the answer", error);
  return with_node(node, error, [&](const std::shared_ptr<NodeRuntime>& runtime) { return give(runtime->exposed_peer(local_port), json_out, error); });
}

int porthole_expose_udp(porthole_node* node, uint16_t port, const char* local_address, int max_sources, porthole_error* error) {
  if (!node || !local_address) return invalid("no node or no local address", error);
  return with_node(node, error, [&](const std::shared_ptr<NodeRuntime>& runtime) { return finish(runtime->expose_udp(port, local_address, max_sources), error); });
}

int porthole_exposed_udp_peer(porthole_node* node, uint16_t local_port, char** json_out, porthole_error* error) {
  if (!node || !json_out) return invalid("no node or no place for the answer", error);
  return with_node(node, error, [&](const std::shared_ptr<NodeRuntime>& runtime) { return give(runtime->exposed_udp_peer(local_port), json_out, error); });
}

int porthole_listen_packet(porthole_node* node, uint16_t port, int* fd_out, porthole_error* error) {
  if (!node || !fd_out) return invalid("no node or no place for the descriptor", error);
  *fd_out = -1;
  return with_node(node, error, [&](const std::shared_ptr<NodeRuntime>& runtime) {
    auto r = runtime->listen_packet(port);
    if (!r) return report(r.error(), error);
    *fd_out = r->release();
    return kOk;
  });
}

int porthole_receive_from(int fd, int timeout_ms, void* buffer, size_t buffer_size, size_t* size_out, char* peer_out, size_t peer_size,
                          porthole_error* error) {
  if (fd < 0 || (!buffer && buffer_size > 0) || !size_out) return invalid("an argument of porthole_receive_from is missing", error);
  *size_out = 0;
  return guarded(error, [&] {
    auto r = porthole::runtime::receive_packet(fd, timeout_ms, {static_cast<std::uint8_t*>(buffer), buffer_size});
    if (!r) return report(r.error(), error);
    *size_out = r->size;
    if (peer_out && peer_size > 0) copy_text(peer_out, peer_size, r->peer.to_string());
    return kOk;
  });
}

int porthole_send_to(int fd, const char* peer, const void* data, size_t size, porthole_error* error) {
  if (fd < 0 || !peer || (!data && size > 0)) return invalid("an argument of porthole_send_to is missing", error);
  return guarded(error, [&] {
    auto to = porthole::Endpoint::parse(peer);
    if (!to || !to->is_valid())
      return report({ErrorCode::kInvalid, "'" + std::string(peer) + "' is not ADDRESS:PORT of the tailnet (names are not looked up here)"}, error);
    return finish(porthole::runtime::send_packet(fd, *to, {static_cast<const std::uint8_t*>(data), size}), error);
  });
}

int porthole_ping(porthole_node* node, const char* peer, int timeout_ms, char** json_out, porthole_error* error) {
  if (!node || !peer || !json_out) return invalid("an argument of porthole_ping is NULL", error);
  return with_node(node, error, [&](const std::shared_ptr<NodeRuntime>& runtime) { return give(runtime->ping(peer, timeout_ms), json_out, error); });
}

int porthole_netcheck(porthole_node* node, int timeout_ms, char** json_out, porthole_error* error) {
  if (!node || !json_out) return invalid("no node or no place for the answer", error);
  return with_node(node, error, [&](const std::shared_ptr<NodeRuntime>& runtime) { return give(runtime->netcheck(timeout_ms), json_out, error); });
}

int porthole_set_log_fd(porthole_node* node, int fd, porthole_error* error) {
  if (!node) return invalid("no node", error);
  return with_node(node, error, [&](const std::shared_ptr<NodeRuntime>& runtime) { return finish(runtime->set_log_fd(fd), error); });
}

void porthole_free(void* memory) { std::free(memory); }
const char* porthole_version(void) { return PORTHOLE_VERSION; }
}
