// The answer to a blocking call: filled on the loop's thread, awaited by the app's.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "base/result.h"
#include "runtime/limits.h"

namespace porthole::runtime {

template <typename T>
class Pending {
 public:
  // The first answer counts.
  void set(Result<T> result) {
    if (on_set_) {
      auto tell = std::move(on_set_);
      on_set_ = nullptr;
      return tell(result);
    }
    std::lock_guard lock(mutex_);
    if (!result_) result_.emplace(std::move(result));
    ready_.notify_all();
  }
  // Instead of wait(): called with the answer, on the thread that sets it. Set before the question is asked.
  void on_set(std::function<void(const Result<T>&)> tell) { on_set_ = std::move(tell); }
  // nullopt: nothing came in time. timeout_ms < 0: no limit.
  std::optional<Result<T>> wait(int timeout_ms) {
    std::unique_lock lock(mutex_);
    auto done = [&] { return result_.has_value(); };
    if (timeout_ms < 0)
      ready_.wait(lock, done);
    else if (!ready_.wait_for(lock, std::chrono::milliseconds(timeout_ms), done))
      return std::nullopt;
    std::optional<Result<T>> out(std::move(*result_));
    return out;
  }

 private:
  std::mutex mutex_;
  std::condition_variable ready_;
  std::optional<Result<T>> result_;
  std::function<void(const Result<T>&)> on_set_;
};

inline Error too_many_wait() {
  return {ErrorCode::kLimit, std::to_string(kWaitersMax) + " calls wait for the same already; try again when some have returned"};
}

// Room for one more among those that wait, kWaitersMax at most once those that gave up are forgotten. Without it, `p` is
// answered with the error. `pending_of` gives the Pending of an entry.
template <typename List, typename T, typename F>
bool has_room(List& list, const std::shared_ptr<Pending<T>>& p, F pending_of) {
  if (list.size() < kWaitersMax) return true;
  std::erase_if(list, [&](const auto& entry) { return pending_of(entry).use_count() == 1; });
  if (list.size() < kWaitersMax) return true;
  p->set(too_many_wait());
  return false;
}
template <typename List, typename T>
bool has_room(List& list, const std::shared_ptr<Pending<T>>& p) {
  return has_room(list, p, [](const auto& entry) -> const auto& { return entry; });
}

}  // namespace porthole::runtime
