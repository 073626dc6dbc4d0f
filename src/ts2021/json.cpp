#include "ts2021/json.h"

#include <concepts>
#include <utility>

#include "ts2021/json_fields.h"
#include "ts2021/limits.h"

namespace porthole::ts2021 {

// ---- one description per message, for both directions --------------------------------------------------------------
//
// M is the message or the const message; the order is the order of writing.

template <typename M, typename T>
concept Is = std::same_as<std::remove_const_t<M>, T>;

using json::kAlways;

template <typename V, Is<KeyAnswer> M>
void fields(V& v, M& m) {
  v("legacyPublicKey", m.legacy_public_key, kAlways);
  v("publicKey", m.public_key, kAlways);
}

template <typename V, Is<RelayNode> M>
void fields(V& v, M& m) {
  v("Name", m.name, kAlways);
  v("RegionID", m.region_id, kAlways);
  v("HostName", m.host_name, kAlways);
  v("CertName", m.cert_name);
  v("IPv4", m.ipv4);
  v("IPv6", m.ipv6);
  v("STUNPort", m.stun_port);
  v("STUNOnly", m.stun_only);
  v("DERPPort", m.derp_port);
  v("InsecureForTests", m.insecure_for_tests);
  v("STUNTestIP", m.stun_test_ip);
  v("CanPort80", m.can_port80);
  v("PortholePlainHTTP", m.plain_http);
}

template <typename V, Is<RelayRegion> M>
void fields(V& v, M& m) {
  v("RegionID", m.region_id, kAlways);
  v("RegionCode", m.region_code, kAlways);
  v("RegionName", m.region_name, kAlways);
  v("Latitude", m.latitude);
  v("Longitude", m.longitude);
  v("Avoid", m.avoid);
  v("NoMeasureNoHome", m.no_measure_no_home);
  v("Nodes", m.nodes, kAlways);
}

// Wire only: what it holds is RelayMapUpdate::region_score.
struct HomeParams {
  std::optional<std::map<int, double>> region_score;
};

template <typename V, Is<HomeParams> M>
void fields(V& v, M& m) {
  v("RegionScore", m.region_score);
}

template <typename V, Is<RelayMapUpdate> M>
void fields(V& v, M& m) {
  std::optional<HomeParams> home;
  if constexpr (!V::kReading) {
    if (m.region_score) home = HomeParams{m.region_score};
  }
  v("HomeParams", home);
  v("Regions", m.regions);
  v("omitDefaultRegions", m.omit_default_regions);
  if constexpr (V::kReading) {
    if (home) m.region_score = std::move(home->region_score);
    if (m.regions) {
      // The key names the region. Ids beyond 16 bits cannot be carried in the legacy peer field.
      std::erase_if(*m.regions, [](const auto& entry) { return entry.first < 1 || entry.first > 65535; });
      for (auto& [id, region] : *m.regions) region.region_id = id;
    }
  }
}

template <typename V, Is<NetInfo> M>
void fields(V& v, M& m) {
  v("MappingVariesByDestIP", m.mapping_varies_by_dest_ip);
  v("WorkingIPv6", m.working_ipv6);
  v("OSHasIPv6", m.os_has_ipv6);
  v("WorkingUDP", m.working_udp);
  v("WorkingICMPv4", m.working_icmpv4);
  v("HavePortMap", m.have_port_map);
  v("UPnP", m.upnp);
  v("PMP", m.pmp);
  v("PCP", m.pcp);
  v("PreferredDERP", m.preferred_derp);
  v("LinkType", m.link_type);
  v("DERPLatency", m.derp_latency);
}

template <typename V, Is<Service> M>
void fields(V& v, M& m) {
  v("Proto", m.proto, kAlways);
  v("Port", m.port, kAlways);
  v("Description", m.description);
}

template <typename V, Is<Hostinfo> M>
void fields(V& v, M& m) {
  v("IPNVersion", m.ipn_version);
  v("BackendLogID", m.backend_log_id);
  v("OS", m.os);
  v("OSVersion", m.os_version);
  v("Container", m.container);
  v("Env", m.env);
  v("Distro", m.distro);
  v("DistroVersion", m.distro_version);
  v("DistroCodeName", m.distro_code_name);
  v("App", m.app);
  v("Desktop", m.desktop);
  v("Package", m.package);
  v("DeviceModel", m.device_model);
  v("Hostname", m.hostname);
  v("ShieldsUp", m.shields_up);
  v("NoLogsNoSupport", m.no_logs_no_support);
  v("Machine", m.machine);
  v("GoArch", m.go_arch);
  v("GoArchVar", m.go_arch_var);
  v("GoVersion", m.go_version);
  v("RoutableIPs", m.routable_ips);
  v("RequestTags", m.request_tags);
  v("Services", m.services);
  v("NetInfo", m.net_info);
  v("Userspace", m.userspace);
  v("UserspaceRouter", m.userspace_router);
  v("AppConnector", m.app_connector);
  v("StateEncrypted", m.state_encrypted);
}

// Wire only: the Auth object around RegisterRequest::auth_key.
struct AuthRef {
  crypto::SecretText& key;
};
struct ConstAuthRef {
  const crypto::SecretText& key;
};

template <typename V, typename M>
  requires(Is<M, AuthRef> || Is<M, ConstAuthRef>)
void fields(V& v, M& m) {
  v("AuthKey", m.key);
}

template <typename V, Is<RegisterRequest> M>
void fields(V& v, M& m) {
  v("Version", m.version, kAlways);
  v("NodeKey", m.node_key, kAlways);
  v("OldNodeKey", m.old_node_key, kAlways);
  v("NLKey", m.nl_key);
  if constexpr (V::kReading) {
    AuthRef auth{m.auth_key};
    v("Auth", auth);
  } else if (!m.auth_key.empty()) {
    v("Auth", ConstAuthRef{m.auth_key});
  }
  v("Expiry", m.expiry, kAlways);
  v("Followup", m.followup, kAlways);
  v("Hostinfo", m.hostinfo);
  v("Ephemeral", m.ephemeral);
  v("Tailnet", m.tailnet);
}

template <typename V, Is<User> M>
void fields(V& v, M& m) {
  v("ID", m.id, kAlways);
  v("DisplayName", m.display_name, kAlways);
  v("ProfilePicURL", m.profile_pic_url);
  v("Created", m.created);
}

template <typename V, Is<Login> M>
void fields(V& v, M& m) {
  v("ID", m.id, kAlways);
  v("Provider", m.provider, kAlways);
  v("LoginName", m.login_name, kAlways);
  v("DisplayName", m.display_name, kAlways);
  v("ProfilePicURL", m.profile_pic_url);
}

template <typename V, Is<RegisterResponse> M>
void fields(V& v, M& m) {
  v("User", m.user, kAlways);
  v("Login", m.login, kAlways);
  v("NodeKeyExpired", m.node_key_expired, kAlways);
  v("MachineAuthorized", m.machine_authorized, kAlways);
  v("AuthURL", m.auth_url, kAlways);
  v("NodeKeySignature", m.node_key_signature);
  v("Error", m.error, kAlways);
}

template <typename V, Is<MapRequest> M>
void fields(V& v, M& m) {
  v("Version", m.version, kAlways);
  v("Compress", m.compress);
  v("KeepAlive", m.keep_alive);
  v("NodeKey", m.node_key, kAlways);
  v("DiscoKey", m.disco_key, kAlways);
  v("Stream", m.stream);
  v("OmitPeers", m.omit_peers);
  v("ReadOnly", m.read_only);
  v("Hostinfo", m.hostinfo);
  v("Endpoints", m.endpoints);
  v("EndpointTypes", m.endpoint_types);
  v("MapSessionHandle", m.map_session_handle);
  v("MapSessionSeq", m.map_session_seq);
  v("DebugFlags", m.debug_flags);
}

namespace {
// A capability's values stay JSON text, so CapMap is no ordinary field.
void cap_map_field(json::JsonReader& v, CapMap& out) {
  const json::bj::value* field = json::find_field(v.object(), "CapMap");
  if (field == nullptr || field->is_null()) return;
  const json::bj::object* object = field->if_object();
  if (object == nullptr) return v.state().fail("CapMap", "is not an object");
  for (const auto& entry : *object) {
    std::vector<std::string>& values = out[std::string(entry.key().data(), entry.key().size())];
    const json::bj::array* list = entry.value().if_array();
    if (list == nullptr) {
      if (!entry.value().is_null()) return v.state().fail("CapMap", "holds something that is not a list");
      continue;
    }
    for (const auto& value : *list) values.push_back(json::bj::serialize(value));
  }
}

void cap_map_field(json::JsonWriter& v, const CapMap& cap_map, json::Emit emit = json::Emit::kUnlessZero) {
  std::string text;
  if (!cap_map.empty() || emit == kAlways) {
    text += '{';
    for (const auto& [name, values] : cap_map) {
      if (text.size() > 1) text += ',';
      json::append_json_string(text, name);
      text += ":[";
      for (std::size_t i = 0; i < values.size(); ++i) {
        if (i != 0) text += ',';
        text += values[i];
      }
      text += ']';
    }
    text += '}';
  }
  v("CapMap", json::RawJson{text});
}

}  // namespace

template <typename V, Is<Node> M>
void fields(V& v, M& m) {
  v("ID", m.id, kAlways);
  v("StableID", m.stable_id, kAlways);
  v("Name", m.name, kAlways);
  v("User", m.user, kAlways);
  v("Sharer", m.sharer);
  v("Key", m.key, kAlways);
  v("KeyExpiry", m.key_expiry);
  v("KeySignature", m.key_signature);
  v("Machine", m.machine);
  v("DiscoKey", m.disco_key);
  v("Addresses", m.addresses);
  v("AllowedIPs", m.allowed_ips);
  v("Endpoints", m.endpoints);
  v("DERP", m.legacy_derp);
  v("HomeDERP", m.home_derp);
  v("Hostinfo", m.hostinfo);
  v("Created", m.created);
  v("Cap", m.cap);
  v("Tags", m.tags);
  v("PrimaryRoutes", m.primary_routes);
  v("LastSeen", m.last_seen);
  v("Online", m.online);
  v("MachineAuthorized", m.machine_authorized);
  v("Capabilities", m.capabilities);
  cap_map_field(v, m.cap_map);
  v("UnsignedPeerAPIOnly", m.unsigned_peer_api_only);
  v("Expired", m.expired);
  v("SelfNodeV4MasqAddrForThisPeer", m.self_node_v4_masq_addr_for_this_peer);
  v("SelfNodeV6MasqAddrForThisPeer", m.self_node_v6_masq_addr_for_this_peer);
  v("IsWireGuardOnly", m.is_wire_guard_only);
  v("IsJailed", m.is_jailed);
}

template <typename V, Is<PeerChange> M>
void fields(V& v, M& m) {
  v("NodeID", m.node_id, kAlways);
  v("DERPRegion", m.derp_region);
  v("Cap", m.cap);
  if constexpr (V::kReading) {
    if (const auto* present = json::find_field(v.object(), "CapMap"); present != nullptr && !present->is_null()) {
      m.cap_map.emplace();
      cap_map_field(v, *m.cap_map);
    }
  } else if (m.cap_map) {
    cap_map_field(v, *m.cap_map, kAlways);
  }
  v("Endpoints", m.endpoints);
  v("Key", m.key);
  v("KeySignature", m.key_signature);
  v("DiscoKey", m.disco_key);
  v("Online", m.online);
  v("LastSeen", m.last_seen);
  v("KeyExpiry", m.key_expiry);
}

template <typename V, Is<PortRange> M>
void fields(V& v, M& m) {
  v("First", m.first, kAlways);
  v("Last", m.last, kAlways);
}

template <typename V, Is<NetPortRange> M>
void fields(V& v, M& m) {
  v("IP", m.ip, kAlways);
  v("Ports", m.ports, kAlways);
}

template <typename V, Is<FilterRule> M>
void fields(V& v, M& m) {
  v("SrcIPs", m.src_ips, kAlways);
  v("IPProto", m.ip_proto);
  if constexpr (V::kReading) {
    v("DstPorts", m.dst_ports);
    v("SrcBits", json::Presence{m.has_obsolete_bits});
    v("CapGrant", json::Presence{m.has_cap_grant});
    v("CapGrant", json::RawJson{m.cap_grant});
    if (const auto* ports = json::find_field(v.object(), "DstPorts"); ports != nullptr && ports->is_array()) {
      for (const auto& entry : ports->get_array()) {
        if (!entry.is_object()) continue;
        const auto* bits = json::find_field(entry.get_object(), "Bits");
        if (bits != nullptr && !bits->is_null()) m.has_obsolete_bits = true;
      }
    }
  } else if (m.has_cap_grant) {
    std::string text = m.cap_grant.empty() ? "[]" : m.cap_grant;
    v("CapGrant", json::RawJson{text});
  } else {
    v("DstPorts", m.dst_ports, kAlways);  // never absent: tailscale-rs fails on a rule with neither
  }
}

template <typename V, Is<DnsResolver> M>
void fields(V& v, M& m) {
  v("Addr", m.addr);
}

template <typename V, Is<DnsRecord> M>
void fields(V& v, M& m) {
  v("Name", m.name, kAlways);
  v("Type", m.type);
  v("Value", m.value, kAlways);
}

template <typename V, Is<DnsConfig> M>
void fields(V& v, M& m) {
  v("Resolvers", m.resolvers);
  v("Routes", m.routes);
  v("FallbackResolvers", m.fallback_resolvers);
  v("Domains", m.domains);
  v("Proxied", m.proxied);
  v("ExtraRecords", m.extra_records);
  v("CertDomains", m.cert_domains);
}

template <typename V, Is<UserProfile> M>
void fields(V& v, M& m) {
  v("ID", m.id, kAlways);
  v("LoginName", m.login_name, kAlways);
  v("DisplayName", m.display_name, kAlways);
  v("ProfilePicURL", m.profile_pic_url);
}

template <typename V, Is<PingRequest> M>
void fields(V& v, M& m) {
  v("URL", m.url, kAlways);
  v("URLIsNoise", m.url_is_noise, kAlways);
  v("Log", m.log);
  v("Types", m.types, kAlways);
  v("IP", m.ip);
  v("Payload", m.payload);
}

template <typename V, Is<Debug> M>
void fields(V& v, M& m) {
  v("SleepSeconds", m.sleep_seconds);
  v("DisableLogTail", m.disable_log_tail);
  v("Exit", m.exit);
}

template <typename V, Is<TkaInfo> M>
void fields(V& v, M& m) {
  v("Head", m.head);
  v("Disabled", m.disabled);
}

template <typename V, Is<DisplayMessage> M>
void fields(V& v, M& m) {
  v("Title", m.title);
  v("Text", m.text);
  v("Severity", m.severity);
}

template <typename V, Is<MapResponse> M>
void fields(V& v, M& m) {
  v("MapSessionHandle", m.map_session_handle);
  v("Seq", m.seq);
  v("KeepAlive", m.keep_alive);
  v("PingRequest", m.ping_request);
  v("PopBrowserURL", m.pop_browser_url);
  v("Node", m.node);
  v("DERPMap", m.derp_map);
  v("Peers", m.peers);
  v("PeersChanged", m.peers_changed);
  v("PeersRemoved", m.peers_removed);
  v("PeersChangedPatch", m.peers_changed_patch);
  v("PeerSeenChange", m.peer_seen_change);
  v("OnlineChange", m.online_change);
  v("DNSConfig", m.dns_config);
  v("Domain", m.domain);
  v("CollectServices", m.collect_services);
  v("PacketFilter", m.packet_filter);
  v("PacketFilters", m.packet_filters);
  v("UserProfiles", m.user_profiles);
  v("Health", m.health);
  v("DisplayMessages", m.display_messages);
  if constexpr (V::kReading) {
    v("SSHPolicy", json::RawJson{m.ssh_policy});
  } else {
    std::string text = m.ssh_policy;
    v("SSHPolicy", json::RawJson{text});
  }
  v("ControlTime", m.control_time);
  v("TKAInfo", m.tka_info);
  v("Debug", m.debug);
}

namespace {

// Parses `text` into a value on `memory`. Error names `what`.
Result<json::bj::value> parse_document(Bytes text, std::size_t size_max, std::string_view what,
                                       json::bj::storage_ptr memory) {
  if (text.size() > size_max) {
    return Error{ErrorCode::kLimit, std::string(what) + " is larger than " + std::to_string(size_max) + " bytes"};
  }
  json::bj::parse_options options;
  options.max_depth = kJsonDepthMax;
  json::bj::error_code error;
  std::string_view view = as_text(text);
  json::bj::value value = json::bj::parse({view.data(), view.size()}, error, std::move(memory), options);
  if (error) return Error{ErrorCode::kProtocol, std::string(what) + " is not JSON: " + error.message()};
  return value;
}

// The whole document, then its fields. The tree lives in one arena that is dropped at once.
template <typename M>
Result<M> parse_message(Bytes text, std::size_t size_max, std::string_view what) {
  json::bj::monotonic_resource arena(std::max<std::size_t>(1024, text.size() * 2));
  auto document = parse_document(text, size_max, what, &arena);
  if (!document.ok()) return document.error();
  M message{};
  json::ReadState state;
  json::bj::object root;
  json::JsonReader(root, state).read(what, *document, message);
  if (!state.ok()) return Error{ErrorCode::kProtocol, std::string(what) + ": " + state.trouble};
  return message;
}

template <typename M>
std::string encode_message(const M& message, std::size_t size_hint = 512) {
  std::string out;
  out.reserve(size_hint);
  json::JsonWriter writer(out);
  fields(writer, message);
  writer.close();
  return out;
}

}  // namespace

Result<KeyAnswer> parse_key_answer(Bytes text) {
  return parse_message<KeyAnswer>(text, kKeyAnswerSizeMax, "the control server's key answer");
}
std::string encode_key_answer(const KeyAnswer& answer) { return encode_message(answer); }

Result<RegisterRequest> parse_register_request(Bytes text) {
  return parse_message<RegisterRequest>(text, kRequestBodySizeMax, "register request");
}
crypto::SecretText encode_register_request(const RegisterRequest& request) {
  // Room for everything, so that no freed buffer keeps a copy of the key.
  std::string text = encode_message(request, 64 * 1024);
  crypto::SecretText out(text);
  crypto::wipe(MutBytes(reinterpret_cast<std::uint8_t*>(text.data()), text.size()));
  return out;
}

Result<RegisterResponse> parse_register_response(Bytes text) {
  return parse_message<RegisterResponse>(text, kRegisterResponseSizeMax, "register answer");
}
std::string encode_register_response(const RegisterResponse& response) { return encode_message(response); }

Result<MapRequest> parse_map_request(Bytes text) {
  constexpr std::string_view kWhat = "map request";
  json::bj::monotonic_resource arena(std::max<std::size_t>(1024, text.size() * 2));
  auto document = parse_document(text, kRequestBodySizeMax, kWhat, &arena);
  if (!document.ok()) return document.error();
  MapRequest message;
  json::ReadState state;
  json::bj::object root;
  json::JsonReader(root, state).read(kWhat, *document, message);
  if (!state.ok()) return Error{ErrorCode::kProtocol, std::string(kWhat) + ": " + state.trouble};

  // A malformed endpoint was left out; its type must go with it.
  const auto* raw = json::find_field(document->get_object(), "Endpoints");
  if (message.endpoints && raw != nullptr && raw->is_array() && raw->get_array().size() != message.endpoints->size()) {
    std::vector<int> types;
    std::size_t index = 0;
    for (const auto& element : raw->get_array()) {
      const json::bj::string* s = element.if_string();
      if (s != nullptr && Endpoint::parse(std::string_view(s->data(), s->size()))) {
        types.push_back(index < message.endpoint_types.size() ? message.endpoint_types[index] : 0);
      }
      ++index;
    }
    message.endpoint_types = std::move(types);
  }
  return message;
}
std::string encode_map_request(const MapRequest& request) { return encode_message(request, 2048); }

Result<MapResponse> parse_map_response(Bytes text) {
  return parse_message<MapResponse>(text, kMapMessageSizeMax, "map message");
}
std::string encode_map_response(const MapResponse& response) {
  return encode_message(response, 4096 + 1024 * response.peers.size());
}

Result<Hostinfo> parse_hostinfo(Bytes text) { return parse_message<Hostinfo>(text, kRequestBodySizeMax, "Hostinfo"); }
std::string encode_hostinfo(const Hostinfo& hostinfo) { return encode_message(hostinfo, 1024); }

Result<Node> parse_node(Bytes text) { return parse_message<Node>(text, kRequestBodySizeMax, "node"); }
std::string encode_node(const Node& node) { return encode_message(node, 2048); }

Result<RelayMap> parse_relay_map(Bytes text) {
  auto update = parse_message<RelayMapUpdate>(text, kMapMessageSizeMax, "relay map");
  if (!update.ok()) return update.error();
  RelayMap map;
  update->apply(map);
  return map;
}
std::string encode_relay_map(const RelayMap& map) {
  return encode_message(RelayMapUpdate::full(map), 256 + 512 * map.regions.size());
}

Result<FilterRules> parse_filter_rules(Bytes text) {
  constexpr std::string_view kWhat = "filter rules";
  auto document = parse_document(text, kMapMessageSizeMax, kWhat, {});
  if (!document.ok()) return document.error();
  FilterRules rules;
  json::ReadState state;
  json::bj::object root;
  json::JsonReader(root, state).read(kWhat, *document, rules);
  if (!state.ok()) return Error{ErrorCode::kProtocol, std::string(kWhat) + ": " + state.trouble};
  return rules;
}
std::string encode_filter_rules(const FilterRules& rules) {
  std::string out = "[";
  for (const FilterRule& rule : rules) {
    if (out.size() > 1) out += ',';
    out += encode_message(rule);
  }
  out += ']';
  return out;
}

std::string encode_early_payload_json(const ChallengePublic& challenge) {
  std::string out = "{\"nodeKeyChallenge\":";
  json::append_json_string(out, challenge.to_string());
  out += '}';
  return out;
}

}  // namespace porthole::ts2021
