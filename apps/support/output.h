// Lines for a descriptor whose reader may be slow, paused or gone: a thread of its own writes them, so that nobody who has
// something to say ever waits for a reader. When too many wait (limits.h) the oldest go, and the reader is told how many.
// A reader that is gone is nobody's failure. Any thread.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <string_view>

namespace porthole::app {

class Output {
 public:
  enum class Kind { kText, kJson };  // how the reader is told of lines that were left out

  // Its thread ends with the process, which may be while a write hangs: an Output is never destroyed. Once `stop_fd` (or -1) is
  // readable nobody waits any longer for what a reader does not take.
  Output(int fd, int stop_fd) : fd_(fd), stop_fd_(stop_fd) {}
  ~Output() = delete;

  // `line` with its newline. Never waits.
  void put(std::string line, Kind kind);
  // For the answer a command was asked for: nothing of it is left out. Waits for the reader when much is waiting, as flush() then
  // does, however long that lasts, until the stop.
  void put_answer(std::string line, Kind kind);
  // Waits until everything is written, the reader is gone, or it took nothing for kOutputPatience since `begin`.
  void flush(std::chrono::steady_clock::time_point begin);
  // What kept lines from being written (errno: a full disk); 0: nothing, or a reader that went away.
  int failure();

 private:
  void enqueue(std::string line);
  void run();
  bool write(std::string_view line);

  const int fd_;
  const int stop_fd_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::string> lines_;
  std::size_t bytes_ = 0;  // of lines_
  std::uint64_t dropped_ = 0;
  Kind dropped_kind_ = Kind::kText;
  std::uint64_t progress_ = 0;  // bytes that were taken
  bool started_ = false;
  bool writing_ = false;
  bool gone_ = false;
  int failure_ = 0;
  bool answer_ = false;  // what waits is wanted by somebody
  bool stopped_ = false;
};

}  // namespace porthole::app
