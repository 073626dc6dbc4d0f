#include "ts2021/noise.h"

#include <algorithm>
#include <string>

#include "crypto/dh.h"
#include "ts2021/json.h"
#include "ts2021/limits.h"

namespace porthole::ts2021 {

using crypto::SecretBytes;
using wire::kTs2021FrameSizeMax;
using wire::kTs2021HeaderSize;
using wire::kTs2021PlaintextSizeMax;
using wire::kTs2021TagSize;

namespace {

// Counter 2^64-1 is never used (section 3.1): the connection dies instead.
constexpr std::uint64_t kCounterEnd = ~std::uint64_t{0};

std::array<std::uint8_t, crypto::kAeadNonceSize> record_nonce(std::uint64_t counter) {
  std::array<std::uint8_t, crypto::kAeadNonceSize> nonce{};
  store_be(nonce.data() + 4, counter);
  return nonce;
}

constexpr std::array<std::uint8_t, crypto::kAeadNonceSize> kZeroNonce{};

// The symmetric operations of the Noise framework, by the names of section 3.3.

void mix_hash(NoiseSymmetric& s, Bytes data) { s.hash = crypto::blake2s(s.hash, data); }

// False: the shared secret is all zero (a low-order public key).
bool mix_key(NoiseSymmetric& s, Bytes private_key, Bytes public_key) {
  SecretBytes<32> shared;
  if (!crypto::x25519(private_key, public_key, shared)) return false;
  SecretBytes<32> next_chain;
  crypto::hkdf_blake2s(s.chaining_key.reveal(), shared.reveal(), next_chain.writable(), s.key.writable());
  s.chaining_key = std::move(next_chain);
  return true;
}

void encrypt_and_hash(NoiseSymmetric& s, Bytes plain, MutBytes out) {
  crypto::aead_seal(s.key.reveal(), kZeroNonce, s.hash, plain, out);
  mix_hash(s, out);
}

bool decrypt_and_hash(NoiseSymmetric& s, Bytes sealed, MutBytes out) {
  if (!crypto::aead_open(s.key.reveal(), kZeroNonce, s.hash, sealed, out)) return false;
  mix_hash(s, sealed);
  return true;
}

NoiseSymmetric initial_state(std::uint16_t version, const MachinePublic& server) {
  NoiseSymmetric s;
  s.hash = crypto::blake2s(as_bytes(kNoiseProtocolName));
  s.chaining_key = SecretBytes<32>(s.hash);
  std::string prologue = std::string(kNoisePrologue) + std::to_string(version);
  mix_hash(s, as_bytes(prologue));
  mix_hash(s, server.bytes());
  return s;
}

// first: initiator to responder, second: responder to initiator.
std::pair<SecretBytes<32>, SecretBytes<32>> split(const NoiseSymmetric& s) {
  SecretBytes<32> first, second;
  crypto::hkdf_blake2s(s.chaining_key.reveal(), {}, first.writable(), second.writable());
  return {std::move(first), std::move(second)};
}

Error dead_connection(std::string why) {
  return {ErrorCode::kProtocol, "the control connection broke: " + std::move(why)};
}

}  // namespace

// ---- records -------------------------------------------------------------------------------------------------------

RecordStream::RecordStream(Bytes send_key, Bytes receive_key)
    : send_(crypto::AeadKey::Direction::kSeal, send_key), receive_(crypto::AeadKey::Direction::kOpen, receive_key) {}

Status RecordStream::seal(Bytes plaintext, ByteVector& out) {
  while (!plaintext.empty()) {
    if (dead_ || send_counter_ == kCounterEnd) return dead_connection("its record counter is spent");
    Bytes piece = plaintext.first(std::min(plaintext.size(), kTs2021PlaintextSizeMax));
    plaintext = plaintext.subspan(piece.size());
    std::size_t start = out.size();
    std::size_t sealed_size = piece.size() + kTs2021TagSize;
    out.resize(start + kTs2021HeaderSize + sealed_size);
    MutBytes frame = MutBytes(out).subspan(start);
    wire::encode_ts2021_header({wire::Ts2021Type::kRecord, static_cast<std::uint16_t>(sealed_size)}, frame);
    std::copy(piece.begin(), piece.end(), frame.begin() + kTs2021HeaderSize);
    send_.seal(record_nonce(send_counter_++), {}, frame.subspan(kTs2021HeaderSize));
  }
  return {};
}

Status RecordStream::open(Bytes bytes, ByteVector& plaintext) {
  if (dead_) return dead_connection("an earlier record was bad");
  while (!bytes.empty()) {
    // The header decides how much of the input belongs to this record.
    std::size_t wanted = kTs2021HeaderSize;
    if (partial_size_ >= kTs2021HeaderSize) {
      wanted += load_be<std::uint16_t>(partial_.data() + 1);
    }
    std::size_t take = std::min(bytes.size(), wanted - partial_size_);
    std::copy_n(bytes.begin(), take, partial_.begin() + static_cast<std::ptrdiff_t>(partial_size_));
    partial_size_ += take;
    bytes = bytes.subspan(take);
    if (partial_size_ < wanted) return {};

    if (wanted == kTs2021HeaderSize) {
      auto header = wire::parse_ts2021_header(Bytes(partial_).first(kTs2021HeaderSize));
      if (!header || header->type != wire::Ts2021Type::kRecord || header->length < kTs2021TagSize ||
          header->length > kTs2021FrameSizeMax - kTs2021HeaderSize) {
        dead_ = true;
        return dead_connection("bytes that are not a record arrived");
      }
      continue;
    }
    Status opened = open_one(MutBytes(partial_).first(partial_size_), plaintext);
    partial_size_ = 0;
    if (!opened.ok()) {
      dead_ = true;
      return opened;
    }
  }
  return {};
}

Status RecordStream::open_one(MutBytes frame, ByteVector& plaintext) {
  if (receive_counter_ == kCounterEnd) return dead_connection("its record counter is spent");
  MutBytes sealed = frame.subspan(kTs2021HeaderSize);
  if (!receive_.open(record_nonce(receive_counter_++), {}, sealed)) {
    return dead_connection("a record failed its integrity check");
  }
  append(plaintext, sealed.first(sealed.size() - kTs2021TagSize));
  return {};
}

// ---- handshake, client ---------------------------------------------------------------------------------------------

Result<NoiseInitiator> NoiseInitiator::start(std::uint16_t version, const MachinePublic& server,
                                             const crypto::MachinePrivate& machine, Rng& rng) {
  NoiseInitiator i;
  i.version_ = version;
  i.server_ = server;
  i.machine_ = machine.duplicate();
  i.ephemeral_ = crypto::MachinePrivate::generate(rng);
  i.state_ = initial_state(version, server);

  MutBytes out(i.initiation_);
  store_be<std::uint16_t>(out.data(), version);
  out[2] = static_cast<std::uint8_t>(wire::Ts2021Type::kInitiation);
  store_be<std::uint16_t>(out.data() + 3, wire::kTs2021InitiationPayloadSize);

  const Error unusable{ErrorCode::kProtocol, "the control server's key is not a usable key"};
  MachinePublic ephemeral_public = i.ephemeral_.public_key();
  std::copy_n(ephemeral_public.bytes().begin(), 32, out.begin() + 5);          // e
  mix_hash(i.state_, ephemeral_public.bytes());
  if (!mix_key(i.state_, i.ephemeral_.reveal(), server.bytes())) return unusable;   // es
  encrypt_and_hash(i.state_, machine.public_key().bytes(), out.subspan(37, 48));    // s
  if (!mix_key(i.state_, machine.reveal(), server.bytes())) return unusable;        // ss
  encrypt_and_hash(i.state_, {}, out.subspan(85, 16));
  return i;
}

Result<NoiseSession> NoiseInitiator::finish(Bytes response) {
  auto header = wire::parse_ts2021_header(response);
  if (response.size() != wire::kTs2021ResponseSize || !header || header->type != wire::Ts2021Type::kResponse ||
      header->length != wire::kTs2021ResponsePayloadSize) {
    return Error{ErrorCode::kProtocol, "the control server answered the handshake with something else"};
  }
  const Error refused{ErrorCode::kUnauthorized,
                      "the control server's handshake answer does not fit its key: something between us and it "
                      "changed the bytes, or the server's key was replaced"};
  Bytes ephemeral = response.subspan(3, 32);
  mix_hash(state_, ephemeral);                                                  // e
  if (!mix_key(state_, ephemeral_.reveal(), ephemeral)) return refused;         // ee
  if (!mix_key(state_, machine_.reveal(), ephemeral)) return refused;           // se
  if (!decrypt_and_hash(state_, response.subspan(35, 16), {})) return refused;
  auto [send, receive] = split(state_);
  return NoiseSession{RecordStream(send.reveal(), receive.reveal()), server_, version_, state_.hash};
}

// ---- handshake, server ---------------------------------------------------------------------------------------------

Result<NoiseResponse> respond_noise(Bytes initiation, const crypto::MachinePrivate& server, Rng& rng) {
  auto message = wire::parse_ts2021_initiation(initiation);
  if (!message) return Error{ErrorCode::kProtocol, "malformed handshake initiation"};
  const Error undecryptable{ErrorCode::kUnauthorized, "handshake initiation made for another server key or version"};

  NoiseSymmetric s = initial_state(message->version, server.public_key());
  std::array<std::uint8_t, 32> client_static{};
  mix_hash(s, message->ephemeral);                                                             // e
  if (!mix_key(s, server.reveal(), message->ephemeral)) return undecryptable;                  // es
  if (!decrypt_and_hash(s, message->encrypted_static, client_static)) return undecryptable;    // s
  if (!mix_key(s, server.reveal(), client_static)) return undecryptable;                       // ss
  if (!decrypt_and_hash(s, message->tag, {})) return undecryptable;

  crypto::MachinePrivate ephemeral = crypto::MachinePrivate::generate(rng);
  MachinePublic ephemeral_public = ephemeral.public_key();
  std::array<std::uint8_t, wire::kTs2021ResponseSize> response{};
  MutBytes out(response);
  wire::encode_ts2021_header(
      {wire::Ts2021Type::kResponse, static_cast<std::uint16_t>(wire::kTs2021ResponsePayloadSize)}, out);
  std::copy_n(ephemeral_public.bytes().begin(), 32, out.begin() + 3);                          // e
  mix_hash(s, ephemeral_public.bytes());
  if (!mix_key(s, ephemeral.reveal(), message->ephemeral)) return undecryptable;               // ee
  if (!mix_key(s, ephemeral.reveal(), client_static)) return undecryptable;                    // se
  encrypt_and_hash(s, {}, out.subspan(35, 16));
  auto [receive, send] = split(s);
  return NoiseResponse{response, NoiseSession{RecordStream(send.reveal(), receive.reveal()),
                                              MachinePublic(client_static), message->version, s.hash}};
}

ByteVector encode_noise_error(std::string_view text) {
  text = text.substr(0, kTs2021FrameSizeMax - kTs2021HeaderSize);
  ByteVector out(kTs2021HeaderSize);
  wire::encode_ts2021_header({wire::Ts2021Type::kError, static_cast<std::uint16_t>(text.size())}, out);
  append(out, as_bytes(text));
  return out;
}

// ---- early payload -------------------------------------------------------------------------------------------------

Status EarlyPayloadReader::consume(Bytes plaintext, ByteVector& rest) {
  if (phase_ == Phase::kHeader) {
    std::size_t take = std::min(plaintext.size(), wire::kTs2021EarlyHeaderSize - header_.size());
    append(header_, plaintext.first(take));
    plaintext = plaintext.subspan(take);
    if (header_.size() < wire::kTs2021EarlyHeaderSize) return {};
    if (auto size = wire::parse_ts2021_early_header(header_)) {
      // The Go client takes up to 10 MiB, yet nothing but the challenge was ever sent.
      if (*size > kEarlyPayloadSizeMax) {
        return Error{ErrorCode::kProtocol, "the control server sent an early payload of " + std::to_string(*size) +
                                               " bytes, more than this node accepts"};
      }
      payload_size_ = *size;
      phase_ = Phase::kPayload;
    } else {
      append(rest, header_);  // no payload: these nine bytes are the first HTTP/2 frame's header
      phase_ = Phase::kDone;
    }
  }
  if (phase_ == Phase::kPayload) {
    std::size_t take = std::min(plaintext.size(), payload_size_ - payload_.size());
    append(payload_, plaintext.first(take));
    plaintext = plaintext.subspan(take);
    if (payload_.size() < payload_size_) return {};
    phase_ = Phase::kDone;
  }
  append(rest, plaintext);
  return {};
}

ByteVector encode_early_payload(const ChallengePublic& challenge) {
  std::string json = encode_early_payload_json(challenge);
  ByteVector out;
  ByteWriter w(out);
  w.bytes(wire::kTs2021EarlyMagic);
  w.be32(static_cast<std::uint32_t>(json.size()));
  w.bytes(as_bytes(json));
  return out;
}

}  // namespace porthole::ts2021
