#include "serve/password.h"

#include <arpa/inet.h>
#include <sodium.h>
#include <sys/stat.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cstring>

#include "serve/limits.h"
#include "session/limits.h"
#include "session/names.h"
#include "support/support.h"

namespace porthole::serve {

using app::CommandError;

void set_password(const std::string& path, std::string_view password) {
  if (sodium_init() < 0) throw CommandError("cannot set up libsodium");
  if (password.starts_with("\xef\xbb\xbf"))
    throw CommandError("the password begins with a byte order mark, which nobody can type: save the file as UTF-8 without one");
  if (password.find_first_of("\r\n") != std::string_view::npos)
    throw CommandError("the password has more than one line: a password is one line of text");
  // What clean_text() would change: bytes that are no UTF-8, and control characters.
  if (session::clean_text(password, password.size()) != password)
    throw CommandError("the password holds control characters or is not in UTF-8, so no client could log in with it: save the file as UTF-8 text");
  if (password.size() < 8) throw CommandError("the password needs at least 8 characters");
  if (password.size() > session::kPasswordBytesMax) throw CommandError("the password is too long");
  char hash[crypto_pwhash_STRBYTES];
  if (crypto_pwhash_str_alg(hash, password.data(), password.size(), crypto_pwhash_OPSLIMIT_INTERACTIVE,
                            crypto_pwhash_MEMLIMIT_INTERACTIVE, crypto_pwhash_ALG_ARGON2ID13) != 0)
    throw CommandError("not enough memory to hash the password (64 MiB are needed)");
  boost::json::object file{{"version", 1}, {"argon2id", hash}};
  app::write_file_atomic(path, boost::json::serialize(file) + "\n", 0600);
}

std::string load_password_hash(const std::string& path) {
  if (sodium_init() < 0) throw CommandError("cannot set up libsodium");
  struct stat s {};
  if (::stat(path.c_str(), &s) != 0 && errno == ENOENT)
    throw CommandError("no password is set yet: run \"porthole serve set-password\" with the same --statedir");
  boost::system::error_code error;
  boost::json::value value = boost::json::parse(app::read_file(path), error);
  const boost::json::object* file = error ? nullptr : value.if_object();
  if (file) {
    const boost::json::value* version = file->if_contains("version");
    if (version && version->is_int64() && version->as_int64() > 1)
      throw CommandError(path + " was written by a newer version of porthole");
    const boost::json::value* hash = file->if_contains("argon2id");
    if (hash && hash->is_string() && hash->as_string().starts_with("$argon2id$") &&
        hash->as_string().size() < crypto_pwhash_STRBYTES)
      return std::string(hash->as_string());
  }
  throw CommandError(path + " is damaged; set the password again with \"porthole serve set-password\"");
}

bool password_matches(const std::string& hash, std::string_view password) {
  char text[crypto_pwhash_STRBYTES] = "";
  std::memcpy(text, hash.data(), std::min(hash.size(), sizeof text - 1));
  return crypto_pwhash_str_verify(text, password.data(), password.size()) == 0;
}

std::chrono::seconds LoginThrottle::wait(Time now, const std::string& address) {
  using std::chrono::ceil;
  using std::chrono::seconds;
  seconds out{0};
  while (!recent_.empty() && now - recent_.front() >= seconds(60)) recent_.pop_front();
  if (recent_.size() >= static_cast<std::size_t>(kGlobalFailuresPerMinute))
    out = ceil<seconds>(recent_.front() + seconds(60) - now);
  else if (recent_.size() + static_cast<std::size_t>(under_way_) >= static_cast<std::size_t>(kGlobalFailuresPerMinute))
    out = kAddressWaitFirst;
  auto it = addresses_.find(address);
  if (it == addresses_.end()) return out;
  const Entry& e = it->second;
  if (e.under_way > 0) {
    if (e.failures + e.under_way >= kFreeAttempts) out = std::max(out, kAddressWaitFirst);
  } else if (now - e.last >= kAddressForget) {
    addresses_.erase(it);
    return out;
  }
  if (e.failures >= kFreeAttempts) {
    int doublings = std::min(e.failures - kFreeAttempts, 16);
    seconds pause = std::min(kAddressWaitFirst * (1 << doublings), kAddressWaitMax);
    if (e.last + pause > now) out = std::max(out, ceil<seconds>(e.last + pause - now));
  }
  return out;
}

void LoginThrottle::make_room_for(const std::string& address) {
  if (addresses_.size() >= kAddressesMax && !addresses_.contains(address)) {
    auto oldest = std::min_element(addresses_.begin(), addresses_.end(),
                                   [](const auto& a, const auto& b) { return a.second.last < b.second.last; });
    under_way_ -= oldest->second.under_way;
    addresses_.erase(oldest);
  }
}

void LoginThrottle::begin(const std::string& address) {
  make_room_for(address);
  ++addresses_[address].under_way;
  ++under_way_;
}

void LoginThrottle::finished(Entry& e) {
  if (e.under_way == 0) return;  // forgotten meanwhile
  --e.under_way;
  --under_way_;
}

void LoginThrottle::failed(Time now, const std::string& address) {
  make_room_for(address);
  Entry& e = addresses_[address];
  finished(e);
  ++e.failures;
  e.last = now;
  recent_.push_back(now);
  if (recent_.size() > static_cast<std::size_t>(kGlobalFailuresPerMinute)) recent_.pop_front();
}

void LoginThrottle::succeeded(const std::string& address) {
  auto it = addresses_.find(address);
  if (it == addresses_.end()) return;
  finished(it->second);
  it->second.failures = 0;
  if (it->second.under_way == 0) addresses_.erase(it);
}

std::string throttle_key(std::string_view ip) {
  std::string text(ip);
  in6_addr six{};
  if (::inet_pton(AF_INET6, text.c_str(), &six) != 1) return text;
  if (IN6_IS_ADDR_V4MAPPED(&six)) {
    char four[INET_ADDRSTRLEN];
    return ::inet_ntop(AF_INET, six.s6_addr + 12, four, sizeof four) ? four : text;
  }
  std::memset(six.s6_addr + 8, 0, 8);
  char prefix[INET6_ADDRSTRLEN];
  return ::inet_ntop(AF_INET6, &six, prefix, sizeof prefix) ? std::string(prefix) + "/64" : text;
}

}  // namespace porthole::serve
