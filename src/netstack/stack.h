// The node's own IP host: IPv4 and IPv6, ICMP, UDP and TCP for the addresses this node has on its tailnet, between
// the sockets of the app and the packets of the tunnel. No TUN device, no kernel stack, no I/O.
//
// One Stack serves all peers of a node. Its user
//   1. hands in every batch of decrypted, source-checked and policy-filtered packets: handle_packets();
//   2. calls handle_timeout() when next_timeout() has come;
//   3. takes the events: poll_event() until it is empty, and acts on the sockets;
//   4. calls produce() with the tunnel's sink after any of these, and again once a full sink has room.
// Calls of one Stack never overlap (no locks inside). Packets are only read during handle_packets().
//
// Socket ids are never reused; a call with an id that is gone does nothing (write takes 0, peek gives nothing). A TCP
// or UDP socket stays until the app calls close(), abort() or udp_close() - also after kReset, kConnectFailed and
// kClosed, which are the last events of a socket. After close() or abort() no event for that id appears any more.
//
// Standards: RFC 791, 8200 (IP), 792, 4443 (ICMP), 768 (UDP), 9293 (TCP) with 7323 (window scale, timestamps),
// 2018/2883/6675 (SACK, DSACK), 8985 (RACK-TLP), 6298/5682/3522 (RTO, F-RTO, Eifel), 9937 (PRR), 9438 (CUBIC),
// 9406 (HyStart++), 5961 (blind attacks), 6528 (initial sequence numbers).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "base/bytes.h"
#include "base/datagram.h"
#include "base/ip.h"
#include "base/result.h"
#include "base/rng.h"
#include "base/time.h"

namespace porthole::netstack {

using SocketId = std::uint64_t;  // 0 is never a socket

enum class CongestionAlgorithm : std::uint8_t { kCubic };

struct StackConfig {
  int mtu = 1280;  // bytes of an inner packet, 1280..9000
  // All buffers of all sockets together, reassembly included; runtime gives at most an eighth of the memory there is.
  std::size_t memory_max = std::size_t{256} << 20;
  std::size_t receive_buffer_start = 256u << 10;  // per connection; tuned up to receive_buffer_max by what the app reads
  std::size_t receive_buffer_max = 8u << 20;
  std::size_t send_buffer_max = 8u << 20;         // per connection, sent and unsent together
  std::size_t udp_receive_buffer = 256u << 10;    // per UDP socket
  CongestionAlgorithm congestion = CongestionAlgorithm::kCubic;
};

struct ConnectOptions {
  Duration timeout = 30s;           // until kConnectFailed(kTimeout); the tunnel's own handshake counts inside it
  std::uint16_t local_port = 0;     // 0: an ephemeral one
  bool nodelay = true;              // false: Nagle (RFC 9293 3.7.4)
  // Besides the probes named here, two early ones when data stops coming (kQuietProbe), and one when the way to the peer
  // opens again: a peer that restarted meanwhile answers with a reset.
  bool keepalive = false;
  Duration keepalive_idle = 2h;
  Duration keepalive_interval = 75s;
  int keepalive_probes = 9;
  Duration user_timeout = Duration::zero();       // abort when data stays unacknowledged this long; 0: 15 resends
  // kReset (kTimeout) when one direction is closed, nothing waits in the other and no byte moved for this long; 0: never.
  Duration half_closed_timeout = Duration::zero();
  std::size_t notsent_low_water = 0;              // bytes of unsent data that write() accepts; 0: tuned, 100 ms of rate
};

enum class SocketEventKind : std::uint8_t {
  kConnected,      // connect() succeeded
  kConnectFailed,  // connect() failed: `error`; last event
  kAcceptable,     // a listener has connections for accept()
  kReadable,       // new data for peek(), or a datagram for udp_receive()
  kPeerClosed,     // the peer will send no more; read_eof() once everything is consumed
  kWritable,       // write() took less than it was given and has room again; also a UDP socket that had refused
  kReset,          // the connection broke: `error`; last event. Unread data is gone
  kClosed,         // both directions finished in order; last event
  kPong,           // an answer to ping(): `rtt`
  kSoftError,      // an ICMP error about a UDP socket's or ping's peer: `error`
};

struct SocketEvent {
  SocketId id = 0;
  SocketEventKind kind = SocketEventKind::kReadable;
  Error error;                      // kConnectFailed, kReset, kSoftError
  Duration rtt = Duration::zero();  // kPong
};

enum class TcpState : std::uint8_t {
  kClosed, kListen, kSynSent, kSynReceived, kEstablished, kFinWait1, kFinWait2, kCloseWait, kClosing, kLastAck,
  kTimeWait,
};

struct TcpInfo {
  TcpState state = TcpState::kClosed;
  Endpoint local, remote;
  Duration srtt{}, rttvar{}, min_rtt{}, rto{};
  std::uint64_t cwnd = 0;              // bytes
  std::uint64_t ssthresh = 0;          // bytes; UINT64_MAX: not set
  std::uint64_t pacing_rate = 0;       // bytes per second; 0: unpaced
  std::uint64_t delivery_rate = 0;     // bytes per second, latest sample
  std::uint64_t in_flight = 0;         // bytes believed to be in the network
  std::uint64_t unsent = 0, unacked = 0, unread = 0;  // bytes queued here
  std::uint64_t send_window = 0, receive_window = 0, receive_buffer = 0;
  std::uint64_t bytes_sent = 0, bytes_resent = 0, bytes_acked = 0, bytes_received = 0;
  std::uint64_t segments_sent = 0, segments_resent = 0, segments_received = 0;
  std::uint32_t recoveries = 0, timeouts = 0, tail_probes = 0, undone = 0, dsacks = 0, max_segment = 0;
  bool timestamps = false, sack = false, window_scaling = false;
  Duration limited_by_app{}, limited_by_window{}, limited_by_cwnd{};  // time with nothing / no window / no cwnd to send
};

// Why a packet from the network was dropped or refused.
enum class Drop : std::uint8_t {
  kIpHeader, kIpChecksum, kIpLength, kIpSource, kIpDestination, kIpOptions, kIpProtocol,
  kFragment, kFragmentOverlap, kFragmentLimit, kFragmentTimeout,
  kIcmp, kUdp, kUdpChecksum, kUdpNoPort, kUdpQueueFull,
  kTcpHeader, kTcpChecksum, kTcpNoConnection, kTcpPaws, kTcpSequence, kTcpAck, kTcpSyn, kTcpReset, kTcpMemory,
  kSynLimit, kAcceptQueueFull, kRateLimit,
  kCount,
};

struct Counters {
  std::uint64_t drops[static_cast<std::size_t>(Drop::kCount)] = {};
  std::uint64_t packets_in = 0, packets_out = 0, bytes_in = 0, bytes_out = 0;
  std::uint64_t tcp_segments_in = 0, tcp_segments_out = 0, tcp_resent = 0, tcp_timeouts = 0, tcp_recoveries = 0;
  std::uint64_t tcp_undone = 0, tcp_tail_probes = 0, tcp_challenge_acks = 0, tcp_resets_sent = 0;
  std::uint64_t tcp_connects = 0, tcp_accepts = 0, tcp_bad_sack = 0, tcp_pressure_resets = 0;
  std::uint64_t udp_in = 0, udp_out = 0, echo_replies = 0, icmp_errors_sent = 0;
  std::uint64_t drop(Drop d) const { return drops[static_cast<std::size_t>(d)]; }
};

struct MemoryUse {
  std::size_t buffers = 0;       // bytes of chunks that hold socket data
  std::size_t pooled = 0;        // bytes of free chunks kept for reuse
  std::size_t limit = 0;
  std::size_t connections = 0, half_open = 0, time_wait = 0, listeners = 0, udp_sockets = 0;
};

struct Datagram {
  Endpoint source;
  IpAddress destination;    // the own address it was sent to
  ByteVector data;
};
struct DatagramInfo {
  Endpoint source;
  IpAddress destination;
  std::size_t size = 0;     // of the datagram; larger than the buffer given: the rest is lost
};

// What the path layer noticed about the way to a peer.
enum class PathChange : std::uint8_t {
  kDirect,       // now a direct path
  kRelayed,      // now through a relay: small bursts
  kUnreachable,  // no path at the moment: resends do not back off beyond 5 s
  kReachable,    // the same path works again
};

class Stack {
 public:
  // `rng` gives the per-boot keys and jitter; it must outlive the stack.
  Stack(const StackConfig& config, Rng& rng);
  ~Stack();
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;

  // Own tailnet addresses. Connections and sockets bound to one that vanished are reset (kReset).
  void set_addresses(std::span<const IpAddress> addresses);

  // One batch from the tunnel; trailing padding behind the IP length is allowed.
  void handle_packets(Instant now, std::span<const MutBytes> packets);
  // Writes what may leave now: resets and replies, ACKs, datagrams, then data within congestion window, peer window
  // and pacing. Stops when the sink gives an empty span. True if something waits only for the sink.
  bool produce(Instant now, PacketSink& sink);
  void handle_timeout(Instant now);
  // Includes the next pacing release.
  Deadline next_timeout() const;

  // TCP. Fails with kUnavailable (no own address of that family), kInvalid (multicast, own address, port 0),
  // kLimit or kAlreadyExists (local_port taken for this remote).
  Result<SocketId> connect(Instant now, const Endpoint& remote, const ConnectOptions& options = {});
  // No address: all own addresses, also later ones. Port 0: an ephemeral one, see local(). backlog 1..4096.
  Result<SocketId> listen(Instant now, std::optional<IpAddress> local, std::uint16_t port, int backlog = 128);
  std::optional<SocketId> accept(SocketId listener);
  // Bytes taken; less than given: would block, kWritable follows.
  std::size_t write(Instant now, SocketId id, Bytes data);
  std::size_t writable(SocketId id) const;
  // Received data without a copy: fills `out` from the front, returns how many spans. Valid until the next non-const
  // call on the stack.
  std::size_t peek(SocketId id, std::span<Bytes> out) const;
  std::size_t readable(SocketId id) const;
  void consume(Instant now, SocketId id, std::size_t size);
  // The peer has closed its side and everything was consumed.
  bool read_eof(SocketId id) const;
  // FIN behind what was written; reading goes on.
  void shutdown_write(Instant now, SocketId id);
  // Unread data: reset. Otherwise FIN behind what was written, which is still delivered for as long as the peer
  // acknowledges it, and 60 s beyond. Also closes listeners (connections not yet accepted are reset).
  void close(Instant now, SocketId id);
  // Reset now, and forget everything.
  void abort(Instant now, SocketId id);
  // For accepted connections; keepalive, nodelay, user timeout and low water of `options`.
  void set_options(Instant now, SocketId id, const ConnectOptions& options);

  Endpoint local(SocketId id) const;   // also of listeners and UDP sockets; an unspecified address means all
  Endpoint remote(SocketId id) const;

  // UDP. Port 0: an ephemeral one.
  Result<SocketId> udp_bind(std::optional<IpAddress> local, std::uint16_t port);
  // Fails with kLimit (too long for one packet: 1252 bytes IPv4, 1232 IPv6 at the default MTU), kUnavailable (egress
  // full for now, kWritable follows; or no own address of that family), kInvalid, kNotFound.
  Status udp_send(Instant now, SocketId id, const Endpoint& destination, Bytes data);
  // As above, with a source address of our choice (several own addresses, answers of a server).
  Status udp_send_from(Instant now, SocketId id, const IpAddress& source, const Endpoint& destination, Bytes data);
  std::optional<Datagram> udp_receive(SocketId id);
  // Without allocation: copies into `buffer`.
  std::optional<DatagramInfo> udp_receive(SocketId id, MutBytes buffer);
  void udp_close(SocketId id);

  // One echo request; kPong with the round trip, or kConnectFailed(kTimeout) after `timeout`. The id is gone after
  // that event. `payload_size` up to MTU - 28 (IPv4) or - 48.
  Result<SocketId> ping(Instant now, const IpAddress& address, std::size_t payload_size = 56, Duration timeout = 10s);

  std::optional<SocketEvent> poll_event();

  TcpInfo info(SocketId id) const;
  const Counters& counters() const;
  MemoryUse memory() const;

  // From the path layer and the tunnel.
  void path_changed(Instant now, const IpAddress& peer, PathChange kind);
  // While blocked (no session yet), data to this peer waits here: nothing is resent, counted or backed off beyond one
  // copy of each segment. The first packets must still go to the tunnel, so block only once it has one staged.
  void tunnel_blocked(Instant now, const IpAddress& peer, bool blocked);

  // The peer took this long to answer a moment ago, in the tunnel's handshake: connections being opened to it resend their
  // SYN after three times that (at least kSynRtoMin), twice that and so on, until the usual second is reached.
  void set_round_trip(const IpAddress& peer, Duration rtt);
  // Peers to which something was resent since the last call because no answer came in time.
  std::vector<IpAddress> take_unanswered();

  // The peer is no longer part of the tailnet: its connections are reset here and now, without a word to it.
  void peer_removed(Instant now, const IpAddress& peer);
  // The peer says beside TCP that its rules refuse this connection. While connecting, a refusal that is repeated for
  // kRefusalPatience is believed (kConnectFailed, kUnauthorized); anything else changes nothing.
  void connect_refused(Instant now, const Endpoint& local, const Endpoint& remote);

  // Gives free chunks back to the allocator.
  void release_memory();
  // Asserts what must always hold (tests, fuzzing); linear in everything.
  void check_invariants() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace porthole::netstack
