// A small readiness loop: descriptors, one deadline, and work posted from other threads. One thread runs it.
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <vector>

#include "base/time.h"
#include "runtime/files.h"

namespace porthole::runtime {

// Gets told that a descriptor is ready. Level-triggered.
class FdHandler {
 public:
  virtual ~FdHandler() = default;
  virtual void on_ready(bool readable, bool writable, bool hangup) = 0;
};

class EventLoop {
 public:
  EventLoop();
  EventLoop(const EventLoop&) = delete;

  // A handler may add, change and remove any descriptor, its own included, while being called.
  using Token = std::uint64_t;
  Token add(int fd, FdHandler& handler, bool want_read, bool want_write);
  void change(Token token, bool want_read, bool want_write);
  void remove(Token token);

  // Any thread: runs `work` on the loop's thread soon. False once the loop is closed.
  bool post(std::function<void()> work);
  void close();

  // Waits until something is ready or `until` passed, dispatches everything that is ready, then runs posted work.
  void run_once(Instant now, Instant until);

 private:
  struct Slot {
    int fd = -1;
    std::uint32_t generation = 0;
    FdHandler* handler = nullptr;
    std::uint32_t events = 0;
  };
  Slot* find(Token token);

  UniqueFd epoll_, wake_;
  std::vector<Slot> slots_;
  std::vector<std::uint32_t> free_;
  std::mutex mutex_;
  std::vector<std::function<void()>> posted_;
  bool closed_ = false;
};

}  // namespace porthole::runtime
