// Byte streams of a simulated world, as the machines of the core ask for them (base/stream.h): a listener is known by
// DNS name and port, bytes arrive complete and in order, late. TLS is only a flag.
//
// A stream feels the links it runs over: their delay, their rate (not shared with others), loss as a retransmission
// that holds up what is behind it, and a link that is down as silence, which ends the stream after kSilenceMax - or goes
// on where the link comes back before.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/stream.h"
#include "sim/network.h"

namespace porthole::sim {

class Stream;
using StreamRef = std::shared_ptr<Stream>;

constexpr std::uint16_t kHttpsPort = 443;
// What machines are asked for at a time.
constexpr std::size_t kStreamBlock = 16 * 1024;

// What an owner of one side hears. No call comes from within a call to the stream.
class StreamUser {
 public:
  virtual ~StreamUser() = default;
  virtual void stream_opened(const StreamInfo&) {}
  virtual void stream_failed(const Error&) {}
  virtual void stream_bytes(MutBytes bytes) = 0;
  virtual void stream_writable() = 0;
  // No error: the other side closed in order.
  virtual void stream_closed(const std::optional<Error>& error) = 0;
};

// One side.
class Stream : public std::enable_shared_from_this<Stream> {
 public:
  // What the system buffers for a writer.
  static constexpr std::size_t kBufferMax = 256 * 1024;

  std::size_t room() const { return is_open_ && queued_ < kBufferMax ? kBufferMax - queued_ : 0; }
  // Takes everything; mind room().
  void send(Bytes bytes);
  // The user hears nothing more; the other side gets what was sent, then the end.
  void close();
  // The other side gets a reset.
  void abort();
  // Nobody is told anything: the process or its host is gone, with all its packets.
  void vanish();
  bool is_open() const { return is_open_; }
  const Endpoint& remote() const { return info_.remote; }

 private:
  friend class Streams;
  struct Chunk {
    Instant arrives;
    ByteVector bytes;
    enum class Kind { kBytes, kEnd, kReset } kind = Kind::kBytes;
  };
  void queue(Chunk::Kind kind, Bytes bytes);
  // `other` keeps the receiver alive while chunks are under way, even where its owner has let go.
  void arm(Instant when, const StreamRef& other);
  void move_chunks(const StreamRef& other);
  void end(const std::optional<Error>& error);
  bool way_is_open(const Stream* other) const;

  World* world_ = nullptr;
  Host* host_ = nullptr;
  IpAddress own_address_;
  StreamInfo info_;
  StreamUser* user_ = nullptr;     // null: closed by its owner
  std::weak_ptr<Stream> other_;
  std::vector<Link*> links_;       // from here to there
  bool is_open_ = false;
  std::deque<Chunk> chunks_;       // under way from here to there
  std::size_t queued_ = 0;
  bool writer_waits_ = false;
  Instant busy_until_;
  Instant last_arrival_;
  std::optional<Instant> silent_since_;
  bool moving_ = false;            // an event for the first chunk is set
};

class Streams {
 public:
  explicit Streams(Network& network) : network_(network), world_(network.world()) {}

  // The acceptor gives the user of a new stream's server side, or null to refuse. It must set nothing else up: the stream
  // is usable from the next event on.
  using Acceptor = std::function<StreamUser*(const StreamRef&)>;
  void listen(Host& host, std::uint16_t port, Acceptor acceptor);
  void stop_listening(Host& host, std::uint16_t port);
  void add_name(const std::string& name, std::vector<IpAddress> addresses) { names_[name] = std::move(addresses); }
  std::vector<IpAddress> resolve(const std::string& name) const;

  // stream_opened or stream_failed follows, never at once. Closing the stream before that cancels.
  StreamRef open(Host& from, const OpenStream& request, StreamUser& user);

 private:
  static constexpr Duration kConnectTimeout = 10s;

  void dial(const StreamRef& client, std::vector<Endpoint> targets, bool tls, Instant deadline, std::string where);

  Network& network_;
  World& world_;
  std::map<std::string, std::vector<IpAddress>> names_;
  std::map<std::pair<Host*, std::uint16_t>, Acceptor> listeners_;
};

}  // namespace porthole::sim
