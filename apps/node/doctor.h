// `porthole node doctor`: why a node here cannot reach its coordination server. Needs no running node and logs in nowhere.
#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace porthole::app {
void add_node_doctor(CLI::App& node, std::function<int()>& run);
}  // namespace porthole::app
