// Where `get` puts the bytes: a file, which has its name only when it is complete, or standard output.
#pragma once

#include <string>
#include <string_view>

namespace porthole::client {

class Output {
 public:
  // `path` empty or "-": standard output. Nothing is touched before open().
  explicit Output(std::string path);
  // Without finish(): a file that was begun is removed, and one of that name is as it was.
  ~Output();
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;

  // A file is written under another name beside it ("NAME.part.PID"); what is no file (a pipe, a device) is written as it
  // is. CommandError when that is not possible.
  void open();
  // Whether write() takes something without waiting; wait() waits for that, or until `stop_fd` is readable.
  bool ready() const;
  void wait(int stop_fd) const;
  // Takes some of `bytes`, at least one when ready(); how many. 0: a signal came. CommandError when it cannot be written.
  std::size_t write(std::string_view bytes);
  // Everything was written: makes it durable, and a file gets its name.
  void finish();
  // For people: "FILE", or "standard output".
  std::string name() const;
  // For people who stop it half-way.
  std::string unfinished() const;

 private:
  [[noreturn]] void fail() const;

  std::string path_;
  std::string target_;  // path_ without symbolic links
  std::string partial_;  // empty: written as it is
  int fd_ = -1;
  bool waits_ = false;  // it may take bytes slowly, or never
};

}  // namespace porthole::client
