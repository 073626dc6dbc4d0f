#include "runtime/event_loop.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>

#include "base/assert.h"

namespace porthole::runtime {
namespace {
constexpr std::uint64_t kWakeToken = ~0ull;

std::uint32_t epoll_bits(bool want_read, bool want_write) {
  // RDHUP is not asked for: half-close is seen by reading, and level-triggered RDHUP would spin while the other
  // direction still runs.
  return (want_read ? static_cast<std::uint32_t>(EPOLLIN) : 0u) | (want_write ? static_cast<std::uint32_t>(EPOLLOUT) : 0u);
}
}  // namespace

EventLoop::EventLoop() : epoll_(::epoll_create1(EPOLL_CLOEXEC)), wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  PORTHOLE_ASSERT(epoll_ && wake_);
  epoll_event ev{};
  ev.events = EPOLLIN;
  ev.data.u64 = kWakeToken;
  PORTHOLE_ASSERT(::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &ev) == 0);
}

EventLoop::Token EventLoop::add(int fd, FdHandler& handler, bool want_read, bool want_write) {
  std::uint32_t index;
  if (free_.empty()) {
    index = static_cast<std::uint32_t>(slots_.size());
    slots_.emplace_back();
  } else {
    index = free_.back();
    free_.pop_back();
  }
  Slot& slot = slots_[index];
  slot.fd = fd;
  slot.handler = &handler;
  slot.events = epoll_bits(want_read, want_write);
  ++slot.generation;
  Token token = static_cast<Token>(slot.generation) << 32 | index;
  epoll_event ev{};
  ev.events = slot.events;
  ev.data.u64 = token;
  PORTHOLE_ASSERT(::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &ev) == 0);
  return token;
}

EventLoop::Slot* EventLoop::find(Token token) {
  std::size_t index = token & 0xffffffffu;
  if (index >= slots_.size()) return nullptr;
  Slot& slot = slots_[index];
  return slot.handler && slot.generation == token >> 32 ? &slot : nullptr;
}

void EventLoop::change(Token token, bool want_read, bool want_write) {
  Slot* slot = find(token);
  PORTHOLE_ASSERT(slot);
  std::uint32_t events = epoll_bits(want_read, want_write);
  if (events == slot->events) return;
  slot->events = events;
  epoll_event ev{};
  ev.events = events;
  ev.data.u64 = token;
  PORTHOLE_ASSERT(::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, slot->fd, &ev) == 0);
}

void EventLoop::remove(Token token) {
  Slot* slot = find(token);
  PORTHOLE_ASSERT(slot);
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, slot->fd, nullptr);
  slot->handler = nullptr;
  slot->fd = -1;
  free_.push_back(static_cast<std::uint32_t>(token & 0xffffffffu));
}

EventLoop::Posted EventLoop::post(std::function<void()> work) { return put(std::move(work), kPostedMax); }

bool EventLoop::post_always(std::function<void()> work) {
  return put(std::move(work), static_cast<std::size_t>(-1)) == Posted::kPosted;
}

EventLoop::Posted EventLoop::put(std::function<void()> work, std::size_t most) {
  {
    std::lock_guard lock(mutex_);
    if (closed_) return Posted::kClosed;
    if (posted_.size() >= most) return Posted::kFull;
    posted_.push_back(std::move(work));
    if (posted_.size() > 1) return Posted::kPosted;
  }
  std::uint64_t one = 1;
  [[maybe_unused]] ssize_t n = ::write(wake_.get(), &one, sizeof one);
  return Posted::kPosted;
}

void EventLoop::close() {
  std::vector<std::function<void()>> last;
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
    last.swap(posted_);
  }
  for (auto& f : last) f();
}

int EventLoop::wait(Instant now, Instant until) {
  timespec wait{};
  timespec* limit = nullptr;
  if (until != Instant::max()) {
    std::int64_t ns = until <= now ? 0 : (until - now).count();
    wait.tv_sec = ns / 1'000'000'000;
    wait.tv_nsec = ns % 1'000'000'000;
    limit = &wait;
  }
  ready_count_ = ::epoll_pwait2(epoll_.get(), ready_, kEventsPerTurn, limit, nullptr);
  if (ready_count_ < 0 && errno == ENOSYS) {  // kernels before 5.11: millisecond grain
    int ms = limit ? static_cast<int>((until <= now ? 0 : (until - now).count() + 999'999) / 1'000'000) : -1;
    ready_count_ = ::epoll_wait(epoll_.get(), ready_, kEventsPerTurn, ms);
  }
  return ready_count_;
}

void EventLoop::dispatch() {
  bool woken = false;
  for (int i = 0; i < ready_count_; ++i) {
    if (ready_[i].data.u64 == kWakeToken) {
      woken = true;
      continue;
    }
    Slot* slot = find(ready_[i].data.u64);
    if (!slot) continue;  // removed by an earlier handler of this turn
    std::uint32_t e = ready_[i].events;
    slot->handler->on_ready(e & (EPOLLIN | EPOLLHUP | EPOLLERR), e & (EPOLLOUT | EPOLLERR), e & (EPOLLHUP | EPOLLERR));
  }
  ready_count_ = 0;
  if (!woken) return;
  std::uint64_t count;
  [[maybe_unused]] ssize_t r = ::read(wake_.get(), &count, sizeof count);
  std::vector<std::function<void()>> work;
  {
    std::lock_guard lock(mutex_);
    work.swap(posted_);
  }
  for (auto& f : work) f();
}

}  // namespace porthole::runtime
