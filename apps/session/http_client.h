// A plain HTTP/1.1 client for the few questions one of our services has for another: each on a connection of its own, over
// TLS with verified certificates or in clear.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace porthole::session {

struct HttpCall {
  std::string method;  // "GET", "POST", "PUT", "DELETE"
  std::string target;  // path and query
  std::vector<std::pair<std::string, std::string>> headers;  // besides Host, User-Agent, Connection and those of the body
  std::string body;    // JSON; empty: none
};

struct HttpAnswer {
  unsigned status = 0;
  std::string content_type, location;  // as the server wrote them; may be empty
  std::string body;
};

// What is the matter with the server, as it stands behind its name: "cannot be reached: Connection refused".
class HttpTrouble : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

class HttpClient {
 public:
  // `host`: name or address, without brackets. `ca_file`: PEM, trusted besides the system's authorities; may be empty.
  // CommandError when that file cannot be used, also when `tls` is off.
  HttpClient(bool tls, std::string host, std::uint16_t port, const std::string& ca_file);
  ~HttpClient();

  // Blocks for at most `time_max`, and not beyond `stop`; any thread. Throws HttpTrouble, also for a longer body than
  // `body_max`.
  HttpAnswer call(const HttpCall& call, std::chrono::milliseconds time_max, std::size_t body_max, std::stop_token stop = {}) const;

 private:
  struct Tls;
  std::string host_;
  std::uint16_t port_;
  std::unique_ptr<Tls> tls_;  // null: in clear
};

// Fit for a path segment or a query value (RFC 3986 section 2.3).
std::string percent_encoded(std::string_view text);

}  // namespace porthole::session
