#include "node/doctor.h"

#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <CLI/CLI.hpp>
#include <boost/json.hpp>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <memory>

#include "control/control_session.h"
#include "control/http_fetch.h"
#include "crypto/secret.h"
#include "node/node_socket.h"
#include "node/probe_link.h"
#include "runtime/clock.h"
#include "runtime/sockaddr.h"
#include "support/support.h"
#include "ts2021/spec_constants.h"
#include "ts2021/time_text.h"
#include "wire/stun.h"

namespace porthole::app {
namespace {
namespace json = boost::json;
using namespace std::chrono_literals;
using Steady = std::chrono::steady_clock;

// No single step takes more than this, so that one that hangs leaves time for the others.
constexpr auto kStepMax = 4s;
constexpr auto kStunMax = 2s;
constexpr auto kStunRepeat = 400ms;
constexpr int kClockSkewMax = 60;        // seconds; below it nothing in the protocol minds
constexpr int kCertificateDaysLow = 7;
constexpr std::size_t kAddressesMax = 8;   // of one name; more would only be tried, too

struct DoctorOptions {
  std::string url, ca_file, timeout = "10s";
  int stun_port = wire::stun::kDefaultPort;
  bool json = false;
};

enum class Verdict { kOk, kWarning, kFailed };

// What a server says about itself in the head of an answer.
struct Answered {
  int status = 0;
  std::string server;     // Server header, or empty
  std::string location;   // of a redirect
  std::string line;       // first line of the body
};

// A proxy says that it cannot reach what it stands for.
bool behind_is_down(const Answered& a) { return a.status >= 502 && a.status <= 504; }

std::string by(const Answered& a) { return a.server.empty() ? "" : " by " + a.server; }

// How to let the upgrade through, in the words of whatever stands in front.
std::string upgrade_advice(const std::string& server) {
  std::string name = server;
  for (char& c : name)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  auto is = [&](std::string_view word) { return name.find(word) != std::string::npos; };
  if (is("cloudflare"))
    return "Cloudflare's proxy does not pass this upgrade: set the DNS record to \"DNS only\" and let nodes reach the server itself";
  if (is("caddy")) return "Caddy passes upgrades with reverse_proxy: is an older Caddy or another proxy in front of it?";
  if (is("apache")) return "in Apache: ProxyPass / http://127.0.0.1:8080/ upgrade=any";
  if (is("envoy")) return "in Envoy: upgrade_configs with tailscale-control-protocol and DERP";
  std::string out = "in nginx: proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection \"upgrade\"; (docs/nginx.md)";
  return is("nginx") ? out : "let the proxy in front pass the header Upgrade as it came; " + out;
}

class Doctor {
 public:
  Doctor(const DoctorOptions& o, control::ControlUrl url)
      : options_(o), url_(std::move(url)), tls_(probe_tls_context(o.ca_file)),
        until_(Steady::now() + std::chrono::milliseconds(parse_duration_ms(o.timeout, "--timeout"))) {}

  int run() {
    if (!check_dns() || !check_tcp()) {
      finish();
      return 1;
    }
    bool talks = !url_.tls || check_tls();
    std::optional<MachinePublic> key = talks ? check_key() : std::nullopt;
    if (key) check_upgrade(*key);
    bool relay = talks && key && check_relay();
    if (relay) check_stun();
    return finish();
  }

 private:
  Deadline step(std::chrono::milliseconds most = kStepMax) const { return std::min(until_, Steady::now() + most); }

  void report(std::string_view check, Verdict v, const std::string& text, const std::string& advice = {}, json::object more = {}) {
    static constexpr const char* kWords[] = {"ok", "warning", "FAILED"};
    if (v == Verdict::kFailed) ++failed_;
    if (v == Verdict::kWarning) ++warnings_;
    ++done_;
    const char* word = kWords[static_cast<int>(v)];
    if (options_.json) {
      more["check"] = check;
      more["result"] = v == Verdict::kFailed ? "failed" : word;
      more["text"] = text;
      if (!advice.empty()) more["advice"] = advice;
      print_answer(more);
      return;
    }
    std::string line = std::string(word) + std::string(9 - std::strlen(word), ' ') + std::string(check);
    line += std::string(check.size() < 9 ? 9 - check.size() : 1, ' ') + text;
    if (!advice.empty()) line += (text.ends_with('?') ? " What to do: " : ". What to do: ") + advice;
    print_line(line);
  }

  int finish() {
    if (failed_ == 0) {
      if (!options_.json)
        print_line(warnings_ == 0 ? "all well: a node on this machine can use " + url_.to_string()
                                  : "a node on this machine can use " + url_.to_string() + ", with " + std::to_string(warnings_) +
                                        (warnings_ == 1 ? " warning" : " warnings"));
      return 0;
    }
    throw CommandError("a node on this machine cannot use " + url_.to_string() + ": " + std::to_string(failed_) + " of " + std::to_string(done_) +
                       (done_ == 1 ? " check failed" : " checks failed"));
  }

  static std::string ms(Steady::time_point since) {
    return std::to_string(std::chrono::duration_cast<std::chrono::milliseconds>(Steady::now() - since).count()) + "ms";
  }

  bool check_dns() {
    auto began = Steady::now();
    auto r = look_up(url_.host, step(), stop_.fd());
    if (!r) {
      if (r.error().code == ErrorCode::kNotFound)
        report("DNS", Verdict::kFailed, "there is no host " + url_.host + " (" + r.error().message + ")",
               "check the spelling; a name that others can resolve is missing in this network's name server");
      else
        report("DNS", Verdict::kFailed, "cannot look up " + url_.host + ": " + r.error().message + " (" + ms(began) + ")",
               "is this machine online, and are the name servers in /etc/resolv.conf right?");
      return false;
    }
    std::string list;
    bool tailnet = false;
    json::array ips;
    for (const IpAddress& ip : *r) {
      if (addresses_.size() == kAddressesMax) break;
      addresses_.push_back({ip, url_.port});
      list += (list.empty() ? "" : ", ") + ip.to_string();
      ips.emplace_back(ip.to_string());
      tailnet |= ip.is_v4() && Prefix::parse("100.64.0.0/10")->contains(ip);
    }
    json::object more{{"addresses", ips}};
    if (IpAddress::parse(url_.host)) report("DNS", Verdict::kOk, list + " is an address: nothing to look up", {}, more);
    else if (tailnet)
      report("DNS", Verdict::kWarning, url_.host + " is " + list + ", an address inside a tailnet or a carrier's network",
             "a coordination server must be reachable without the tailnet that it coordinates", more);
    else report("DNS", Verdict::kOk, url_.host + " is " + list + " (" + ms(began) + ")", {}, more);
    return true;
  }

  bool check_tcp() {
    auto began = Steady::now();
    std::vector<ConnectAttempt> attempts;
    OwnedFd fd = connect_any(addresses_, step(), stop_.fd(), attempts);
    std::string faults;
    bool refused = false, silent = false;
    for (const ConnectAttempt& a : attempts) {
      if (!a.error) continue;
      faults += (faults.empty() ? "" : "; ") + a.to.to_string() + ": " + a.error->message;
      refused |= a.error->code == ErrorCode::kRefused;
      silent |= a.error->code == ErrorCode::kTimeout;
    }
    if (!fd) {
      report("TCP", Verdict::kFailed, "cannot connect to " + faults,
             refused  ? "nothing listens there: is the server running, and is the port of the URL right?"
             : silent ? "a firewall here or there drops the packets, or the server is down: try it from another network"
                      : "this machine has no way to that address: is it online?");
      return false;
    }
    std::erase_if(addresses_, [&](const Endpoint& e) {
      return std::none_of(attempts.begin(), attempts.end(), [&](const ConnectAttempt& a) { return a.to == e && a.connected; });
    });
    json::object more{{"address", addresses_.front().to_string()}};
    // "Network is unreachable" for IPv6 on a host that has none is as it should be.
    std::erase_if(attempts, [](const ConnectAttempt& a) { return a.connected || (a.error && a.to.address.is_v6() && a.error->code == ErrorCode::kUnavailable); });
    std::string connected = "connected to " + addresses_.front().to_string() + " (" + ms(began) + ")";
    if (attempts.empty()) report("TCP", Verdict::kOk, connected, {}, more);
    else report("TCP", Verdict::kWarning, connected + ", but not to " + faults, "nodes use the address that works; remove the other from DNS or mend it", more);
    return true;
  }

  // A connection to the server, TLS done. The certificate is the business of check_tls().
  Result<std::unique_ptr<ProbeLink>> open(Deadline until) {
    std::vector<ConnectAttempt> attempts;
    OwnedFd fd = connect_any({addresses_.front()}, until, stop_.fd(), attempts);
    if (!fd) return attempts.front().error->with_context("cannot connect again");
    auto link = std::make_unique<ProbeLink>(std::move(fd), stop_.fd());
    if (url_.tls)
      if (auto v = link->start_tls(tls_.get(), url_.host, until); !v) return v.error();
    return link;
  }

  // True: there is TLS to talk through, whatever the certificate is worth.
  bool check_tls() {
    auto began = Steady::now();
    auto until = step();
    std::vector<ConnectAttempt> attempts;
    OwnedFd fd = connect_any({addresses_.front()}, until, stop_.fd(), attempts);
    if (!fd) {
      report("TLS", Verdict::kFailed, "cannot connect again: " + attempts.front().error->message);
      return false;
    }
    ProbeLink link(std::move(fd), stop_.fd());
    auto v = link.start_tls(tls_.get(), url_.host, until);
    if (!v) {
      report("TLS", Verdict::kFailed, v.error().message,
             v.error().code == ErrorCode::kProtocol ? "check scheme and port of the URL" : "a firewall or filter in between may not let TLS through: try another network");
      return false;
    }
    std::string seen = v->summary;
    if (v->fault) {
      // The server's own clock tells whose fault it is.
      std::string advice = v->advice;
      if (v->time_fault) {
        if (auto skew = clock_skew(); skew && std::abs(*skew) > 3600)
          advice = "set this machine's clock: it is " + skew_text(*skew) + " the server's";
      }
      report("TLS", Verdict::kFailed, *v->fault, advice, {{"certificate", seen}});
    } else if (v->days_left && *v->days_left < kCertificateDaysLow) {
      report("TLS", Verdict::kWarning, seen + ": " + std::to_string(*v->days_left) + " day(s) left", "renew it on the server", {{"certificate", seen}});
    } else {
      report("TLS", Verdict::kOk, seen + " (" + ms(began) + ")", {}, {{"certificate", seen}});
    }
    return true;
  }

  struct Fetched {
    control::HttpFetch fetch;
    Answered seen;
    std::optional<std::int64_t> skew;   // their clock minus ours, seconds
  };

  Result<std::unique_ptr<Fetched>> get(const std::string& target, Deadline until) {
    auto link = open(until);
    if (!link) return link.error();
    auto out = std::make_unique<Fetched>(Fetched{control::HttpFetch(1, "GET", target, url_.authority), {}, {}});
    out->fetch.opened();
    std::uint8_t block[4096];
    while (out->fetch.has_output()) {
      std::size_t n = out->fetch.produce(block);
      if (Status s = (*link)->write(Bytes(block, n), until); !s) return s.error();
    }
    for (;;) {
      auto n = (*link)->read(block, until);
      if (!n) return n.error();
      auto done = *n == 0 ? out->fetch.closed() : out->fetch.consume(Bytes(block, *n));
      if (!done) return done.error();
      if (*done) break;
      if (*n == 0) return Error{ErrorCode::kReset, "it closed the connection in the middle of its answer"};
    }
    out->seen = answered(out->fetch.head(), out->fetch.body());
    if (auto date = out->fetch.head().header("Date")) out->skew = skew_of(*date);
    return out;
  }

  static Answered answered(const wire::HttpHeadParser& head, std::string_view body) {
    auto header = [&](std::string_view name) { return control::printable_line(head.header(name).value_or("")); };
    return {head.status(), header("Server"), header("Location"), control::printable_line(body)};
  }

  static std::optional<std::int64_t> skew_of(std::string_view http_date) {
    auto date = ts2021::parse_http_date(http_date);
    if (!date) return std::nullopt;
    return date->unix_s() - runtime::clock_now().wall.unix_s();
  }
  static std::string skew_text(std::int64_t skew) {
    std::int64_t s = std::abs(skew);
    std::string size = s >= 172800 ? std::to_string(s / 86400) + " days" : s >= 7200 ? std::to_string(s / 3600) + " h" : s >= 120 ? std::to_string(s / 60) + " min" : std::to_string(s) + " s";
    return size + (skew > 0 ? " behind" : " ahead of");
  }
  std::optional<std::int64_t> clock_skew() {
    auto r = get(key_target(), step());
    return r ? (*r)->skew : std::nullopt;
  }
  static std::string key_target() { return std::string(ts2021::kKeyPath) + "?v=" + std::to_string(ts2021::kCapabilityVersion); }

  std::optional<MachinePublic> check_key() {
    auto began = Steady::now();
    auto r = get(key_target(), step());
    if (!r) {
      report("server", Verdict::kFailed, "GET /key: " + r.error().message,
             r.error().code == ErrorCode::kTimeout ? "the server, or the one behind its proxy, hangs: look at its log" : "is " + url_.to_string() + " the coordination server's own URL?");
      return std::nullopt;
    }
    Fetched& f = **r;
    if (f.skew) {
      if (std::abs(*f.skew) > kClockSkewMax)
        report("clock", Verdict::kWarning, "this machine's clock is " + skew_text(*f.skew) + " the server's",
               "set it (NTP): certificates and keys are judged by it", {{"skew_s", *f.skew}});
      else report("clock", Verdict::kOk, "as the server's", {}, {{"skew_s", *f.skew}});
    }
    auto key = control::read_key_answer(f.fetch, url_);
    json::object more{{"status", f.seen.status}};
    if (!f.seen.server.empty()) more["server"] = f.seen.server;
    if (!key) {
      const bool page = key.error().message.find("captive portal") != std::string::npos;
      std::string advice = "correct the URL: it must be the coordination server's own, with its scheme and port";
      if (page) advice = "open " + (f.seen.location.empty() ? url_.to_string() : f.seen.location) + " in a browser on this machine: log in to the network if it asks, else correct the URL";
      if (behind_is_down(f.seen)) advice = "the coordination server behind the proxy is not running, or listens elsewhere";
      report("server", Verdict::kFailed, "GET /key was answered " + std::to_string(f.seen.status) + by(f.seen) + ": " + key.error().message, advice, more);
      return std::nullopt;
    }
    more["key"] = key->to_string();
    more["version"] = ts2021::kCapabilityVersion;
    report("server", Verdict::kOk, "it is a coordination server, key " + key->to_string().substr(0, 13) + "..., protocol version " + std::to_string(ts2021::kCapabilityVersion) + (f.seen.server.empty() ? "" : ", behind " + f.seen.server) + " (" + ms(began) + ")",
           {}, more);
    return *key;
  }

  // The upgrade and the Noise handshake, as a node makes them, with a machine key that is thrown away.
  void check_upgrade(const MachinePublic& key) {
    auto began = Steady::now();
    auto until = step();
    std::optional<Answered> seen;
    auto r = upgrade(key, until, seen);
    json::object more;
    if (seen) {
      more["status"] = seen->status;
      if (!seen->server.empty()) more["server"] = seen->server;
    }
    if (r) return report("upgrade", Verdict::kOk, "POST /ts2021 switches protocols and the server proves its key (" + ms(began) + ")", {}, more);
    if (!seen)
      return report("upgrade", Verdict::kFailed, "POST /ts2021: " + r.error().message, "something on the way does not let it through: try another network, look at the proxy in front of the server", more);
    std::string text = "POST /ts2021 was answered " + std::to_string(seen->status) + by(*seen);
    if (!seen->line.empty() && seen->status != 101) text += " (\"" + seen->line.substr(0, 80) + "\")";
    if (seen->status == 101)
      return report("upgrade", Verdict::kFailed, text + ", then: " + r.error().message, "something in between changes the bytes after the upgrade, or the server's key changed", more);
    if (behind_is_down(*seen))
      return report("upgrade", Verdict::kFailed, text, "the coordination server behind the proxy is not running, or listens elsewhere", more);
    if (seen->status >= 300 && seen->status < 400)
      return report("upgrade", Verdict::kFailed, text + ": it redirects to " + seen->location, "use the URL of the server itself", more);
    report("upgrade", Verdict::kFailed, text + " instead of switching protocols: a proxy in front strips the upgrade", upgrade_advice(seen->server), more);
  }

  Status upgrade(const MachinePublic& key, Deadline until, std::optional<Answered>& seen) {
    auto link = open(until);
    if (!link) return link.error();
    runtime::SystemRng rng;
    auto machine = crypto::MachinePrivate::generate(rng);
    control::ControlSession session(1, url_.authority, url_.tls);
    session.opened();
    if (Status s = session.begin(ts2021::kCapabilityVersion, key, machine, rng); !s) return s;
    wire::HttpMessageParser head(wire::HttpKind::kResponse);
    std::uint8_t block[4096];
    while (!session.ready()) {
      while (std::size_t n = session.produce(block))
        if (Status s = (*link)->write(Bytes(block, n), until); !s) return s;
      auto n = (*link)->read(block, until);
      if (!n) return session.explain_close(n.error());
      if (!seen || (seen->status != 101 && !head.done())) {
        if (*n == 0) (void)head.end_of_stream();
        else (void)head.consume(Bytes(block, *n));
        if (head.head_done()) seen = answered(head.head(), head.body());
      }
      if (*n == 0) return session.explain_close(std::nullopt);
      if (Status s = session.consume(Bytes(block, *n)); !s) return s;
    }
    return {};
  }

  // True: the server has a relay of its own, so STUN is its, too.
  bool check_relay() {
    constexpr const char* kWhy = "without its relay a node is reachable by few";
    auto r = get("/derp/probe", step());
    if (!r || behind_is_down((*r)->seen)) {
      const std::string text = r ? " was answered " + std::to_string((*r)->seen.status) + by((*r)->seen) : ": " + r.error().message;
      report("relay", Verdict::kFailed, "GET /derp/probe" + text + ": the relay is down while the rest of the server is up",
             r ? "start the relay behind that proxy, or correct where the proxy looks for /derp; " + std::string(kWhy)
               : "look at the relay's log; " + std::string(kWhy), {{"relay", true}});
      return true;
    }
    if ((*r)->seen.status != 200 || !(*r)->fetch.body().empty()) {
      report("relay", Verdict::kOk, "none on this host; a node learns of its relays when it has logged in (porthole node netcheck)", {}, {{"relay", false}});
      return false;
    }
    auto began = Steady::now();
    auto until = step();
    auto link = open(until);
    ByteVector request;
    const wire::HttpHeader headers[] = {{"Host", url_.authority}, {"User-Agent", "porthole"}, {"Upgrade", "DERP"}, {"Connection", "Upgrade"}};
    (void)wire::encode_http_request_head(request, "GET", "/derp", headers);
    wire::HttpMessageParser parser(wire::HttpKind::kResponse);
    std::optional<Error> error = link ? std::nullopt : std::optional(link.error());
    if (!error)
      if (Status s = (*link)->write(request, until); !s) error = s.error();
    std::uint8_t block[4096];
    while (!error && !parser.head_done()) {
      auto n = (*link)->read(block, until);
      if (!n) error = n.error();
      else if (*n == 0) error = Error{ErrorCode::kReset, "it closed the connection"};
      else if (auto c = parser.consume(Bytes(block, *n)); !c) error = c.error();
    }
    json::object more{{"relay", true}};
    if (error) {
      report("relay", Verdict::kFailed, "GET /derp: " + error->message, std::string(kWhy) + ": look at the proxy in front of the server", more);
    } else if (parser.head().status() != 101) {
      Answered seen = answered(parser.head(), parser.body());
      more["status"] = seen.status;
      if (behind_is_down(seen)) report("relay", Verdict::kFailed, "GET /derp was answered " + std::to_string(seen.status) + by(seen), "start the relay behind that proxy; " + std::string(kWhy), more);
      else report("relay", Verdict::kFailed, "GET /derp was answered " + std::to_string(seen.status) + by(seen) + " instead of switching protocols: a proxy in front strips the upgrade",
             upgrade_advice(seen.server), more);
    } else {
      report("relay", Verdict::kOk, "the server's own relay takes connections (" + ms(began) + ")", {}, more);
    }
    return true;
  }

  // UDP to the server's host and back: what every direct path needs. One address of each family; one answer is enough.
  void check_stun() {
    std::vector<StunProbe> probes;
    for (const Endpoint& e : addresses_)
      if (std::none_of(probes.begin(), probes.end(), [&](const StunProbe& p) { return p.to.address.is_v6() == e.address.is_v6(); }))
        probes.emplace_back(Endpoint{e.address, static_cast<std::uint16_t>(options_.stun_port)});
    auto began = Steady::now();
    auto until = step(kStunMax);
    auto hopeless = [](const StunProbe& p) { return p.closed; };
    while (Steady::now() < until && !std::all_of(probes.begin(), probes.end(), hopeless)) {
      for (StunProbe& p : probes) p.ask();
      for (auto repeat = std::min(until, Steady::now() + kStunRepeat); Steady::now() < repeat;) {
        std::vector<pollfd> fds{{stop_.fd(), POLLIN, 0}};
        for (const StunProbe& p : probes) fds.push_back({p.closed ? -1 : p.fd.get(), POLLIN, 0});
        auto left = std::chrono::duration_cast<std::chrono::milliseconds>(repeat - Steady::now()).count();
        if (::poll(fds.data(), fds.size(), static_cast<int>(left) + 1) > 0 && fds[0].revents) throw Stopped();
        for (StunProbe& p : probes) {
          auto mapped = p.answer();
          if (!mapped) continue;
          report("UDP", Verdict::kOk, "STUN at " + p.to.to_string() + " sees this machine as " + mapped->to_string() + " (" + ms(began) + ")", {},
                 {{"public", mapped->to_string()}});
          return;
        }
        if (std::all_of(probes.begin(), probes.end(), hopeless)) break;
      }
    }
    std::string asked;
    for (const StunProbe& p : probes) asked += (asked.empty() ? "" : " and ") + p.to.to_string();
    report("UDP", Verdict::kWarning,
           "no STUN answer from " + asked + (std::all_of(probes.begin(), probes.end(), hopeless) ? ": nothing listens on that UDP port"
                                                                                                   : ": UDP is blocked on the way, or the server does not listen there"),
           "open UDP " + std::to_string(options_.stun_port) + " at the server, and UDP out of this network; until then traffic goes through the relay");
  }

  // As a node does, this takes the answer from whatever address of the server's: one with several may send it from another.
  struct StunProbe {
    explicit StunProbe(const Endpoint& endpoint)
        : to(endpoint), fd(::socket(to.address.is_v6() ? AF_INET6 : AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)) {
      const int on = 1;   // so that "port unreachable" is told
      if (to.address.is_v6()) (void)::setsockopt(fd.get(), IPPROTO_IPV6, IPV6_RECVERR, &on, sizeof on);
      else (void)::setsockopt(fd.get(), IPPROTO_IP, IP_RECVERR, &on, sizeof on);
      runtime::SystemRng().fill(id);
      closed = !fd;
    }
    void ask() {
      auto request = wire::stun::encode_request(id);
      runtime::SockAddr a = runtime::to_sockaddr(to);
      if (!closed) (void)::sendto(fd.get(), request.data(), request.size(), MSG_NOSIGNAL, a.get(), a.size);
    }
    std::optional<Endpoint> answer() {
      std::uint8_t block[1500];
      for (int k = 0; k < 16 && !closed; ++k) {   // a flood of other datagrams must not hold us here
        ssize_t n = ::recv(fd.get(), block, sizeof block, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) break;
        if (n < 0) closed = true;   // refused, or unreachable
        if (n <= 0) continue;
        auto got = wire::stun::parse_response(Bytes(block, static_cast<std::size_t>(n)));
        if (got && got->id == id) return got->mapped;
      }
      return std::nullopt;
    }
    Endpoint to;
    OwnedFd fd;
    wire::stun::TransactionId id{};
    bool closed = false;   // nothing listens there, or no way leads there
  };

  const DoctorOptions& options_;
  control::ControlUrl url_;
  TlsContext tls_;
  StopSignal stop_;
  Deadline until_;
  std::vector<Endpoint> addresses_;
  int failed_ = 0, warnings_ = 0, done_ = 0;
};

int diagnose(const DoctorOptions& o) {
  auto url = control::ControlUrl::parse(o.url);
  if (!url) throw CommandError(o.url + ": " + url.error().message, 2);
  try {
    return Doctor(o, std::move(*url)).run();
  } catch (const Stopped&) {
    return 130;
  }
}

}  // namespace

void add_node_doctor(CLI::App& node, std::function<int()>& run) {
  auto o = std::make_shared<DoctorOptions>();
  CLI::App* d = node.add_subcommand("doctor", "Finds out why a node here cannot reach its coordination server");
  d->add_option("url", o->url, "The server's URL, as for node run --login-server")->required();
  d->add_option("--ca-file", o->ca_file, "PEM certificates trusted besides the system's");
  d->add_option("--timeout", o->timeout, "For all checks together (default 10s)");
  d->add_option("--stun-port", o->stun_port, "UDP port of the server's STUN (default 3478)")->check(CLI::Range(1, 65535));
  d->add_flag("--json", o->json, "One JSON object a line, for each check");
  d->footer("Name, connection, certificate, clocks, the server's key, the protocol upgrade that proxies like to break, its relay\n"
            "and UDP: a line for each, with what to do. It needs no running node, logs in nowhere and changes nothing. Exit status\n"
            "0: a node can work with this server; 1: a check failed.\n"
            "Examples:\n"
            "  porthole node doctor https://remote.example.com\n"
            "  porthole node doctor https://192.0.2.1:8443 --ca-file own-ca.pem --json");
  d->callback([o, &run] { run = [o] { return diagnose(*o); }; });
}

}  // namespace porthole::app
