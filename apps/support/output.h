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

  // Its thread ends with the process, which may be while a write hangs: an Output is never destroyed.
  explicit Output(int fd) : fd_(fd) {}
  ~Output() = delete;

  // `line` with its newline. Never waits.
  void put(std::string line, Kind kind);
  // For the answer a command was asked for: nothing of it is left out. Waits for the reader when much is waiting, as flush() then
  // does, however long that lasts; both do so no longer once `stop_fd` (or -1) is readable.
  void put_answer(std::string line, Kind kind, int stop_fd);
  // Waits until everything is written, the reader is gone, or it took nothing for kOutputPatience since `begin`.
  void flush(std::chrono::steady_clock::time_point begin);
  // What kept lines from being written (errno: a full disk); 0: nothing, or a reader that went away.
  int failure();

 private:
  void enqueue(std::string line);
  void run();
  bool write(std::string_view line);

  const int fd_;
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
  bool answer_ = false;    // all that waits is wanted by somebody
  int stop_fd_ = -1;       // watched while a write waits
  bool stopped_ = false;
};

// What the process says. Never destroyed; flush_output() (support.h) at the end.
Output& standard_output();
Output& standard_error();

}  // namespace porthole::app
