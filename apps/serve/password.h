// The household's password: an argon2id hash in the state directory, and who may try how often.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <string_view>

namespace porthole::serve {

// Writes the hash of `password` to `path`; takes about 0.1 s and 64 MiB. CommandError unless it is a line of text in UTF-8
// without control characters, of 8 bytes to kPasswordBytesMax: nothing else can be typed at, or sent by, a client.
void set_password(const std::string& path, std::string_view password);
// The stored hash; CommandError when none is set or the file is damaged.
std::string load_password_hash(const std::string& path);
// Takes as long as set_password; any thread.
bool password_matches(const std::string& hash, std::string_view password);

// Slows guessing down: per address and over all (limits.h). Time is any clock that never goes back.
class LoginThrottle {
 public:
  using Time = std::chrono::steady_clock::time_point;

  // How long this address must wait before its next attempt is even looked at; 0: now. Attempts under way count as failed.
  std::chrono::seconds wait(Time now, const std::string& address);
  // The attempt is looked at; failed() or succeeded() ends it.
  void begin(const std::string& address);
  void failed(Time now, const std::string& address);
  // A login that worked clears its address.
  void succeeded(const std::string& address);
  std::size_t size() const { return addresses_.size(); }

 private:
  struct Entry {
    int failures = 0;
    int under_way = 0;
    Time last{};
  };
  void make_room_for(const std::string& address);
  void finished(Entry& e);

  std::map<std::string, Entry> addresses_;
  int under_way_ = 0;        // of all addresses
  std::deque<Time> recent_;  // failures of the last minute, at most kGlobalFailuresPerMinute
};

// What counts as one address: an IPv4 address, or the /64 of an IPv6 one (a host may use all of it).
std::string throttle_key(std::string_view ip);

}  // namespace porthole::serve
