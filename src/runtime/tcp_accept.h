// Accepts connections of a listening socket and hands them on.
#pragma once

#include <functional>

#include "runtime/event_loop.h"

namespace porthole::runtime {

class AcceptHandler final : public FdHandler {
 public:
  AcceptHandler(EventLoop& loop, UniqueFd listener, std::function<void(UniqueFd)> accepted);
  ~AcceptHandler() override;
  void on_ready(bool readable, bool writable, bool hangup) override;
  int fd() const { return fd_.get(); }

 private:
  EventLoop& loop_;
  UniqueFd fd_;
  EventLoop::Token token_;
  std::function<void(UniqueFd)> accepted_;
  UniqueFd reserve_;   // given up for a moment when descriptors run out, so that the caller is told instead of left hanging
};

}  // namespace porthole::runtime
