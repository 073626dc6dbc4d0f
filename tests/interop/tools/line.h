// What the tool says and hears: JSON lines out, words and key=value in.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <map>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "base/time.h"

namespace porthole::interop {

// One line of output; leaves with the object.
class Line {
 public:
  explicit Line(std::string_view event) { add("event", event); }
  ~Line() {
    std::printf("{%s}\n", text_.c_str());
    std::fflush(stdout);
  }
  Line(const Line&) = delete;
  Line& add(std::string_view name, std::string_view value) {
    std::string quoted = "\"";
    for (char c : value) quoted += c == '"' || c == '\\' || static_cast<unsigned char>(c) < 32 ? '\'' : c;
    return raw(name, quoted + "\"");
  }
  Line& add(std::string_view name, bool value) { return raw(name, value ? "true" : "false"); }
  Line& add(std::string_view name, std::uint64_t value) { return raw(name, std::to_string(value)); }
  // Milliseconds.
  Line& add(std::string_view name, Duration value) {
    return raw(name, std::to_string(static_cast<double>(value.count()) / 1e6));
  }

 private:
  Line& raw(std::string_view name, const std::string& value) {
    if (!text_.empty()) text_ += ", ";
    text_.append("\"").append(name).append("\": ").append(value);
    return *this;
  }
  std::string text_;
};

// "verb word word key=value".
struct Command {
  explicit Command(const std::string& line) {
    std::istringstream in(line);
    for (std::string w; in >> w;) {
      std::size_t eq = w.find('=');
      if (eq == std::string::npos) words.push_back(w);
      else options[w.substr(0, eq)] = w.substr(eq + 1);
    }
  }
  std::string word(std::size_t i) const { return i < words.size() ? words[i] : ""; }
  std::uint64_t number(std::size_t i) const { return std::strtoull(word(i).c_str(), nullptr, 10); }
  bool has(const std::string& key) const { return options.count(key) != 0; }
  std::string text(const std::string& key) const { return has(key) ? options.at(key) : ""; }
  std::uint64_t number(const std::string& key, std::uint64_t otherwise) const {
    return has(key) ? std::strtoull(options.at(key).c_str(), nullptr, 10) : otherwise;
  }
  double real(const std::string& key, double otherwise) const {
    return has(key) ? std::strtod(options.at(key).c_str(), nullptr) : otherwise;
  }
  std::vector<std::string> words;
  std::map<std::string, std::string> options;
};

}  // namespace porthole::interop
