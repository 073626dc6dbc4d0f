// Messages of the control protocol as values (Tailscale control protocol, sections 5 to 8). Both ends use them: the
// client machine in control/, the coordinator in coordinator/, and relay maps also in paths/ and derp/.
//
// Optional-ness is meaning here. std::optional is used exactly where "absent" differs from "empty" or "zero" on the
// wire; a plain member has its zero value when the field was absent or null. The all-zero key is "none". A time of
// year 1 (Go's zero time) is parsed as absent. JSON text forms live in json.h.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/ip.h"
#include "base/key.h"
#include "base/time.h"
#include "crypto/secret.h"
#include "ts2021/spec_constants.h"

namespace porthole::ts2021 {

using NodeId = std::int64_t;
using UserId = std::int64_t;

// ---- relay map (DERPMap) ---------------------------------------------------------------------------------------

struct RelayNode {
  std::string name;       // unique in the whole map, "900a"; not a DNS name
  int region_id = 0;
  std::string host_name;  // DNS name or address literal
  std::string cert_name;  // empty: host_name; "sha256-raw:<hex>" pins the certificate
  std::string ipv4;       // empty: resolve; a literal: use it; anything else ("none"): family off
  std::string ipv6;
  int stun_port = 0;      // 0: 3478; negative: no STUN
  bool stun_only = false; // not a relay
  int derp_port = 0;      // 0: 443
  bool insecure_for_tests = false;
  std::string stun_test_ip;
  bool can_port80 = false;
  bool plain_http = false;  // Porthole's own: the relay speaks DERP without TLS on derp_port; others skip the key

  friend bool operator==(const RelayNode&, const RelayNode&) = default;
};

struct RelayRegion {
  int region_id = 0;
  std::string region_code;
  std::string region_name;
  double latitude = 0;
  double longitude = 0;
  bool avoid = false;              // deprecated: carried, not acted upon
  bool no_measure_no_home = false; // never measured, never home, dialled when a peer's home is there
  std::vector<RelayNode> nodes;    // in order of preference

  friend bool operator==(const RelayRegion&, const RelayRegion&) = default;
};

// A complete relay map.
struct RelayMap {
  std::map<int, RelayRegion> regions;
  std::map<int, double> region_score;  // latency multiplier for the home choice; absent: 1.0
  bool omit_default_regions = false;

  friend bool operator==(const RelayMap&, const RelayMap&) = default;
};

// What one map message says about the relay map (section 6.7). apply() merges it.
struct RelayMapUpdate {
  std::optional<std::map<int, RelayRegion>> regions;   // absent: keep regions and omit_default_regions
  std::optional<std::map<int, double>> region_score;   // absent: keep; empty: all back to 1.0
  bool omit_default_regions = false;

  static RelayMapUpdate full(const RelayMap& map) {
    RelayMapUpdate u;
    u.regions = map.regions;
    if (!map.region_score.empty()) u.region_score = map.region_score;
    u.omit_default_regions = map.omit_default_regions;
    return u;
  }
  void apply(RelayMap& map) const {
    if (regions) {
      map.regions = *regions;
      map.omit_default_regions = omit_default_regions;
    }
    if (region_score) map.region_score = *region_score;
  }
  friend bool operator==(const RelayMapUpdate&, const RelayMapUpdate&) = default;
};

// ---- what a node says about itself (section 7) -----------------------------------------------------------------

// Tri-states: absent = unknown.
struct NetInfo {
  std::optional<bool> mapping_varies_by_dest_ip;
  std::optional<bool> working_ipv6;
  std::optional<bool> os_has_ipv6;
  std::optional<bool> working_udp;
  std::optional<bool> working_icmpv4;
  bool have_port_map = false;
  std::optional<bool> upnp;
  std::optional<bool> pmp;
  std::optional<bool> pcp;
  int preferred_derp = 0;  // home relay region; 0 = none yet
  std::string link_type;
  std::map<std::string, double> derp_latency;  // "<region>-v4" or "-v6" -> seconds

  friend bool operator==(const NetInfo&, const NetInfo&) = default;
};

struct Service {
  std::string proto;
  std::uint16_t port = 0;
  std::string description;
  friend bool operator==(const Service&, const Service&) = default;
};

struct Hostinfo {
  std::string ipn_version;
  std::string backend_log_id;
  std::string os;
  std::string os_version;
  std::optional<bool> container;
  std::string env;
  std::string distro;
  std::string distro_version;
  std::string distro_code_name;
  std::string app;
  std::optional<bool> desktop;
  std::string package;
  std::string device_model;
  std::string hostname;
  bool shields_up = false;
  bool no_logs_no_support = false;
  std::string machine;
  std::string go_arch;
  std::string go_arch_var;
  std::string go_version;
  std::vector<Prefix> routable_ips;
  std::vector<std::string> request_tags;
  std::vector<Service> services;
  std::optional<NetInfo> net_info;
  std::optional<bool> userspace;
  std::optional<bool> userspace_router;
  std::optional<bool> app_connector;
  std::optional<bool> state_encrypted;

  friend bool operator==(const Hostinfo&, const Hostinfo&) = default;
};

// ---- GET /key ----------------------------------------------------------------------------------------------------

struct KeyAnswer {
  MachinePublic public_key;         // zero: a server without Noise
  MachinePublic legacy_public_key;  // always sent, as zero
  friend bool operator==(const KeyAnswer&, const KeyAnswer&) = default;
};

// ---- POST /machine/register (section 5) --------------------------------------------------------------------------

// Move-only: it may hold a pre-auth key.
struct RegisterRequest {
  int version = 0;
  NodePublic node_key;
  NodePublic old_node_key;  // zero unless the key is being rotated
  std::string nl_key;       // tailnet lock, text; empty: omitted
  crypto::SecretText auth_key;       // Auth.AuthKey; empty: no Auth object
  std::optional<WallTime> expiry;    // absent: no wish; in the past: log out
  std::string followup;              // the AuthURL being waited on
  std::optional<Hostinfo> hostinfo;
  bool ephemeral = false;
  std::string tailnet;
};

struct User {
  UserId id = 0;
  std::string display_name;
  std::string profile_pic_url;
  std::optional<WallTime> created;
  friend bool operator==(const User&, const User&) = default;
};

struct Login {
  std::int64_t id = 0;
  std::string provider;
  std::string login_name;
  std::string display_name;
  std::string profile_pic_url;
  friend bool operator==(const Login&, const Login&) = default;
};

// Every field is always written (section 5.2): tailscale-rs requires all of them.
struct RegisterResponse {
  User user;
  Login login;
  bool node_key_expired = false;
  bool machine_authorized = false;
  std::string auth_url;
  std::string node_key_signature;  // base64 text; non-empty only with tailnet lock
  std::string error;
  friend bool operator==(const RegisterResponse&, const RegisterResponse&) = default;
};

// ---- POST /machine/map, request (section 6.1) --------------------------------------------------------------------

struct MapRequest {
  int version = 0;
  std::string compress;  // "zstd" or ""
  bool keep_alive = false;
  NodePublic node_key;
  DiscoPublic disco_key;
  bool stream = false;
  bool omit_peers = false;
  bool read_only = false;
  std::optional<Hostinfo> hostinfo;
  std::optional<std::vector<Endpoint>> endpoints;  // absent: unchanged; empty: none
  std::vector<int> endpoint_types;                 // parallel to endpoints; shorter: kUnknown
  std::string map_session_handle;
  std::int64_t map_session_seq = 0;
  std::vector<std::string> debug_flags;
  friend bool operator==(const MapRequest&, const MapRequest&) = default;
};

// ---- map answer (sections 6.4 to 6.9) ------------------------------------------------------------------------------

// Capability or attribute name -> raw JSON text of each value (empty list: a flag).
using CapMap = std::map<std::string, std::vector<std::string>>;

struct Node {
  NodeId id = 0;
  std::string stable_id;
  std::string name;  // FQDN with trailing dot
  UserId user = 0;
  UserId sharer = 0;
  NodePublic key;
  std::optional<WallTime> key_expiry;  // absent: never
  std::string key_signature;           // base64 text
  MachinePublic machine;
  DiscoPublic disco_key;
  std::vector<Prefix> addresses;
  std::optional<std::vector<Prefix>> allowed_ips;  // absent: same as addresses; empty: nothing
  std::vector<Endpoint> endpoints;
  std::string legacy_derp;  // "127.3.3.40:<region>"; use home_region()
  int home_derp = 0;
  std::optional<Hostinfo> hostinfo;
  std::optional<WallTime> created;
  int cap = 0;
  std::vector<std::string> tags;
  std::vector<Prefix> primary_routes;
  std::optional<WallTime> last_seen;
  std::optional<bool> online;  // informational: never gate traffic on it
  bool machine_authorized = false;
  std::vector<std::string> capabilities;  // deprecated form of cap_map
  CapMap cap_map;
  bool unsigned_peer_api_only = false;
  bool expired = false;
  std::optional<IpAddress> self_node_v4_masq_addr_for_this_peer;
  std::optional<IpAddress> self_node_v6_masq_addr_for_this_peer;
  bool is_wire_guard_only = false;
  bool is_jailed = false;

  // HomeDERP, else the legacy text; 0 = unknown.
  int home_region() const;
  // The WireGuard routes: allowed_ips, or addresses where the rules say so.
  const std::vector<Prefix>& routes() const {
    return allowed_ips && !unsigned_peer_api_only ? *allowed_ips : addresses;
  }
  bool has_capability(std::string_view capability) const;
  friend bool operator==(const Node&, const Node&) = default;
};

struct PeerChange {
  NodeId node_id = 0;
  int derp_region = 0;  // 0: unchanged
  int cap = 0;          // 0: unchanged
  std::optional<CapMap> cap_map;
  std::optional<std::vector<Endpoint>> endpoints;
  std::optional<NodePublic> key;
  std::optional<std::string> key_signature;
  std::optional<DiscoPublic> disco_key;
  std::optional<bool> online;
  std::optional<WallTime> last_seen;
  std::optional<std::optional<WallTime>> key_expiry;  // outer absent: unchanged; inner absent: never expires
  friend bool operator==(const PeerChange&, const PeerChange&) = default;
};

struct PortRange {
  std::uint16_t first = 0;
  std::uint16_t last = 0;
  static constexpr PortRange any() { return {0, 65535}; }
  friend bool operator==(const PortRange&, const PortRange&) = default;
};

struct NetPortRange {
  std::string ip;  // "*", address, prefix or "a-b"
  PortRange ports;
  friend bool operator==(const NetPortRange&, const NetPortRange&) = default;
};

// SrcIPs and DstPorts.IP stay text here: their forms are the packet filter's business (section 6.8).
struct FilterRule {
  std::vector<std::string> src_ips;
  std::vector<NetPortRange> dst_ports;
  std::vector<int> ip_proto;       // empty: TCP, UDP, ICMP, ICMPv6
  bool has_cap_grant = false;      // an application grant: no network access
  std::string cap_grant;           // its raw JSON text
  bool has_obsolete_bits = false;  // SrcBits or DstPorts[].Bits was present
  friend bool operator==(const FilterRule&, const FilterRule&) = default;
};

struct DnsResolver {
  std::string addr;  // IP, IP:port, https://...
  friend bool operator==(const DnsResolver&, const DnsResolver&) = default;
};

struct DnsRecord {
  std::string name;
  std::string type;  // empty: A or AAAA by value
  std::string value;
  friend bool operator==(const DnsRecord&, const DnsRecord&) = default;
};

struct DnsConfig {
  std::vector<DnsResolver> resolvers;
  std::map<std::string, std::vector<DnsResolver>> routes;  // empty list: answer locally
  std::vector<DnsResolver> fallback_resolvers;
  std::vector<std::string> domains;  // search list, no trailing dot
  bool proxied = false;              // MagicDNS on
  std::vector<DnsRecord> extra_records;
  std::vector<std::string> cert_domains;
  friend bool operator==(const DnsConfig&, const DnsConfig&) = default;
};

struct UserProfile {
  UserId id = 0;
  std::string login_name;
  std::string display_name;
  std::string profile_pic_url;
  friend bool operator==(const UserProfile&, const UserProfile&) = default;
};

struct PingRequest {
  std::string url;
  bool url_is_noise = false;
  bool log = false;
  std::string types;
  std::optional<IpAddress> ip;
  ByteVector payload;
  friend bool operator==(const PingRequest&, const PingRequest&) = default;
};

struct Debug {
  double sleep_seconds = 0;
  bool disable_log_tail = false;
  std::optional<int> exit;  // carried, never honoured
  friend bool operator==(const Debug&, const Debug&) = default;
};

struct TkaInfo {
  std::string head;
  bool disabled = false;
  friend bool operator==(const TkaInfo&, const TkaInfo&) = default;
};

struct DisplayMessage {
  std::string title;
  std::string text;
  std::string severity;
  friend bool operator==(const DisplayMessage&, const DisplayMessage&) = default;
};

using FilterRules = std::vector<FilterRule>;

struct MapResponse {
  bool keep_alive = false;
  std::string map_session_handle;
  std::int64_t seq = 0;
  std::optional<Node> node;
  std::vector<Node> peers;  // non-empty: complete replacement. Never written when empty
  std::vector<Node> peers_changed;
  std::vector<NodeId> peers_removed;
  std::vector<PeerChange> peers_changed_patch;
  std::map<NodeId, bool> peer_seen_change;
  std::map<NodeId, bool> online_change;
  std::optional<RelayMapUpdate> derp_map;
  std::optional<DnsConfig> dns_config;
  std::string domain;  // empty: unchanged
  std::optional<bool> collect_services;
  std::optional<FilterRules> packet_filter;  // replaces the chunk "base"
  std::optional<std::map<std::string, std::optional<FilterRules>>> packet_filters;  // inner absent (null): delete
  std::vector<UserProfile> user_profiles;
  std::optional<std::vector<std::string>> health;
  std::map<std::string, std::optional<DisplayMessage>> display_messages;  // inner absent (null): delete
  std::string ssh_policy;  // raw JSON text; empty: absent
  std::optional<PingRequest> ping_request;
  std::string pop_browser_url;
  std::optional<WallTime> control_time;
  std::optional<Debug> debug;
  std::optional<TkaInfo> tka_info;
  friend bool operator==(const MapResponse&, const MapResponse&) = default;
};

}  // namespace porthole::ts2021
