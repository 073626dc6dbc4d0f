// A UDP association of the loopback proxy (proxy/udp_association.h) on its sockets: one of this host for the program, and
// one of the netstack's for each flow. Nothing waits: what finds its way full is dropped and counted.
//
// All on the loop's thread. `scratch` (64 KiB, so the longest datagram fits) is shared, `now` is the time of the current
// turn. It ends with this object.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/ip.h"
#include "netstack/stack.h"
#include "proxy/udp_association.h"
#include "runtime/event_loop.h"

namespace porthole::runtime {

class SocksUdp final : private FdHandler, private proxy::UdpHost {
 public:
  struct Hooks {
    // The address that a dial to this name or address would take.
    std::function<Result<IpAddress>(const std::string& host)> find;
    // Between these two, handle_event() gets the events of this socket.
    std::function<void(netstack::SocketId)> opened, closed;
  };
  // `local`, `client`: the ends of the connection that asks for the association. The port is any free one of `local`.
  static Result<std::unique_ptr<SocksUdp>> open(EventLoop&, netstack::Stack&, const IpAddress& local, const IpAddress& client, Hooks,
                                                MutBytes scratch, const Instant& now, proxy::AssociationCounters&);
  ~SocksUdp() override;

  // Where the program's datagrams go.
  Endpoint local() const;

  void handle_event(const netstack::SocketEvent& event);
  Deadline next_timeout() const { return association_.next_timeout(); }
  void handle_timeout() { association_.handle_timeout(now_); }

 private:
  SocksUdp(EventLoop&, netstack::Stack&, UniqueFd, const IpAddress& client, Hooks, MutBytes scratch, const Instant& now,
           proxy::AssociationCounters&);

  void on_ready(bool readable, bool writable, bool hangup) override;

  Result<Endpoint> locate(const wire::socks5::Host& host, std::uint16_t port) override;
  Result<proxy::FlowId> open_flow() override;
  void close_flow(proxy::FlowId flow) override;
  Status send_to_target(proxy::FlowId flow, const Endpoint& to, Bytes data) override;
  bool send_to_client(const Endpoint& client, Bytes head, Bytes data) override;

  EventLoop& loop_;
  netstack::Stack& stack_;
  UniqueFd fd_;
  Hooks hooks_;
  MutBytes scratch_;
  const Instant& now_;
  proxy::UdpAssociation association_;  // a flow's id is its socket's
  EventLoop::Token token_;
};

}  // namespace porthole::runtime
