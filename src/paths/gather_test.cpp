#include "paths/gather.h"

#include <gtest/gtest.h>

#include "paths/limits.h"
#include "paths/spec_constants.h"

namespace porthole::paths {
namespace {

InterfaceAddress on(std::string name, std::string_view address, int bits = 24, bool up = true, bool loopback = false) {
  return {std::move(name), *IpAddress::parse(address), bits, up, loopback};
}

std::vector<std::string> texts(const std::vector<IpAddress>& v) {
  std::vector<std::string> out;
  for (const IpAddress& a : v) out.push_back(a.to_string());
  return out;
}
using Texts = std::vector<std::string>;

TEST(Gather, RulesOfInterfaceAddresses) {
  const std::vector<InterfaceAddress> all = {
      on("lo", "127.0.0.1", 8, true, true), on("eth0", "192.168.1.5"), on("docker0", "172.17.0.1", 16),
      on("eth0", "203.0.113.9"), on("eth1", "10.9.9.9", 24, false), on("ztabc", "10.147.17.3"), on("wt0", "10.1.1.1"),
      on("tailscale0", "100.101.102.103", 32), on("tailscale0", "fd7a:115c:a1e0::1", 48), on("eth2", "100.115.92.7", 23),
      on("eth0", "fe80::1", 64), on("eth0", "fd12::1", 64), on("eth0", "169.254.3.4", 16),
      on("eth0", "2001:db8::3", 64), on("eth0", "2001:db8::1", 64), on("eth0", "2001:db8::2", 64), on("eth0", "2001:db8:1::1", 64)};
  const LocalAddresses l = select_local_addresses(all);
  EXPECT_EQ(texts(l.usable), (Texts{"100.115.92.7", "172.17.0.1", "192.168.1.5", "203.0.113.9", "2001:db8::1", "2001:db8::3",
                                    "2001:db8:1::1"}));
  EXPECT_EQ(texts(l.loopback), Texts{"127.0.0.1"});
  EXPECT_TRUE(l.has_v4);
  EXPECT_TRUE(l.has_v6);
}

TEST(Gather, LinkLocalAndUlaOnlyWhenNothingElse) {
  const std::vector<InterfaceAddress> cloud = {on("eth0", "169.254.3.4"), on("eth0", "fd12::1", 64), on("eth0", "fe80::1", 64)};
  EXPECT_EQ(texts(select_local_addresses(cloud).usable), (Texts{"169.254.3.4", "fd12::1"}));
  std::vector<InterfaceAddress> normal = cloud;
  normal.push_back(on("eth0", "10.0.0.1"));
  const LocalAddresses l = select_local_addresses(normal);
  EXPECT_EQ(texts(l.usable), Texts{"10.0.0.1"});
  EXPECT_FALSE(l.has_v6);   // ULA reaches no STUN server
}

TEST(Gather, LoopbackAloneIsBetterThanNothing) {
  const LocalAddresses l =
      select_local_addresses(std::vector{on("lo", "127.0.0.1", 8, true, true), on("lo", "::1", 128, true, true)});
  EXPECT_TRUE(l.usable.empty());
  EXPECT_TRUE(l.has_v4);
  GatherInput in;
  in.local = &l;
  in.port_v4 = 7;
  in.port_v6 = 8;
  const auto out = assemble_endpoints(in);
  ASSERT_EQ(out.size(), 2u);
  EXPECT_EQ(out[0].endpoint.to_string(), "127.0.0.1:7");
  EXPECT_EQ(out[1].endpoint.to_string(), "[::1]:8");
  const Endpoint stun = *Endpoint::parse("9.9.9.9:9");
  in.stun = {&stun, 1};
  EXPECT_EQ(assemble_endpoints(in).size(), 1u);
}

TEST(Gather, SomethingIsAlwaysAnnounced) {
  GatherInput in;
  in.port_v4 = 7;
  ASSERT_EQ(assemble_endpoints(in).size(), 1u);
  in.port_v4 = 0;
  EXPECT_TRUE(assemble_endpoints(in).empty());   // no socket at all
}

TEST(Gather, OrderTypesAndDuplicates) {
  auto e = [](std::string_view text) { return *Endpoint::parse(text); };
  const std::vector<TypedEndpoint> extra = {{e("5.5.5.5:5"), EndpointType::kExplicit}, {e("3.3.3.3:3"), EndpointType::kPortMapped}};
  const std::vector<Endpoint> stun = {e("2.2.2.2:2"), e("3.3.3.3:3"), e("[2001:db8::2]:2")};
  const std::vector<TypedEndpoint> remembered = {{e("4.4.4.4:4"), EndpointType::kStun}, {e("2.2.2.2:2"), EndpointType::kStun}};
  LocalAddresses local;
  local.usable = {*IpAddress::parse("10.0.0.1"), *IpAddress::parse("2001:db8::9")};
  const auto out = assemble_endpoints({extra, stun, e("2.2.2.2:41641"), remembered, &local, 41641, 41642});
  const std::vector<TypedEndpoint> want = {
      {e("3.3.3.3:3"), EndpointType::kPortMapped},   {e("2.2.2.2:2"), EndpointType::kStun},
      {e("[2001:db8::2]:2"), EndpointType::kStun},   {e("2.2.2.2:41641"), EndpointType::kStunLocalPort},
      {e("4.4.4.4:4"), EndpointType::kStun},         {e("5.5.5.5:5"), EndpointType::kExplicit},
      {e("10.0.0.1:41641"), EndpointType::kLocal},   {e("[2001:db8::9]:41642"), EndpointType::kLocal}};
  EXPECT_EQ(out, want);
}

TEST(Gather, TrackerKeepsSixPerAddressForFiveMinutesTen) {
  EndpointTracker t;
  const Instant start = Instant::from_ns(1);
  for (std::uint16_t port = 1; port <= 8; ++port)
    t.seen(start + port * 1s, {{IpAddress::v4(9, 9, 9, 9), port}, EndpointType::kStun});
  t.seen(start + 3s, {{IpAddress::v4(8, 8, 8, 8), 1}, EndpointType::kStun});
  auto now = t.current(start + 9s);
  ASSERT_EQ(now.size(), 7u);
  EXPECT_EQ(now[0].endpoint.port, 3);
  EXPECT_EQ(t.current(start + 7s + kEndpointTrackerLifetime).size(), 2u);   // ports 7 and 8
  EXPECT_EQ(t.current(start + 9s + kEndpointTrackerLifetime).size(), 0u);
}

TEST(Gather, CandidatesOfPeers) {
  for (const char* bad : {"1.2.3.4:0", "0.0.0.0:1", "224.0.0.1:1", "255.255.255.255:1", "100.64.0.1:1", "[fe80::1]:1", "[::]:1",
                          "[ff02::1]:1", "[fd7a:115c:a1e0::5]:1"})
    EXPECT_FALSE(is_usable_candidate(*Endpoint::parse(bad))) << bad;
  for (const char* good : {"1.2.3.4:1", "127.0.0.1:1", "169.254.1.1:9", "100.115.92.3:1", "[2001:db8::1]:1", "[fd00::1]:1"})
    EXPECT_TRUE(is_usable_candidate(*Endpoint::parse(good))) << good;
}

}  // namespace
}  // namespace porthole::paths
