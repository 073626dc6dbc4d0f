// One netcheck run after the other: STUN requests to relay nodes, latencies per region, our address as others see it. When no
// STUN server answers, UDP is taken for blocked, and the rest of the run is for latencies that somebody else measures by HTTP.
//
// Requests must leave from the sockets that carry WireGuard, else the mapped port is worthless: they go out through the
// same DatagramSink, and answers come back through handle_response(). Latency counts from the send of the very packet
// that was answered.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/datagram.h"
#include "base/rng.h"
#include "paths/paths.h"
#include "paths/probe_plan.h"
#include "wire/stun.h"

namespace porthole::paths {

// Addresses of STUN servers that are known by name only. The lookups are somebody else's; requests wait in take_request().
class NameCache {
 public:
  // Known addresses; asks for the name when it is unknown, old or failed a while ago. Old ones are used meanwhile.
  std::span<const IpAddress> lookup(Instant now, const std::string& host);
  void resolved(Instant now, const std::string& host, std::span<const IpAddress> addresses);
  std::optional<std::string> take_request();
  // Forgets names not asked for since (a new relay map, a new network).
  void clear() { names_.clear(); }

 private:
  struct Name {
    std::vector<IpAddress> addresses;
    Instant at;
    bool asked = false;
    bool answered = false;
  };
  std::map<std::string, Name> names_;
  std::vector<std::string> requests_;
};

class Netcheck {
 public:
  Netcheck(DatagramSink& sink, Rng& rng, Counters& counters) : sink_(sink), rng_(rng), counters_(counters) {}

  // Starts a run with this plan; `regions` must stay unchanged until it ends. Call handle_timeout() next.
  void start(Instant now, std::span<const RelayRegion> regions, std::vector<ProbeSet> plan, bool full);
  bool running() const { return running_; }
  void abort() { running_ = false; }

  // Sends what is due and ends the run when nothing more can be learned.
  void handle_timeout(Instant now);
  Instant next_timeout() const { return running_ ? wake_ : Instant::max(); }
  // False: not the answer to a request of this run.
  bool handle_response(Instant now, const wire::stun::Response& response);
  void resolved(Instant now, const std::string& host, std::span<const IpAddress> addresses) {
    names_.resolved(now, host, addresses);
  }
  NameCache& names() { return names_; }
  // Regions to measure by HTTP; once per run, when STUN has failed.
  std::vector<int> take_measure_request() { return std::exchange(to_measure_, {}); }
  // Ignored unless it was asked for in this run.
  void relay_measured(Instant now, int region, std::optional<Duration> took, bool v6);

  // Results so far of the running, or of the last run.
  Instant started() const { return started_; }
  bool probed_anything() const { return probed_; }
  NetcheckReport report(Instant now) const;
  const std::map<int, RegionLatency>& latencies() const { return latencies_; }
  // Addresses to announce: the primary of each family, others only when seen twice (a mapping seen once belongs to one
  // server behind a hard NAT). IPv4 first.
  std::vector<Endpoint> announceable() const;
  std::optional<Endpoint> global_v4() const { return global_v4_; }
  std::optional<Endpoint> global_v6() const { return global_v6_; }
  std::optional<bool> mapping_varies() const { return varies_; }

 private:
  struct Set {
    ProbeSet plan;
    std::size_t next = 0;   // first probe not sent yet
    bool done = false;
  };
  struct InFlight {
    wire::stun::TransactionId id{};
    Instant sent;
    std::size_t set = 0;
  };

  void send_due(Instant now, std::size_t set_index);
  bool brings_nothing(const Set& set) const;
  void note_mapping(const Endpoint& mapped);
  Duration settle_time() const;
  bool finished(Instant now) const;
  bool measure_instead(Instant now);
  void compute_wake(Instant now);

  DatagramSink& sink_;
  Rng& rng_;
  Counters& counters_;
  NameCache names_;

  bool running_ = false;
  bool full_ = false;
  bool probed_ = false;
  Instant started_;
  Instant wake_ = Instant::max();
  std::span<const RelayRegion> regions_;
  std::vector<Set> sets_;
  std::vector<InFlight> in_flight_;
  std::set<int> planned_;                         // regions of the plan
  std::optional<Instant> enough_at_;              // when enough regions had answered
  std::vector<int> to_measure_;
  std::set<int> measuring_;                       // regions whose HTTP answer is out
  bool measured_ = false;                         // this run asked for HTTP
  bool udp_answered_ = false, http_v4_ = false, http_v6_ = false;
  std::map<int, RegionLatency> latencies_;
  std::vector<std::pair<Endpoint, int>> mappings_;  // in order of first sight, with counts
  std::optional<Endpoint> global_v4_, global_v6_;
  std::optional<bool> varies_;
};

}  // namespace porthole::paths
