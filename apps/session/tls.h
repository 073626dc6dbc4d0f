// TLS of the media session: 1.3 only, a certificate the server made itself, its SHA-256 pinned by the client at first
// use. No certificate authority is involved, so nothing here asks one.
#pragma once

#include <openssl/types.h>

#include <memory>
#include <string>

namespace porthole::session {

struct SslContextFree {
  void operator()(SSL_CTX* context) const;
};
using SslContext = std::unique_ptr<SSL_CTX, SslContextFree>;

// Loads the certificate and key from `path` (PEM, mode 0600), making them (ECDSA P-256, 25 years) when the file does
// not exist. CommandError when the file is unusable; it is never replaced.
SslContext server_tls(const std::string& path);
// Accepts any certificate: the caller compares peer_fingerprint() with the pin before the first byte of a session.
SslContext client_tls();
// Verifies the chain against the system's authorities and those in `ca_file` (empty: none besides).
SslContext verifying_client_tls(const std::string& ca_file);

// "sha256:" and 64 hex digits over the DER of the certificate.
std::string fingerprint_of(const SSL_CTX* server_context);
// Of the other side's certificate; empty when there is none.
std::string peer_fingerprint(const SSL* connection);

// The reasons OpenSSL has queued for this thread, as one text; empties the queue.
std::string tls_reason();

}  // namespace porthole::session
