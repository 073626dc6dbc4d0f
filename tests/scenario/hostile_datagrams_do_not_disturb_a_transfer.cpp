#include "scenario.h"

namespace porthole::scenario {

namespace {

// Sends what it likes to one victim: noise, malformed messages of every kind, and what it has seen on the wire.
class Attacker {
 public:
  Attacker(Tailnet& t, Host& host, Endpoint victim, Endpoint impersonated)
      : t_(t), host_(host), victim_(victim), impersonated_(impersonated), rng_(t.world.rng("attacker")) {}

  void spray(int count, Duration spacing) {
    if (count == 0) return;
    ByteVector d = make();
    // Half of them with a forged source.
    host_.send_from(rng_.below(2) == 0 ? impersonated_ : Endpoint{host_.address(false), static_cast<std::uint16_t>(rng_.u32() | 1)}, victim_, d);
    t_.world.after(spacing, [this, count, spacing] { spray(count - 1, spacing); });
  }

 private:
  ByteVector make() {
    ByteVector d(rng_.below(1400));
    rng_.fill(d);
    switch (rng_.below(8)) {
      case 0:  // WireGuard types with the right sizes
      case 1: {
        static constexpr std::size_t kSizes[] = {148, 92, 64, 32};
        std::size_t type = rng_.below(4);
        d.resize(type == 3 ? 32 + 16 * rng_.below(80) : kSizes[type]);
        rng_.fill(d);
        store_le(d.data(), static_cast<std::uint32_t>(type + 1));
        if (d.size() > 8) store_le(d.data() + 4, static_cast<std::uint32_t>(rng_.below(8)));
        break;
      }
      case 2:  // disco
        d.resize(std::max<std::size_t>(d.size(), 62));
        std::memcpy(d.data(), "TS\xf0\x9f\x92\xac", 6);
        break;
      case 3:  // STUN answer
        d.resize(32);
        store_be(d.data(), std::uint16_t{0x0101});
        store_be(d.data() + 2, std::uint16_t{12});
        store_be(d.data() + 4, std::uint32_t{0x2112a442});
        break;
      case 4: d.clear(); break;
      default: break;
    }
    return d;
  }

  Tailnet& t_;
  Host& host_;
  Endpoint victim_, impersonated_;
  SeededRng rng_;
};

}  // namespace

TEST(Scenario, HostileDatagramsDoNotDisturbATransfer) {
  Tailnet t(kSeed);
  LinkConfig link = link_of(10ms);
  link.rate = 2'000'000;
  NodeHost& a = t.add_node({.name = "a"}, t.add_public_site("one", link));
  NodeHost& b = t.add_node({.name = "b"}, t.add_public_site("two", link));
  Site& elsewhere = t.add_public_site("elsewhere");
  Host& host = t.network.add_host("attacker", elsewhere, t.next_addresses(elsewhere));
  ASSERT_IN(t, t.run_until_running(5s));
  t.run_for(2s);
  auto transfer = a.transfer(b, 4'000'000, 4'000'000);
  t.run_for(200ms);
  Endpoint from{a.host().address(false), a.udp_port()}, to{b.host().address(false), b.udp_port()};
  Attacker attacker(t, host, to, from);
  attacker.spray(10'000, 200us);
  ASSERT_IN(t, t.run_until_over({transfer}, 30s));
  EXPECT_IN(t, transfer->is_done());
  EXPECT_LT(transfer->longest_pause, 1s) << t.report();
  t.run_for(5s);
  EXPECT_TRUE(b.is_direct(a));
  // The netstack saw none of it, and what was not authentic left no state behind.
  EXPECT_EQ(b.engine().stack().counters().drop(netstack::Drop::kIpHeader), 0u);
  EXPECT_EQ(b.engine().stack().memory().connections + b.engine().stack().memory().half_open, b.open_connections());
}

}  // namespace porthole::scenario
