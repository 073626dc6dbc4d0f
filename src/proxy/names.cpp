#include "proxy/names.h"

#include <algorithm>

#include "proxy/limits.h"

namespace porthole::proxy {
namespace {

std::string normal_form(std::string_view name) {
  if (name.ends_with('.')) name.remove_suffix(1);
  std::string out(name);
  std::transform(out.begin(), out.end(), out.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  return out;
}

// For messages: what was typed, without what could break a line.
std::string quoted(std::string_view name) {
  std::string out = "\"";
  for (char c : name.substr(0, kNameSizeMax)) out.push_back(c > 0x20 && c < 0x7f ? c : '?');
  return out + "\"";
}

}  // namespace

NameTable::NameTable(const std::vector<NamedHost>& hosts, std::string_view domain) {
  std::string own = normal_form(domain);
  for (const NamedHost& host : hosts) {
    std::string fqdn = normal_form(host.fqdn);
    if (fqdn.empty() || fqdn.size() > kNameSizeMax || host.addresses.empty()) continue;
    std::size_t dot = fqdn.find('.');
    std::string label = fqdn.substr(0, dot);
    bool ours = !own.empty() && dot != std::string::npos && std::string_view(fqdn).substr(dot + 1) == own;
    if (ours) by_label_.insert_or_assign(label, fqdn);
    else by_label_.emplace(label, fqdn);
    by_fqdn_.emplace(std::move(fqdn), host.addresses);
  }
}

Result<std::vector<IpAddress>> NameTable::resolve(std::string_view name) const {
  if (auto address = IpAddress::parse(name)) return std::vector<IpAddress>{*address};
  if (name.empty() || name.size() > kNameSizeMax + 1) return Error{ErrorCode::kInvalid, "the host name is empty or too long"};
  std::string wanted = normal_form(name);
  if (auto it = by_fqdn_.find(wanted); it != by_fqdn_.end()) return it->second;
  if (auto it = by_label_.find(wanted); it != by_label_.end()) return by_fqdn_.find(it->second)->second;
  return Error{ErrorCode::kNotFound, "no device named " + quoted(name) + " in this tailnet"};
}

}  // namespace porthole::proxy
