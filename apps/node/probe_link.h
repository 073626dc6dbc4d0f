// One TCP or TLS connection of `porthole node doctor`: every step has a deadline, and every failure is a sentence.
//
// The certificate is looked at and never enforced: a doctor that stops at a bad certificate cannot say what lies behind
// it. Nothing secret goes over such a connection.
#pragma once

#include <openssl/types.h>

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/ip.h"
#include "base/result.h"
#include "node/node_socket.h"

namespace porthole::app {

using Deadline = std::chrono::steady_clock::time_point;

// Waits until the descriptor is ready for `events` (poll); false when the time is over. Throws Stopped.
bool wait_ready(int fd, short events, Deadline until, int stop_fd);

// The system's resolver on a thread of its own, which is left behind when it takes too long. kNotFound: no such name.
Result<std::vector<IpAddress>> look_up(const std::string& host, Deadline until, int stop_fd);

struct ConnectAttempt {
  Endpoint to;
  std::optional<Error> error;   // absent: connected, or still under way when another one was connected
  bool connected = false;
};
// All addresses at once; the first that connects is the result (a descriptor), the others get a short time more, so that
// a broken family is noticed.
OwnedFd connect_any(const std::vector<Endpoint>& to, Deadline until, int stop_fd, std::vector<ConnectAttempt>& attempts);

// What is wrong with a certificate, for a person; nothing is the best.
struct CertificateVerdict {
  std::string summary;              // "for remote.example.com, from R11, until 2027-01-02"
  std::optional<std::string> fault;
  std::string advice;
  bool time_fault = false;          // expired or not valid yet: perhaps this clock is what is wrong
  std::optional<int> days_left;     // of a valid one
};

class ProbeLink {
 public:
  // `fd` is connected. For TLS follow with start_tls().
  ProbeLink(OwnedFd fd, int stop_fd) : fd_(std::move(fd)), stop_fd_(stop_fd) {}
  ProbeLink(const ProbeLink&) = delete;
  ~ProbeLink();

  Result<CertificateVerdict> start_tls(SSL_CTX* context, const std::string& host, Deadline until);
  Status write(Bytes bytes, Deadline until);
  // At least one byte; 0: the other side ended.
  Result<std::size_t> read(MutBytes into, Deadline until);

 private:
  Error tls_error(int rc, const std::string& doing) const;
  OwnedFd fd_;
  int stop_fd_;
  SSL* ssl_ = nullptr;
};

struct TlsContextFree {
  void operator()(SSL_CTX* context) const;
};
using TlsContext = std::unique_ptr<SSL_CTX, TlsContextFree>;
// The system's authorities and those in `ca_file` (empty: none besides); CommandError when that is unusable.
TlsContext probe_tls_context(const std::string& ca_file);

}  // namespace porthole::app
