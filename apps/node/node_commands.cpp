// porthole node ...: a tailnet node for any purpose. Uses the public library only.
#include <malloc.h>
#include <poll.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <memory>
#include <porthole/porthole.hpp>

#include "cli/command.h"
#include "control/http_fetch.h"
#include "node/doctor.h"
#include "node/node_socket.h"
#include "node/queries.h"
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

// The same event for a person.
void print_plain(const json::object& e) {
  std::string kind = member(e, "event");
  if (kind == "running") print_text("running as " + members(e, "ips") + " after " + member(e, "ms") + " ms");
  else if (kind == "login_url") print_text("to log in, visit: " + member(e, "url"));
  else if (kind == "state") print_text("state: " + member(e, "state") + (member(e, "reason").empty() ? "" : " (" + member(e, "reason") + ")"));
  else if (kind == "socks5") print_text("SOCKS5 and HTTP proxy on " + member(e, "address") + ", user " + member(e, "username") + ", password " + member(e, "password"));
  else if (kind == "peer_path") print_text("path to " + member(e, "peer") + ": " + member(e, "path") + (member(e, "endpoint").empty() ? "" : " " + member(e, "endpoint")));
  else if (kind == "notice") print_text("note: " + member(e, "message"));
  else if (kind == "peers") {
    if (std::string a = members(e, "added"); !a.empty()) print_text("peers appeared: " + a);
    if (std::string r = members(e, "removed"); !r.empty()) print_text("peers vanished: " + r);
  } else print_text(json::serialize(e));
}

// A state that the node cannot leave by itself ends the program.
bool is_final(const json::object& e, std::string& why) {
  if (member(e, "event") != "state") return false;
  std::string state = member(e, "state");
  std::string reason = member(e, "reason");
  if (state == "failed" || state == "logged-out" || (state == "needs-login" && !reason.empty())) {
    why = reason.empty() ? "the node is " + state : reason;
    return true;
  }
  return false;
}

// A node lives for months and needs large blocks for moments only: a network map being read or written. glibc would take
// the first of them for the normal size and keep the next ones in its heap; like this, they go back to the system.
void return_large_blocks() {
#ifdef __GLIBC__
  ::mallopt(M_MMAP_THRESHOLD, 128 * 1024);
#endif
}

int run_node(const RunOptions& o) {
  return_large_blocks();
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
  if (!o.node.control_url.empty())
    if (auto url = control::ControlUrl::parse(o.node.control_url); !url)
      throw CommandError("--login-server " + o.node.control_url + ": " + url.error().message, 2);
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
        if (member(e, "state") == "logged-out" && member(e, "reason").empty()) {
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

  add_node_queries(*node, run);
  add_node_doctor(*node, run);
}

}  // namespace porthole::app
