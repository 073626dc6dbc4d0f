// What `porthole node` asks a running node: status, ping, nc, whois, ip, netcheck, logout.
#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace porthole::app {
void add_node_queries(CLI::App& node, std::function<int()>& run);
}  // namespace porthole::app
