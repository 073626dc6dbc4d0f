#include "control/packet_filter.h"

#include <algorithm>

#include "control/limits.h"
#include "control/netmap.h"

namespace porthole::control {
namespace {

// Assigned internet protocol numbers.
constexpr std::uint8_t kIcmp = 1, kTcp = 6, kUdp = 17, kIpv6Fragment = 44, kIcmpV6 = 58, kTsmp = 99, kSctp = 132;

// Extension headers of IPv6 (RFC 8200 section 4 and IANA's list). ESP is none here: it ends the readable part.
bool is_extension_header(std::uint8_t next) {
  switch (next) {
    case 0: case 43: case 51: case 60: case 135: case 139: case 140: return true;
    default: return false;
  }
}

// A later fragment must start behind every transport header, or it could rewrite the ports of the first one.
constexpr std::size_t kFragmentOffsetMin = 80;

bool is_icmp_reply_or_error(std::uint8_t protocol, std::uint8_t type) {
  if (protocol == kIcmp) return type == 0 || type == 3 || type == 11 || type == 12;
  return type == 129 || (type >= 1 && type <= 4);
}

// IPv4 addresses within IPv6 live here; no IPv6 range may reach into it.
constexpr std::array<std::uint8_t, 16> kMappedFirst{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0};
constexpr std::array<std::uint8_t, 16> kMappedLast{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};

std::array<std::uint8_t, 16> before(std::array<std::uint8_t, 16> a) {
  for (std::size_t i = 16; i-- > 0;) {
    if (a[i]-- != 0) break;
  }
  return a;
}
std::array<std::uint8_t, 16> after(std::array<std::uint8_t, 16> a) {
  for (std::size_t i = 16; i-- > 0;) {
    if (++a[i] != 0) break;
  }
  return a;
}

IpAddress prefix_end(const Prefix& p, bool last) {
  std::array<std::uint8_t, 16> b{};
  Bytes in = p.address.bytes();
  std::copy(in.begin(), in.end(), b.begin());
  for (int bit = p.bits; bit < p.address.bit_length(); ++bit) {
    const auto mask = static_cast<std::uint8_t>(0x80 >> (bit % 8));
    std::uint8_t& byte = b[static_cast<std::size_t>(bit / 8)];
    byte = static_cast<std::uint8_t>(last ? byte | mask : byte & ~mask);
  }
  return p.address.is_v4() ? IpAddress::v4_bytes(b.data()) : IpAddress::v6_bytes(b.data());
}

}  // namespace

std::string_view to_string(FilterDrop reason) {
  switch (reason) {
    case FilterDrop::kMalformed: return "malformed";
    case FilterDrop::kNotForUs: return "not for us";
    case FilterDrop::kMulticast: return "multicast or link-local";
    case FilterDrop::kExtensionHeader: return "IPv6 extension header";
    case FilterDrop::kFragment: return "overlapping fragment";
    case FilterDrop::kNoRule: return "no rule";
    case FilterDrop::kBlockedPeer: return "blocked peer";
    case FilterDrop::kCount: break;
  }
  return "unknown";
}

// ---- rules -----------------------------------------------------------------------------------------------------------

void CompiledFilter::add_range(const IpAddress& first, const IpAddress& last, std::vector<Range>& out) {
  Range range{first.mapped(), last.mapped()};
  if (first.is_v4() || range.last < kMappedFirst || range.first > kMappedLast) {
    out.push_back(range);
    return;
  }
  // An IPv6 range around the mapped block, "::/0" above all: leave IPv4 out of it.
  if (range.first < kMappedFirst) out.push_back({range.first, before(kMappedFirst)});
  if (range.last > kMappedLast) out.push_back({after(kMappedLast), range.last});
}

bool CompiledFilter::parse_range(std::string_view text, std::vector<Range>& out) {
  if (text == "*") {
    Range all;
    all.first.fill(0);
    all.last.fill(0xff);
    out.push_back(all);
    return true;
  }
  if (text.find('/') != std::string_view::npos) {
    auto prefix = Prefix::parse(text);
    if (!prefix || !prefix->is_canonical()) return false;
    // Built by family: the ends of "::ffff:0:0/90" and its like must stay IPv6 ends.
    add_range(prefix_end(*prefix, false), prefix_end(*prefix, true), out);
    return true;
  }
  if (const std::size_t dash = text.find('-'); dash != std::string_view::npos) {
    auto first = IpAddress::parse(text.substr(0, dash));
    auto last = IpAddress::parse(text.substr(dash + 1));
    if (!first || !last || first->is_v4() != last->is_v4() || *last < *first) return false;
    add_range(*first, *last, out);
    return true;
  }
  auto address = IpAddress::parse(text);
  if (!address) return false;
  add_range(*address, *address, out);
  return true;
}

CompiledFilter CompiledFilter::compile(std::span<const ts2021::FilterRule> rules,
                                       const CapabilitySources& capabilities) {
  CompiledFilter out;
  if (std::any_of(rules.begin(), rules.end(), [](const auto& r) { return r.has_obsolete_bits; })) {
    out.skipped_ = rules.size();
    return out;
  }
  std::size_t entries = 0;
  for (const ts2021::FilterRule& rule : rules) {
    if (rule.has_cap_grant) continue;
    Rule compiled;
    if (rule.ip_proto.empty()) {
      for (std::uint8_t p : {kTcp, kUdp, kIcmp, kIcmpV6}) compiled.protocols[p >> 6] |= std::uint64_t{1} << (p & 63);
    }
    for (int p : rule.ip_proto) {
      if (p < 0 || p > 255) ++out.skipped_;
      else compiled.protocols[static_cast<std::size_t>(p) >> 6] |= std::uint64_t{1} << (p & 63);
    }
    for (std::string_view source : rule.src_ips) {
      constexpr std::string_view kCapability = "cap:";
      if (source.starts_with(kCapability)) {
        auto nodes = capabilities.find(std::string(source.substr(kCapability.size())));
        if (nodes == capabilities.end()) continue;  // nobody has it
        for (const Prefix& p : nodes->second) add_range(prefix_end(p, false), prefix_end(p, true), compiled.sources);
      } else if (!parse_range(source, compiled.sources)) {
        ++out.skipped_;
      }
    }
    for (const ts2021::NetPortRange& destination : rule.dst_ports) {
      std::vector<Range> ranges;
      if (!parse_range(destination.ip, ranges) || destination.ports.first > destination.ports.last) {
        ++out.skipped_;
        continue;
      }
      for (const Range& r : ranges) {
        compiled.destinations.push_back({r, destination.ports.first, destination.ports.last});
      }
    }
    entries += compiled.sources.size() + compiled.destinations.size();
    if (entries > kFilterEntriesMax) {
      ++out.skipped_;
      continue;
    }
    // Ascending and disjoint, so that one binary search answers.
    std::sort(compiled.sources.begin(), compiled.sources.end(),
              [](const Range& a, const Range& b) { return a.first < b.first; });
    std::vector<Range> merged;
    for (const Range& r : compiled.sources) {
      if (!merged.empty() && r.first <= merged.back().last) merged.back().last = std::max(merged.back().last, r.last);
      else merged.push_back(r);
    }
    compiled.sources = std::move(merged);
    if (!compiled.sources.empty() && !compiled.destinations.empty()) out.rules_.push_back(std::move(compiled));
  }
  return out;
}

CompiledFilter CompiledFilter::compile(const Netmap& netmap) {
  const ts2021::FilterRules rules = netmap.filter_rules();
  CapabilitySources capabilities;
  for (const ts2021::FilterRule& rule : rules) {
    for (std::string_view source : rule.src_ips) {
      if (source.starts_with("cap:")) capabilities[std::string(source.substr(4))];
    }
  }
  for (auto& [name, sources] : capabilities) {
    for (const auto& [id, peer] : netmap.peers()) {
      if (peer.has_capability(name)) sources.insert(sources.end(), peer.addresses.begin(), peer.addresses.end());
    }
  }
  return compile(rules, capabilities);
}

bool CompiledFilter::contains(const std::vector<Range>& ranges, const std::array<std::uint8_t, 16>& address) {
  auto it = std::upper_bound(ranges.begin(), ranges.end(), address,
                             [](const auto& a, const Range& r) { return a < r.first; });
  return it != ranges.begin() && address <= std::prev(it)->last;
}

template <typename DestinationTest>
bool CompiledFilter::any_rule(const IpAddress& source, std::optional<std::uint8_t> protocol,
                              DestinationTest test) const {
  const auto mapped = source.mapped();
  for (const Rule& rule : rules_) {
    if (protocol && !rule.lists(*protocol)) continue;
    if (!std::any_of(rule.destinations.begin(), rule.destinations.end(), test)) continue;
    if (contains(rule.sources, mapped)) return true;
  }
  return false;
}

bool CompiledFilter::matches(std::uint8_t protocol, const IpAddress& source, const IpAddress& destination,
                             std::uint16_t port) const {
  const auto mapped = destination.mapped();
  return any_rule(source, protocol, [&](const Destination& d) {
    return d.first_port <= port && port <= d.last_port && d.addresses.first <= mapped && mapped <= d.addresses.last;
  });
}

bool CompiledFilter::matches_addresses(const IpAddress& source, const IpAddress& destination) const {
  const auto mapped = destination.mapped();
  return any_rule(source, std::nullopt,
                  [&](const Destination& d) { return d.addresses.first <= mapped && mapped <= d.addresses.last; });
}

bool CompiledFilter::matches_protocol(std::uint8_t protocol, const IpAddress& source,
                                      const IpAddress& destination) const {
  const auto mapped = destination.mapped();
  return any_rule(source, protocol, [&](const Destination& d) {
    return d.first_port == 0 && d.last_port == 65535 && d.addresses.first <= mapped && mapped <= d.addresses.last;
  });
}

// ---- flows -----------------------------------------------------------------------------------------------------------

// The newest kFlowsMax flows that we began, found by hash and forgotten by age of use. Only we fill it, so strangers
// cannot choose what collides. Fixed memory; nodes are linked by index.
class PacketFilter::FlowTable {
 public:
  struct Key {
    std::uint8_t protocol = 0;
    std::uint16_t local_port = 0;
    std::uint16_t remote_port = 0;
    IpAddress local;
    IpAddress remote;
    friend bool operator==(const Key&, const Key&) = default;
  };

  void insert(const Key& key) {
    if (std::uint16_t at = find(key); at != kNone) return touch(at);
    std::uint16_t at;
    if (size_ < kFlowsMax) {
      at = size_++;
    } else {
      at = oldest_;
      unlink_age(at);
      unlink_bucket(at);
    }
    entries_[at].key = key;
    std::uint16_t& head = buckets_[bucket(key)];
    entries_[at].next_in_bucket = head;
    head = at;
    link_newest(at);
  }
  bool contains(const Key& key) {
    const std::uint16_t at = find(key);
    if (at == kNone) return false;
    touch(at);
    return true;
  }

 private:
  static constexpr std::uint16_t kNone = 0xffff;
  static constexpr std::size_t kBuckets = 1024;
  struct Entry {
    Key key;
    std::uint16_t next_in_bucket = kNone;
    std::uint16_t newer = kNone;
    std::uint16_t older = kNone;
  };

  static std::size_t bucket(const Key& key) {
    std::size_t h = hash_bytes(key.remote.bytes());
    h = h * 31 + (std::size_t{key.remote_port} << 16 | key.local_port);
    h ^= h >> 29;
    h *= 0x9e3779b97f4a7c15u;
    return (h >> 40) % kBuckets;
  }
  std::uint16_t find(const Key& key) const {
    std::uint16_t at = buckets_[bucket(key)];
    while (at != kNone && !(entries_[at].key == key)) at = entries_[at].next_in_bucket;
    return at;
  }
  void touch(std::uint16_t at) {
    if (at == newest_) return;
    unlink_age(at);
    link_newest(at);
  }
  void link_newest(std::uint16_t at) {
    entries_[at].newer = kNone;
    entries_[at].older = newest_;
    if (newest_ != kNone) entries_[newest_].newer = at;
    newest_ = at;
    if (oldest_ == kNone) oldest_ = at;
  }
  void unlink_age(std::uint16_t at) {
    const Entry& e = entries_[at];
    (e.newer != kNone ? entries_[e.newer].older : newest_) = e.older;
    (e.older != kNone ? entries_[e.older].newer : oldest_) = e.newer;
  }
  void unlink_bucket(std::uint16_t at) {
    std::uint16_t* link = &buckets_[bucket(entries_[at].key)];
    while (*link != at) link = &entries_[*link].next_in_bucket;
    *link = entries_[at].next_in_bucket;
  }
  static std::array<std::uint16_t, kBuckets> empty_buckets() {
    std::array<std::uint16_t, kBuckets> b;
    b.fill(kNone);
    return b;
  }

  std::array<Entry, kFlowsMax> entries_;
  std::array<std::uint16_t, kBuckets> buckets_ = empty_buckets();
  std::uint16_t size_ = 0;
  std::uint16_t newest_ = kNone;
  std::uint16_t oldest_ = kNone;
};

// ---- packets ---------------------------------------------------------------------------------------------------------

// What the filter looks at in a packet.
struct PacketFilter::Header {
  IpAddress source, destination;
  std::uint8_t protocol = 0;
  bool later_fragment = false;
  std::uint16_t source_port = 0;
  std::uint16_t destination_port = 0;
  std::uint8_t tcp_flags = 0;
  std::uint8_t icmp_type = 0;
};

std::optional<FilterDrop> PacketFilter::parse(Bytes p, Header& h) {
  if (p.size() < 20) return FilterDrop::kMalformed;
  Bytes payload;
  std::size_t fragment_offset = 0;
  if (p[0] >> 4 == 4) {
    const std::size_t header_size = std::size_t{p[0] & 15u} * 4;
    const std::size_t total = load_be<std::uint16_t>(p.data() + 2);
    if (header_size < 20 || total < header_size || total > p.size()) return FilterDrop::kMalformed;
    h.source = IpAddress::v4_bytes(p.data() + 12);
    h.destination = IpAddress::v4_bytes(p.data() + 16);
    h.protocol = p[9];
    fragment_offset = std::size_t{load_be<std::uint16_t>(p.data() + 6) & 0x1fffu} * 8;
    payload = p.subspan(header_size, total - header_size);
  } else if (p[0] >> 4 == 6) {
    if (p.size() < 40) return FilterDrop::kMalformed;
    const std::size_t size = load_be<std::uint16_t>(p.data() + 4);
    if (size > p.size() - 40) return FilterDrop::kMalformed;
    h.source = IpAddress::v6_bytes(p.data() + 8);
    h.destination = IpAddress::v6_bytes(p.data() + 24);
    // A mapped address inside an IPv6 packet would be judged by IPv4 rules: no honest sender makes one.
    if (h.source.is_v4() || h.destination.is_v4()) return FilterDrop::kMalformed;
    h.protocol = p[6];
    payload = p.subspan(40, size);
    if (h.protocol == kIpv6Fragment) {
      if (payload.size() < 8) return FilterDrop::kMalformed;
      h.protocol = payload[0];
      fragment_offset = load_be<std::uint16_t>(payload.data() + 2) & 0xfff8u;
      payload = payload.subspan(8);
      if (h.protocol == kIpv6Fragment) return FilterDrop::kExtensionHeader;
    }
    if (is_extension_header(h.protocol)) return FilterDrop::kExtensionHeader;
  } else {
    return FilterDrop::kMalformed;
  }

  if (fragment_offset != 0) {
    if (fragment_offset < kFragmentOffsetMin) return FilterDrop::kFragment;
    h.later_fragment = true;
    return std::nullopt;
  }
  // A first fragment too short for its ports and flags counts as malformed.
  switch (h.protocol) {
    case kTcp:
      if (payload.size() < 20) return FilterDrop::kMalformed;
      h.tcp_flags = payload[13];
      break;
    case kUdp:
      if (payload.size() < 8) return FilterDrop::kMalformed;
      break;
    case kSctp:
      if (payload.size() < 12) return FilterDrop::kMalformed;
      break;
    case kIcmp:
    case kIcmpV6:
      if (payload.size() < 4) return FilterDrop::kMalformed;
      h.icmp_type = payload[0];
      return std::nullopt;
    default:
      return std::nullopt;
  }
  h.source_port = load_be<std::uint16_t>(payload.data());
  h.destination_port = load_be<std::uint16_t>(payload.data() + 2);
  return std::nullopt;
}

PacketFilter::PacketFilter() : flows_(std::make_unique<FlowTable>()) {}
PacketFilter::~PacketFilter() = default;
PacketFilter::PacketFilter(PacketFilter&&) noexcept = default;
PacketFilter& PacketFilter::operator=(PacketFilter&&) noexcept = default;

void PacketFilter::set_rules(CompiledFilter filter) {
  filter_ = std::move(filter);
  last_ = {};
}

void PacketFilter::set_local(std::vector<Prefix> local) { local_ = std::move(local); }

void PacketFilter::set_shields_up(bool up) { shields_up_ = up; }

bool PacketFilter::is_local(const IpAddress& address) const {
  return std::any_of(local_.begin(), local_.end(), [&](const Prefix& p) { return p.contains(address); });
}

Verdict PacketFilter::check(Bytes ip_packet, bool jailed) {
  const Verdict verdict = decide(ip_packet, jailed || shields_up_);
  if (verdict.accept) ++accepted_;
  else ++drops_[static_cast<std::size_t>(verdict.reason)];
  return verdict;
}

Verdict PacketFilter::decide(Bytes ip_packet, bool blocked) {
  constexpr std::uint8_t kSyn = 0x02, kAck = 0x10;
  Header h;
  if (auto fault = parse(ip_packet, h)) return Verdict::no(*fault);
  if (h.destination.is_multicast() || h.destination.is_link_local()) return Verdict::no(FilterDrop::kMulticast);
  if (!is_local(h.destination)) return Verdict::no(FilterDrop::kNotForUs);
  if (h.later_fragment) return Verdict::yes();

  const bool v4 = h.source.is_v4();
  switch (h.protocol) {
    case kTsmp:
      return Verdict::yes();
    case kTcp:
      if ((h.tcp_flags & (kSyn | kAck)) != kSyn) return Verdict::yes();
      break;
    case kUdp:
    case kSctp:
      if (flows_->contains({h.protocol, h.destination_port, h.source_port, h.destination, h.source})) {
        return Verdict::yes();
      }
      break;
    case kIcmp:
    case kIcmpV6:
      if ((h.protocol == kIcmp) != v4) break;  // the other family's ICMP is just some protocol
      if (is_icmp_reply_or_error(h.protocol, h.icmp_type)) return Verdict::yes();
      if (blocked) return Verdict::no(FilterDrop::kBlockedPeer);
      return filter_.matches_addresses(h.source, h.destination) ? Verdict::yes() : Verdict::no(FilterDrop::kNoRule);
    default:
      break;
  }
  return by_rules(h, blocked);
}

Verdict PacketFilter::by_rules(const Header& h, bool blocked) {
  if (blocked) return Verdict::no(FilterDrop::kBlockedPeer);
  const bool same = last_.protocol == h.protocol && last_.port == h.destination_port && last_.source == h.source &&
                    last_.destination == h.destination;
  if (!same) {
    const bool has_ports = h.protocol == kTcp || h.protocol == kUdp || h.protocol == kSctp;
    last_ = {h.protocol, h.destination_port, h.source, h.destination,
             has_ports ? filter_.matches(h.protocol, h.source, h.destination, h.destination_port)
                       : filter_.matches_protocol(h.protocol, h.source, h.destination)};
  }
  return last_.allowed ? Verdict::yes() : Verdict::no(FilterDrop::kNoRule);
}

void PacketFilter::note_outbound(Bytes ip_packet) {
  Header h;
  if (parse(ip_packet, h) || h.later_fragment) return;
  if (h.protocol != kUdp && h.protocol != kSctp) return;
  flows_->insert({h.protocol, h.source_port, h.destination_port, h.source, h.destination});
}

}  // namespace porthole::control
