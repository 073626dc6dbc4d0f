#include <unistd.h>

#include "runtime/node_loop.h"

namespace porthole::runtime {
namespace {
constexpr std::size_t kEventsWaitingMax = 1024;  // porthole.h
// The same in bytes: the largest event names all peers of a new map, which are 0.7 MB for 10,000.
constexpr std::size_t kEventBytesMax = 4 << 20;
}

void EventQueue::push(std::string json, bool droppable) {
  std::lock_guard lock(mutex_);
  if (closed_) return;
  while (!entries_.empty() && (entries_.size() >= kEventsWaitingMax || bytes_ + json.size() > kEventBytesMax)) {
    auto victim = entries_.begin();
    for (auto it = entries_.begin(); it != entries_.end(); ++it) {
      if (it->droppable) {
        victim = it;
        break;
      }
    }
    bytes_ -= victim->json.size();
    entries_.erase(victim);
  }
  bytes_ += json.size();
  entries_.push_back({std::move(json), droppable});
  std::uint64_t one = 1;
  [[maybe_unused]] ssize_t n = ::write(wake_fd_, &one, sizeof one);
  ready_.notify_one();
}

void EventQueue::close() {
  std::lock_guard lock(mutex_);
  closed_ = true;
  std::uint64_t one = 1;
  [[maybe_unused]] ssize_t n = ::write(wake_fd_, &one, sizeof one);
  ready_.notify_all();
}

Result<std::optional<std::string>> EventQueue::next(int timeout_ms) {
  std::unique_lock lock(mutex_);
  auto something = [&] { return closed_ || !entries_.empty(); };
  if (timeout_ms < 0)
    ready_.wait(lock, something);
  else
    ready_.wait_for(lock, std::chrono::milliseconds(timeout_ms), something);
  if (entries_.empty()) {
    if (closed_) return Error{ErrorCode::kCancelled, "the node was closed"};
    return std::optional<std::string>{};
  }
  std::string json = std::move(entries_.front().json);
  entries_.pop_front();
  bytes_ -= json.size();
  if (entries_.empty() && !closed_) {
    std::uint64_t count;
    [[maybe_unused]] ssize_t n = ::read(wake_fd_, &count, sizeof count);
  }
  return std::optional<std::string>(std::move(json));
}

void FdLog::set_fd(UniqueFd fd) {
  std::lock_guard lock(mutex_);
  fd_ = std::move(fd);
}

void FdLog::write(LogLevel level, std::string_view component, std::string_view message) {
  std::lock_guard lock(mutex_);
  if (!fd_) return;
  static constexpr std::string_view kNames[] = {"debug", "info", "warning", "error"};
  std::string line(kNames[static_cast<int>(level)]);
  line.append(" ").append(component).append(": ").append(message).append("\n");
  [[maybe_unused]] ssize_t n = ::write(fd_.get(), line.data(), line.size());
}

}  // namespace porthole::runtime
