// The whole node as one sans-I/O object: control client, WireGuard, paths, relays, packet filter and netstack, wired
// together. It decides nothing that belongs to one of them; it routes bytes, time and facts between them.
//
//   UDP datagram -> paths (STUN, disco) or tunnel -> packet filter -> TSMP or netstack -> app sockets
//   app sockets -> netstack -> tunnel (seals) -> paths says where -> UDP and/or relay
//
// How to run it (runtime and simulator do the same): call the handle_* functions as things happen; then settle():
// it lets packets out and must be followed by poll_action(), poll_event() and stack().poll_event() until empty, and
// stream bytes moved with produce(). Arm one timer for next_timeout(). One thread at a time.
//
//   engine.cpp          commands, bytes, time, what a status shows
//   engine_tunnel.cpp   what the tunnel asks and tells, TSMP
//   engine_netmap.cpp   what the control client, the paths and the relays tell
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "base/datagram.h"
#include "base/log.h"
#include "base/stream.h"
#include "base/time.h"
#include "control/control_client.h"
#include "control/packet_filter.h"
#include "derp/derp_client.h"
#include "derp/latency_probe.h"
#include "netstack/stack.h"
#include "paths/paths.h"
#include "proxy/names.h"
#include "wg/tunnel.h"
#include "wire/tsmp.h"

namespace porthole::node {

struct EngineConfig {
  control::ControlConfig control;
  bool relay_only = false;
  bool udp_enabled = true;
  // Of the last run; zero: there was none. The key is kept when the port is the same.
  crypto::DiscoPrivate last_disco_key;
  std::uint16_t last_udp_port = 0;
  bool fixed_port = false;             // the UDP port was configured
  bool plain_relays = false;           // every relay without TLS, for laboratories
  // saved_map() of the last run: peers can be reached before the coordinator has answered. Damaged or foreign: ignored.
  std::string saved_map;
  netstack::StackConfig stack;
};

enum class NodeState {
  kStopped,
  kStarting,      // connecting to the coordinator, or not reachable for peers yet
  kNeedsLogin,    // a person must visit the login URL, or the key was refused
  kNeedsApproval,
  kRunning,       // has addresses, and peers can reach it
  kExpired,
  kLoggedOut,
  kFailed,
};
std::string_view to_string(NodeState state);
// "film" of "film.home.example".
std::string first_label(std::string_view fqdn);

struct StateEvent { NodeState state = NodeState::kStopped; std::optional<Error> error; };
struct RunningEvent { std::vector<IpAddress> addresses; };
struct LoginUrlEvent { std::string url; };
struct PathEvent { std::string peer; NodePublic key; std::optional<Endpoint> direct; std::optional<int> relay_region; Duration latency{}; };
// What must be stored before anything else leaves (keys), or soon (the rest): read persistent() and save it.
struct PersistEvent {};
struct PeersEvent { std::vector<std::string> added, removed; };   // names
// An encrypted session with the peer is up; answers probe_peer().
struct PeerReadyEvent { NodePublic key; };
struct PingEvent { paths::PingResult result; };
struct NetcheckEvent { paths::NetcheckReport report; };
struct ResolveEvent { std::string host; };                        // answer with resolved()
struct RebindEvent { std::string reason; };                       // replace the UDP sockets, then handle_rebind()
struct NoticeEvent { Error error; };                              // worth showing; changes nothing
struct LoggedOutEvent {};
using Event = std::variant<StateEvent, RunningEvent, LoginUrlEvent, PathEvent, PersistEvent, PeersEvent, PeerReadyEvent, PingEvent,
                           NetcheckEvent, ResolveEvent, RebindEvent, NoticeEvent, LoggedOutEvent>;

// Facts to keep across restarts.
struct Persistent {
  NodePublic node_key;                  // of control().node_key(): store the private one
  std::optional<MachinePublic> control_key;
  bool registered = false;
  std::string login_name;
  std::vector<IpAddress> addresses;
  wg::StampLease stamps;                // store `until`, and `used` instead when nothing will be sent any more
};
// For a new run of a node whose store says `used`: what it may use before it writes again. Store `until` before the start.
wg::StampLease lease_stamps(const wg::Tai64n& used, WallTime now);

struct PeerStatus {
  std::string name;                     // first label
  std::string fqdn;
  std::string user;
  std::string stable_id;
  NodePublic key;
  std::vector<IpAddress> addresses;
  std::vector<std::string> tags;
  std::string os;                       // empty: unknown
  std::optional<bool> online;
  std::optional<WallTime> last_seen;    // by the coordinator, while offline
  bool expired = false;
  wg::PeerStats tunnel;
  std::optional<paths::PeerPath> path;
};

class Engine final : private wg::Host, private derp::DerpHost {
 public:
  // `out` gets UDP datagrams only. All must outlive the engine.
  Engine(EngineConfig config, crypto::MachinePrivate machine_key, crypto::NodePrivate node_key, const wg::StampLease& stamps,
         DatagramSink& out, Rng& rng, Log& log, Clock clock);
  ~Engine() override;
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // ---- commands
  // After set_local_addresses().
  void start(Clock clock);
  void login(Clock clock, crypto::SecretText auth_key);
  void logout(Clock clock);
  void set_local_addresses(Clock clock, std::span<const paths::InterfaceAddress> addresses, std::uint16_t port_v4,
                           std::uint16_t port_v6);
  void handle_rebind(Clock clock);
  // The host's network changed: connections are replaced, paths doubted.
  void network_changed(Clock clock);
  // Brings up a session with the peer: PeerReadyEvent follows (at once if it is up). False: no such peer.
  bool probe_peer(Clock clock, const NodePublic& key);
  bool peer_ready(const NodePublic& key) const;
  // PingEvent follows each: with the way a disco message took, or after a round trip through the tunnel to the peer's
  // node (TSMP) at one of its addresses.
  void ping(Clock clock, std::uint64_t token, const NodePublic& key);
  void tsmp_ping(Clock clock, std::uint64_t token, const NodePublic& key, const IpAddress& address);
  void netcheck(Clock clock);
  void resolved(Clock clock, const std::string& host, std::span<const IpAddress> addresses);

  // ---- network
  void handle_datagrams(Clock clock, std::span<const RecvDatagram> batch);
  void handle_send_error(Clock clock, const Endpoint& destination, paths::SendErrorKind kind);
  std::optional<StreamAction> poll_action();
  void stream_opened(Clock clock, StreamId id, const StreamInfo& info);
  void stream_failed(Clock clock, StreamId id, const Error& error);
  void stream_closed(Clock clock, StreamId id, const std::optional<Error>& error);
  Result<std::size_t> consume(Clock clock, StreamId id, MutBytes bytes);
  std::size_t produce(Clock clock, StreamId id, MutBytes out);
  bool has_output(StreamId id) const;

  // ---- time and output
  void handle_timeout(Clock clock);
  Deadline next_timeout() const;
  void settle(Clock clock);
  // Packets wait that settle() could send now.
  bool wants_settle() const { return output_waits_ && !relay_full(); }
  std::optional<Event> poll_event();

  // ---- sockets of the app
  netstack::Stack& stack() { return *stack_; }
  // For the next start; changes when map_version() does. Empty: there is none that may be used.
  std::string saved_map() const;
  std::uint64_t map_version() const { return map_version_; }
  // Name, FQDN or address literal -> tailnet addresses, IPv4 first.
  Result<std::vector<IpAddress>> resolve_name(std::string_view name) const;

  // ---- what is known
  NodeState state() const { return state_; }
  std::optional<Error> state_error() const { return state_error_; }
  const control::Netmap& netmap() const { return control_->netmap(); }
  const crypto::NodePrivate& node_key() const { return control_->node_key(); }
  const crypto::DiscoPrivate& disco_key() const { return disco_; }
  Persistent persistent() const;
  std::vector<IpAddress> own_addresses() const;
  std::optional<NodePublic> peer_of(const IpAddress& address) const;
  std::optional<PeerStatus> peer_status(Instant now, const NodePublic& key) const;
  std::vector<PeerStatus> peers(Instant now) const;
  std::string peer_name(const NodePublic& key) const;
  int home_region() const { return paths_->home_region(); }
  bool relay_connected() const { return relay_connected_; }
  const wg::Counters& tunnel_counters() const { return tunnel_->counters(); }
  paths::NetInfo net_info() const { return paths_->net_info(); }
  std::vector<paths::TypedEndpoint> endpoints() const { return paths_->endpoints(); }

 private:
  struct Peer {
    ts2021::NodeId id = 0;
    NodePublic key;
    std::string name;                   // first label
    wg::PeerId tunnel = wg::kNoPeer;
    paths::PathId path;
    int home_region = 0;
    bool jailed = false;
    std::vector<IpAddress> addresses;
    std::optional<Instant> joined;      // while the rules that came with the last whole map cannot name this peer
    bool blocked = false;               // the netstack was told that there is no session
    bool silent = false;                // the netstack was told that there is no path
    Instant heard;                      // newest authentic message
    Instant asked;                      // for a session, the first time since there was none
    Instant established;                // newest session that was not renewed for want of answers
    Instant renewed;                    // newest renewal for want of answers
    std::optional<bool> direct;         // last path kind told to the netstack
  };
  // A handshake in its first seconds, when a lost initiation is repeated quickly.
  struct Hurry {
    Instant next;
    Instant until;
    Duration interval{};
  };
  struct TsmpPing {
    std::uint64_t token = 0;
    NodePublic key;
    wire::tsmp::PingData data{};
    Instant sent;
  };
  class TunnelSink;
  class PathsSink;

  // wg::Host
  bool admit(const NodePublic& key) override;
  void transmit(wg::PeerId peer, Bytes run, std::size_t segment_size) override;
  void reply(const wg::Source& to, Bytes datagram) override;
  void deliver(wg::PeerId peer, std::span<const MutBytes> packets) override;
  void authenticated(wg::PeerId peer, const wg::Source& source) override;
  void stray(const wg::Source& source) override;
  void session(wg::PeerId peer, wg::SessionState state) override;
  // derp::DerpHost
  void relay_packet(Instant now, int region, const NodePublic& source, MutBytes data) override;
  void relay_heard(Instant now, int region) override;

  Peer* by_tunnel(wg::PeerId id);
  const Peer* by_key(const NodePublic& key) const;
  void send_relayed(int region, const NodePublic& key, Bytes run, std::size_t segment_size);
  void handle_tsmp(const Peer& peer, Bytes packet);
  void send_own_disco_key(const Peer& peer);
  void expire_tsmp_pings();
  bool relay_full() const;               // a relay connection takes no more for now
  void unanswered(const IpAddress& address);
  void path_changed(const Peer& peer, netstack::PathChange kind);
  void set_blocked(Peer& peer, bool blocked);
  void answer_stray();
  void renew_stamps();

  void drain_control();
  void drain_paths();
  void drain_derp();
  void drain_latencies();
  void apply_netmap(const control::NetmapChange& change);
  void upsert_peer(const ts2021::Node& node, std::vector<std::string>& added);
  void remove_peer(ts2021::NodeId id, std::vector<std::string>* removed);
  void rebuild_names();
  void update_relay_map();
  void set_state(NodeState state, std::optional<Error> error = {});
  void check_running();
  void stop_data_plane();
  void refused(const Peer& peer, Bytes packet);
  void emit(Event event);

  EngineConfig config_;
  wg::StampLease stamps_;
  DatagramSink& out_;
  Rng& rng_;
  Clock clock_;                          // of the call being handled

  std::unique_ptr<PathsSink> paths_sink_;
  std::unique_ptr<control::ControlClient> control_;
  std::unique_ptr<wg::Tunnel> tunnel_;
  std::unique_ptr<paths::Paths> paths_;
  std::unique_ptr<derp::DerpClient> derp_;
  std::unique_ptr<derp::LatencyProbe> latencies_;
  std::unique_ptr<netstack::Stack> stack_;
  control::PacketFilter filter_;
  proxy::NameTable names_;

  std::map<ts2021::NodeId, Peer> peers_;
  std::vector<Peer*> by_tunnel_;         // index: wg::PeerId
  std::map<NodePublic, ts2021::NodeId> by_key_;
  std::map<wg::PeerId, Hurry> hurry_;
  bool restored_ = false;               // the map in use is the last run's
  std::uint64_t map_version_ = 0;
  std::optional<wg::Source> stray_;      // where a message for an unknown session came from; looked at every kStrayEvery
  Instant stray_seen_;
  std::vector<wg::PeerId> gone_silent_;  // to tell the netstack of, outside the tunnel's calls
  std::set<NodePublic> probes_;          // PeerReadyEvent wanted
  std::vector<TsmpPing> tsmp_pings_;     // oldest first
  std::vector<MutBytes> accepted_;       // scratch of deliver()
  crypto::DiscoPrivate disco_;           // chosen by start()
  std::uint16_t udp_port_ = 0;           // IPv4's
  bool plain_control_ = false;           // the coordinator is reached over http://
  NodePublic installed_key_;             // node key that tunnel, paths and relays run with
  NodeState state_ = NodeState::kStopped;
  std::optional<Error> state_error_;
  bool relay_connected_ = false;         // to the home region
  bool running_told_ = false;
  bool output_waits_ = false;            // the netstack had more than the sinks took
  std::optional<Instant> map_at_;        // when the first map came
  std::optional<Instant> rules_due_;     // without new rules until then the whole map is asked for
  bool registered_ = false;
  std::string login_name_;
  std::vector<IpAddress> stored_addresses_, local_addresses_;
  std::optional<MachinePublic> control_key_;
  std::vector<Event> events_;
  std::size_t events_at_ = 0;
};

}  // namespace porthole::node
