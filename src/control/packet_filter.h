// The inbound packet filter (Tailscale control protocol, section 6.8): decrypted packets from peers are dropped unless
// the tailnet's policy lets them in. Default deny; nothing is filtered outbound.
//
//   destination not ours                         drop
//   ICMP echo reply, ICMP error                  accept
//   other ICMP                                   accept if any rule matches source and destination
//   TCP, not a bare SYN                          accept (TCP itself rejects what has no connection)
//   TCP SYN                                      a rule for proto, source, destination, port
//   UDP, SCTP                                    the answer to a flow we sent (512 newest), or a rule
//   TSMP (protocol 99)                           accept
//   anything else                                a rule that lists the protocol with all ports
//
// Not WireGuard's allowed IPs: that the source address belongs to the peer has been checked before. Called once per
// packet: no allocation, and packets of one flow in a row reuse the last verdict.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/ip.h"
#include "ts2021/messages.h"

namespace porthole::control {

class Netmap;

enum class FilterDrop : std::uint8_t {
  kMalformed,        // too short, bad header length, unknown version, tiny first fragment
  kNotForUs,         // destination is neither our address nor a served route
  kMulticast,        // multicast or link-local destination
  kExtensionHeader,  // IPv6 extension header other than an immediate Fragment
  kFragment,         // later fragment that overlaps the transport header
  kNoRule,           // policy: nobody may send this
  kBlockedPeer,      // the peer is jailed, or shields are up: it may answer, not begin
  kCount,
};
std::string_view to_string(FilterDrop reason);

struct Verdict {
  bool accept = false;
  FilterDrop reason = FilterDrop::kNoRule;  // meaningful only when !accept
  static Verdict yes() { return {true, FilterDrop::kNoRule}; }
  static Verdict no(FilterDrop r) { return {false, r}; }
  explicit operator bool() const { return accept; }
  friend bool operator==(const Verdict&, const Verdict&) = default;
};

// Addresses of the nodes that have a capability, for "cap:" sources.
using CapabilitySources = std::map<std::string, std::vector<Prefix>>;

// Rules in the form the packet path wants. Immutable.
class CompiledFilter {
 public:
  // Bad entries are skipped, each with a count; rules with obsolete bits void the whole filter (as the Go client does).
  static CompiledFilter compile(std::span<const ts2021::FilterRule> rules, const CapabilitySources& capabilities = {});
  // Everything a netmap says: its rules, and which peers have which capability.
  static CompiledFilter compile(const Netmap& netmap);

  bool matches(std::uint8_t protocol, const IpAddress& source, const IpAddress& destination,
               std::uint16_t destination_port) const;
  // Source and destination only (ICMP).
  bool matches_addresses(const IpAddress& source, const IpAddress& destination) const;
  // Protocol without ports: a rule must list it, with all ports.
  bool matches_protocol(std::uint8_t protocol, const IpAddress& source, const IpAddress& destination) const;

  std::size_t rules() const { return rules_.size(); }
  std::size_t skipped_entries() const { return skipped_; }

 private:
  // Inclusive, both ends of one family, IPv4 in its mapped form.
  struct Range {
    std::array<std::uint8_t, 16> first;
    std::array<std::uint8_t, 16> last;
  };
  struct Destination {
    Range addresses;
    std::uint16_t first_port;
    std::uint16_t last_port;
  };
  struct Rule {
    std::array<std::uint64_t, 4> protocols{};  // bit set of 256
    std::vector<Range> sources;                // ascending, disjoint
    std::vector<Destination> destinations;
    bool lists(std::uint8_t protocol) const { return (protocols[protocol >> 6] >> (protocol & 63)) & 1; }
  };
  static bool contains(const std::vector<Range>& ranges, const std::array<std::uint8_t, 16>& address);
  template <typename DestinationTest>
  bool any_rule(const IpAddress& source, std::optional<std::uint8_t> protocol, DestinationTest test) const;
  static void add_range(const IpAddress& first, const IpAddress& last, std::vector<Range>& out);
  static bool parse_range(std::string_view text, std::vector<Range>& out);

  std::vector<Rule> rules_;
  std::size_t skipped_ = 0;
};

class PacketFilter {
 public:
  // Denies everything until rules and local addresses are set.
  PacketFilter();
  ~PacketFilter();
  PacketFilter(PacketFilter&&) noexcept;
  PacketFilter& operator=(PacketFilter&&) noexcept;

  void set_rules(CompiledFilter filter);
  // Our own addresses and the routes we serve.
  void set_local(std::vector<Prefix> local);
  // Peers may answer us but not begin anything.
  void set_shields_up(bool up);

  // One inbound IP packet, whole. `jailed`: the sending peer may answer us but not begin anything.
  Verdict check(Bytes ip_packet, bool jailed = false);
  // One outbound IP packet: remembers UDP and SCTP flows so that answers get in.
  void note_outbound(Bytes ip_packet);

  std::uint64_t accepted() const { return accepted_; }
  std::uint64_t dropped(FilterDrop reason) const { return drops_[static_cast<std::size_t>(reason)]; }

 private:
  class FlowTable;
  struct Header;
  // The last question that needed rules, and its answer.
  struct LastQuestion {
    std::uint8_t protocol = 0;
    std::uint16_t port = 0;
    IpAddress source, destination;  // invalid: nothing asked yet
    bool allowed = false;
  };
  static std::optional<FilterDrop> parse(Bytes ip_packet, Header& out);
  Verdict decide(Bytes ip_packet, bool blocked);
  Verdict by_rules(const Header& header, bool blocked);
  bool is_local(const IpAddress& address) const;

  CompiledFilter filter_;
  std::vector<Prefix> local_;
  bool shields_up_ = false;
  std::unique_ptr<FlowTable> flows_;
  LastQuestion last_;
  std::uint64_t accepted_ = 0;
  std::array<std::uint64_t, static_cast<std::size_t>(FilterDrop::kCount)> drops_{};
};

}  // namespace porthole::control
