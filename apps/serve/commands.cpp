#include <sys/resource.h>
#include <sys/stat.h>

#include <CLI/CLI.hpp>
#include <boost/json.hpp>
#include <cstdio>
#include <ctime>

#include "cli/command.h"
#include "serve/bridge.h"
#include "serve/control_socket.h"
#include "serve/enrolment.h"
#include "serve/library.h"
#include "serve/limits.h"
#include "serve/password.h"
#include "serve/server.h"
#include "session/names.h"
#include "support/support.h"

namespace porthole::app {
namespace {

using boost::json::object;

struct ServeOptions {
  std::string state_dir, listen = "[::]:8443", remote, account_token, name, ca_file, password_file;
  std::vector<std::string> folders;
  bool json = false, relay_only = false;
};

// The server's identity for clients and for the enrolment service: made once.
struct Identity {
  std::string server_id, name;
};
Identity load_identity(const std::string& path, const std::string& wanted_name) {
  Identity out;
  struct stat s {};
  if (::stat(path.c_str(), &s) == 0) {
    boost::system::error_code error;
    boost::json::value value = boost::json::parse(read_file(path), error);
    const object* stored = error ? nullptr : value.if_object();
    const boost::json::value* version = stored ? stored->if_contains("version") : nullptr;
    const boost::json::value* id = stored ? stored->if_contains("server_id") : nullptr;
    const boost::json::value* name = stored ? stored->if_contains("name") : nullptr;
    if (version && version->is_int64() && version->as_int64() > 1)
      throw CommandError(path + " was written by a newer version of porthole");
    if (!id || !id->is_string() || !name || !name->is_string())
      throw CommandError(path + " is damaged; restore it (a new one would make this a different server for every client)");
    out = {std::string(id->as_string()), std::string(name->as_string())};
    if (wanted_name.empty() || wanted_name == out.name) return out;
  } else {
    out.server_id = random_uuid();
    out.name = session::machine_name();
  }
  if (!wanted_name.empty()) out.name = session::clean_text(wanted_name, 128);
  object stored{{"version", 1}, {"server_id", out.server_id}, {"name", out.name}};
  write_file_atomic(path, boost::json::serialize(stored) + "\n");
  return out;
}

void log_line(const std::string& text) {
  std::time_t now = std::time(nullptr);
  std::tm parts{};
  char stamp[32] = "";
  if (::gmtime_r(&now, &parts)) std::strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%SZ", &parts);
  print_log(std::string(stamp) + " " + text);
}

int run_server(const ServeOptions& o) {
  if (o.state_dir.empty()) throw CommandError("--statedir is required", 2);
  if (o.folders.empty()) throw CommandError("name at least one --library FOLDER", 2);
  if (o.remote.empty() != o.account_token.empty())
    throw CommandError("--remote and --account-token belong together", 2);
  as_typed([&] { serve::MediaServer::check_listen(o.listen); });
  if (!o.remote.empty()) as_typed([&] { serve::EnrolmentClient::check_url(o.remote); });
  ensure_state_dir(o.state_dir);
  StopSignal stop;
  // Each connection costs a descriptor; the soft limit is often lower than need be.
  rlimit files{};
  if (::getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &files);
  }
  std::string password_hash = serve::load_password_hash(o.state_dir + "/password.json");
  Identity identity = load_identity(o.state_dir + "/server.json", o.name);
  std::shared_ptr<const serve::EnrolmentClient> enrolment;
  if (!o.remote.empty())
    enrolment = std::make_shared<serve::EnrolmentClient>(o.remote, secret_argument(o.account_token), o.ca_file);

  auto event = [json = o.json](object e) {
    if (json) print_event(e);
  };
  serve::Library library(o.folders, o.state_dir + "/posters", log_line);
  // Set before the server that asks it and reset after: see the order of destruction below.
  std::unique_ptr<serve::TailnetBridge> bridge;
  std::mutex bridge_mutex;
  auto with_bridge = [&](auto f) {
    std::lock_guard lock(bridge_mutex);
    return f(bridge.get());
  };

  std::unique_ptr<serve::MediaServer> server;
  serve::ControlSocket control(o.state_dir, [&](const object& request) {
    object answer;
    const boost::json::value* verb = request.if_contains("do");
    std::string what = verb && verb->is_string() ? std::string(verb->as_string()) : "";
    if (!with_bridge([&](serve::TailnetBridge*) { return server != nullptr; })) {
      answer["error"] = "the server is starting or stopping";
    } else if (what == "lan on" || what == "lan off") {
      std::string error;
      if (!server->set_lan(what == "lan on", error)) answer["error"] = "cannot listen again: " + error;
      log_line("the LAN listener is " + std::string(server->lan() ? "on" : "off"));
      event({{"event", "lan"}, {"state", server->lan() ? "on" : "off"}});
      answer["lan"] = server->lan() ? "on" : "off";
    } else if (what == "rescan") {
      library.rescan_soon();
      answer["rescan"] = true;
    } else if (what == "status") {
      answer = server->status();
      if (answer.empty()) return object{{"error", "the server is too busy to answer, or is stopping; try again"}};
      if (std::vector<std::string> problems = library.problems(); !problems.empty())
        answer["library_problems"] = boost::json::array(problems.begin(), problems.end());
      answer["name"] = identity.name;
      answer["fingerprint"] = server->fingerprint();
      with_bridge([&](serve::TailnetBridge* b) {
        if (b) answer["remote"] = b->status();
        return 0;
      });
    } else {
      answer["error"] = "unknown request";
    }
    return answer;
  });

  serve::ServerConfig config;
  config.name = identity.name;
  config.server_id = identity.server_id;
  config.listen = o.listen;
  config.tls_file = o.state_dir + "/tls.pem";
  config.password_hash = password_hash;
  serve::ServerHooks hooks;
  hooks.event = event;
  hooks.log = log_line;
  hooks.peer_of = [&](std::uint16_t port) {
    return with_bridge([&](serve::TailnetBridge* b) { return b ? b->peer_of(port) : std::nullopt; });
  };
  if (enrolment)
    hooks.remote_grant = [&](const std::string& id, bool new_key) {
      serve::TailnetBridge* b = with_bridge([](serve::TailnetBridge* p) { return p; });
      serve::RemoteGrant none;
      none.problem = "remote access is starting";
      return b ? b->grant(id, new_key) : none;
    };
  auto made = std::make_unique<serve::MediaServer>(config, library, hooks);
  with_bridge([&](serve::TailnetBridge*) {
    server = std::move(made);
    return 0;
  });
  library.start(serve::kRescanInterval, [&](serve::Library::Step step) {
    if (step == serve::Library::Step::kProblems) {
      std::vector<std::string> problems = library.problems();
      event({{"event", "library_problems"}, {"problems", boost::json::array(problems.begin(), problems.end())}});
      return;
    }
    const bool complete = step == serve::Library::Step::kComplete;
    const std::size_t items = library.catalog()->items.size();
    event({{"event", complete ? "library" : "library_scan"}, {"items", items}});
    log_line("library: " + std::to_string(items) + " items" + (complete ? "" : " so far"));
    server->library_changed();
  });
  std::string url = "wss://" + server->listen_address();
  event({{"event", "ready"}, {"listen", server->listen_address()}, {"url", url}, {"fingerprint", server->fingerprint()},
         {"name", identity.name}, {"server_id", identity.server_id}});
  log_line("\"" + identity.name + "\" serves on " + url + ", certificate " + server->fingerprint());

  if (enrolment) {
    serve::BridgeConfig b;
    b.state_dir = o.state_dir + "/tailnet";
    b.hostname = session::tailnet_hostname(identity.name, "porthole-server");
    b.device_id = identity.server_id;
    b.ca_file = o.ca_file;
    b.relay_only = o.relay_only;
    b.local_port = server->bridge_port();
    serve::BridgeHooks h;
    h.event = event;
    h.log = log_line;
    h.peers = [&](const std::set<std::string>& ips) { server->keep_peers(ips); };
    auto joining = std::make_unique<serve::TailnetBridge>(b, enrolment, h);
    std::lock_guard lock(bridge_mutex);
    bridge = std::move(joining);
  }

  stop.wait(-1);
  log_line("shutting down");
  with_bridge([](serve::TailnetBridge* b) {
    if (b) b->stop_asking();  // a login that waits for the service must not hold up the end
    return 0;
  });
  library.stop();
  server->stop();  // says goodbye, also through the tailnet
  std::unique_ptr<serve::TailnetBridge> ending;
  {
    std::lock_guard lock(bridge_mutex);
    ending = std::move(bridge);
  }
  ending.reset();
  event({{"event", "stopped"}});
  return 0;
}

int change_password(const ServeOptions& o) {
  ensure_state_dir(o.state_dir);
  std::string password;
  if (o.password_file.empty()) {
    password = prompt_secret("New password: ");
    if (password != prompt_secret("Again: ")) throw CommandError("the two passwords differ; nothing was changed");
  } else {
    password = secret_argument("file:" + o.password_file);
  }
  serve::set_password(o.state_dir + "/password.json", password);
  std::printf("The password is set. A running server takes it at its next start.\n");
  return 0;
}

int show_status(const ServeOptions& o) {
  object status = serve::ask_server(o.state_dir, {{"do", "status"}});
  if (o.json) {
    print_answer(status);
    return 0;
  }
  auto text = [](const boost::json::value& v) {
    return v.is_string() ? std::string(v.as_string()) : boost::json::serialize(v);
  };
  std::printf("%s, %s items, listening on %s (LAN %s)\ncertificate %s\n", text(status["name"]).c_str(),
              text(status["items"]).c_str(), text(status["listen"]).c_str(), text(status["lan"]).c_str(),
              text(status["fingerprint"]).c_str());
  if (const boost::json::value* problems = status.if_contains("library_problems"))
    for (const boost::json::value& problem : problems->as_array()) std::printf("library: %s\n", text(problem).c_str());
  if (status.contains("remote")) {
    object remote = status["remote"].as_object();
    std::printf("remote access: %s %s %s\n", text(remote["state"]).c_str(), text(remote["hostname"]).c_str(),
                text(remote["ip"]).c_str());
    if (remote.contains("problem")) std::printf("  %s\n", text(remote["problem"]).c_str());
  }
  for (const boost::json::value& v : status["sessions"].as_array()) {
    object s = v.as_object();
    std::printf("session %s: %s from %s over the %s, %s bytes sent\n", text(s["id"]).c_str(), text(s["device"]).c_str(),
                text(s["from"]).c_str(), text(s["via"]).c_str(), text(s["bytes"]).c_str());
  }
  return 0;
}

}  // namespace

void add_serve_commands(CLI::App& app, Run& run) {
  auto o = std::make_shared<ServeOptions>();
  CLI::App* serve = app.add_subcommand("serve", "The media server of a household: library, sessions, remote access");
  serve->require_subcommand(0, 1);
  serve->add_option("--statedir", o->state_dir, "Folder for certificate, password and tailnet state");
  serve->add_option("--library", o->folders, "Folder with media; may be given several times")->expected(1, -1);
  serve->add_option("--listen", o->listen, "ADDR:PORT for the LAN; port 0 takes any free one")->capture_default_str();
  serve->add_option("--remote", o->remote, "Address of the coordination service; without it, LAN only");
  serve->add_option("--account-token", o->account_token, "Token of the account there, file:PATH");
  serve->add_option("--name", o->name, "Name shown to clients; kept from then on");
  serve->add_flag("--relay-only", o->relay_only, "Never a direct path through the tailnet");
  serve->add_option("--ca-file", o->ca_file, "PEM certificates to trust for the coordination service, besides the system's");
  serve->add_flag("--json", o->json, "Events as JSON lines on stdout");
  serve->footer(
      "Examples:\n"
      "  porthole serve set-password --statedir DIR\n"
      "  porthole serve --statedir DIR --library ~/Videos --name \"Living room\"\n"
      "  porthole serve --statedir DIR --library ~/Videos --remote https://remote.example.com --account-token file:smith.token\n"
      "  porthole serve status --statedir DIR");
  serve->callback([serve, o, &run] {
    if (serve->get_subcommands().empty()) run = [o] { return run_server(*o); };
  });

  CLI::App* password = serve->add_subcommand("set-password", "Sets the password that clients log in with");
  password->add_option("--statedir", o->state_dir, "Folder of the server")->required();
  password->add_option("--password-file", o->password_file, "File with the password; without it, asked on the terminal");
  password->footer("Examples:\n  porthole serve set-password --statedir DIR\n  porthole serve set-password --statedir DIR --password-file secret.txt");
  password->callback([o, &run] { run = [o] { return change_password(*o); }; });

  CLI::App* status = serve->add_subcommand("status", "What the running server is doing");
  status->add_option("--statedir", o->state_dir, "Folder of the server")->required();
  status->add_flag("--json", o->json, "One JSON line");
  status->footer("Example:\n  porthole serve status --statedir DIR --json");
  status->callback([o, &run] { run = [o] { return show_status(*o); }; });

  CLI::App* rescan = serve->add_subcommand("rescan", "Looks for changes in the library now");
  rescan->add_option("--statedir", o->state_dir, "Folder of the server")->required();
  rescan->add_flag("--json", o->json, "One JSON line");
  rescan->footer("Example:\n  porthole serve rescan --statedir DIR");
  rescan->callback([o, &run] {
    run = [o] {
      serve::ask_server(o->state_dir, {{"do", "rescan"}});
      if (o->json) print_event({{"rescan", "started"}});
      return 0;
    };
  });

  CLI::App* lan = serve->add_subcommand("lan", "Closes or reopens the running server's LAN listener");
  lan->require_subcommand(1);
  for (const char* state : {"on", "off"}) {
    CLI::App* leaf = lan->add_subcommand(state, std::string("Turns the LAN listener ") + state);
    leaf->add_option("--statedir", o->state_dir, "Folder of the server")->required();
    leaf->add_flag("--json", o->json, "One JSON line");
    leaf->footer(std::string("Example:\n  porthole serve lan ") + state + " --statedir DIR");
    leaf->callback([o, &run, state] {
      run = [o, state] {
        serve::ask_server(o->state_dir, {{"do", std::string("lan ") + state}});
        if (o->json) print_event({{"lan", state}});
        else std::printf("The LAN listener is %s.\n", state);
        return 0;
      };
    });
  }
}

}  // namespace porthole::app
