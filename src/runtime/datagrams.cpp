#include "runtime/datagrams.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <chrono>

#include "runtime/sockaddr.h"

namespace porthole::runtime {

Result<std::pair<UniqueFd, UniqueFd>> datagram_pair() {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) != 0) return errno_error("cannot make a local socket", errno);
  UniqueFd ours(fds[0]), app(fds[1]);
  // 0, 1 and 2 mean other things to programs.
  if (app.get() < 3) app.reset(::fcntl(app.get(), F_DUPFD_CLOEXEC, 3));
  if (!app || ::fcntl(ours.get(), F_SETFL, O_NONBLOCK) != 0) return errno_error("cannot make a local socket", errno);
  ::setsockopt(ours.get(), SOL_SOCKET, SO_SNDBUF, &kUdpLocalBuffer, sizeof kUdpLocalBuffer);
  return std::pair(std::move(ours), std::move(app));
}

void write_packet_head(const Endpoint& peer, std::uint8_t* head) {
  std::fill_n(head, kPacketHead, std::uint8_t{0});
  head[0] = peer.address.is_v4() ? 4 : 6;
  store_be(head + 2, peer.port);
  Bytes address = peer.address.bytes();
  std::copy(address.begin(), address.end(), head + 4);
}

std::optional<Endpoint> parse_packet_head(Bytes message) {
  if (message.size() < kPacketHead) return std::nullopt;
  const std::uint8_t* head = message.data();
  Endpoint out;
  if (head[0] == 4) out.address = IpAddress::v4_bytes(head + 4);
  else if (head[0] == 6) out.address = IpAddress::v6_bytes(head + 4);
  out.port = load_be<std::uint16_t>(head + 2);
  if (!out.is_valid()) return std::nullopt;
  return out;
}

Result<ReceivedPacket> receive_packet(int fd, int timeout_ms, MutBytes buffer) {
  auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
  for (;;) {
    std::uint8_t head[kPacketHead];
    iovec parts[2] = {{head, sizeof head}, {buffer.data(), buffer.size()}};
    msghdr message{};
    message.msg_iov = parts;
    message.msg_iovlen = 2;
    ssize_t n = ::recvmsg(fd, &message, MSG_DONTWAIT);
    if (n == 0) return Error{ErrorCode::kCancelled, "the node was closed"};
    if (n > 0) {
      auto peer = parse_packet_head(Bytes(head).first(std::min(static_cast<std::size_t>(n), sizeof head)));
      if (!peer) return Error{ErrorCode::kInvalid, "this descriptor is not one of porthole_listen_packet"};
      return ReceivedPacket{*peer, static_cast<std::size_t>(n) - sizeof head};
    }
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return errno_error("cannot receive datagrams", errno);
    int wait = -1;
    if (timeout_ms >= 0) {
      auto left = std::chrono::ceil<std::chrono::milliseconds>(end - std::chrono::steady_clock::now());
      if (left.count() <= 0) return Error{ErrorCode::kTimeout, "no datagram within " + std::to_string(timeout_ms) + " ms"};
      wait = static_cast<int>(left.count());
    }
    pollfd p{fd, POLLIN, 0};
    ::poll(&p, 1, wait);
  }
}

Status send_packet(int fd, const Endpoint& peer, Bytes data) {
  std::size_t most = peer.address.is_v4() ? kDatagramMaxV4 : kDatagramMaxV6;
  if (data.size() > most)
    return Error{ErrorCode::kLimit, "a datagram of " + std::to_string(data.size()) + " bytes is too long: at most " + std::to_string(most) + " fit"};
  std::uint8_t head[kPacketHead];
  write_packet_head(peer, head);
  iovec parts[2] = {{head, sizeof head}, {const_cast<std::uint8_t*>(data.data()), data.size()}};
  msghdr message{};
  message.msg_iov = parts;
  message.msg_iovlen = 2;
  for (;;) {
    if (::sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) return {};
    if (errno == EINTR) continue;
    if (errno == EAGAIN) return Error{ErrorCode::kUnavailable, "the way out is full for the moment"};
    if (errno == EPIPE || errno == ECONNRESET) return Error{ErrorCode::kCancelled, "the node was closed"};
    return errno_error("cannot send a datagram", errno);
  }
}

// ---- the app's sockets

AppDatagrams::AppDatagrams(EventLoop& loop, netstack::Stack& stack, netstack::SocketId socket, UniqueFd fd,
                           std::optional<Endpoint> remote, MutBytes scratch, const Instant& now, DatagramCounters& counters,
                           std::function<void()> done)
    : loop_(loop), stack_(stack), socket_(socket), fd_(std::move(fd)), remote_(remote), scratch_(scratch), now_(now),
      counters_(counters), done_(std::move(done)) {
  token_ = loop_.add(fd_.get(), *this, true, false);
}

AppDatagrams::~AppDatagrams() {
  if (token_) loop_.remove(token_);
}

void AppDatagrams::handle_event(const netstack::SocketEvent& event) {
  if (finished_) return;
  if (event.kind == netstack::SocketEventKind::kReadable) pump_out();
  if (event.kind == netstack::SocketEventKind::kWritable) pump_in(kUdpReadsPerTurn);
  if (!finished_) update();
}

void AppDatagrams::on_ready(bool readable, bool writable, bool hangup) {
  if (finished_) return;
  if (writable) pump_out();
  if (!finished_ && readable) pump_in(hangup ? kUdpReadsAtEnd : kUdpReadsPerTurn);
  // A hang-up cannot be masked, so this ends here, even with something held.
  if (!finished_ && hangup) return finish();
  if (!finished_) update();
}

void AppDatagrams::handle_timeout() {
  if (finished_ || give_up_ > now_) return;
  ++counters_.way_full;
  held_in_.reset();
  give_up_ = Instant::max();
  pump_in(kUdpReadsPerTurn);
  if (!finished_) update();
}

void AppDatagrams::pump_in(int reads) {
  if (held_in_) {
    if (send(*held_in_) == Sent::kWait) return;
    held_in_.reset();
    give_up_ = Instant::max();
  }
  for (int i = 0; i < reads && !local_eof_; ++i) {
    ssize_t n = ::recv(fd_.get(), scratch_.data(), scratch_.size(), MSG_DONTWAIT | MSG_TRUNC);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return;
    if (n < 0) return finish();
    if (n == 0) {
      pollfd p{fd_.get(), POLLRDHUP, 0};
      if (::poll(&p, 1, 0) == 1) {
        local_eof_ = true;
        return;
      }
    }
    std::size_t size = static_cast<std::size_t>(n);
    if (size > scratch_.size()) {
      ++counters_.too_long;
      continue;
    }
    Bytes message = Bytes(scratch_).first(size);
    if (send(message) == Sent::kWait) {
      held_in_ = to_vector(message);
      give_up_ = now_ + kUdpSendPatience;
      return;
    }
  }
}

AppDatagrams::Sent AppDatagrams::send(Bytes message) {
  Endpoint to;
  if (remote_) {
    to = *remote_;
  } else if (auto peer = parse_packet_head(message)) {
    to = *peer;
    message = message.subspan(kPacketHead);
  } else {
    ++counters_.bad_head;
    return Sent::kDropped;
  }
  Status s = stack_.udp_send(now_, socket_, to, message);
  if (s) {
    ++counters_.from_app;
    return Sent::kYes;
  }
  if (s.error().code == ErrorCode::kUnavailable) return Sent::kWait;
  ++(s.error().code == ErrorCode::kLimit ? counters_.too_long : counters_.bad_head);
  return Sent::kDropped;
}

void AppDatagrams::pump_out() {
  std::size_t head = remote_ ? 0 : kPacketHead;
  for (;;) {
    if (!held_out_) {
      auto info = stack_.udp_receive(socket_, scratch_.subspan(head));
      if (!info) return;
      if (remote_ && info->source != *remote_) {
        ++counters_.other_source;
        continue;
      }
      if (remote_ && info->size == 0) {
        ++counters_.empty;
        continue;
      }
      if (!remote_) write_packet_head(info->source, scratch_.data());
      Bytes message = Bytes(scratch_).first(head + std::min(info->size, scratch_.size() - head));
      ssize_t n = ::send(fd_.get(), message.data(), message.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
      if (n >= 0) {
        ++counters_.to_app;
        continue;
      }
      if (errno != EAGAIN && errno != EINTR) return finish();
      held_out_ = to_vector(message);
      return;
    }
    ssize_t n = ::send(fd_.get(), held_out_->data(), held_out_->size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n < 0) return finish();
    ++counters_.to_app;
    held_out_.reset();
  }
}

void AppDatagrams::update() { loop_.change(token_, !local_eof_ && !held_in_, held_out_.has_value()); }

void AppDatagrams::finish() {
  if (finished_) return;
  finished_ = true;
  give_up_ = Instant::max();
  stack_.udp_close(socket_);
  loop_.remove(token_);
  token_ = 0;
  fd_.reset();
  done_();
}

// ---- exposed services

class UdpForwarder::Source final : public FdHandler {
 public:
  Source(UdpForwarder& forwarder, const Endpoint& source, const IpAddress& own, UniqueFd fd)
      : forwarder_(forwarder), source_(source), own_(own), fd_(std::move(fd)), port_(local_endpoint(fd_.get()).port) {
    token_ = forwarder_.loop_.add(fd_.get(), *this, true, false);
  }
  ~Source() override { forwarder_.loop_.remove(token_); }

  void to_service(Bytes datagram) {
    // An ICMP error about an earlier one is told to the next call, which then has not sent.
    for (int tries = 0; tries < 2; ++tries) {
      if (::send(fd_.get(), datagram.data(), datagram.size(), MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) {
        ++forwarder_.counters_.to_app;
        return;
      }
      if (errno != ECONNREFUSED && errno != EINTR) break;
    }
    ++forwarder_.counters_.local_failed;
  }

  void on_ready(bool, bool, bool) override {
    UdpForwarder& f = forwarder_;
    for (int i = 0; i < kUdpReadsPerTurn; ++i) {
      ssize_t n = ::recv(fd_.get(), f.scratch_.data(), f.scratch_.size(), MSG_DONTWAIT | MSG_TRUNC);
      if (n < 0 && errno == EAGAIN) break;
      if (n < 0) continue;  // an ICMP error; reading it clears it
      std::size_t size = static_cast<std::size_t>(n);
      Status s = size > f.scratch_.size() ? Status(Error{ErrorCode::kLimit, ""})
                                          : f.stack_.udp_send_from(f.now_, f.socket_, own_, source_, Bytes(f.scratch_).first(size));
      if (s) ++f.counters_.from_app;
      else ++(s.error().code == ErrorCode::kLimit ? f.counters_.too_long : f.counters_.way_full);
      f.touch(f.by_source_.find(source_)->second);
    }
  }

  const Endpoint& source() const { return source_; }
  std::uint16_t port() const { return port_; }
  Instant used;

 private:
  UdpForwarder& forwarder_;
  Endpoint source_;
  IpAddress own_;
  UniqueFd fd_;
  std::uint16_t port_;
  EventLoop::Token token_ = 0;
};

UdpForwarder::UdpForwarder(EventLoop& loop, netstack::Stack& stack, netstack::SocketId socket, const Endpoint& service,
                           int sources_max, MutBytes scratch, const Instant& now, DatagramCounters& counters)
    : loop_(loop), stack_(stack), socket_(socket), service_(service), sources_max_(static_cast<std::size_t>(sources_max)),
      per_peer_max_(std::max<std::size_t>(1, sources_max_ / kUdpSourcesPeerShare)), scratch_(scratch), now_(now),
      counters_(counters) {}

UdpForwarder::~UdpForwarder() = default;

void UdpForwarder::handle_event(const netstack::SocketEvent& event) {
  if (event.kind != netstack::SocketEventKind::kReadable) return;
  while (auto info = stack_.udp_receive(socket_, scratch_)) {
    Source* source = find_or_make(info->source, info->destination);
    if (source) source->to_service(Bytes(scratch_).first(std::min(info->size, scratch_.size())));
    else ++counters_.local_failed;
  }
}

UdpForwarder::Source* UdpForwarder::find_or_make(const Endpoint& source, const IpAddress& own) {
  if (auto known = by_source_.find(source); known != by_source_.end()) {
    touch(known->second);
    return &*known->second;
  }
  if (auto held = per_peer_.find(source.address); held != per_peer_.end() && held->second >= per_peer_max_)
    forget(std::find_if(sources_.begin(), sources_.end(), [&](const Source& s) { return s.source().address == source.address; }));
  else if (sources_.size() >= sources_max_)
    forget(sources_.begin());
  auto open = [&] { return UniqueFd(::socket(service_.address.is_v6() ? AF_INET6 : AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)); };
  UniqueFd fd = open();
  if (!fd && errno == EMFILE && !sources_.empty()) {
    forget(sources_.begin());
    fd = open();
  }
  SockAddr to = to_sockaddr(service_);
  if (!fd || ::connect(fd.get(), to.get(), to.size) != 0) return nullptr;
  sources_.emplace_back(*this, source, own, std::move(fd));
  auto made = std::prev(sources_.end());
  made->used = now_;
  by_source_[source] = made;
  ++per_peer_[source.address];
  return &*made;
}

void UdpForwarder::forget(Sources::iterator s) {
  by_source_.erase(s->source());
  auto held = per_peer_.find(s->source().address);
  if (--held->second == 0) per_peer_.erase(held);
  sources_.erase(s);
}

void UdpForwarder::touch(Sources::iterator s) {
  s->used = now_;
  sources_.splice(sources_.end(), sources_, s);
}

Instant UdpForwarder::next_timeout() const { return sources_.empty() ? Instant::max() : sources_.front().used + kUdpSourceIdle; }

void UdpForwarder::handle_timeout() {
  while (!sources_.empty() && sources_.front().used + kUdpSourceIdle <= now_) forget(sources_.begin());
}

std::optional<Endpoint> UdpForwarder::source_of(std::uint16_t local_port) const {
  for (const Source& s : sources_)
    if (s.port() == local_port) return s.source();
  return std::nullopt;
}

}  // namespace porthole::runtime
