// How far the relays are when UDP does not get through: a small HTTP request to each region on a connection of its own, as
// Tailscale's clients measure it then. Only the request is timed; connecting takes several round trips and says little.
//
// Streams as with DerpClient: poll_action() says what to open or close, ids count up from `first_stream_id`. One thread.
#pragma once

#include <deque>
#include <map>
#include <optional>
#include <span>

#include "base/out_bytes.h"
#include "base/stream.h"
#include "base/time.h"
#include "ts2021/messages.h"
#include "wire/http.h"

namespace porthole::derp {

struct MeasuredLatency {
  int region = 0;
  std::optional<Duration> took;   // unset: no node of the region answered in time
  IpAddress remote;               // that answered
};

class LatencyProbe {
 public:
  // plain_http: as in DerpClientConfig.
  LatencyProbe(StreamId first_stream_id, bool plain_http) : next_stream_id_(first_stream_id), plain_http_(plain_http) {}

  // Ends what is under way: a node of the old map says nothing.
  void set_map(const ts2021::RelayMap& map);
  // Measures these regions at once, each at its first node that answers. Every one gets a result within kLatencyProbeTime;
  // a run that is still under way is dropped without results.
  void start(Instant now, std::span<const int> regions);
  std::optional<MeasuredLatency> poll_result();

  std::optional<StreamAction> poll_action();
  void stream_opened(Instant now, StreamId id, const StreamInfo& info);
  void stream_failed(Instant now, StreamId id);
  void stream_closed(Instant now, StreamId id);
  Result<std::size_t> consume(Instant now, StreamId id, MutBytes bytes);
  std::size_t produce(Instant now, StreamId id, MutBytes out);
  bool has_output(StreamId id) const;

  void handle_timeout(Instant now);
  Deadline next_timeout() const;

 private:
  struct Probe {
    int region = 0;
    std::size_t node = 0;
    std::string host_header;
    IpAddress remote;
    Instant deadline;               // of this node
    std::optional<Instant> asked;   // when the request was handed to the stream
    OutBytes request;               // empty until connected, and once it was sent
    std::optional<wire::HttpMessageParser> answer;
  };
  using Probes = std::map<StreamId, Probe>;

  void dial(Instant now, Probe probe);
  void next_node(Instant now, Probes::iterator it, bool close_stream);
  void clear();

  ts2021::RelayMap map_;
  StreamId next_stream_id_;
  bool plain_http_;
  Instant end_;                     // of the run
  Probes probes_;                   // those under way
  std::deque<StreamAction> actions_;
  std::deque<MeasuredLatency> results_;
};

}  // namespace porthole::derp
