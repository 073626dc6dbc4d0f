// A simulated server machine: the coordinator, a relay with STUN, or both, behind one HTTP front as the product has it.
//
// What a disk would keep (the store, the keys) belongs to the host and outlives restarts of either part.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/coordinator.h"
#include "coordinator/directory.h"
#include "coordinator/memory_store.h"
#include "relay/relay_server.h"
#include "relay/stun_server.h"
#include "sim/sim_log.h"
#include "sim/streams.h"

namespace porthole::sim {

class ServerHost final : private relay::Admission {
 public:
  struct Config {
    std::string name;        // DNS name
    bool coordinator = false;
    int region = 0;          // 0: no relay
  };
  ServerHost(Network& network, Streams& streams, Host& host, Config config);
  ~ServerHost() override;
  ServerHost(const ServerHost&) = delete;
  ServerHost& operator=(const ServerHost&) = delete;

  Host& host() { return host_; }
  const Config& config() const { return config_; }
  std::string url() const { return "https://" + config_.name; }
  // As the relay map lists it.
  ts2021::RelayRegion region() const;

  // Whose word the relay takes about keys; itself for a coordinator. Set before start_relay().
  void set_authority(ServerHost& coordinator);
  void start_coordinator(ts2021::RelayMap relays);
  // The process ends: its streams are reset and its memory is gone.
  void stop_coordinator();
  void start_relay();
  void stop_relay();
  // Tells clients when to come back, as a relay that is updated does, and stops.
  void announce_relay_restart();

  coordinator::Directory& directory() { return *directory_; }
  coordinator::Coordinator* coordinator() { return coordinator_.get(); }
  relay::RelayServer* relay() { return relay_.get(); }
  coordinator::MemoryStore& store() { return store_; }
  Clock clock() const { return {world_.now(), world_.wall()}; }
  // After calls to the directory or the coordinator from outside: lets what follows happen.
  void poke() { alarm_.set_now(); }

 private:
  class Connection;
  enum class Part { kFront, kCoordinator, kRelay };

  bool admit(const NodePublic& key, const Endpoint& source) override;
  void turn();
  void handle_request(Connection& c);
  void pump(Connection& c);
  void drop(Connection& c, bool reset);
  void drop_all(Part part);
  void recheck();

  Network& network_;
  Streams& streams_;
  World& world_;
  Host& host_;
  Config config_;
  SeededRng rng_;
  SimLog log_;

  coordinator::MemoryStore store_;
  crypto::MachinePrivate noise_key_;
  crypto::NodePrivate relay_key_;
  ByteVector server_secret_;
  ServerHost* authority_;
  std::vector<ServerHost*> dependants_;  // relays that take this coordinator's word

  std::unique_ptr<coordinator::Directory> directory_;
  std::unique_ptr<coordinator::Coordinator> coordinator_;
  std::unique_ptr<relay::RelayServer> relay_;
  relay::StunServer stun_;

  std::map<Connection*, std::unique_ptr<Connection>> connections_;
  std::vector<std::unique_ptr<Connection>> graveyard_;
  std::map<coordinator::SessionId, Connection*> sessions_;
  std::map<relay::ConnId, Connection*> relayed_;
  ByteVector scratch_;
  Alarm alarm_;
};

}  // namespace porthole::sim
