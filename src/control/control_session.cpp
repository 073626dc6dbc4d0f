#include "control/control_session.h"

#include <algorithm>

#include "control/http_fetch.h"
#include "control/limits.h"
#include "ts2021/limits.h"

namespace porthole::control {

using ts2021::NoiseInitiator;

namespace {

constexpr std::string_view kKeyOrVersion =
    "it closed the connection during the handshake: its key has changed, or it does not accept this version of the "
    "protocol";
constexpr std::string_view kProxyAdvice =
    "a proxy in front of the control server does not pass the upgrade; it must forward the Upgrade header "
    "\"tailscale-control-protocol\" (nginx: proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; "
    "proxy_set_header Connection \"upgrade\"; Cloudflare cannot do it)";

// The answer to the upgrade has a small head; its body matters only when it is an error.
wire::HttpLimits upgrade_limits() {
  wire::HttpLimits limits;
  limits.body_size_max = 64 * 1024;
  return limits;
}

}  // namespace

ControlSession::ControlSession(StreamId id, std::string authority, bool tls)
    : id_(id), authority_(std::move(authority)), tls_(tls), head_(wire::HttpKind::kResponse, upgrade_limits()) {}

Status ControlSession::begin(std::uint16_t version, const MachinePublic& server, const crypto::MachinePrivate& machine,
                             Rng& rng) {
  PORTHOLE_ASSERT(phase_ == Phase::kWaitingForKey);
  auto initiator = NoiseInitiator::start(version, server, machine, rng);
  if (!initiator.ok()) return initiator.error();
  initiator_ = std::move(*initiator);
  const std::string handshake = to_base64(initiator_->initiation());
  const wire::HttpHeader headers[] = {{"Host", authority_},
                                      {"User-Agent", "porthole"},
                                      {"Content-Length", "0"},
                                      {"Connection", "upgrade"},
                                      {"Upgrade", ts2021::kUpgradeProtocol},
                                      {ts2021::kHandshakeHeader, handshake}};
  Status encoded = wire::encode_http_request_head(out_, "POST", ts2021::kUpgradePath, headers);
  if (!encoded.ok()) return encoded;
  phase_ = Phase::kUpgrade;
  return {};
}

Status ControlSession::consume(Bytes bytes) {
  if (bytes.empty()) return {};
  switch (phase_) {
    case Phase::kWaitingForKey:
      first_bytes_.take(bytes);
      return Error{ErrorCode::kProtocol, first_bytes_.guess().empty() ? "it spoke first, which no control server does"
                                                                      : std::string(first_bytes_.guess())};
    case Phase::kUpgrade: {
      first_bytes_.take(bytes);
      if (!first_bytes_.guess().empty()) return Error{ErrorCode::kProtocol, std::string(first_bytes_.guess())};
      auto taken = head_.consume(bytes);
      if (!taken.ok()) return taken.error();
      if (head_.head_done() && head_.head().status() == 101) return handle_head(bytes.subspan(*taken));
      if (head_.done()) return explain_status();
      return {};
    }
    case Phase::kHandshake:
      return handle_handshake(bytes);
    case Phase::kReady:
      return handle_records(bytes);
  }
  return {};
}

Status ControlSession::handle_head(Bytes rest) {
  const auto upgrade = head_.head().header("Upgrade");
  if (!upgrade || !wire::equal_ignore_case(*upgrade, ts2021::kUpgradeProtocol)) {
    return Error{ErrorCode::kProtocol, std::string(kProxyAdvice)};
  }
  upgraded_ = true;
  phase_ = Phase::kHandshake;
  return rest.empty() ? Status() : handle_handshake(rest);
}

Status ControlSession::handle_handshake(Bytes bytes) {
  // The header tells a response from an error text; both are short.
  while (!bytes.empty()) {
    std::size_t wanted = wire::kTs2021HeaderSize;
    if (handshake_.size() >= wanted) {
      auto header = wire::parse_ts2021_header(handshake_);
      const bool response = header && header->type == wire::Ts2021Type::kResponse &&
                            header->length == wire::kTs2021ResponsePayloadSize;
      const bool error = header && header->type == wire::Ts2021Type::kError &&
                         header->length <= wire::kTs2021FrameSizeMax - wire::kTs2021HeaderSize;
      if (!response && !error) {
        return Error{ErrorCode::kProtocol, "its handshake answer is not one: something in between changed the bytes"};
      }
      wanted += header->length;
    }
    const std::size_t take = std::min(bytes.size(), wanted - handshake_.size());
    append(handshake_, bytes.first(take));
    bytes = bytes.subspan(take);
    if (handshake_.size() < wanted) return {};
    if (wanted == wire::kTs2021HeaderSize) continue;

    if (handshake_[0] == static_cast<std::uint8_t>(wire::Ts2021Type::kError)) {
      // Unauthenticated, so a hint and no more.
      return Error{ErrorCode::kRefused,
                   "it refused the handshake: " + printable_line(as_text(Bytes(handshake_).subspan(3)))};
    }
    auto session = initiator_->finish(handshake_);
    initiator_.reset();
    if (!session.ok()) return session.error();
    noise_.emplace(std::move(*session));
    h2_ = std::make_unique<ts2021::H2Client>(authority_);
    phase_ = Phase::kReady;
    return bytes.empty() ? Status() : handle_records(bytes);
  }
  return {};
}

Status ControlSession::handle_records(Bytes bytes) {
  ByteVector plain;
  Status opened = noise_->records.open(bytes, plain);
  // What was authentic before a bad record still counts; it may explain the end (GOAWAY).
  ByteVector rest;
  Bytes http2 = plain;
  if (!early_.done()) {
    Status early = early_.consume(plain, rest);
    if (!early.ok()) return early;
    http2 = rest;
  }
  if (!http2.empty()) {
    Status fed = h2_->consume(http2);
    if (!fed.ok()) return fed;
  }
  return opened;
}

Error ControlSession::explain_status() const {
  const int status = head_.head().status();
  const std::string line = printable_line(head_.body());
  // Who answered is often the news: the proxy and not the server behind it.
  const std::string server = printable_line(head_.head().header("Server").value_or(""));
  const std::string answered = (server.empty() ? "it" : server) + " answered the upgrade with " + std::to_string(status);
  if (status >= 300 && status < 400) {
    return {ErrorCode::kProtocol, answered + " (a redirect to " +
                                      printable_line(head_.head().header("Location").value_or("nowhere")) +
                                      "): set the control URL to the server itself"};
  }
  if (!tls_ && line.find("HTTPS server") != std::string::npos) {
    return {ErrorCode::kProtocol, "it speaks TLS on this port: use https:// in the control URL"};
  }
  if (status == 429 || status == 503) {
    return {ErrorCode::kUnavailable, answered + (line.empty() ? "" : ": " + line)};
  }
  if (status == 502 || status == 504) {
    return {ErrorCode::kUnavailable, answered + ": the control server behind it does not run, or listens elsewhere"};
  }
  if (status == 404) return {ErrorCode::kNotFound, answered + ": it is no control server, or its proxy hides /ts2021"};
  return {ErrorCode::kProtocol, answered + ": " + std::string(kProxyAdvice)};
}

Error ControlSession::explain_close(const std::optional<Error>& error) const {
  if (phase_ == Phase::kHandshake) return {ErrorCode::kUnauthorized, std::string(kKeyOrVersion)};
  if (phase_ == Phase::kUpgrade && head_.head_done() && !error) return explain_status();
  const Error why = error ? *error : Error{ErrorCode::kReset, "it closed the connection"};
  // The request went out whole and nothing came back: what servers do not do, and some middleboxes do.
  if (phase_ == Phase::kUpgrade && why.code == ErrorCode::kReset && first_bytes_.empty() && out_at_ == out_.size()) {
    return {why.code, why.message + " instead of answering the upgrade: if this goes on, a proxy or firewall on the way does "
                                    "not let it through"};
  }
  return why;
}

bool ControlSession::has_output() const {
  if (!opened_) return false;
  return out_at_ < out_.size() || (h2_ && h2_->has_output());
}

std::size_t ControlSession::produce(MutBytes out) {
  if (!opened_) return 0;
  std::size_t written = 0;
  while (written < out.size()) {
    if (out_at_ < out_.size()) {
      const std::size_t n = std::min(out.size() - written, out_.size() - out_at_);
      std::copy_n(out_.begin() + static_cast<std::ptrdiff_t>(out_at_), n,
                  out.begin() + static_cast<std::ptrdiff_t>(written));
      out_at_ += n;
      written += n;
      continue;
    }
    out_.clear();
    out_at_ = 0;
    if (!h2_) break;
    std::array<std::uint8_t, wire::kTs2021PlaintextSizeMax> plain;
    const std::size_t n = h2_->produce(plain);
    const bool sealed = n != 0 && noise_->records.seal(Bytes(plain).first(n), out_).ok();
    crypto::wipe(MutBytes(plain).first(n));
    if (!sealed) break;
  }
  return written;
}

}  // namespace porthole::control
