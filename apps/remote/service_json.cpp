#include "remote/service_json.h"

#include "support/json_read.h"
#include "ts2021/time_text.h"

namespace porthole::remote {

namespace json = boost::json;
using app::flag_of;
using app::text_of;
using coordinator::Service;

namespace {

json::value time_or_null(const std::optional<WallTime>& time) {
  return time ? json::value(ts2021::format_time(*time)) : json::value(nullptr);
}

json::object failed(const Error& error) {
  return {{"ok", false}, {"error", error.message}, {"code", to_string(error.code)}};
}

}  // namespace

json::object to_json(const coordinator::AccountInfo& account) {
  return {{"account", account.name},
          {"created", ts2021::format_time(account.created)},
          {"devices", account.devices},
          {"online", account.online}};
}

json::object to_json(const coordinator::DeviceInfo& d) {
  json::object out{{"account", d.account}, {"device", d.device_id}, {"state", to_string(d.state)},
                   {"created", ts2021::format_time(d.created)}};
  if (d.node_id == 0) {
    out["key_expires"] = time_or_null(d.key_expires);
    return out;
  }
  json::array addresses, endpoints;
  for (const auto& a : d.addresses) addresses.emplace_back(a.to_string());
  for (const auto& e : d.endpoints) endpoints.emplace_back(e.to_string());
  out["node"] = std::to_string(d.node_id);
  out["name"] = d.name;
  out["fqdn"] = d.fqdn;
  out["addresses"] = std::move(addresses);
  out["node_key"] = d.node_key.to_string();
  out["hostname"] = d.hostname;
  out["os"] = d.os;
  out["version"] = d.version;
  out["online"] = d.online;
  out["ephemeral"] = d.ephemeral;
  out["home_relay"] = d.home_relay;
  out["endpoints"] = std::move(endpoints);
  out["last_seen"] = time_or_null(d.last_seen);
  out["key_expiry"] = time_or_null(d.key_expiry);
  return out;
}

json::object to_json(const coordinator::PendingInfo& p) {
  return {{"id", p.id}, {"hostname", p.hostname}, {"os", p.os}, {"expires", ts2021::format_time(p.expires)}};
}

json::object run_command(Service& service, Clock clock, const json::object& command) {
  std::string name = text_of(command, "command");
  std::string account = text_of(command, "account");
  json::object ok{{"ok", true}};
  if (name == "account_create") {
    auto made = service.create_account(clock, account);
    if (!made) return failed(made.error());
    ok["account"] = made->name;
    ok["token"] = made->token.reveal();
  } else if (name == "account_token") {
    auto made = service.replace_token(clock, account);
    if (!made) return failed(made.error());
    ok["account"] = made->name;
    ok["token"] = made->token.reveal();
  } else if (name == "account_list") {
    auto list = service.list_accounts(clock);
    if (!list) return failed(list.error());
    json::array accounts;
    for (const auto& a : *list) accounts.push_back(to_json(a));
    ok["accounts"] = std::move(accounts);
  } else if (name == "key_create") {
    coordinator::KeyOptions options;
    options.device_id = text_of(command, "device");
    options.reusable = flag_of(command, "reusable");
    options.ephemeral = flag_of(command, "ephemeral");
    if (const json::value* seconds = command.if_contains("lifetime_seconds"); seconds && seconds->is_int64())
      options.lifetime = std::chrono::seconds(std::min<std::int64_t>(seconds->as_int64(), 1'000'000'000));
    auto key = service.key_create(clock, account, options);
    if (!key) return failed(key.error());
    ok["key"] = key->key.reveal();
    ok["expires"] = time_or_null(key->expires);
  } else if (name == "devices_list") {
    auto devices = service.devices_list(clock, account);
    if (!devices) return failed(devices.error());
    json::array list;
    for (const auto& d : *devices) list.push_back(to_json(d));
    ok["devices"] = std::move(list);
  } else if (name == "revoke") {
    auto done = service.revoke(clock, account, text_of(command, "id"));
    if (!done) return failed(done.error());
  } else if (name == "approve") {
    auto device = service.approve(clock, account, text_of(command, "id"));
    if (!device) return failed(device.error());
    ok["device"] = to_json(*device);
  } else if (name == "health") {
    auto h = service.health();
    ok["healthy"] = h.ok;
    ok["problem"] = h.problem;
    ok["accounts"] = h.accounts;
    ok["nodes"] = h.nodes;
    ok["online"] = h.online;
  } else {
    return failed({ErrorCode::kInvalid, "unknown command \"" + name + "\""});
  }
  return ok;
}

}  // namespace porthole::remote
