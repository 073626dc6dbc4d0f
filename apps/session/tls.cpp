#include "session/tls.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>

#include "support/support.h"

namespace porthole::session {
namespace {

using app::CommandError;

struct Free {
  void operator()(X509* x) const { X509_free(x); }
  void operator()(EVP_PKEY* k) const { EVP_PKEY_free(k); }
  void operator()(BIO* b) const { BIO_free_all(b); }
};
template <class T>
using Owned = std::unique_ptr<T, Free>;

constexpr long kCertificateDays = 25 * 365;

void require(bool ok, const char* what) {
  if (!ok) throw CommandError(std::string("cannot ") + what + ": " + tls_reason());
}

// Key and certificate as one PEM text.
std::string make_identity() {
  Owned<EVP_PKEY> key(EVP_EC_gen("P-256"));
  require(key != nullptr, "make a TLS key");
  Owned<X509> certificate(X509_new());
  require(certificate != nullptr, "make a TLS certificate");
  X509* x = certificate.get();
  unsigned char serial[16];
  app::random_bytes(serial, sizeof serial);
  serial[0] &= 0x7f;
  BIGNUM* number = BN_bin2bn(serial, sizeof serial, nullptr);
  bool ok = number != nullptr && BN_to_ASN1_INTEGER(number, X509_get_serialNumber(x)) != nullptr;
  BN_free(number);
  ok = ok && X509_set_version(x, 2) == 1;
  ok = ok && X509_gmtime_adj(X509_getm_notBefore(x), -86400) != nullptr;
  ok = ok && X509_time_adj_ex(X509_getm_notAfter(x), kCertificateDays, 0, nullptr) != nullptr;
  X509_NAME* name = X509_get_subject_name(x);
  const auto* common_name = reinterpret_cast<const unsigned char*>("Porthole media server");
  ok = ok && X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, common_name, -1, -1, 0) == 1;
  ok = ok && X509_set_issuer_name(x, name) == 1;
  ok = ok && X509_set_pubkey(x, key.get()) == 1;
  ok = ok && X509_sign(x, key.get(), EVP_sha256()) != 0;
  require(ok, "make a TLS certificate");
  Owned<BIO> out(BIO_new(BIO_s_mem()));
  require(out != nullptr && PEM_write_bio_PrivateKey(out.get(), key.get(), nullptr, nullptr, 0, nullptr, nullptr) == 1 &&
              PEM_write_bio_X509(out.get(), x) == 1,
          "write a TLS certificate");
  char* data = nullptr;
  long size = BIO_get_mem_data(out.get(), &data);
  return std::string(data, static_cast<std::size_t>(size));
}

SslContext tls13(const SSL_METHOD* method) {
  SslContext context(SSL_CTX_new(method));
  require(context != nullptr, "set up TLS");
  require(SSL_CTX_set_min_proto_version(context.get(), TLS1_3_VERSION) == 1, "set up TLS");
  return context;
}

std::string fingerprint(const X509* certificate) {
  unsigned char digest[32];
  unsigned size = 0;
  if (!certificate || X509_digest(certificate, EVP_sha256(), digest, &size) != 1) return {};
  std::string out = "sha256:";
  for (unsigned char b : digest) {
    out += "0123456789abcdef"[b >> 4];
    out += "0123456789abcdef"[b & 15];
  }
  return out;
}

}  // namespace

void SslContextFree::operator()(SSL_CTX* context) const { SSL_CTX_free(context); }

SslContext server_tls(const std::string& path) {
  struct stat s {};
  if (::stat(path.c_str(), &s) != 0 && errno == ENOENT) app::write_file_atomic(path, make_identity(), 0600);
  std::string pem = app::read_file(path);
  Owned<BIO> in(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
  Owned<EVP_PKEY> key(PEM_read_bio_PrivateKey(in.get(), nullptr, nullptr, nullptr));
  Owned<X509> certificate(PEM_read_bio_X509(in.get(), nullptr, nullptr, nullptr));
  OPENSSL_cleanse(pem.data(), pem.size());
  if (!key || !certificate) {
    ERR_clear_error();
    throw CommandError(path + " is damaged: it holds no TLS key and certificate (restore it, or remove it and have "
                              "every client accept the new certificate)");
  }
  SslContext context = tls13(TLS_server_method());
  require(SSL_CTX_use_certificate(context.get(), certificate.get()) == 1 &&
              SSL_CTX_use_PrivateKey(context.get(), key.get()) == 1,
          "use the TLS certificate");
  // Each session logs in by itself; tickets would only keep keys in memory.
  SSL_CTX_set_num_tickets(context.get(), 0);
  return context;
}

SslContext client_tls() {
  SslContext context = tls13(TLS_client_method());
  SSL_CTX_set_verify(context.get(), SSL_VERIFY_NONE, nullptr);
  return context;
}

SslContext verifying_client_tls(const std::string& ca_file) {
  SslContext context(SSL_CTX_new(TLS_client_method()));
  require(context != nullptr && SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION) == 1, "set up TLS");
  SSL_CTX_set_default_verify_paths(context.get());
  ERR_clear_error();
  if (!ca_file.empty() && SSL_CTX_load_verify_file(context.get(), ca_file.c_str()) != 1)
    throw CommandError("cannot use the certificates in " + ca_file + ": " + tls_reason());
  SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER, nullptr);
  return context;
}

std::string fingerprint_of(const SSL_CTX* server_context) { return fingerprint(SSL_CTX_get0_certificate(server_context)); }

std::string peer_fingerprint(const SSL* connection) { return fingerprint(SSL_get0_peer_certificate(connection)); }

std::string tls_reason() {
  std::string out;
  while (unsigned long code = ERR_get_error()) {
    const char* text = ERR_reason_error_string(code);
    if (!out.empty()) out += ", ";
    out += text ? text : "unknown reason";
  }
  return out.empty() ? "unknown reason" : out;
}

}  // namespace porthole::session
