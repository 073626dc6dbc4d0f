// UDP sockets of the netstack, joined with sockets of this host: of the app (AppDatagrams) or of a local service
// (UdpForwarder). Nothing blocks, and no queue grows: what finds its way full is dropped and counted.
//
// All on the loop's thread. `scratch` (64 KiB) is shared, `now` is the time of the current turn.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <optional>

#include "base/ip.h"
#include "netstack/stack.h"
#include "runtime/event_loop.h"
#include "runtime/limits.h"

namespace porthole::runtime {

struct DatagramCounters {
  std::uint64_t to_app = 0, from_app = 0;    // the app or a local service
  // Dropped:
  std::uint64_t too_long = 0;                // does not fit into one packet of the tailnet
  std::uint64_t empty = 0;                   // from the tailnet: the app would take it for the end
  std::uint64_t other_source = 0;            // not from the address that was dialled
  std::uint64_t bad_head = 0;                // the app's head is none, or names no device's address
  std::uint64_t way_full = 0;                // no room in the queue to the tunnel
  std::uint64_t local_failed = 0;            // the local service takes nothing, or no socket could be had for it
};

// A UDP socket of the netstack and who uses it.
class UdpUser {
 public:
  virtual ~UdpUser() = default;
  virtual void handle_event(const netstack::SocketEvent& event) = 0;
  virtual Instant next_timeout() const = 0;
  virtual void handle_timeout() = 0;
};

// A connected AF_UNIX SOCK_SEQPACKET pair: first is the node's end (non-blocking), second the app's (blocking). It keeps
// datagrams apart and, unlike SOCK_DGRAM, tells each end that the other was closed.
Result<std::pair<UniqueFd, UniqueFd>> datagram_pair();

// porthole.h's framing for datagrams with any peer.
constexpr std::size_t kPacketHead = 20;
void write_packet_head(const Endpoint& peer, std::uint8_t* head);
std::optional<Endpoint> parse_packet_head(Bytes message);

// The app's side of that: what porthole_receive_from and porthole_send_to do, on the app's thread.
struct ReceivedPacket {
  Endpoint peer;
  std::size_t size = 0;
};
Result<ReceivedPacket> receive_packet(int fd, int timeout_ms, MutBytes buffer);
Status send_packet(int fd, const Endpoint& peer, Bytes data);

// The node's end of a datagram_pair() and a netstack socket. With `remote`, datagrams to and from that address only, as
// they are; without, each with a head.
class AppDatagrams final : public UdpUser, private FdHandler {
 public:
  // `done` is called once, when the app has closed its end and the netstack's socket is gone; the owner destroys this
  // object some time after.
  AppDatagrams(EventLoop&, netstack::Stack&, netstack::SocketId, UniqueFd, std::optional<Endpoint> remote, MutBytes scratch,
               const Instant& now, DatagramCounters&, std::function<void()> done);
  ~AppDatagrams() override;

  void handle_event(const netstack::SocketEvent& event) override;
  Instant next_timeout() const override { return give_up_; }
  void handle_timeout() override;

 private:
  enum class Sent { kYes, kDropped, kWait };
  void on_ready(bool readable, bool writable, bool hangup) override;
  void pump_in(int reads);  // app -> tailnet
  void pump_out();          // tailnet -> app
  Sent send(Bytes message);
  void update();
  void finish();

  EventLoop& loop_;
  netstack::Stack& stack_;
  netstack::SocketId socket_;
  UniqueFd fd_;
  EventLoop::Token token_ = 0;
  std::optional<Endpoint> remote_;
  MutBytes scratch_;
  const Instant& now_;
  DatagramCounters& counters_;
  std::function<void()> done_;
  std::optional<ByteVector> held_in_;        // of the app; the way out is full
  Instant give_up_ = Instant::max();         // on held_in_
  std::optional<ByteVector> held_out_;       // for the app, whose buffer is full
  bool local_eof_ = false;                   // the app will send no more
  bool finished_ = false;
};

// Forwards a UDP port of the tailnet addresses to a local service. Each source gets a local socket of its own.
class UdpForwarder final : public UdpUser {
 public:
  UdpForwarder(EventLoop&, netstack::Stack&, netstack::SocketId, const Endpoint& service, int sources_max, MutBytes scratch,
               const Instant& now, DatagramCounters&);
  ~UdpForwarder() override;

  void handle_event(const netstack::SocketEvent& event) override;
  Instant next_timeout() const override;
  void handle_timeout() override;

  std::size_t sources() const { return by_source_.size(); }
  // The tailnet source whose datagrams come from this local port.
  std::optional<Endpoint> source_of(std::uint16_t local_port) const;

 private:
  class Source;
  using Sources = std::list<Source>;         // the one that was quiet longest first

  Source* find_or_make(const Endpoint& source, const IpAddress& own);
  void forget(Sources::iterator);
  void touch(Sources::iterator);

  EventLoop& loop_;
  netstack::Stack& stack_;
  netstack::SocketId socket_;
  Endpoint service_;
  std::size_t sources_max_, per_peer_max_;
  MutBytes scratch_;
  const Instant& now_;
  DatagramCounters& counters_;
  Sources sources_;
  std::map<Endpoint, Sources::iterator> by_source_;
  std::map<IpAddress, std::size_t> per_peer_;
};

}  // namespace porthole::runtime
