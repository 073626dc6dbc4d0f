// One control connection as bytes: HTTP upgrade, Noise handshake, early payload, then HTTP/2 inside records (Tailscale
// control protocol, sections 2 to 4). Knows nothing of registering or maps.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "base/bytes.h"
#include "base/key.h"
#include "base/result.h"
#include "base/rng.h"
#include "base/stream.h"
#include "control/http_fetch.h"
#include "crypto/secret.h"
#include "ts2021/h2.h"
#include "ts2021/noise.h"
#include "wire/http.h"

namespace porthole::control {

class ControlSession {
 public:
  ControlSession(StreamId id, std::string authority, bool tls);

  StreamId id() const { return id_; }
  // The stream is up. The upgrade goes out once begin() has been called too, in either order.
  void opened() { opened_ = true; }
  bool is_open() const { return opened_; }
  bool begun() const { return phase_ != Phase::kWaitingForKey; }
  Status begin(std::uint16_t version, const MachinePublic& server, const crypto::MachinePrivate& machine, Rng& rng);

  // An error ends the session; its message says in words what stands between us and the server.
  Status consume(Bytes bytes);
  // Why an end of the stream at this moment is trouble.
  Error explain_close(const std::optional<Error>& error) const;
  std::size_t produce(MutBytes out);
  bool has_output() const;

  bool ready() const { return phase_ == Phase::kReady; }
  // The close came where a server that does not accept our idea of its key (or our version) closes.
  bool failed_in_handshake() const { return phase_ == Phase::kHandshake; }
  // Only when ready().
  ts2021::H2Client& h2() { return *h2_; }

 private:
  enum class Phase { kWaitingForKey, kUpgrade, kHandshake, kReady };
  Status handle_head(Bytes rest);
  Status handle_handshake(Bytes bytes);
  Status handle_records(Bytes bytes);
  Error explain_status() const;

  StreamId id_;
  std::string authority_;
  bool tls_;
  bool opened_ = false;
  Phase phase_ = Phase::kWaitingForKey;
  FirstBytes first_bytes_;
  ByteVector out_;          // bytes ready for the stream
  std::size_t out_at_ = 0;
  std::optional<ts2021::NoiseInitiator> initiator_;
  wire::HttpMessageParser head_;
  bool upgraded_ = false;
  ByteVector handshake_;    // the response as it arrives
  std::optional<ts2021::NoiseSession> noise_;
  ts2021::EarlyPayloadReader early_;
  std::unique_ptr<ts2021::H2Client> h2_;
};

}  // namespace porthole::control
