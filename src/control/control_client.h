// The client side of the control connection as one sans-I/O machine: fetch the server's key, open the Noise connection,
// register (pre-auth key, stored node key or a person with a browser), keep the map stream alive, and tell what the
// tailnet looks like. Tailscale control protocol (ts2021); works with Headscale, with our coordinator and with
// Tailscale's service.
//
// How to run it: start(); then after every call that may have done something, in this order:
//   poll_event() until empty   (NodeKeyChanged: persist the key before the next step)
//   poll_action() until empty  (open and close streams)
//   for open streams with has_output(): produce() and send
//   arm a timer for next_timeout(), call handle_timeout() then (early or late calls do no harm).
// Stream ids are config.first_stream_id and upward, each used once; a CloseStream may name one that has ended already.
// Single-threaded, no callbacks.
//
// It keeps trying for ever with backoff; only kFailed (a server key that differs from the pinned one, tailnet lock),
// kNeedsLogin and kLoggedOut need someone: a person, or start() / login() again.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/ip.h"
#include "base/key.h"
#include "base/log.h"
#include "base/result.h"
#include "base/rng.h"
#include "base/stream.h"
#include "base/time.h"
#include "control/netmap.h"
#include "crypto/secret.h"
#include "ts2021/messages.h"

namespace porthole::control {

struct ControlConfig {
  std::string url;                    // "https://control.example.com[:port]" or "http://..."
  crypto::SecretText auth_key;        // empty: interactive login when the node key does not suffice
  bool ephemeral = false;
  std::uint16_t capability_version = ts2021::kCapabilityVersion;
  // Hostname, OS, IPNVersion, App, RoutableIPs, RequestTags...; NetInfo is added by set_net_info().
  ts2021::Hostinfo hostinfo;
  // The server's Noise key from an earlier run (ControlKeyLearned). Saves a round trip: the connection starts with it
  // while /key is fetched beside it; a different answer ends in kFailed rather than in trust.
  std::optional<MachinePublic> cached_control_key;
  // The last registration with the stored node key succeeded: ask for the map together with the registration.
  bool expect_registered = false;
  StreamId first_stream_id = 1;
  bool zstd = true;                   // ask for compressed map messages
};

enum class ControlState {
  kIdle,          // before start()
  kConnecting,    // fetching the key, handshaking, registering, waiting for the first map
  kNeedsLogin,    // a person must visit LoginUrl, or the pre-auth key was refused (see the error)
  kNeedsApproval, // registered; an admin has to approve this machine
  kRunning,       // map received and stream alive
  kReconnecting,  // had a map; the connection is being re-established (the netmap stays usable)
  kExpired,       // node key expired: the data plane must stop; a new key is being registered
  kLoggedOut,     // after logout(), or the node was deleted at the server
  kFailed,        // cannot go on without a change of configuration
};
std::string_view to_string(ControlState state);

struct StateChanged {
  ControlState state = ControlState::kIdle;
  std::optional<Error> error;  // why, for kNeedsLogin, kReconnecting, kLoggedOut, kFailed
};
// Show this to a person. A later LoginUrl replaces it.
struct LoginUrl {
  std::string url;
};
// node_key() is new: persist it before producing more bytes, or a crash loses the identity it is registered under.
struct NodeKeyChanged {
  NodePublic key;
  NodePublic previous;  // zero when there was none
};
// The server's Noise key: store it and pass it as cached_control_key next time.
struct ControlKeyLearned {
  MachinePublic key;
};
// The registration was accepted: store that expect_registered may be set next time.
struct Registered {
  ts2021::User user;
  ts2021::Login login;
};
struct NetmapChanged {
  NetmapChange change;
};
// Something worth showing or logging that changes no state: a failed attempt, a refused update, clock skew. Repeats of
// the same text are suppressed for a minute.
struct ControlNotice {
  Error error;
};
struct HealthChanged {
  std::vector<std::string> messages;
};
// PopBrowserURL: open once.
struct OpenUrl {
  std::string url;
};
struct LoggedOut {};
using ControlEvent = std::variant<StateChanged, LoginUrl, NodeKeyChanged, ControlKeyLearned, Registered, NetmapChanged,
                                  ControlNotice, HealthChanged, OpenUrl, LoggedOut>;

struct AnnouncedEndpoint {
  Endpoint endpoint;
  ts2021::EndpointType type = ts2021::EndpointType::kUnknown;
  friend bool operator==(const AnnouncedEndpoint&, const AnnouncedEndpoint&) = default;
};

class ControlClient {
 public:
  // `machine_key` must not be zero. A zero `node_key` is generated (NodeKeyChanged follows start()).
  ControlClient(ControlConfig config, crypto::MachinePrivate machine_key, crypto::NodePrivate node_key, Rng& rng,
                Log& log);
  ~ControlClient();
  ControlClient(const ControlClient&) = delete;
  ControlClient& operator=(const ControlClient&) = delete;

  // ---- commands ----
  // Before start(): the map of the last run, as saved_map() gave it, holds until the server has sent its own: NetmapChanged
  // follows. False, and nothing happens: not a map of this node key, damaged, or expired.
  bool restore_map(Clock clock, Bytes saved);
  void start(Clock clock);
  // After kNeedsLogin or kLoggedOut: try again, with another pre-auth key if given. After kLoggedOut the node key is
  // replaced.
  void login(Clock clock, crypto::SecretText auth_key);
  // Tells the server that this node leaves; LoggedOut and kLoggedOut follow when it has answered, or after 10 s.
  void logout(Clock clock);
  // The data plane wonders whether this node still belongs to its tailnet (peers do not answer): asks the server.
  void check_membership(Clock clock);
  // The data plane has reason to think that the server kept something from it: asks for the whole map again, soon. What is
  // known holds until the answer. Nothing happens when a whole map is on its way anyhow.
  void refresh_map(Clock clock);
  // The machine's network changed: existing connections are replaced at once.
  void network_changed(Clock clock);
  // Closes everything; no further events. The node stays registered.
  void stop();

  // State for the server. Changes are sent as lite updates, at most one per second.
  void set_disco_key(Clock clock, const DiscoPublic& key);
  void set_endpoints(Clock clock, std::vector<AnnouncedEndpoint> endpoints);
  void set_net_info(Clock clock, ts2021::NetInfo net_info);  // PreferredDERP is the home relay
  void set_hostinfo(Clock clock, ts2021::Hostinfo hostinfo); // its net_info is ignored

  // ---- streams ----
  std::optional<StreamAction> poll_action();
  void stream_opened(Clock clock, StreamId id, const StreamInfo& info);
  void stream_failed(Clock clock, StreamId id, const Error& error);
  // The other side closed, or the stream broke (error set).
  void stream_closed(Clock clock, StreamId id, const std::optional<Error>& error);
  // Takes all bytes. Errors are handled inside; the result is always bytes.size() for a stream of ours.
  Result<std::size_t> consume(Clock clock, StreamId id, Bytes bytes);
  std::size_t produce(Clock clock, StreamId id, MutBytes out);
  bool has_output(StreamId id) const;

  // ---- time ----
  void handle_timeout(Clock clock);
  Deadline next_timeout() const;

  // ---- what is known ----
  std::optional<ControlEvent> poll_event();
  ControlState state() const;
  const Netmap& netmap() const;
  // The map for the next run's restore_map(); JSON, no secrets, private all the same. Empty: no map.
  std::string saved_map() const;
  const crypto::NodePrivate& node_key() const;
  // nullopt until known.
  std::optional<MachinePublic> control_key() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace porthole::control
