// The verbs of `porthole remote`.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <cstdio>
#include <memory>

#include "cli/command.h"
#include "coordinator/directory.h"
#include "remote/clock.h"
#include "remote/control_socket.h"
#include "remote/service.h"
#include "remote/service_json.h"
#include "remote/sqlite_store.h"
#include "remote/state_dir.h"
#include "support/support.h"

namespace porthole::app {

namespace json = boost::json;

namespace {

struct Common {
  std::string state_dir;
  bool json = false;
};

// "90s", "15m", "24h", "30d"; a bare number is seconds.
std::int64_t parse_seconds(const std::string& text) {
  std::int64_t number = 0;
  auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), number);
  std::string_view unit(end, static_cast<std::size_t>(text.data() + text.size() - end));
  std::int64_t factor = unit.empty() || unit == "s" ? 1 : unit == "m" ? 60 : unit == "h" ? 3600 : unit == "d" ? 86400 : 0;
  if (problem != std::errc() || factor == 0 || number <= 0 || number > 1'000'000'000 / factor)
    throw CommandError("--expires " + text + ": give a number with s, m, h or d, such as 24h", 2);
  return number * factor;
}

// On the store, with the directory's lock held.
json::object execute_directly(remote::StateDir& state, const json::object& command) {
  state.check_store();
  auto store = remote::SqliteStore::open(state.store_path());
  if (!store) throw CommandError(store.error().message);
  remote::SystemRng rng;
  coordinator::DirectoryConfig config;
  config.server_secret = state.server_secret((*store)->has_accounts());
  auto directory = coordinator::Directory::open(std::move(config), **store, rng, Log::none());
  if (!directory) throw CommandError(directory.error().message);
  return remote::run_command(**directory, remote::read_clock(), command);
}

// Through the running service if there is one, else on the store. While a service starts or stops, or another command
// holds the directory, there is neither for a moment.
json::object execute(const Common& common, const json::object& command) {
  constexpr int kTries = 50;
  constexpr useconds_t kPause = 100'000;
  // Only who makes an account may come before the service's first start: elsewhere it would be a mistyped directory.
  if (command.at("command") != "account_create" && ::access((common.state_dir + "/coordinator.db").c_str(), F_OK) != 0)
    throw CommandError("no coordination service has run in " + common.state_dir + ": there is no coordinator.db");
  json::object answer;
  for (int i = 1; answer.empty(); ++i) {
    bool in_use = false;
    remote::StateDir state(common.state_dir, &in_use);
    if (!in_use) {
      if (state.is_headscale())
        throw CommandError("the accounts in " + common.state_dir + " are kept together with Headscale: commands need the running "
                           "service (porthole remote run --engine headscale-api)");
      answer = execute_directly(state, command);
    } else if (auto given = remote::ask_control_socket(state.socket_path(), command)) {
      answer = std::move(*given);
    } else if (i == kTries) {
      throw CommandError("state directory " + common.state_dir + " is in use, but no service answers on " + state.socket_path());
    } else {
      ::usleep(kPause);
    }
  }
  const json::value* ok = answer.if_contains("ok");
  if (!ok || !ok->is_bool() || !ok->as_bool()) {
    const json::value* error = answer.if_contains("error");
    const json::value* code = answer.if_contains("code");
    bool usage = code && code->is_string() && code->as_string() == to_string(ErrorCode::kInvalid);
    throw CommandError(error && error->is_string() ? std::string(error->as_string()) : "the service failed", usage ? 2 : 1);
  }
  answer.erase("ok");
  return answer;
}

std::string text_at(const json::object& o, std::string_view name) {
  const json::value* v = o.if_contains(name);
  return v && v->is_string() ? std::string(v->as_string()) : std::string();
}
bool flag_at(const json::object& o, std::string_view name) {
  const json::value* v = o.if_contains(name);
  return v && v->is_bool() && v->as_bool();
}

void print_device(const json::object& d) {
  std::string addresses;
  if (const json::value* list = d.if_contains("addresses"); list && list->is_array())
    for (const auto& a : list->as_array()) addresses += (addresses.empty() ? "" : " ") + std::string(a.as_string());
  std::string node = text_at(d, "node");
  std::printf("%-6s %-16s %-20s %-24s %-9s %-8s %s\n", node.empty() ? "-" : node.c_str(), text_at(d, "account").c_str(),
              text_at(d, "device").empty() ? "-" : text_at(d, "device").c_str(),
              text_at(d, "name").empty() ? "-" : text_at(d, "name").c_str(), text_at(d, "state").c_str(),
              flag_at(d, "online") ? "online" : "offline", addresses.c_str());
}

void add_common(CLI::App* app, const std::shared_ptr<Common>& common) {
  app->add_option("--statedir", common->state_dir, "Directory of the service's keys and store")->required();
  app->add_flag("--json", common->json, "Print JSON lines");
}

// What was looked at before devices are let in, or why they are not.
void show_proof(const Result<remote::IsolationProof>& proof, bool as_json) {
  if (as_json) {
    json::object event{{"event", "isolation"}, {"proved", proof.ok()}};
    if (proof) {
      event["headscale"] = proof->version;
      event["policy_was_set"] = proof->policy_was_set;
      event["checks"] = json::array(proof->checks.begin(), proof->checks.end());
    } else {
      event["problem"] = proof.error().message;
    }
    print_event(event);
    return;
  }
  if (proof) {
    print_text("accounts are kept apart by Headscale:");
    for (const auto& check : proof->checks) print_text("  " + check);
  } else {
    print_text("no device is let in: " + proof.error().message);
  }
}

int run_service(remote::ServiceOptions options, bool as_json) {
  StopSignal stop;
  options.stopped = [&stop] { return stop.stopped(); };
  options.on_proof = [as_json](const Result<remote::IsolationProof>& proof) { show_proof(proof, as_json); };
  std::optional<remote::RemoteService> started;
  try {
    started.emplace(options);
  } catch (const CommandError&) {
    if (!stop.stopped()) throw;
    if (as_json) print_event({{"event", "stopped"}});
    return 0;
  }
  remote::RemoteService& service = *started;
  if (as_json) {
    print_event({{"event", "ready"},
                 {"engine", options.headscale ? "headscale-api" : "embedded"},
                 {"url", service.url()},
                 {"coordination_url", service.coordination_url()},
                 {"admin_token_file", service.admin_token_file()},
                 {"stun_port", service.stun_port()},
                 {"listen", service.listen().to_string()}});
  } else if (options.headscale) {
    print_text("listening on " + service.listen().to_string() + "; accounts and keys at " + service.url() +
               "\ndevices log in to Headscale at " + service.coordination_url() + ", whose relay and STUN they use" +
               "\nthe admin token is in " + service.admin_token_file());
  } else {
    print_text("listening on " + service.listen().to_string() + ", STUN on UDP port " + std::to_string(service.stun_port()) +
               "\nclients use " + service.url() + "\nthe admin token is in " + service.admin_token_file());
  }
  service.run(stop.fd());
  if (as_json) print_event({{"event", "stopped"}});
  else print_text("stopped");
  return 0;
}

void add_run(CLI::App& parent, Run& run) {
  auto options = std::make_shared<remote::ServiceOptions>();
  auto listen = std::make_shared<std::string>("0.0.0.0:8443");
  auto as_json = std::make_shared<bool>(false);
  CLI::App* verb = parent.add_subcommand("run", "Run the coordination service until it is stopped");
  verb->add_option("--statedir", options->state_dir, "Directory of its keys and store")->required();
  verb->add_option("--listen", *listen, "ADDRESS:PORT; port 0 takes any free one")->capture_default_str();
  verb->add_option("--tls-cert", options->tls_certificate, "Certificate chain, PEM");
  verb->add_option("--tls-key", options->tls_key, "Its key, PEM");
  verb->add_option("--public-url", options->public_url, "How clients reach the service, if not by the listen address");
  verb->add_option("--stun-port", options->stun_port, "UDP port of STUN; 0 takes any free one")->capture_default_str();
  verb->add_option("--base-domain", options->base_domain, "Domain of all device names")->capture_default_str();
  auto engine = std::make_shared<std::string>("embedded");
  auto headscale = std::make_shared<remote::HeadscaleOptions>();
  auto api_key = std::make_shared<std::string>();
  verb->add_option("--engine", *engine, "What coordinates: embedded, or headscale-api (an existing Headscale)")
      ->check(CLI::IsMember({"embedded", "headscale-api"}))->capture_default_str();
  verb->add_option("--headscale-url", headscale->url, "Headscale's address, for its API");
  verb->add_option("--headscale-public-url", headscale->public_url, "Where devices log in to it, if elsewhere");
  verb->add_option("--headscale-api-key", *api_key, "file:PATH (mode 0600); from `headscale apikeys create`");
  verb->add_option("--ca-file", headscale->ca_file, "PEM certificates trusted for Headscale besides the system's");
  verb->add_flag("--json", *as_json, "Print JSON lines");
  verb->footer(
      "Examples:\n"
      "  porthole remote run --statedir /var/lib/porthole-remote --listen 0.0.0.0:443 \\\n"
      "      --tls-cert fullchain.pem --tls-key privkey.pem --public-url https://remote.example.com\n"
      "  porthole remote run --statedir ./state --listen 127.0.0.1:0 --stun-port 0 --json\n"
      "  porthole remote run --statedir ./state --listen 0.0.0.0:8443 --tls-cert cert.pem --tls-key key.pem \\\n"
      "      --engine headscale-api --headscale-url https://hs.example.com --headscale-api-key file:api.key");
  verb->callback([=, &run] {
    run = [=] {
      bool given = !headscale->url.empty() || !headscale->public_url.empty() || !api_key->empty() || !headscale->ca_file.empty();
      if (*engine == "headscale-api") {
        if (headscale->url.empty() || api_key->empty())
          throw CommandError("--engine headscale-api needs --headscale-url URL and --headscale-api-key file:PATH", 2);
        constexpr std::string_view kFile = "file:";
        if (!api_key->starts_with(kFile) || api_key->size() == kFile.size())
          throw CommandError("--headscale-api-key: write file:PATH; a key on the command line could be read by others", 2);
        headscale->api_key_file = api_key->substr(kFile.size());
        options->headscale = *headscale;
      } else if (given) {
        throw CommandError("--headscale-... and --ca-file belong to --engine headscale-api", 2);
      }
      auto endpoint = Endpoint::parse(*listen);
      if (!endpoint) throw CommandError("--listen " + *listen + " is not ADDRESS:PORT", 2);
      options->listen = *endpoint;
      return run_service(*options, *as_json);
    };
  });
}

void add_account(CLI::App& parent, Run& run) {
  CLI::App* account = parent.add_subcommand("account", "Accounts: one per household, isolated from each other");
  account->require_subcommand(1);
  for (bool create : {true, false}) {
    auto common = std::make_shared<Common>();
    auto name = std::make_shared<std::string>();
    CLI::App* verb = create ? account->add_subcommand("create", "Create an account and print its token (shown once)")
                            : account->add_subcommand("token", "Replace an account's token and print the new one");
    verb->add_option("NAME", *name, "Lower-case letters, digits and '-'")->required();
    add_common(verb, common);
    verb->footer(std::string("Example:\n  porthole remote account ") + (create ? "create" : "token") + " smith --statedir DIR --json");
    verb->callback([=, &run] {
      run = [=] {
        auto answer = execute(*common, {{"command", create ? "account_create" : "account_token"}, {"account", *name}});
        if (common->json) print_answer(answer);
        else std::printf("account %s\ntoken   %s\n", text_at(answer, "account").c_str(), text_at(answer, "token").c_str());
        return 0;
      };
    });
  }
  auto common = std::make_shared<Common>();
  CLI::App* list = account->add_subcommand("list", "List accounts");
  add_common(list, common);
  list->footer("Example:\n  porthole remote account list --statedir DIR --json");
  list->callback([=, &run] {
    run = [=] {
      auto answer = execute(*common, {{"command", "account_list"}});
      if (common->json) {
        print_answer(answer);
        return 0;
      }
      std::printf("%-24s %8s %8s\n", "account", "devices", "online");
      for (const auto& v : answer.at("accounts").as_array()) {
        const auto& a = v.as_object();
        std::printf("%-24s %8lld %8lld\n", text_at(a, "account").c_str(),
                    static_cast<long long>(a.at("devices").to_number<std::int64_t>()),
                    static_cast<long long>(a.at("online").to_number<std::int64_t>()));
      }
      return 0;
    };
  });
}

void add_key(CLI::App& parent, Run& run) {
  CLI::App* key = parent.add_subcommand("key", "Pre-auth keys");
  key->require_subcommand(1);
  auto common = std::make_shared<Common>();
  auto account = std::make_shared<std::string>();
  auto device = std::make_shared<std::string>();
  auto expires = std::make_shared<std::string>();
  auto reusable = std::make_shared<bool>(false);
  auto ephemeral = std::make_shared<bool>(false);
  CLI::App* verb = key->add_subcommand("create", "Create a key that lets a device join an account");
  verb->add_option("--account", *account, "The account")->required();
  verb->add_option("--device", *device, "Bind it to this device id: the same device gets the same key, good for 30 days; with --expires or --ephemeral a new one");
  verb->add_flag("--reusable", *reusable, "Any number of devices may use it");
  verb->add_flag("--ephemeral", *ephemeral, "Devices that join with it are forgotten when they go away");
  verb->add_option("--expires", *expires, "How long it is good for: 90s, 15m, 24h, 30d (24h if neither this nor --device is given)");
  add_common(verb, common);
  verb->footer("Examples:\n  porthole remote key create --account smith --statedir DIR\n"
               "  porthole remote key create --account smith --device kitchen-tv --expires 1h --statedir DIR --json");
  verb->callback([=, &run] {
    run = [=] {
      json::object command{{"command", "key_create"}, {"account", *account}, {"device", *device},
                           {"reusable", *reusable}, {"ephemeral", *ephemeral}};
      if (!expires->empty()) command["lifetime_seconds"] = parse_seconds(*expires);
      auto answer = execute(*common, command);
      if (common->json) print_answer(answer);
      else std::printf("%s\n", text_at(answer, "key").c_str());
      return 0;
    };
  });
}

void add_devices(CLI::App& parent, Run& run) {
  CLI::App* devices = parent.add_subcommand("devices", "Devices of the accounts");
  devices->require_subcommand(1);
  {
    auto common = std::make_shared<Common>();
    auto account = std::make_shared<std::string>();
    CLI::App* verb = devices->add_subcommand("list", "List devices");
    verb->add_option("--account", *account, "Only this account's");
    add_common(verb, common);
    verb->footer("Examples:\n  porthole remote devices list --statedir DIR\n  porthole remote devices list --account smith --statedir DIR --json");
    verb->callback([=, &run] {
      run = [=] {
        auto answer = execute(*common, {{"command", "devices_list"}, {"account", *account}});
        if (common->json) {
          print_answer(answer);
          return 0;
        }
        std::printf("%-6s %-16s %-20s %-24s %-9s %-8s %s\n", "node", "account", "device", "name", "state", "online", "addresses");
        for (const auto& d : answer.at("devices").as_array()) print_device(d.as_object());
        return 0;
      };
    });
  }
  auto common = std::make_shared<Common>();
  auto account = std::make_shared<std::string>();
  auto id = std::make_shared<std::string>();
  CLI::App* verb = devices->add_subcommand("revoke", "Remove a device: its peers drop it at once, its key dies");
  verb->add_option("ID", *id, "Device id; or the node's number, when no device has this id")->required();
  verb->add_option("--account", *account, "Needed when several accounts have a device of this id");
  add_common(verb, common);
  verb->footer("Example:\n  porthole remote devices revoke kitchen-tv --account smith --statedir DIR");
  verb->callback([=, &run] {
    run = [=] {
      auto answer = execute(*common, {{"command", "revoke"}, {"account", *account}, {"id", *id}});
      if (common->json) print_answer({{"revoked", *id}});
      else std::printf("revoked %s\n", id->c_str());
      return 0;
    };
  });
}

void add_register(CLI::App& parent, Run& run) {
  CLI::App* reg = parent.add_subcommand("register", "Interactive logins");
  reg->require_subcommand(1);
  auto common = std::make_shared<Common>();
  auto account = std::make_shared<std::string>();
  auto id = std::make_shared<std::string>();
  CLI::App* verb = reg->add_subcommand("approve", "Let a device that waits for approval into an account");
  verb->add_option("ID", *id, "What the login page shows, or its URL")->required();
  verb->add_option("--account", *account, "The account")->required();
  add_common(verb, common);
  verb->footer("Example:\n  porthole remote register approve https://remote.example.com/register/... --account smith --statedir DIR");
  verb->callback([=, &run] {
    run = [=] {
      std::string_view last = *id;
      if (std::size_t slash = last.rfind('/'); slash != std::string_view::npos) last.remove_prefix(slash + 1);
      auto answer = execute(*common, {{"command", "approve"}, {"account", *account}, {"id", last}});
      if (common->json) print_answer(answer);
      else print_device(answer.at("device").as_object());
      return 0;
    };
  });
}

}  // namespace

void add_remote_commands(CLI::App& app, Run& run) {
  CLI::App* remote = app.add_subcommand("remote", "Coordination service: accounts, keys, devices, relay");
  remote->require_subcommand(1);
  remote->footer(
      "Examples:\n"
      "  porthole remote run --statedir DIR --listen 0.0.0.0:443 --tls-cert cert.pem --tls-key key.pem\n"
      "  porthole remote account create smith --statedir DIR\n"
      "  porthole remote key create --account smith --device kitchen-tv --statedir DIR\n"
      "  porthole remote devices list --statedir DIR\n"
      "  porthole remote devices revoke kitchen-tv --statedir DIR\n"
      "All but `run` work while the service runs and while it does not; with --engine headscale-api only while it runs.");
  add_run(*remote, run);
  add_account(*remote, run);
  add_key(*remote, run);
  add_devices(*remote, run);
  add_register(*remote, run);
}

}  // namespace porthole::app
