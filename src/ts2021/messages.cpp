#include "ts2021/messages.h"

#include <algorithm>
#include <charconv>

namespace porthole::ts2021 {

int Node::home_region() const {
  if (home_derp > 0) return home_derp;
  std::string_view text = legacy_derp;
  if (!text.starts_with(kLegacyDerpAddress)) return 0;
  text.remove_prefix(kLegacyDerpAddress.size());
  int region = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), region);
  const bool whole = error == std::errc() && end == text.data() + text.size();
  return whole && region > 0 && region <= 65535 ? region : 0;
}

bool Node::has_capability(std::string_view capability) const {
  return cap_map.contains(std::string(capability)) ||
         std::find(capabilities.begin(), capabilities.end(), capability) != capabilities.end();
}

}  // namespace porthole::ts2021
