// Values of events and statuses, as JSON has them.
#pragma once

#include <boost/json.hpp>
#include <string>
#include <vector>

#include "base/ip.h"
#include "base/time.h"

namespace porthole::runtime {

inline boost::json::array texts(const std::vector<IpAddress>& list) {
  boost::json::array out;
  for (const IpAddress& a : list) out.emplace_back(a.to_string());
  return out;
}
inline boost::json::array texts(const std::vector<std::string>& list) {
  boost::json::array out;
  for (const std::string& s : list) out.emplace_back(s);
  return out;
}
inline double to_ms(Duration d) { return static_cast<double>(d.count()) / 1e6; }

}  // namespace porthole::runtime
