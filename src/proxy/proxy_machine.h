// The loopback proxy's handshakes: SOCKS5 (RFC 1928, 1929) with CONNECT and UDP ASSOCIATE, HTTP CONNECT (RFC 9110 section
// 9.3.6) and plain HTTP requests with an absolute target (RFC 9112 section 3.2.2) on one port.
//
//   first byte 0x05 --> SOCKS5: greeting, login, request --+
//                                                           +--> Connect --> connected() --> answer, then pass through
//   anything else ----> HTTP: head of CONNECT or GET ------+            \-> failed() ----> answer, then close
//
// A plain request becomes one connection: its head is rewritten for the server ("GET /x", "Connection: close", nothing
// that is the proxy's business) and goes ahead of the body; the server's answer passes through (response_head.h), and
// both end with it.
//
// UDP ASSOCIATE is an Associate event in the place of Connect. Its datagrams are udp_association.h's business; of the
// connection, only that it lasts matters from then on.
//
// The caller feeds what the client sends to consume() and writes what produce() gives. consume() never takes a byte
// behind the handshake: once a Connect event is out, the rest belongs to the tunnel. When state() is kOpen and
// has_output() is false, the machine has nothing more to do.
//
// Whoever connects has 10 s. The credential is compared in constant time; one wrong one ends the connection.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <variant>

#include "base/bytes.h"
#include "base/ip.h"
#include "base/out_bytes.h"
#include "base/result.h"
#include "base/time.h"
#include "crypto/secret.h"
#include "proxy/limits.h"
#include "wire/http.h"
#include "wire/socks5.h"

namespace porthole::proxy {

struct ProxyCredential {
  std::string user = "tsnet";
  crypto::SecretText password;
};

struct ProxyConfig {
  // nullptr: every program on this machine may use the proxy. Must outlive the machine.
  const ProxyCredential* credential = nullptr;
  // HTTP requests for the proxy itself ("GET /path") become a PlainHttp event instead of an error.
  bool hand_over_http = false;
};

struct Connect {
  std::variant<IpAddress, std::string> host;  // a name is 1..255 printable ASCII characters, as typed
  std::uint16_t port = 0;
  ByteVector first;  // to be sent into the connection ahead of what the client sends
  // "name:port" or "[v6]:port", for messages.
  std::string to_string() const;
};
// The client speaks HTTP to the proxy itself. Everything read so far is in `head`; the stream is the caller's.
struct PlainHttp {
  ByteVector head;
};
// The client wants to send datagrams (RFC 1928 section 4). The address in its request, from which it says it will, is not
// looked at: most programs write zeros there, some their target.
struct Associate {};
using ProxyEvent = std::variant<Connect, PlainHttp, Associate>;

enum class ProxyState {
  kHandshake,
  kConnecting,  // Connect or Associate was given out; waiting for connected() or failed()
  kOpen,        // after the output: pass bytes through; of an Associate, ignore them
  kClosing,     // close, after the output
};

enum class ConnectFailure { kGeneral, kNotAllowed, kUnknownHost, kUnreachable, kRefused, kTimeout };
// For errors of the layers below: what a client is best told.
ConnectFailure connect_failure(ErrorCode code);

// What both protocols share: bytes out and where things stand.
class ProxyHandshake {
 public:
  ProxyState state() const { return state_; }
  std::optional<ProxyEvent> poll_event();

 protected:
  explicit ProxyHandshake(const ProxyConfig& config) : config_(config) {}
  bool credential_matches(std::string_view user, Bytes password) const;
  void ask(ProxyEvent event) {
    event_ = std::move(event);
    state_ = ProxyState::kConnecting;
  }

  ProxyConfig config_;
  ProxyState state_ = ProxyState::kHandshake;
  OutBytes out_;

 private:
  friend class ProxyMachine;
  std::optional<ProxyEvent> event_;
};

class Socks5Machine : public ProxyHandshake {
 public:
  explicit Socks5Machine(const ProxyConfig& config) : ProxyHandshake(config) {}
  std::size_t consume(Bytes in);
  void connected(const Endpoint& local);
  void failed(ConnectFailure failure, std::string_view sentence);
  void timed_out() { state_ = ProxyState::kClosing; }

 private:
  enum class Step { kGreeting, kLogin, kRequest };
  // Handles one message at the front of `in`.
  wire::socks5::Parsed handle_greeting(Bytes in, std::size_t& size);
  wire::socks5::Parsed handle_login(Bytes in, std::size_t& size);
  wire::socks5::Parsed handle_request(Bytes in, std::size_t& size);
  void refuse(wire::socks5::Reply reply);

  Step step_ = Step::kGreeting;
  ByteVector buffer_;  // the current message as far as it came
};

class HttpProxyMachine : public ProxyHandshake {
 public:
  explicit HttpProxyMachine(const ProxyConfig& config);
  // Refuses at once what cannot be HTTP.
  void check_first_byte(std::uint8_t c);
  std::size_t consume(Bytes in);
  void connected(const Endpoint& local);
  void failed(ConnectFailure failure, std::string_view sentence);
  void timed_out();

 private:
  void handle_head();
  void handle_connect();
  void handle_plain();
  bool authorized() const;
  void refuse(int status, std::string_view reason, std::string_view sentence, std::span<const wire::HttpHeader> headers = {});

  wire::HttpHeadParser head_;
  bool tunnel_ = false;  // CONNECT: the client waits for a 200
  ByteVector raw_;  // kept only while it may have to be handed over
};

class ProxyMachine {
 public:
  ProxyMachine(Instant now, const ProxyConfig& config) : config_(config), deadline_(now + kHandshakeTime) {}

  // Returns how many bytes it took; what is left belongs to the tunnel (or to nobody, when closing).
  std::size_t consume(Bytes in);
  std::size_t produce(MutBytes out);
  bool has_output() const;
  std::optional<ProxyEvent> poll_event();
  ProxyState state() const;

  // Answers to Connect and Associate. `local`: our own end of the connection into the tailnet; or where we take datagrams.
  void connected(const Endpoint& local);
  // `sentence` is shown to HTTP clients; it must not hold a secret.
  void failed(ConnectFailure failure, std::string_view sentence);

  void handle_timeout(Instant now);
  Deadline next_timeout() const;

 private:
  const ProxyHandshake* handshake() const;
  ProxyHandshake* handshake();

  ProxyConfig config_;
  Instant deadline_;
  bool gave_up_ = false;
  std::variant<std::monostate, Socks5Machine, HttpProxyMachine> machine_;
};

}  // namespace porthole::proxy
