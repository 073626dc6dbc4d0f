#include "node/queries.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <thread>

#include "node/nc.h"
#include "node/node_socket.h"
#include "support/support.h"

namespace porthole::app {
namespace {
namespace json = boost::json;
constexpr int kAnswerMs = 5000;
constexpr int kNetcheckMs = 15000;

struct Query {
  std::string dir;
  bool json = false;
};

bool is_true(const json::object& o, std::string_view key) {
  const json::value* v = o.if_contains(key);
  return v && v->is_bool() && v->get_bool();
}

std::string yes_no(bool yes) { return yes ? "yes" : "no"; }

std::string ago(std::int64_t seconds) {
  if (seconds < 120) return std::to_string(seconds) + "s ago";
  if (seconds < 7200) return std::to_string(seconds / 60) + "m ago";
  if (seconds < 172800) return std::to_string(seconds / 3600) + "h ago";
  return std::to_string(seconds / 86400) + "d ago";
}

std::optional<std::int64_t> number(const json::object& o, std::string_view key) {
  const json::value* v = o.if_contains(key);
  if (!v || !v->is_number()) return std::nullopt;
  return v->to_number<std::int64_t>();
}

// ---- status

// Columns wide enough for all, two spaces between.
void print_table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<std::size_t> widths;
  for (const auto& row : rows)
    for (std::size_t i = 0; i + 1 < row.size(); ++i) {
      if (widths.size() <= i) widths.push_back(0);
      widths[i] = std::max(widths[i], row[i].size());
    }
  for (const auto& row : rows) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) {
      line += row[i];
      if (i + 1 < row.size()) line += std::string(widths[i] - row[i].size() + 2, ' ');
    }
    print_line(line);
  }
}

std::string owner(const json::object& o) {
  if (std::string tags = members(o, "tags", ","); !tags.empty()) return tags;
  std::string user = member(o, "user");
  return user.empty() ? "-" : user;
}

std::string peer_state(const json::object& p) {
  std::string path = member(p, "path");
  const bool used = is_true(p, "active");
  std::string out;
  if (is_true(p, "expired")) {
    out = "expired";
  } else if (used) {
    out = "active; ";
    if (path == "direct") out += "direct " + member(p, "endpoint") + ", " + ms_text(p, "latency_ms");
    else if (path == "relay") out += "relay \"" + member(p, "relay_name") + "\"";
    else out += "no path";
  } else if (const json::value* online = p.if_contains("online"); online && online->is_bool()) {
    out = online->get_bool() ? "online, idle" : "offline";
    if (auto seen = number(p, "last_seen_s"); seen && !online->get_bool()) out += ", last seen " + ago(*seen);
  } else {
    out = "idle";
  }
  auto tx = number(p, "tx_bytes").value_or(0), rx = number(p, "rx_bytes").value_or(0);
  if (tx > 0 || rx > 0) out += ", tx " + std::to_string(tx) + " rx " + std::to_string(rx);
  if (auto handshake = number(p, "last_handshake_s")) out += ", handshake " + ago(*handshake);
  if (std::string why = member(p, "why_not_direct"); used && path != "direct" && !why.empty()) out += "; not direct: " + why;
  return out;
}

int show_status(const Query& q, bool with_peers, bool active_only) {
  json::value v = ask_node(q.dir, {{"command", "status"}}, kAnswerMs);
  json::object& o = v.as_object();
  json::array& peers = o.at("peers").as_array();
  if (!with_peers) peers.clear();
  if (active_only) {
    json::array kept;
    for (json::value& p : peers)
      if (is_true(p.as_object(), "active")) kept.push_back(std::move(p));
    peers = std::move(kept);
  }
  if (q.json) {
    print_answer(o);
    return 0;
  }
  json::object& self = o.at("self").as_object();
  std::string state = member(o, "state");
  if (state != "running") {
    std::string why = member(o, "reason").empty() ? member(o, "last_notice") : member(o, "reason");
    print_line("# state: " + state + (why.empty() ? "" : " (" + why + ")"));
  }
  std::string home = member(self, "home_relay_name");
  std::string own = state;
  if (!home.empty()) own += ", home relay \"" + home + "\"" + (is_true(self, "relay_connected") ? "" : " (not connected)");
  else own += ", no home relay";
  // What goes wrong with the relay or the coordinator meanwhile.
  if (state == "running" && !is_true(self, "relay_connected") && !member(o, "last_notice").empty()) print_line("# " + member(o, "last_notice"));
  std::vector<std::vector<std::string>> rows;
  std::string ips = members(self, "ips", " ");
  rows.push_back({ips.empty() ? "-" : ips, member(self, "name"), owner(self), own});
  for (json::value& p : peers) {
    json::object& e = p.as_object();
    rows.push_back({members(e, "ips", " "), member(e, "name"), owner(e), peer_state(e)});
  }
  print_table(rows);
  if (std::string health = members(o, "health", "\n#     - "); !health.empty()) print_line("# Health check:\n#     - " + health);
  return 0;
}

// ---- ping

struct PingOptions {
  std::string peer, timeout = "5s";
  int count = 10;
  bool count_given = false, until_direct = true, tsmp = false, icmp = false;
};

std::string way(const json::object& pong) {
  if (member(pong, "type") != "disco") return member(pong, "type");
  if (member(pong, "path") == "direct") return member(pong, "endpoint");
  return "DERP(" + member(pong, "relay_name") + ")";
}

int ping(const Query& q, const PingOptions& o) {
  if (o.tsmp && o.icmp) throw CommandError("--tsmp and --icmp: one of the two", 2);
  const int timeout_ms = parse_duration_ms(o.timeout, "--timeout");
  const char* type = o.tsmp ? "TSMP" : o.icmp ? "ICMP" : "disco";
  const bool through_tunnel = o.tsmp || o.icmp;
  // Through the tunnel there is no question of the path: one answer is the answer.
  const int count = through_tunnel && !o.count_given ? 1 : o.count;
  StopSignal stop;
  int answered = 0;
  bool direct = false;
  std::string last_error;
  for (int i = 0; (count == 0 || i < count) && !stop.stopped(); ++i) {
    auto began = std::chrono::steady_clock::now();
    try {
      json::value v = ask_node(q.dir, {{"command", "ping"}, {"peer", o.peer}, {"type", type}}, timeout_ms, stop.fd());
      json::object& pong = v.as_object();
      ++answered;
      direct = member(pong, "path") == "direct";
      if (q.json) print_answer(pong);
      else print_line("pong from " + member(pong, "peer") + " (" + member(pong, "ip") + ") via " + way(pong) + " in " + ms_text(pong, "latency_ms"));
      if (direct && o.until_direct && !through_tunnel) return 0;
    } catch (const Stopped&) {
      break;
    } catch (const NoAnswer&) {
      last_error = o.peer + " did not answer within " + o.timeout;
    } catch (const AnswerError& e) {
      // Asking again changes nothing about a name that does not exist, or a node that is not there.
      if (e.code != "timeout" && e.code != "unavailable") throw;
      last_error = e.what();
    }
    if (!last_error.empty()) {
      if (q.json) print_answer({{"peer", o.peer}, {"type", type}, {"error", last_error}});
      else if (count != 1) print_line(last_error);
      if (i + 1 < count || count == 0) last_error.clear();
    }
    if (count != 0 && i + 1 >= count) break;
    auto left = std::chrono::seconds(1) - (std::chrono::steady_clock::now() - began);
    if (left.count() > 0 && stop.wait(static_cast<int>(std::chrono::duration_cast<std::chrono::milliseconds>(left).count()))) break;
  }
  if (answered == 0) throw CommandError(count == 1 && !last_error.empty() ? last_error : "no reply from " + o.peer);
  if (!through_tunnel && o.until_direct && !direct && !stop.stopped())
    throw CommandError("direct connection not established: " + o.peer + " answers through a relay only (porthole node status says why)");
  return 0;
}

// ---- nc

int nc(const Query& q, const std::string& host, int port, const std::string& timeout) {
  const int timeout_ms = parse_duration_ms(timeout, "--timeout");
  StopSignal stop;
  const std::string address = (host.find(':') != std::string::npos && host.front() != '[' ? "[" + host + "]" : host) + ":" + std::to_string(port);
  try {
    OwnedFd connection = dial_by_node(q.dir, address, timeout_ms, stop.fd());
    return copy_both_ways(STDIN_FILENO, STDOUT_FILENO, connection.get(), stop.fd(), address);
  } catch (const Stopped&) {
    return 130;
  }
}

// ---- whois, ip

int whois(const Query& q, const std::string& address) {
  json::value v = ask_node(q.dir, {{"command", "whois"}, {"address", address}}, kAnswerMs);
  json::object& o = v.as_object();
  if (q.json) {
    print_answer(o);
    return 0;
  }
  const json::object& machine = o.at("machine").as_object();
  const json::object& user = o.at("user").as_object();
  print_line("Machine:");
  print_line("  Name:          " + member(machine, "name"));
  print_line("  ID:            " + member(machine, "id"));
  print_line("  Addresses:     " + members(machine, "ips"));
  if (std::string routes = members(machine, "allowed_ips"); !routes.empty()) print_line("  AllowedIPs:    " + routes);
  if (std::string os = member(machine, "os"); !os.empty()) print_line("  OS:            " + os);
  if (std::string tags = members(machine, "tags"); !tags.empty()) {
    print_line("  Tags:          " + tags);
    return 0;
  }
  print_line("User:");
  print_line("  Name:          " + (member(user, "login").empty() ? "-" : member(user, "login")));
  if (std::string name = member(user, "name"); !name.empty() && name != member(user, "login")) print_line("  Display name:  " + name);
  print_line("  ID:            " + member(user, "id"));
  return 0;
}

int show_ip(const Query& q, std::string peer, bool v4, bool v6, bool one) {
  json::value v = ask_node(q.dir, {{"command", "status"}}, kAnswerMs);
  const json::object& o = v.as_object();
  const json::object* found = nullptr;
  const json::object& self = o.at("self").as_object();
  std::transform(peer.begin(), peer.end(), peer.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  if (peer.ends_with('.')) peer.pop_back();
  auto is_it = [&](const json::object& e) {
    if (member(e, "name") == peer || member(e, "fqdn") == peer) return true;
    for (const json::value& ip : e.at("ips").as_array())
      if (ip.as_string() == peer) return true;
    return false;
  };
  if (peer.empty() || is_it(self)) found = &self;
  for (const json::value& p : o.at("peers").as_array())
    if (!found && is_it(p.as_object())) found = &p.as_object();
  if (!found) throw CommandError("no device named '" + peer + "' in this tailnet (porthole node status lists them)");
  json::array out;
  for (const json::value& ip : found->at("ips").as_array()) {
    const bool is_v6 = ip.as_string().find(':') != json::string::npos;
    if ((v4 && is_v6) || (v6 && !is_v6) || (one && !out.empty())) continue;
    out.push_back(ip);
  }
  std::string who = member(*found, "name");
  if (out.empty() && found->at("ips").as_array().empty())
    throw CommandError(who + " has no tailnet address yet (state: " + member(o, "state") + ")");
  if (out.empty()) throw CommandError(who + " has no " + (v4 ? "IPv4" : "IPv6") + " address");
  if (q.json) {
    print_answer({{"name", who}, {"ips", std::move(out)}});
    return 0;
  }
  for (const json::value& ip : out) print_line(std::string(ip.as_string()));
  return 0;
}

// ---- netcheck

int netcheck(const Query& q) {
  json::value v = ask_node(q.dir, {{"command", "netcheck"}}, kNetcheckMs);
  json::object& e = v.as_object();
  if (q.json) {
    print_answer(e);
    return 0;
  }
  auto family = [&](std::string_view name, std::string_view address) {
    std::string at = member(e, address);
    return yes_no(is_true(e, name)) + (at.empty() ? "" : ", " + at);
  };
  print_line("Report:");
  print_line("  UDP:                    " + yes_no(is_true(e, "udp")) + (is_true(e, "udp") ? "" : " (no STUN server answers: blocked here, or no relay offers STUN)"));
  print_line("  IPv4:                   " + family("ipv4", "public_v4"));
  print_line("  IPv6:                   " + family("ipv6", "public_v6"));
  std::string varies = member(e, "mapping_varies");
  print_line(std::string("  MappingVariesByDestIP:  ") + (varies == "true" ? "yes (a hard NAT: direct paths are unlikely)" : varies == "false" ? "no" : "unknown (takes answers of two relays)"));
  print_line("  Endpoints:              " + (members(e, "endpoints").empty() ? "none" : members(e, "endpoints")));
  std::vector<const json::object*> relays;
  for (const json::value& r : e.at("relays").as_array()) relays.push_back(&r.as_object());
  std::stable_sort(relays.begin(), relays.end(), [](const json::object* a, const json::object* b) {
    return a->at("latency_ms").to_number<double>() < b->at("latency_ms").to_number<double>();
  });
  std::string home = member(e, "home_relay_name");
  print_line("  Nearest relay:          " + (home.empty() ? "none" : home) + (home.empty() || is_true(e, "relay_connected") ? "" : " (not connected)"));
  if (relays.empty()) {
    print_line("  Relay latency:          no answer from " + (member(e, "relays_known") == "0" ? "any: the network map has no relay" : "any of " + member(e, "relays_known")));
    return 0;
  }
  print_line("  Relay latency:");
  std::size_t width = 0;
  for (const json::object* r : relays) width = std::max(width, member(*r, "code").size());
  for (const json::object* r : relays) {
    std::string code = member(*r, "code"), name = member(*r, "name");
    print_line("    - " + code + ":" + std::string(width - code.size() + 1, ' ') + ms_text(*r, "latency_ms") + (name.empty() || name == code ? "" : " (" + name + ")"));
  }
  return 0;
}

}  // namespace

void add_node_queries(CLI::App& node, std::function<int()>& run) {
  auto q = std::make_shared<Query>();
  auto common = [q](CLI::App* c, const char* json_help = "One JSON object a line") {
    c->add_option("--statedir", q->dir, "State directory of the running node")->required();
    c->add_flag("--json", q->json, json_help);
  };

  struct StatusOptions {
    bool peers = true, active = false;
  };
  CLI::App* status = node.add_subcommand("status", "State, addresses, peers and their paths");
  auto s = std::make_shared<StatusOptions>();
  common(status);
  status->add_flag("--peers", s->peers, "With the peers (--peers=false: this node only)");
  status->add_flag("--active", s->active, "Only peers with traffic in the last 45 s");
  status->footer("A line: addresses, name, owner, then online or offline, the path, bytes, last handshake and, when the traffic\n"
                 "goes through a relay, why it is not direct.\n"
                 "Examples:\n"
                 "  porthole node status --statedir n1\n"
                 "  porthole node status --statedir n1 --active\n"
                 "  porthole node status --statedir n1 --peers=false --json");
  status->callback([q, s, &run] { run = [q, s] { return show_status(*q, s->peers, s->active); }; });

  CLI::App* p = node.add_subcommand("ping", "Asks a peer for an answer and shows the way it took");
  auto o = std::make_shared<PingOptions>();
  common(p, "One JSON object a line: each pong, or what went wrong");
  p->add_option("name", o->peer, "Name or tailnet address of the peer")->required();
  CLI::Option* count = p->add_option("-c,--count", o->count, "Pings at most; 0: no end (default 10; with --tsmp and --icmp 1)")->check(CLI::Range(0, 1'000'000));
  p->add_flag("--until-direct", o->until_direct, "Stop at the first answer on a direct path (--until-direct=false: go on)");
  p->add_option("--timeout", o->timeout, "For each answer (default 5s; a path is given 5s at most)");
  p->add_flag("--tsmp", o->tsmp, "Through the WireGuard tunnel, to the peer's node");
  p->add_flag("--icmp", o->icmp, "An ICMP echo through the tunnel, to the peer's IP stack");
  p->footer("The first pongs usually come through a relay while the two nodes look for a direct path. Exit status 0: a direct\n"
            "path was found (with --until-direct=false, --tsmp or --icmp: there was an answer).\n"
            "Examples:\n"
            "  porthole node ping --statedir n1 living-room\n"
            "  porthole node ping --statedir n1 living-room --until-direct=false -c 0\n"
            "  porthole node ping --statedir n1 100.64.0.2 --tsmp --timeout 2s");
  p->callback([q, o, count, &run] {
    o->count_given = count->count() > 0;
    run = [q, o] { return ping(*q, *o); };
  });

  struct NcOptions {
    std::string host, timeout = "30s";
    int port = 0;
  };
  CLI::App* n = node.add_subcommand("nc", "Connects standard input and output to a TCP port of a tailnet host");
  auto c = std::make_shared<NcOptions>();
  n->add_option("--statedir", q->dir, "State directory of the running node")->required();
  n->add_option("host", c->host, "Name or tailnet address")->required();
  n->add_option("port", c->port, "TCP port")->required()->check(CLI::Range(1, 65535));
  n->add_option("--timeout", c->timeout, "For the connection to come about (default 30s)");
  n->footer("Each direction ends by itself, so a request that ends with end-of-file still gets its answer. Exit status 0: both\n"
            "directions ended in order; 1: no connection, or it broke.\n"
            "Examples:\n"
            "  porthole node nc --statedir n1 living-room 7\n"
            "  ssh -o ProxyCommand='porthole node nc --statedir n1 %h %p' me@living-room");
  n->callback([q, c, &run] { run = [q, c] { return nc(*q, c->host, c->port, c->timeout); }; });

  CLI::App* w = node.add_subcommand("whois", "Shows the machine and the user of a tailnet address");
  auto address = std::make_shared<std::string>();
  common(w);
  w->add_option("address", *address, "IP or IP:PORT. 127.0.0.1:PORT: who is behind a connection that --expose forwards")->required();
  w->footer("Examples:\n"
            "  porthole node whois --statedir n1 100.64.0.2\n"
            "  porthole node whois --statedir n1 127.0.0.1:51820 --json");
  w->callback([q, address, &run] { run = [q, address] { return whois(*q, *address); }; });

  struct IpOptions {
    std::string peer;
    bool v4 = false, v6 = false, one = false;
  };
  CLI::App* i = node.add_subcommand("ip", "Shows tailnet addresses, of this node or of a peer");
  auto ip = std::make_shared<IpOptions>();
  common(i);
  i->add_option("peer", ip->peer, "Name or address of a peer (default: this node)");
  CLI::Option* v4 = i->add_flag("-4", ip->v4, "Only IPv4");
  i->add_flag("-6", ip->v6, "Only IPv6")->excludes(v4);
  i->add_flag("-1", ip->one, "Only one address");
  i->footer("Examples:\n"
            "  porthole node ip --statedir n1 -4\n"
            "  porthole node ip --statedir n1 living-room");
  i->callback([q, ip, &run] { run = [q, ip] { return show_ip(*q, ip->peer, ip->v4, ip->v6, ip->one); }; });

  CLI::App* check = node.add_subcommand("netcheck", "What this network allows: UDP, NAT, relays");
  common(check);
  check->footer("Example:\n  porthole node netcheck --statedir n1");
  check->callback([q, &run] { run = [q] { return netcheck(*q); }; });

  CLI::App* logout = node.add_subcommand("logout", "Logs the running node out; it then needs a key or a login again");
  common(logout);
  logout->footer("Example:\n  porthole node logout --statedir n1");
  logout->callback([q, &run] {
    run = [q] {
      ask_node(q->dir, {{"command", "logout"}}, kNetcheckMs);
      if (q->json) print_answer({{"event", "logged_out"}});
      else print_line("logged out");
      return 0;
    };
  });
}

}  // namespace porthole::app
