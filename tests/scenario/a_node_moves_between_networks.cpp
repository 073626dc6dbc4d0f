#include "scenario.h"

namespace porthole::scenario {

TEST(Scenario, ANodeMovesBetweenNetworks) {
  Tailnet t(kSeed);
  LinkConfig link = link_of(10ms);
  link.rate = 200'000;
  Site& wifi = t.add_home("wifi", easy_nat(), link);
  Site& cellular = t.add_home("cellular", hard_nat(), link_of(40ms));
  NodeHost& phone = t.add_node({.name = "phone"}, wifi);
  NodeHost& server = t.add_node({.name = "server"}, t.add_public_site("home", link));
  ASSERT_IN(t, t.run_until_running(5s));
  t.run_for(2s);
  auto film = phone.transfer(server, 1000, 6'000'000);
  ASSERT_IN(t, t.run_until_direct(phone, server, 10s));
  film->longest_pause = {};
  phone.move(cellular, t.next_addresses(cellular));
  t.run_for(10s);
  phone.move(wifi, t.next_addresses(wifi));
  t.run_for(5s);
  EXPECT_LT(film->longest_pause, 12s) << t.report();
  ASSERT_IN(t, t.run_until_over({film}, 90s));
  EXPECT_IN(t, film->is_done());
  EXPECT_IN(t, phone.is_running());
  EXPECT_IN(t, t.run_until_direct(phone, server, 30s));
}

TEST(Scenario, AConnectionSurvivesANewAddressOfTheRouter) {
  Tailnet t(kSeed);
  LinkConfig link = link_of(10ms);
  link.rate = 200'000;
  Site& home = t.add_home("home", easy_nat(), link);
  NodeHost& a = t.add_node({.name = "a"}, home);
  NodeHost& b = t.add_node({.name = "b"}, t.add_home("away", easy_nat(), link));
  ASSERT_IN(t, t.run_until_running(5s));
  t.run_for(2s);
  auto transfer = a.transfer(b, 1000, 6'000'000);
  ASSERT_IN(t, t.run_until_direct(a, b, 10s));
  transfer->longest_pause = {};
  // The host sees nothing of it: same addresses, same port.
  home.change_external(IpAddress::v4(82, 9, 9, 9));
  t.run_for(20s);
  EXPECT_LT(transfer->longest_pause, 10s) << t.report();
  ASSERT_IN(t, t.run_until_over({transfer}, 90s));
  EXPECT_IN(t, transfer->is_done());
  EXPECT_IN(t, t.run_until_direct(a, b, 60s));
}

TEST(Scenario, ASleepingLaptopWakesUp) {
  Tailnet t(kSeed);
  NodeHost& laptop = t.add_node({.name = "laptop"}, t.add_home("home"));
  NodeHost& server = t.add_node({.name = "server"}, t.add_home("away"));
  ASSERT_IN(t, t.run_until_running(5s));
  t.run_for(2s);
  auto before = laptop.transfer(server, 1000, 1000);
  ASSERT_IN(t, t.run_until_over({before}, 10s));
  for (Duration sleep : {Duration(20s), Duration(10min), Duration(12h)}) {
    SCOPED_TRACE(sleep.count() / 1'000'000'000);
    laptop.suspend(sleep);
    t.run_for(sleep + 1ms);
    auto after = laptop.transfer(server, 100'000, 100'000);
    ASSERT_IN(t, t.run_until_over({after}, 60s));
    EXPECT_IN(t, after->is_done());
    EXPECT_LT(after->until_first_byte(), 2s) << t.report();
    EXPECT_IN(t, t.run_until_running(60s));
  }
}

TEST(Scenario, AChangedUdpPortIsFoundAgain) {
  Tailnet t(kSeed);
  LinkConfig link = link_of(10ms);
  link.rate = 200'000;
  NodeHost& a = t.add_node({.name = "a"}, t.add_home("one", easy_nat(), link));
  NodeHost& b = t.add_node({.name = "b"}, t.add_home("two", easy_nat(), link));
  ASSERT_IN(t, t.run_until_running(5s));
  t.run_for(2s);
  auto transfer = a.transfer(b, 3'000'000, 0);
  ASSERT_IN(t, t.run_until_direct(a, b, 10s));
  transfer->longest_pause = {};
  b.change_udp_port();
  ASSERT_IN(t, t.run_until_over({transfer}, 60s));
  EXPECT_IN(t, transfer->is_done());
  // What comes from the new address makes the sender doubt the old one.
  EXPECT_LT(transfer->longest_pause, 2s) << t.report();
  EXPECT_IN(t, t.run_until_direct(a, b, 30s));
}

}  // namespace porthole::scenario
