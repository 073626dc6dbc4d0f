#include "client/strategy.h"

#include <algorithm>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "client/connector.h"
#include "client/elsewhere.h"
#include "client/error.h"
#include "client/limits.h"
#include "session/limits.h"
#include "session/names.h"

namespace porthole::client {
namespace {

namespace asio = boost::asio;
using asio::awaitable;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

awaitable<Connected> enter(asio::ip::tcp::socket socket, std::string where, const SavedServer& server,
                           const Surroundings& around, bool remote) {
  Connected out;
  out.remote = remote;
  out.session = co_await Session::open(std::move(socket), where, server.pin);
  LoginDetails details;
  details.password = server.password;
  details.device_id = around.device_id;
  details.device_name = around.device_name;
  out.login = co_await out.session->login(std::move(details));
  co_return out;
}

awaitable<Connected> connect_local(const SavedServer& server, const Surroundings& around) {
  session::HostPort at = session::parse_server_url(server.hostname, session::kServicePort);
  asio::ip::tcp::socket socket = co_await connect_direct(at.host, at.port, kLocalConnectTimeout);
  std::string where = session::join_host_port(at.host, at.port);
  co_return co_await enter(std::move(socket), where, server, around, false);
}

// Trying again can help.
bool passing(Failure failure) { return failure == Failure::kUnreachable || failure == Failure::kLost; }

awaitable<Connected> attempt_remote(const SavedServer& server, const Surroundings& around, TailnetClient& tailnet,
                                    steady_clock::time_point deadline) {
  std::string peer;
  ProxyEndpoint proxy;
  auto prepare = [&] {
    if (server.coordination_url.empty() || server.tailnet_preauth_key.empty())
      tailnet.ensure_connected();
    else
      tailnet.join(server.coordination_url, server.tailnet_preauth_key);
    auto at_most = [&](milliseconds time) {
      return std::clamp(std::chrono::duration_cast<milliseconds>(deadline - steady_clock::now()), milliseconds(0), time);
    };
    tailnet.wait_connected(at_most(kTailnetReadyTimeout));
    auto wait_for = [&](const std::string& name, milliseconds time) { tailnet.wait_peer(peer = name, at_most(time)); };
    if (server.remote_ip.empty() || server.remote_hostname.empty()) {
      wait_for(server.remote_ip.empty() ? server.remote_hostname : server.remote_ip, kPeerReadyTimeout);
    } else {
      try {
        wait_for(server.remote_ip, kPeerAddressTimeout);
      } catch (const ClientError& e) {
        if (!passing(e.failure())) throw;
        wait_for(server.remote_hostname, kPeerReadyTimeout);
      }
    }
    proxy = tailnet.proxy();
  };
  co_await elsewhere(prepare);
  asio::ip::tcp::socket socket = co_await connect_through(proxy, peer, session::kServicePort, kConnectTimeout);
  std::string where = "\"" + server.name + "\"";
  Connected out = co_await enter(std::move(socket), where, server, around, true);
  out.peer = peer;
  co_return out;
}

awaitable<Connected> connect_remote(const SavedServer& server, const Surroundings& around) {
  std::shared_ptr<TailnetClient> tailnet = around.tailnet();
  const steady_clock::time_point deadline = steady_clock::now() + around.remote_time_max;
  milliseconds wait = around.backoff_first;
  for (int attempt = 1;; ++attempt) {
    std::string reason;
    try {
      around.event({{"event", "remote_attempt"}, {"server", server.name}, {"attempt", attempt}});
      Connected out = co_await attempt_remote(server, around, *tailnet, deadline);
      co_return out;
    } catch (const ClientError& e) {
      bool in_time = steady_clock::now() + wait < deadline;
      if (!passing(e.failure()) || attempt == kRemoteAttemptsMax || !in_time) throw;
      reason = e.what();
    }
    around.event({{"event", "remote_failed"}, {"server", server.name}, {"reason", reason}, {"retry_ms", wait.count()}});
    asio::any_io_executor executor = co_await asio::this_coro::executor;
    asio::steady_timer timer(executor, wait);
    co_await timer.async_wait(asio::use_awaitable);
    wait *= 2;
  }
}

// A failure of the local attempt after which the tailnet may still lead to the right server: somebody else's machine
// has the address in this network, or nobody has it.
bool elsewhere_helps(Failure failure) {
  return passing(failure) || failure == Failure::kNotPorthole || failure == Failure::kPinChanged;
}

}  // namespace

awaitable<Connected> connect_server(SavedServer server, Way way, Surroundings around) {
  bool has_local = !server.hostname.empty();
  if (way == Way::kLocal && !has_local)
    throw ClientError(Failure::kUnreachable, "\"" + server.name + "\" has no address on the LAN");
  if (way == Way::kRemote || !has_local) {
    if (!server.has_remote_details())
      throw ClientError(Failure::kNoRemote, "\"" + server.name +
                                                "\" has no remote access: the server gave no remote details at the last "
                                                "login (log in at home again once it has)");
    Connected out = co_await connect_remote(server, around);
    co_return out;
  }
  std::string reason;
  try {
    Connected out = co_await connect_local(server, around);
    co_return out;
  } catch (const ClientError& e) {
    if (way == Way::kLocal || !elsewhere_helps(e.failure())) throw;
    if (!server.has_remote_details()) {
      if (e.failure() == Failure::kPinChanged || e.failure() == Failure::kNotPorthole) throw;
      throw ClientError(Failure::kNoRemote, std::string(e.what()) + "; this server has no remote access");
    }
    reason = e.what();
  }
  around.event({{"event", "local_failed"}, {"server", server.name}, {"reason", reason}});
  if (way == Way::kAsk) {
    bool yes = false;
    auto question = [&] { yes = around.ask && around.ask(reason); };
    around.event({{"event", "connect_remotely"}, {"server", server.name}, {"reason", reason}});
    co_await elsewhere(question);
    if (!yes)
      throw ClientError(Failure::kUnreachable, reason + "; it can be reached remotely (--remote, or --auto)");
  }
  Connected out = co_await connect_remote(server, around);
  co_return out;
}

}  // namespace porthole::client
