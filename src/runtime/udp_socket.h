// The node's UDP sockets: one per family on the same port, batches in both directions, UDP_SEGMENT / UDP_GRO where the
// kernel has them and a portable path where not.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/datagram.h"
#include "base/result.h"
#include "runtime/event_loop.h"

namespace porthole::runtime {

struct UdpCounters {
  std::uint64_t datagrams_in = 0;
  std::uint64_t datagrams_out = 0;
  std::uint64_t reads = 0;          // system calls that returned data
  std::uint64_t writes = 0;
  std::uint64_t dropped_out = 0;    // socket buffer full
  std::uint64_t send_errors = 0;
};

class UdpSocket final : public FdHandler {
 public:
  struct Options {
    bool offload = true;      // try UDP_SEGMENT and UDP_GRO
    int buffer_bytes = 7 << 20;  // asked for in both directions; the kernel caps it
  };
  class Receiver {
   public:
    virtual ~Receiver() = default;
    virtual void datagrams_received(std::span<const RecvDatagram> batch) = 0;
  };
  enum class SendError { kUnreachable, kRebind, kOther };

  // Shared by the sockets of one thread: 4 x 64 KiB, because one GRO read fills up to 64 KiB.
  struct ReceiveBuffers;
  static std::shared_ptr<ReceiveBuffers> make_buffers();

  // Binds to `port` (0: any) on all addresses of the family; IPv6 sockets are V6ONLY.
  static Result<std::unique_ptr<UdpSocket>> open(EventLoop&, bool v6, std::uint16_t port, const Options&,
                                                 std::shared_ptr<ReceiveBuffers>, Receiver&,
                                                 std::function<void(const Endpoint&, SendError)> on_send_error);
  ~UdpSocket() override;

  std::uint16_t port() const { return port_; }
  bool uses_segment_offload() const { return gso_; }
  // See DatagramSink::send_udp. Never blocks; what does not fit into the socket buffer is dropped and counted.
  void send(const Endpoint& destination, Bytes data, std::size_t segment_size);
  const UdpCounters& counters() const { return counters_; }

  void on_ready(bool readable, bool writable, bool hangup) override;

 private:
  UdpSocket(EventLoop&, UniqueFd, bool v6, std::shared_ptr<ReceiveBuffers>, Receiver&,
            std::function<void(const Endpoint&, SendError)>);
  bool send_segmented(const Endpoint&, Bytes, std::size_t segment_size);
  void send_each(const Endpoint&, Bytes, std::size_t segment_size);
  void report(const Endpoint&, int error_number);

  EventLoop& loop_;
  UniqueFd fd_;
  EventLoop::Token token_ = 0;
  bool v6_;
  std::uint16_t port_ = 0;
  bool gso_ = false;
  bool gro_ = false;
  std::shared_ptr<ReceiveBuffers> buffers_;
  Receiver& receiver_;
  std::function<void(const Endpoint&, SendError)> on_send_error_;
  std::vector<RecvDatagram> batch_;
  UdpCounters counters_;
};

}  // namespace porthole::runtime
