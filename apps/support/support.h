// What every verb needs: one-line errors, JSON event lines, clean signals, files that survive a crash, secrets from
// files or the terminal.
#pragma once

#include <atomic>
#include <boost/json.hpp>
#include <stdexcept>
#include <string>
#include <string_view>

namespace porthole::app {

// Thrown to end a verb with one plain line on stderr and this exit status (1 failure, 2 usage).
class CommandError : public std::runtime_error {
 public:
  explicit CommandError(const std::string& message, int status = 1) : std::runtime_error(message), status_(status) {}
  int status() const { return status_; }

 private:
  int status_;
};

// Runs what understands an argument: when it cannot, the command was typed wrong.
template <class F>
auto as_typed(F f) {
  try {
    return f();
  } catch (const CommandError& e) {
    throw CommandError(e.what(), 2);
  }
}

// Something happened: one JSON object and a newline on stdout. Safe from any thread, and waits for no reader: when nobody
// reads, the oldest events go, and {"event":"dropped","count":N} says so later.
void print_event(const boost::json::object& event);
// What the command was asked for, likewise. Waits for the reader, so that nothing is left out, but not beyond StopSignal.
void print_answer(const boost::json::object& answer);
void print_answer_line(const std::string& line);
// One line for people, on stdout or stderr; they wait for no reader either.
void print_text(const std::string& line);
void print_log(const std::string& line);
// At the end of the process: what was printed is written, unless nobody takes it (kOutputPatience). CommandError when standard
// output cannot be written; a reader that went away is no failure.
void flush_output();

// SIGINT and SIGTERM: sets the flag and writes to the descriptor. Installed once per process; SIGPIPE and
// SIGXFSZ are ignored.
class StopSignal {
 public:
  StopSignal();
  bool stopped() const;
  // Becomes readable when a signal arrived; never drained.
  int fd() const;
  // Waits until stopped or the time passed (-1: no limit); true when stopped.
  bool wait(int timeout_ms) const;
};

// The whole file; CommandError with path and reason otherwise.
std::string read_file(const std::string& path);
// Writes a temporary file beside it (mode 0600 or as given), fsyncs, renames. The old content survives any failure,
// disk full included (CommandError then).
void write_file_atomic(const std::string& path, std::string_view content, unsigned mode = 0600);
// Creates the directory 0700 if missing; CommandError when it cannot be written.
void ensure_state_dir(const std::string& path);

// "file:PATH" -> the file's content without trailing newline; anything else as it is.
std::string secret_argument(const std::string& value);
// Reads a line from the terminal without echo, which is back whatever ends it; CommandError when there is no terminal, no
// line, or SIGINT or SIGTERM came (StopSignal).
std::string prompt_secret(const std::string& prompt);

// Bytes from the kernel's CSPRNG.
void random_bytes(void* out, std::size_t size);
std::string random_hex(std::size_t bytes);
// Random UUID (version 4), lower case.
std::string random_uuid();

}  // namespace porthole::app
