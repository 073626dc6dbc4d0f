// The Noise layer of the control protocol (section 3): one IK handshake, then records.
//
// Noise_IK_25519_ChaChaPoly_BLAKE2s with the prologue "Tailscale Control Protocol v<version>", two framings around its
// two messages, and a transport that deviates from the Noise specification: nonces are big-endian counters.
//
//   client: NoiseInitiator i(version, server_key, machine, rng); send i.initiation() in X-Tailscale-Handshake;
//           auto session = i.finish(fifty_one_bytes);
//   server: auto r = respond_noise(initiation, server_private, rng); send r->response; r->session.
#pragma once

#include <array>
#include <memory>

#include "base/bytes.h"
#include "base/key.h"
#include "base/result.h"
#include "base/rng.h"
#include "crypto/aead.h"
#include "crypto/hash.h"
#include "crypto/secret.h"
#include "ts2021/spec_constants.h"
#include "wire/ts2021.h"

namespace porthole::ts2021 {

// Seals and opens records. One per connection; sending and receiving halves are independent. An error is final: the
// connection is dead (counters cannot be resynchronised).
class RecordStream {
 public:
  // Keys are 32 bytes each.
  RecordStream(Bytes send_key, Bytes receive_key);

  // Appends the records that carry `plaintext`, split at 4077 bytes. Nothing for an empty plaintext.
  Status seal(Bytes plaintext, ByteVector& out);
  // Takes any piece of the byte stream; appends the plaintext of every record that is now complete. Keeps at most one
  // partial record (4096 bytes).
  Status open(Bytes bytes, ByteVector& plaintext);

  std::uint64_t records_sealed() const { return send_counter_; }
  std::uint64_t records_opened() const { return receive_counter_; }

 private:
  friend class RecordStreamTest;
  Status open_one(MutBytes frame, ByteVector& plaintext);

  crypto::AeadKey send_;
  crypto::AeadKey receive_;
  std::uint64_t send_counter_ = 0;
  std::uint64_t receive_counter_ = 0;
  std::array<std::uint8_t, wire::kTs2021FrameSizeMax> partial_;
  std::size_t partial_size_ = 0;
  bool dead_ = false;
};

// The outcome of a handshake.
struct NoiseSession {
  RecordStream records;
  MachinePublic peer;            // client side: the server's key; server side: the client's machine key
  std::uint16_t version = 0;
  crypto::Hash32 handshake_hash{};
};

// Handshake state of one side: chaining key and hash, wiped when dropped.
struct NoiseSymmetric {
  crypto::SecretBytes<32> chaining_key;
  crypto::SecretBytes<32> key;
  crypto::Hash32 hash{};
};

class NoiseInitiator {
 public:
  // Consumes randomness for one ephemeral key. `machine` is copied. Error: the server key is not a usable key.
  static Result<NoiseInitiator> start(std::uint16_t version, const MachinePublic& server,
                                      const crypto::MachinePrivate& machine, Rng& rng);

  // 101 bytes for the X-Tailscale-Handshake header (base64).
  Bytes initiation() const { return initiation_; }
  // Exactly 51 bytes, header included. Call at most once.
  Result<NoiseSession> finish(Bytes response);

 private:
  friend class NoiseTraceTest;
  NoiseInitiator() = default;
  NoiseSymmetric state_;
  crypto::MachinePrivate machine_;
  crypto::MachinePrivate ephemeral_;
  MachinePublic server_;
  std::uint16_t version_ = 0;
  std::array<std::uint8_t, wire::kTs2021InitiationSize> initiation_{};
};

struct NoiseResponse {
  std::array<std::uint8_t, wire::kTs2021ResponseSize> response;
  NoiseSession session;
};

// Server side. The initiation must have passed wire::check_ts2021_initiation. Error (kUnauthorized): it cannot be
// decrypted, i.e. the client has another server key or another version in its prologue: close without an answer.
Result<NoiseResponse> respond_noise(Bytes initiation, const crypto::MachinePrivate& server, Rng& rng);

// An error frame (type 3), for an initiation with a fault of shape.
ByteVector encode_noise_error(std::string_view text);

// Client side: strips the optional early payload off the plaintext (section 3.6). Feed plaintext until done(); what
// follows belongs to HTTP/2. Server side: encode_early_payload().
class EarlyPayloadReader {
 public:
  // Consumes plaintext; appends to `rest` the bytes that are HTTP/2's. Error: a payload beyond the limit.
  Status consume(Bytes plaintext, ByteVector& rest);
  bool done() const { return phase_ == Phase::kDone; }
  // The payload's JSON, empty when there was none.
  const ByteVector& payload() const { return payload_; }

 private:
  enum class Phase { kHeader, kPayload, kDone };
  Phase phase_ = Phase::kHeader;
  ByteVector header_;
  ByteVector payload_;
  std::size_t payload_size_ = 0;
};
// Magic, length and JSON; to be sealed as the first plaintext after the handshake.
ByteVector encode_early_payload(const ChallengePublic& challenge);

}  // namespace porthole::ts2021
