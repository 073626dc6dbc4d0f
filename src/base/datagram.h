// How datagrams and IP packets move between machines without being copied or owned by them.
#pragma once

#include <cstdint>

#include "base/bytes.h"
#include "base/ip.h"
#include "base/key.h"

namespace porthole {

// One received datagram (GRO blocks already split). `data` is writable because decryption happens in place; it is
// valid only during the call.
struct RecvDatagram {
  Endpoint source;
  MutBytes data;
};

// Where a machine puts datagrams for the network. The callee copies or sends before returning. A full sink drops and
// counts: datagrams are never queued without bound.
class DatagramSink {
 public:
  virtual ~DatagramSink() = default;
  // `data` holds one or more datagrams of `segment_size` bytes each, the last may be shorter; they go to one
  // destination and may leave in one system call (UDP_SEGMENT). At most 64 segments and 65,507 bytes.
  virtual void send_udp(const Endpoint& destination, Bytes data, std::size_t segment_size) = 0;
  // One packet through the relay of `region` to the peer `destination`.
  virtual void send_relay(int region, const NodePublic& destination, Bytes data) = 0;
};

// Where a machine writes IP packets bound for the tunnel. begin() gives room for one packet (room before and behind
// it, for the tunnel's own header and tag, belongs to the sink); commit() says how much of it was written. begin()
// returns an empty span when the sink is full for now; the writer stops and is asked again later.
class PacketSink {
 public:
  virtual ~PacketSink() = default;
  virtual MutBytes begin(std::size_t size_max) = 0;
  virtual void commit(std::size_t size) = 0;
};

}  // namespace porthole
