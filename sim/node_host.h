// A simulated machine with a node on it: one Engine, the sockets and streams it asks for, an app, and a disk that
// outlives it.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "node/engine.h"
#include "sim/app.h"
#include "sim/sim_log.h"
#include "sim/streams.h"

namespace porthole::sim {

struct NodeConfig {
  std::string name = {};           // host name, and the node's where it is free
  std::string account = "family";
  std::string control_url = {};    // empty: the world's coordinator
  bool ephemeral = false;
  bool relay_only = false;
  bool udp_enabled = true;
  Duration clock_offset{};         // how wrong its wall clock is
  netstack::StackConfig stack = {};
};

class NodeHost final : private DatagramSink {
 public:
  NodeHost(Network& network, Streams& streams, Ledger& ledger, Host& host, NodeConfig config);
  ~NodeHost() override;
  NodeHost(const NodeHost&) = delete;
  NodeHost& operator=(const NodeHost&) = delete;

  static constexpr std::uint16_t kAppPort = 8080;

  const std::string& name() const { return config_.name; }
  NodeConfig& config() { return config_; }
  Host& host() { return host_; }
  Clock clock() const { return {world_.now(), world_.wall() + config_.clock_offset}; }

  // ---- life ----
  // Used at the next start without a registration.
  void set_auth_key(crypto::SecretText key) { auth_key_ = std::move(key); }
  void start();
  // In order: connections end with a reset, streams are closed.
  void stop();
  // The process dies; the system closes its streams.
  void kill();
  // The machine loses power; nobody is told.
  void power_off();
  void restart() { kill(); start(); }
  // The disk is lost.
  void wipe();
  // Lid closed for this long.
  void suspend(Duration time);
  // Ends it early. Nothing to do for a node that is awake.
  void wake();
  // Other UDP sockets, as after a rebind.
  void change_udp_port();
  // To another site, with the addresses it has there; the node notices.
  void move(Site& site, std::vector<IpAddress> addresses);
  void logout();

  // ---- state ----
  bool is_up() const { return engine_ != nullptr; }
  node::Engine& engine() { return *engine_; }
  node::NodeState state() const { return engine_ ? engine_->state() : node::NodeState::kStopped; }
  bool is_running() const { return state() == node::NodeState::kRunning; }
  std::string fqdn() const;
  std::vector<IpAddress> addresses() const;           // on the tailnet, as last known
  NodePublic key() const { return node_key_.public_key(); }
  bool sees(const NodeHost& peer) const;              // in its map
  bool is_direct(const NodeHost& peer) const;         // path confirmed and trusted
  std::uint16_t udp_port() const { return udp_port_; }
  // Notices that a person would have seen since the last start.
  const std::vector<Error>& notices() const { return notices_; }

  // ---- app ----
  // Waits until both run and know each other as an app would: fails at once where there is no such peer.
  TransferRef transfer(NodeHost& to, std::uint64_t up_bytes, std::uint64_t down_bytes, Duration timeout = 30s);
  TransferRef transfer_to(const IpAddress& address, std::uint64_t up_bytes, std::uint64_t down_bytes, Duration timeout = 30s);
  void cancel(const TransferRef& transfer);
  std::size_t open_connections() const { return app_ ? app_->connections() : 0; }

  // After calls to the engine from outside: lets what follows happen.
  void poke() { alarm_.set_now(); }

 private:
  class EngineStream;

  void send_udp(const Endpoint& destination, Bytes data, std::size_t segment_size) override;
  void send_relay(int region, const NodePublic& destination, Bytes data) override;
  void bind_udp(std::uint16_t port);
  void announce_addresses();
  void turn();
  void take_inbox();
  void handle_event(node::Event& event);
  void handle_action(StreamAction& action);
  bool pump_streams();
  void persist();
  void end_process(const Error& why);

  Network& network_;
  Streams& streams_net_;
  Ledger& ledger_;
  World& world_;
  Host& host_;
  NodeConfig config_;
  SeededRng rng_;
  SimLog log_;

  // ---- disk ----
  crypto::MachinePrivate machine_key_;
  crypto::NodePrivate node_key_;
  crypto::SecretText auth_key_;
  std::optional<MachinePublic> control_key_;
  std::string saved_map_;
  bool registered_ = false;
  wg::Tai64n stored_stamp_;
  std::uint16_t udp_port_ = 0;
  crypto::DiscoPrivate disco_key_;
  std::vector<IpAddress> addresses_;

  // ---- process ----
  struct Received {
    Endpoint source;
    ByteVector data;
  };
  std::unique_ptr<node::Engine> engine_;
  std::unique_ptr<App> app_;
  std::map<StreamId, std::unique_ptr<EngineStream>> streams_;
  std::vector<std::unique_ptr<EngineStream>> graveyard_;
  std::vector<Received> inbox_;
  std::vector<Endpoint> unreachable_;
  std::vector<Error> notices_;
  bool suspended_ = false;
  ByteVector scratch_;
  Alarm alarm_;
};

}  // namespace porthole::sim
