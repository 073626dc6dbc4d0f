// Simulated nodes for a coordination service that runs already; results as one line of JSON.
//
//   coordinator_bench fleet URL PID KEYS PER_ACCOUNT CHANGES [AT_ONCE]
//     KEYS: a file with one pre-auth key per line, PER_ACCOUNT lines for each account. A node joins with each and stays
//     connected: how long until all see their whole account, and CHANGES times one of them tells a new disco key: how
//     long until its peers know. CPU and memory are those of process PID.
//   coordinator_bench fill URL KEY COUNT
//     COUNT nodes register with a reusable key, tell their endpoints and leave; the account keeps them.
//   coordinator_bench enrol URL ADMIN_TOKEN_FILE PID ACCOUNTS PER_ACCOUNT KEYS
//     Porthole's enrolment API: accounts, and a key for each of their devices, written to the file KEYS.
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "control_client.h"
#include "support/support.h"

namespace {

using namespace porthole;
using namespace porthole::bench;
namespace json = boost::json;
using SteadyTime = std::chrono::steady_clock::time_point;

constexpr std::size_t kJoinsAtOnce = 256;

SteadyTime now() { return std::chrono::steady_clock::now(); }
double seconds_since(SteadyTime t) { return std::chrono::duration<double>(now() - t).count(); }

// The service, seen from outside.
class Process {
 public:
  explicit Process(std::string pid) : pid_(std::move(pid)) {}
  double cpu_seconds() const {
    std::ifstream in("/proc/" + pid_ + "/stat");
    std::string text((std::istreambuf_iterator<char>(in)), {});
    std::string rest = text.substr(text.rfind(')') + 2);
    std::vector<std::string> fields;
    for (std::size_t at = 0; at < rest.size();) {
      std::size_t end = std::min(rest.find(' ', at), rest.size());
      fields.push_back(rest.substr(at, end - at));
      at = end + 1;
    }
    return (std::stod(fields.at(11)) + std::stod(fields.at(12))) / static_cast<double>(::sysconf(_SC_CLK_TCK));
  }
  double memory_mb(const std::string& name) const {
    std::ifstream in("/proc/" + pid_ + "/status");
    for (std::string line; std::getline(in, line);)
      if (line.starts_with(name + ":")) return std::stod(line.substr(name.size() + 1)) / 1024;
    return 0;
  }

 private:
  std::string pid_;
};

double percentile(std::vector<double> values, double p) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[std::min(values.size() - 1, static_cast<std::size_t>(p * static_cast<double>(values.size())))];
}

void print(const json::object& result) { std::printf("%s\n", json::serialize(result).c_str()); }

void enrol(const Target& target, const std::string& admin, const Process& service, std::size_t accounts, std::size_t nodes,
           const std::string& keys) {
  Api api(target);
  std::ofstream out(keys);
  auto start = now();
  double cpu = service.cpu_seconds();
  for (std::size_t a = 0; a < accounts; ++a) {
    std::string name = "home-" + std::to_string(a);
    auto made = json::parse(api.call("POST", "/api/v1/accounts", admin, "{\"name\":\"" + name + "\"}")).as_object();
    std::string token(made.at("token").as_string());
    for (std::size_t n = 0; n < nodes; ++n) {
      std::string path = "/api/v1/accounts/" + name + "/devices/device-" + std::to_string(n) + "/key";
      out << json::parse(api.call("POST", path, token, "")).as_object().at("key").as_string().c_str() << '\n';
    }
  }
  print({{"seconds", seconds_since(start)}, {"cpu", service.cpu_seconds() - cpu}});
}

void fill(const Target& target, const std::string& key, std::size_t count) {
  OsRng rng;
  Fleet fleet(target, 32);
  for (std::size_t i = 0; i < count; ++i)
    fleet.clients.push_back(std::make_unique<Client>(rng, 0, "peer-" + std::to_string(i), key, Stay::kLeaves));
  print({{"seconds", fleet.join([](const Client& c) { return c.told(); }, 300)}});
}

void run_fleet(const Target& target, const Process& service, const std::string& keys, std::size_t nodes, std::size_t changes,
               std::size_t at_once) {
  OsRng rng;
  double memory_empty = service.memory_mb("RssAnon");
  Fleet fleet(target, at_once);
  auto& clients = fleet.clients;
  std::ifstream in(keys);
  for (std::string key; std::getline(in, key);)
    clients.push_back(std::make_unique<Client>(rng, clients.size() / nodes, "device-" + std::to_string(clients.size() % nodes), key,
                                               Stay::kConnected));
  double cpu = service.cpu_seconds();
  double join_seconds = fleet.join([&](const Client& c) { return c.peers.size() == nodes - 1; }, 600);
  double join_cpu = service.cpu_seconds() - cpu;
  for (auto settle = now(); seconds_since(settle) < 1.5;) fleet.wait(50, [](std::size_t) {});
  double resident = service.memory_mb("VmRSS"), anonymous = service.memory_mb("RssAnon");

  // One change at a time: a new disco key, until the last peer knows it.
  std::vector<double> first_ms, last_ms;
  cpu = service.cpu_seconds();
  for (std::size_t i = 0; i < changes; ++i) {
    std::size_t index = rng.below(clients.size());
    Client& changer = *clients[index];
    changer.new_disco();
    std::size_t missing = nodes - 1;
    std::vector<bool> knows(clients.size(), false);
    auto begin = now();
    changer.update();
    while (missing > 0) {
      fleet.wait(1000, [&](std::size_t at) {
        Client& peer = *clients[at];
        if (peer.account != changer.account || at == index || knows[at]) return;
        auto it = peer.peers.find(changer.own_id);
        if (it == peer.peers.end() || it->second != changer.disco) return;
        knows[at] = true;
        double ms = seconds_since(begin) * 1000;
        if (missing == nodes - 1) first_ms.push_back(ms);
        if (--missing == 0) last_ms.push_back(ms);
      });
      if (seconds_since(begin) > 60) die("a change did not reach its peers");
    }
  }
  double change_cpu = (service.cpu_seconds() - cpu) / static_cast<double>(std::max<std::size_t>(changes, 1));
  std::size_t lost = 0;
  for (const auto& c : clients) lost += c->streams_lost;
  print({{"nodes", clients.size()}, {"streams_lost", lost}, {"join_seconds", join_seconds}, {"join_cpu", join_cpu},
         {"first_p50_ms", percentile(first_ms, 0.5)}, {"all_p50_ms", percentile(last_ms, 0.5)},
         {"all_p99_ms", percentile(last_ms, 0.99)}, {"change_cpu_ms", change_cpu * 1000},
         {"anonymous_empty_mb", memory_empty}, {"resident_mb", resident}, {"anonymous_mb", anonymous}});
}

std::size_t number(const char* text) { return static_cast<std::size_t>(std::stoul(text)); }

}  // namespace

int main(int argc, char** argv) {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
  std::string mode = argc > 1 ? argv[1] : "";
  if (mode == "fill" && argc == 5) {
    fill(parse_target(argv[2]), argv[3], number(argv[4]));
  } else if (mode == "enrol" && argc == 8) {
    enrol(parse_target(argv[2]), app::secret_argument(std::string("file:") + argv[3]), Process(argv[4]), number(argv[5]),
          number(argv[6]), argv[7]);
  } else if (mode == "fleet" && (argc == 7 || argc == 8)) {
    run_fleet(parse_target(argv[2]), Process(argv[3]), argv[4], number(argv[5]), number(argv[6]),
              argc == 8 ? number(argv[7]) : kJoinsAtOnce);
  } else {
    die("usage: fleet URL PID KEYS PER_ACCOUNT CHANGES [AT_ONCE] | fill URL KEY COUNT | enrol URL TOKEN_FILE PID ACCOUNTS PER_ACCOUNT KEYS");
  }
  return 0;
}
