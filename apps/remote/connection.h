// One accepted connection: HTTP requests first, then perhaps a control session or a relay stream until its end.
#pragma once

#include <variant>

#include "base/out_bytes.h"
#include "remote/limits.h"
#include "remote/server.h"
#include "wire/http.h"

namespace porthole::remote {

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(Server& server, boost::asio::ip::tcp::socket socket, const Endpoint& remote);

  void start();
  void close();
  // A machine has output for this connection.
  void pump();
  // A stalled request, or a goodbye that the other side does not take.
  bool timed_out(Instant now) const {
    return (phase_ == Phase::kHttp || phase_ == Phase::kClosing || ending_) && !asking_ && now > deadline_;
  }
  const Endpoint& remote() const { return remote_; }
  coordinator::SessionId session() const { return session_; }
  relay::ConnId relay_id() const { return relay_id_; }

 private:
  enum class Phase { kHttp, kControl, kRelay, kClosing, kClosed };
  using Tcp = boost::asio::ip::tcp::socket;
  using Tls = boost::asio::ssl::stream<Tcp>;

  Tcp& socket();
  void refuse_handshake(const boost::system::error_code& e);
  void read();
  // The client does not take its answers: its next request waits.
  bool full() const { return phase_ == Phase::kHttp && pending_.size() > kHttpPendingMax; }
  // After what a request had to wait for: those that were read already, then more.
  void go_on();
  void handle_bytes(MutBytes bytes);
  // One request is complete; `rest` are the bytes behind it.
  void handle_request(MutBytes rest);
  void answer(int status, std::string_view content_type, std::string_view body,
              std::span<const std::pair<std::string, std::string>> headers = {});
  void answer_text(int status, std::string_view text);
  void answer_page(int status, std::string_view title, std::string_view body);
  void ask_api(const ApiRequest& request);
  void next_request();
  void upgrade_control(std::string_view handshake, MutBytes rest);
  void write();
  void linger();
  void drop_rest();
  std::size_t fill(MutBytes out);

  Server& server_;
  std::variant<Tcp, Tls> stream_;
  Endpoint remote_;
  IpAddress client_;  // behind a reverse proxy on this machine: who it says
  Phase phase_ = Phase::kHttp;
  Instant deadline_;
  wire::HttpMessageParser parser_;
  ByteVector in_;
  OutBytes pending_;            // HTTP answers and upgrade heads; goes out before a machine's bytes
  ByteVector out_;              // being written
  bool writing_ = false;
  bool reading_ = false;
  bool close_when_sent_ = false;
  bool ending_ = false;         // TLS's goodbye is under way, or what comes behind it is dropped
  std::size_t lingered_ = 0;    // bytes dropped
  bool in_request_ = false;
  bool asking_ = false;         // the enrolment API has not answered yet
  ByteVector behind_;           // read behind a request that is not over, at most one read
  coordinator::SessionId session_ = 0;
  relay::ConnId relay_id_ = 0;
};

}  // namespace porthole::remote
