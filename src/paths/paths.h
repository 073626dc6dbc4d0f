// The path layer: which way datagrams to a peer go, and how the way is found.
//
// One Paths object per node. It owns no socket: datagrams, the clock and randomness are handed in; datagrams leave
// through a DatagramSink and everything else the node must know leaves as an Event. It does four things:
//
//   gathering      which addresses others may reach us at: interface addresses and STUN (RFC 8489) answers
//   netcheck       latency per relay region, home region, "hard NAT" detection, NetInfo for the control server
//   disco          sealed ping / pong / CallMeMaybe with each peer over UDP and relays (Tailscale disco protocol)
//   path choice    per peer: the best confirmed UDP address, how long it is trusted, when the relay is used as well
//
// The rule everything follows: only a pong that matches one of our own pings makes or keeps a path. Received data never
// does, since a path can be open one way only. Nothing is probed for a peer that no traffic goes to.
//
// Use by one thread at a time; the sink must not call back into the object. route(), peer_at(), note_authenticated() and handle_udp() of WireGuard datagrams neither
// allocate nor log in the steady state. A node without relays, or with UDP blocked, works with what is left.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "base/datagram.h"
#include "base/ip.h"
#include "base/key.h"
#include "base/log.h"
#include "base/rng.h"
#include "base/time.h"
#include "crypto/secret.h"

namespace porthole::paths {

// ---- what goes in -----------------------------------------------------------------------------------------------

// A peer as the network map describes it.
struct PeerConfig {
  NodePublic key;
  DiscoPublic disco;                // zero: no disco, reachable through relays only
  std::vector<Endpoint> endpoints;  // candidates; unusable ones (port 0, multicast, tunnel ranges) are skipped
  int home_region = 0;              // 0: none known
  bool expired = false;             // node key expired: route() refuses
};

// One node of a relay region, with the fields exactly as the relay map carries them.
struct RelayNode {
  std::string name;
  std::string host_name;     // DNS name or address literal
  std::string ipv4;          // empty: resolve host_name; a literal: that; anything else ("none"): family off
  std::string ipv6;          // same
  int stun_port = 0;         // 0: 3478; negative or above 65535: no STUN
  bool stun_only = false;    // not a relay, but answers STUN
  std::string stun_test_ip;  // tests: STUN goes to this address instead, in its own family only
  friend bool operator==(const RelayNode&, const RelayNode&) = default;
};

struct RelayRegion {
  int id = 0;                // 1..65535; others are ignored
  std::string code;          // display only
  std::vector<RelayNode> nodes;
  double score = 1.0;        // latency multiplier for the home choice; values <= 0 count as 1
  bool avoid = false;        // not probed in short netchecks unless it is home
  bool no_measure_no_home = false;
  friend bool operator==(const RelayRegion&, const RelayRegion&) = default;
};

struct RelayMap {
  std::vector<RelayRegion> regions;
};

struct InterfaceAddress {
  std::string interface_name;
  IpAddress address;
  int prefix_bits = 0;
  bool up = true;
  bool loopback = false;     // the interface is the loopback one
  friend bool operator==(const InterfaceAddress&, const InterfaceAddress&) = default;
};

struct Mode {
  bool relay_only = false;   // never send UDP to peers, never answer their UDP pings, announce no endpoint; STUN goes on
  bool udp_enabled = true;   // false: no UDP at all, not even STUN
  bool fixed_port = false;   // the local port was configured: behind a hard NAT also announce "public IP + local port"
  friend bool operator==(const Mode&, const Mode&) = default;
};

// The numbers are those of the control protocol's EndpointTypes.
enum class EndpointType { kLocal = 1, kStun = 2, kPortMapped = 3, kStunLocalPort = 4, kExplicit = 5 };

struct TypedEndpoint {
  Endpoint endpoint;
  EndpointType type = EndpointType::kLocal;
  friend constexpr auto operator<=>(const TypedEndpoint&, const TypedEndpoint&) = default;
};

enum class SendErrorKind {
  kHostUnreachable,   // EHOSTUNREACH, ENETUNREACH: the address is dropped as best path at once
  kSocketBroken,      // EPIPE, ENOTCONN, closed: asks for a rebind
  kNotPermitted,      // EPERM on data: asks for a rebind (security software)
  kOther,             // counted only (EMSGSIZE of a probe, ENOBUFS)
};

// ---- what comes out ---------------------------------------------------------------------------------------------

// Where WireGuard datagrams to a peer go right now. Both set: send the same datagram on both.
struct Route {
  std::optional<Endpoint> udp;
  std::optional<int> relay_region;
  bool known() const { return udp.has_value() || relay_region.has_value(); }
};

// A handle that makes route() an array access. Stale handles (peer removed) are recognised.
struct PathId {
  std::uint32_t slot = UINT32_MAX;
  std::uint32_t generation = 0;
  bool is_valid() const { return slot != UINT32_MAX; }
  friend constexpr auto operator<=>(const PathId&, const PathId&) = default;
};

// For the control server (Hostinfo.NetInfo). Unset optionals mean "unknown" and are left out there.
struct NetInfo {
  std::optional<bool> mapping_varies_by_dest_ip;
  std::optional<bool> working_ipv6;
  std::optional<bool> os_has_ipv6;
  std::optional<bool> working_udp;
  int preferred_region = 0;                      // 0: no home
  std::map<std::string, double> relay_latency;   // "<region>-v4" / "<region>-v6" -> seconds
};

struct RegionLatency {
  int region = 0;
  std::optional<Duration> v4;
  std::optional<Duration> v6;
  // The lower of the two; at least one is set.
  Duration best() const { return !v4 ? *v6 : !v6 ? *v4 : *v4 < *v6 ? *v4 : *v6; }
};

struct NetcheckReport {
  bool full = false;
  bool udp = false;                          // any STUN answer
  bool ipv4 = false, ipv6 = false;           // an answer by that family: of STUN, or of a relay where UDP is blocked
  std::optional<bool> mapping_varies;        // unset: fewer than two IPv4 answers
  std::optional<Endpoint> global_v4, global_v6;
  std::vector<RegionLatency> regions;        // answered regions, ascending by id; by HTTP when `udp` is false
  int home_region = 0;                       // after the choice
  Duration took{};
};

struct EndpointsChanged { std::vector<TypedEndpoint> endpoints; };   // the whole list, in announcement order
struct HomeRegionChanged { int region = 0; };                        // 0: none
struct NetInfoChanged {};                                            // more than latencies changed: read net_info()
// The path of a peer in use changed (also: a route appeared for a peer whose route() was unknown: send what waited).
struct PeerPathChanged {
  NodePublic key;
  std::optional<Endpoint> direct;     // confirmed UDP address
  std::optional<int> relay_region;    // used while `direct` is unset or doubtful
  Duration latency{};                 // of `direct`
};
// The control server announced a new disco key: the peer restarted, its WireGuard session must be discarded now.
struct PeerRestarted { NodePublic key; };
struct PingResult {
  std::uint64_t token = 0;
  NodePublic key;
  bool answered = false;              // false: nothing came back in time
  bool sent = false;                  // false: no way to send it became known in time
  std::optional<Endpoint> endpoint;   // the address that was pinged ...
  std::optional<int> relay_region;    // ... or the relay it went through
  Duration latency{};
};
// No STUN server answered: how far are these relays by HTTP? Answer each with relay_measured(), soon; the run waits for
// them up to its own end. A newer request replaces an older one.
struct MeasureRelays { std::vector<int> regions; };
struct ResolveRequest { std::string host; };     // answer with resolved(); at most one request per name is open
struct NetcheckDone { NetcheckReport report; };
struct RebindWanted { std::string reason; };     // rebind the sockets, then handle_rebind()

using Event = std::variant<EndpointsChanged, HomeRegionChanged, NetInfoChanged, PeerPathChanged, PeerRestarted, PingResult,
                           MeasureRelays, ResolveRequest, NetcheckDone, RebindWanted>;

struct CandidateStatus {
  Endpoint endpoint;
  bool from_map = false, from_call_me_maybe = false, learned = false;
  std::optional<Duration> latency;    // of the last pong, if any
};

// Why traffic to a peer does not go by UDP alone, as facts for a program and a sentence for a person.
struct NotDirect {
  enum class Reason {
    kNone,            // it is direct
    kKeyExpired, kUdpOff, kRelayOnly,
    kNoDisco,         // the peer does not take part in path discovery
    kNoEndpoints,     // and nothing was heard from it by UDP
    kNotTried,        // nothing was sent to it yet
    kIdle,            // 45 s without traffic: nothing is probed
    kStopped,         // there was a direct path; it is being looked for again
    kUdpBlocked,      // no STUN server answers either
    kNoAnswer,
  };
  Reason reason = Reason::kNone;
  std::size_t addresses = 0;          // of the peer, that are being pinged
  Duration silent{};                  // since the first ping of this search; kStopped, kUdpBlocked, kNoAnswer
  bool hard_nat = false;              // our NAT changes ports by destination; kNoAnswer
  friend bool operator==(const NotDirect&, const NotDirect&) = default;
};
// One plain sentence without a capital; empty for kNone.
std::string to_text(const NotDirect& why);

struct PeerPath {
  NodePublic key;
  std::optional<Endpoint> direct;
  bool trusted = false;               // `direct` was confirmed within the last 6.5 s
  Duration latency{};                 // of `direct`
  std::optional<int> relay_region;
  bool active = false;                // traffic went to the peer within the last 45 s
  std::vector<CandidateStatus> candidates;
  NotDirect not_direct;
};

enum class Drop {
  kStunMalformed, kStunUnknownTransaction,
  kGeneve,                 // peer-relay encapsulation, not used by this node
  kDiscoMalformed, kDiscoUnknownSender, kDiscoOwnKey, kDiscoOpenFailed, kDiscoUnknownType,
  kDiscoWrongTransport,    // CallMeMaybe over UDP, UDP ping in relay-only mode
  kDiscoWrongNode,         // relay source and disco key do not belong together
  kDiscoDuplicatePing, kDiscoUnknownPong, kDiscoCandidateGone,
  kRelayUnknownSource,
  kNotReady,               // no keys yet
  kCount
};
std::string_view to_string(Drop reason);

struct Counters {
  std::uint64_t stun_sent = 0, stun_received = 0;
  std::uint64_t pings_sent = 0, pings_received = 0, pongs_sent = 0, pongs_received = 0;
  std::uint64_t call_me_maybe_sent = 0, call_me_maybe_received = 0;
  std::uint64_t netchecks = 0, rebinds = 0, send_errors = 0;
  std::array<std::uint64_t, static_cast<std::size_t>(Drop::kCount)> drops{};
};

// ---- the machine ------------------------------------------------------------------------------------------------

class Paths {
 public:
  // The three must outlive the object. Datagrams are sent from within the calls below; none is made by the constructor.
  Paths(DatagramSink& sink, Rng& rng, Log& log);
  ~Paths();
  Paths(const Paths&) = delete;
  Paths& operator=(const Paths&) = delete;

  // Own keys. A change drops all shared keys and gathers anew.
  void set_keys(Instant now, const crypto::DiscoPrivate& disco, const NodePublic& own_node);
  DiscoPublic own_disco() const;

  void set_relay_map(Instant now, const RelayMap& map);
  // Full set: peers not listed are removed. upsert / remove for deltas. Order of the span does not matter.
  void set_peers(Instant now, std::span<const PeerConfig> peers);
  void upsert_peer(Instant now, const PeerConfig& peer);
  void remove_peer(Instant now, const NodePublic& key);

  // All addresses of all interfaces (the rules of what is announced are applied here) and the bound UDP ports; port 0: no
  // socket of that family. A difference gathers anew. Call before or right after set_relay_map: nothing is announced
  // until both are known.
  void set_local_addresses(Instant now, std::span<const InterfaceAddress> addresses, std::uint16_t port_v4,
                           std::uint16_t port_v6);
  // Endpoints found elsewhere: port mappings (kPortMapped) and configured ones (kExplicit). Replaces the last set.
  void set_extra_endpoints(Instant now, std::span<const TypedEndpoint> endpoints);
  void set_mode(Instant now, const Mode& mode);

  // Control connection up or down (up until told otherwise): the home region never changes while it is down (peers could not learn of it).
  void note_control_connected(Instant now, bool connected);
  // A relay connection is open (handshake done), gone, or could again not be opened. For home the last two start a
  // netcheck, which may choose another.
  void note_relay_connected(Instant now, int region, bool connected);
  // Any frame came from that region (home choice). handle_relayed() implies it.
  void note_relay_heard(Instant now, int region);
  // The relay says the peer is not connected to it: the learned route is forgotten.
  void note_peer_gone(Instant now, int region, const NodePublic& key);

  // True: consumed (STUN, disco, unusable). False: a WireGuard datagram, untouched.
  bool handle_udp(Instant now, const RecvDatagram& datagram);
  // One packet from `source` through a relay. True: consumed (disco, unknown source). False: WireGuard.
  bool handle_relayed(Instant now, int region, const NodePublic& source, MutBytes packet);

  // Once per outgoing run of WireGuard datagrams (also handshakes; not our own keepalive timers' idle checks): notes that
  // traffic goes to the peer, starts discovery where needed, and answers where to send. Unknown: keep the datagrams,
  // PeerPathChanged tells when there is a route. For peers that are unknown or expired the answer is always unknown.
  Route route(Instant now, PathId id);
  Route route(Instant now, const NodePublic& key);
  // Invalid when there is no such peer. Stays the same until the peer is removed.
  PathId find(const NodePublic& key) const;

  // A WireGuard packet from this source was authenticated as this peer's: remembered for peer_at() and, for relays, as
  // the way back. Never changes where we send by UDP.
  void note_authenticated(Instant now, const NodePublic& key, const Endpoint& source);
  void note_authenticated_relay(Instant now, const NodePublic& key, int region);
  // Which peer datagrams from here probably belong to, by what arrived or else by where it says it is (a look at every
  // peer). A guess: WireGuard decides.
  std::optional<NodePublic> peer_at(const Endpoint& source) const;

  // The peer told us its disco key inside the tunnel (TSMP). Unlike a change through set_peers this is no restart.
  void disco_key_learned(Instant now, const NodePublic& key, const DiscoPublic& disco);

  // A ping for a person: every plausible way is tried at once, or the first that becomes known; the first pong (or 5 s of
  // silence) becomes a PingResult with `token`. size: wire size of the datagram to pad to (MTU probing), 0 for none.
  void ping(Instant now, std::uint64_t token, const NodePublic& key, std::size_t size = 0);

  // Answer to ResolveRequest; empty when the name could not be resolved.
  void resolved(Instant now, const std::string& host, std::span<const IpAddress> addresses);
  // Answer to MeasureRelays: the time of one request to the region by HTTP, and the family it went by; unset: no answer.
  void relay_measured(Instant now, int region, std::optional<Duration> took, bool v6);
  // A netcheck on demand; NetcheckDone follows (immediately available when there is nothing to measure). During a run:
  // exactly one more is made afterwards.
  void start_netcheck(Instant now, bool full);

  // The UDP sockets were replaced, or the network changed under them: paths of all peers are doubted, candidates stay.
  // Call set_local_addresses first when ports or addresses changed.
  void handle_rebind(Instant now);
  void handle_send_error(Instant now, const Endpoint& destination, SendErrorKind kind);

  void handle_timeout(Instant now);
  Deadline next_timeout() const;
  // Poll until empty after every call that is not a pure getter (route() included).
  std::optional<Event> poll_event();

  int home_region() const;                            // 0: none
  // The home of the last run, where peers will look for us first. After set_relay_map(); ignored once there is a home or
  // when the map has no such region.
  void restore_home(int region);
  std::vector<TypedEndpoint> endpoints() const;       // as last announced
  NetInfo net_info() const;
  std::optional<PeerPath> status(Instant now, const NodePublic& key) const;
  const Counters& counters() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace porthole::paths
