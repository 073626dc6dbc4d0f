// How much memory there is for this process.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace porthole::runtime {

// Bytes of the machine, or less where a control group gives less.
std::uint64_t usable_memory();

// The least limit of the control groups that `membership` (the text of /proc/self/cgroup) names and of their parents,
// under `root` (/sys/fs/cgroup); both versions of the interface (cgroups(7)). nullopt: none.
std::optional<std::uint64_t> control_group_memory(const std::string& membership, const std::string& root);

}  // namespace porthole::runtime
