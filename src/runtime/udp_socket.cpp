#include "runtime/udp_socket.h"

#include <netinet/udp.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <cerrno>
#include <cstring>

#include "runtime/sockaddr.h"

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif

namespace porthole::runtime {
namespace {
constexpr std::size_t kReadSlots = 4;
constexpr std::size_t kSlotBytes = 65536;
constexpr std::size_t kSegmentsMax = 64;   // what every kernel with UDP_SEGMENT accepts
// Reads of one wake-up before acknowledgements leave and other descriptors get their turn: 2 x 4 x 64 KiB at most.
constexpr int kReadsPerTurn = 2;
}  // namespace

struct UdpSocket::ReceiveBuffers {
  std::uint8_t data[kReadSlots][kSlotBytes];
};

std::shared_ptr<UdpSocket::ReceiveBuffers> UdpSocket::make_buffers() {
  // Uninitialised on purpose: untouched pages stay unmapped.
  return std::shared_ptr<ReceiveBuffers>(new ReceiveBuffers);
}

UdpSocket::UdpSocket(EventLoop& loop, UniqueFd fd, bool v6, std::shared_ptr<ReceiveBuffers> buffers, Receiver& receiver,
                     std::function<void(const Endpoint&, SendError)> on_send_error)
    : loop_(loop), fd_(std::move(fd)), v6_(v6), buffers_(std::move(buffers)), receiver_(receiver),
      on_send_error_(std::move(on_send_error)) {
  batch_.reserve(kReadSlots * kSegmentsMax);
}

UdpSocket::~UdpSocket() {
  if (token_) loop_.remove(token_);
}

Result<std::unique_ptr<UdpSocket>> UdpSocket::open(EventLoop& loop, bool v6, std::uint16_t port, const Options& options,
                                                   std::shared_ptr<ReceiveBuffers> buffers, Receiver& receiver,
                                                   std::function<void(const Endpoint&, SendError)> on_send_error) {
  int family = v6 ? AF_INET6 : AF_INET;
  UniqueFd fd(::socket(family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  std::string what = std::string("cannot open a UDP socket for ") + (v6 ? "IPv6" : "IPv4");
  if (!fd) return errno_error(what, errno);
  int one = 1;
  if (v6) ::setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one);
  for (auto [force, plain] : {std::pair(SO_RCVBUFFORCE, SO_RCVBUF), std::pair(SO_SNDBUFFORCE, SO_SNDBUF)})
    if (::setsockopt(fd.get(), SOL_SOCKET, force, &options.buffer_bytes, sizeof(int)) != 0)
      ::setsockopt(fd.get(), SOL_SOCKET, plain, &options.buffer_bytes, sizeof(int));
  SockAddr any = to_sockaddr({v6 ? IpAddress::v6_bytes(std::array<std::uint8_t, 16>{}.data()) : IpAddress::v4(0), port});
  if (::bind(fd.get(), any.get(), any.size) != 0)
    return errno_error("cannot listen on UDP port " + std::to_string(port) + (v6 ? " (IPv6)" : " (IPv4)"), errno);

  std::unique_ptr<UdpSocket> s(new UdpSocket(loop, std::move(fd), v6, std::move(buffers), receiver, std::move(on_send_error)));
  s->port_ = local_endpoint(s->fd_.get()).port;
#ifndef PORTHOLE_PORTABLE_IO
  if (options.offload) {
    int size = 0;
    socklen_t length = sizeof size;
    s->gso_ = ::getsockopt(s->fd_.get(), IPPROTO_UDP, UDP_SEGMENT, &size, &length) == 0;
    s->gro_ = ::setsockopt(s->fd_.get(), IPPROTO_UDP, UDP_GRO, &one, sizeof one) == 0;
  }
#endif
  s->token_ = loop.add(s->fd_.get(), *s, true, false);
  return s;
}

void UdpSocket::on_ready(bool, bool, bool) {
  for (int turn = 0; turn < kReadsPerTurn; ++turn) {
    mmsghdr messages[kReadSlots];
    iovec iov[kReadSlots];
    sockaddr_storage names[kReadSlots];
    alignas(cmsghdr) char control[kReadSlots][CMSG_SPACE(sizeof(int))];
    std::memset(messages, 0, sizeof messages);
    for (std::size_t i = 0; i < kReadSlots; ++i) {
      iov[i] = {buffers_->data[i], kSlotBytes};
      messages[i].msg_hdr.msg_name = &names[i];
      messages[i].msg_hdr.msg_namelen = sizeof names[i];
      messages[i].msg_hdr.msg_iov = &iov[i];
      messages[i].msg_hdr.msg_iovlen = 1;
      messages[i].msg_hdr.msg_control = control[i];
      messages[i].msg_hdr.msg_controllen = sizeof control[i];
    }
    int n = ::recvmmsg(fd_.get(), messages, kReadSlots, MSG_DONTWAIT, nullptr);
    if (n <= 0) {
      if (n < 0 && errno != EAGAIN && errno != EINTR) {
        // A pending ICMP error of an earlier send: the next read clears it.
        ++counters_.send_errors;
        continue;
      }
      return;
    }
    ++counters_.reads;
    batch_.clear();
    for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) {
      msghdr& h = messages[i].msg_hdr;
      std::size_t length = messages[i].msg_len;
      std::size_t segment = length;
      for (cmsghdr* c = CMSG_FIRSTHDR(&h); c; c = CMSG_NXTHDR(&h, c)) {
        if (c->cmsg_level != IPPROTO_UDP || c->cmsg_type != UDP_GRO) continue;
        int size;  // the kernel writes an int
        std::memcpy(&size, CMSG_DATA(c), sizeof size);
        if (size > 0) segment = static_cast<std::size_t>(size);
      }
      if (h.msg_flags & MSG_TRUNC || length == 0) continue;
      Endpoint source = from_sockaddr(names[i]);
      for (std::size_t at = 0; at < length; at += segment) {
        std::size_t size = length - at < segment ? length - at : segment;
        batch_.push_back({source, MutBytes(buffers_->data[i] + at, size)});
      }
    }
    counters_.datagrams_in += batch_.size();
    if (!batch_.empty()) receiver_.datagrams_received(batch_);
    if (static_cast<std::size_t>(n) < kReadSlots) return;
  }
}

void UdpSocket::send(const Endpoint& destination, Bytes data, std::size_t segment_size) {
  if (data.empty() || destination.address.is_v6() != v6_) return;
  if (segment_size == 0 || segment_size > data.size()) segment_size = data.size();
  if (gso_ && segment_size < data.size() && send_segmented(destination, data, segment_size)) return;
  send_each(destination, data, segment_size);
}

// False: segmentation offload is not usable here after all, send singly.
bool UdpSocket::send_segmented(const Endpoint& destination, Bytes data, std::size_t segment_size) {
  SockAddr to = to_sockaddr(destination);
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(std::uint16_t))] = {};
  iovec iov{const_cast<std::uint8_t*>(data.data()), data.size()};
  msghdr h{};
  h.msg_name = to.get();
  h.msg_namelen = to.size;
  h.msg_iov = &iov;
  h.msg_iovlen = 1;
  h.msg_control = control;
  h.msg_controllen = sizeof control;
  cmsghdr* c = CMSG_FIRSTHDR(&h);
  c->cmsg_level = IPPROTO_UDP;
  c->cmsg_type = UDP_SEGMENT;
  c->cmsg_len = CMSG_LEN(sizeof(std::uint16_t));
  std::uint16_t size = static_cast<std::uint16_t>(segment_size);
  std::memcpy(CMSG_DATA(c), &size, sizeof size);
  std::size_t count = (data.size() + segment_size - 1) / segment_size;
  for (;;) {
    if (::sendmsg(fd_.get(), &h, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) {
      ++counters_.writes;
      counters_.datagrams_out += count;
      return true;
    }
    if (errno == EINTR) continue;
    break;
  }
  if (errno == EAGAIN || errno == ENOBUFS) {
    counters_.dropped_out += count;
    return true;
  }
  if (errno == EIO || errno == EINVAL || errno == EMSGSIZE) {
    // Device without checksum offload (EIO), or a kernel that refuses this size: never again on this socket.
    gso_ = false;
    return false;
  }
  report(destination, errno);
  return true;
}

void UdpSocket::send_each(const Endpoint& destination, Bytes data, std::size_t segment_size) {
  SockAddr to = to_sockaddr(destination);
  mmsghdr messages[kSegmentsMax];
  iovec iov[kSegmentsMax];
  while (!data.empty()) {
    unsigned count = 0;
    for (; count < kSegmentsMax && !data.empty(); ++count) {
      std::size_t size = data.size() < segment_size ? data.size() : segment_size;
      iov[count] = {const_cast<std::uint8_t*>(data.data()), size};
      messages[count] = {};
      messages[count].msg_hdr.msg_name = to.get();
      messages[count].msg_hdr.msg_namelen = to.size;
      messages[count].msg_hdr.msg_iov = &iov[count];
      messages[count].msg_hdr.msg_iovlen = 1;
      data = data.subspan(size);
    }
    for (unsigned done = 0; done < count;) {
      int n = ::sendmmsg(fd_.get(), messages + done, count - done, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (n > 0) {
        ++counters_.writes;
        counters_.datagrams_out += static_cast<unsigned>(n);
        done += static_cast<unsigned>(n);
        continue;
      }
      if (errno == EINTR) continue;
      if (errno == EAGAIN || errno == ENOBUFS)
        counters_.dropped_out += count - done;
      else
        report(destination, errno);
      return;
    }
  }
}

void UdpSocket::report(const Endpoint& destination, int error_number) {
  ++counters_.send_errors;
  if (!on_send_error_) return;
  switch (error_number) {
    case EHOSTUNREACH:
    case ENETUNREACH: on_send_error_(destination, SendError::kUnreachable); break;
    case EPIPE:
    case ENOTCONN:
    case EBADF: on_send_error_(destination, SendError::kRebind); break;
    default: on_send_error_(destination, SendError::kOther); break;
  }
}

}  // namespace porthole::runtime
