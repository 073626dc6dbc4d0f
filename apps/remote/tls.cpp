#include "remote/tls.h"

#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include <cstring>
#include <memory>

#include "support/support.h"

namespace porthole::remote {
namespace {

constexpr int kRelayProtocolVersion = 2;  // serial of the MetaCert
constexpr long kMetaCertDays = 30;

template <auto Free>
struct Freed {
  template <typename T>
  void operator()(T* p) const { Free(p); }
};
using Certificate = std::unique_ptr<X509, Freed<X509_free>>;
using PrivateKey = std::unique_ptr<EVP_PKEY, Freed<EVP_PKEY_free>>;

std::string tls_reason() {
  unsigned long code = ERR_peek_last_error();
  ERR_clear_error();
  const char* text = code ? ERR_reason_error_string(code) : nullptr;
  return text ? text : "not usable";
}

int choose_protocol(SSL*, const unsigned char** out, unsigned char* out_size, const unsigned char* in, unsigned in_size,
                    void*) {
  static constexpr char kHttp11[] = "http/1.1";
  for (unsigned at = 0; at < in_size;) {
    unsigned size = in[at];
    if (size > in_size - at - 1) break;
    if (size == sizeof kHttp11 - 1 && std::memcmp(in + at + 1, kHttp11, size) == 0) {
      *out = in + at + 1;
      *out_size = static_cast<unsigned char>(size);
      return SSL_TLSEXT_ERR_OK;
    }
    at += 1 + size;
  }
  return SSL_TLSEXT_ERR_NOACK;  // goes on without ALPN, which means HTTP/1.1 as well
}

// Self-signed by a key that is thrown away: its authority is the handshake that carries it.
Certificate make_meta_certificate(const NodePublic& relay_key) {
  PrivateKey key(EVP_PKEY_Q_keygen(nullptr, nullptr, "ED25519"));
  Certificate cert(X509_new());
  std::string name = "derpkey" + to_hex(relay_key.bytes());
  if (!key || !cert) return nullptr;
  X509_set_version(cert.get(), 2);
  ASN1_INTEGER_set(X509_get_serialNumber(cert.get()), kRelayProtocolVersion);
  X509_gmtime_adj(X509_getm_notBefore(cert.get()), -kMetaCertDays * 24 * 3600);
  X509_gmtime_adj(X509_getm_notAfter(cert.get()), kMetaCertDays * 24 * 3600);
  X509_set_pubkey(cert.get(), key.get());
  X509_NAME* subject = X509_get_subject_name(cert.get());
  // 71 characters are more than the 64 that a common name may have by the standard: the entry is made with a short one
  // and then given the long one, which is not checked again.
  X509_NAME_ENTRY* entry = X509_NAME_ENTRY_create_by_NID(nullptr, NID_commonName, V_ASN1_PRINTABLESTRING,
                                                         reinterpret_cast<const unsigned char*>("x"), 1);
  bool ok = entry && ASN1_STRING_set(X509_NAME_ENTRY_get_data(entry), name.data(), static_cast<int>(name.size())) == 1 &&
            X509_NAME_add_entry(subject, entry, -1, 0) == 1;
  X509_NAME_ENTRY_free(entry);
  X509_EXTENSION* constraints = X509V3_EXT_conf_nid(nullptr, nullptr, NID_basic_constraints, "critical,CA:FALSE");
  if (constraints) {
    X509_add_ext(cert.get(), constraints, -1);
    X509_EXTENSION_free(constraints);
  }
  ok = ok && X509_set_issuer_name(cert.get(), subject) == 1 && X509_sign(cert.get(), key.get(), nullptr) > 0;
  return ok ? std::move(cert) : nullptr;
}

}  // namespace

boost::asio::ssl::context make_tls(const std::string& certificate_file, const std::string& key_file,
                                   const NodePublic& relay_key) {
  boost::asio::ssl::context context(boost::asio::ssl::context::tls_server);
  SSL_CTX* raw = context.native_handle();
  ERR_clear_error();
  SSL_CTX_set_min_proto_version(raw, TLS1_2_VERSION);
  SSL_CTX_set_options(raw, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_IGNORE_UNEXPECTED_EOF);
  SSL_CTX_set_mode(raw, SSL_MODE_RELEASE_BUFFERS);  // idle connections keep no record buffers
  SSL_CTX_set_alpn_select_cb(raw, choose_protocol, nullptr);
  (void)app::read_file(certificate_file);  // the plainer error for a missing file
  (void)app::read_file(key_file);
  if (SSL_CTX_use_certificate_chain_file(raw, certificate_file.c_str()) != 1)
    throw app::CommandError("TLS certificate " + certificate_file + ": " + tls_reason());
  if (SSL_CTX_use_PrivateKey_file(raw, key_file.c_str(), SSL_FILETYPE_PEM) != 1)
    throw app::CommandError("TLS key " + key_file + ": " + tls_reason());
  if (SSL_CTX_check_private_key(raw) != 1)
    throw app::CommandError("TLS key " + key_file + " does not belong to certificate " + certificate_file);
  if (Certificate meta = make_meta_certificate(relay_key)) {
    if (SSL_CTX_add1_chain_cert(raw, meta.get()) != 1) ERR_clear_error();  // only the fast start is lost
  }
  return context;
}

}  // namespace porthole::remote
