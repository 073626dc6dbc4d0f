// One UDP association of the loopback proxy (RFC 1928 section 7): which datagrams pass between a local program and the
// tailnet, and to which question an answer belongs.
//
//   program --> handle_client() --> UdpHost::locate, open_flow, send_to_target
//   program <-- UdpHost::send_to_client <-- handle_target() <-- tailnet
//
// Every target, as the program writes it ("nas" and the address of nas are two), has a flow of its own, opened with its
// first datagram. So the answers of a flow belong to one target, and their head repeats the text that was asked for. When
// there are too many, the flow that was quiet longest goes; a quiet one goes by itself after kUdpTargetIdle.
//
// UDP has no login: the first datagram that can be understood, from the address that opened the association, decides which
// port is the program's; all others are dropped. Nothing waits: what cannot pass at once is dropped and counted.
#pragma once

#include <cstdint>
#include <list>

#include "base/bytes.h"
#include "base/ip.h"
#include "base/result.h"
#include "base/time.h"
#include "wire/socks5.h"

namespace porthole::proxy {

using FlowId = std::uint64_t;

// Whoever runs an association; it outlives it. Called from within the calls below, and calls none of them itself.
class UdpHost {
 public:
  virtual ~UdpHost() = default;
  // Where the target is now, by the rules of Connect. Asked for every datagram: the network map may change under a flow.
  virtual Result<Endpoint> locate(const wire::socks5::Host& host, std::uint16_t port) = 0;
  // A UDP port of the tailnet.
  virtual Result<FlowId> open_flow() = 0;
  virtual void close_flow(FlowId flow) = 0;
  // kLimit: too long for one packet. kUnavailable: no room for the moment.
  virtual Status send_to_target(FlowId flow, const Endpoint& to, Bytes data) = 0;
  // One datagram of both parts. False: it was not taken.
  virtual bool send_to_client(const Endpoint& client, Bytes head, Bytes data) = 0;
};

struct AssociationCounters {
  std::uint64_t to_client = 0, from_client = 0;
  // Dropped:
  std::uint64_t other_client = 0;    // another address or port than the program's
  std::uint64_t bad_head = 0;        // no target in it
  std::uint64_t fragment = 0;        // RFC 1928 lets a server drop them, and no program sends any
  std::uint64_t unknown_target = 0;  // not in the tailnet
  std::uint64_t no_flow = 0;         // no UDP port could be had
  std::uint64_t too_long = 0;
  std::uint64_t way_full = 0;        // no room in the queue to the tunnel, or in the program's socket
  std::uint64_t other_source = 0;    // from the tailnet, but not from the flow's target
};

class UdpAssociation {
 public:
  // `client`: the address that opened the association.
  UdpAssociation(const IpAddress& client, UdpHost& host, AssociationCounters& counters) : client_{client, 0}, host_(host), counters_(counters) {}

  void handle_client(Instant now, const Endpoint& source, Bytes datagram);
  // `flow` may be one that was closed.
  void handle_target(Instant now, FlowId flow, const Endpoint& source, Bytes data);

  void handle_timeout(Instant now);
  Deadline next_timeout() const;

  // Closes all flows.
  void close();
  std::size_t flows() const { return flows_.size(); }

 private:
  struct Flow {
    FlowId id = 0;
    ByteVector target;  // as the program wrote it
    Endpoint to;
    Instant used;
  };
  using Flows = std::list<Flow>;  // the one that was quiet longest first

  Flow* find_or_open(Instant now, Bytes target);
  void touch(Instant now, Flows::iterator flow);
  void close_quietest();

  Endpoint client_;  // port 0: not known yet
  UdpHost& host_;
  AssociationCounters& counters_;
  Flows flows_;
};

}  // namespace porthole::proxy
