// Names of the devices in a tailnet, as users type them into a proxy: "nas", "NAS.Tail1234.ts.net.", "100.64.0.7".
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/ip.h"
#include "base/result.h"

namespace porthole::proxy {

struct NamedHost {
  std::string fqdn;                  // with or without trailing dot, any letter case
  std::vector<IpAddress> addresses;  // in order of preference
};

// Filled anew from every netmap; look-ups change nothing.
class NameTable {
 public:
  NameTable() = default;
  // `domain`: the tailnet's own, without host ("tail1234.ts.net"); may be empty. A short name that several hosts have
  // (devices shared from other tailnets) means the one in `domain`, else the one listed first.
  NameTable(const std::vector<NamedHost>& hosts, std::string_view domain);

  // An address literal is its own answer, whether or not anybody has it. A name must be a full name or the first label of
  // one: kNotFound otherwise, with a sentence for the user. The list is never empty.
  Result<std::vector<IpAddress>> resolve(std::string_view name) const;

  std::size_t size() const { return by_fqdn_.size(); }

 private:
  std::map<std::string, std::vector<IpAddress>, std::less<>> by_fqdn_;  // lower case, no trailing dot
  std::map<std::string, std::string, std::less<>> by_label_;            // first label -> full name
};

}  // namespace porthole::proxy
