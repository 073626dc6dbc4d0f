// How the verbs of the `porthole` program plug together. Each add_* function hangs its verbs below `app`; the leaf that
// was chosen stores what to do in `run`, and main() calls it after parsing, when `app` is gone. Exit codes: 0 done,
// 1 failed (one plain line on stderr), 2 wrong usage.
#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace porthole::app {

using Run = std::function<int()>;

void add_node_commands(CLI::App& app, Run& run);
void add_remote_commands(CLI::App& app, Run& run);
void add_serve_commands(CLI::App& app, Run& run);
void add_client_commands(CLI::App& app, Run& run);

}  // namespace porthole::app
