// What a DerpClient keeps of a relay, and where its parts are:
//   derp_client.cpp        which regions are connected, and when it is tried again
//   derp_connection.cpp    what goes over a connection: upgrade, login, frames
#pragma once

#include <algorithm>
#include <string>

#include "base/out_bytes.h"
#include "derp/derp_client.h"
#include "derp/limits.h"
#include "wire/http.h"

namespace porthole::derp {

namespace frames = wire::derp;
using frames::FrameHeader;
using frames::FrameType;

// Login answered so far. Everything from kLoggedIn on may carry packets.
enum class Stage { kDialling, kHttp, kServerKey, kLoggedIn, kConfirmed };

struct TokenBucket {
  std::uint64_t bytes_per_second = 0;  // 0: no limit
  double burst = 0;
  double tokens = 0;
  Instant filled;

  void set(Instant now, std::uint64_t rate, std::uint64_t wanted_burst) {
    constexpr std::size_t kLargestFrame = frames::kPacketHeadSize + frames::kPacketSizeMax;
    bytes_per_second = rate;
    burst = static_cast<double>(std::max<std::uint64_t>(wanted_burst, kLargestFrame));
    tokens = burst;
    filled = now;
  }
  bool take(Instant now, std::size_t bytes) {
    if (bytes_per_second == 0) return true;
    double elapsed = std::chrono::duration<double>(now - filled).count();
    tokens = std::min(burst, tokens + elapsed * static_cast<double>(bytes_per_second));
    filled = now;
    if (tokens < static_cast<double>(bytes)) return false;
    tokens -= static_cast<double>(bytes);
    return true;
  }
};

// What a stranger wrote, made fit for a one-line message.
std::string printable(std::string_view text);

struct DerpClient::Connection {
  StreamId id = 0;
  Stage stage = Stage::kDialling;
  std::string node;
  std::string host_header;
  Endpoint local, remote;
  Instant deadline;    // of the stages before kConfirmed
  Instant last_frame;
  Instant since;
  bool last_chance = true;  // no other node of the region is left in this attempt
  bool fast_start = false;
  NodePublic meta_key;
  std::optional<crypto::BoxKey> box;
  std::optional<wire::HttpMessageParser> http;

  ByteVector partial;    // a frame that a read cut in two, header included
  ByteVector completed;  // the last such frame, kept until consume() returns
  std::size_t skip = 0;  // bytes left of a frame that is of no interest

  OutBytes out;          // HTTP, login, small frames, and the rest of a packet frame that did not fit
  std::optional<Instant> waiting_since;  // output is there and nobody took any
  bool preferred_sent = false;
  std::optional<frames::PingData> ping;
  Instant ping_deadline;
  TokenBucket budget;
  NodePublic last_source;
  std::string health;

  bool logged_in() const { return stage >= Stage::kLoggedIn; }
};

struct DerpClient::Region {
  int id = 0;
  ts2021::RelayRegion definition;
  RecordQueue queue{kSendQueuePacketsMax, kSendQueueBytesMax};
  Instant last_write;
  Backoff backoff{kReconnectBackoffMax};
  std::optional<Instant> retry_at;
  Instant budget_end;        // of the attempt under way
  std::size_t node_index = 0;
  std::optional<Error> first_error;
  bool no_fast_start = false;
  std::optional<Connection> connection;
  std::optional<Duration> restart_in;
  std::optional<Instant> restart_until;
  std::optional<Error> last_error;
  std::uint64_t packets_sent = 0, bytes_sent = 0, packets_received = 0, bytes_received = 0;

  std::string name() const {
    return "relay " + (definition.region_code.empty() ? std::to_string(id) : printable(definition.region_code));
  }
  bool has_output() const {
    return connection && (!connection->out.empty() || (connection->logged_in() && !queue.empty()));
  }
  // For one step of connecting: a node must not use up the time of the next one.
  Instant step_deadline(Instant now) const {
    return connection->last_chance ? budget_end : std::min(budget_end, now + kNodeConnectTime);
  }
  void mark_output(Instant now) {
    if (connection && !connection->waiting_since && has_output()) connection->waiting_since = now;
  }
};

}  // namespace porthole::derp
