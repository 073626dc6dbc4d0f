// One thread that works off calls in order: for an engine whose calls block. The event loop goes on meanwhile.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "remote/limits.h"

namespace porthole::remote {

class Worker {
 public:
  using Work = std::function<void()>;

  Worker() : thread_([this] { run(); }) {}
  ~Worker() { stop(); }
  Worker(const Worker&) = delete;

  // Any thread. False: too much waits already, or it stops.
  bool post(Work work) {
    std::lock_guard lock(mutex_);
    if (stopping_ || waiting_.size() >= kWorkWaitingMax) return false;
    waiting_.push_back(std::move(work));
    wake_.notify_all();
    return true;
  }
  // What was begun is finished, pausing no more; what waits is dropped.
  void begin_stop() {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    wake_.notify_all();
  }
  // The same, and waits for the end of the thread.
  void stop() {
    begin_stop();
    if (thread_.joinable()) thread_.join();
  }
  // For work that waits: returns early when the worker stops.
  void pause(std::chrono::milliseconds time) {
    std::unique_lock lock(mutex_);
    wake_.wait_for(lock, time, [this] { return stopping_; });
  }
  bool stopping() {
    std::lock_guard lock(mutex_);
    return stopping_;
  }

 private:
  void run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
      if (stopping_) return;
      Work work = std::move(waiting_.front());
      waiting_.pop_front();
      lock.unlock();
      work();
      work = nullptr;  // what it holds goes while nothing is locked
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Work> waiting_;
  bool stopping_ = false;
  std::thread thread_;  // last: it uses the others
};

}  // namespace porthole::remote
