// Where a machine reports what a person may want to read. The app chooses the sink; the default swallows everything.
// Secrets are types that cannot be formatted, so they cannot get here. Not for the data path.
#pragma once

#include <string_view>

namespace porthole {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

class Log {
 public:
  virtual ~Log() = default;
  // `component` is the folder's name ("control", "paths"); one line, no newline.
  virtual void write(LogLevel level, std::string_view component, std::string_view message) = 0;
  static Log& none();
};

}  // namespace porthole
