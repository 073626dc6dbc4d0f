// How a saved server is reached (C7, C8, C9): on the LAN first where it has an address there, over the tailnet when that
// fails and the user (or --auto) wants it, at once when there is no other way.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/json/object.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "client/limits.h"
#include "client/session.h"
#include "client/store.h"
#include "client/tailnet.h"

namespace porthole::client {

enum class Way { kAsk, kAuto, kLocal, kRemote };

struct Surroundings {
  std::string device_id, device_name;
  // The tailnet of this server; asked for only when it is needed.
  std::function<std::shared_ptr<TailnetClient>()> tailnet;
  // "Connect Remotely?" after the local attempt failed for this reason; blocks, on another thread. Way::kAsk only.
  std::function<bool(const std::string& reason)> ask;
  // What is being done: {"event":"local_failed",..}, {"event":"remote_attempt",..}, {"event":"connect_remotely",..}.
  std::function<void(boost::json::object)> event = [](boost::json::object) {};
  std::chrono::milliseconds backoff_first = kRemoteBackoffFirst;
  std::chrono::milliseconds remote_time_max = kRemoteTimeMax;
};

struct Connected {
  std::shared_ptr<Session> session;  // logged in
  LoginAnswer login;
  bool remote = false;
  std::string peer;  // the server's address on the tailnet, when remote
};

// ClientError with what people should know when none of the ways leads there.
boost::asio::awaitable<Connected> connect_server(SavedServer server, Way way, Surroundings surroundings);

}  // namespace porthole::client
