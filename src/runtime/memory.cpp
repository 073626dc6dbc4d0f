#include "runtime/memory.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <string_view>

#include "runtime/files.h"

namespace porthole::runtime {
namespace {
constexpr std::size_t kMembershipMax = 64 * 1024;   // a line for each controller of the first version: a dozen
constexpr std::size_t kLimitTextMax = 64;

// "max", or anything else that is no number, is no limit.
std::optional<std::uint64_t> read_limit(const std::string& file) {
  auto text = read_file(file, kLimitTextMax);
  std::uint64_t value = 0;
  if (!text || !*text) return std::nullopt;
  const std::string& t = **text;
  if (std::from_chars(t.data(), t.data() + t.size(), value).ec != std::errc()) return std::nullopt;
  return value;
}

bool names_memory(std::string_view controllers) {
  return ("," + std::string(controllers) + ",").find(",memory,") != std::string::npos;
}
}  // namespace

std::optional<std::uint64_t> control_group_memory(const std::string& membership, const std::string& root) {
  std::optional<std::uint64_t> least;
  std::string_view rest = membership;
  while (!rest.empty()) {
    std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    // "number:controllers:path"; the second version has no controllers here.
    std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string_view::npos || second == std::string_view::npos) continue;
    std::string_view controllers = line.substr(first + 1, second - first - 1);
    if (!controllers.empty() && !names_memory(controllers)) continue;
    const std::string base = controllers.empty() ? root : root + "/memory";
    const char* file = controllers.empty() ? "/memory.max" : "/memory.limit_in_bytes";
    // In a container the path may be one of the host's, which is not there: its root is the container's own group.
    for (std::string path(line.substr(second + 1)); ; path.erase(path.rfind('/'))) {
      if (auto limit = read_limit(base + path + file)) least = std::min(least.value_or(*limit), *limit);
      if (path.find('/') == std::string::npos) break;
    }
  }
  return least;
}

std::uint64_t usable_memory() {
  std::uint64_t bytes = static_cast<std::uint64_t>(std::max(::sysconf(_SC_PHYS_PAGES), 1L)) *
                        static_cast<std::uint64_t>(std::max(::sysconf(_SC_PAGESIZE), 1L));
  auto membership = read_file("/proc/self/cgroup", kMembershipMax);
  if (membership && *membership)
    if (auto limit = control_group_memory(**membership, "/sys/fs/cgroup")) bytes = std::min(bytes, *limit);
  return bytes;
}

}  // namespace porthole::runtime
