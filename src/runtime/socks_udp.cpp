#include "runtime/socks_udp.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "runtime/limits.h"
#include "runtime/sockaddr.h"

namespace porthole::runtime {

Result<std::unique_ptr<SocksUdp>> SocksUdp::open(EventLoop& loop, netstack::Stack& stack, const IpAddress& local, const IpAddress& client,
                                                 Hooks hooks, MutBytes scratch, const Instant& now, proxy::AssociationCounters& counters) {
  UniqueFd fd(::socket(local.is_v6() ? AF_INET6 : AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  SockAddr at = to_sockaddr({local, 0});
  if (!fd || ::bind(fd.get(), at.get(), at.size) != 0) return errno_error("cannot open a UDP socket on " + local.to_string(), errno);
  return std::unique_ptr<SocksUdp>(new SocksUdp(loop, stack, std::move(fd), client, std::move(hooks), scratch, now, counters));
}

SocksUdp::SocksUdp(EventLoop& loop, netstack::Stack& stack, UniqueFd fd, const IpAddress& client, Hooks hooks, MutBytes scratch,
                   const Instant& now, proxy::AssociationCounters& counters)
    : loop_(loop), stack_(stack), fd_(std::move(fd)), hooks_(std::move(hooks)), scratch_(scratch), now_(now),
      association_(client, *this, counters), token_(loop_.add(fd_.get(), *this, true, false)) {}

SocksUdp::~SocksUdp() {
  association_.close();
  loop_.remove(token_);
}

Endpoint SocksUdp::local() const { return local_endpoint(fd_.get()); }

void SocksUdp::on_ready(bool, bool, bool) {
  for (int i = 0; i < kUdpReadsPerTurn; ++i) {
    SockAddr from;
    from.size = sizeof from.storage;
    ssize_t n = ::recvfrom(fd_.get(), scratch_.data(), scratch_.size(), MSG_DONTWAIT, from.get(), &from.size);
    if (n < 0 && errno == EAGAIN) return;
    if (n < 0) continue;
    association_.handle_client(now_, from_sockaddr(from.storage), Bytes(scratch_).first(static_cast<std::size_t>(n)));
  }
}

void SocksUdp::handle_event(const netstack::SocketEvent& event) {
  // RFC 1928 has no way to tell a program about errors (kSoftError); and nothing waits for kWritable.
  if (event.kind != netstack::SocketEventKind::kReadable) return;
  while (auto info = stack_.udp_receive(event.id, scratch_))
    association_.handle_target(now_, event.id, info->source, Bytes(scratch_).first(std::min(info->size, scratch_.size())));
}

Result<Endpoint> SocksUdp::locate(const wire::socks5::Host& host, std::uint16_t port) {
  const auto* literal = std::get_if<IpAddress>(&host);
  auto address = hooks_.find(literal ? literal->to_string() : std::string(std::get<std::string_view>(host)));
  if (!address) return address.error();
  return Endpoint{*address, port};
}

Result<proxy::FlowId> SocksUdp::open_flow() {
  auto socket = stack_.udp_bind(std::nullopt, 0);
  if (socket) hooks_.opened(*socket);
  return socket;
}

void SocksUdp::close_flow(proxy::FlowId flow) {
  hooks_.closed(flow);
  stack_.udp_close(flow);
}

Status SocksUdp::send_to_target(proxy::FlowId flow, const Endpoint& to, Bytes data) { return stack_.udp_send(now_, flow, to, data); }

bool SocksUdp::send_to_client(const Endpoint& client, Bytes head, Bytes data) {
  SockAddr to = to_sockaddr(client);
  iovec parts[2] = {{const_cast<std::uint8_t*>(head.data()), head.size()}, {const_cast<std::uint8_t*>(data.data()), data.size()}};
  msghdr message{};
  message.msg_name = to.get();
  message.msg_namelen = to.size;
  message.msg_iov = parts;
  message.msg_iovlen = 2;
  ssize_t n;
  do n = ::sendmsg(fd_.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  while (n < 0 && errno == EINTR);
  return n >= 0;
}

}  // namespace porthole::runtime
