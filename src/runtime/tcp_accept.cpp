#include "runtime/tcp_accept.h"

#include <fcntl.h>
#include <sys/socket.h>

#include <cerrno>

namespace porthole::runtime {
namespace {
constexpr int kAcceptsPerTurn = 64;
}

AcceptHandler::AcceptHandler(EventLoop& loop, UniqueFd listener, std::function<void(UniqueFd)> accepted)
    : loop_(loop), fd_(std::move(listener)), accepted_(std::move(accepted)), reserve_(::open("/dev/null", O_RDONLY | O_CLOEXEC)) {
  token_ = loop_.add(fd_.get(), *this, true, false);
}

AcceptHandler::~AcceptHandler() { loop_.remove(token_); }

void AcceptHandler::on_ready(bool, bool, bool) {
  for (int i = 0; i < kAcceptsPerTurn; ++i) {
    UniqueFd fd(::accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (fd) {
      accepted_(std::move(fd));
      continue;
    }
    if (errno == EINTR || errno == ECONNABORTED) continue;
    if (errno == EMFILE || errno == ENFILE) {
      reserve_.reset();
      UniqueFd refused(::accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      refused.reset();
      reserve_.reset(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    }
    return;
  }
}

}  // namespace porthole::runtime
