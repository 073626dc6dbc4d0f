#include "runtime/splice.h"

#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>

#include "runtime/local_socket.h"

namespace porthole::runtime {
namespace {
// Bytes moved per direction in one turn, so that one busy connection does not starve the others.
constexpr std::size_t kCreditPerTurn = 512 * 1024;
constexpr std::size_t kSpans = 64;
constexpr std::size_t kReadMin = 4096;
}  // namespace

Splice::Splice(EventLoop& loop, netstack::Stack& stack, netstack::SocketId socket, UniqueFd fd, MutBytes scratch,
               const Instant& clock, std::function<void()> done)
    : loop_(loop), stack_(stack), socket_(socket), fd_(std::move(fd)), scratch_(scratch), now_(clock), done_(std::move(done)) {
  token_ = loop_.add(fd_.get(), *this, true, false);
}

Splice::~Splice() {
  if (token_) loop_.remove(token_);
}

void Splice::send_first(Bytes bytes) {
  append(first_, bytes);
  pump_in();
  update();
}

void Splice::handle_event(const netstack::SocketEvent& event) {
  if (finished_) return;
  using Kind = netstack::SocketEventKind;
  switch (event.kind) {
    case Kind::kReadable:
    case Kind::kPeerClosed:
      pump_out();
      break;
    case Kind::kWritable:
      stack_full_ = false;
      pump_in();
      break;
    case Kind::kReset:
    case Kind::kConnectFailed:
      reset_on_close(fd_.get());
      return finish();
    case Kind::kClosed:
      pump_out();
      if (!finished_ && peer_eof_ && fin_sent_) return finish();
      break;
    default: break;
  }
  update();
}

void Splice::on_ready(bool readable, bool writable, bool hangup) {
  if (finished_) return;
  hung_up_ = hung_up_ || hangup;
  if (writable) {
    local_full_ = false;
    pump_out();
  }
  if (!finished_ && readable) pump_in();
  // The app is gone for good and nothing is left to read: what the peer still sends has no reader.
  if (!finished_ && hangup && local_eof_) {
    if (!peer_eof_) return break_both();
    if (fin_sent_) return finish();
  }
  if (!finished_) update();
}

void Splice::pump_in() {
  std::size_t credit = kCreditPerTurn;
  if (!first_.empty()) {
    std::size_t n = stack_.write(now_, socket_, first_);
    first_.erase(first_.begin(), first_.begin() + static_cast<std::ptrdiff_t>(n));
    if (!first_.empty()) {
      stack_full_ = true;
      return;
    }
  }
  while (!local_eof_ && credit > 0) {
    // A little beyond what the stack has room for: a write that is not taken whole is what asks for kWritable.
    std::size_t room = std::clamp(stack_.writable(socket_), kReadMin, scratch_.size());
    ssize_t n = ::recv(fd_.get(), scratch_.data(), room, MSG_DONTWAIT);
    if (n < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN) break;
      return break_both();
    }
    if (n == 0) {
      local_eof_ = true;
      break;
    }
    std::size_t got = static_cast<std::size_t>(n);
    std::size_t taken = stack_.write(now_, socket_, Bytes(scratch_).first(got));
    if (taken < got) {
      first_.assign(scratch_.begin() + static_cast<std::ptrdiff_t>(taken), scratch_.begin() + static_cast<std::ptrdiff_t>(got));
      stack_full_ = true;
      break;
    }
    credit -= std::min(credit, got);
  }
  if (local_eof_ && first_.empty() && !fin_sent_) {
    fin_sent_ = true;
    stack_.shutdown_write(now_, socket_);
  }
}

bool Splice::pump_head() {
  while (head_) {
    Bytes out = head_->output();
    if (!out.empty()) {
      ssize_t n = ::send(fd_.get(), out.data(), out.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && errno == EAGAIN) {
        local_full_ = true;
        return false;
      }
      if (n < 0) {
        break_both();
        return false;
      }
      head_->sent(static_cast<std::size_t>(n));
    } else if (head_->done()) {
      head_.reset();
    } else if (Bytes span; stack_.peek(socket_, {&span, 1}) > 0) {
      stack_.consume(now_, socket_, head_->consume(span));
    } else if (stack_.read_eof(socket_)) {
      head_->end();
    } else {
      return false;
    }
  }
  return true;
}

void Splice::pump_out() {
  if (head_ && (local_full_ || !pump_head())) return;
  std::size_t credit = kCreditPerTurn;
  while (!local_full_ && credit > 0) {
    Bytes spans[kSpans];
    std::size_t count = stack_.peek(socket_, spans);
    if (count == 0) break;
    iovec iov[kSpans];
    std::size_t total = 0;
    for (std::size_t i = 0; i < count; ++i) {
      iov[i] = {const_cast<std::uint8_t*>(spans[i].data()), spans[i].size()};
      total += spans[i].size();
    }
    msghdr h{};
    h.msg_iov = iov;
    h.msg_iovlen = count;
    ssize_t n = ::sendmsg(fd_.get(), &h, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN) {
        local_full_ = true;
        break;
      }
      return break_both();
    }
    stack_.consume(now_, socket_, static_cast<std::size_t>(n));
    credit -= std::min(credit, static_cast<std::size_t>(n));
    if (static_cast<std::size_t>(n) < total) local_full_ = true;
  }
  if (!peer_eof_ && stack_.read_eof(socket_)) {
    peer_eof_ = true;
    ::shutdown(fd_.get(), SHUT_WR);
    if (fin_sent_) finish();
  }
}

void Splice::update() {
  if (finished_) return;
  if (peer_eof_ && fin_sent_) return finish();
  if ((local_eof_ && peer_eof_) || (hung_up_ && stack_full_)) {
    // Only the stack has work left, or nothing can be read until kWritable. A hang-up cannot be masked: the loop would
    // wake for it again and again, so the descriptor leaves the loop.
    if (token_) loop_.remove(token_);
    token_ = 0;
    return;
  }
  bool more_out = !local_full_ && stack_.readable(socket_) > 0;
  bool want_read = !local_eof_ && !stack_full_, want_write = local_full_ || more_out;
  if (token_) loop_.change(token_, want_read, want_write);
  else token_ = loop_.add(fd_.get(), *this, want_read, want_write);
}

void Splice::break_both() {
  stack_.abort(now_, socket_);
  reset_on_close(fd_.get());
  finish();
}

void Splice::abort() {
  if (!finished_) break_both();
}

void Splice::finish() {
  if (finished_) return;
  finished_ = true;
  stack_.close(now_, socket_);
  if (token_) loop_.remove(token_);
  token_ = 0;
  fd_.reset();
  done_();
}

}  // namespace porthole::runtime
