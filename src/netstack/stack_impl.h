// Inside of Stack: the tables and queues that its parts share.
//
//   stack.cpp           construction, the app's TCP calls, events, turns, timers, memory pressure
//   stack_input.cpp     IP input, finding the TCP flow, handshakes of listeners, TIME-WAIT
//   stack_datagram.cpp  UDP, ICMP, ping
#pragma once

#include <list>
#include <map>
#include <unordered_map>
#include <variant>
#include <vector>

#include "crypto/siphash.h"
#include "netstack/flow.h"
#include "netstack/packet_fifo.h"
#include "netstack/rate_limit.h"
#include "netstack/reassembly.h"
#include "netstack/ring.h"
#include "netstack/stack.h"
#include "netstack/tcp_connection.h"
#include "netstack/timers.h"
#include "wire/icmp.h"
#include "wire/ip.h"
#include "wire/udp.h"

namespace porthole::netstack {

class Stack::Impl final : public TcpHost {
 public:
  Impl(const StackConfig& config, Rng& rng);
  ~Impl();

  void set_addresses(std::span<const IpAddress> addresses);
  void handle_packets(Instant now, std::span<const MutBytes> packets);
  bool produce(Instant now, PacketSink& sink);
  void handle_timeout(Instant now);
  Deadline next_timeout() const;
  Result<SocketId> connect(Instant now, const Endpoint& remote, const ConnectOptions& options);
  Result<SocketId> listen(Instant now, std::optional<IpAddress> local, std::uint16_t port, int backlog);
  std::optional<SocketId> accept(SocketId listener);
  void close(Instant now, SocketId id, bool abort);
  Result<SocketId> udp_bind(std::optional<IpAddress> local, std::uint16_t port);
  Status udp_send(SocketId id, const std::optional<IpAddress>& source, const Endpoint& destination, Bytes data);
  std::optional<Datagram> udp_receive(SocketId id);
  std::optional<DatagramInfo> udp_receive(SocketId id, MutBytes buffer);
  void udp_close(SocketId id);
  Result<SocketId> ping(Instant now, const IpAddress& address, std::size_t payload_size, Duration timeout);
  std::optional<SocketEvent> poll_event();
  MemoryUse memory() const;
  void path_changed(Instant now, const IpAddress& peer, PathChange kind);
  void set_round_trip(const IpAddress& peer, Duration rtt);
  void tunnel_blocked(Instant now, const IpAddress& peer, bool blocked);
  void peer_removed(Instant now, const IpAddress& peer);
  void connect_refused(Instant now, const Endpoint& local, const Endpoint& remote);
  void check_invariants() const;
  Endpoint local(SocketId id) const;
  Endpoint remote(SocketId id) const;

  // The connection of an id the app still holds.
  TcpConnection* connection(SocketId id) const;
  // After every call into a connection: its timer, its memory, its end.
  void settle(TcpConnection& connection);
  Instant now_seen = Instant();   // of the latest call, for calls without a time

  // TcpHost
  void raise(TcpConnection& connection, SocketEventKind kind) override;
  void want_ack(TcpConnection& connection) override;
  void want_send(TcpConnection& connection) override;
  void send_control(const ControlSegment& segment) override;

 private:
  struct Listener {
    SocketId id = 0;
    std::optional<IpAddress> address;
    std::uint16_t port = 0;
    std::size_t backlog = 0;
    std::size_t half_open = 0;
    Ring<SocketId> ready;       // established, not accepted; ids may be gone
    std::size_t ready_count = 0;
  };
  struct UdpSocket {
    UdpSocket(ChunkPool& pool) : queue(pool) {}
    SocketId id = 0;
    std::optional<IpAddress> address;
    std::uint16_t port = 0;
    bool want_writable = false;
    PacketFifo queue;           // 38 bytes of addresses and port, then the data
  };
  struct Ping {
    SocketId id = 0;
    IpAddress address;
    std::uint16_t echo_id = 0;
    Instant sent;
    std::optional<Duration> rtt;
    bool done = false;
    TimerNode timer;
  };
  // A SYN that was answered (RFC 9293 SYN-RECEIVED of a listener).
  struct HalfOpen {
    FlowKey flow;
    HandshakeResult handshake;
    SocketId listener = 0;
    Peer* peer = nullptr;
    std::uint8_t resends = 0;
    TimerNode timer;
  };
  // RFC 9293 TIME-WAIT without its buffers.
  struct TimeWait {
    IpAddress local, remote;
    std::uint16_t local_port = 0, remote_port = 0;
    std::uint32_t snd_nxt = 0, rcv_nxt = 0;
    bool timestamps = false;
    std::uint32_t ts_recent = 0, ts_offset = 0;
    Instant since, last_ack;
    Peer* peer = nullptr;
    std::list<FlowKey>::iterator place;   // in wait_order_
  };
  using Flow = std::variant<TcpConnection*, std::unique_ptr<HalfOpen>, std::unique_ptr<TimeWait>>;
  using Flows = std::unordered_map<FlowKey, Flow, FlowHash>;

  struct Slot {
    SocketId id = 0;
    std::variant<std::monostate, std::unique_ptr<TcpConnection>, std::unique_ptr<Listener>, std::unique_ptr<UdpSocket>,
                 std::unique_ptr<Ping>>
        what;
    std::uint16_t pending = 0;        // event kinds as bits
    bool queued = false;
    std::optional<ErrorCode> soft_error;
  };

  // stack.cpp
  Result<SocketId> new_slot();
  Slot* slot(SocketId id);
  const Slot* slot(SocketId id) const;
  void free_slot(SocketId id);
  template <typename T>
  T* object(SocketId id) const {
    const Slot* s = slot(id);
    if (s == nullptr) return nullptr;
    auto* held = std::get_if<std::unique_ptr<T>>(&s->what);
    return held != nullptr ? held->get() : nullptr;
  }
  void raise(SocketId id, SocketEventKind kind);
  bool is_own(const IpAddress& address) const;
  const IpAddress* own_address_for(const IpAddress& remote) const;
  Peer* peer_for(const IpAddress& address);
  void release_peers();
  void remove_connection(TcpConnection& connection);
  // The connection holds `bytes` now.
  void account(TcpConnection& connection, std::size_t bytes);
  void enter_time_wait(TcpConnection& connection);
  std::uint32_t initial_sequence(Instant now, const FlowKey& flow) const;
  std::uint32_t timestamp_offset(const IpAddress& local, const IpAddress& remote) const;
  std::uint32_t flow_label(const FlowKey& flow) const;
  bool write_control(Instant now, PacketSink& sink, const ControlSegment& segment);
  bool flush_acks(Instant now, PacketSink& sink, bool wait_for_data);
  void relieve_pressure(Instant now);
  void schedule_housekeeping();
  void housekeeping(Instant now);
  std::optional<std::uint16_t> free_udp_port();
  void close_listener(Instant now, Listener& listener);

  // stack_input.cpp
  void handle_packet(Instant now, Bytes packet);
  void dispatch(Instant now, const wire::IpPacket& packet, std::uint8_t protocol, Bytes payload);
  void handle_tcp(Instant now, const wire::IpPacket& packet, Bytes payload);
  void handle_unknown_flow(Instant now, const wire::IpPacket& packet, const FlowKey& flow,
                           const wire::TcpSegment& segment);
  void handle_half_open(Instant now, Flows::iterator it, const wire::TcpSegment& segment);
  // True: the segment is a new connection's SYN, which may take the flow over.
  bool handle_time_wait(Instant now, Flows::iterator it, const wire::TcpSegment& segment);
  void handle_syn(Instant now, const wire::IpPacket& packet, const FlowKey& flow, const wire::TcpSegment& segment,
                  std::optional<std::uint32_t> iss_above);
  void refuse(Instant now, const IpAddress& local, const IpAddress& remote, const wire::TcpSegment& segment);
  void send_syn_ack(Instant now, HalfOpen& half_open);
  void remove_half_open(FlowKey flow);
  void half_open_timer(Instant now, HalfOpen& half_open);
  void send_time_wait_ack(Instant now, TimeWait& wait);
  void remove_time_wait(Flows::iterator it);
  Listener* find_listener(const IpAddress& local, std::uint16_t port);
  void touch(TcpConnection& connection);

  // stack_datagram.cpp
  void handle_udp(Instant now, const wire::IpPacket& packet, Bytes payload);
  void handle_icmp(Instant now, const wire::IpPacket& packet, Bytes payload);
  void handle_icmp_error(Instant now, const wire::IpPacket& packet, const wire::IcmpMessage& message);
  void send_icmp_error(Instant now, const IpAddress& local, const IpAddress& remote, wire::IcmpErrorToSend what,
                       Bytes quoted);
  // Queues an IP datagram for produce(), in fragments if it must be. False: no room.
  bool queue_datagram(const IpAddress& source, const IpAddress& destination, std::uint8_t protocol, Bytes payload);
  UdpSocket* find_udp(const IpAddress& local, std::uint16_t port);
  bool flush_egress(PacketSink& sink);

  std::vector<IpAddress> addresses_;
  crypto::SipKey sequence_key_, timestamp_key_, label_key_;
  std::vector<Slot> slots_;
  std::vector<std::uint32_t> free_slots_;
  std::uint64_t next_serial_ = 1;
  Flows flows_;
  std::map<IpAddress, Peer> peers_;
  std::size_t connections_ = 0, half_open_ = 0, time_wait_ = 0, listeners_ = 0, udp_sockets_ = 0, pings_ = 0;
  std::map<std::uint16_t, std::vector<Listener*>> listeners_by_port_;
  std::map<std::uint16_t, std::vector<UdpSocket*>> udp_by_port_;
  std::map<std::uint16_t, Ping*> pings_by_id_;
  // One entry for each TIME-WAIT record, the one that ends first in front: a record moves in here, it is never entered
  // twice, so that the bound of the records bounds this whatever a peer repeats.
  std::list<FlowKey> wait_order_;
  std::uint64_t port_counter_ = 0;
  std::uint32_t fragment_id_ = 0;

  Reassembly reassembly_;
  TimerHeap timers_;
  TimerNode housekeeping_;
  Instant trim_at_ = Instant::max();

  Ring<ControlSegment> control_;
  Ring<SocketId> ack_list_, send_list_, events_;
  PacketFifo egress_{pool};
  std::vector<SocketId> udp_waiting_;
  std::vector<std::uint8_t> scratch_;

  RateLimit icmp_rate_{kIcmpRate, kIcmpBurst};
  RateLimit syn_ack_rate_{kSynAckRate, kSynAckBurst};

  // Of the batch in hand.
  std::vector<TcpConnection*> touched_;
  FlowKey last_flow_;
  TcpConnection* last_connection_ = nullptr;
};

}  // namespace porthole::netstack
