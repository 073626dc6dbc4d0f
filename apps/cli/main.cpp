#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <optional>

#include "cli/command.h"
#include "cli/completion.h"
#include "support/support.h"

namespace {

int fail(const std::string& message, int status) {
  std::string line = message;
  for (char& c : line)
    if (c == '\n') c = ' ';
  porthole::app::print_log("porthole: " + line);
  return status;
}

// What the arguments ask for, in `run`; or, where there is nothing to run, the exit status. The grammar of all verbs is gone
// when this returns: a node that runs for months does not carry it.
std::optional<int> understand(int argc, char** argv, porthole::app::Run& run) {
  CLI::App app{
      "Porthole: remote access as a property of the app.\n"
      "  porthole remote ...   coordination service: accounts, keys, devices, relay\n"
      "  porthole serve ...    media server of a household\n"
      "  porthole client ...   its client\n"
      "  porthole node ...     a tailnet node for any purpose",
      "porthole"};
  app.set_version_flag("--version", PORTHOLE_VERSION);
  app.require_subcommand(1);
#ifdef PORTHOLE_HAS_NODE
  porthole::app::add_node_commands(app, run);
#endif
#ifdef PORTHOLE_HAS_REMOTE
  porthole::app::add_remote_commands(app, run);
#endif
#ifdef PORTHOLE_HAS_SERVE
  porthole::app::add_serve_commands(app, run);
#endif
#ifdef PORTHOLE_HAS_CLIENT
  porthole::app::add_client_commands(app, run);
#endif
  porthole::app::add_completion_command(app, run, PORTHOLE_VERSION);
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp& e) {
    return app.exit(e);
  } catch (const CLI::CallForAllHelp& e) {
    return app.exit(e);
  } catch (const CLI::CallForVersion& e) {
    return app.exit(e);
  } catch (const CLI::RequiredError& e) {
    // A verb that does not exist is what was typed, not what is missing.
    for (const CLI::App* at = &app; at; at = at->get_subcommands().empty() ? nullptr : at->get_subcommands().front())
      if (auto left = at->remaining(); at->get_subcommands().empty() && !left.empty() && at->get_require_subcommand_min() > 0)
        return fail("there is no '" + left.front() + "' here (see --help)", 2);
    return fail(std::string(e.what()) + " (see --help)", 2);
  } catch (const CLI::ParseError& e) {
    return fail(std::string(e.what()) + " (see --help)", 2);
  }
  // Most often a variable of a script that was not set; no option means anything without a value.
  for (const CLI::App* at = &app; at; at = at->get_subcommands().empty() ? nullptr : at->get_subcommands().front())
    for (const CLI::Option* option : at->get_options())
      if (!option->get_lnames().empty() && option->get_type_size() != 0)
        for (const std::string& value : option->results())
          if (value.empty()) return fail("--" + option->get_lnames().front() + " has an empty value (see --help)", 2);
  if (!run) return fail("nothing to do (see --help)", 2);
  return std::nullopt;
}

int perform(int argc, char** argv) {
  porthole::app::Run run;
  if (std::optional<int> status = understand(argc, argv, run)) return *status;
  try {
    return run();
  } catch (const porthole::app::CommandError& e) {
    return fail(e.what(), e.status());
  } catch (const std::exception& e) {
    return fail(e.what(), 1);
  }
}

}  // namespace

int main(int argc, char** argv) {
  int status = perform(argc, argv);
  try {
    porthole::app::flush_output();
  } catch (const porthole::app::CommandError& e) {
    if (status == 0) {
      status = e.status();
      std::fprintf(stderr, "porthole: %s\n", e.what());  // print_text() is over
    }
  }
  return status;
}
