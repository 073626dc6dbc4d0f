#include "support/output.h"

#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <thread>
#include <utility>

#include "support/limits.h"

namespace porthole::app {
namespace {

std::string left_out(std::uint64_t count, Output::Kind kind) {
  const std::string n = std::to_string(count);
  if (kind == Output::Kind::kJson) return "{\"event\":\"dropped\",\"count\":" + n + "}\n";
  return "(" + n + " lines are missing here: nobody was reading)\n";
}

}  // namespace

void Output::put(std::string line, Kind kind) {
  std::lock_guard lock(mutex_);
  if (answer_ && !stopped_ && bytes_ > kOutputBytesMax) {
    ++dropped_;
    dropped_kind_ = kind;
    return;
  }
  enqueue(std::move(line));
  if (answer_ && !stopped_) return;
  while (bytes_ > kOutputBytesMax && lines_.size() > 1) {
    bytes_ -= lines_.front().size();
    lines_.pop_front();
    ++dropped_;
    dropped_kind_ = kind;
  }
}

void Output::put_answer(std::string line, Kind kind) {
  {
    std::unique_lock lock(mutex_);
    answer_ = true;
    changed_.wait(lock, [this] { return gone_ || stopped_ || bytes_ <= kOutputBytesMax / 2; });
    if (!stopped_) return enqueue(std::move(line));
  }
  put(std::move(line), kind);
}

void Output::enqueue(std::string line) {
  if (gone_) return;
  if (!started_) {
    started_ = true;
    // Signals are for the threads that wait for them; SIGPIPE stays pending here, and the write says EPIPE.
    sigset_t all, before;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      std::thread([this] { run(); }).detach();
    } catch (const std::system_error&) {
      gone_ = true;  // a process that cannot have a thread has other troubles
    }
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }
  bytes_ += line.size();
  lines_.push_back(std::move(line));
  changed_.notify_all();
}

void Output::flush(std::chrono::steady_clock::time_point begin) {
  std::unique_lock lock(mutex_);
  std::uint64_t before = progress_;
  auto until = begin + kOutputPatience;
  auto done = [this] { return gone_ || (lines_.empty() && !writing_); };
  while (!done()) {
    if (answer_ && !stopped_) {
      changed_.wait(lock);
      until = std::chrono::steady_clock::now() + kOutputPatience;
      continue;
    }
    if (changed_.wait_until(lock, until) == std::cv_status::timeout && progress_ == before) return;
    if (progress_ == before) continue;
    before = progress_;
    until = std::chrono::steady_clock::now() + kOutputPatience;
  }
}

int Output::failure() {
  std::lock_guard lock(mutex_);
  return failure_;
}

void Output::run() {
  std::unique_lock lock(mutex_);
  while (!gone_) {
    changed_.wait(lock, [this] { return !lines_.empty(); });
    std::string text;
    if (dropped_ > 0) text = left_out(std::exchange(dropped_, 0), dropped_kind_);
    do {
      text += lines_.front();
      bytes_ -= lines_.front().size();
      lines_.pop_front();
    } while (!lines_.empty() && text.size() + lines_.front().size() <= kOutputWriteMax);
    writing_ = true;
    lock.unlock();
    const bool taken = write(text);
    lock.lock();
    writing_ = false;
    if (!taken) {
      gone_ = true;
      lines_.clear();
    }
    changed_.notify_all();
  }
}

// Not non-blocking: that would hold for everybody who shares the descriptor, the user's shell among them.
bool Output::write(std::string_view rest) {
  while (!rest.empty()) {
    int stop_fd = -1;
    {
      std::lock_guard lock(mutex_);
      if (!stopped_) stop_fd = stop_fd_;  // it stays readable
    }
    pollfd p[2] = {{fd_, POLLOUT, 0}, {stop_fd, POLLIN, 0}};
    if (::poll(p, 2, -1) < 0) continue;  // EINTR
    if (p[1].revents != 0) {
      std::lock_guard lock(mutex_);
      stopped_ = true;
      changed_.notify_all();
    }
    if (p[0].revents == 0) continue;
    const ssize_t n = ::write(fd_, rest.data(), std::min(rest.size(), kOutputWriteMax));
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (n <= 0) {
      std::lock_guard lock(mutex_);
      failure_ = n < 0 && errno != EPIPE ? errno : 0;
      return false;
    }
    rest.remove_prefix(static_cast<std::size_t>(n));
    std::lock_guard lock(mutex_);
    progress_ += static_cast<std::uint64_t>(n);
    changed_.notify_all();
  }
  return true;
}

}  // namespace porthole::app
