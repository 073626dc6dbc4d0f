// Questions to a running node, through the control socket in its state directory.
#pragma once

#include <boost/json.hpp>
#include <string>
#include <utility>

#include "support/support.h"

namespace porthole::app {

// Closes a descriptor when dropped.
class OwnedFd {
 public:
  explicit OwnedFd(int fd = -1) : fd_(fd) {}
  OwnedFd(OwnedFd&& o) noexcept : fd_(o.fd_) { o.fd_ = -1; }
  OwnedFd& operator=(OwnedFd&& o) noexcept {
    std::swap(fd_, o.fd_);
    return *this;
  }
  ~OwnedFd();
  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_;
};

// The node said no: its sentence and the code of porthole.h as a word ("timeout"); status 2 where the argument was wrong.
struct AnswerError : CommandError {
  AnswerError(const std::string& message, std::string code_) : CommandError(message, code_ == "invalid" ? 2 : 1), code(std::move(code_)) {}
  std::string code;
};
// It said nothing in time.
struct NoAnswer : CommandError {
  using CommandError::CommandError;
};
// Ctrl-C while waiting.
struct Stopped {};

// CommandError also when no node runs there. `stop_fd`: ends the wait when readable (Stopped is thrown).
boost::json::value ask_node(const std::string& state_dir, const boost::json::object& question, int timeout_ms, int stop_fd = -1);

// A TCP socket connected over the tailnet to "host:port" or "[v6]:port".
OwnedFd dial_by_node(const std::string& state_dir, const std::string& address, int timeout_ms, int stop_fd);

// "500ms", "5s", "2m" or a plain number of seconds, in milliseconds: 1 ms to an hour. `option` is named in the
// CommandError (status 2).
int parse_duration_ms(const std::string& text, const std::string& option);

// Members of an object as text: absent is empty.
std::string member(const boost::json::object& o, std::string_view key);
// Elements of a list, joined.
std::string members(const boost::json::object& o, std::string_view key, std::string_view between = ", ");
// As the node measured it: "3.1ms", "120ms".
std::string ms_text(const boost::json::object& o, std::string_view key);
void print_line(const std::string& text);

}  // namespace porthole::app
