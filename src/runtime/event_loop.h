// A small readiness loop: descriptors, one deadline, and work posted from other threads. One thread runs it.
#pragma once

#include <sys/epoll.h>

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

// What waits for the loop when other threads ask faster than it turns, or it is stuck. Nearly every question is a thread
// that waits for the answer, and few programs have that many.
constexpr std::size_t kPostedMax = 4096;

class EventLoop {
 public:
  EventLoop();
  EventLoop(const EventLoop&) = delete;

  // A handler may add, change and remove any descriptor, its own included, while being called.
  using Token = std::uint64_t;
  Token add(int fd, FdHandler& handler, bool want_read, bool want_write);
  void change(Token token, bool want_read, bool want_write);
  void remove(Token token);

  // Any thread: runs `work` on the loop's thread soon. Anything but kPosted: it will not run.
  enum class Posted { kPosted, kClosed, kFull };
  Posted post(std::function<void()> work);
  // For what must run, and whose number has another bound: never kFull. False once the loop is closed.
  bool post_always(std::function<void()> work);
  // The loop's thread: nothing more can be posted; what was posted before runs now.
  void close();

  // Waits until something is ready or `until` passed. How many descriptors are ready.
  int wait(Instant now, Instant until);
  // Calls the handlers of what wait() found, then runs posted work. The caller reads the clock in between.
  void dispatch();

 private:
  struct Slot {
    int fd = -1;
    std::uint32_t generation = 0;
    FdHandler* handler = nullptr;
    std::uint32_t events = 0;
  };
  Slot* find(Token token);
  Posted put(std::function<void()> work, std::size_t most);

  static constexpr int kEventsPerTurn = 128;
  UniqueFd epoll_, wake_;
  epoll_event ready_[kEventsPerTurn];
  int ready_count_ = 0;
  std::vector<Slot> slots_;
  std::vector<std::uint32_t> free_;
  std::mutex mutex_;
  std::vector<std::function<void()>> posted_;
  bool closed_ = false;
};

}  // namespace porthole::runtime
