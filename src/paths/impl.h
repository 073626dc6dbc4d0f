// The insides of Paths. One struct, four files by theme:
//   paths.cpp       configuration, peer table, queries
//   peer_paths.cpp  the per-peer machine: sending, rounds, pongs, timers
//   disco_io.cpp    sealed messages in and out, receive index
//   gathering.cpp   netcheck, announced endpoints, home region
#pragma once

#include <deque>
#include <map>
#include <set>
#include <unordered_map>

#include "crypto/dh.h"
#include "paths/gather.h"
#include "paths/home.h"
#include "paths/netcheck.h"
#include "paths/paths.h"
#include "paths/peer.h"
#include "paths/timer_heap.h"
#include "wire/disco.h"

namespace porthole::paths {

struct Paths::Impl {
  Impl(DatagramSink& s, Rng& r, Log& l) : sink(s), rng(r), log(l), netcheck(s, r, counters), home_seed(r.u64()) {}

  DatagramSink& sink;
  Rng& rng;
  Log& log;
  Counters counters;
  std::deque<Event> events;
  Mode mode;

  // ---- keys and peers ----
  crypto::DiscoPrivate disco_private;
  DiscoPublic disco_public;
  NodePublic own_node;

  // Peers by a disco key. Usually one; the same key may serve several nodes (accounts switched, shared nodes).
  struct DiscoEntry {
    std::vector<std::uint32_t> slots;
    std::optional<crypto::BoxKey> box;   // made on first use: a key agreement costs as much as thousands of lookups
    bool box_tried = false;
  };
  std::vector<std::unique_ptr<Peer>> slots;
  std::vector<std::uint32_t> generations;
  std::vector<std::uint32_t> free_slots;
  std::unordered_map<NodePublic, std::uint32_t> by_key;
  std::unordered_map<DiscoPublic, DiscoEntry> by_disco;
  std::unordered_map<Endpoint, std::uint32_t> by_source;
  std::uint64_t peer_list = 0;           // number of the current full set
  TimerHeap timers;

  bool has_keys() const { return !disco_public.is_zero(); }
  bool udp_to_peers() const { return mode.udp_enabled && !mode.relay_only; }
  bool family_bound(const Endpoint& e) const { return (e.address.is_v4() ? port_v4 : port_v6) != 0; }
  Peer* peer_of(const NodePublic& key);
  Peer* peer_of(PathId id);
  Peer* upsert(Instant now, const PeerConfig& config);
  void remove(Instant now, Peer& p);
  void set_disco(Peer& p, const DiscoPublic& disco);
  bool set_map_endpoints(Instant now, Peer& p, const std::vector<Endpoint>& endpoints);
  void drop(Drop reason) { ++counters.drops[static_cast<std::size_t>(reason)]; }

  // ---- per-peer machine (peer_paths.cpp) ----
  Route route(Instant now, Peer& p);
  void note_use(Instant now, Peer& p);
  void full_round(Instant now, Peer& p, bool call_me_maybe);
  void came_otherwise(Instant now, Peer& p);
  void try_again(Instant now, Peer& p);  // news about an active peer without trusted path: look at once
  void start_burst(Instant now, Peer& p);
  void burst(Instant now, Peer& p);
  void heartbeat(Instant now, Peer& p);
  void check_doubt(Instant now, Peer& p);
  void expire_pings(Instant now, Peer& p);
  bool wants_full_round(Instant now, const Peer& p) const;
  void peer_timeout(Instant now, Peer& p);
  void reschedule(Peer& p);
  void clear_best(Peer& p);
  void distrust(Peer& p);
  void forget_paths(Peer& p);
  void drop_dead_candidates(Instant now, Peer& p);
  Candidate* add_candidate(Instant now, Peer& p, const Endpoint& e);
  void update_relay(Peer& p);
  void update_relays();
  void report_path(Peer& p);

  void on_ping_udp(Instant now, const wire::disco::Ping& ping, const DiscoPublic& sender, DiscoEntry& entry,
                   const Endpoint& source);
  void on_ping_relay(Instant now, const wire::disco::Ping& ping, const DiscoPublic& sender, DiscoEntry& entry, int region,
                     Peer& p);
  void on_pong(Instant now, const wire::disco::Pong& pong, DiscoEntry& entry, const Endpoint* source, int region);
  void on_call_me_maybe(Instant now, const wire::disco::CallMeMaybe& m, Peer& p);
  void ping_back(Instant now, Peer& p, Candidate& c);

  // ---- disco in and out (disco_io.cpp) ----
  ByteVector sealed, opened;             // scratch, sized once
  const crypto::BoxKey* box_for(const DiscoPublic& key, DiscoEntry& entry);
  Bytes seal(const crypto::BoxKey& box, Bytes plain);
  bool send_ping(Instant now, Peer& p, const Endpoint& to, PingPurpose purpose, std::size_t wire_size = 0,
                 std::uint64_t token = 0);
  bool send_relay_ping(Instant now, Peer& p, std::uint64_t token);
  Bytes make_ping(Peer& p, const wire::disco::TxId& id, std::size_t padding);
  wire::disco::TxId new_tx_id();
  void remember_ping(Peer& p, const SentPing& ping);
  void queue_call_me_maybe(Instant now, Peer& p);
  void send_call_me_maybe(Peer& p);
  void handle_disco(Instant now, Bytes packet, const Endpoint* source, int region, Peer* relay_peer);
  void index_source(Peer& p, const Endpoint& source);

  struct CliPing {
    std::uint64_t token = 0;
    NodePublic key;
    Instant deadline;
    std::size_t size = 0;
    bool sent = false;
  };
  std::vector<CliPing> cli_pings;        // ascending by deadline
  bool send_cli_ping(Instant now, const CliPing& ping);
  void send_waiting_pings(Instant now);  // news that may have made a way to somebody
  void finish_cli_ping(const SentPing& ping, const Peer& p, Duration latency);
  void expire_cli_pings(Instant now);

  // ---- gathering (gathering.cpp) ----
  Netcheck netcheck;
  std::uint64_t home_seed;
  bool relay_map_known = false;
  std::vector<RelayRegion> regions;      // ascending by id
  std::set<int> connected_regions;
  std::map<int, double> scores;
  std::map<int, Instant> heard;
  HomeHistory history;
  int home = 0;
  bool control_connected = true;

  bool local_known = false;
  LocalAddresses local;
  std::uint16_t port_v4 = 0, port_v6 = 0;
  std::vector<TypedEndpoint> extra;
  EndpointTracker tracker;
  std::vector<TypedEndpoint> announced;
  bool announced_once = false;

  bool run_again = false, run_again_full = false;   // asked for during a run, or before one could start
  bool report_wanted = false, report_this_run = false;
  bool run_full = false;
  std::optional<Instant> last_full_run;
  std::optional<Instant> gathered_at;    // endpoints are as of then
  std::optional<Instant> last_run_end;
  std::optional<Instant> periodic_at;
  std::optional<Instant> last_traffic;
  std::optional<Instant> last_rebind_wish;
  std::map<int, RegionLatency> last_latencies;
  NetInfo info;
  std::vector<PathId> waiting_for_endpoints;

  bool region_known(int region) const;
  const RelayRegion* find_region(int region) const;
  bool may_gather() const { return relay_map_known && local_known && has_keys(); }
  void request_gather(Instant now, bool full);
  void restart_gather(Instant now, bool full);
  void start_run(Instant now);
  void finish_run(Instant now);
  void pump_netcheck(Instant now);
  void early_results(Instant now);
  void update_endpoints(Instant now);
  void release_call_me_maybes(Instant now);
  void arm_periodic(Instant now);
  void choose_home_now(Instant now);
  void set_home(int region);
  std::vector<int> home_candidates() const;
  RegionLatencies home_latencies() const;
  void update_net_info(const NetcheckReport& report);
};

}  // namespace porthole::paths
