// The app on a simulated node: serves and makes transfers (ledger.h) over the node's netstack.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>

#include "netstack/stack.h"
#include "sim/ledger.h"

namespace porthole::sim {

class App {
 public:
  App(World& world, Ledger& ledger, netstack::Stack& stack, std::string account);

  void serve(std::uint16_t port);
  void start(const TransferRef& transfer, const Endpoint& server, Duration timeout);
  // The app gives up: a reset.
  void cancel(const TransferRef& transfer);
  void handle_event(const netstack::SocketEvent& event);
  // The process is gone: what it had open has failed.
  void lose_everything(const Error& why);
  std::size_t connections() const { return connections_.size(); }

 private:
  struct Connection {
    bool is_client = false;
    TransferRef transfer;           // server: once the head has come
    ByteVector head;                // of the other side: request (server), receipt (client)
    ByteVector own_head;            // client: request not yet written; server: receipt
    std::size_t own_head_at = 0;
    std::uint64_t written = 0;      // pattern bytes
    bool finished_writing = false;
  };

  void read(netstack::SocketId id, Connection& c);
  void write(netstack::SocketId id, Connection& c);
  void end(netstack::SocketId id, std::optional<Error> error);
  bool accept_head(Connection& c);

  World& world_;
  Ledger& ledger_;
  netstack::Stack& stack_;
  std::string account_;
  std::set<netstack::SocketId> listeners_;
  std::map<netstack::SocketId, Connection> connections_;
};

}  // namespace porthole::sim
