// The service's TLS: one certificate, TLS 1.2 and newer, only http/1.1 in ALPN, and the relay's key as a last extra
// certificate in the chain (DERP "MetaCert"), which lets clients start a relay session one round trip earlier.
#pragma once

#include <boost/asio/ssl/context.hpp>
#include <string>

#include "base/key.h"

namespace porthole::remote {

// CommandError with one plain sentence: file missing, not PEM, key does not belong to the certificate.
boost::asio::ssl::context make_tls(const std::string& certificate_file, const std::string& key_file,
                                   const NodePublic& relay_key);

}  // namespace porthole::remote
