// Simulated control clients for the benchmarks: register, map stream, updates over Noise and HTTP/2, as a node does it,
// with nothing behind it. Many in one thread. What a node could not go on after ends the program with a line on stderr.
#pragma once

#include <openssl/ssl.h>

#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/rng.h"
#include "ts2021/h2.h"
#include "ts2021/json.h"
#include "ts2021/map_framing.h"
#include "ts2021/noise.h"

namespace porthole::bench {

[[noreturn]] void die(const std::string& what);

class OsRng final : public Rng {
 public:
  void fill(MutBytes out) override;
};

// Where a coordination service listens: http[s]://ADDRESS:PORT, a literal IPv4 address.
struct Target {
  std::string address;
  std::uint16_t port = 0;
  bool tls = false;
};
Target parse_target(const std::string& url);

// A connection; blocking until unblock(). The certificate is not looked at: Noise inside it proves the server.
class Link {
 public:
  explicit Link(const Target& target);
  ~Link();
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;
  void unblock();
  int fd() const { return fd_; }
  // Bytes read or taken; 0: nothing now (not blocking), or ended().
  std::size_t read(MutBytes out);
  std::size_t write(Bytes bytes);
  // The other side has closed or broken the connection.
  bool ended() const { return ended_; }

 private:
  int fd_ = -1;
  bool ended_ = false;
  std::unique_ptr<SSL, void (*)(SSL*)> tls_{nullptr, ::SSL_free};
};

// One keep-alive connection for HTTP requests; answers other than 2xx: die().
class Api {
 public:
  explicit Api(const Target& target) : link_(target) {}
  std::string call(const std::string& method, const std::string& path, const std::string& token, const std::string& body);

 private:
  Link link_;
};
// The key of the service's control protocol, as every node asks for it first.
MachinePublic server_key(const Target& target);

enum class Stay {
  kConnected,  // follows its account over a map stream
  kLeaves,     // registers, tells its endpoints and goes; the node remains in the account
};

class Client {
 public:
  Client(Rng& rng, std::size_t account_index, std::string hostname, std::string key, Stay stay);

  // Also once more after ended().
  void start(const Target& target, const MachinePublic& server);
  void new_disco();
  // Tells the service what has changed.
  void update();
  // Reads what there is. True: a map message came.
  bool on_readable();
  int fd() const { return link_->fd(); }
  bool ended() const { return link_->ended(); }
  // kLeaves: registered and told.
  bool told() const { return told_; }

  std::size_t account;
  DiscoPublic disco;
  std::map<ts2021::NodeId, DiscoPublic> peers;
  ts2021::NodeId own_id = 0;
  std::size_t streams_lost = 0;  // map streams that the service ended; a new one is opened, as nodes do

 private:
  ts2021::Hostinfo hostinfo() const;
  void flush();
  void post_map(bool stream);
  void on_event(const ts2021::H2ClientEvent& event, bool& map);
  void apply(const ts2021::MapResponse& m);

  std::string hostname_, key_;
  Stay stay_;
  Rng& rng_;
  crypto::MachinePrivate machine_;
  crypto::NodePrivate node_;
  std::unique_ptr<Link> link_;
  std::optional<ts2021::NoiseInitiator> initiator_;
  std::optional<ts2021::RecordStream> records_;
  ts2021::EarlyPayloadReader early_;
  std::optional<ts2021::H2Client> h2_;
  ts2021::MapFrameReader reader_{true};
  ts2021::H2StreamId register_stream_ = 0, map_stream_ = 0, update_stream_ = 0;
  bool registered_ = false, told_ = false;
  ByteVector in_, out_, register_body_;
};

// Many of them, in one epoll set.
class Fleet {
 public:
  // `at_once`: how many may be on their way into the tailnet.
  Fleet(const Target& target, std::size_t at_once);
  ~Fleet();
  // Waits up to `timeout_ms` for one batch of news: on_map(index of the client) for each map message.
  template <class F>
  void wait(int timeout_ms, F&& on_map) {
    std::size_t count = poll(timeout_ms);
    for (std::size_t i = 0; i < count; ++i)
      if (read(ready_[i])) on_map(ready_[i]);
  }
  // Until is_in(client) has held once for everybody; seconds.
  template <class F>
  double join(F&& is_in, double seconds_max) {
    auto start = std::chrono::steady_clock::now();
    std::size_t begun = 0, in = 0;
    std::vector<bool> counted(clients.size(), false);
    for (;;) {
      while (begun < clients.size() && begun - in < at_once_) begin(begun++);
      std::size_t count = poll(100);
      for (std::size_t i = 0; i < count; ++i) {
        std::size_t index = ready_[i];
        if (!clients[index]) continue;
        read(index);
        if (counted[index] || !is_in(*clients[index])) continue;
        counted[index] = true;
        ++in;
        if (clients[index]->told()) clients[index].reset();
      }
      double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      if (in == clients.size()) return seconds;
      if (seconds > seconds_max) die(std::to_string(clients.size() - in) + " nodes have not joined");
    }
  }

  std::vector<std::unique_ptr<Client>> clients;

 private:
  void begin(std::size_t index);
  bool read(std::size_t index);
  std::size_t poll(int timeout_ms);

  Target target_;
  MachinePublic server_;
  std::size_t at_once_;
  int epoll_;
  std::vector<std::size_t> ready_;
};

}  // namespace porthole::bench
