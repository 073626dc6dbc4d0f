// The inside of a NodeRuntime: everything that lives on the node's thread.
#pragma once

#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <unordered_map>

#include "node/engine.h"
#include "proxy/proxy_machine.h"
#include "runtime/clock.h"
#include "runtime/datagrams.h"
#include "runtime/event_loop.h"
#include "runtime/interfaces.h"
#include "runtime/local_socket.h"
#include "runtime/node_runtime.h"
#include "runtime/pending.h"
#include "runtime/socks_udp.h"
#include "runtime/splice.h"
#include "runtime/state_store.h"
#include "runtime/streams.h"
#include "runtime/tcp_accept.h"
#include "runtime/udp_socket.h"

namespace porthole::runtime {

constexpr std::size_t kScratchBytes = 64 * 1024;

// Events for the app: written by the loop, read by any thread.
class EventQueue {
 public:
  explicit EventQueue(int wake_fd) : wake_fd_(wake_fd) {}
  // `droppable` ones go first when nobody reads, then the oldest; the newest always gets in.
  void push(std::string json, bool droppable);
  void close();
  // nullopt after the time; kCancelled once closed and empty.
  Result<std::optional<std::string>> next(int timeout_ms);

 private:
  struct Entry {
    std::string json;
    bool droppable;
  };
  int wake_fd_;
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<Entry> entries_;
  std::size_t bytes_ = 0;      // of the entries' texts
  bool closed_ = false;
};

// Lines to a descriptor of the app's choice.
class FdLog final : public Log {
 public:
  void set_fd(UniqueFd fd);
  void write(LogLevel level, std::string_view component, std::string_view message) override;

 private:
  std::mutex mutex_;
  UniqueFd fd_;
};

class NodeRuntime::Loop final : public std::enable_shared_from_this<NodeRuntime::Loop>,
                                private StreamMachine,
                                private UdpSocket::Receiver,
                                private DatagramSink {
 public:
  Loop(NodeOptions options, StateDir dir, StateStore store, NodeState state, const wg::StampLease& stamps, int event_wake_fd);
  ~Loop() override;
  // On the caller's thread, before run(): sockets, TLS, control socket.
  Status open();
  void run();

  // Any thread: runs on the loop's thread. As the loop's own.
  EventLoop::Posted post(std::function<void()> work) { return loop_.post(std::move(work)); }
  bool post_always(std::function<void()> work) { return loop_.post_always(std::move(work)); }
  void request_stop();
  EventQueue& events() { return events_; }
  FdLog& log() { return log_; }

  // The rest: on the loop's thread only.
  void wait_running(std::shared_ptr<Pending<bool>> p);
  // What stands between the node and running, for a wait that ended without it.
  Error why_not_running() const;
  void wait_peer(const std::string& name, std::shared_ptr<Pending<bool>> p);
  void logout(std::shared_ptr<Pending<bool>> p);
  std::string status_json();
  Result<std::string> whois(const std::string& address) const;   // IP or IP:PORT
  Result<ProxyAccess> loopback(const std::string& address);
  void dial(const DialTarget& target, Duration timeout, std::shared_ptr<Pending<UniqueFd>> p);
  Result<ListenerRef> listen(std::uint16_t port);
  void accept(std::uint64_t listener, std::shared_ptr<Pending<Accepted>> p);
  // Afterwards nobody fills it any more.
  void cancel_accept(std::uint64_t listener, const std::shared_ptr<Pending<Accepted>>& p);
  void close_listener(std::uint64_t listener);
  Status expose(std::uint16_t port, const std::string& local_address, int max_connections);
  Result<std::string> exposed_peer(std::uint16_t local_port);
  Result<UniqueFd> listen_packet(std::uint16_t port);
  Status expose_udp(std::uint16_t port, const std::string& local_address, int max_sources);
  Result<std::string> exposed_udp_peer(std::uint16_t local_port);
  enum class PingKind { kDisco, kTsmp, kIcmp };
  void ping(const std::string& name, PingKind kind, std::shared_ptr<Pending<std::string>> p);
  void netcheck(std::shared_ptr<Pending<std::string>> p);

 private:
  using SocketId = netstack::SocketId;
  class ProxyConnection;
  class ControlConnection;
  struct Exposed {
    Endpoint local;
    int connections_max = 0;
    int connections = 0;
    std::map<IpAddress, int> per_peer;
  };
  // A connection that the tailnet made to an exposed port, while the local service is being dialled.
  class ExposedDial;
  struct AppListener {
    SocketId socket = 0;
    std::deque<SocketId> ready;
    std::deque<std::shared_ptr<Pending<Accepted>>> waiters;
    std::shared_ptr<UniqueFd> fd;        // eventfd, readable while `ready` is not empty
    bool told = false;
  };
  struct Dial {
    std::function<void(Status)> done;    // connected or failed
  };
  // Work that needs a running node; the action gets the error when that does not come in time.
  struct WhenRunning {
    Instant deadline;
    std::function<void(Status)> action;
  };

  // StreamMachine
  void stream_opened(StreamId id, const StreamInfo& info) override;
  void stream_failed(StreamId id, const Error& error) override;
  void stream_closed(StreamId id, const Error* error) override;
  Result<std::size_t> stream_consume(StreamId id, MutBytes bytes) override;
  std::size_t stream_produce(StreamId id, MutBytes out) override;
  bool stream_has_output(StreamId id) override;
  // UdpSocket::Receiver, DatagramSink
  void datagrams_received(std::span<const RecvDatagram> batch) override;
  void send_udp(const Endpoint& destination, Bytes data, std::size_t segment_size) override;
  void send_relay(int, const NodePublic&, Bytes) override {}

  Status open_sockets();
  void trim_memory();
  void announce_addresses();
  void rebind(const std::string& reason);
  void network_may_have_changed();
  void drive();                           // until nothing moves
  void handle_engine_event(node::Event& event);
  void handle_socket_event(const netstack::SocketEvent& event);
  void persist(bool last = false);   // last: nothing is sent any more
  void save_map();                        // for a quick next start
  void fail_waiters(const Error& error);
  void resolve_waiters();
  void expire_when_running();
  void add_control(UniqueFd fd);
  void add_proxy(UniqueFd fd);
  Instant next_proxy_timeout() const;
  void expire_proxies();
  void ended(const std::shared_ptr<Splice>& splice);
  std::string relay_name(int region) const;
  void answer_netchecks(const paths::NetcheckReport& report);
  void handle_ping(const paths::PingResult& result);
  void answer_ping(std::uint64_t token, Result<Duration> latency, const paths::PingResult* way = nullptr);
  std::optional<Error> hopeless() const;  // why the node cannot get to running by itself
  void stop_now();
  void emit(const std::string& json, bool droppable = false) { events_.push(json, droppable); }
  void emit_state();

  // Calls once, at once or later: with success when the node runs, with the reason when it does not in time or cannot.
  void when_running(Duration timeout, std::function<void(Status)> action);
  Result<IpAddress> device_address(const DialTarget& target) const;
  // Opens a connection over the tailnet; `done` runs once, with the connected socket.
  void open_tailnet(const DialTarget& target, Duration timeout, std::function<void(Result<SocketId>)> done);
  void dial_udp(const DialTarget& target, Duration timeout, std::shared_ptr<Pending<UniqueFd>> p);
  // A local socket for the netstack's UDP socket: the app's end.
  Result<UniqueFd> join_app(SocketId socket, std::optional<Endpoint> remote);
  Instant next_datagram_timeout() const;
  void expire_datagrams();
  Result<std::string> peer_json(const Endpoint& peer);
  // Joins a connected tailnet socket with a local one.
  // `http_answer`: the tailnet's side answers one plain HTTP request of the proxy's.
  void splice(SocketId socket, UniqueFd fd, Bytes first, std::function<void()> ended = {}, bool http_answer = false);
  void accept_exposed(SocketId socket, std::uint16_t port);
  void accept_app(AppListener& listener);
  void give_accepted(AppListener& listener);
  void tell_listener(AppListener& listener);
  void defer_delete(std::shared_ptr<void> object) { graveyard_.push_back(std::move(object)); }

  NodeOptions options_;
  StateDir dir_;
  StateStore store_;
  NodeState persistent_;
  wg::StampLease stamps_;   // of the start
  FdLog log_;
  SystemRng rng_;
  EventLoop loop_;
  EventQueue events_;
  Clock clock_{};
  Instant started_at_;
  std::unique_ptr<node::Engine> engine_;
  std::unique_ptr<Streams> streams_;
  std::unique_ptr<Resolver> resolver_;
  std::shared_ptr<UdpSocket::ReceiveBuffers> udp_buffers_;
  std::unique_ptr<UdpSocket> udp4_, udp6_;
  std::unique_ptr<NetworkMonitor> monitor_;
  std::vector<HostAddress> addresses_;
  std::optional<Instant> recheck_addresses_at_;
  Instant last_rebind_;
  Instant last_traffic_;
  std::optional<Instant> trim_at_;
  std::optional<Instant> save_map_at_;
  std::uint64_t saved_map_version_ = 0;
  std::unique_ptr<std::uint8_t[]> scratch_;

  std::unordered_map<SocketId, std::shared_ptr<Splice>> splices_;
  std::unordered_map<SocketId, Dial> dials_;
  std::map<SocketId, std::uint16_t> exposed_ports_;            // listener -> port
  std::map<std::uint16_t, Exposed> exposed_;
  std::map<int, std::shared_ptr<ExposedDial>> exposed_dials_;  // by local descriptor
  std::map<std::uint16_t, std::pair<IpAddress, std::uint16_t>> exposed_peers_;  // local source port -> tailnet source
  std::map<std::uint64_t, AppListener> listeners_;
  std::unordered_map<SocketId, std::uint64_t> listener_of_;
  std::map<SocketId, std::shared_ptr<UdpUser>> datagram_users_;
  std::vector<std::shared_ptr<UdpForwarder>> forwarders_;
  DatagramCounters datagram_counters_;
  std::uint64_t next_listener_ = 1;

  struct Loopback {
    std::string wanted;                                        // the address asked for
    ProxyAccess access;
    proxy::ProxyCredential credential;
    std::unique_ptr<AcceptHandler> acceptor;
  };
  std::optional<Loopback> loopback_;
  std::unordered_map<SocketId, SocksUdp*> socks_flows_;        // each belongs to a proxy connection
  proxy::AssociationCounters association_counters_;
  std::map<int, std::shared_ptr<ProxyConnection>> proxy_connections_;
  std::unique_ptr<AcceptHandler> control_acceptor_;
  std::map<int, std::shared_ptr<ControlConnection>> control_connections_;
  std::vector<std::shared_ptr<void>> graveyard_;               // freed at the end of a turn, not inside their own callbacks

  std::vector<WhenRunning> when_running_;
  std::string last_notice_;
  std::vector<std::shared_ptr<Pending<bool>>> running_waiters_;
  struct PeerWait {
    std::string name;
    NodePublic key;                                            // zero until the name is known
    std::shared_ptr<Pending<bool>> pending;
  };
  std::vector<PeerWait> peer_waits_;
  std::vector<std::shared_ptr<Pending<bool>>> logout_waiters_;
  struct AskedPing {
    std::string name;
    IpAddress address;
    NodePublic key;
    PingKind kind = PingKind::kDisco;
    std::shared_ptr<Pending<std::string>> pending;
  };
  std::map<std::uint64_t, AskedPing> pings_;                   // by token
  std::unordered_map<SocketId, std::uint64_t> icmp_pings_;     // socket -> token
  std::uint64_t next_ping_ = 1;
  std::vector<std::shared_ptr<Pending<std::string>>> netchecks_;
  std::atomic<bool> stop_{false};
  bool driving_ = false;
};

}  // namespace porthole::runtime
