// Worlds made by chance. A seed chooses relays, sites, NATs, lines, nodes and accounts, then transfers and faults for
// some simulated minutes; then all faults end. Whatever happened:
//   - every byte that arrives is the right one (ledger.h), and none arrives in another account
//   - once the faults are over, all nodes run and know each other again, every transfer comes to an end, and new ones
//     between all pairs succeed, each within a bound
//   - no node keeps more memory than its limit, and its netstack's invariants hold
//
//   PORTHOLE_SEED=n    this seed only
//   PORTHOLE_SEEDS=n   seeds 1 to n
#include <cstdlib>

#include "scenario.h"

namespace porthole::scenario {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr std::uint64_t kSeedsDefault = 50;
#elif defined(NDEBUG)
constexpr std::uint64_t kSeedsDefault = 1000;
#else
constexpr std::uint64_t kSeedsDefault = 100;
#endif
// The first failures tell enough.
constexpr int kFailuresMax = 3;

// How long things may take without faults, on lines that lose up to 3 % each way and are up to 80 ms long.
constexpr Duration kJoinLimit = 60s;
// After faults: a stream notices silence within 15 s, control and relays retry with up to 30 s of backoff.
constexpr Duration kRecoveryLimit = 90s;
// TCP resends at most a minute apart; an answer or a reset follows.
constexpr Duration kTransferLimit = 180s;
constexpr Duration kFreshLimit = 60s;
// A reconnect of the control client and one of the relay client, each backed off to about ten seconds by the faults.
constexpr Duration kFirstByteLimit = 30s;

class RandomWorld {
 public:
  explicit RandomWorld(std::uint64_t seed) : rng_(World(seed).rng("plan")), t_(seed, chance(0.3) ? 2 : 1) {}

  // Empty: all promises were kept.
  std::string run() {
    build();
    if (!t_.run_until_running(kJoinLimit)) return "not all nodes run " + in(kJoinLimit) + " after their start";
    Duration busy = rng_.between(10s, 60s);
    plan_transfers(busy);
    plan_faults(busy);
    t_.run_for(busy);
    heal();
    if (!t_.run_until_running(kRecoveryLimit)) return "not all nodes run again " + in(kRecoveryLimit) + " after the last fault";
    if (!t_.run_until_over(transfers_, kTransferLimit)) return "a transfer has no end " + in(kTransferLimit) + " after the last fault";
    for (const auto& transfer : forbidden_)
      if (transfer->is_done()) return "bytes passed between accounts";
    return check_fresh();
  }

  std::string report() const { return t_.report(); }
  const World& world() const { return t_.world; }

 private:
  bool chance(double p) { return rng_.unit() < p; }
  std::uint64_t pick(std::uint64_t low, std::uint64_t high) { return low + rng_.below(high - low + 1); }
  static std::string in(Duration d) { return std::to_string(d.count() / 1'000'000'000) + " s"; }

  LinkConfig random_link() {
    LinkConfig link;
    link.delay = rng_.between(1ms, chance(0.2) ? 80ms : 25ms);
    if (chance(0.5)) link.jitter = rng_.between(0ms, 5ms);
    if (chance(0.4)) link.loss = rng_.unit() * 0.03;
    if (chance(0.1)) link.burst_enter = 0.003;
    if (chance(0.6)) link.rate = 100'000 + rng_.unit() * 3e6;
    if (chance(0.2)) link.queue_bytes = pick(15'000, 200'000);
    if (chance(0.2)) link.reorder = rng_.unit() * 0.05;
    if (chance(0.1)) link.duplicate = rng_.unit() * 0.02;
    return link;
  }

  NatConfig random_nat() {
    NatConfig nat;
    nat.mapping = chance(0.25) ? NatMapping::kAddressAndPort : NatMapping::kEndpointIndependent;
    nat.filtering = static_cast<NatFiltering>(rng_.below(3));
    nat.timeout = std::chrono::seconds(pick(30, 180));
    nat.keeps_port = chance(0.6);
    nat.hairpin = chance(0.3);
    return nat;
  }

  Site& random_site(int number) {
    std::string name = "site" + std::to_string(number);
    if (!homes_.empty() && chance(0.2)) return *homes_[rng_.below(homes_.size())];
    Site* site = nullptr;
    if (chance(0.2)) {
      site = &t_.add_public_site(name, random_link(), chance(0.3));
    } else {
      Site* parent = chance(0.15) ? &t_.add_home(name + "-carrier", random_nat(), random_link()) : nullptr;
      site = &t_.add_home(name, random_nat(), random_link(), parent);
    }
    if (chance(0.12)) {
      site->set_udp_blocked(true);
      note("UDP is blocked at " + site->name());
    }
    homes_.push_back(site);
    return *site;
  }

  void build() {
    std::size_t count = pick(2, 5);
    bool two_accounts = count >= 3 && chance(0.4);
    for (std::size_t i = 0; i < count; ++i) {
      NodeConfig config;
      config.name = "n" + std::to_string(i);
      config.account = two_accounts && i % 2 == 1 ? "beta" : "alpha";
      config.relay_only = chance(0.05);
      if (chance(0.1)) config.clock_offset = chance(0.5) ? -3h : 5h;
      NodeHost& node = t_.add_node(config, random_site(static_cast<int>(i)), false);
      at(rng_.between(0s, 2s), [&node] { node.start(); });
    }
    t_.run_for(2s);
  }

  void at(Duration delay, std::function<void()> action) { t_.world.after(delay, std::move(action)); }
  void note(std::string_view what) { t_.world.note("plan", what); }

  NodeHost& random_node() { return t_.node(rng_.below(t_.node_count())); }

  void plan_transfers(Duration busy) {
    for (std::uint64_t i = pick(1, 6); i > 0; --i) {
      NodeHost &from = random_node(), &to = random_node();
      if (&from == &to) continue;
      std::uint64_t up = chance(0.3) ? 1 : pick(1, 150'000), down = chance(0.3) ? 0 : pick(1, 150'000);
      bool cancel = chance(0.1);
      Duration later = rng_.between(0s, 5s);
      at(rng_.between(0s, busy), [this, &from, &to, up, down, cancel, later] {
        if (!from.is_up()) return;
        TransferRef transfer = from.transfer(to, up, down);
        transfers_.push_back(transfer);
        if (from.config().account != to.config().account) forbidden_.push_back(transfer);
        if (cancel) at(later, [&from, transfer] { if (!transfer->is_over()) from.cancel(transfer); });
      });
    }
  }

  void plan_faults(Duration busy) {
    for (std::uint64_t i = pick(0, 4); i > 0; --i) {
      Duration when = rng_.between(0s, busy);
      Duration lasts = rng_.between(100ms, chance(0.3) ? 40s : 5s);
      NodeHost& node = random_node();
      Site& site = *homes_[rng_.below(homes_.size())];
      switch (rng_.below(13)) {
        case 0: at(when, [&node] { if (node.is_up()) node.restart(); }); break;
        case 1:
          at(when, [&node] { node.stop(); });
          at(when + lasts, [&node] { if (!node.is_up()) node.start(); });
          break;
        case 2:
          at(when, [&node] { node.power_off(); });
          at(when + lasts, [&node] { if (!node.is_up()) node.start(); });
          break;
        case 3: at(when, [this, lasts] { if (t_.server().coordinator()) t_.restart_coordinator(lasts); }); break;
        case 4: at(when, [this, lasts] { if (t_.server().relay()) t_.restart_relay(lasts); }); break;
        case 5:
        case 6:
          at(when, [this, &site] { note("blackout at " + site.name()); site.set_up(false); });
          at(when + lasts, [this, &site] { note("blackout ends at " + site.name()); site.set_up(true); });
          break;
        case 7: {
          auto part = static_cast<std::uint8_t>(i);
          at(when, [&site, part] {
            if (site.nat()) site.change_external(site.parent()->parent() ? IpAddress::v4(10, 200, 1, part) : IpAddress::v4(83, 1, part, 1));
          });
          break;
        }
        case 8: at(when, [this, &site] { if (site.nat()) { note(site.name() + "'s router reboots"); site.nat()->forget(); } }); break;
        case 9: at(when, [&node] { node.change_udp_port(); }); break;
        case 10: at(when, [this, &node, &site] { node.move(site, t_.next_addresses(site)); }); break;
        case 11: at(when, [&node, lasts] { node.suspend(lasts); }); break;
        case 12: {
          bool blocked = chance(0.5);
          at(when, [this, &site, blocked] { note(site.name() + (blocked ? " blocks UDP" : " lets UDP through")); site.set_udp_blocked(blocked); });
          break;
        }
      }
    }
  }

  void heal() {
    note("all faults end");
    for (Site* site : homes_) site->set_up(true);
    for (std::size_t i = 0; i < t_.node_count(); ++i) {
      t_.node(i).wake();
      if (!t_.node(i).is_up()) t_.node(i).start();
    }
    // Those that are still to come: restarts under way end by themselves within kRecoveryLimit.
  }

  // Every node to every other, and a look at what the nodes keep.
  std::string check_fresh() {
    t_.run_for(5s);
    std::vector<TransferRef> fresh;
    for (std::size_t i = 0; i < t_.node_count(); ++i) {
      for (std::size_t k = 0; k < t_.node_count(); ++k) {
        NodeHost &from = t_.node(i), &to = t_.node(k);
        if (i == k || from.config().account != to.config().account) continue;
        fresh.push_back(from.transfer(to, 5000, 5000));
      }
    }
    if (!t_.run_until_over(fresh, kFreshLimit)) return "a transfer after all faults has no end";
    for (const auto& f : fresh) {
      if (!f->is_done()) return "a transfer after all faults failed: " + f->describe();
      if (f->until_first_byte() > kFirstByteLimit) return "a first byte after all faults took too long: " + f->describe();
    }
    for (std::size_t i = 0; i < t_.node_count(); ++i) {
      NodeHost& node = t_.node(i);
      netstack::MemoryUse memory = node.engine().stack().memory();
      if (memory.buffers + memory.pooled > memory.limit) return node.name() + " keeps more memory than its limit";
      node.engine().stack().check_invariants();
      for (std::size_t k = 0; k < t_.node_count(); ++k)
        if (node.config().account != t_.node(k).config().account && node.sees(t_.node(k))) return node.name() + " sees another account";
    }
    return {};
  }

  SeededRng rng_;
  Tailnet t_;
  std::vector<Site*> homes_;
  std::vector<TransferRef> transfers_;
  std::vector<TransferRef> forbidden_;
};

std::uint64_t number_from(const char* variable, std::uint64_t otherwise) {
  const char* text = std::getenv(variable);
  return text && *text ? std::strtoull(text, nullptr, 10) : otherwise;
}

}  // namespace

TEST(Scenario, RandomWorldsKeepTheirPromises) {
  std::uint64_t first = number_from("PORTHOLE_SEED", 1);
  std::uint64_t last = std::getenv("PORTHOLE_SEED") ? first : number_from("PORTHOLE_SEEDS", kSeedsDefault);
  int failures = 0;
  for (std::uint64_t seed = first; seed <= last && failures < kFailuresMax; ++seed) {
    RandomWorld world(seed);
    std::string broken = world.run();
    if (world.world().failed()) broken = world.world().failure();
    if (broken.empty()) continue;
    ++failures;
    ADD_FAILURE() << "seed " << seed << ": " << broken << "\n"
                  << world.report() << "\nreplay: PORTHOLE_SEED=" << seed
                  << " build/release/tests/test_scenario --gtest_filter=Scenario.RandomWorldsKeepTheirPromises\n";
  }
}

}  // namespace porthole::scenario
