// Many households on one coordination service: the real `porthole remote run` over loopback, plain HTTP, SQLite store on
// disk, with simulated control clients (Noise, HTTP/2, register, map stream, updates) in this process.
//   coordinator_bench PATH/TO/porthole [accounts] [nodes per account] [changes]
// Prints how long it takes until every node sees its whole account, and how long one node's change takes to its peers.
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/rng.h"
#include "support/support.h"
#include "ts2021/h2.h"
#include "ts2021/json.h"
#include "ts2021/map_framing.h"
#include "ts2021/noise.h"
#include "wire/http.h"

namespace {

using namespace porthole;
namespace json = boost::json;
using SteadyTime = std::chrono::steady_clock::time_point;

constexpr std::size_t kJoinsAtOnce = 256;

[[noreturn]] void die(const std::string& what) {
  std::fprintf(stderr, "coordinator_bench: %s\n", what.c_str());
  std::exit(1);
}
SteadyTime now() { return std::chrono::steady_clock::now(); }
double seconds_since(SteadyTime t) { return std::chrono::duration<double>(now() - t).count(); }

class OsRng final : public Rng {
 public:
  void fill(MutBytes out) override { app::random_bytes(out.data(), out.size()); }
};

// ---- the service ---------------------------------------------------------------------------------------------------

class Service {
 public:
  explicit Service(const std::string& program) {
    char name[] = "/tmp/porthole-bench-XXXXXX";
    dir_ = ::mkdtemp(name);
    int out[2];
    if (::pipe(out) != 0) die("no pipe");
    pid_ = ::fork();
    if (pid_ == 0) {
      ::dup2(out[1], 1);
      ::execl(program.c_str(), program.c_str(), "remote", "run", "--statedir", dir_.c_str(), "--listen", "127.0.0.1:0",
              "--stun-port", "0", "--json", nullptr);
      ::_exit(127);
    }
    ::close(out[1]);
    std::string line;
    char c;
    while (::read(out[0], &c, 1) == 1 && c != '\n') line.push_back(c);
    out_ = out[0];
    if (line.empty()) die("the service did not start");
    auto event = json::parse(line).as_object();
    std::string listen(event.at("listen").as_string());
    port = static_cast<std::uint16_t>(std::stoi(listen.substr(listen.rfind(':') + 1)));
    admin = app::secret_argument("file:" + std::string(event.at("admin_token_file").as_string()));
  }
  ~Service() {
    ::kill(pid_, SIGTERM);
    ::waitpid(pid_, nullptr, 0);
    ::close(out_);
    std::filesystem::remove_all(dir_);
  }
  double cpu_seconds() const {
    std::ifstream in("/proc/" + std::to_string(pid_) + "/stat");
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
    std::ifstream in("/proc/" + std::to_string(pid_) + "/status");
    for (std::string line; std::getline(in, line);)
      if (line.starts_with(name + ":")) return std::stod(line.substr(name.size() + 1)) / 1024;
    return 0;
  }
  std::uint16_t port = 0;
  std::string admin;

 private:
  std::string dir_;
  pid_t pid_ = -1;
  int out_ = -1;
};

int connect_to(std::uint16_t port, bool blocking) {
  int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(port);
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (fd < 0 || ::connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to) != 0) die("cannot connect");
  int on = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (!blocking) ::fcntl(fd, F_SETFL, O_NONBLOCK);
  return fd;
}

// One keep-alive connection to the enrolment API.
class Api {
 public:
  explicit Api(std::uint16_t port) : fd_(connect_to(port, true)) {}
  ~Api() { ::close(fd_); }
  json::object call(const std::string& method, const std::string& path, const std::string& token, const std::string& body) {
    std::string request = method + " " + path + " HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + token +
                          "\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
    send_all(request);
    wire::HttpMessageParser parser(wire::HttpKind::kResponse);
    std::uint8_t in[8192];
    while (!parser.done()) {
      ssize_t n = ::recv(fd_, in, sizeof in, 0);
      if (n <= 0 || !parser.consume(Bytes(in, static_cast<std::size_t>(n))).ok()) die("the API broke off");
    }
    if (parser.head().status() >= 300) die("the API refused: " + std::string(parser.body()));
    std::string_view text = parser.body();
    return json::parse(json::string_view(text.data(), text.size())).as_object();
  }
  std::string get(const std::string& path) {
    send_all("GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n");
    wire::HttpMessageParser parser(wire::HttpKind::kResponse);
    std::uint8_t in[8192];
    while (!parser.done()) {
      ssize_t n = ::recv(fd_, in, sizeof in, 0);
      if (n <= 0 || !parser.consume(Bytes(in, static_cast<std::size_t>(n))).ok()) die("the API broke off");
    }
    return std::string(parser.body());
  }

 private:
  void send_all(const std::string& text) {
    if (::send(fd_, text.data(), text.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(text.size())) die("the API broke off");
  }
  int fd_;
};

// ---- a simulated client ----------------------------------------------------------------------------------------------

class Client {
 public:
  Client(Rng& rng, std::size_t account_index, std::string hostname, std::string key)
      : account(account_index), hostname_(std::move(hostname)), key_(std::move(key)), rng_(rng),
        machine_(crypto::MachinePrivate::generate(rng)), node_(crypto::NodePrivate::generate(rng)) {
    new_disco();
  }
  ~Client() {
    if (fd >= 0) ::close(fd);
  }
  void new_disco() {
    std::array<std::uint8_t, 32> raw;
    rng_.fill(raw);
    disco = DiscoPublic(raw);
  }

  void start(std::uint16_t port, const MachinePublic& server) {
    fd = connect_to(port, false);
    initiator_.emplace(ts2021::NoiseInitiator::start(ts2021::kCapabilityVersion, server, machine_, rng_).value());
    std::string head = "POST /ts2021 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: upgrade\r\nUpgrade: "
                       "tailscale-control-protocol\r\nX-Tailscale-Handshake: " + to_base64(initiator_->initiation()) + "\r\n\r\n";
    append(out_, as_bytes(head));
    h2_.emplace("x");
    ts2021::RegisterRequest r;
    r.version = ts2021::kCapabilityVersion;
    r.node_key = node_.public_key();
    r.auth_key = crypto::SecretText(key_);
    r.hostinfo = hostinfo();
    register_stream_ = h2_->submit("POST", "/machine/register", {}, as_bytes(ts2021::encode_register_request(r).reveal())).value();
    flush();
  }
  void update() {
    post_map(false);
    flush();
  }

  // Reads what there is. True: a map message came.
  bool on_readable() {
    bool map = false;
    std::uint8_t in[16 * 1024];
    for (;;) {
      ssize_t n = ::recv(fd, in, sizeof in, 0);
      if (n == 0) die("the service closed a connection");
      if (n < 0) break;
      append(in_, Bytes(in, static_cast<std::size_t>(n)));
    }
    if (initiator_) {
      auto text = as_text(in_);
      std::size_t end = text.find("\r\n\r\n");
      if (end == std::string_view::npos || in_.size() < end + 4 + 51) return false;
      if (!text.starts_with("HTTP/1.1 101")) die("no upgrade: " + std::string(text));
      auto session = initiator_->finish(Bytes(in_).subspan(end + 4, 51));
      if (!session) die(session.error().message);
      records_.emplace(std::move(session->records));
      initiator_.reset();
      in_.erase(in_.begin(), in_.begin() + static_cast<std::ptrdiff_t>(end + 4 + 51));
      flush();
    }
    ByteVector plain;
    if (!records_->open(in_, plain)) die("bad record");
    in_.clear();
    if (!h2_->consume(plain)) die("bad HTTP/2");
    while (auto event = h2_->poll_event()) {
      auto* data = std::get_if<ts2021::H2Data>(&*event);
      if (!data) continue;
      if (data->stream == register_stream_) {
        append(register_body_, data->bytes);
        auto r = ts2021::parse_register_response(register_body_);
        if (!r) continue;
        if (!r->error.empty() || !r->machine_authorized) die("register: " + r->error);
        post_map(true);
        post_map(false);
      } else if (data->stream == map_stream_) {
        if (!reader_.consume(data->bytes)) die("bad map framing");
        while (auto message = reader_.next()) {
          auto m = ts2021::parse_map_response(**message);
          if (!m) die(m.error().message);
          apply(*m);
          map = true;
        }
      }
    }
    flush();
    return map;
  }
  void flush() {
    if (records_) {
      std::uint8_t out[16 * 1024];
      while (std::size_t n = h2_->produce(out))
        if (!records_->seal(Bytes(out).first(n), out_)) die("seal");
    }
    while (!out_.empty()) {
      ssize_t n = ::send(fd, out_.data(), out_.size(), MSG_NOSIGNAL);
      if (n <= 0) break;
      out_.erase(out_.begin(), out_.begin() + n);
    }
  }

  std::size_t account;
  int fd = -1;
  DiscoPublic disco;
  std::map<ts2021::NodeId, DiscoPublic> peers;
  ts2021::NodeId own_id = 0;

 private:
  ts2021::Hostinfo hostinfo() const {
    ts2021::Hostinfo h;
    h.hostname = hostname_;
    h.os = "linux";
    h.ipn_version = "1.0-bench";
    h.net_info.emplace();
    h.net_info->preferred_derp = 900;
    return h;
  }
  void post_map(bool stream) {
    ts2021::MapRequest m;
    m.version = ts2021::kCapabilityVersion;
    m.compress = "zstd";
    m.keep_alive = true;
    m.node_key = node_.public_key();
    m.disco_key = disco;
    m.stream = stream;
    m.omit_peers = !stream;
    m.hostinfo = hostinfo();
    m.endpoints = {{IpAddress::v4(198, 51, 100, 7), 41641}, {IpAddress::v4(192, 168, 1, 7), 41641}};
    auto id = h2_->submit("POST", "/machine/map", {}, as_bytes(ts2021::encode_map_request(m))).value();
    if (stream) map_stream_ = id;
  }
  void apply(const ts2021::MapResponse& m) {
    if (m.node) own_id = m.node->id;
    for (const auto& p : m.peers) peers[p.id] = p.disco_key;
    for (const auto& p : m.peers_changed) peers[p.id] = p.disco_key;
    for (auto id : m.peers_removed) peers.erase(id);
    for (const auto& c : m.peers_changed_patch)
      if (c.disco_key) peers[c.node_id] = *c.disco_key;
  }

  std::string hostname_, key_;
  Rng& rng_;
  crypto::MachinePrivate machine_;
  crypto::NodePrivate node_;
  std::optional<ts2021::NoiseInitiator> initiator_;
  std::optional<ts2021::RecordStream> records_;
  std::optional<ts2021::H2Client> h2_;
  ts2021::MapFrameReader reader_{true};
  ts2021::H2StreamId register_stream_ = 0, map_stream_ = 0;
  ByteVector in_, out_, register_body_;
};

double percentile(std::vector<double> values, double p) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[std::min(values.size() - 1, static_cast<std::size_t>(p * static_cast<double>(values.size())))];
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) die("usage: coordinator_bench PATH/TO/porthole [accounts] [nodes per account] [changes]");
  std::size_t accounts = argc > 2 ? std::stoul(argv[2]) : 1000;
  std::size_t nodes = argc > 3 ? std::stoul(argv[3]) : 5;
  std::size_t changes = argc > 4 ? std::stoul(argv[4]) : 500;
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);

  OsRng rng;
  Service service(argv[1]);
  double memory_empty = service.memory_mb("VmRSS");
  Api api(service.port);
  auto key_answer = ts2021::parse_key_answer(as_bytes(api.get("/key?v=131")));
  if (!key_answer) die("no key");

  // Enrolment: an account and one key per device, over one connection.
  auto start = now();
  double cpu = service.cpu_seconds();
  std::vector<std::unique_ptr<Client>> clients;
  for (std::size_t a = 0; a < accounts; ++a) {
    std::string name = "home-" + std::to_string(a);
    auto made = api.call("POST", "/api/v1/accounts", service.admin, "{\"name\":\"" + name + "\"}");
    std::string token(made.at("token").as_string());
    for (std::size_t n = 0; n < nodes; ++n) {
      auto key = api.call("POST", "/api/v1/accounts/" + name + "/devices/device-" + std::to_string(n) + "/key", token, "");
      clients.push_back(std::make_unique<Client>(rng, a, "device-" + std::to_string(n), std::string(key.at("key").as_string())));
    }
  }
  double enrol_seconds = seconds_since(start), enrol_cpu = service.cpu_seconds() - cpu;

  // Everybody joins, kJoinsAtOnce on the way at a time.
  int epoll = ::epoll_create1(EPOLL_CLOEXEC);
  std::size_t begun = 0, complete = 0;
  std::vector<bool> whole(clients.size(), false);
  std::vector<std::size_t> seen(clients.size(), 0);
  std::size_t joined = 0;
  start = now();
  cpu = service.cpu_seconds();
  auto wait = [&](int timeout_ms, auto&& on_map) {
    epoll_event events[256];
    int n = ::epoll_wait(epoll, events, 256, timeout_ms);
    for (int i = 0; i < n; ++i) {
      std::size_t index = events[i].data.u64;
      if (clients[index]->on_readable()) on_map(index);
    }
  };
  while (complete < clients.size()) {
    while (begun < clients.size() && begun - joined < kJoinsAtOnce) {
      Client& c = *clients[begun];
      c.start(service.port, key_answer->public_key);
      epoll_event e{};
      e.events = EPOLLIN;
      e.data.u64 = begun++;
      ::epoll_ctl(epoll, EPOLL_CTL_ADD, c.fd, &e);
    }
    wait(100, [&](std::size_t index) {
      if (seen[index]++ == 0) ++joined;
      if (!whole[index] && clients[index]->peers.size() == nodes - 1) {
        whole[index] = true;
        ++complete;
      }
    });
    if (seconds_since(start) > 300) die("not everybody joined within five minutes");
  }
  double join_seconds = seconds_since(start), join_cpu = service.cpu_seconds() - cpu;
  for (auto settle = now(); seconds_since(settle) < 1.5;) wait(50, [](std::size_t) {});
  double rss = service.memory_mb("VmRSS"), anonymous = service.memory_mb("RssAnon");

  // One change at a time: a new disco key, until the last peer knows it.
  std::vector<double> first_ms, last_ms;
  cpu = service.cpu_seconds();
  for (std::size_t i = 0; i < changes; ++i) {
    std::size_t index = rng.below(clients.size());
    Client& changer = *clients[index];
    changer.new_disco();
    std::size_t missing = nodes - 1;
    auto begin = now();
    changer.update();
    while (missing > 0) {
      wait(1000, [&](std::size_t at) {
        Client& peer = *clients[at];
        if (peer.account != changer.account || at == index) return;
        auto it = peer.peers.find(changer.own_id);
        if (it == peer.peers.end() || it->second != changer.disco) return;
        double ms = seconds_since(begin) * 1000;
        if (missing == nodes - 1) first_ms.push_back(ms);
        if (--missing == 0) last_ms.push_back(ms);
      });
      if (seconds_since(begin) > 10) die("a change did not reach its peers");
    }
  }
  double change_cpu = service.cpu_seconds() - cpu;

  std::printf("conditions: %zu accounts x %zu nodes, porthole remote over loopback, plain HTTP, SQLite (WAL) on disk, zstd maps,\n"
              "            %zu joins at once, clients in another process on the same %ld cores\n",
              accounts, nodes, kJoinsAtOnce, ::sysconf(_SC_NPROCESSORS_ONLN));
  std::printf("%-58s %10.2f s\n", "accounts and device keys made over the API", enrol_seconds);
  std::printf("%-58s %10.2f s\n", "  CPU of the service for it", enrol_cpu);
  std::printf("%-58s %10.2f s\n", "all registered and seeing their account", join_seconds);
  std::printf("%-58s %10.2f s\n", "  CPU of the service for it", join_cpu);
  std::printf("%-58s %10.2f ms\n", "a new disco key reaches the first peer, p50", percentile(first_ms, 0.5));
  std::printf("%-58s %10.2f ms\n", "a new disco key reaches all peers, p50", percentile(last_ms, 0.5));
  std::printf("%-58s %10.2f ms\n", "a new disco key reaches all peers, p99", percentile(last_ms, 0.99));
  std::printf("%-58s %10.3f ms\n", "CPU of the service for one such change", change_cpu * 1000 / static_cast<double>(std::max<std::size_t>(changes, 1)));
  std::printf("%-58s %10.1f MB\n", "resident memory, empty", memory_empty);
  std::printf("%-58s %10.1f MB\n", "resident memory, all connected", rss);
  std::printf("%-58s %10.1f MB\n", "  of it anonymous", anonymous);
  return 0;
}
