// Joins one TCP connection of the netstack with one socket of this host, both ways: half-close survives, backpressure
// works in both directions, a reset is passed on as a reset.
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "netstack/stack.h"
#include "proxy/response_head.h"
#include "runtime/event_loop.h"

namespace porthole::runtime {

class Splice final : public FdHandler {
 public:
  // `scratch`: 64 KiB shared by all splices of the loop. `done` is called once, when both sides are finished; the owner
  // destroys the splice some time after. `clock` gives the time of the current turn.
  Splice(EventLoop&, netstack::Stack&, netstack::SocketId, UniqueFd, MutBytes scratch, const Instant& clock,
         std::function<void()> done);
  ~Splice() override;

  netstack::SocketId socket() const { return socket_; }
  int fd() const { return fd_.get(); }

  // Local bytes that were read before the splice took over (a proxy's leftover).
  void send_first(Bytes bytes);
  // What the peer sends first is the head of an HTTP answer. Before any event.
  void expect_response_head() { head_.emplace(); }
  void handle_event(const netstack::SocketEvent& event);
  void on_ready(bool readable, bool writable, bool hangup) override;
  // Resets both sides.
  void abort();

 private:
  void pump_in();   // local -> tailnet
  void pump_out();  // tailnet -> local
  // False while the head of an answer is on its way.
  bool pump_head();
  void update();
  void finish();
  void break_both();

  EventLoop& loop_;
  netstack::Stack& stack_;
  netstack::SocketId socket_;
  UniqueFd fd_;
  EventLoop::Token token_ = 0;
  MutBytes scratch_;
  const Instant& now_;
  std::function<void()> done_;
  std::optional<proxy::ResponseHead> head_;
  ByteVector first_;          // not yet taken by the stack
  bool local_eof_ = false;    // the app will send no more
  bool fin_sent_ = false;
  bool peer_eof_ = false;     // the peer will send no more and everything was delivered
  bool local_full_ = false;   // the local socket's buffer is full
  bool stack_full_ = false;   // the connection's send buffer is full
  bool hung_up_ = false;      // the app is gone; what it sent before may still wait in the local socket
  bool finished_ = false;
};

}  // namespace porthole::runtime
