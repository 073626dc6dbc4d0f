// porthole node ...: a tailnet node for any purpose. Uses the public library only.
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <cstring>
#include <memory>
#include <porthole/porthole.hpp>

#include "cli/command.h"
#include "support/support.h"

namespace porthole::app {
namespace {
namespace json = boost::json;

struct RunOptions {
  NodeOptions node;
  std::string socks5;
  std::vector<std::string> expose;
  bool json = false;
};

void print_line(const std::string& text) {
  std::fputs((text + "\n").c_str(), stdout);
  std::fflush(stdout);
}

std::string get(const json::object& o, std::string_view key) {
  const json::value* v = o.if_contains(key);
  if (!v) return {};
  return v->is_string() ? std::string(v->get_string()) : json::serialize(*v);
}

std::string join(const json::object& o, std::string_view key) {
  std::string out;
  if (const json::value* v = o.if_contains(key); v && v->is_array())
    for (const auto& e : v->get_array()) out += (out.empty() ? "" : ", ") + std::string(e.is_string() ? e.get_string().c_str() : json::serialize(e).c_str());
  return out;
}

// The same event for a person.
void print_plain(const json::object& e) {
  std::string kind = get(e, "event");
  if (kind == "running") print_line("running as " + join(e, "ips") + " after " + get(e, "ms") + " ms");
  else if (kind == "login_url") print_line("to log in, visit: " + get(e, "url"));
  else if (kind == "state") print_line("state: " + get(e, "state") + (get(e, "reason").empty() ? "" : " (" + get(e, "reason") + ")"));
  else if (kind == "socks5") print_line("SOCKS5 and HTTP proxy on " + get(e, "address") + ", user " + get(e, "username") + ", password " + get(e, "password"));
  else if (kind == "peer_path") print_line("path to " + get(e, "peer") + ": " + get(e, "path") + (get(e, "endpoint").empty() ? "" : " " + get(e, "endpoint")));
  else if (kind == "notice") print_line("note: " + get(e, "message"));
  else if (kind == "peers") {
    if (std::string a = join(e, "added"); !a.empty()) print_line("peers appeared: " + a);
    if (std::string r = join(e, "removed"); !r.empty()) print_line("peers vanished: " + r);
  } else print_line(json::serialize(e));
}

// A state that the node cannot leave by itself ends the program.
bool is_final(const json::object& e, std::string& why) {
  if (get(e, "event") != "state") return false;
  std::string state = get(e, "state");
  std::string reason = get(e, "reason");
  if (state == "failed" || state == "logged-out" || (state == "needs-login" && !reason.empty())) {
    why = reason.empty() ? "the node is " + state : reason;
    return true;
  }
  return false;
}

int run_node(const RunOptions& o) {
  StopSignal stop;
  struct Expose {
    bool udp;
    std::uint16_t port;
    std::string to;
  };
  std::vector<Expose> exposes;
  for (const std::string& e : o.expose) {
    bool udp = e.starts_with("udp:");
    const char* begin = e.data() + (udp || e.starts_with("tcp:") ? 4 : 0);
    std::size_t eq = e.find('=');
    std::uint16_t port = 0;
    const char* end = eq == std::string::npos ? begin : e.data() + eq;
    auto [stopped, bad] = std::from_chars(begin, end, port);
    if (bad != std::errc() || stopped != end || port == 0) throw CommandError("--expose " + e + ": expected [udp:]TAILNET_PORT=ADDRESS:PORT", 2);
    exposes.push_back({udp, port, e.substr(eq + 1)});
  }
  Node node(o.node);
  if (std::getenv("PORTHOLE_LOG")) node.set_log_fd(STDERR_FILENO);
  // What the library calls invalid here was typed wrong.
  auto option = [](const std::string& typed, auto use) {
    try {
      return use();
    } catch (const Exception& e) {
      throw CommandError(typed + ": " + e.what(), e.code() == PORTHOLE_ERROR_INVALID ? 2 : 1);
    }
  };
  for (std::size_t i = 0; i < exposes.size(); ++i)
    option("--expose " + o.expose[i], [&] {
      const Expose& e = exposes[i];
      e.udp ? node.expose_udp(e.port, e.to) : node.expose(e.port, e.to);
    });
  if (!o.socks5.empty()) {
    Loopback l = option("--socks5 " + o.socks5, [&] { return node.loopback(o.socks5); });
    json::object e{{"event", "socks5"}, {"address", l.address}, {"username", l.username}, {"password", l.password}};
    o.json ? print_event(e) : print_plain(e);
  }
  bool logged_out = false;
  while (!stop.stopped()) {
    pollfd p[2] = {{node.event_fd(), POLLIN, 0}, {stop.fd(), POLLIN, 0}};
    if (::poll(p, 2, -1) < 0 && errno != EINTR) break;
    while (!stop.stopped()) {
      auto text = node.next_event(std::chrono::milliseconds(0));
      if (!text) break;
      json::object e = json::parse(*text).as_object();
      o.json ? print_event(e) : print_plain(e);
      std::string why;
      if (is_final(e, why)) {
        if (get(e, "state") == "logged-out" && get(e, "reason").empty()) {
          logged_out = true;  // by our own `porthole node logout`
          break;
        }
        throw CommandError(why);
      }
    }
    if (logged_out) break;
  }
  return 0;
}

// One question to the running node of this state directory.
json::value ask_node(const std::string& state_dir, const json::object& question, int timeout_ms) {
  std::string path = state_dir + "/node.sock";
  sockaddr_un a{};
  a.sun_family = AF_UNIX;
  if (path.size() >= sizeof a.sun_path) throw CommandError("the path " + path + " is too long for a socket");
  std::memcpy(a.sun_path, path.data(), path.size());
  int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  std::unique_ptr<int, void (*)(int*)> closer(&fd, [](int* f) { ::close(*f); });
  if (::connect(fd, reinterpret_cast<sockaddr*>(&a), sizeof a) != 0) {
    if (errno == ENOENT || errno == ECONNREFUSED)
      throw CommandError("no node is running with the state directory " + state_dir + " (start it with: porthole node run --statedir " + state_dir + " ...)");
    throw CommandError("cannot talk to the node in " + state_dir + ": " + std::strerror(errno));
  }
  std::string line = json::serialize(question) + "\n";
  if (::send(fd, line.data(), line.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(line.size())) throw CommandError("the node hung up");
  std::string answer;
  for (;;) {
    pollfd p{fd, POLLIN, 0};
    if (::poll(&p, 1, timeout_ms) <= 0) throw CommandError("the node did not answer within " + std::to_string(timeout_ms) + " ms");
    char block[16384];
    ssize_t n = ::recv(fd, block, sizeof block, 0);
    if (n <= 0) throw CommandError("the node hung up");
    answer.append(block, static_cast<std::size_t>(n));
    if (answer.back() == '\n') break;
  }
  json::object o = json::parse(answer).as_object();
  if (!o.at("ok").as_bool()) throw CommandError(get(o, "error"));
  return o.at("result");
}

int show_status(const std::string& dir, bool as_json) {
  json::value v = ask_node(dir, {{"command", "status"}}, 5000);
  json::object& o = v.as_object();
  if (as_json) {
    print_event(o);
    return 0;
  }
  json::object& self = o.at("self").as_object();
  print_line(get(self, "name") + "  " + join(self, "ips") + "  " + get(o, "state") + (get(o, "reason").empty() ? "" : " (" + get(o, "reason") + ")"));
  for (auto& pv : o.at("peers").as_array()) {
    json::object& p = pv.as_object();
    std::string online = get(p, "online");
    std::string line = "  " + get(p, "name") + "  " + join(p, "ips") + "  " + (online == "true" ? "online" : online == "false" ? "offline" : "-") + "  ";
    std::string path = get(p, "path");
    line += path;
    if (path == "direct") line += " " + get(p, "endpoint") + " " + get(p, "latency_ms") + " ms";
    if (path == "relay") line += " " + get(p, "relay");
    line += "  rx " + get(p, "rx_bytes") + "  tx " + get(p, "tx_bytes");
    if (std::string why = get(p, "why_not_direct"); !why.empty() && path != "direct") line += "  (" + why + ")";
    print_line(line);
  }
  return 0;
}

}  // namespace

void add_node_commands(CLI::App& app, Run& run) {
  CLI::App* node = app.add_subcommand("node", "A tailnet node: run it, look at it");
  node->require_subcommand(1);

  auto o = std::make_shared<RunOptions>();
  CLI::App* r = node->add_subcommand("run", "Runs a node in the foreground until Ctrl-C");
  r->footer("Examples:\n"
            "  porthole node run --statedir n1 --login-server https://tailnet.example --auth-key file:key --socks5 127.0.0.1:1080\n"
            "  porthole node run --statedir n1 --expose 8080=127.0.0.1:80\n"
            "Without a key it starts from the stored login, or prints the URL where a person logs it in.");
  r->add_option("--statedir", o->node.state_dir, "Directory for keys and login; one node per directory")->required();
  r->add_option("--login-server", o->node.control_url, "Coordination server; remembered after the first time");
  r->add_option("--auth-key", o->node.auth_key, "Pre-auth key, or file:PATH");
  r->add_option("--hostname", o->node.hostname, "Wanted name on the tailnet");
  r->add_flag("--ephemeral", o->node.ephemeral, "The node vanishes when it goes offline");
  r->add_option("--ca-file", o->node.ca_file, "PEM certificates trusted besides the system's");
  r->add_option("--socks5", o->socks5, "Loopback ADDRESS:PORT of the SOCKS5 and HTTP CONNECT proxy (port 0: any)");
  r->add_option("--expose", o->expose, "[udp:]TAILNET_PORT=ADDRESS:PORT: forward tailnet connections (or datagrams) to a local service");
  r->add_option("--port", o->node.udp_port, "UDP port (default: the last one, else any)");
  r->add_flag("--relay-only", o->node.relay_only, "Never use direct paths");
  r->add_flag("--json", o->json, "One JSON object a line");
  r->callback([o, &run] { run = [o] { return run_node(*o); }; });

  struct Query {
    std::string dir, peer;
    bool json = false;
    int count = 4;
  };
  auto q = std::make_shared<Query>();
  auto common = [q](CLI::App* c) {
    c->add_option("--statedir", q->dir, "State directory of the running node")->required();
    c->add_flag("--json", q->json, "JSON");
  };
  CLI::App* status = node->add_subcommand("status", "State, addresses, peers and their paths");
  common(status);
  status->callback([q, &run] { run = [q] { return show_status(q->dir, q->json); }; });

  CLI::App* ping = node->add_subcommand("ping", "Asks a peer for an answer and shows the way it took");
  common(ping);
  ping->add_option("name", q->peer, "Peer name or tailnet address")->required();
  ping->add_option("-c,--count", q->count, "How often")->check(CLI::Range(1, 1000));
  ping->callback([q, &run] {
    run = [q] {
      int answered = 0;
      StopSignal stop;
      for (int i = 0; i < q->count && !stop.stopped(); ++i) {
        if (i > 0 && stop.wait(1000)) break;
        try {
          json::value v = ask_node(q->dir, {{"command", "ping"}, {"peer", q->peer}}, 15000);
          json::object& e = v.as_object();
          ++answered;
          if (q->json) print_event(e);
          else print_line("pong from " + get(e, "peer") + " via " + (get(e, "path") == "direct" ? get(e, "endpoint") : "relay " + get(e, "relay")) + " in " + get(e, "latency_ms") + " ms");
        } catch (const CommandError& e) {
          if (i + 1 == q->count && answered == 0) throw;
          if (!q->json) print_line(e.what());
        }
      }
      return answered > 0 ? 0 : 1;
    };
  });

  CLI::App* check = node->add_subcommand("netcheck", "What this network allows: UDP, NAT, relays");
  common(check);
  check->callback([q, &run] {
    run = [q] {
      json::value v = ask_node(q->dir, {{"command", "netcheck"}}, 15000);
      json::object& e = v.as_object();
      if (q->json) {
        print_event(e);
        return 0;
      }
      print_line("UDP: " + get(e, "udp") + "  IPv4: " + get(e, "ipv4") + " " + get(e, "public_v4") + "  IPv6: " + get(e, "ipv6") + " " + get(e, "public_v6"));
      print_line("NAT changes the port by destination: " + get(e, "mapping_varies"));
      print_line("endpoints: " + join(e, "endpoints"));
      for (auto& rv : e.at("relays").as_array()) {
        json::object& relay = rv.as_object();
        print_line("relay " + get(relay, "region") + " " + get(relay, "name") + ": " + get(relay, "latency_ms") + " ms" + (get(relay, "region") == get(e, "home_relay") ? "  (home)" : ""));
      }
      return 0;
    };
  });

  CLI::App* logout = node->add_subcommand("logout", "Logs the running node out; it then needs a key or a login again");
  common(logout);
  logout->callback([q, &run] {
    run = [q] {
      ask_node(q->dir, {{"command", "logout"}}, 15000);
      if (!q->json) print_line("logged out");
      return 0;
    };
  });
}

}  // namespace porthole::app
