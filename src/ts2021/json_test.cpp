#include "ts2021/json.h"

#include <gtest/gtest.h>

#include <set>

#include "base/rng.h"
#include "support/vectors.h"
#include "ts2021/limits.h"
#include "ts2021/time_text.h"

namespace porthole::ts2021 {
namespace {

namespace bj = boost::json;

// The same document without what our encoder leaves out on purpose: null members.
bj::value without_nulls(const bj::value& v) {
  if (v.is_object()) {
    bj::object out;
    for (const auto& e : v.get_object()) {
      if (!e.value().is_null()) out[e.key()] = without_nulls(e.value());
    }
    return out;
  }
  if (v.is_array()) {
    bj::array out;
    for (const auto& e : v.get_array()) out.push_back(without_nulls(e));
    return out;
  }
  return v;
}
// The recorder replaced repeated DNSConfig.Routes by a note, which is not what was on the wire.
bj::value without_shortened_routes(const bj::value& event) {
  bj::value out = event;
  bj::value* map = out.as_object().if_contains("map");
  bj::value* dns = map == nullptr ? nullptr : map->as_object().if_contains("DNSConfig");
  bj::value* routes = dns == nullptr ? nullptr : dns->as_object().if_contains("Routes");
  if (routes != nullptr && routes->as_object().contains("_shortened")) dns->as_object().erase("Routes");
  return out;
}
// Integers compare by value whatever the parser made of them.
bool same(const bj::value& a, const bj::value& b, std::string& where) {
  if (a.is_object() && b.is_object()) {
    std::set<std::string> keys;
    for (const auto& e : a.get_object()) keys.insert(std::string(e.key()));
    for (const auto& e : b.get_object()) keys.insert(std::string(e.key()));
    for (const auto& k : keys) {
      const bj::value* x = a.get_object().if_contains(k);
      const bj::value* y = b.get_object().if_contains(k);
      if (x == nullptr || y == nullptr || !same(*x, *y, where)) {
        where = "." + k + where;
        return false;
      }
    }
    return true;
  }
  if (a.is_array() && b.is_array()) {
    if (a.get_array().size() != b.get_array().size()) return false;
    for (std::size_t i = 0; i < a.get_array().size(); ++i) {
      if (!same(a.get_array()[i], b.get_array()[i], where)) {
        where = "[" + std::to_string(i) + "]" + where;
        return false;
      }
    }
    return true;
  }
  if (a.is_double() || b.is_double()) {
    bj::error_code ea, eb;
    return a.to_number<double>(ea) == b.to_number<double>(eb) && !ea && !eb;
  }
  return a == b;
}
void expect_same_document(std::string_view ours, const bj::value& captured) {
  bj::error_code error;
  bj::value back = bj::parse({ours.data(), ours.size()}, error);
  ASSERT_FALSE(error) << ours;
  std::string where;
  EXPECT_TRUE(same(back, without_nulls(captured), where)) << where << "\nours: " << ours.substr(0, 600);
}

std::string_view as_view(const crypto::SecretText& s) { return s.reveal(); }

TEST(JsonCaptures, EveryMessageParsesAndEncodesToTheSameDocument) {
  int registers = 0, register_answers = 0, map_requests = 0, maps = 0, early = 0;
  for (std::string_view file : {"control-session.json", "control-interactive-delete.json", "control-embedded.json"}) {
    const bj::value capture = test::load_capture(file);
    for (const auto& event : capture.at("events").as_array()) {
      const bj::value mended = without_shortened_routes(event);
      const bj::object& e = mended.as_object();
      SCOPED_TRACE(std::string(file) + " " + bj::serialize(e).substr(0, 160));
      if (const auto* map = e.if_contains("map")) {
        auto parsed = parse_map_response(as_bytes(bj::serialize(*map)));
        ASSERT_TRUE(parsed.ok()) << parsed.error().message;
        std::string encoded = encode_map_response(*parsed);
        expect_same_document(encoded, *map);
        auto again = parse_map_response(as_bytes(encoded));
        ASSERT_TRUE(again.ok());
        EXPECT_EQ(*again, *parsed);
        ++maps;
      }
      if (const auto* payload = e.if_contains("early_payload")) {
        ByteVector raw = test::unhex(*payload);
        auto json = as_text(Bytes(raw).subspan(9));
        bj::value v = bj::parse({json.data(), json.size()});
        auto challenge = ChallengePublic::parse(test::text(v.at("nodeKeyChallenge")));
        ASSERT_TRUE(challenge.has_value());
        EXPECT_EQ(encode_early_payload_json(*challenge), json);
        ++early;
      }
      const auto* body = e.if_contains("body");
      if (body == nullptr || !body->is_object()) continue;
      const auto* request = e.if_contains("request");
      if (request != nullptr && test::text(*request).ends_with("/machine/register")) {
        auto parsed = parse_register_request(as_bytes(bj::serialize(*body)));
        ASSERT_TRUE(parsed.ok()) << parsed.error().message;
        expect_same_document(as_view(encode_register_request(*parsed)), *body);
        ++registers;
      } else if (request != nullptr) {
        auto parsed = parse_map_request(as_bytes(bj::serialize(*body)));
        ASSERT_TRUE(parsed.ok()) << parsed.error().message;
        expect_same_document(encode_map_request(*parsed), *body);
        ++map_requests;
      } else if (e.contains("status")) {
        auto parsed = parse_register_response(as_bytes(bj::serialize(*body)));
        ASSERT_TRUE(parsed.ok()) << parsed.error().message;
        expect_same_document(encode_register_response(*parsed), *body);
        ++register_answers;
      }
    }
  }
  EXPECT_GE(registers, 20);
  EXPECT_GE(register_answers, 20);
  EXPECT_GE(map_requests, 30);
  EXPECT_GE(maps, 105);
  EXPECT_GE(early, 8);
}

TEST(JsonCaptures, KeyAnswer) {
  const bj::value capture = test::load_capture("key.json");
  auto parsed = parse_key_answer(as_bytes(bj::serialize(capture.at("body"))));
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->public_key.to_string(), test::text(capture.at("body").at("publicKey")));
  EXPECT_TRUE(parsed->legacy_public_key.is_zero());
  expect_same_document(encode_key_answer(*parsed), capture.at("body"));
}

TEST(JsonDialect, KeysInAnyCaseNullsAndUnknowns) {
  auto r = parse_map_request(as_bytes(R"({"VERSION":130,"nodekey":null,"HostInfo":{"Os":"linux","IpnVersion":"1","NetInfo":
    {"PreferredDerp":7,"DerpLatency":{"7-v4":0.25}},"X":{"y":[1,{"z":null}]}},"Stream":true,"Endpoints":null,"zzz":[[[]]]})"));
  ASSERT_TRUE(r.ok()) << r.error().message;
  EXPECT_EQ(r->version, 130);
  EXPECT_TRUE(r->node_key.is_zero());
  EXPECT_FALSE(r->endpoints.has_value());
  ASSERT_TRUE(r->hostinfo && r->hostinfo->net_info);
  EXPECT_EQ(r->hostinfo->os, "linux");
  EXPECT_EQ(r->hostinfo->net_info->preferred_derp, 7);
  EXPECT_EQ(r->hostinfo->net_info->derp_latency.at("7-v4"), 0.25);
}

TEST(JsonDialect, AbsentDiffersFromEmpty) {
  auto absent = parse_node(as_bytes(R"({"ID":1,"Addresses":["100.64.0.1/32"]})"));
  auto empty = parse_node(as_bytes(R"({"ID":1,"Addresses":["100.64.0.1/32"],"AllowedIPs":[]})"));
  ASSERT_TRUE(absent.ok() && empty.ok());
  EXPECT_EQ(absent->routes().size(), 1u);
  EXPECT_EQ(empty->routes().size(), 0u);
  EXPECT_EQ(encode_node(*absent).find("AllowedIPs"), std::string::npos);
  EXPECT_NE(encode_node(*empty).find("\"AllowedIPs\":[]"), std::string::npos);

  auto map = parse_map_response(as_bytes(R"({"PacketFilters":{"*":null,"x":[]},"DERPMap":{"Regions":{"7":null,"8":{"RegionID":8}},
    "HomeParams":{"RegionScore":{}}},"Peers":[],"Health":[],"DNSConfig":{"Routes":{"a.example":null}}})"));
  ASSERT_TRUE(map.ok()) << map.error().message;
  EXPECT_FALSE(map->packet_filters->at("*").has_value());
  EXPECT_TRUE(map->packet_filters->at("x").has_value());
  EXPECT_FALSE(map->packet_filter.has_value());
  EXPECT_EQ(map->derp_map->regions->size(), 1u);
  EXPECT_TRUE(map->derp_map->region_score.has_value());
  EXPECT_TRUE(map->health.has_value());
  EXPECT_TRUE(map->dns_config->routes.at("a.example").empty());
  std::string again = encode_map_response(*map);
  EXPECT_EQ(again.find("Peers\""), std::string::npos) << again;
  EXPECT_NE(again.find("\"*\":null"), std::string::npos) << again;

  auto patch = parse_map_response(
      as_bytes(R"({"PeersChangedPatch":[{"NodeID":2,"KeyExpiry":"0001-01-01T00:00:00Z","Endpoints":[],"CapMap":{}},{"NodeID":3}]})"));
  ASSERT_TRUE(patch.ok());
  ASSERT_TRUE(patch->peers_changed_patch[0].key_expiry.has_value());
  EXPECT_FALSE(patch->peers_changed_patch[0].key_expiry->has_value());
  EXPECT_TRUE(patch->peers_changed_patch[0].endpoints.has_value());
  EXPECT_TRUE(patch->peers_changed_patch[0].cap_map.has_value());
  EXPECT_FALSE(patch->peers_changed_patch[1].key_expiry.has_value());
  auto round = parse_map_response(as_bytes(encode_map_response(*patch)));
  EXPECT_EQ(*round, *patch);
}

TEST(JsonDialect, ZeroTimesAndKeysMeanNone) {
  auto n = parse_node(as_bytes(
      R"({"ID":1,"KeyExpiry":"0001-01-01T00:00:00Z","DiscoKey":"discokey:0000000000000000000000000000000000000000000000000000000000000000","LastSeen":""})"));
  ASSERT_TRUE(n.ok());
  EXPECT_FALSE(n->key_expiry.has_value());
  EXPECT_FALSE(n->last_seen.has_value());
  EXPECT_TRUE(n->disco_key.is_zero());
  RegisterRequest r;
  std::string text(encode_register_request(r).reveal());
  EXPECT_NE(text.find("\"Expiry\":\"0001-01-01T00:00:00Z\""), std::string::npos);
  EXPECT_NE(text.find("\"OldNodeKey\":\"nodekey:0000"), std::string::npos);
  EXPECT_EQ(text.find("Auth"), std::string::npos);
}

TEST(JsonDialect, IdsAreSixtyFourBits) {
  auto m = parse_map_response(as_bytes(R"({"PeersRemoved":[9007199254740993,9223372036854775807]})"));
  ASSERT_TRUE(m.ok());
  EXPECT_EQ(m->peers_removed[0], 9007199254740993);
  EXPECT_EQ(m->peers_removed[1], 9223372036854775807);
  EXPECT_FALSE(parse_map_response(as_bytes(R"({"PeersRemoved":[9223372036854775808]})")).ok());
  EXPECT_FALSE(parse_map_response(as_bytes(R"({"PeersRemoved":[1.5]})")).ok());
}

TEST(JsonDialect, BadListEntriesAreLeftOut) {
  auto r = parse_map_request(as_bytes(R"({"Endpoints":["1.2.3.4:5","","nonsense","[2001:db8::1]:9"],"EndpointTypes":[1,2,3,4]})"));
  ASSERT_TRUE(r.ok());
  ASSERT_EQ(r->endpoints->size(), 2u);
  EXPECT_EQ(r->endpoint_types, (std::vector<int>{1, 4}));
  auto n = parse_node(as_bytes(R"({"ID":1,"Addresses":["100.64.0.1/32","x",null]})"));
  ASSERT_TRUE(n.ok());
  EXPECT_EQ(n->addresses.size(), 1u);
}

TEST(JsonDialect, WrongKindsNameTheField) {
  auto r = parse_map_response(as_bytes(R"({"Node":{"ID":"one"}})"));
  ASSERT_FALSE(r.ok());
  EXPECT_EQ(r.error().code, ErrorCode::kProtocol);
  EXPECT_NE(r.error().message.find("field ID"), std::string::npos) << r.error().message;
  for (std::string_view bad : {"", "[]", "null", "{", "{\"a\":}", "{} {}", "{\"Node\":{\"Key\":\"mkey:00\"}}", "{\"ControlTime\":\"soon\"}",
                               "{\"PacketFilters\":[]}", "{\"Node\":{\"Addresses\":[1]}}", "{\"Node\":{\"CapMap\":[]}}",
                               "{\"PingRequest\":{\"Payload\":\"%%\"}}", "{\"Peers\":[5]}"}) {
    EXPECT_FALSE(parse_map_response(as_bytes(bad)).ok()) << bad;
  }
}

TEST(JsonDialect, DepthAndSizeAreBounded) {
  std::string deep = "{\"x\":" + std::string(100, '[') + std::string(100, ']') + "}";
  EXPECT_FALSE(parse_map_response(as_bytes(deep)).ok());
  std::string large = "{\"x\":\"" + std::string(kRequestBodySizeMax, 'a') + "\"}";
  auto r = parse_map_request(as_bytes(large));
  ASSERT_FALSE(r.ok());
  EXPECT_EQ(r.error().code, ErrorCode::kLimit);
}

TEST(JsonDialect, TextIsWrittenRaw) {
  UserProfile profile{1, "a/b <c> & \"d\" \\ \x01", "J\xc3\xb6rg \xff \xed\xa0\x80 \xf0\x9f\x98\x80", ""};
  MapResponse m;
  m.user_profiles.push_back(profile);
  std::string text = encode_map_response(m);
  EXPECT_NE(text.find(R"("a/b <c> & \"d\" \\ \u0001")"), std::string::npos) << text;
  EXPECT_NE(text.find("J\xc3\xb6rg \xef\xbf\xbd \xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd \xf0\x9f\x98\x80"), std::string::npos) << text;
  EXPECT_TRUE(parse_map_response(as_bytes(text)).ok());
  auto escaped = parse_map_response(as_bytes(R"({"Domain":"\u003ca\/b\u003e"})"));
  EXPECT_EQ(escaped->domain, "<a/b>");
}

TEST(JsonDialect, RegisterAnswerIsComplete) {
  std::string text = encode_register_response({});
  for (std::string_view field : {"\"User\":{\"ID\":0,\"DisplayName\":\"\"}", "\"Login\":{\"ID\":0,\"Provider\":\"\",\"LoginName\":\"\",\"DisplayName\":\"\"}",
                                 "\"NodeKeyExpired\":false", "\"MachineAuthorized\":false", "\"AuthURL\":\"\"", "\"Error\":\"\""}) {
    EXPECT_NE(text.find(field), std::string::npos) << field << " in " << text;
  }
  EXPECT_EQ(text.find("null"), std::string::npos);
}

TEST(JsonDialect, PingRequestIsComplete) {
  MapResponse m;
  m.ping_request = PingRequest{"https://unused/c2n/1", true, false, "c2n", std::nullopt, to_vector(as_bytes("GET /"))};
  std::string text = encode_map_response(m);
  EXPECT_NE(text.find(R"("URLIsNoise":true,"Types":"c2n","Payload":"R0VUIC8=")"), std::string::npos) << text;
  EXPECT_EQ(*parse_map_response(as_bytes(text)), m);
}

TEST(JsonDialect, FilterRules) {
  auto rules = parse_filter_rules(as_bytes(R"([{"SrcIPs":["*"],"DstPorts":[{"IP":"*","Ports":{"First":0,"Last":65535}}]},
    {"SrcIPs":["1.2.3.4"],"SrcBits":[32],"DstPorts":[{"IP":"*","Bits":null,"Ports":{"First":1,"Last":2}}]},
    {"SrcIPs":["*"],"CapGrant":[{"Dsts":["100.64.0.1/32"],"CapMap":{"a":null}}]}])"));
  ASSERT_TRUE(rules.ok()) << rules.error().message;
  EXPECT_FALSE((*rules)[0].has_obsolete_bits);
  EXPECT_TRUE((*rules)[1].has_obsolete_bits);
  EXPECT_TRUE((*rules)[2].has_cap_grant);
  std::string text = encode_filter_rules(*rules);
  auto again = parse_filter_rules(as_bytes(text));
  ASSERT_TRUE(again.ok());
  EXPECT_EQ((*again)[2].cap_grant, (*rules)[2].cap_grant);
  FilterRule empty;
  EXPECT_EQ(encode_filter_rules({empty}), R"([{"SrcIPs":[],"DstPorts":[]}])");
}

TEST(JsonDialect, LegacyHomeRegion) {
  auto n = parse_node(as_bytes(R"({"ID":1,"DERP":"127.3.3.40:17"})"));
  EXPECT_EQ(n->home_region(), 17);
  n->home_derp = 5;
  EXPECT_EQ(n->home_region(), 5);
  for (std::string_view bad : {"", "127.3.3.40:", "127.3.3.40:x", "127.3.3.40:0", "127.3.3.40:70000", "1.2.3.4:5"}) {
    Node other;
    other.legacy_derp = bad;
    EXPECT_EQ(other.home_region(), 0) << bad;
  }
}

TEST(JsonDialect, RelayMapDocument) {
  auto map = parse_relay_map(as_bytes(R"({"omitDefaultRegions":true,"Regions":{"900":{"RegionID":900,"RegionCode":"lab","RegionName":"Lab","Nodes":[
    {"Name":"900a","RegionID":900,"HostName":"derp.example.com","IPv4":"192.0.2.10","IPv6":"none","DERPPort":8443,"CanPort80":true},
    {"Name":"900s","RegionID":900,"HostName":"stun.example.com","STUNOnly":true}]},"-4":{"RegionID":-4},"70000":{}}})"));
  ASSERT_TRUE(map.ok()) << map.error().message;
  ASSERT_EQ(map->regions.size(), 1u);
  EXPECT_EQ(map->regions.at(900).nodes.size(), 2u);
  EXPECT_TRUE(map->omit_default_regions);
  EXPECT_EQ(*parse_relay_map(as_bytes(encode_relay_map(*map))), *map);
}

TEST(JsonDialect, TenThousandPeers) {
  MapResponse m;
  SeededRng rng(3);
  m.node.emplace();
  for (int i = 0; i < 10000; ++i) {
    Node n;
    n.id = i + 2;
    n.stable_id = "n" + std::to_string(n.id);
    n.name = "host-" + std::to_string(i) + ".tail.example.";
    std::array<std::uint8_t, 32> raw;
    rng.fill(raw);
    n.key = NodePublic(raw);
    n.disco_key = DiscoPublic(raw);
    n.addresses = {*Prefix::parse("100.64.1.1/32"), *Prefix::parse("fd7a:115c:a1e0::1/128")};
    n.endpoints = {*Endpoint::parse("192.0.2.1:41641"), *Endpoint::parse("[2001:db8::1]:41641")};
    n.hostinfo.emplace();
    n.hostinfo->os = "linux";
    n.hostinfo->hostname = "host-" + std::to_string(i);
    m.peers.push_back(std::move(n));
  }
  std::string text = encode_map_response(m);
  auto back = parse_map_response(as_bytes(text));
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(back->peers, m.peers);
}

TEST(JsonHostile, CutAndFlippedMessagesNeverCrash) {
  const bj::value capture = test::load_capture("map-raw.json");
  std::string text = bj::serialize(capture.at("frames").as_array()[0].at("json"));
  for (std::size_t n = 0; n < text.size(); n += 3) EXPECT_FALSE(parse_map_response(as_bytes(text.substr(0, n))).ok());
  SeededRng rng(5);
  for (int i = 0; i < 3000; ++i) {
    std::string bad = text;
    for (int k = 0; k < 3; ++k) bad[rng.below(bad.size())] = static_cast<char>(rng.u32());
    auto r = parse_map_response(as_bytes(bad));
    if (r.ok()) {
      auto again = parse_map_response(as_bytes(encode_map_response(*r)));
      ASSERT_TRUE(again.ok()) << again.error().message;
    }
  }
}

}  // namespace
}  // namespace porthole::ts2021
