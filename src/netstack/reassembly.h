// IPv4 and IPv6 datagrams that arrive in pieces (RFC 791, RFC 8200 4.5). Overlaps kill the datagram (RFC 5722, applied
// to both families); exact duplicates are ignored. Everything is bounded per peer and in total.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <tuple>
#include <vector>

#include "base/bytes.h"
#include "base/time.h"
#include "netstack/limits.h"
#include "netstack/stack.h"
#include "wire/ip.h"

namespace porthole::netstack {

class Reassembly {
 public:
  struct Outcome {
    std::optional<Drop> drop;
    bool complete = false;
    std::uint8_t protocol = 0;
    ByteVector payload;
    ByteVector quote;                // its first piece with its header, cut to what an ICMP error quotes
  };
  // One fragment that is not atomic.
  Outcome add(Instant now, const wire::IpPacket& packet);

  Instant next_timeout() const;
  // Forgets what is overdue. `on_timeout` gets the beginning of each such datagram whose first piece had arrived.
  void expire(Instant now, const std::function<void(const IpAddress& source, const IpAddress& destination, Bytes quote)>&
                               on_timeout);
  std::size_t bytes() const { return bytes_; }
  std::size_t size() const { return entries_.size(); }

 private:
  using Key = std::tuple<IpAddress, IpAddress, std::uint8_t, std::uint32_t>;
  struct Piece {
    std::size_t start, end;
  };
  struct Entry {
    Instant expires;
    std::uint8_t protocol = 0;
    bool dead = false;               // overlapped: swallow the rest of it
    std::optional<std::size_t> total;
    std::vector<Piece> pieces;       // sorted, disjoint
    ByteVector data;
    ByteVector quote;                // first piece with its header, for the ICMP error
  };
  struct PeerUse {
    std::size_t datagrams = 0, bytes = 0;
  };
  void kill(const Key& key, Entry& entry);
  void erase(std::map<Key, Entry>::iterator it);
  void charge(const IpAddress& peer, std::ptrdiff_t bytes);

  std::map<Key, Entry> entries_;
  std::map<IpAddress, PeerUse> peers_;
  std::size_t bytes_ = 0;
};

}  // namespace porthole::netstack
