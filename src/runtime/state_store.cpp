#include "runtime/state_store.h"

#include <boost/json.hpp>

namespace porthole::runtime {
namespace {
namespace json = boost::json;

constexpr std::int64_t kVersion = 1;
constexpr std::string_view kFormat = "porthole-node-state";
constexpr std::size_t kSizeMax = 1 << 20;

std::string text(const json::object& o, std::string_view key) {
  const json::value* v = o.if_contains(key);
  return v && v->is_string() ? std::string(v->get_string()) : std::string();
}
bool flag(const json::object& o, std::string_view key) {
  const json::value* v = o.if_contains(key);
  return v && v->is_bool() && v->get_bool();
}

}  // namespace

Result<std::optional<NodeState>> StateStore::load() const {
  auto content = read_file(path_, kSizeMax);
  if (!content) return content.error();
  if (!*content) return std::optional<NodeState>{};
  auto damaged = [&](std::string_view why) {
    return Error{ErrorCode::kInvalid, "the node state in " + path_ + " is damaged (" + std::string(why) +
                                          "); it was left as it is: restore it from a backup, or move it away to start as a new node"};
  };
  json::error_code ec;
  json::value v = json::parse(**content, ec);
  if (ec || !v.is_object()) return damaged("not JSON");
  const json::object& o = v.get_object();
  if (text(o, "format") != kFormat)
    return Error{ErrorCode::kInvalid, path_ + " is not a Porthole node state; it was left as it is: choose another state directory"};
  const json::value* version = o.if_contains("version");
  if (!version || !version->is_int64()) return damaged("no version");
  if (version->get_int64() > kVersion)
    return Error{ErrorCode::kUnsupported, "the node state in " + path_ + " was written by a newer Porthole (version " +
                                              std::to_string(version->get_int64()) + ", this program knows " +
                                              std::to_string(kVersion) + "); update this program"};
  NodeState s;
  auto machine = crypto::MachinePrivate::parse(text(o, "machine_key"));
  if (!machine || machine->is_zero()) return damaged("no machine key");
  s.machine_key = std::move(*machine);
  if (std::string node = text(o, "node_key"); !node.empty()) {
    auto key = crypto::NodePrivate::parse(node);
    if (!key) return damaged("bad node key");
    s.node_key = std::move(*key);
    crypto::wipe(MutBytes(reinterpret_cast<std::uint8_t*>(node.data()), node.size()));
  }
  if (std::string disco = text(o, "disco_key"); !disco.empty()) {
    if (auto key = crypto::DiscoPrivate::parse(disco)) s.disco_key = std::move(*key);
    crypto::wipe(MutBytes(reinterpret_cast<std::uint8_t*>(disco.data()), disco.size()));
  }
  s.control_url = text(o, "control_url");
  if (auto k = MachinePublic::parse(text(o, "control_key"))) s.control_key = *k;
  s.hostname = text(o, "hostname");
  s.registered = flag(o, "registered");
  s.ephemeral = flag(o, "ephemeral");
  s.login_name = text(o, "login_name");
  if (const json::value* p = o.if_contains("udp_port"); p && p->is_int64() && p->get_int64() > 0 && p->get_int64() < 65536)
    s.udp_port = static_cast<std::uint16_t>(p->get_int64());
  if (std::uint8_t stamp[12]; from_hex_exact(text(o, "last_tai64n"), stamp)) s.last_tai64n = wg::Tai64n::from_bytes(stamp);
  if (const json::value* a = o.if_contains("addresses"); a && a->is_array())
    for (const json::value& e : a->get_array())
      if (e.is_string())
        if (auto ip = IpAddress::parse(std::string_view(e.get_string()))) s.addresses.push_back(*ip);
  crypto::wipe(MutBytes(reinterpret_cast<std::uint8_t*>((*content)->data()), (*content)->size()));
  return std::optional<NodeState>(std::move(s));
}

Status StateStore::save(const NodeState& s) const {
  json::object o;
  o["format"] = kFormat;
  o["version"] = kVersion;
  o["machine_key"] = s.machine_key.to_text().reveal();
  if (!s.node_key.is_zero()) o["node_key"] = s.node_key.to_text().reveal();
  if (!s.disco_key.is_zero()) o["disco_key"] = s.disco_key.to_text().reveal();
  o["control_url"] = s.control_url;
  if (!s.control_key.is_zero()) o["control_key"] = s.control_key.to_string();
  o["hostname"] = s.hostname;
  o["registered"] = s.registered;
  o["ephemeral"] = s.ephemeral;
  o["udp_port"] = s.udp_port;
  o["last_tai64n"] = to_hex(s.last_tai64n.bytes());
  o["login_name"] = s.login_name;
  json::array addresses;
  for (const IpAddress& a : s.addresses) addresses.emplace_back(a.to_string());
  o["addresses"] = std::move(addresses);
  std::string content = json::serialize(o) + "\n";
  Status status = write_file_atomic(path_, content);
  crypto::wipe(MutBytes(reinterpret_cast<std::uint8_t*>(content.data()), content.size()));
  return status;
}

}  // namespace porthole::runtime
