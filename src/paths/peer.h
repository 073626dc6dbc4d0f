// What the path layer remembers about one peer. Data only; the rules are in peer_paths.cpp.
#pragma once

#include <optional>
#include <vector>

#include "paths/limits.h"
#include "paths/paths.h"
#include "paths/score.h"
#include "paths/spec_constants.h"
#include "wire/disco.h"

namespace porthole::paths {

// A UDP address where the peer might be. It lives as long as one of its three origins stands.
struct Candidate {
  Endpoint endpoint;
  bool from_map = false;
  std::optional<Instant> call_me_maybe;    // in the peer's latest CallMeMaybe
  std::optional<Instant> got_ping;         // last ping from there
  wire::disco::TxId got_tx_id{};           // of that ping
  std::optional<Instant> last_ping;        // ours, except those for a person
  std::optional<Instant> last_pong;
  Duration latency{};                      // of last_pong

  bool alive(Instant now) const {
    return from_map || call_me_maybe || (got_ping && now - *got_ping <= kSessionActiveTimeout);
  }
  void forget_history() {
    last_ping.reset();
    last_pong.reset();
    latency = {};
  }
};

enum class PingPurpose { kDiscovery, kHeartbeat, kCli };

struct SentPing {
  wire::disco::TxId tx_id{};
  Endpoint to;             // invalid: through a relay
  int region = 0;          // then this one
  Instant at;
  PingPurpose purpose = PingPurpose::kDiscovery;
  int wire_mtu = kSafeWireMtu;
  std::uint64_t token = 0; // kCli
};

struct Peer {
  std::uint32_t slot = 0;
  std::uint32_t generation = 0;
  std::uint64_t listed = 0;                // last full set that named the peer

  NodePublic key;
  DiscoPublic disco;                       // in use; may be newer than the map's
  DiscoPublic map_disco;                   // as the control server last said
  int home_region = 0;
  bool expired = false;

  std::vector<Candidate> candidates;
  std::optional<PathAddress> best;
  Instant trust_until;                     // best may be used alone until then
  std::optional<int> relay;                // where relayed datagrams go; follows from home, learned route and connections
  int learned_region = 0;                  // region the peer last reached us through

  std::vector<SentPing> sent;              // ascending by time
  std::optional<Instant> last_send;        // by WireGuard or a person
  std::optional<Instant> last_full_round;
  std::optional<Instant> searching_since;  // first ping of the present search for a path; a pong or idleness ends it
  Instant next_round;                      // no candidate may be pinged by a round before
  std::optional<Instant> heartbeat_at;     // running while the session is active

  // Quick repeats at first contact.
  std::size_t burst_step = 0;
  Instant burst_start;
  std::optional<Instant> burst_at;

  // Early warning: pings of the best address in a row without answer.
  int unanswered = 0;
  std::optional<Instant> doubt_at;
  Instant next_question;                   // the next time that traffic from elsewhere may raise a doubt
  bool doubted = false;                    // the relay carries a copy although `best` is still trusted

  bool waits_for_endpoints = false;        // a CallMeMaybe goes out when gathering is done
  Instant ping_back_window;
  int ping_backs = 0;                      // in this window

  std::vector<Endpoint> sources;           // our entries of the receive index, oldest first
  std::optional<Endpoint> reported_direct; // as in the last PeerPathChanged
  std::optional<int> reported_relay;

  bool trusted(Instant now) const { return best && now <= trust_until; }
  bool active(Instant now) const { return last_send && now - *last_send <= kSessionActiveTimeout; }
  Candidate* find_candidate(const Endpoint& e) {
    for (Candidate& c : candidates)
      if (c.endpoint == e) return &c;
    return nullptr;
  }
};

}  // namespace porthole::paths
