// A machine's log lines, as notes in the world's trace.
#pragma once

#include <string>

#include "base/log.h"
#include "sim/world.h"

namespace porthole::sim {

class SimLog final : public Log {
 public:
  SimLog(World& world, std::string who) : world_(world), who_(std::move(who)) {}
  void write(LogLevel level, std::string_view component, std::string_view message) override {
    if (level == LogLevel::kDebug) return;
    world_.note(who_ + "/" + std::string(component), message);
  }

 private:
  World& world_;
  std::string who_;
};

}  // namespace porthole::sim
