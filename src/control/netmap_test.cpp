#include "control/netmap.h"

#include <gtest/gtest.h>

#include "support/vectors.h"
#include "ts2021/json.h"
#include "ts2021/time_text.h"

namespace porthole::control {
namespace {

using ts2021::MapResponse;
using ts2021::NodeId;

const WallTime kNow = *ts2021::parse_time("2026-11-24T01:14:49Z");

MapResponse message(std::string_view json) {
  auto parsed = ts2021::parse_map_response(as_bytes(json));
  EXPECT_TRUE(parsed.ok()) << (parsed.ok() ? "" : parsed.error().message);
  return parsed.ok() ? std::move(*parsed) : MapResponse();
}
std::string key(int n) {
  std::string hex(64, '0');
  hex[63] = static_cast<char>('0' + n % 10);
  hex[62] = static_cast<char>('0' + n / 10);
  return "nodekey:" + hex;
}
std::string node(int id, std::string_view more = "") {
  return R"({"ID":)" + std::to_string(id) + R"(,"StableID":"n","Name":"n)" + std::to_string(id) + R"(.tail.example.","Key":")" +
         key(id) + R"(","Addresses":["100.64.0.)" + std::to_string(id) + R"(/32"])" + std::string(more) + "}";
}
// A netmap with self 1 and peers 2, 3, 4.
Netmap base_map() {
  Netmap map;
  auto change = map.apply(message(R"({"Node":)" + node(1) + R"(,"Peers":[)" + node(2, R"(,"Online":true)") + "," + node(3) + "," + node(4) +
                                  R"(],"Domain":"d","PacketFilters":{"base":[{"SrcIPs":["*"],"DstPorts":[]}]}})"),
                          kNow);
  EXPECT_TRUE(change.ok());
  EXPECT_TRUE(change->full);
  EXPECT_EQ(change->peers_upserted, (std::vector<NodeId>{2, 3, 4}));
  return map;
}
NetmapChange feed(Netmap& map, std::string_view json, WallTime now = kNow) {
  auto change = map.apply(message(json), now);
  EXPECT_TRUE(change.ok());
  return change.ok() ? *change : NetmapChange();
}
using Ids = std::vector<NodeId>;

TEST(Netmap, FirstMessageNeedsNode) {
  Netmap map;
  EXPECT_TRUE(map.apply(message(R"({"KeepAlive":true})"), kNow).ok());
  EXPECT_FALSE(map.apply(message(R"({"Domain":"x"})"), kNow).ok());
  EXPECT_TRUE(map.apply(message(R"({"Node":)" + node(1) + "}"), kNow).ok());  // a lone node
  EXPECT_TRUE(map.peers().empty());
}

TEST(Netmap, EmptyPeersIsADeltaAndFullPeersReplace) {
  Netmap map = base_map();
  EXPECT_FALSE(feed(map, R"({"Peers":[]})").any());
  EXPECT_EQ(map.peers().size(), 3u);
  // Other peer fields of a message with Peers are ignored.
  NetmapChange c = feed(map, R"({"Peers":[)" + node(3) + "," + node(5) + R"(],"PeersRemoved":[3],"PeersChanged":[)" + node(9) + "]}");
  EXPECT_EQ(c.peers_upserted, Ids{5});
  EXPECT_EQ(c.peers_removed, (Ids{2, 4}));
  EXPECT_EQ(map.peers().size(), 2u);
}

TEST(Netmap, ChangedReplacesWholeNodes) {
  Netmap map = base_map();
  NetmapChange c = feed(map, R"({"PeersChanged":[)" + node(2, R"(,"HomeDERP":7)") + "," + node(6) + "]}");
  EXPECT_EQ(c.peers_upserted, (Ids{2, 6}));
  EXPECT_FALSE(map.peer(2)->online.has_value());  // absent fields are defaults again
  EXPECT_EQ(map.peer(2)->home_derp, 7);
  EXPECT_TRUE(feed(map, R"({"PeersChanged":[)" + node(6) + "]}").peers_upserted.empty());  // nothing new
}

TEST(Netmap, PatchesTouchOnlyWhatTheyName) {
  Netmap map = base_map();
  feed(map, R"({"PeersChanged":[)" + node(2, R"(,"HomeDERP":7,"Endpoints":["1.2.3.4:5"],"DiscoKey":"discokey:)" + std::string(64, 'a') + "\"") + "]}");
  NetmapChange c = feed(map, R"({"PeersChangedPatch":[{"NodeID":2,"DERPRegion":0,"Online":false},{"NodeID":77,"Online":true}]})");
  EXPECT_EQ(c.peers_upserted, Ids{2});
  EXPECT_EQ(map.peer(2)->home_derp, 7);
  EXPECT_EQ(map.peer(2)->endpoints.size(), 1u);
  EXPECT_EQ(map.peer(2)->online, false);
  feed(map, R"({"PeersChangedPatch":[{"NodeID":2,"Endpoints":[],"DERPRegion":9,"Cap":140,"CapMap":{"x":null}}]})");
  EXPECT_TRUE(map.peer(2)->endpoints.empty());
  EXPECT_EQ(map.peer(2)->home_derp, 9);
  EXPECT_EQ(map.peer(2)->cap, 140);
  EXPECT_TRUE(map.peer(2)->has_capability("x"));
  EXPECT_FALSE(map.peer(2)->disco_key.is_zero());
}

TEST(Netmap, KeyRotationByPatchKeepsIdAndIndex) {
  Netmap map = base_map();
  const NodePublic old_key = map.peer(2)->key;
  feed(map, R"({"PeersChangedPatch":[{"NodeID":2,"Key":")" + key(42) + R"("}]})");
  EXPECT_EQ(map.peer_by_key(old_key), nullptr);
  ASSERT_NE(map.peer_by_key(*NodePublic::parse(key(42))), nullptr);
  EXPECT_EQ(map.peer_by_key(*NodePublic::parse(key(42)))->id, 2);
  EXPECT_EQ(map.peer(2)->addresses.size(), 1u);
}

TEST(Netmap, RemovedAndUnknownIds) {
  Netmap map = base_map();
  NetmapChange c = feed(map, R"({"PeersRemoved":[3,99]})");
  EXPECT_EQ(c.peers_removed, Ids{3});
  c = feed(map, R"({"PeersRemoved":[4],"PeersChanged":[)" + node(4, R"(,"Cap":1)") + "]}");  // removed, then inserted
  EXPECT_EQ(c.peers_upserted, Ids{4});
  EXPECT_TRUE(c.peers_removed.empty());
}

TEST(Netmap, SeenAndOnlineChanges) {
  Netmap map = base_map();
  feed(map, R"({"PeerSeenChange":{"2":true,"3":false,"88":true},"OnlineChange":{"2":false,"3":true}})");
  EXPECT_EQ(map.peer(2)->last_seen, kNow);
  EXPECT_FALSE(map.peer(3)->last_seen.has_value());
  EXPECT_EQ(map.peer(2)->online, false);
  EXPECT_EQ(map.peer(3)->online, true);
}

TEST(Netmap, AllowedIpsAndHomeAreResolved) {
  Netmap map = base_map();
  feed(map, R"({"PeersChanged":[)" + node(2, R"(,"DERP":"127.3.3.40:17")") + "," + node(3, R"(,"AllowedIPs":[])") + "," +
                 node(4, R"(,"AllowedIPs":["100.64.0.4/32","10.0.0.0/8"],"UnsignedPeerAPIOnly":true)") + "]}");
  EXPECT_EQ(map.peer(2)->home_derp, 17);
  EXPECT_EQ(map.peer(2)->allowed_ips, map.peer(2)->addresses);
  EXPECT_TRUE(map.peer(3)->allowed_ips->empty());
  EXPECT_EQ(map.peer(4)->allowed_ips, map.peer(4)->addresses);
}

TEST(Netmap, FilterChunks) {
  Netmap map = base_map();
  EXPECT_EQ(map.filter_rules().size(), 1u);
  EXPECT_FALSE(feed(map, R"({"Domain":"e"})").filter);
  EXPECT_TRUE(feed(map, R"({"PacketFilters":{"x":[{"SrcIPs":["1.1.1.1"],"DstPorts":[]}]}})").filter);
  EXPECT_EQ(map.filter_rules().size(), 2u);
  feed(map, R"({"PacketFilter":[]})");  // base allows nothing now
  EXPECT_EQ(map.filter_rules().size(), 1u);
  feed(map, R"({"PacketFilters":{"*":null,"y":[{"SrcIPs":["2.2.2.2"],"DstPorts":[]}],"x":null}})");
  ASSERT_EQ(map.filter_rules().size(), 1u);
  EXPECT_EQ(map.filter_rules()[0].src_ips[0], "2.2.2.2");
  feed(map, R"({"PacketFilters":{"y":null}})");
  EXPECT_TRUE(map.filter_rules().empty());
}

TEST(Netmap, RelayMapDeltas) {
  Netmap map = base_map();
  feed(map, R"({"DERPMap":{"Regions":{"1":{"RegionID":1,"RegionCode":"a","RegionName":"A","Nodes":[]}},"omitDefaultRegions":true,
    "HomeParams":{"RegionScore":{"1":0.5}}}})");
  feed(map, R"({"DERPMap":{"HomeParams":{}}})");
  EXPECT_EQ(map.relay_map().regions.size(), 1u);
  EXPECT_TRUE(map.relay_map().omit_default_regions);
  EXPECT_EQ(map.relay_map().region_score.at(1), 0.5);
  feed(map, R"({"DERPMap":{"HomeParams":{"RegionScore":{}}}})");
  EXPECT_TRUE(map.relay_map().region_score.empty());
  feed(map, R"({"DERPMap":{"Regions":{"2":{"RegionID":2},"1":null}}})");
  EXPECT_FALSE(map.relay_map().regions.contains(1));
  EXPECT_FALSE(map.relay_map().omit_default_regions);
}

TEST(Netmap, ExpiryFollowsTheServersClock) {
  Netmap map = base_map();
  feed(map, R"({"ControlTime":"2026-11-24T03:14:49Z","PeersChanged":[)" + node(2, R"(,"KeyExpiry":"2026-11-24T03:00:00Z")") + "," +
                 node(3, R"(,"KeyExpiry":"2026-11-24T04:14:49Z")") + "]}");
  EXPECT_EQ(map.clock_offset(), std::chrono::hours(2));
  EXPECT_TRUE(map.peer(2)->expired);
  EXPECT_FALSE(map.peer(3)->expired);
  EXPECT_EQ(map.next_expiry(kNow), kNow + std::chrono::hours(1));
  EXPECT_FALSE(map.expire(kNow + std::chrono::minutes(59)).any());
  NetmapChange c = map.expire(kNow + std::chrono::minutes(60));
  EXPECT_EQ(c.peers_upserted, Ids{3});
  EXPECT_TRUE(map.peer(3)->expired);
  EXPECT_FALSE(map.next_expiry(kNow).has_value());
  // A minute of skew is nobody's fault; a server without a clock is ignored.
  feed(map, R"({"ControlTime":"2026-11-24T01:15:49Z"})");
  EXPECT_EQ(map.clock_offset(), Duration::zero());
  feed(map, R"({"ControlTime":"2020-01-01T00:00:00Z"})");
  EXPECT_EQ(map.clock_offset(), Duration::zero());
  feed(map, R"({"ControlTime":"9999-12-31T23:59:59Z","KeepAlive":true})");
  feed(map, R"({"PeersChanged":[)" + node(4, R"(,"KeyExpiry":"9999-12-31T23:59:59Z")") + "]}");
  (void)map.next_expiry(kNow);  // no overflow
}

TEST(Netmap, NewStreamStartsOver) {
  Netmap map = base_map();
  map.begin_stream();
  EXPECT_TRUE(map.apply(message(R"({"KeepAlive":true})"), kNow).ok());
  EXPECT_EQ(map.peers().size(), 3u);  // still usable
  NetmapChange c = feed(map, R"({"Node":)" + node(1) + R"(,"Peers":[)" + node(2, R"(,"Online":true)") + "," + node(3, R"(,"Cap":5)") + "]}");
  EXPECT_TRUE(c.full);
  EXPECT_FALSE(c.self);
  EXPECT_EQ(c.peers_upserted, Ids{3});
  EXPECT_EQ(c.peers_removed, Ids{4});
  EXPECT_TRUE(map.filter_rules().empty());
  map.begin_stream();
  c = feed(map, R"({"Node":)" + node(1) + "}");  // alone now
  EXPECT_EQ(c.peers_removed, (Ids{2, 3}));
}

TEST(Netmap, UnusableNodesAreIgnored) {
  Netmap map = base_map();
  feed(map, R"({"PeersChanged":[{"ID":0,"Key":")" + key(8) + R"("},{"ID":12}]})");
  EXPECT_EQ(map.peers().size(), 3u);
}

TEST(Netmap, Suffix) {
  EXPECT_EQ(base_map().magic_dns_suffix(), "tail.example");
  EXPECT_EQ(Netmap().magic_dns_suffix(), "");
}

TEST(Netmap, HealthAndMessages) {
  Netmap map = base_map();
  EXPECT_TRUE(feed(map, R"({"Health":["bad"]})").health);
  feed(map, R"({"DisplayMessages":{"a":{"Title":"T","Text":"x"},"b":{"Title":"U"}}})");
  EXPECT_EQ(map.display_messages().size(), 2u);
  feed(map, R"({"DisplayMessages":{"a":null}})");
  EXPECT_EQ(map.display_messages().size(), 1u);
  feed(map, R"({"DisplayMessages":{"*":null,"c":{"Title":"V"}}})");
  EXPECT_TRUE(map.display_messages().contains("c"));
  EXPECT_EQ(map.display_messages().size(), 1u);
  EXPECT_EQ(map.health().size(), 1u);
}

// Every recorded stream, applied message by message.
TEST(NetmapCaptures, RecordedStreamsEndAsTheServerHadThem) {
  for (std::string_view file : {"control-session.json", "control-interactive-delete.json", "control-embedded.json"}) {
    const boost::json::value capture = test::load_capture(file);
    std::map<std::int64_t, Netmap> streams;  // by request id
    const Prefix route = *Prefix::parse("10.55.0.0/24");
    bool saw_route = false;
    std::map<std::int64_t, std::string> client_of;
    for (const auto& event : capture.at("events").as_array()) {
      const auto* map = event.as_object().if_contains("map");
      if (map == nullptr) continue;
      boost::json::value mended = *map;
      if (auto* dns = mended.as_object().if_contains("DNSConfig")) dns->as_object().erase("Routes");
      const auto id = event.at("id").as_int64();
      // Streams that were open before the recording began lack their first message.
      if (!streams.contains(id) && event.at("message").as_int64() != 1) continue;
      client_of[id] = test::text(event.at("client"));
      auto parsed = ts2021::parse_map_response(as_bytes(boost::json::serialize(mended)));
      ASSERT_TRUE(parsed.ok());
      const WallTime now = parsed->control_time.value_or(kNow);
      auto change = streams[id].apply(std::move(*parsed), now);
      ASSERT_TRUE(change.ok()) << change.error().message;
      for (const auto& [peer_id, peer] : streams[id].peers()) {
        saw_route = saw_route || std::find(peer.allowed_ips->begin(), peer.allowed_ips->end(), route) != peer.allowed_ips->end();
        EXPECT_EQ(peer_id, peer.id);
        ASSERT_NE(streams[id].peer_by_key(peer.key), nullptr);
        EXPECT_EQ(streams[id].peer_by_key(peer.key)->id, peer_id);
      }
    }
    ASSERT_FALSE(streams.empty());
    for (const auto& [id, map] : streams) {
      ASSERT_TRUE(map.has_map());
      EXPECT_EQ(map.domain(), "10.98.0.1");
      EXPECT_EQ(map.relay_map().regions.size(), 2u);
      EXPECT_EQ(map.magic_dns_suffix(), "rig.test");
    }
    if (file != "control-session.json") continue;
    // alpha's first stream (request 3) saw beta join, move, be renamed, get a route, log out and come back.
    const Netmap& alpha = streams.at(3);
    EXPECT_EQ(alpha.self()->name, "alpha.rig.test.");
    EXPECT_TRUE(alpha.self()->expired);  // the stream ends with the expiry by the admin
    ASSERT_EQ(alpha.peers().size(), 1u);
    const ts2021::Node& beta = alpha.peers().begin()->second;
    EXPECT_EQ(beta.id, 2);
    EXPECT_TRUE(beta.name == "betatwo.rig.test." || beta.name == "gamma.rig.test.") << beta.name;
    EXPECT_EQ(beta.home_derp, 999);
    EXPECT_FALSE(beta.expired);
    EXPECT_TRUE(saw_route);
    EXPECT_FALSE(alpha.filter_rules().empty());
    // Its last stream saw beta deleted.
    std::int64_t last = 0;
    for (const auto& [id, client] : client_of) {
      if (client == "machine1") last = std::max(last, id);
    }
    EXPECT_EQ(streams.at(last).peer(2), nullptr);
    EXPECT_FALSE(streams.at(last).self()->expired);
  }
}

}  // namespace
}  // namespace porthole::control
